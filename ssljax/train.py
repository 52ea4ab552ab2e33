"""The loop: batches in, checkpoints and metrics out, exact to resume."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from ssljax import checkpoint
from ssljax import clock as clock_lib
from ssljax import core
from ssljax import errors
from ssljax import evaluate
from ssljax import log as log_lib
from ssljax import monitors
from ssljax import ops
from ssljax import run as run_lib
from ssljax import sharding
from ssljax import workdir as workdir_lib
from ssljax.data import stream
from ssljax.evals import knn as knn_lib


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
    KeyboardInterrupt: after SIGINT, in a process that is alone with everything
      saved; after a second one without another step, and while nothing trains
      yet, or in one of several processes, at once. What is being saved is
      waited for.
  """
  workdir = os.fspath(workdir)
  checkpoint.require_no_bracket(workdir)
  clock = clock_lib.Clock(config.watchdog_s)
  folder = os.path.join(workdir, "checkpoints")
  if checkpoint.steps_in(folder):  # before the data are read
    workdir_lib.refuse_another_config(config, workdir)
  elif config.init_from and not checkpoint.steps_in(_start(config)):
    raise _no_start(config)
  run = run_lib.build(config)
  workdir_lib.refuse_another_run(run, workdir)
  checkpoint.require_fit(folder, run.abstract_state)
  if not checkpoint.steps_in(folder) and config.init_from:
    checkpoint.require_fit(_start(config), _taken(run))
  sets = _eval_sets(run)
  monitors_run = config.monitor.every_steps > 0
  monitor = _Monitor(run) if monitors_run else None
  step_fn = compile_step(run)
  if not checkpoint.steps_in(folder):
    # What the step alone tells of a mistake, before anything is written.
    batch, key = run_lib.abstract_batch(run), jax.random.key(0)
    jax.eval_shape(step_fn, run.abstract_state, batch, key)
  with workdir_lib.claimed(run, workdir):
    checkpoint.require_room(workdir, run.abstract_state)
    checkpoints = checkpoint.Checkpoints(folder, keep=config.checkpoint.keep)
    resumed_from = checkpoints.latest_step()
    if resumed_from is not None:
      state = checkpoints.restore(run.abstract_state)
    else:
      state = first_state(run)
      workdir_lib.drop_evaluations(workdir)
      if run.config.init_from:  # the other run may go on, or be removed
        checkpoints.save(0, state)
    log = log_lib.Log(
      run,
      workdir_lib.own_folder(workdir),
      clock,
      start=resumed_from or 0,
      dim=monitor and monitor.dim,
    )
    try:
      state = _loop(run, state, step_fn, log, clock, checkpoints, sets, monitor)
    finally:
      clock.stop()
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
  state = run_lib.state_shardings(run)
  step = core.make_train_step(
    run.method,
    run.tx,
    augment=run.augment,
    accumulate=run.config.accumulate,
    statistics_per_microbatch=run.config.statistics_per_microbatch,
    skip_nonfinite=run.config.nonfinite == "skip",
  )
  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(state, sharding.by_example(run.mesh), everywhere),
    out_shardings=(state, everywhere),
  )


def _eval_sets(run):
  """The sets for evaluation in training, or None."""
  wanted = run.config.eval.last or run.config.eval.every_epochs
  return evaluate.eval_sets(run) if wanted else None


