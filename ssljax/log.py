"""What a run tells while it trains: metrics.jsonl, TensorBoard, the bar."""

import collections
import contextlib
import functools
import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging
from tensorboardX import event_file_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2

from ssljax import errors
from ssljax import files
from ssljax import monitors
from ssljax import sharding

# Steps that may be under way on the device. Two keep it busy, and more would
# only hold batches in memory.
_IN_FLIGHT = 2
# Seconds between writes of TensorBoard's file, which wait for the disk.
_TENSORBOARD_S = 10
_SPENT = "seconds/"  # before the kinds of `clock`
# What has to be finite; the last is of the parameters after the update.
_FINITE = ("loss", "grad_norm", "param_norm")
# Updates left out one after the other that end a run with nonfinite=skip.
_LEFT_OUT = 20
# Steps whose rates are computed at once. The device does what it has to do
# before, so that a row would wait for that, were they computed one by one.
_RATES = 1 << 16


class Log:
  """Metrics, fetched late, to metrics.jsonl, TensorBoard and the bar.

  Args:
    run: whose metrics they are.
    workdir: the folder of the run.
    clock: of this process.
    start: the step that the run starts from; what was logged after is dropped.
    dim: of what is monitored, for `monitors.Watch`; None where nothing is.

  Attributes:
    figures: of the run so far, as the command prints them.
    knn: {step: accuracy} of the run so far.
  """

  def __init__(self, run, workdir, clock, start, dim):
    self._run = run
    self._clock = clock
    self._watch = monitors.Watch(dim)
    # (what takes them, step, values on the device)
    self._pending = collections.deque()
    self._warned = set()  # kinds of collapse
    self._rows = []  # fetched, not yet written
    self._left_out = 0  # updates until now, one after the other
    self._rates = {}  # of some steps, by their first
    self._learning_rate(start)  # before the first step
    self._told_any = False  # whether this process has written a row
    self._path = os.path.join(workdir, "metrics.jsonl")
    rows = _drop_rows_after(self._path, start)
    self._spent_before = _spent(rows)  # by earlier processes
    before = {name: value for row in rows for name, value in row.items()}
    with self._told():
      self._file = open(self._path, "a")
    self._tb = TensorBoard(os.path.join(workdir, "tb"), start + 1)
    self._bar = tqdm.tqdm(
      total=run.total_steps,
      initial=start,
      unit="step",
      disable=not sharding.is_first(),
      mininterval=0.5 if sys.stderr.isatty() else 30,
      dynamic_ncols=True,
    )
    self._start = self._ends = time.perf_counter()
    self._first = None  # when the first step was done: compiled by then
    self._paused = 0.0  # seconds in evaluation
    self._count = 0
    self._before_s = before.get("train_s", 0.0)  # before this process
    self.knn = {row["step"]: row["knn"] for row in rows if "knn" in row}
    self._rate = f"{run.source.unit}_per_s"
    names = "loss", "train_s", "step_s", self._rate, "knn"
    self.figures = {"steps": start} | {name: before.get(name) for name in names}
    self.figures |= {"collapsed": None, "skipped": 0}
    self.figures["goodput"] = _goodput(self._spent_before)
    for row in rows:
      self._judge(row)

  def add(self, step, metrics, index):
    """Takes the metrics of a step and its examples [b], on the device."""
    self._later(functools.partial(self._trained, index=index), step, metrics)

  def monitored(self, step, figures):
    """Takes what `monitors.measure` gave, on the device."""
    self._later(self._monitored, step, figures)

  def _later(self, take, step, values):
    self._pending.append((take, step, values))
    while len(self._pending) > _IN_FLIGHT:
      self._fetch()

  def flush(self):
    """Fetches and writes all that is known."""
    while self._pending:
      self._fetch()
    self._write()
    with self._told():
      self._tb.flush()

  def evaluated(self, step, knn):
    """Notes an evaluation, whose seconds do not count as training."""
    now = time.perf_counter()
    if self._first is None:  # it counts neither as before the first step
      self._start += now - self._ends
    else:
      self._paused += now - self._ends
    self._ends = now
    self.knn[step] = knn
    self.figures["knn"] = knn
    self._emit({"step": step, "knn": knn})
    self.flush()

  def finish(self, step):
    """Tells what the seconds went to up to the end, the last save among them.

    A process that found nothing to do tells nothing.
    """
    if self._told_any:
      self._emit({"step": step} | self._seconds())
      self.flush()

  def close(self):
    """Ends the log; a full disk is told by what failed first, not here."""
    self._bar.close()
    for file in (self._file, self._tb):
      with contextlib.suppress(OSError):
        file.close()

  def _fetch(self):
    take, step, values = self._pending.popleft()
    take(step, {k: np.asarray(v).item() for k, v in values.items()})

  def _trained(self, step, metrics, *, index):
    self._ends = time.perf_counter()
    self._first = self._first or self._ends
    self._count += 1
    if np.isfinite([metrics[name] for name in _FINITE]).all():
      self._rows.append((step, metrics))
      self._left_out = 0
    else:
      self._not_finite(step, metrics, index)
    self._bar.update()
    if step % self._run.config.log_every == 0:
      self._write()

  def _monitored(self, step, figures):
    named = {monitors.PREFIX + k: v for k, v in figures.items()}
    self._emit({"step": step} | named)

  def _judge(self, row):
    """Notes what a row tells; returns why it has collapsed, if it has."""
    self.figures["skipped"] += row.get("skipped", 0)
    reasons = self._watch.judge(row)
    self.figures["collapsed"] = self._watch.collapsed
    return reasons

  def _write(self):
    """Writes the mean of the steps since the last row."""
    if not self._rows:
      return
    rows, self._rows = self._rows, []
    step = rows[-1][0]
    mean = lambda name: float(np.mean([m[name] for _, m in rows]))
    row = {name: mean(name) for name in rows[0][1]}
    self.figures |= {"steps": step, "loss": row["loss"]} | self._timed()
    row["learning_rate"] = self._learning_rate(step - 1)
    for name in ("train_s", "step_s", self._rate):
      row[name] = self.figures[name]
    self._emit({"step": step} | row | self._seconds())
    shown = {
      "loss": f"{row['loss']:.4f}",
      self._rate.replace("_per_s", "/s"): f"{row[self._rate]:.0f}",
    }
    if self.figures["knn"] is not None:
      shown["knn"] = f"{self.figures['knn']:.4f}"
    self._bar.set_postfix(shown, refresh=False)

  def _learning_rate(self, step):
    first = step - step % _RATES
    if first not in self._rates:
      steps = first + jnp.arange(_RATES)
      rates = np.asarray(jax.vmap(self._run.learning_rate)(steps))
      self._rates = {first: rates}
    return float(self._rates[first][step - first])

  def _timed(self):
    """How long the steps took up to the last that was fetched."""
    seconds = self._ends - self._start - self._paused
    steady = self._ends - self._first - self._paused
    step_s = steady / (self._count - 1) if self._count > 1 else seconds
    units = self._run.config.batch_size * self._run.source.per_example
    return {
      "train_s": round(self._before_s + seconds, 3),
      "step_s": round(step_s, 6),
      self._rate: round(units / step_s, 1),
    }

  def _seconds(self):
    """What the run's seconds went to until now, for a row."""
    now, before = self._clock.read(), self._spent_before
    spent = {k: round(s + before.get(k, 0.0), 3) for k, s in now.items()}
    self.figures["goodput"] = _goodput(spent)  # of what is written
    return {_SPENT + k: s for k, s in spent.items()}

  def _emit(self, row):
    """Writes a row, and warns of a collapse, once of each kind."""
    self._told_any = True
    for reason in self._judge(row):
      kind = reason.partition(":")[0]
      if kind not in self._warned:
        self._warned.add(kind)
        logging.warning("step %d: %s", row["step"], reason)
    with self._told():
      self._file.write(json.dumps(files.plain(row)) + "\n")
      self._file.flush()
      self._tb.write(row)

  @contextlib.contextmanager
  def _told(self):
    """A disk that is full ends the run with what to do."""
    try:
      yield
    except OSError as e:
      raise _not_written(self._path, e) from e

  def _not_finite(self, step, metrics, index):
    """Stops the run, or notes that the update was left out."""
    index = sharding.gather(index).tolist()
    first = ", ".join(map(str, index[:8])) + ", ..." * (len(index) > 8)
    what = (
      f"step {step}: loss {metrics['loss']}, gradient norm "
      f"{metrics['grad_norm']}, norm of the parameters after it "
      f"{metrics['param_norm']}, not finite; its batch is of the examples "
      f"{first} (`ssljax replay` with --step={step} gives it again)"
    )
    self._write()
    mend = "a smaller config.optimizer.learning_rate"
    if self._run.config.nonfinite == "skip":
      self.figures |= {"steps": step} | self._timed()
      self._emit({"step": step, "skipped": 1})
      self._left_out += 1
      if self._left_out < _LEFT_OUT:
        logging.warning("%s; the update was left out", what)
        return
      what += f"; {_LEFT_OUT} updates in a row were left out"
    else:
      mend += " or config.nonfinite=skip"
    raise errors.SafeStop(
      f"{what}; the last checkpoint is from before and is kept: begin anew "
      f"with {mend}"
    )


