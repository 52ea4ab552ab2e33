"""Each method's step beside SimCLR's: `python -m benchmarks.steps`.

On batches of 256 Fashion-MNIST images, in float32: a ResNet-18 of width 16 with
the CIFAR stem, or, where a method needs patches, the ViT of its config beside
SimCLR with the same one. The compiled step with its views, in turns with
SimCLR's, the ratio of the medians; and what the passes through the networks
predict: their matrix products and convolutions are counted, those of forward
and of backward passes apart, each as often and as large as the crops and
visible tokens have them. A forward pass takes less time for its products than
a backward pass, and an image more in a pass of many, whose activations are
farther away; both are measured on the encoder alone, and so are the views,
which come on top. Writes `docs/steps.md` and prints a JSON line a method.
"""

import argparse
import json
import os
import statistics
import time
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from benchmarks import league
from benchmarks import loop  # which sets the CPU up, before jax starts
from ssljax import config as config_lib
from ssljax import plan
from ssljax import run as run_lib
from ssljax.models import linen

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TABLE = os.path.join(_ROOT, "docs", "steps.md")
_HEAD = """\
# What a step of each method costs

Made by `python -m benchmarks.steps`: batches of 256 Fashion-MNIST images on
{cpus} CPU cores, in float32: the time of a step and, within it, of the views;
GFLOP of the forward and of the backward passes; the ratio to SimCLR's step with
the same encoder.

The ratio is predicted from SimCLR's step, the products of a method's forward
and backward passes, the images of each, and the time of its views. Of the
encoders alone: a third of their products are the forward pass's, of the time on
512 images it takes {resnet.forward:.0%} with the ResNet, {vit.forward:.0%} with
the ViT; and in passes of 256 and of 1,024 images one takes {resnet.told} of its
time in one of 512 with the ResNet, {vit.told} with the ViT. SimCLR has a pass
of 512, methods that take the views apart have passes of 256, and rotation has
one of 1,024.
MAE and I-JEPA move tokens about, which are not products; CPC convolves 6,400
images of 8 x 8, whose maps end at 1 x 1.

Each was timed in turn with SimCLR: compare ratios, not seconds. SimCLR's own
row shows the noise.

| | encoder | s a step | views | forward | backward | ratio | predicted | off |
|---|---|---|---|---|---|---|---|---|
"""


def build(path, encoder=None):
  """A run of a config; `encoder` replaces its own."""
  config = config_lib.load(
    path, ["--config.batch_size=256", "--config.accumulate=1"]
  )
  if encoder is not None:
    config.encoder = encoder
  return run_lib.build(config)


def measure(path, alone, steps, rounds):
  """A row for the method of a config; `alone`: what `of_encoder` gave."""
  run = build(path)
  base = league.configs()["simclr"]
  if run.config.encoder.name == "vit":
    base = base.replace("_resnet18_", "_vit_")
  other = build(base, run.config.encoder)
  timed = [loop.bare(run), loop.bare(other), views(run), views(other)]
  times = [[way(steps) for way in timed] for _ in range(rounds)]
  step, of_simclr, own, its = map(statistics.median, zip(*times))
  (forward, backward), products = passes(run), passes(other)
  part = alone.forward
  cost = lambda f, b: 2 * part * f + (1 - part) * b  # twice the products back
  of_passes = (of_simclr - its) * cost(forward, backward) / cost(*products)
  of_passes *= alone.slower(images(run)) / alone.slower(images(other))
  ratio, predicted = step / of_simclr, (own + of_passes) / of_simclr
  return {
    "method": run.config.method.name,
    "encoder": league.encoder_of(path),
    "step_s": round(step, 4),
    "views_s": round(own, 4),
    "forward_gflop": round(forward / 1e9, 1),
    "backward_gflop": round(backward / 1e9, 1),
    "ratio": round(ratio, 3),
    "predicted": round(predicted, 3),
    "off": round(ratio / predicted - 1, 3),
  }


def passes(run):
  """Products of a step's forward passes, and of its backward passes."""
  forward = plan.model_flops(run, forward=True)
  return forward, plan.model_flops(run) - forward


