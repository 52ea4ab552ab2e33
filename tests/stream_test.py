"""The index stream is a pure function of the step; the loader keeps to it."""

import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from ssljax import errors
from ssljax.data import sources
from ssljax.data import stream

N, B = 50, 8
KNOWN = dict(num_examples=N, batch_size=B)
WEIGHTS = np.arange(N) % 3


def source():
  rows = np.arange(N, dtype=np.uint8)
  return sources.ArraySource({"image": np.tile(rows[:, None, None, None], 4)})


class Uneven:
  """Takes longer for some batches, so that threads overtake each other."""

  name, shape = "uneven", (1, 1, 4)

  def __len__(self):
    return N

  def read(self, indices):
    time.sleep(0.001 * (int(indices[0]) % 5))
    return {"index": np.asarray(indices)}


def test_an_epoch_sees_each_example_at_most_once():
  epochs = []
  for epoch in range(3):
    steps = range(epoch * (N // B), (epoch + 1) * (N // B))
    seen = np.concatenate([stream.indices(7, s, **KNOWN) for s in steps])
    assert seen.shape == (N // B * B,) and seen.dtype == np.int64
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(N))
    epochs.append(seen)
  assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_the_seed_matters_and_the_order_of_calls_does_not():
  first = stream.indices(7, 3, **KNOWN)
  assert (first != stream.indices(8, 3, **KNOWN)).any()
  # Nor is an epoch of a seed the next seed's.
  second = stream.indices(7, N // B, **KNOWN)
  assert (second != stream.indices(8, 0, **KNOWN)).any()
  for step in (100, 0, 59):
    stream.indices(7, step, **KNOWN)
  stream._permutation.cache_clear()
  np.testing.assert_array_equal(stream.indices(7, 3, **KNOWN), first)


def test_a_caller_cannot_change_what_others_see():
  with pytest.raises(ValueError, match="read-only"):
    stream.indices(7, 0, **KNOWN)[0] = 0


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_rows_are_places_of_the_global_batch(weights):
  for step in (0, 5, 6, 77):
    whole = stream.indices(7, step, weights=weights, **KNOWN)
    assert len(whole) == B
    for rows in ([0, 1, 2, 3], [1, 6], [7]):
      part = stream.indices(7, step, weights=weights, rows=rows, **KNOWN)
      np.testing.assert_array_equal(part, whole[rows])


def test_weights_are_proportions():
  known = dict(num_examples=3, batch_size=3, weights=np.array([0.0, 1.0, 3.0]))
  seen = np.concatenate([stream.indices(0, s, **known) for s in range(2000)])
  share = np.bincount(seen, minlength=3) / len(seen)
  # The standard error is sqrt(.25 * .75 / 6000) = .0056.
  np.testing.assert_allclose(share, [0, 0.25, 0.75], atol=0.025)
  other = {**known, "weights": np.array([1.0, 0.0, 0.0])}
  assert (stream.indices(0, 0, **other) == 0).all()


def test_batches_that_cannot_be_are_refused():
  with pytest.raises(errors.UserError, match="fewer than a batch of 8"):
    stream.indices(0, 0, num_examples=7, batch_size=8)
  with pytest.raises(ValueError):
    stream.indices(0, 0, weights=np.ones(N - 1), **KNOWN)


def run(src, start, stop, **options):
  steps = stream.batches(
    src, seed=7, start_step=start, stop_step=stop, batch_size=B, **options
  )
  return [batch["index"] for batch in steps]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_threads_keep_the_order_and_resuming_goes_on(weights):
  expected = [stream.indices(7, s, weights=weights, **KNOWN) for s in range(20)]
  for src in (source(), Uneven()):
    whole = run(src, 0, 20, weights=weights)
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(
      run(src, 13, 20, weights=weights), expected[13:]
    )
  part = run(source(), 0, 20, weights=weights, rows=np.array([1, 6]))
  np.testing.assert_array_equal(part, np.array(expected)[:, [1, 6]])


def test_in_order_a_process_reads_its_own_rows():
  parts = [
    list(stream.in_order(Uneven(), batch_size=8, rows=np.array(rows)))
    for rows in ([0, 1, 6, 7], [2, 3, 4, 5])
  ]
  whole = list(stream.in_order(Uneven(), batch_size=8))
  assert len(whole) == -(-N // 8) == len(parts[0]) == len(parts[1])
  for a, b, both in zip(*parts, whole):
    expected = both["index"].tolist()
    assert [*a["index"][:2], *b["index"], *a["index"][2:]] == expected
  assert whole[-1]["index"].tolist() == [*range(N - N % 8, N), *range(-N % 8)]


def test_an_exhausted_iterator_ends():
  assert run(source(), 5, 5) == []
  steps = stream.batches(
    source(), seed=7, start_step=0, stop_step=2, batch_size=B
  )
  assert len(list(steps)) == 2
  assert next(steps, None) is None


def test_to_device():
  place = jax.sharding.SingleDeviceSharding(jax.devices()[3])
  steps = stream.batches(
    source(),
    seed=7,
    start_step=0,
    stop_step=3,
    batch_size=B,
    to_device=lambda batch: jax.device_put(batch, place),
  )
  for step, batch in enumerate(steps):
    assert batch["image"].sharding == place
    expected = stream.indices(7, step, **KNOWN)
    np.testing.assert_array_equal(batch["index"], expected)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], expected)


def test_a_readers_error_comes_to_the_consumer_at_its_step():
  class Broken(Uneven):
    def read(self, indices):
      if (indices == stream.indices(7, 2, **KNOWN)).all():
        raise errors.UserError("the third batch")
      return super().read(indices)

  steps = stream.batches(
    Broken(), seed=7, start_step=0, stop_step=9, batch_size=B
  )
  next(steps), next(steps)
  with pytest.raises(errors.UserError, match="the third batch"):
    next(steps)


def test_batches_are_read_ahead_but_not_without_end():
  reads = []

  class Counted(Uneven):
    def read(self, indices):
      reads.append(threading.get_ident())
      return super().read(indices)

  steps = stream.batches(
    Counted(), seed=7, start_step=0, stop_step=1000, batch_size=B
  )
  next(steps)
  deadline = time.time() + 5
  while len(reads) < 1 + stream._AHEAD and time.time() < deadline:
    time.sleep(0.01)
  time.sleep(0.1)
  assert len(reads) == 1 + stream._AHEAD
  assert threading.get_ident() not in reads
  steps.close()


def test_closing_ends_the_threads():
  before = set(threading.enumerate())
  steps = stream.batches(
    Uneven(), seed=7, start_step=0, stop_step=1000, batch_size=B
  )
  next(steps)
  ours = set(threading.enumerate()) - before
  assert ours
  steps.close()
  for thread in ours:
    thread.join(5)
    assert not thread.is_alive()


def test_an_interpreter_that_ends_early_does_not_hang():
  code = """
import time
import numpy as np
from ssljax.data import stream
class Slow:
  def __len__(self):
    return 100
  def read(self, indices):
    time.sleep(0.2)
    return {"index": indices}
steps = stream.batches(
  Slow(), seed=0, start_step=0, stop_step=10**6, batch_size=4
)
next(steps)
raise SystemExit(3)
"""
  env = os.environ | {"PYTHONPATH": os.getcwd()}
  done = subprocess.run([sys.executable, "-c", code], env=env, timeout=60)
  assert done.returncode == 3
