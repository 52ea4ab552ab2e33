"""Processes that are killed, and disks that lie or are full."""

import contextlib
import os
import re
import shutil
import subprocess
import time

from ssljax import checkpoint
from ssljax import digests
from ssljax import errors
from ssljax import evaluate
from ssljax.selftest import processes
from ssljax.selftest import trial as trial_lib

_TWO = ("killed", "whole")


def resume(trial, *, kills, **unused):
  """SIGKILL, half of the times while a checkpoint is written."""
  whole = trial.run("whole", *trial.evaluated).figures
  trial.say(f"not killed: {whole['steps']} steps, {whole['state_sha256']}")
  killed = []
  for i in range(kills):
    before = trial.last_step("killed")
    process = trial.start("killed", *trial.evaluated)
    if i % 2:
      what = "while saving"
      # By this process: what an earlier one left is gone when it trains.
      happened = lambda before=before: (
        trial.last_step("killed") > before and trial.saving("killed")
      )
    else:
      left = (whole["steps"] - before) // (kills - i)
      target = before + trial.rng.randint(1, max(1, left))
      what = f"after step {target}"
      happened = lambda target=target: trial.last_step("killed") >= target
    if trial_lib.wait(process, happened):
      time.sleep(trial.rng.random() * whole["step_s"])
      process.kill()
      killed.append(what)
    trial.end(process, "killed")
    trial.say(f"SIGKILL {what}; saved: {trial.steps('killed')}")
  ended = trial.run("killed", *trial.evaluated).figures
  trial.expect("it was killed as often as asked", len(killed) == kills, killed)
  for name in ("loss", "monitor/rankme"):
    steps = lambda run, n=name: [r["step"] for r in trial.rows(run) if n in r]
    here, there = map(steps, _TWO)
    trial.expect(f"{name} is told of every step once", here == there)
  _expect_same(trial, ended, whole, *_TWO)
  return {"kills": killed, "steps": whole["steps"]}


def sigterm(trial, **unused):
  """SIGTERM at a random moment, to one process and to one of two."""
  whole = trial.run("whole").figures
  target = trial.rng.randint(1, max(1, whole["steps"] - 5))
  late = trial.rng.random() * whole["step_s"]
  trial.stop("terminated", target, late_s=late)
  last, saved = trial.last_step("terminated"), trial.steps("terminated")
  trial.say(f"SIGTERM after step {target}, and it ends with 143")
  trial.expect("no step is lost", saved[-1:] == [last], (saved, last))
  ended = trial.run("terminated").figures
  trial.expect(
    "it goes on from there",
    ended["resumed_from"] == last,
    ended["resumed_from"],
  )
  _expect_same(trial, ended, whole, "terminated", "whole")
  processes.sigterm(trial)
  return {"terminated_at": last, "steps": whole["steps"]}


def corrupt(trial, *, flips, **unused):
  """One bit at random places; lost bytes; a folder that is no checkpoint."""
  whole = trial.run("whole").figures
  steps = trial.steps("whole")
  if len(steps) < 2:
    raise errors.UserError(
      f"the run kept {len(steps)} checkpoint: give --config.checkpoint.keep=2 "
      "or more, a lower every_steps, or more steps"
    )
  good, newest = steps[-2:]
  run, _ = evaluate.restore(trial.workdir("whole"))
  found = 0
  for _ in range(flips):
    folder = _copy(trial, "whole", "flipped")
    path, place = _random_byte(trial, os.path.join(folder, str(newest)))
    bit = trial.rng.randrange(8)
    _flip(path, place, bit)
    name = os.path.relpath(path, folder)
    what = f"bit {bit} of byte {place} of {name}: found, step {good} restored"
    checkpoints = checkpoint.Checkpoints(folder)
    try:
      step = int(checkpoints.restore(run.abstract_state).step)
    except Exception as e:  # of Orbax, too; whatever it is, it is no restore
      trial.expect(what, False, f"({type(e).__name__}: {e})")
      continue
    finally:
      checkpoints.close()
    aside = os.path.isdir(os.path.join(folder, f"damaged-{newest}"))
    trial.expect(what, step == good and aside)
    found += aside
  for how in ("truncated", "emptied", "an empty folder"):
    folder = _copy(trial, "whole", "lost")
    path, place = _random_byte(trial, os.path.join(folder, str(newest)))
    if how == "truncated":
      os.truncate(path, place)
    elif how == "emptied":
      os.truncate(path, 0)
    else:
      os.mkdir(os.path.join(folder, str(newest + 1)))
    ended = trial.run("lost")
    expected = newest if how == "an empty folder" else good
    trial.expect(
      f"{how}: trains on from step {expected}",
      ended.figures["resumed_from"] == expected,
      ended.figures["resumed_from"],
    )
    trial.expect(f"{how}: told", "set aside as" in ended.stderr)
    _expect_same(trial, ended.figures, whole, "lost", "whole", batches=False)
  return {"flips": flips, "found": found, "newest": newest, "restored": good}


