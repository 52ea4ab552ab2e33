"""Runs of the trainer in processes of their own, and what they left behind."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from typing import Any
from typing import NamedTuple

import numpy as np

from ssljax import clock
from ssljax import config as config_lib
from ssljax import digests
from ssljax import errors
from ssljax import files


class Failed(Exception):
  """A run that ended otherwise than it must; nothing more can be tested."""


class Ended(NamedTuple):
  """A process that ended: its status, its JSON line if any, and its stderr."""

  status: int
  figures: dict | None
  stderr: str


class Trial:
  """What the runs of one selftest share.

  Attributes:
    folder: of the workdirs.
    config: as it is loaded.
    slow: flags for a hundredth of the learning rate, where runs that round
      otherwise are compared. A ReLU whose input is zero but for rounding turns,
      which changes a small network's gradient by a thousandth; at the rate of
      the config the losses part from there.
    evaluated: flags with which a run is evaluated as the config has it, which
      takes its time; without, none is.
    rng: of the moments and places of the faults.
    failures: what did not come out, a line each.
  """

  def __init__(self, config: str, folder: str, overrides, seed: int):
    self.folder = folder
    self.config = config_lib.load(config, overrides)
    rate = self.config.optimizer.learning_rate
    if rate is None:
      raise errors.UserError("config.optimizer.learning_rate is not given")
    self.slow = (f"--config.optimizer.learning_rate={rate / 100}",)
    self.rng = random.Random(seed)
    self.failures = []
    self.evaluated = (f"--config.eval.last={self.config.eval.last}",)
    # Every step is told, so that it can be waited for.
    self._flags = [f"--config={config}", *overrides]
    self._flags += ["--config.log_every=1", "--config.eval.last=False"]
    self._environment = dict(os.environ)
    # The runs are of one program, which is compiled once, with all around it.
    folder = os.path.join(folder, "compiled")
    self._environment.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    self._environment.setdefault(name, "0")

  def say(self, text: str) -> None:
    print(f"selftest: {text}", file=sys.stderr, flush=True)

  def expect(self, what: str, holds: bool, found: Any = "") -> None:
    """Notes and tells whether something came out."""
    self.say(f"{'ok' if holds else 'FAILED'}: {what} {found}".rstrip())
    if not holds:
      self.failures.append(f"{what} {found}".rstrip())

  def workdir(self, name: str) -> str:
    return os.path.join(self.folder, name)

  def _note(self, name, kind):
    """A file about the run `name`, which may itself lie on a small disk."""
    return os.path.join(self.folder, f"{name.replace('/', '-')}.{kind}")

  def start(
    self, name, *flags, devices=None, command="train", process=0, **faults
  ) -> subprocess.Popen:
    """Starts a command on the workdir `name`; faults are those of `child`."""
    spec = dict(faults)
    if command == "train":
      flags = [*self._flags, *flags]
      spec["batches"] = self._note(name, f"{process}.batches")
    environment = dict(self._environment)
    if devices is not None:
      environment["JAX_PLATFORMS"] = "cpu"  # others cannot be simulated
      old = environment.get("XLA_FLAGS", "").split()
      flag = "--xla_force_host_platform_device_count"
      old = [part for part in old if not part.startswith(flag)]
      environment["XLA_FLAGS"] = " ".join([*old, f"{flag}={devices}"])
    with open(self._note(name, f"{process}.stderr"), "w") as stderr:
      return subprocess.Popen(
        [
          *(sys.executable, "-m", "ssljax.selftest.child", json.dumps(spec)),
          *(command, f"--workdir={self.workdir(name)}", *flags),
        ],
        stdout=subprocess.PIPE,
        stderr=stderr,  # a pipe that nobody reads could hold the process up
        text=True,
        env=environment,
      )

  def start_both(self, name, *flags, heartbeat=100, **options):
    """Starts a run of two processes, of one device each."""
    with socket.socket() as free:
      free.bind(("localhost", 0))
      address = f"localhost:{free.getsockname()[1]}"
    flags = [*flags, f"--coordinator={address}", "--processes=2"]
    flags += [f"--heartbeat={heartbeat}"]
    return [
      self.start(
        name, *flags, f"--process={i}", devices=1, process=i, **options
      )
      for i in range(2)
    ]

  def end_both(self, processes, name) -> list["Ended"]:
    """Waits for what `start_both` gave."""
    return [self.end(p, name, process=i) for i, p in enumerate(processes)]

  def end(self, started, name, process=0) -> Ended:
    """Waits for what `start` gave."""
    out, _ = started.communicate()
    with open(self._note(name, f"{process}.stderr")) as f:
      stderr = f.read()
    figures = None
    if started.returncode == 0:
      figures = json.loads(out.strip().splitlines()[-1])
    return Ended(started.returncode, figures, stderr)

  def run(self, name, *flags, status=0, **options) -> Ended:
    """Runs a command to its end, which must be with `status`.

    Raises:
      UserError: it ended with 2, a mistake in the config.
      Failed: it ended otherwise.
    """
    started = self.start(name, *flags, **options)
    return _with_status(status, self.end(started, name))

  def stop(self, name, step, *flags, late_s=0.0, **options) -> Ended:
    """Runs up to a step, and `late_s` more, and ends it by SIGTERM.

    Raises:
      as `run`, where it does not end with 143.
    """
    started = self.start(name, *flags, **options)
    wait(started, lambda: self.last_step(name) >= step)
    time.sleep(late_s)
    started.terminate()
    return _with_status(143, self.end(started, name))

  def rows(self, name) -> list[dict]:
    """Whole lines of metrics.jsonl."""
    return files.rows(os.path.join(self.workdir(name), "metrics.jsonl"))

  def losses(self, name, key="loss") -> dict[int, float]:
    """The loss, or another figure of the training, by step."""
    return {r["step"]: r[key] for r in self.rows(name) if key in r}

  def seconds(self, name) -> dict[str, float]:
    """What the run's seconds went to, by kind."""
    rows = [row for row in self.rows(name) if "seconds/step" in row]
    return {kind: rows[-1][f"seconds/{kind}"] for kind in clock.KINDS}

  def last_step(self, name) -> int:
    """The last that metrics.jsonl tells of."""
    return max((row["step"] for row in self.rows(name)), default=0)

  def batches(self, name, process=0, column=1) -> dict[int, set[str]]:
    """The digests of the batches that were seen as that of each step.

    Column 2 has their examples' places in the source instead, "3,0,...".
    """
    seen = {}
    with open(self._note(name, f"{process}.batches")) as f:
      for line in f:
        if line.endswith("\n"):
          words = line.split()
          seen.setdefault(int(words[0]), set()).add(words[column])
    return seen

  def checkpoints(self, name) -> str:
    return os.path.join(self.workdir(name), "checkpoints")

  def steps(self, name) -> list[int]:
    """The steps that count as saved, the oldest first."""
    folder = self.checkpoints(name)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    whole = lambda n: n.isdigit() and digests.exist(os.path.join(folder, n))
    return sorted(int(n) for n in names if whole(n))

  def saving(self, name) -> bool:
    """Whether a checkpoint is being written."""
    folder = self.checkpoints(name)
    try:
      names = os.listdir(folder)
    except FileNotFoundError:
      return False
    whole = lambda n: digests.exist(os.path.join(folder, n))
    aside = lambda n: n.startswith(("damaged-", "unfinished-"))
    return any(not aside(n) and not whole(n) for n in names)


def _with_status(status, ended):
  if ended.status == status:
    return ended
  lines = ended.stderr.strip().splitlines() or ["nothing on stderr"]
  kind = errors.UserError if ended.status == 2 else Failed
  raise kind(
    f"a run ended with status {ended.status}, not {status}: {lines[-1]}"
  )


def apart(one, other, steps: int | None = None) -> float:
  """The largest difference of two runs' figures of the same steps.

  It is told relative to the largest figure, not to each by itself: a cosine
  begins near zero, where it has no digits to compare.

  Args:
    one: {step: figure}.
    other: the same of the other run; it has all of these steps.
    steps: only the first so many are compared.
  """
  names = sorted(one)[:steps]
  one, other = (np.array([rows[s] for s in names]) for rows in (one, other))
  return float(np.max(np.abs(other - one)) / np.max(np.abs(one)))


def wait(process, happened, poll_s: float = 0.002) -> bool:
  """Waits until `happened()`; False where the process ended before."""
  while not happened():
    if process.poll() is not None:
      return False
    time.sleep(poll_s)
  return True
