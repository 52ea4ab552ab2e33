import collections
import json
import time
import types

import numpy as np
import pytest

from ssljax import clock as clock_lib
from ssljax import errors
from ssljax import log as log_lib

_Run = collections.namedtuple(
  "_Run", "total_steps source config learning_rate"
)


def _run(**config):
  source = types.SimpleNamespace(unit="image", per_example=1)
  config = types.SimpleNamespace(log_every=2, batch_size=8, **config)
  return _Run(
    total_steps=4, source=source, config=config, learning_rate=lambda step: 0.1
  )


def _log(run, folder, start=0):
  clock = clock_lib.Clock()
  return log_lib.Log(run, str(folder), clock, start=start, dim=None)


def _metrics(loss=1.0, **others):
  return {"loss": loss, "grad_norm": 1.0, "param_norm": 1.0} | others


NAN = _metrics(np.float32("nan"))


def test_what_is_not_finite_is_told_with_the_examples_that_it_saw(tmp_path):
  log = _log(_run(nonfinite="stop"), tmp_path)
  # Drawn by weights: an example may come twice.
  log.add(1, NAN, np.array([5, 5, 2]))
  with pytest.raises(errors.SafeStop, match=r"step 1: .* examples 5, 5, 2 \("):
    log.flush()
  log.close()


def test_an_update_that_was_left_out_is_told_and_in_no_mean(tmp_path, caplog):
  run = _run(nonfinite="skip")
  log = _log(run, tmp_path)
  for step, metrics in enumerate((2.0, 4.0, None, 8.0), start=1):
    metrics = NAN if metrics is None else _metrics(metrics)
    log.add(step, metrics, np.array([step]))
  log.flush()
  log.close()
  assert "examples 3 (`ssljax replay` with --step=3 gives" in caplog.text
  assert "again); the update was left out" in caplog.text
  rows = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
  assert [row["step"] for row in rows] == [2, 3, 4]
  assert [row.get("loss") for row in rows] == [3.0, None, 8.0]
  assert log.figures["skipped"] == 1
  assert log.figures["steps"] == 4
  again = _log(run, tmp_path, start=4)
  again.close()
  assert again.figures["skipped"] == 1


def test_a_row_is_of_its_steps(tmp_path, monkeypatch):
  now = iter(np.arange(1000.0))
  monkeypatch.setattr(log_lib.time, "perf_counter", lambda: next(now))
  run = _run()._replace(learning_rate=lambda step: 0.5 + step)
  log = _log(run, tmp_path)
  for step, loss in enumerate((1.0, 3.0, 4.0, 8.0), start=1):
    log.add(step, _metrics(loss), np.array([step]))
  log.flush()
  log.close()
  rows = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
  assert [row["loss"] for row in rows] == [2.0, 6.0]
  assert log.figures["loss"] == 6.0
  assert [row["learning_rate"] for row in rows] == [1.5, 3.5]
  for row in (*rows, log.figures):
    assert row["image_per_s"] == round(8 / row["step_s"], 1)
  spent = {k: v for k, v in rows[-1].items() if k.startswith("seconds/")}
  share = spent["seconds/step"] / sum(spent.values())
  assert log.figures["goodput"] == pytest.approx(share, abs=1e-3)
  again = _log(run._replace(total_steps=5), tmp_path, start=4)
  again.add(5, _metrics(), np.array([5]))
  again.flush()
  again.close()
  assert again.figures["train_s"] > rows[-1]["train_s"]


@pytest.mark.parametrize("name", ["loss", "grad_norm", "param_norm"])
def test_a_state_that_is_not_finite_stops_before_it_is_saved(name, tmp_path):
  log = _log(_run(nonfinite="stop"), tmp_path)
  log.add(1, _metrics(**{name: np.inf}), np.array([1]))
  with pytest.raises(errors.SafeStop, match="step 1: .* inf"):
    log.flush()
  log.close()


def test_a_run_that_leaves_out_all_updates_ends(tmp_path):
  log = _log(_run(nonfinite="skip")._replace(total_steps=40), tmp_path)
  bad = [*range(1, 20), *range(21, 41)]  # 19, and after a good one 20
  with pytest.raises(errors.SafeStop, match="step 40: .* 20 updates in a row"):
    for step in range(1, 41):
      log.add(step, NAN if step in bad else _metrics(), np.array([step]))
    log.flush()
  log.close()
  assert log.figures["steps"] == 40 and log.figures["skipped"] == 39


def test_the_rate_of_a_row_does_not_wait_for_the_device(tmp_path, monkeypatch):
  asked = []

  def rate(step):
    asked.append(step)
    return 1.0 * step

  monkeypatch.setattr(log_lib, "_RATES", 4)
  log = _log(_run()._replace(learning_rate=rate, total_steps=6), tmp_path)
  for step in range(1, 7):
    log.add(step, _metrics(), np.array([step]))
    log.flush()
    assert len(asked) == (1 if step < 5 else 2)  # four steps at once
  log.close()
  rows = map(json.loads, open(tmp_path / "metrics.jsonl"))
  assert [row["learning_rate"] for row in rows] == [0, 1, 2, 3, 4, 5]


