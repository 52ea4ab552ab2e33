"""What a checkpoint costs the loop: `python -m benchmarks.saving`.

The state of a config (`--config`, SimCLR's on Fashion-MNIST) is saved in turn
by Orbax alone and by `ssljax.checkpoint`, with digests: for how long `save`
holds the caller, and how long it takes until the step counts as saved. Also the
rate of the digest on one core. Prints one JSON object with medians.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time

_CONFIG = "configs/simclr_resnet18_fashion_mnist.py"


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--config", default=_CONFIG)
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  from ssljax import cli

  cli.set_up()
  import jax
  import orbax.checkpoint as ocp

  from ssljax import checkpoint
  from ssljax import config as config_lib
  from ssljax import run as run_lib

  run = run_lib.build(config_lib.load(args.config, []))
  state = jax.block_until_ready(run_lib.init_state(run))
  held, saved = {}, {}
  with tempfile.TemporaryDirectory() as folder:
    options = ocp.CheckpointManagerOptions(max_to_keep=3)
    orbax = ocp.CheckpointManager(
      os.path.join(folder, "orbax"), options=options
    )
    ours = checkpoint.Checkpoints(os.path.join(folder, "ours"))
    ways = {
      "orbax": (
        lambda step: orbax.save(step, args=ocp.args.StandardSave(state)),
        orbax.wait_until_finished,
      ),
      "ours": (lambda step: ours.save(step, state), ours.wait),
    }
    for step in range(args.rounds):
      for name, (save, wait) in ways.items():
        start = time.perf_counter()
        save(step)
        held.setdefault(name, []).append(time.perf_counter() - start)
        wait()
        saved.setdefault(name, []).append(time.perf_counter() - start)
    orbax.close()
    ours.close()
  block = bytes(1 << 28)
  start = time.perf_counter()
  hashlib.sha256(block).digest()
  rate = len(block) / (time.perf_counter() - start) / 1e9
  median = lambda rows: round(statistics.median(rows), 4)
  print(
    json.dumps(
      {
        "state_mb": round(checkpoint.size(state) / 1e6, 1),
        "held_s": {k: median(v) for k, v in held.items()},
        "saved_s": {k: median(v) for k, v in saved.items()},
        "digest_gb_per_s": round(rate, 2),
      }
    )
  )


if __name__ == "__main__":
  main()
