"""SimMIM, data2vec, I-JEPA, AIM and CPC against the authors' code.

`tests/fidelity/README.md` says which, and how the numbers were made.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import masks
from ssljax import ops
from ssljax.methods import aim
from ssljax.methods import cpc
from ssljax.methods import data2vec
from ssljax.methods import ijepa
from ssljax.methods import simmim
from ssljax.models import vit
from tests import fidelity_methods_test as shared
from tests.fidelity import drawn

assert_close = shared.assert_close
dense, norm = shared.dense, shared.batch_norm


def stored(name):
  """The arrays of a method, its start, and views [3 4 1 h w 3]."""
  case = shared.stored("masked")[name]
  case["start"] = {
    key: drawn.draw(f"{name}/{key}", x.shape) for key, x in case["end"].items()
  }
  side = 32 if name == "ijepa" else 16
  views = drawn.draw(f"input/{name}", (3, 4, 3, side, side))
  case["views"] = views.transpose(0, 1, 3, 4, 2)[:, :, None]
  return case


def patch_embed(case, name):
  kernel = case[f"{name}.weight"]  # [d c p p]
  kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))
  return {"kernel": kernel, "bias": case[f"{name}.bias"]}


def block(case, name):
  """The authors' names, with or without layer scale and biases."""
  norms = ("norm1", "norm2")
  if f"{name}.norm_1.weight" in case:
    norms = ("norm_1", "norm_2")
  params = {
    "qkv": dense(case, f"{name}.attn.qkv"),
    "proj": dense(case, f"{name}.attn.proj"),
    "fc1": dense(case, f"{name}.mlp.fc1"),
    "fc2": dense(case, f"{name}.mlp.fc2"),
  } | {f"norm{i + 1}": norm(case, f"{name}.{n}") for i, n in enumerate(norms)}
  if f"{name}.attn.q_bias" in case:  # keys have none
    q, v = (case[f"{name}.attn.{x}_bias"] for x in "qv")
    params["qkv"]["bias"] = np.concatenate([q, np.zeros_like(q), v])
  if f"{name}.gamma_1" in case:
    params |= {f"scale{i}": case[f"{name}.gamma_{i}"] for i in (1, 2)}
  return params


def blocks(case, name, depth):
  return {f"block{i}": block(case, f"{name}.{i}") for i in range(depth)}


def beit_params(case, prefix, depth):
  """BEiT's ViT, which SimMIM and data2vec have."""
  table = case[f"{prefix}rel_pos_bias.relative_position_bias_table"]
  return {
    "patch_embed": patch_embed(case, f"{prefix}patch_embed.proj"),
    "relative": {"table": table},
    "cls_token": case[f"{prefix}cls_token"][0],
    "mask_token": case[f"{prefix}mask_token"][0],
    "norm": norm(case, f"{prefix}norm"),
  } | blocks(case, f"{prefix}blocks", depth)


def beit(depth):
  return vit.make(
    variant="Mu/4",
    dim=12,
    depth=depth,
    pos="relative",
    mask_token=True,
    layer_scale=0.1,
  )


def train(method, case, params, changed=lambda old: {}):
  params = jax.tree.map(jnp.float32, params)
  history, state = shared.train(method, case, params, changed)
  assert_close(history, case["losses"])
  return state


def assert_trees_close(got, want):
  jax.tree.map(assert_close, got, want)


def simmim_params(case):
  # PixelShuffle takes channels first, then the rows and columns of a patch.
  kernel, bias = case["decoder.0.weight"], case["decoder.0.bias"]
  kernel = kernel.reshape(3, 4, 4, -1).transpose(3, 1, 2, 0)
  bias = bias.reshape(3, 4, 4).transpose(1, 2, 0)
  return {
    "encoder": beit_params(case, "encoder.", 2),
    "head": {"kernel": kernel.reshape(-1, 48), "bias": bias.reshape(-1)},
  }


def test_simmim_trains_as_the_authors(monkeypatch):
  case = stored("simmim")
  mask = jnp.asarray(case["mask"], bool)
  assert mask.sum(axis=1).tolist() == [12] * 4  # 3 of 4 units: rounded up
  asked = []

  def masking(key, grid, unit, count):
    asked.append((grid, unit, count))
    return mask

  monkeypatch.setattr(masks, "unit_masking", masking)
  state = train(
    simmim.make(beit(2), unit=8), case, simmim_params(case["start"])
  )
  assert asked[-1] == ((4, 4), 2, 3)
  assert_trees_close(state.params, simmim_params(case["end"]))


