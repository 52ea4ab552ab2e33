"""Two views of each image, on device: `python -m benchmarks.views`.

With `--peer=PYTHON`, an interpreter that has torchvision, its side is timed in
turn with ours and the ratio of the medians is given. Prints one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

from ssljax import cli

cli.set_up()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from ssljax import augment  # noqa: E402

_PEER = os.path.join(os.path.dirname(__file__), "torch_views.py")
_SHAPES = {"grey_28": (28, 1), "colour_32": (32, 3), "colour_96": (96, 3)}


def ours(seconds=3.0):
  """Images a second by shape, batches of 256."""
  rates = {}
  for name, (size, channels) in _SHAPES.items():
    views = augment.make(
      "moco_v2", size=(size, size), blur_kernel=3, mean=(0.5,), std=(0.25,)
    )
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, size, size, channels), np.uint8)
    step = jax.jit(
      lambda image, rng, views=views: views(
        {"image": image, "key": jax.random.split(rng, 256)}
      )["views"]
    )
    keys = jax.random.split(jax.random.key(0), 4096)
    jax.block_until_ready(step(image, keys[0]))
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
      jax.block_until_ready(step(image, keys[count % len(keys)]))
      count += 1
    rates[name] = 256 * count / (time.perf_counter() - start)
  return rates


def theirs(python):
  done = subprocess.run(
    [python, _PEER], check=True, capture_output=True, text=True
  )
  return json.loads(done.stdout.splitlines()[-1])


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--peer")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  rounds = [
    (ours(), theirs(args.peer) if args.peer else None)
    for _ in range(args.rounds)
  ]
  figures = {}
  for name in _SHAPES:
    median = lambda i, name=name: statistics.median(r[i][name] for r in rounds)
    figures[name] = {"images_per_s": round(median(0))}
    if args.peer:
      figures[name] |= {
        "torchvision": round(median(1)),
        "ratio": round(median(0) / median(1), 2),
      }
  print(json.dumps(figures))


if __name__ == "__main__":
  main()
