"""Each method's step beside SimCLR's: `python -m benchmarks.steps`.

On batches of 256 Fashion-MNIST images, in float32: a ResNet-18 of width 16 with
the CIFAR stem, or, where a method needs patches, the ViT of its config beside
SimCLR with the same one. The compiled step with its views, in turns with
SimCLR's, the ratio of the medians; and what its parts predict: the views; each
forward pass through a network, with its backward pass where the network learns,
by itself, as often and of as many images, crops and visible tokens as the step
has it; the objective, likewise. Writes `docs/steps.md` and prints a JSON line a
method.
"""

import argparse
import functools
import json
import os
import statistics
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import config_dict

from benchmarks import league
from benchmarks import loop  # which sets the CPU up, before jax starts
from ssljax import config as config_lib
from ssljax import plan
from ssljax import run as run_lib

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TABLE = os.path.join(_ROOT, "docs", "steps.md")
_HEAD = """\
# What a step of each method costs

Made by `python -m benchmarks.steps`: batches of 256 Fashion-MNIST images on
{cpus} CPU cores, in float32: the time of a step and, within it, of the views;
GFLOP of the forward and of the backward passes; the ratio to SimCLR's step with
the same encoder.

The ratio is predicted from SimCLR's step and the parts of both: the views; each
forward pass through a network, with its backward pass where it learns, as often
and of as many images, crops and visible tokens as the step has it; the
objective. Each was timed by itself, with those numbers of images and tokens, so
that what is predicted is not a count of products: by these alone CPC took 83 %
more, MAE 29 % and I-JEPA 25 %.

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


def measure(path, steps, rounds):
  """A row for the method of a config."""
  run = build(path)
  encoder = config_dict.FrozenConfigDict(run.config.encoder)
  timed = *parts(run), *parts_of_simclr(encoder)
  times = [[way(steps) for way in timed] for _ in range(rounds)]
  times = [statistics.median(t) for t in zip(*times)]
  (step, own, inner), (of_simclr, its, its_inner) = times[:3], times[3:]
  ratio = step / of_simclr
  predicted = (own + (of_simclr - its) * inner / its_inner) / of_simclr
  forward = plan.model_flops(run, forward=True)
  backward = plan.model_flops(run) - forward
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


def parts(run):
  """`steps -> seconds of one`: of the step, the views, the passes alone."""
  return loop.bare(run), views(run), alone(run)


@functools.cache
def parts_of_simclr(encoder):
  path = league.configs()["simclr"]
  if encoder.name == "vit":
    path = path.replace("_resnet18_", "_vit_")
  return parts(build(path, config_dict.ConfigDict(encoder)))


def views(run):
  """`steps -> seconds of one`, of the augmentation alone."""
  augment = jax.jit(run.augment)
  batch = read(run)
  jax.block_until_ready(augment(batch))

  def mean(steps):
    start = time.perf_counter()
    for _ in range(steps):
      jax.block_until_ready(augment(batch))
    return (time.perf_counter() - start) / steps

  return mean


def read(run):
  """The first batch, as the augmentation is given it."""
  batch = run.source.read(np.arange(run.config.batch_size))
  batch["key"] = jax.random.split(jax.random.key(0), run.config.batch_size)
  return batch


class Pass(NamedTuple):
  """A call of a network: what it is given, as shapes where it is an array."""

  module: nn.Module
  variables: Any
  args: tuple
  kwargs: dict
  learns: bool  # by what it is called with
  first: bool  # it is given images


def passes(run):
  """Each `Pass` of a step's way forward, in its order; and its features."""
  encoder, found, learning = type(run_lib.make_encoder(run.config)), [], set()

  def note(call, args, kwargs, context):
    module = context.module
    if context.method_name == "__call__" and not module.path:
      params = jax.tree.leaves(module.variables["params"])
      learns = learning.issuperset(map(id, params))
      shapes = jax.tree.map(_shape, (dict(module.variables), args, kwargs))
      first = isinstance(module, encoder)
      found.append(Pass(module.clone(parent=None), *shapes, learns, first))
    return call(*args, **kwargs)

  def forward(state, views):
    learning.update(map(id, jax.tree.leaves(state.params)))
    with nn.intercept_methods(note):
      return run.method.forward(
        state.params, state.method_state, views, step=state.step, train=True
      )

  views = jax.eval_shape(run.augment, read(run))
  features, _ = jax.eval_shape(forward, run.abstract_state, views)
  return found, features


