"""What the loop costs over the bare step: `python -m benchmarks.loop`.

The compiled step on one batch that lies on the device, and `ssljax train` with
the same config, in turn; the ratio of the medians of the mean step times.
Prints one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time

from ssljax import cli

cli.set_up()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from ssljax import config as config_lib  # noqa: E402
from ssljax import run as run_lib  # noqa: E402
from ssljax import sharding  # noqa: E402
from ssljax import train  # noqa: E402


def bare(run):
  """`steps -> seconds of one`, dispatched two ahead as the loop does."""
  step, state = train.compile_step(run), run_lib.init_state(run)
  batch = run.source.read(np.arange(run.config.batch_size))
  batch = jax.device_put(batch, sharding.by_example(run.mesh))
  rng = jax.random.key(0)
  state, metrics = step(state, batch, rng)
  jax.block_until_ready(state)

  def mean(steps):
    nonlocal state, metrics
    start, before = time.perf_counter(), metrics
    for _ in range(steps):
      state, metrics = step(state, batch, rng)
      jax.block_until_ready(before)
      before = metrics
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps

  return mean


def looped(config):
  with tempfile.TemporaryDirectory() as workdir:
    return train.train(config, workdir)["step_s"]


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument(
    "--config", default="configs/simclr_resnet18_fashion_mnist.py:fast"
  )
  parser.add_argument("--steps", type=int, default=40)
  parser.add_argument("--rounds", type=int, default=3)
  args, overrides = parser.parse_known_args()  # as --config.a.b=value
  config = config_lib.load(
    args.config,
    [
      f"--config.steps={args.steps + 1}",
      "--config.eval.last=False",
      *overrides,
    ],
  )
  rounds = range(args.rounds)
  step = bare(run_lib.build(config))
  pairs = [(step(args.steps), looped(config)) for _ in rounds]
  bares, loops = map(list, zip(*pairs))
  print(
    json.dumps(
      {
        "config": args.config,
        "bare_step_s": round(statistics.median(bares), 5),
        "loop_step_s": round(statistics.median(loops), 5),
        "ratio": round(statistics.median(loops) / statistics.median(bares), 4),
      }
    )
  )


if __name__ == "__main__":
  main()