def stall(trial, **unused):
  """A reader that hangs for 10 s, and a watchdog that wakes after 3."""
  hangs, patience = 10, 3
  flags = [f"--config.watchdog_s={patience}", "--config.steps=40"]
  start = time.perf_counter()
  ended = trial.stop("stalled", 20, *flags, stall=(15, hangs))
  whole = time.perf_counter() - start
  told = ended.stderr.count("Timeout (")
  trial.expect("all stacks are told", told >= 1, told)
  named = re.search("data/stream.py.* in read", ended.stderr) is not None
  trial.expect("the reader is named", named)
  spent = trial.seconds("stalled")
  trial.say(f"{whole:.1f} s in all, as the run tells them: {spent}")
  waited = spent["input"]
  trial.expect("it is told as input", hangs - 1 < waited < hangs + 1, waited)
  rest = whole - sum(spent.values())  # Python's start and end
  trial.expect("the seconds sum to the whole", 0 <= rest < 10, round(rest, 1))
  return {"seconds": spent, "whole_s": round(whole, 1), "told": told}


def diskfull(trial, **unused):
  """A file system that is full after about three checkpoints."""
  trial.stop("whole", 2)
  every = "--config.checkpoint.every_steps=2"
  *_, step = trial.steps("whole")
  step = os.path.join(trial.checkpoints("whole"), str(step))
  size = 4 * _bytes(step) + (1 << 19)
  mount = trial.workdir("small")
  with _small_disk(mount, size):
    name = "small/run"
    ended = trial.end(
      trial.start(name, every, "--config.checkpoint.keep=1000"), name
    )
    lines = ended.stderr.splitlines()
    told = [line for line in lines if line.startswith("ssljax: ")]
    saved, last = trial.steps(name), trial.last_step(name)
    trial.say(f"{size} bytes: saved {saved}, the last step is {last}")
    trial.expect("it ends with 3", ended.status == 3, ended.status)
    trial.expect("in one line", len(told) == 1, told)
    trial.expect("earlier ones are kept", len(saved) >= 1, saved)
    for step in saved:
      folder = os.path.join(trial.checkpoints(name), str(step))
      wrong = digests.wrong_file(folder)
      trial.expect(f"step {step} is good", wrong is None, wrong or "")
    folder = trial.checkpoints(name)
    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    latest = checkpoints.latest_step()
    checkpoints.close()
    trial.expect(
      "the step that failed is not listed", [latest] == saved[-1:], latest
    )
    trial.expect(
      "it stops before it would save again",
      bool(saved) and last <= saved[-1] + 2 * 2,
      last,
    )
  return {"bytes": size, "saved": saved, "stopped_at": last}


def _expect_same(trial, ended, whole, name, other, batches=True):
  """The state to the bit, and the batches of every step."""
  here, there = ended["state_sha256"], whole["state_sha256"]
  trial.expect("the state is the same to the bit", here == there, here)
  if batches:
    seen, expected = trial.batches(name), trial.batches(other)
    trial.expect("so is the batch of every step", seen == expected)


def _copy(trial, name, other):
  """Copies a run; returns the folder of the copy's checkpoints."""
  shutil.rmtree(trial.workdir(other), ignore_errors=True)
  shutil.copytree(trial.workdir(name), trial.workdir(other))
  return trial.checkpoints(other)


def _random_byte(trial, folder):
  """(path, place) of one of all bytes in the files under `folder`."""
  sizes = {}
  for base, _, names in os.walk(folder):
    for name in sorted(names):
      path = os.path.join(base, name)
      sizes[path] = os.path.getsize(path)
  (path,) = trial.rng.choices(list(sizes), list(sizes.values()))
  return path, trial.rng.randrange(sizes[path])


def _flip(path, place, bit):
  with open(path, "r+b") as f:
    f.seek(place)
    (byte,) = f.read(1)
    f.seek(place)
    f.write(bytes([byte ^ 1 << bit]))


def _bytes(folder):
  return sum(
    os.path.getsize(os.path.join(base, name))
    for base, _, names in os.walk(folder)
    for name in names
  )


@contextlib.contextmanager
def _small_disk(folder, size):
  """A file system of `size` bytes at `folder`."""
  os.makedirs(folder)
  command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    problem = done.stderr.strip() if done.returncode else None
  except FileNotFoundError:
    problem = "there is no `mount`"
  if problem:
    raise errors.UserError(
      f"no small file system can be mounted here ({problem}): run the test as "
      "root, on Linux"
    )
  try:
    yield
  finally:
    subprocess.run(["umount", folder], check=True)
