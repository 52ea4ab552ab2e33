"""One train step: `python -m benchmarks.step --model=vit_ti`.

The same work as `torch_step.py`, on random images of 32 x 32 x 3: SimCLR on 128
images (ResNet-18 with SGD, ViT-Ti/4 with AdamW) or MAE on 256 (ViT-Ti/4, 16 of
64 patches visible, a decoder of 4 layers of 96); or masked language modelling
on 64 x 128 tokens, of 8,192 kinds, with all places meeting the vocabulary
(bert_mini) or, as `methods.bert` has it, the hidden ones alone
(bert_mini_masked). For accelerators, on images of 224 x 224: SimCLR on 64
(resnet50) and MAE on 128 (mae_b: ViT-B/16, a decoder of 8 layers of 512).
Prints a JSON object for each of the models.
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
from ssljax import losses  # noqa: E402
from ssljax import optim  # noqa: E402
from ssljax.augment import text  # noqa: E402
from ssljax.methods import bert as bert_method  # noqa: E402
from ssljax.methods import mae  # noqa: E402
from ssljax.methods import simclr  # noqa: E402
from ssljax.models import bert  # noqa: E402
from ssljax.models import linen  # noqa: E402
from ssljax.models import resnet  # noqa: E402
from ssljax.models import vit  # noqa: E402


def make(model, dtype=jnp.float32):
  """(method, optimiser, views or None, batch)."""
  sgd = optim.make(name="sgd", learning_rate=0.1)
  adamw = optim.make(name="adamw", learning_rate=1e-3, weight_decay=0.01)
  if model.startswith("bert_mini"):
    encoder = bert.make(
      variant="mini",
      vocab=8192,
      positions=128,
      kinds=1,
      dropout=0.0,
      dtype=dtype,
    )
    if model == "bert_mini":
      return bert_everywhere(encoder), adamw, None, random_tokens()
    return bert_method.make(encoder), adamw, hide, random_tokens()
  contrast = lambda encoder, out: simclr.make(
    encoder, temperature=0.5, head_norm=False, num_layers=out
  )
  if model == "resnet50":
    encoder = resnet.make(variant="50", dtype=dtype)
    return contrast(encoder, 2), sgd, None, random_views(64, 2, 224)
  if model.startswith("resnet18"):
    width = int(model.split("_")[1])
    encoder = resnet.make(variant="18", width=width, stem="cifar", dtype=dtype)
    return contrast(encoder, 2), sgd, None, random_views(128, 2)
  if model == "mae_b":
    encoder = vit.make(variant="B/16", pool="mean", dtype=dtype)
    return mae.make(encoder), adamw, None, random_views(128, 1, 224)
  encoder = vit.make(variant="Ti/4", pool="mean", dtype=dtype)
  if model == "vit_ti":
    return contrast(encoder, 1), adamw, None, random_views(128, 2)
  if model.startswith("encoder_ti"):
    keep = 16 if model.endswith("masked") else None
    return encoder_alone(encoder, keep), adamw, None, random_views(256, 1)
  method = mae.make(encoder, decoder_dim=96, decoder_depth=4, decoder_heads=3)
  return method, adamw, None, random_views(256, 1)


def random_views(b, v, size=32):
  rng = np.random.default_rng(0)
  return {"views": rng.normal(size=(b, v, size, size, 3)).astype(np.float32)}


def random_tokens():
  tokens = np.random.default_rng(0).integers(2, 8192, (64, 128))
  return {"tokens": tokens.astype(np.int32)}


def hide(batch):
  return batch | text.hide(
    batch["key"],
    batch["tokens"],
    mask_token=1,
    vocab=8192,
    special=(0, 1),
    most=20,
  )


def bert_everywhere(encoder):
  """Masked language modelling that predicts all tokens, and drops the seen."""

  def forward(params, state, batch, *, step, train):
    del step
    tokens = batch["tokens"]
    hidden = jax.vmap(
      lambda key: jax.random.bernoulli(key, 0.15, tokens.shape[1:])
    )(batch["key"])
    out, _ = linen.apply(
      encoder, params, {}, jnp.where(hidden, 1, tokens), train=train
    )
    nats, _ = losses.token_cross_entropy(
      out["tokens"].reshape(-1, encoder.dim),
      params["token_embed"]["embedding"],
      tokens.reshape(-1),
      block=tokens.size,
    )
    sums = (nats.reshape(hidden.shape) * hidden).sum(axis=1)
    return {"sum": sums, "count": hidden.sum(axis=1)}, state

  def objective(params, state, features, *, step):
    del params, step
    return features["sum"].sum() / features["count"].sum(), (state, {})

  def init(rng, batch):
    return linen.init(encoder, rng, batch["tokens"])

  return core.Method(init, forward, objective, embed=None)


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


def measure(model, steps, dtype):
  """The figures of one model."""
  method, tx, augment, batch = make(model, dtype)
  rng = jax.random.key(0)
  start = time.perf_counter()
  init = lambda rng: core.init_state(method, tx, rng, batch, augment=augment)
  state = jax.jit(init)(rng)
  step = core.make_train_step(method, tx, augment=augment)
  step = jax.jit(step, donate_argnums=0)
  batch = jax.device_put(batch)
  times = []
  for _ in range(steps + 2):
    state, metrics = step(state, batch, rng)
    jax.block_until_ready(metrics)
    times.append(time.perf_counter())
  return {
    "model": model,
    "params": sum(x.size for x in jax.tree.leaves(state.params)),
    "step_s": round(statistics.median(np.diff(times)[1:]), 5),
    "first_s": round(times[0] - start, 2),
    "loss": round(float(metrics["loss"]), 4),
    "precision": jnp.dtype(dtype).name,
    "device": jax.devices()[0].device_kind,
  }


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--model", default="vit_ti", help="names between commas")
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--bf16", action="store_true")
  args = parser.parse_args()
  dtype = jnp.bfloat16 if args.bf16 else jnp.float32
  for model in args.model.split(","):
    print(json.dumps(measure(model, args.steps, dtype)), flush=True)


if __name__ == "__main__":
  main()