def test_embeddings_that_are_not_finite_are_told_and_are_null(tmp_path, caplog):
  log = _log(_run(), tmp_path)
  figures = {"std": np.float32("nan"), "rankme": np.float32("nan")}
  log.monitored(1, figures | {"uniformity": np.float32("inf")})
  log.flush()
  log.close()
  (row,) = map(json.loads, open(tmp_path / "metrics.jsonl"))
  assert row["monitor/std"] is None and row["monitor/uniformity"] is None
  assert log.figures["collapsed"].startswith("divergence")
  assert "step 1: divergence" in caplog.text
  again = _log(_run(), tmp_path, start=1)
  again.close()
  assert again.figures["collapsed"] == log.figures["collapsed"]


def test_a_process_that_finds_nothing_to_do_leaves_no_events(tmp_path):
  _log(_run(), tmp_path).close()
  assert not (tmp_path / "tb").exists()


def test_events_that_cannot_be_written_are_told(tmp_path):
  (tmp_path / "tb").write_text("")
  log = _log(_run(), tmp_path)
  with pytest.raises(errors.SafeStop, match="could not be written"):
    log.evaluated(1, 0.5)
  log.close()


def test_steps_whose_updates_were_left_out_are_counted(tmp_path):
  log = _log(_run(nonfinite="skip"), tmp_path)
  log.add(1, _metrics(), np.array([1]))
  log.add(2, NAN, np.array([2]))
  log.flush()
  log.close()
  assert log.figures["steps"] == 2 and log.figures["loss"] == 1.0


def test_tensorboard_waits_for_the_disk_once_in_a_while(tmp_path, monkeypatch):
  log = _log(_run()._replace(total_steps=10), tmp_path)
  add = lambda step: log.add(step, _metrics(), np.array([step]))
  for step in range(1, 5):
    add(step)
  (events,) = (tmp_path / "tb").iterdir()
  before = events.stat().st_size
  for step in range(5, 7):
    add(step)
  assert len(open(tmp_path / "metrics.jsonl").readlines()) == 2
  assert events.stat().st_size == before  # rows at once, events not
  log.flush()
  assert (flushed := events.stat().st_size) > before
  log.evaluated(6, 0.5)
  assert (evaluated := events.stat().st_size) > flushed
  monkeypatch.setattr(log_lib, "_TENSORBOARD_S", -1)
  for step in range(7, 11):
    add(step)
  assert events.stat().st_size > evaluated
  log.close()


def test_lost_seconds_are_told_though_the_next_process_ends_at_once(tmp_path):
  row = lambda step, s: {"step": step, "loss": 1.0, "seconds/step": s}
  rows = [row(2, 10.0), row(4, 25.0)]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))
  for _ in range(2):
    _log(_run(nonfinite="stop"), tmp_path, start=2).close()
  log = _log(_run(nonfinite="stop"), tmp_path, start=2)
  for step in (3, 4):
    log.add(step, _metrics(), np.array([step]))
  log.flush()
  log.close()
  *_, last = map(json.loads, open(path))
  assert last["seconds/lost"] == 15.0
  assert last["seconds/step"] == pytest.approx(10.0, abs=1)


def test_the_log_is_whole_while_it_is_cut(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 1.0}\n')
  before = path.read_text()

  def fails(error):
    def replace(*_):
      raise error

    monkeypatch.setattr(log_lib.files.os, "replace", replace)

  fails(KeyboardInterrupt)
  with pytest.raises(KeyboardInterrupt):
    _log(_run(nonfinite="stop"), tmp_path, start=2)
  assert path.read_text() == before
  fails(OSError(28, "No space left on device"))
  with pytest.raises(errors.SafeStop, match="No space left.* make room"):
    _log(_run(nonfinite="stop"), tmp_path, start=2)
  assert path.read_text() == before


def test_the_last_evaluation_and_save_are_in_the_seconds(tmp_path):
  log = _log(_run(nonfinite="stop"), tmp_path)
  log._clock.switch("step")
  time.sleep(0.1)
  for step in range(1, 5):
    log.add(step, _metrics(), np.array([step]))
  log.flush()
  before = log.figures["goodput"]
  with log._clock.of("evaluate"):
    time.sleep(0.2)
  log.evaluated(4, 0.5)
  log.finish(4)
  log.close()
  *_, last = map(json.loads, open(tmp_path / "metrics.jsonl"))
  assert last["step"] == 4 and last["seconds/evaluate"] >= 0.2
  spent = {k: v for k, v in last.items() if k.startswith("seconds/")}
  share = spent["seconds/step"] / sum(spent.values())
  assert log.figures["goodput"] == pytest.approx(share, abs=1e-2)
  assert 0 < log.figures["goodput"] < before
  # One that finds nothing to do tells what it finds, and adds nothing.
  text = (tmp_path / "metrics.jsonl").read_text()
  again = _log(_run(nonfinite="stop"), tmp_path, start=4)
  again.finish(4)
  again.close()
  assert (tmp_path / "metrics.jsonl").read_text() == text
  told = lambda log: {k: log.figures[k] for k in ("loss", "goodput", "knn")}
  assert told(again) == told(log)


def test_half_a_row_alone_is_cut_off(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 2, "lo')
  _log(_run(nonfinite="stop"), tmp_path).close()
  assert path.read_text() == ""
