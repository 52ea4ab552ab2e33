"""The loop: batches in, checkpoints and metrics out, exact to resume."""

import collections
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import tqdm
from absl import logging
from tensorboardX import event_file_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2

import ssljax
from ssljax import checkpoint
from ssljax import config as config_lib
from ssljax import core
from ssljax import errors
from ssljax import evaluate
from ssljax import run as run_lib
from ssljax import sharding
from ssljax.data import stream

# Steps that may be under way on the device. Two keep it busy, and more would
# only hold batches in memory.
_IN_FLIGHT = 2


def train(config, workdir: str) -> dict:
  """Trains what the config names, or goes on where `workdir` stopped.

  Args:
    config: a config, as in `configs/`.
    workdir: the folder that holds all of the run.

  Returns:
    The run's figures, as the command prints them.

  Raises:
    UserError: something is wrong that can be known before training.
    SafeStop: the loss is not finite, or a checkpoint could not be written; the
      last good checkpoint is kept.
    SystemExit: with 143, after SIGTERM, with everything saved.
  """
  _refuse_another_config(config, workdir)
  run = run_lib.build(config)
  sets = _eval_sets(run)
  state_shape = run_lib.abstract_state(run)
  _claim(config, workdir)
  checkpoint.require_room(workdir, state_shape)
  checkpoints = checkpoint.Checkpoints(
    os.path.join(workdir, "checkpoints"), keep=config.checkpoint.keep
  )
  resumed_from = checkpoints.latest_step()
  if resumed_from is not None:
    state = checkpoints.restore(state_shape)
  elif config.init_from:
    state = _init_from(run, state_shape)
  else:
    state = run_lib.init_state(run)
  step_fn = compile_step(run)
  log = _Log(run, workdir, start=resumed_from or 0)
  try:
    state = _loop(run, state, step_fn, log, checkpoints, sets)
  finally:
    log.close()
  return log.figures | {
    "compiles": step_fn._cache_size(),  # pylint: disable=protected-access
    "resumed_from": resumed_from,
    "state_sha256": checkpoint.sha256(state),
    "workdir": workdir,
  }


def compile_step(run: run_lib.Run):
  """The train step, jitted over the mesh: the state in is given up."""
  everywhere = sharding.replicated(run.mesh)
  step = core.make_train_step(
    run.method,
    run.tx,
    augment=run.augment,
    accumulate=run.config.accumulate,
    statistics_per_microbatch=run.config.statistics_per_microbatch,
  )
  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(everywhere, sharding.by_example(run.mesh), everywhere),
    out_shardings=(everywhere, everywhere),
  )


def _eval_sets(run):
  """The sets for evaluation in training, or None."""
  wanted = run.config.eval.last or run.config.eval.every_epochs
  return evaluate.eval_sets(run) if wanted else None


def _loop(run, state, step_fn, log, checkpoints, sets):
  """Returns the state after the last step."""
  config = run.config
  start, stop = int(state.step), run.total_steps
  rng = jax.random.key(config.seed)
  place = sharding.by_example(run.mesh)
  batches = stream.batches(
    run.source,
    seed=config.seed,
    start_step=start,
    stop_step=stop,
    batch_size=config.batch_size,
    to_device=lambda batch: jax.device_put(batch, place),
  )
  eval_every = config.eval.every_epochs
  eval_every = eval_every and max(1, round(eval_every * run.steps_per_epoch))
  with _Terminated() as terminated:
    for step, batch in zip(range(start, stop), batches):
      state, metrics = step_fn(state, batch, rng)
      log.add(step, metrics)
      done = step + 1
      last = done == stop
      evaluates = sets and (
        (last and config.eval.last) or (eval_every and done % eval_every == 0)
      )
      saves = last or done % config.checkpoint.every_steps == 0
      if evaluates or saves or terminated:
        log.flush()  # waits, so that nothing that is not finite is saved
      knn = None
      if evaluates and not terminated:
        knn = evaluate.knn(run, state, sets)
        log.evaluated(done, knn)
      if evaluates or saves or terminated:
        checkpoints.save(done, state, knn=knn)
      if terminated:
        checkpoints.wait()
        logging.warning("SIGTERM: saved step %d", done)
        raise SystemExit(143)
  checkpoints.wait()
  checkpoints.close()
  return state


