"""Sinkhorn-Knopp against the memory traffic that it cannot do without.

  python -m benchmarks.sinkhorn

The floor: the logits read once and the assignments written once, and between
them the matrix read for each of the two sums of an iteration, for it fits no
cache. Reading is measured by a maximum, reading and writing by adding 1, which
writes into fresh memory as Sinkhorn does; all in turns, the least of each. One
JSON line: times in ms, bandwidths in GB/s.
"""

import functools
import json
import time

import jax
import jax.numpy as jnp
from absl import app
from absl import flags

from ssljax import ops

_ROWS = flags.DEFINE_integer("rows", 4096, "examples")
_COLUMNS = flags.DEFINE_integer("columns", 3000, "prototypes")
_ITERATIONS = flags.DEFINE_integer("iterations", 3, "of both sums")
_ROUNDS = flags.DEFINE_integer("rounds", 30, "how often each is timed")


def main(argv):
  del argv
  shape = _ROWS.value, _COLUMNS.value
  logits = jax.random.uniform(jax.random.key(0), shape, minval=-1.0)
  functions = {
    "sinkhorn": functools.partial(
      ops.sinkhorn, epsilon=0.05, iterations=_ITERATIONS.value
    ),
    "read": jnp.max,
    "copy": lambda x: x + 1,
  }
  functions = {k: jax.jit(f) for k, f in functions.items()}
  times = {name: [] for name in functions}
  for _ in range(_ROUNDS.value):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function(logits))
      times[name].append(time.perf_counter() - start)
  least = {name: min(ts) for name, ts in times.items()}
  floor = least["copy"] + 2 * _ITERATIONS.value * least["read"]
  figures = {
    "shape": shape,
    "iterations": _ITERATIONS.value,
    "sinkhorn_ms": 1e3 * least["sinkhorn"],
    "read_gb_s": logits.nbytes / least["read"] / 1e9,
    "copy_gb_s": 2 * logits.nbytes / least["copy"] / 1e9,
    "floor_ms": 1e3 * floor,
    "ratio": least["sinkhorn"] / floor,
  }
  print(json.dumps(figures))


if __name__ == "__main__":
  app.run(main)
