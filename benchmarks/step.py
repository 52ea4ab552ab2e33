"""One train step: `python -m benchmarks.step --model=vit_ti`.

The same work as `torch_step.py`, on random images of 32 x 32 x 3: SimCLR on 128
images (ResNet-18 with SGD, ViT-Ti/4 with AdamW) or MAE on 256 (ViT-Ti/4, 16 of
64 patches visible, a decoder of 4 layers of 96). Prints one JSON object.
"""

import argparse
import json
import statistics
import time

from ssljax import cli

cli.use_huge_pages()
cli.set_up()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from ssljax import core  # noqa: E402
from ssljax import optim  # noqa: E402
from ssljax.methods import mae  # noqa: E402
from ssljax.methods import simclr  # noqa: E402
from ssljax.models import linen  # noqa: E402
from ssljax.models import resnet  # noqa: E402
from ssljax.models import vit  # noqa: E402


def make(model):
  """(method, optimiser, views a batch [b v])."""
  sgd = optim.make(name="sgd", learning_rate=0.1)
  adamw = optim.make(name="adamw", learning_rate=1e-3, weight_decay=0.01)
  contrast = lambda encoder, out: simclr.make(
    encoder, temperature=0.5, head_norm=False, num_layers=out
  )
  if model.startswith("resnet18"):
    width = int(model.split("_")[1])
    encoder = resnet.make(variant="18", width=width, stem="cifar")
    return contrast(encoder, 2), sgd, (128, 2)
  encoder = vit.make(variant="Ti/4", pool="mean")
  if model == "vit_ti":
    return contrast(encoder, 1), adamw, (128, 2)
  if model.startswith("encoder_ti"):
    keep = 16 if model.endswith("masked") else None
    return encoder_alone(encoder, keep), adamw, (256, 1)
  method = mae.make(encoder, decoder_dim=96, decoder_depth=4, decoder_heads=3)
  return method, adamw, (256, 1)


def encoder_alone(encoder, keep):
  """The mean of the squared pooled output, of `keep` patches or all."""

  def forward(params, state, batch, *, step, train):
    del step
    x = batch["views"][:, 0]
    kept = keep and jnp.broadcast_to(jnp.arange(keep), (len(x), keep))
    out, _ = linen.apply(encoder, params, {}, x, train=train, keep=kept)
    return out["pooled"], state

  def objective(params, state, features, *, step):
    del params, step
    return jnp.square(features).mean(), (state, {})

  def init(rng, batch):
    return linen.init(encoder, rng, batch["views"][:, 0])

  return core.Method(init, forward, objective, embed=None)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--model", default="vit_ti")
  parser.add_argument("--steps", type=int, default=5)
  args = parser.parse_args()
  method, tx, (b, v) = make(args.model)
  views = np.random.default_rng(0).normal(size=(b, v, 32, 32, 3))
  batch = {"views": views.astype(np.float32)}
  rng = jax.random.key(0)
  start = time.perf_counter()
  state = jax.jit(lambda rng: core.init_state(method, tx, rng, batch))(rng)
  step = jax.jit(core.make_train_step(method, tx), donate_argnums=0)
  batch = jax.device_put(batch)
  times = []
  for _ in range(args.steps + 2):
    state, metrics = step(state, batch, rng)
    jax.block_until_ready(metrics)
    times.append(time.perf_counter())
  params = sum(x.size for x in jax.tree.leaves(state.params))
  print(
    json.dumps(
      {
        "model": args.model,
        "params": params,
        "step_s": round(statistics.median(np.diff(times)[1:]), 4),
        "first_s": round(times[0] - start, 2),
        "loss": round(float(metrics["loss"]), 4),
      }
    )
  )


if __name__ == "__main__":
  main()
