"""What accumulation costs: `python -m benchmarks.accumulate`.

The bare step of a config (`--config`) on one whole batch and on microbatches
(`--accumulate`), in turns; the medians and their ratio, and the memory that the
compiler says both take. The update is the same.
An objective of the whole batch looks at each microbatch twice, forwards for its
features and again for the way back, which is 4/3 of the products; one that sums
over examples looks once. Prints one JSON object.

SimCLR's head has batch norm: `--config.method.head_norm=false` takes it out.
"""

import argparse
import json
import statistics

from benchmarks import loop
from ssljax import config as config_lib
from ssljax import plan
from ssljax import run as run_lib

_CONFIG = "configs/simclr_vit_fashion_mnist.py"


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--config", default=_CONFIG)
  parser.add_argument("--accumulate", type=int, default=4)
  parser.add_argument("--steps", type=int, default=3)
  parser.add_argument("--rounds", type=int, default=5)
  args, overrides = parser.parse_known_args()  # as --config.a.b=value
  runs = [
    run_lib.build(
      config_lib.load(args.config, [*overrides, f"--config.accumulate={n}"])
    )
    for n in (1, args.accumulate)
  ]
  memory = [plan.compile_step(run, None).peak for run in runs]
  whole, parts = map(loop.bare, runs)
  pairs = [(whole(args.steps), parts(args.steps)) for _ in range(args.rounds)]
  one, many = map(statistics.median, zip(*pairs))
  figures = {
    "config": args.config,
    "accumulate": args.accumulate,
    "whole_step_s": round(one, 4),
    "step_s": round(many, 4),
    "ratio": round(many / one, 3),
    "memory_mb": [round(peak / 1e6) for peak in memory],
  }
  print(json.dumps(figures))


if __name__ == "__main__":
  main()