def test_data2vec_trains_as_the_authors(monkeypatch):
  case = stored("data2vec")
  mask = jnp.asarray(case["mask"], bool)
  monkeypatch.setattr(masks, "block_masking", lambda *a, **options: mask)
  method = data2vec.make(beit(3), masked=7, top_k=2, ema=0.9)

  def params(case):
    head = dense(case, "lm_head")
    return {"encoder": beit_params(case, "", 3), "head": head}

  state = train(method, case, params(case["start"]), teacher_of(case, params))
  assert_trees_close(state.params, params(case["end"]))
  moved = {"encoder": beit_params(case["teacher"], "", 3)}
  assert_trees_close(state.method_state["teacher"]["params"], moved)


def teacher_of(case, params):
  """The teacher starts as the student."""
  encoder = jax.tree.map(jnp.float32, params(case["start"])["encoder"])
  return lambda old: {"teacher": {"params": {"encoder": encoder}}}


def ijepa_params(case):
  name = "predictor.predictor_"
  return {
    "encoder": ijepa_encoder(case, "encoder."),
    "predictor": {
      "embed": dense(case, f"{name}embed"),
      "mask_token": case["predictor.mask_token"][0],
      "norm": norm(case, f"{name}norm"),
      "predict": dense(case, f"{name}proj"),
    }
    | blocks(case, f"{name}blocks", 1),
  }


def ijepa_encoder(case, prefix):
  return {
    "patch_embed": patch_embed(case, f"{prefix}patch_embed.proj"),
    "norm": norm(case, f"{prefix}norm"),
  } | blocks(case, f"{prefix}blocks", 2)


def test_ijepa_trains_as_the_authors(monkeypatch):
  """With their masks, in longer arrays whose rest attention leaves out."""
  case = stored("ijepa")
  place = np.arange(64)
  context = (case["context"][..., None] == place).any(axis=1)
  wanted = (case["targets"][..., None] == place).any(axis=2)
  drawn = jnp.asarray(context), jnp.asarray(wanted)
  monkeypatch.setattr(masks, "multiblock_masking", lambda *a, **options: drawn)
  encoder = vit.make(
    variant="Mu/4", dim=16, pos="sincos2d", pool="mean", weight_init="dino"
  )
  method = ijepa.make(
    encoder,
    total_steps=3,
    min_keep=4,
    predictor_dim=8,
    predictor_depth=1,
    ema=0.8,
  )
  assert context.sum(axis=1).max() < 40  # of 44 that there is room for
  params = ijepa_params
  state = train(method, case, params(case["start"]), teacher_of(case, params))
  assert_trees_close(state.params, params(case["end"]))
  moved = {"encoder": ijepa_encoder(case["moved"], "")}
  assert_trees_close(state.method_state["teacher"]["params"], moved)


def test_block_sizes_are_ijepas():
  sizes = shared.stored("masked")["multiblock"]["sizes"]
  u = jnp.linspace(0.0005, 0.9995, 1000)
  got = masks._block_size(u, (14, 14), (0.15, 0.2), (0.75, 1.5))
  got += masks._block_size(u, (14, 14), (0.85, 1.0), (1.0, 1.0))
  np.testing.assert_array_equal(np.stack(got, axis=1), sizes)
  areas = sizes[:, 0] * sizes[:, 1]
  least, most = masks.block_areas((14, 14), (0.15, 0.2), (0.75, 1.5))
  assert (least, most) == (areas.min(), areas.max())


def test_multiblock_masks_are_distributed_as_ijepas(monkeypatch):
  """Given the sizes 5 x 7 and 13 x 13: 6,000 examples each."""
  case = shared.stored("masked")["multiblock"]
  sizes = iter([(5, 7), (13, 13)])
  monkeypatch.setattr(masks, "_block_size", lambda *unused: next(sizes))
  monkeypatch.setattr(masks, "block_areas", lambda *unused: (35, 169))
  draw = lambda keys, key: masks.multiblock_masking(keys, key, (14, 14))
  key = jax.random.key(0)
  context, targets = jax.jit(draw)(jax.random.split(key, 6000), key)
  # Five deviations of the mean of 6,000 draws, and of theirs.
  np.testing.assert_allclose(context.mean(axis=0), case["contexts"], atol=0.045)
  np.testing.assert_allclose(
    targets.mean(axis=(0, 1)), case["targets"], atol=0.0225
  )
  sums = context.sum(axis=1).mean(), case["contexts"].sum()
  np.testing.assert_allclose(*sums, rtol=0.02)
  assert (context & targets.any(axis=1)).sum() == 0