def _shape(x):
  known = isinstance(x, jax.Array)
  return jax.ShapeDtypeStruct(x.shape, x.dtype) if known else x


def alone(run):
  """`steps -> seconds of one`, of its passes and its objective, each alone."""
  found, features = passes(run)
  each = {}
  for one in found:
    each.setdefault(str(one), [one, 0])[1] += 1
  calls = [(network(one), often) for one, often in each.values()]
  calls.append((objective(run, features), 1))

  def mean(steps):
    total = 0.0
    for call, often in calls:
      start = time.perf_counter()
      for _ in range(steps):
        jax.block_until_ready(call())
      total += often * (time.perf_counter() - start) / steps
    return total

  return mean


def network(one):
  """Calls a `Pass`, and its way back where it learns."""
  is_array = lambda x: isinstance(x, jax.ShapeDtypeStruct)
  fixed = {k: v for k, v in one.kwargs.items() if not is_array(v)}
  given = {k: v for k, v in one.kwargs.items() if is_array(v)}
  rest = dict(one.variables)
  params = rest.pop("params")

  def total(params, args, given, rest):
    out, changed = one.module.apply(
      {"params": params, **rest}, *args, **given, **fixed, mutable=list(rest)
    )
    return sum(x.sum() for x in jax.tree.leaves(out)), changed

  if one.learns:
    by = (0,) if one.first else (0, 1)
    total = jax.value_and_grad(total, by, has_aux=True, allow_int=True)
  return _compiled(total, params, one.args, given, rest)


def objective(run, features):
  """Calls the objective of a method and its way back."""

  def loss(features, params, state, step):
    loss, (_, metrics) = run.method.objective(
      params, state, features, step=step
    )
    return loss, metrics

  state = run.abstract_state
  loss = jax.value_and_grad(loss, (0, 1), has_aux=True, allow_int=True)
  return _compiled(loss, features, state.params, state.method_state, state.step)


def _compiled(function, *shapes):
  """Calls it on some numbers of these shapes."""
  given = jax.tree.map(_some, shapes)
  return functools.partial(jax.jit(function).lower(*given).compile(), *given)


def _some(x):
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.split(jax.random.key(0), x.shape)
  if x.ndim and jnp.issubdtype(x.dtype, jnp.integer):  # places, all others
    places = jax.lax.broadcasted_iota(x.dtype, x.shape, x.ndim - 1)
    return jax.random.permutation(
      jax.random.key(0), places, axis=-1, independent=True
    )
  return jax.random.uniform(jax.random.key(0), x.shape).astype(x.dtype)


def table(rows):
  lines = [
    f"| {r['method']} | {r['encoder']} | {r['step_s']:.2f} "
    f"| {1000 * r['views_s']:.0f} ms | {r['forward_gflop']:.0f} "
    f"| {r['backward_gflop']:.0f} | {r['ratio']:.2f} | {r['predicted']:.2f} "
    f"| {round(100 * r['off']):+d} % |"
    for r in rows
  ]
  head = _HEAD.format(cpus=len(os.sched_getaffinity(0)))
  return head + "\n".join(lines) + "\n"


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--methods", default="", help="names between commas")
  parser.add_argument("--steps", type=int, default=1)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  known = league.configs()
  names = [m for m in args.methods.split(",") if m] or list(known)
  rows = []
  for name in names:
    rows.append(measure(known[name], args.steps, args.rounds))
    print(json.dumps(rows[-1]), flush=True)
  if not args.methods:
    with open(_TABLE, "w") as f:
      f.write(table(rows))


if __name__ == "__main__":
  main()