class _Monitor:
  """`state -> figures` on the device, of fixed draws of fixed examples.

  The draws are two of the training augmentation's first view.

  Attributes:
    dim: of the embeddings, or the number of examples where that is less.
  """

  def __init__(self, run):
    wanted, devices = run.config.monitor.examples, run.mesh.devices.size
    if wanted < 2:
      raise errors.UserError(
        f"config.monitor.examples={wanted}: give 2 or more, or "
        "config.monitor.every_steps=0"
      )
    n = min(wanted, len(run.source))
    n = max(n - n % devices, devices)
    # Over the whole source: its first examples may be of one class.
    spread = np.linspace(0, len(run.source) - 1, n).astype(np.int64)
    self._batch = sharding.put(
      run.source.read(spread), sharding.by_example(run.mesh)
    )

    def embed(state, batch):
      # Draws of an example lie together, so that no device sends examples.
      batch = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), batch)
      keys = ops.view_keys(jax.random.split(jax.random.key(0), n), 2)
      epoch = jnp.tile(jnp.arange(2), n)  # what is drawn by epoch, not by key
      batch = run.augment(batch | {"key": keys, "epoch": epoch})
      z = run.method.embed(state.params, state.method_state, batch)["pooled"]
      return z.reshape(n, 2, -1)

    def figures(state, batch):
      z = embed(state, batch)
      return monitors.measure(z[:, 0], z[:, 1])

    z = jax.eval_shape(embed, run.abstract_state, self._batch)
    self.dim = min(n, z.shape[-1])
    self._figures = jax.jit(
      figures, out_shardings=sharding.replicated(run.mesh)
    )

  def compile(self, state):
    """Compiles, which would else stop the loop."""
    self._figures = self._figures.lower(state, self._batch).compile()

  def __call__(self, state):
    return self._figures(state, self._batch)


def _loop(run, state, step_fn, log, clock, checkpoints, sets, monitor):
  """Returns the state after the last step."""
  config = run.config
  stop = run.total_steps
  if monitor and int(state.step) < stop:
    with clock.of("compile"):
      monitor.compile(state)
  checkpoints.knn = log.knn
  clock.switch("step")
  # However it ends, what is being saved is saved; a signal waits for that.
  with _Stopped() as stopped, checkpoints:
    start = int(state.step)
    due = sets and _evaluates(run, start)
    if due and sharding.of_first(start not in log.knn):
      _evaluate(run, state, sets, log, clock)  # it ended before it had
    stops = False
    for update in updates(run, state, step_fn, clock=clock):
      done, state = update.step, update.state
      log.add(done, update.metrics, update.batch["index"])
      del update  # the memory of its batch is the next one's
      checkpoints.check()
      last = done == stop
      if monitor and (last or done % config.monitor.every_steps == 0):
        log.monitored(done, monitor(state))
      # Read once: a signal later in this step ends the run after the next.
      stops = stopped.at(done)
      saves = last or stops or done % config.checkpoint.every_steps == 0
      # A refresh takes long, and a signal waits for it.
      saves |= bool(run.method.refresh) and done % run.steps_per_epoch == 0
      evaluates = sets and _evaluates(run, done)
      if evaluates or saves:
        log.flush()  # waits, so that nothing that is not finite is saved
        with clock.of("save"):
          checkpoints.save(done, state)
      if evaluates and not stops:
        _evaluate(run, state, sets, log, clock)
      if stops:
        break
    with clock.of("save"):
      checkpoints.wait()
    log.finish(int(state.step))
    if stops:
      logging.warning("%s: saved step %d", stopped.by.name, done)
      if stopped.by == signal.SIGINT:
        raise KeyboardInterrupt
      raise SystemExit(143)
  return state


def _evaluates(run, step):
  """Whether the run is evaluated after the step; not before the first."""
  config = run.config.eval
  every = config.every_epochs
  every = every and max(1, round(every * run.steps_per_epoch))
  last = config.last and step == run.total_steps
  return step > 0 and bool(last or (every and step % every == 0))


def _evaluate(run, state, sets, log, clock):
  with clock.of("evaluate"):
    try:
      knn = evaluate.knn(run, state, sets)
    except knn_lib.NotFinite as e:
      raise errors.SafeStop(
        f"evaluation at step {int(state.step)}: {e}; begin anew with a smaller "
        "config.optimizer.learning_rate"
      ) from e
    log.evaluated(int(state.step), knn)


class Update(NamedTuple):
  """What `updates` yields.

  Attributes:
    step: of the update, counted from 1, as in metrics.jsonl.
    state: after it.
    metrics: on the device.
    batch: that it saw, as `run.abstract_batch`.
  """

  step: int
  state: core.TrainState
  metrics: dict
  batch: dict


