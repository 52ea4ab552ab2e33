"""Encoders against torchvision, timm and transformers, on stored numbers.

Weights and images are drawn by name on both sides (`fidelity/drawn.py`) and
come in through `layouts.py`, gradients go out through it: names and shapes are
held by the same tests. `fidelity/README.md` has the largest differences seen.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import layouts
from ssljax.models import resnet
from ssljax.models import vit
from tests.fidelity import drawn

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fidelity")


def stored(file, group):
  """{name: array} of what stands under `group/` in a file."""
  with np.load(os.path.join(FOLDER, file)) as arrays:
    names = [k for k in arrays.files if k.startswith(f"{group}/")]
    return {k.removeprefix(f"{group}/"): arrays[k] for k in names}


def differences(found, expected):
  """The largest difference of each array over its largest value, by name."""
  assert {k: x.shape for k, x in found.items()} == {
    k: x.shape for k, x in expected.items()
  }
  return {
    k: float(np.abs(found[k] - x).max() / np.abs(x).max())
    for k, x in expected.items()
  }


def hold(found, expected, tolerance=1e-5):
  seen = differences(found, expected)
  print({k: f"{v:.1e}" for k, v in seen.items()})
  assert all(v <= tolerance for v in seen.values()), seen  # NaN is no maximum


def draw_into(layout, encoder, x, **fixed):
  """(params, stats), as a file of the layout with drawn weights gives them."""
  zeros = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32),
    jax.eval_shape(
      functools.partial(encoder.init, train=False), jax.random.key(0), x
    ),
  )
  params, stats = zeros["params"], zeros.get("batch_stats", {})
  names = layouts.write(layout, encoder, params, stats, grid=(4, 4))
  arrays = {name: drawn.draw(name, a.shape) for name, a in names.items()}
  params, stats, *_ = layouts.read(
    layout, encoder, arrays | fixed, params, stats, file="drawn", grid=(4, 4)
  )
  return params, stats


def images(shape):
  """torch's [b c h w], here [b h w c]."""
  return drawn.draw("input", shape).transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
  "mode, shape", [("eval", (2, 3, 32, 32)), ("train", (4, 3, 48, 48))]
)
def test_resnet18_is_torchvisions(mode, shape):
  layout, encoder = layouts.LAYOUTS["torchvision"], resnet.make(variant="18")
  x = images(shape)
  params, stats = draw_into(layout, encoder, x)
  cotangent = drawn.draw("input_cotangent", (shape[0], 512))

  # As `cli.set_up` has it: YNNPACK's convolutions round more on some CPUs.
  eigen = {"xla_cpu_experimental_ynn_fusion_type": ""}

  @functools.partial(jax.jit, compiler_options=eigen)
  def run(params, x):
    def loss(params, x):
      out, changed = encoder.apply(
        {"params": params, "batch_stats": stats},
        x,
        train=mode == "train",
        mutable=["batch_stats"],
      )
      out = out["pooled"]
      return (out * cotangent).sum(), (out, changed["batch_stats"])

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

  (_, (pooled, after)), (grads, grad_image) = run(params, x)
  expected = stored("resnet.npz", mode)
  write = lambda params, stats: layouts.write(
    layout, encoder, params, stats, grid=None
  )
  weights = write(grads, after)
  found = {"pooled": pooled, "grad/image": grad_image.transpose(0, 3, 1, 2)}
  for name in expected:
    kind, _, weight = name.partition("/")
    if weight in weights:
      found[name] = weights[weight]
  before = write(params, stats)
  for name in [k for k in expected if k.endswith("running_var")]:
    # torch's variance is unbiased: over n - 1 of the n values of a channel.
    n = {"bn1": 4 * 24 * 24, "layer2": 4 * 6 * 6, "layer4": 4 * 2 * 2}
    n = n[name.split("/")[1].split(".")[0]]
    old = 0.9 * before[name.removeprefix("stats/")]
    found[name] = old + (found[name] - old) * n / (n - 1)
  hold(found, expected)


def tokens_and_gradients(layout, encoder, x, params, noise=None):
  """What `make_vit.py` stores, ours."""
  keep = None
  if noise is not None:  # MAE keeps the patches of the least noise
    keep = jnp.argsort(noise, axis=1)[:, : noise.shape[1] // 4]

  # "tokens" are the patches; "pooled" is the class token.
  def outputs(params, x):
    out = encoder.apply({"params": params}, x, train=False, keep=keep)
    return jnp.concatenate([out["pooled"][:, None], out["tokens"]], axis=1)

  @jax.jit
  def run(params, x):
    tokens, backward = jax.vjp(outputs, params, x)
    cotangent = drawn.draw("input_cotangent", tokens.shape)
    return tokens, *backward(jnp.asarray(cotangent))

  tokens, grads, grad_image = run(params, x)
  weights = layouts.write(layout, encoder, grads, {}, grid=(4, 4))
  found = {f"grad/{name}": grad for name, grad in weights.items()}
  found |= {"tokens": tokens, "grad/image": grad_image.transpose(0, 3, 1, 2)}
  return found


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
  "model, layout", [("timm", "timm"), ("vit", "huggingface")]
)
def test_vit_is_timms_and_transformers(model, layout, scan):
  layout, encoder = layouts.LAYOUTS[layout], vit.make(variant="Mu/4", scan=scan)
  x = images((2, 3, 16, 16))
  params, _ = draw_into(layout, encoder, x)
  expected = stored("vit.npz", model)
  found = tokens_and_gradients(layout, encoder, x, params)
  hold({name: found[name] for name in expected}, expected)


def test_vit_that_keeps_few_patches_is_transformers_mae():
  layout = layouts.LAYOUTS["huggingface"]
  encoder = vit.make(variant="Mu/4", pos="sincos2d")
  x = images((2, 3, 16, 16))
  expected = stored("vit.npz", "mae")
  noise, positions = expected.pop("noise"), expected.pop("positions")
  place = "embeddings.position_embeddings"
  params, _ = draw_into(layout, encoder, x, **{place: positions})
  found = tokens_and_gradients(layout, encoder, x, params, noise)
  hold({name: found[name] for name in expected}, expected)