def test_block_masks_are_distributed_as_beits():
  case = shared.stored("masked")["blocks"]
  keys = jax.random.split(jax.random.key(0), 5_000)
  draw = lambda keys: masks.block_masking(
    keys, (14, 14), 120, min_block=16, max_block=196
  )
  drawn = np.asarray(jax.jit(draw)(keys)).reshape(-1, 14, 14)
  assert (drawn.sum(axis=(1, 2)) == 120).all()
  # The authors give up on less than one place of a hundred.
  assert 118.5 < case["count"] <= 120
  np.testing.assert_allclose(drawn.mean(axis=0), case["mean"], atol=0.03)
  unlike = [np.diff(drawn, axis=axis).mean() for axis in (1, 2)]
  np.testing.assert_allclose(unlike, case["unlike"], rtol=0.05)


def aim_params(case):
  head = {
    "embed": dense(case, "head.embed"),
    "norm": norm(case, "head.norm"),
    "predict": dense(case, "head.predict"),
  }
  for i in range(2):
    head[f"norm{i}"] = norm(case, f"head.norms.{i}")
    for layer in ("fc1", "fc2"):
      head[f"block{i}_{layer}"] = dense(case, f"head.mlps.{i}.{layer}")
  name = "preprocessor.patchifier"
  encoder = {
    "patch_embed": patch_embed(case, f"{name}.proj"),
    "embed_norm": norm(case, f"{name}.norm"),
    "norm": norm(case, "trunk.post_trunk_norm"),
  } | blocks(case, "trunk.blocks", 3)
  return {"encoder": encoder, "head": head}


def test_aim_trains_as_the_authors_trunk(monkeypatch):
  case = stored("aim")
  prefix = jnp.asarray(case["prefix"])
  draws = lambda key, shape, low, high: key
  monkeypatch.setattr(jax.random, "randint", draws)
  monkeypatch.setattr(
    ops, "view_keys", lambda key, n: jnp.stack([prefix, prefix], axis=1)
  )
  encoder = vit.make(
    variant="Mu/4",
    dim=16,
    depth=3,
    pos="sincos2d",
    pool="mean",
    bias=False,
    embed_norm=True,
  )
  method = aim.make(encoder, head_dim=8, head_depth=2, top_k=2)
  state = train(method, case, aim_params(case["start"]))
  params = jax.tree.map(jnp.float32, aim_params(case["end"]))
  assert_trees_close(state.params, params)
  out = jax.jit(method.embed)(params, {}, {"views": case["views"][0]})
  assert_close(out["tokens"], case["features"])
  assert_close(out["pooled"], case["features"].mean(axis=1))


class Patches(nn.Module):
  """The small network of `make_masked.py`, of a patch."""

  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train, key=None):
    h = nn.relu(nn.Dense(8, name="body")(x.reshape(len(x), -1)))
    return {"pooled": h, "tokens": h[:, None]}


def cpc_params(case):
  conv = lambda name: {
    "kernel": case[f"{name}.weight"].transpose(2, 3, 1, 0),
    "bias": case[f"{name}.bias"],
  }
  layer = lambda name: jax.tree.map(np.squeeze, conv(name))
  context = {
    f"block{i}_conv{j + 1}": conv(f"context.blocks.{i}.{place}")
    for i in range(2)
    for j, place in enumerate((0, 2, 4, 6))
  }
  both = layer("predict1"), layer("predict2")
  return {
    "encoder": {"body": dense(case, "body")},
    "context": context,
    "target": layer("target"),
    "prediction": jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *both),
  }


def test_cpc_trains_as_the_listing():
  case = stored("cpc")
  method = cpc.make(
    Patches(),
    patch=6,
    stride=3,
    rows=(2, 3),
    target_dim=10,
    context_dim=12,
    context_depth=2,
  )
  state = train(method, case, cpc_params(case["start"]))
  assert_trees_close(state.params, cpc_params(case["end"]))


@pytest.mark.parametrize("grid, extra", [((3, 4), 1), ((2, 2), 0)])
def test_relative_places_are_differences(grid, extra):
  from ssljax.models import relative

  places = relative.index(grid, extra)[extra:, extra:]
  row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  seen = {}
  for q in range(len(row)):
    for k in range(len(row)):
      step = (row[q] - row[k], column[q] - column[k])
      assert seen.setdefault(step, places[q, k]) == places[q, k]
  assert len(set(seen.values())) == len(seen)
