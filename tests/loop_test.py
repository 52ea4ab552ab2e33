"""The loop over steps that do nothing: what is saved, whatever happens."""

import json
import os
import signal
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import checkpoint
from ssljax import clock as clock_lib
from ssljax import core
from ssljax import digests
from ssljax import errors
from ssljax import log as log_lib
from ssljax import train
from ssljax.evals import knn


def _state(step):
  one = jnp.full((4,), step, jnp.float32)
  return core.TrainState(jnp.int32(step), {"a": one}, {"b": one}, {"c": one})


@pytest.fixture
def loop(tmp_path, monkeypatch):
  """`loop(at) -> figures` of 4 steps, saved every 2; resumes by itself.

  `at` is what happens before a step is done: {step: function}.
  """
  folder = str(tmp_path / "checkpoints")
  of_arrays = digests.of_arrays

  def slow(parts):
    time.sleep(0.5)  # the loop is long done with its steps
    return of_arrays(parts)

  monkeypatch.setattr(digests, "of_arrays", slow)

  def run(at=()):
    def updates(run, state, step_fn, *, clock):
      for step in range(int(state.step) + 1, run.total_steps + 1):
        dict(at).get(step, lambda: None)()
        metrics = {"loss": 1.0, "grad_norm": 1.0, "param_norm": 1.0}
        yield train.Update(step, _state(step), metrics, {"index": np.arange(1)})

    monkeypatch.setattr(train, "updates", updates)
    config = types.SimpleNamespace(
      **{"batch_size": 1, "log_every": 1, "nonfinite": "stop"},
      eval=types.SimpleNamespace(last=True, every_epochs=run.epochs),
      checkpoint=types.SimpleNamespace(every_steps=run.every),
      monitor=types.SimpleNamespace(every_steps=0),
    )
    built = types.SimpleNamespace(
      config=config,
      total_steps=run.steps,
      steps_per_epoch=4,
      source=types.SimpleNamespace(unit="image", per_example=1),
      learning_rate=lambda step: 0.1,
      method=types.SimpleNamespace(refresh=run.refresh),
    )
    checkpoints = checkpoint.Checkpoints(folder, keep=run.keep)
    start = checkpoints.latest_step() or 0
    clock = clock_lib.Clock()
    log = log_lib.Log(built, str(tmp_path), clock, start=start, dim=None)
    try:
      train._loop(
        built, _state(start), None, log, clock, checkpoints, ["sets"], None
      )
    finally:
      log.close()
    return log.figures

  run.steps, run.keep, run.epochs = 4, 3, None
  run.every, run.refresh = 2, None
  run.saved = lambda: [
    int(name)
    for name in sorted(os.listdir(folder))
    if digests.exist(os.path.join(folder, name))
  ]
  run.rows = lambda: [
    (row["step"], row["knn"])
    for row in map(json.loads, open(tmp_path / "metrics.jsonl"))
    if "knn" in row
  ]
  run.knn = lambda of: monkeypatch.setattr(train.evaluate, "knn", of)
  run.knn(lambda run, state, sets: int(state.step) / 10)
  return run


def _raise(error):
  raise error


def test_what_is_being_saved_is_saved_when_the_run_stops(loop):
  with pytest.raises(errors.SafeStop, match="not finite"):
    loop({3: lambda: _raise(errors.SafeStop("not finite"))})
  assert loop.saved() == [2]


def test_the_best_is_kept_by_what_an_earlier_process_has_logged(loop):
  loop.keep = 1
  loop.epochs = 0.5
  loop.knn(lambda run, state, sets: 1 / int(state.step))
  with pytest.raises(SystemExit):
    loop({3: lambda: _raise(SystemExit())})
  loop()
  assert loop.saved() == [2, 4]
  loop.steps = 8
  loop()
  assert loop.saved() == [2, 8]


def test_the_state_is_saved_before_an_evaluation_can_fail(loop):
  refuse = lambda *_: _raise(knn.NotFinite("features hold NaN"))
  loop.knn(refuse)
  with pytest.raises(errors.SafeStop, match="step 4: features hold NaN"):
    loop()
  assert loop.saved() == [2, 4]


def test_the_state_is_saved_before_a_refresh_which_a_signal_waits_for(loop):
  loop.every, loop.steps = 100, 9
  loop()
  assert loop.saved() == [9]
  loop.steps, loop.refresh = 18, lambda: None
  loop()
  assert loop.saved() == [12, 16, 18]


def _terminate():
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def came():
  """SIGTERMs that nothing else has taken."""
  came = []
  before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
  yield came
  signal.signal(signal.SIGTERM, before)


def test_a_sigterm_waits_for_the_last_save(loop, came, monkeypatch):
  of_arrays = digests.of_arrays

  def terminated(parts):
    last, found = parts["step"][0][1] == 4, of_arrays(parts)
    if last:  # the loop waits for it by now
      _terminate()
    return found

  monkeypatch.setattr(digests, "of_arrays", terminated)
  loop()
  assert loop.saved() == [2, 4]
  assert not came


@pytest.fixture
def sigint():
  """`handler -> handler`, of SIGINT; what runs in the background ignores it."""
  before = signal.getsignal(signal.SIGINT)

  def use(handler):
    signal.signal(signal.SIGINT, handler)
    return handler

  yield use
  signal.signal(signal.SIGINT, before)


def test_ctrl_c_that_is_ignored_stays_so(loop, sigint):
  sigint(signal.SIG_IGN)
  loop({3: lambda: os.kill(os.getpid(), signal.SIGINT)})
  assert loop.saved() == [2, 4]


def test_ctrl_c_saves_and_again_ends_at_once(loop, sigint):
  before = sigint(signal.default_int_handler)
  interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    loop({3: interrupt})
  assert loop.saved() == [2, 3]
  assert signal.getsignal(signal.SIGINT) is before

  def twice():
    interrupt()
    while signal.getsignal(signal.SIGINT) is not before:
      time.sleep(0.01)  # another thread may have got it
    interrupt()
    time.sleep(30)
    raise AssertionError("the second did not end it")

  loop.steps = 8
  with pytest.raises(KeyboardInterrupt):
    loop({6: twice})
  assert loop.saved()[-1] == 4


def test_an_evaluation_that_a_sigterm_took_is_done_on_resuming(loop, came):
  loop.epochs = 0.5
  for step, rows in ((2, []), (4, [(2, 0.2)])):
    with pytest.raises(SystemExit, match="143"):
      loop({step: _terminate})
    assert loop.rows() == rows
  figures = loop()
  assert loop.rows() == [(2, 0.2), (4, 0.4)]
  assert figures["knn"] == 0.4
  loop.knn(None)
  assert loop()["knn"] == 0.4  # not once more


def test_an_evaluation_before_the_first_step_is_not_in_its_seconds(loop, came):
  loop.epochs, loop.keep = 0.5, 1
  with pytest.raises(SystemExit):
    loop({2: _terminate})
  loop.knn(lambda *_: time.sleep(1) or 0.5 if len(loop.rows()) == 0 else 0.5)
  figures = loop()
  assert 0 < figures["step_s"] < 0.9
  assert figures["train_s"] < 0.9
