"""A command of ssljax, watched and with a fault: `child SPEC COMMAND ...`.

SPEC is a JSON object. `batches`: a file to which "STEP SHA256 INDEX,..." is
written for each batch that the loop takes, of this process's part; `poison`:
the step whose features become NaN; `stall`: the read that hangs, counted from
1, and for how many seconds.
"""

import itertools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import cli
from ssljax import replay
from ssljax import run as run_lib
from ssljax.data import stream


def main() -> int:
  spec = json.loads(sys.argv[1])
  if stall := spec.get("stall"):
    stream.batches = _stalled(stream.batches, *stall)
  if path := spec.get("batches"):
    stream.batches = _recorded(stream.batches, path)
  if step := spec.get("poison"):
    run_lib.make_method = _poisoned(run_lib.make_method, step)
  return cli.main(sys.argv[2:])


def _recorded(batches, path):
  def recorded(source, *, start_step, **options):
    with open(path, "a", buffering=1) as f:
      step = start_step
      for batch in batches(source, start_step=start_step, **options):
        step += 1
        part = jax.tree.map(_part, batch)
        index = ",".join(map(str, part["index"]))
        f.write(f"{step} {replay.batch_sha256(part)} {index}\n")
        yield batch

  return recorded


def _part(x):
  """What this process has of an array, in the order of its rows."""
  if x.is_fully_addressable:
    return np.asarray(x)
  shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([s.data for s in shards])


class _Hanging:
  """A source, one read of which hangs."""

  def __init__(self, source, at, seconds):
    self._source, self._at, self._seconds = source, at, seconds
    self._reads = itertools.count(1)

  def __getattr__(self, name):
    return getattr(self._source, name)

  def __len__(self):
    return len(self._source)

  def read(self, indices):
    if next(self._reads) == self._at:
      time.sleep(self._seconds)
    return self._source.read(indices)


def _stalled(batches, at, seconds):
  return lambda source, **options: batches(
    _Hanging(source, at, seconds), **options
  )


def _poisoned(make_method, at):
  def make(*args, **options):
    method = make_method(*args, **options)

    def forward(params, method_state, batch, *, step, train):
      features, method_state = method.forward(
        params, method_state, batch, step=step, train=train
      )
      is_float = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)
      poison = lambda x: jnp.where(step + 1 == at, jnp.nan, x)
      poisoned = lambda x: poison(x) if is_float(x) else x
      return jax.tree.map(poisoned, features), method_state

    return method._replace(forward=forward)

  return make


if __name__ == "__main__":
  sys.exit(main())