def updates(
  run,
  state,
  step_fn,
  *,
  stop: int | None = None,
  clock: clock_lib.Clock | None = None,
) -> Iterator[Update]:
  """The updates after `state` up to that of step `stop`, or to the run's end.

  The state is given up, and so is each that was yielded before.
  """
  of = clock.of if clock else lambda kind: contextlib.nullcontext()
  rng = jax.random.key(run.config.seed)
  refresh = run_lib.make_refresh(run)
  batches, compiled = None, False
  for step in range(int(state.step), stop or run.total_steps):
    if refresh and step % run.steps_per_epoch == 0:
      # What was saved at this step is from before: resuming refreshes too.
      with of("refresh"):
        state, batches = refresh(state), None
    with of("input"):
      batches = batches or _batches(run, state, step)
      batch = next(batches)
    with of("step" if compiled else "compile"):
      state, metrics = step_fn(state, batch, rng)
    compiled = True
    update = Update(step + 1, state, metrics, batch)
    del batch, metrics
    yield update
    del update


def _batches(run, state, start):
  """The batches from step `start` on, as far as the state decides them."""
  stop, weights = run.total_steps, None
  if run.method.refresh:
    stop = min(stop, start - start % run.steps_per_epoch + run.steps_per_epoch)
    weights = state.method_state.get("sampling_weights")
  place = sharding.by_example(run.mesh)
  return stream.batches(
    run.source,
    seed=run.config.seed,
    start_step=start,
    stop_step=stop,
    batch_size=run.config.batch_size,
    weights=None if weights is None else np.asarray(weights),
    to_device=lambda batch: sharding.put_parts(batch, place),
    rows=sharding.rows(run.mesh, run.config.batch_size),
  )


class _Stopped:
  """Whether a signal came, to this process or another; the loop ends itself.

  SIGTERM, and Ctrl-C in a process that is alone and does not ignore it, as one
  in the background does; the second Ctrl-C is as it would be without this.

  Attributes:
    by: the signal.
  """

  def __enter__(self):
    self.by, self._before = None, {}
    # Among several processes jax' own handler lets all stop at the same step.
    if jax.process_count() == 1:
      with contextlib.suppress(ValueError):  # in a thread, as in a notebook
        for number in (signal.SIGTERM, signal.SIGINT):
          if signal.getsignal(number) != signal.SIG_IGN:
            self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused):
    for number in list(self._before):
      self._as_before(number)

  def _note(self, number, frame):
    del frame
    self.by = signal.Signals(number)
    if number == signal.SIGINT:
      self._as_before(number)
      # No stream's own lock may be waited for here.
      os.write(2, b"\nsaving; again ends without another step\n")

  def _as_before(self, number):
    if (before := self._before.pop(number, None)) is not None:
      signal.signal(number, before)

  def at(self, step):
    if jax.process_count() > 1:
      if multihost_utils.reached_preemption_sync_point(step):
        self.by = signal.SIGTERM
    return self.by is not None


def _start(config):
  """The folder of the checkpoints of `config.init_from`."""
  return os.path.join(config.init_from, "checkpoints")


def _no_start(config):
  return errors.UserError(
    f"no checkpoint in {_start(config)}: give the workdir of a run that has "
    "one as --config.init_from"
  )


def _taken(run):
  """What `init_from` takes of another run, abstract."""
  parts = ("params", "method_state")
  return {k: getattr(run.abstract_state, k) for k in parts}


def first_state(run: run_lib.Run) -> core.TrainState:
  """The state before the first update.

  With `config.init_from` it has the parameters and the method state of another
  run's latest checkpoint.
  """
  if not run.config.init_from:
    return run_lib.init_state(run)
  workdir_lib.refuse_other_files(run, run.config.init_from)
  other = checkpoint.Checkpoints(_start(run.config), read_only=True)
  if other.latest_step() is None:  # they are all damaged
    raise _no_start(run.config)
  old = other.restore_part(_taken(run))
  return run_lib.init_state(run)._replace(**old)