class _Terminated:
  """True once SIGTERM came; the loop ends itself at the next step."""

  def __enter__(self):
    self._came = False
    try:
      self._before = signal.signal(signal.SIGTERM, self._note)
    except ValueError:  # not the main thread, as in a notebook's executor
      self._before = None
    return self

  def __exit__(self, *unused):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, *unused):
    self._came = True

  def __bool__(self):
    return self._came


class _Log:
  """Metrics, fetched late, to metrics.jsonl, TensorBoard and the bar."""

  def __init__(self, run, workdir, start):
    self._run = run
    self._pending = collections.deque()  # (step, metrics on the device)
    self._rows = []  # fetched, not yet written
    self._path = os.path.join(workdir, "metrics.jsonl")
    before = _drop_rows_after(self._path, start)
    self._file = open(self._path, "a")
    self._tb = _TensorBoard(os.path.join(workdir, "tb"), start + 1)
    self._bar = tqdm.tqdm(
      total=run.total_steps,
      initial=start,
      unit="step",
      mininterval=0.5 if sys.stderr.isatty() else 30,
      dynamic_ncols=True,
    )
    self._start = self._ends = time.perf_counter()
    self._first = None  # when the first step was done: compiled by then
    self._paused = 0.0  # seconds in evaluation
    self._count = 0
    self._before_s = before.get("train_s", 0.0)  # before this process
    self._knn = before.get("knn")
    names = "loss", "train_s", "step_s", "images_per_s", "knn"
    self.figures = {"steps": start} | {name: before.get(name) for name in names}

  def add(self, step, metrics):
    self._pending.append((step, metrics))
    while len(self._pending) > _IN_FLIGHT:
      self._fetch()

  def flush(self):
    while self._pending:
      self._fetch()
    self._write()

  def evaluated(self, step, knn):
    """Notes an evaluation, whose seconds do not count as training."""
    now = time.perf_counter()
    self._paused += now - self._ends
    self._ends = now
    self._knn = knn
    self.figures["knn"] = knn
    self._emit({"step": step, "knn": knn})

  def close(self):
    """Ends the log; a full disk is told by what failed first, not here."""
    self._bar.close()
    for file in (self._file, self._tb):
      with contextlib.suppress(OSError):
        file.close()

  def _fetch(self):
    step, metrics = self._pending.popleft()
    metrics = {k: np.asarray(v).item() for k, v in metrics.items()}
    self._ends = time.perf_counter()
    self._first = self._first or self._ends
    self._count += 1
    if not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
      self._stop(step, metrics)
    self._rows.append((step + 1, metrics))
    self._bar.update()
    if (step + 1) % self._run.config.log_every == 0:
      self._write()

  def _write(self):
    """Writes the mean of the steps since the last row."""
    if not self._rows:
      return
    rows, self._rows = self._rows, []
    step = rows[-1][0]
    mean = lambda name: float(np.mean([m[name] for _, m in rows]))
    row = {name: mean(name) for name in rows[0][1]}
    seconds = self._ends - self._start - self._paused
    steady = self._ends - self._first - self._paused
    step_s = steady / (self._count - 1) if self._count > 1 else seconds
    self.figures |= {
      "steps": step,
      "loss": rows[-1][1]["loss"],
      "train_s": round(self._before_s + seconds, 3),
      "step_s": round(step_s, 6),
      "images_per_s": round(self._run.config.batch_size / step_s, 1),
    }
    row["learning_rate"] = float(self._run.learning_rate(step - 1))
    for name in ("train_s", "step_s", "images_per_s"):
      row[name] = self.figures[name]
    self._emit({"step": step} | row)
    shown = {
      "loss": f"{row['loss']:.4f}",
      "img/s": f"{row['images_per_s']:.0f}",
    }
    if self._knn is not None:
      shown["knn"] = f"{self._knn:.4f}"
    self._bar.set_postfix(shown, refresh=False)

  def _emit(self, row):
    try:
      self._file.write(json.dumps(row) + "\n")
      self._file.flush()
      self._tb.write(row)
    except OSError as e:
      raise errors.SafeStop(
        f"{self._path} could not be written ({e.strerror}); the checkpoints "
        "are kept: make room and start again in the same workdir"
      ) from e

  def _stop(self, step, metrics):
    self._write()
    run = self._run
    indices = stream.indices(
      run.config.seed,
      step,
      num_examples=len(run.source),
      batch_size=run.config.batch_size,
    )
    raise errors.SafeStop(
      f"step {step}: loss {metrics['loss']}, gradient norm "
      f"{metrics['grad_norm']}, not finite; the batch's indices are "
      f"{indices.tolist()}; the last checkpoint is from before and is kept"
    )