def views(run):
  """`steps -> seconds of one`, of the augmentation alone."""
  augment = jax.jit(run.augment)
  batch = run.source.read(np.arange(run.config.batch_size))
  batch["key"] = jax.random.split(jax.random.key(0), run.config.batch_size)
  jax.block_until_ready(augment(batch))

  def mean(steps):
    start = time.perf_counter()
    for _ in range(steps):
      jax.block_until_ready(augment(batch))
    return (time.perf_counter() - start) / steps

  return mean


def images(run):
  """Of each pass through the encoder in a step's way forward.

  Those of smaller crops count as their share of an image.
  """
  kind, seen = type(run_lib.make_encoder(run.config)), []
  batch, (height, width, _) = run.config.batch_size, run.source.shape

  def note(call, args, kwargs, context):
    if isinstance(context.module, kind) and context.method_name == "__call__":
      n, h, w, _ = args[0].shape
      if n >= batch:  # else it asks for a shape
        seen.append(n * h * w / (height * width))
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    plan.model_flops(run, forward=True)
  return seen


class Alone(NamedTuple):
  """An encoder by itself: the forward pass's of the time of its two, and the
  seconds an image by the images of a pass, over those of 512."""

  forward: float
  seconds: dict[int, float]

  def slower(self, passes):
    """How much longer an image takes, on average, than in a pass of 512."""
    logs = np.log(list(self.seconds))
    each = np.interp(np.log(passes), logs, list(self.seconds.values()))
    return np.average(each, weights=passes)

  @property
  def told(self):
    few, _, many = self.seconds
    return f"{self.seconds[few]:.0%} and {self.seconds[many]:.0%}"


def of_encoder(path, rounds):
  """Measures the encoder of a config in passes of 256, 512 and 1,024."""
  encoder = run_lib.make_encoder(config_lib.load(path, []))
  every = jax.random.normal(jax.random.key(0), (1024, 28, 28, 1))
  params, stats = linen.init(encoder, jax.random.key(0), every[:2])

  def forward(params, x):
    out, _ = linen.apply(encoder, params, stats, x, train=True)
    return out["pooled"].sum()

  def seconds(function, x):
    start = time.perf_counter()
    jax.block_until_ready(function(params, x))
    return time.perf_counter() - start

  ways = jax.jit(forward), jax.jit(jax.value_and_grad(forward))
  batches = [every[:n] for n in (256, 512, 1024)]
  times = [
    [[seconds(way, x) for way in ways] for x in batches]
    for _ in range(1 + rounds)
  ]
  times = np.median(times[1:], axis=0)  # the first compiles
  one, both = times[1]
  each = {
    len(x): t / len(x) / (both / 512) for x, (_, t) in zip(batches, times)
  }
  return Alone(one / both, each)


def table(rows, alone):
  lines = [
    f"| {r['method']} | {r['encoder']} | {r['step_s']:.2f} "
    f"| {1000 * r['views_s']:.0f} ms | {r['forward_gflop']:.0f} "
    f"| {r['backward_gflop']:.0f} | {r['ratio']:.2f} | {r['predicted']:.2f} "
    f"| {round(100 * r['off']):+d} % |"
    for r in rows
  ]
  head = _HEAD.format(cpus=len(os.sched_getaffinity(0)), **alone)
  return head + "\n".join(lines) + "\n"


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--methods", default="", help="names between commas")
  parser.add_argument("--steps", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  known = league.configs()
  names = [m for m in args.methods.split(",") if m] or list(known)
  paths = {"resnet": known["simclr"], "vit": known["mocov3"]}
  alone = {name: of_encoder(path, 5) for name, path in paths.items()}
  rows = []
  for name in names:
    kind = "vit" if "_vit_" in known[name] else "resnet"
    rows.append(measure(known[name], alone[kind], args.steps, args.rounds))
    print(json.dumps(rows[-1]), flush=True)
  if not args.methods:
    with open(_TABLE, "w") as f:
      f.write(table(rows, alone))


if __name__ == "__main__":
  main()