class TensorBoard:
  """Event files, without tensorboardX' own thread, which a full disk hangs.

  What is written is on the disk after ten seconds, or where the log is flushed.
  """

  def __init__(self, folder, first_step):
    self._folder, self._first_step = folder, first_step
    self._writer = None  # until there is something to write
    self._flushed = time.monotonic()

  def _open(self):
    os.makedirs(self._folder, exist_ok=True)
    self._writer = event_file_writer.EventsWriter(
      os.path.join(self._folder, "events")
    )
    # TensorBoard then forgets what an earlier process wrote from here on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(self._first_step, session_log=start)

  def write(self, row):
    if self._writer is None:
      self._open()
    for name, value in row.items():
      if name != "step":
        self._write(row["step"], summary=summary.scalar(name, value))
    if time.monotonic() - self._flushed > _TENSORBOARD_S:
      self.flush()

  def flush(self):
    if self._writer is not None:
      self._writer.flush()
    self._flushed = time.monotonic()

  def _write(self, step, **what):
    event = event_pb2.Event(step=step, wall_time=time.time(), **what)
    self._writer.write_event(event)

  def close(self):
    if self._writer is not None:
      self._writer.close()


def _drop_rows_after(path, step):
  """Forgets what was logged after the checkpoint that the run resumes from.

  The seconds that it took stay, as lost, in a row of their own: this process
  may be killed before it writes another. Returns the rows that stay.
  """
  if not os.path.exists(path):
    return []
  try:
    rows = files.rows(path)
  except OSError as e:
    raise _not_written(path, e) from e
  kept = [row for row in rows if row["step"] <= step]
  spent = _spent(kept)
  lost = sum(_spent(rows).values()) - sum(spent.values())
  if lost > 0:
    spent["lost"] = round(spent.get("lost", 0.0) + lost, 3)
    kept.append({"step": step} | {_SPENT + k: s for k, s in spent.items()})
  try:
    files.write(path, "".join(json.dumps(row) + "\n" for row in kept))
  except OSError as e:
    raise _not_written(path, e) from e
  return kept


def _not_written(path, error):
  return errors.SafeStop(
    f"{path} could not be written ({error.strerror}); the checkpoints are "
    "kept: make room and start again in the same workdir"
  )


def _goodput(spent):
  """The share of "step" in the seconds by kind; None of none."""
  whole = sum(spent.values())
  return round(spent.get("step", 0.0) / whole, 4) if whole else None


def _spent(rows):
  """Seconds by kind at the last of the rows that has them."""
  for row in reversed(rows):
    if found := {k: v for k, v in row.items() if k.startswith(_SPENT)}:
      return {k.removeprefix(_SPENT): v for k, v in found.items()}
  return {}