class _TensorBoard:
  """Event files, written at once; tensorboardX' own thread would hang on a
  full disk."""

  def __init__(self, folder, first_step):
    os.makedirs(folder, exist_ok=True)
    self._writer = event_file_writer.EventsWriter(
      os.path.join(folder, "events")
    )
    # TensorBoard then forgets what an earlier process wrote from here on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(first_step, session_log=start)

  def write(self, row):
    for name, value in row.items():
      if name != "step":
        self._write(row["step"], summary=summary.scalar(name, value))
    self._writer.flush()

  def _write(self, step, **what):
    event = event_pb2.Event(step=step, wall_time=time.time(), **what)
    self._writer.write_event(event)

  def close(self):
    self._writer.close()


def _refuse_another_config(config, workdir):
  path = os.path.join(workdir, "config.json")
  if not os.path.exists(path):
    return
  old, new = map(config_lib.to_dict, (config_lib.restore(path), config))
  if rows := config_lib.difference(old, new):
    raise errors.UserError(
      f"{workdir} holds a run of another config ({'; '.join(rows)}): give "
      "another --workdir, or the same config to go on"
    )


def _claim(config, workdir):
  """Makes the workdir this run's own."""
  try:
    os.makedirs(workdir, exist_ok=True)
    config_lib.save(config, os.path.join(workdir, "config.json"))
    with open(os.path.join(workdir, "environment.json"), "w") as f:
      json.dump(environment(), f, indent=2)
  except OSError as e:
    raise errors.UserError(
      f"cannot write to --workdir={workdir} ({e.strerror}): give another"
    ) from e


def environment() -> dict:
  """Versions, devices and the git commit: what a number depends on."""
  git = subprocess.run(
    ["git", "rev-parse", "HEAD"],
    cwd=os.path.dirname(os.path.abspath(__file__)),
    capture_output=True,
    text=True,
    check=False,
  )
  return {
    "ssljax": ssljax.__version__,
    "git": git.stdout.strip() or None,
    "python": platform.python_version(),
    "jax": jax.__version__,
    "numpy": np.__version__,
    "platform": platform.platform(),
    "devices": [str(d) for d in jax.devices()],
    "cpus": os.cpu_count(),
  }


def _drop_rows_after(path, step):
  """Forgets what was logged after the checkpoint that the run resumes from.

  Returns the last value of each name in the rows that stay.
  """
  if not os.path.exists(path):
    return {}
  with open(path) as f:
    # A line cut short by a kill has no end.
    rows = [json.loads(line) for line in f if line.endswith("\n")]
  rows = [row for row in rows if row["step"] <= step]
  with open(path, "w") as f:
    f.writelines(json.dumps(row) + "\n" for row in rows)
  return {name: value for row in rows for name, value in row.items()}


def _init_from(run, state_shape):
  """The parameters and method state of another run's latest checkpoint."""
  other = checkpoint.Checkpoints(
    os.path.join(run.config.init_from, "checkpoints")
  )
  old = other.restore(state_shape)
  new = run_lib.init_state(run)
  return new._replace(params=old.params, method_state=old.method_state)
