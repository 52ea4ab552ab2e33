"""Encoders and heads: counts, the contract, options that change no number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import errors
from ssljax.models import gpt
from ssljax.models import heads
from ssljax.models import resnet
from ssljax.models import vit
from ssljax.plan import flops


def images(n=3, side=8, channels=3):
  return jax.random.normal(jax.random.key(1), (n, side, side, channels))


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def apply(module, variables, x, *, train=False, layers=(), **arrays):
  call = functools.partial(module.apply, train=train, layers=layers)
  return jax.jit(call)(variables, x, **arrays)


def shapes(module, x):
  init = functools.partial(module.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), x)


def count(module, side):
  x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  params = shapes(module, x)["params"]
  return sum(np.prod(p.shape) for p in jax.tree.leaves(params))


def fill(module, x):
  """Variables drawn by NumPy: to compile an init takes longer than the test."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    if name in ("scale", "var"):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else 25
    return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes(module, x))


def start(module, x, *path):
  """The leaves of a true init under `path` alone."""

  @jax.jit
  def draw():
    tree = module.init(jax.random.key(0), x, train=False)["params"]
    return functools.reduce(lambda tree, name: tree[name], path, tree)

  return draw()


# torchvision's counts, less the classifier of 1,000 classes.
@pytest.mark.parametrize(
  "variant,total,features",
  [
    ("18", 11_689_512, 512),
    ("34", 21_797_672, 512),
    ("50", 25_557_032, 2048),
    ("101", 44_549_160, 2048),
  ],
)
def test_resnet_counts(variant, total, features):
  expected = total - (features + 1) * 1000
  assert count(resnet.make(variant=variant), 64) == expected


# timm's vit_*_patch*_224 (H: 14) with num_classes=0.
@pytest.mark.parametrize(
  "variant,expected",
  [
    ("Ti/16", 5_524_416),
    ("S/16", 21_665_664),
    ("B/16", 85_798_656),
    ("L/16", 303_301_632),
    ("H/14", 630_764_800),
  ],
)
def test_vit_counts(variant, expected):
  assert count(vit.make(variant=variant), 224) == expected


@pytest.mark.parametrize("variant,expansion", [("18", 1), ("50", 4)])
@pytest.mark.parametrize(
  "stem,wide,side",
  [
    ("imagenet", 16, 2),
    ("small", 32, 4),
    ("cifar", 64, 8),
    ("cifar_pad2", 66, 9),
  ],
)
def test_resnet_shapes(variant, expansion, stem, wide, side):
  module = resnet.make(variant=variant, width=2, stem=stem)
  x = jax.ShapeDtypeStruct((3, 64, 64, 3), jnp.float32)
  call = functools.partial(module.apply, train=False, layers=(3, 0))
  out = jax.eval_shape(call, shapes(module, x), x)
  d = 16 * expansion
  assert out["pooled"].shape == (3, d)
  assert out["tokens"].shape == (3, side**2, d)
  first = (3, wide**2, 2 * expansion)
  assert [s.shape for s in out["layers"]] == [(3, side**2, d), first]


@pytest.mark.parametrize("variant, last", [("6", 1), ("18", 3)])
def test_a_stage_that_a_resnet_lacks_is_refused(variant, last):
  module = resnet.make(variant=variant, width=2, stem="cifar")
  x = jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.float32)
  call = lambda i: jax.eval_shape(
    functools.partial(module.apply, train=False, layers=(i,)),
    shapes(module, x),
    x,
  )
  side, d = 8 // 2**last, 2 * 2**last
  assert [s.shape for s in call(last)["layers"]] == [(3, side**2, d)]
  with pytest.raises(ValueError, match=f"the stages 0 to {last}"):
    call(last + 1)


def test_resnet_values():
  module = resnet.make(variant="18", width=2, stem="cifar")
  x = images(side=16)
  variables = fill(module, x)
  call = functools.partial(
    module.apply, train=True, mutable=["batch_stats"], layers=(3,)
  )
  out, changed = jax.jit(call)(variables, x)
  np.testing.assert_allclose(out["pooled"], out["tokens"].mean(1), rtol=1e-6)
  np.testing.assert_array_equal(out["layers"][0], out["tokens"])
  before = jax.tree.leaves(variables["batch_stats"])
  after = jax.tree.leaves(changed["batch_stats"])
  assert all((a != b).any() for a, b in zip(before, after))


def test_resnet_remat_changes_nothing():
  x = images()
  variables = fill(resnet.make(variant="10", width=8, stem="cifar"), x)

  def run(kind):
    module = resnet.make(variant="10", width=8, stem="cifar", remat=kind)

    def loss(params):
      out, state = module.apply(
        variables | {"params": params}, x, train=True, mutable=["batch_stats"]
      )
      return jnp.square(out["pooled"]).sum(), state

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

  close = functools.partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-4)
  expected = run("none")
  jax.tree.map(close, expected, run("full"))
  jax.tree.map(close, expected, run("dots"))


@pytest.mark.parametrize(
  "make",
  [
    lambda kind: vit.make(variant="Mu/2", remat=kind),
    lambda kind: resnet.make(variant="10", width=8, stem="cifar", remat=kind),
  ],
  ids=["vit", "resnet"],
)
def test_remat_computes_again_what_it_did_not_keep(make):
  x = images()
  work = {}
  for kind in ("none", "dots", "full"):
    variables = fill(make(kind), x)
    loss = lambda params, kind=kind, v=variables: jnp.square(
      make(kind).apply(v | {"params": params}, x, train=False)["pooled"]
    ).sum()
    work[kind] = flops.count(jax.grad(loss), variables["params"])
  assert work["none"] <= work["dots"] < work["full"]


def test_an_unknown_remat_is_told():
  with pytest.raises(errors.UserError, match="remat='all': choose none, full"):
    shapes(vit.make(variant="Mu/2", remat="all"), images())


def test_resnet_zero_init_residual():
  module = resnet.make(variant="50", width=2, zero_init_residual=True)
  params = start(module, images(side=32), "layer1_0")
  scales = {
    name: float(np.abs(value["scale"]).max())
    for name, value in params.items()
    if "bn" in name
  }
  assert scales == {"bn1": 1, "bn2": 1, "bn3": 0, "downsample_bn": 1}


def test_resnet_refuses():
  module = resnet.make(variant="18", width=2)
  x = images(side=32)
  variables = shapes(module, x)
  for bad in (
    dict(keep=jnp.zeros((3, 1), jnp.int32)),
    dict(mask=jnp.zeros((3, 1), bool)),
    dict(attention_mask=jnp.ones((1, 1, 1, 1), bool)),
    dict(layers=(4,)),
  ):
    with pytest.raises(ValueError):
      jax.eval_shape(
        functools.partial(module.apply, train=False, **bad), variables, x
      )


@pytest.mark.parametrize("module,known", [(resnet, "18, 34"), (vit, "Ti, S")])
def test_unknown_variant(module, known):
  with pytest.raises(errors.UserError, match=known):
    module.make(variant="Q/4")


@pytest.mark.parametrize(
  "options,match",
  [
    (dict(pos="rope"), "learned or sincos2d"),
    (dict(gelu="erf"), "exact or tanh"),
    (dict(pool="max"), "cls or mean"),
    (dict(class_token=False), "class_token"),
    (dict(pos="sincos2d", dim=18), "multiple of 4"),
  ],
)
def test_vit_unknown_options(options, match):
  with pytest.raises(errors.UserError, match=match):
    shapes(vit.make(variant="Mu/4", **options), images())


def test_vit_heads_divide():
  with pytest.raises(errors.UserError, match="heads=3"):
    vit.make(variant="Mu/4", heads=3)


def test_vit_patch_divides():
  with pytest.raises(errors.UserError, match="3 x 3 .* 8 x 8"):
    shapes(vit.make(variant="Mu/3"), images())


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("registers", [0, 2])
def test_vit_shapes(pool, registers):
  module = vit.make(variant="Mu/2", pool=pool, registers=registers)
  x = images()
  variables = fill(module, x)
  assert ("cls_token" in variables["params"]) == (pool == "cls")
  out = apply(module, variables, x, layers=(1, 0))
  assert out["tokens"].shape == (3, 16, 32)
  assert [s.shape for s in out["layers"]] == [(3, 16, 32)] * 2
  is_mean = np.allclose(out["pooled"], out["tokens"].mean(1), atol=1e-6)
  assert is_mean == (pool == "mean")
  # The last block's stream is what the last norm makes tokens of.
  norm = variables["params"]["norm"]
  last = out["layers"][0]
  last = (last - last.mean(-1, keepdims=True)) / np.sqrt(
    last.var(-1, keepdims=True) + 1e-6
  )
  np.testing.assert_allclose(
    last * norm["scale"] + norm["bias"], out["tokens"], atol=1e-4
  )
  with pytest.raises(ValueError, match="2 blocks"):
    apply(module, variables, x, layers=(2,))


@pytest.mark.parametrize("pool, scan", [("cls", False), ("mean", True)])
def test_vit_pools_its_last_blocks(pool, scan):
  options = dict(variant="Mu/2", pool=pool, scan=scan)
  make = lambda depth, **more: vit.make(**options, depth=depth, **more)
  x = images()
  variables = fill(make(3), x)
  joined = apply(make(3, pool_blocks=2), variables, x, layers=(0,))
  whole = apply(make(3), variables, x, layers=(0,))
  # One that ends a block earlier, with the same norm.
  params = variables["params"]
  if scan:
    fewer = jax.tree.map(lambda w: w[:2], params["blocks"])
    params = params | {"blocks": fewer}
  else:
    params = {k: v for k, v in params.items() if k != "block2"}
  earlier = apply(make(2), {"params": params}, x)
  expected = np.concatenate([earlier["pooled"], whole["pooled"]], axis=1)
  np.testing.assert_allclose(joined["pooled"], expected, atol=1e-6)
  np.testing.assert_array_equal(joined["tokens"], whole["tokens"])
  np.testing.assert_array_equal(joined["layers"], whole["layers"])
  for blocks in (0, 4):
    with pytest.raises(errors.UserError, match="give 1 to 3"):
      make(3, pool_blocks=blocks)


@pytest.mark.parametrize("pos", ["learned", "sincos2d"])
def test_vit_keep(pos):
  module = vit.make(variant="Mu/2", pos=pos, mask_token=True)
  x = images()
  variables = fill(module, x)
  run = functools.partial(apply, module, variables, x)
  # All patches in another order: the same tokens in that order.
  order = jnp.stack([jax.random.permutation(k, 16) for k in keys(3)])
  mask = jax.random.bernoulli(jax.random.key(2), 0.5, (3, 16))
  whole, permuted = run(mask=mask), run(mask=mask, keep=order)
  np.testing.assert_allclose(
    permuted["tokens"],
    jnp.take_along_axis(whole["tokens"], order[..., None], 1),
    atol=1e-5,
  )
  np.testing.assert_allclose(permuted["pooled"], whole["pooled"], atol=1e-5)
  # Some of them: as if the others could not be seen.
  keep = order[:, :5]
  kept = run(keep=keep, layers=(0,))
  seen = jnp.zeros((3, 17), bool).at[:, 0].set(True)
  seen = seen.at[jnp.arange(3)[:, None], keep + 1].set(True)
  masked = run(attention_mask=seen[:, None, None, :])
  assert kept["layers"][0].shape == (3, 5, 32)
  np.testing.assert_allclose(
    kept["tokens"],
    jnp.take_along_axis(masked["tokens"], keep[..., None], 1),
    atol=1e-5,
  )
  assert not np.allclose(kept["pooled"], run()["pooled"], atol=1e-3)


def test_vit_mask():
  module = vit.make(variant="Mu/2", mask_token=True)
  x = images()
  variables = fill(module, x)
  mask = jnp.zeros((3, 16), bool).at[:, 0].set(True)  # the first 2 x 2 pixels
  other = x.at[:, :2, :2].set(7.0)
  one = apply(module, variables, x, mask=mask)["tokens"]
  two = apply(module, variables, other, mask=mask)["tokens"]
  np.testing.assert_array_equal(one, two)
  assert not np.allclose(one, apply(module, variables, x)["tokens"])
  plain = vit.make(variant="Mu/2")
  variables = fill(plain, x)
  assert "mask_token" not in variables["params"]
  with pytest.raises(ValueError, match="mask_token"):
    apply(plain, variables, x, mask=mask)


@pytest.mark.parametrize("options", [{}, dict(drop_path=0.5, registers=1)])
def test_vit_scan_and_remat_change_nothing(options):
  x, kwargs = images(), dict(train=True, key=keys(3), layers=(0, 1))
  loop = vit.make(variant="Mu/2", **options)
  params = fill(loop, x)["params"]
  blocks = [params.pop(f"block{i}") for i in range(2)]
  stacked = params | {"blocks": jax.tree.map(lambda *b: jnp.stack(b), *blocks)}
  params = params | {f"block{i}": b for i, b in enumerate(blocks)}

  def run(params, **how):
    module = vit.make(variant="Mu/2", **options, **how)
    same = jax.tree.map(
      lambda s, p: s.shape == p.shape, shapes(module, x), {"params": params}
    )
    assert jax.tree.all(same)

    def loss(params):
      out = module.apply({"params": params}, x, **kwargs)
      return jnp.square(out["pooled"]).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    if "blocks" in grads:
      blocks = grads.pop("blocks")
      for i in range(2):
        grads[f"block{i}"] = jax.tree.map(lambda b, i=i: b[i], blocks)
    return out, grads

  expected = run(params)
  close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)
  jax.tree.map(close, expected, run(params, remat="full"))
  jax.tree.map(close, expected, run(params, remat="dots"))
  jax.tree.map(close, expected, run(stacked, scan=True))
  jax.tree.map(close, expected, run(stacked, scan=True, remat="full"))


def test_vit_product_gradients():
  x = jax.random.normal(jax.random.key(0), (8, 5, 4))
  w = jax.random.normal(jax.random.key(1), (4, 6))
  loss = lambda product, x, w: jnp.sin(product(x, w)).sum()
  grad = lambda product: jax.grad(functools.partial(loss, product), (0, 1))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, grad(vit._product)(x, w), grad(jnp.matmul)(x, w))
  # Weights that a shard_map replicates get the sum over devices, as JAX's do.
  mesh = jax.sharding.Mesh(jax.devices(), ("data",))
  rows, same = jax.P("data"), jax.P()
  spread = jax.shard_map(
    grad(vit._product),
    mesh=mesh,
    in_specs=(rows, same),
    out_specs=(rows, same),
  )
  jax.tree.map(close, jax.jit(spread)(x, w), grad(jnp.matmul)(x, w))


def test_vit_scan_inits_blocks_apart():
  module = vit.make(variant="Mu/2", scan=True)
  kernel = start(module, images(), "blocks", "qkv", "kernel")
  assert not np.allclose(kernel[0], kernel[1])


def test_vit_by_depth_starts_as_the_authors():
  """BEiT's `fix_init_weight`: the deeper, the smaller. I-JEPA's is undone."""
  options = dict(variant="Ti/4", depth=4, pos="sincos2d", pool="mean")
  params = lambda name: start(
    vit.make(weight_init=name, **options), images(side=8)
  )
  deviations = {"ijepa": 0.02, "beit": 0.02 * 0.5396}  # of a cut normal
  for name, std in deviations.items():
    p = params(name)
    for i in range(4):
      last = std if name == "ijepa" else std / np.sqrt(2 * (i + 1))
      want = dict(qkv=std, proj=last, fc1=std, fc2=last)
      got = {k: np.std(p[f"block{i}"][k]["kernel"]) for k in want}
      assert got == pytest.approx(want, rel=0.03)
    assert np.std(p["patch_embed"]["kernel"]) == pytest.approx(std, rel=0.05)
  assert np.abs(params("beit")["block0"]["qkv"]["kernel"]).max() <= 0.02
  with pytest.raises(errors.UserError, match="encoder.scan=False"):
    start(vit.make(weight_init="beit", scan=True, **options), images(side=8))


def test_vit_positions_interpolate():
  module = vit.make(variant="Mu/2")
  variables = fill(module, images())
  assert variables["params"]["pos_embed"].shape == (4, 4, 32)
  x = images(side=16)
  out = apply(module, variables, x)
  assert out["tokens"].shape == (3, 64, 32)
  # A plane stays a plane: bicubic weights sum to one.
  table = variables["params"]["pos_embed"]
  flat = jnp.broadcast_to(table.mean((0, 1)), table.shape)
  variables["params"]["pos_embed"] = flat
  big = apply(module, variables, x)["tokens"]
  own = vit.make(variant="Mu/2", img_size=16)
  assert shapes(own, images())["params"]["pos_embed"].shape == (8, 8, 32)
  wide = variables["params"] | {"pos_embed": jnp.tile(flat, (2, 2, 1))}
  same = apply(own, {"params": wide}, x)["tokens"]
  np.testing.assert_allclose(big, same, atol=1e-4)


def test_vit_sincos():
  # dim 8: frequencies 1 and 1/100; the column first, as the authors' code.
  table = vit.sincos2d(8, 2, 3)
  column, row = 2, 1
  encode = lambda p: [np.sin(p), np.sin(p / 100), np.cos(p), np.cos(p / 100)]
  np.testing.assert_allclose(table[0], [0, 0, 1, 1] * 2)
  np.testing.assert_allclose(
    table[row * 3 + column], encode(column) + encode(row), rtol=1e-6
  )
  params = shapes(vit.make(variant="Mu/2", pos="sincos2d"), images())["params"]
  assert not {"pos_embed", "cls_pos"} & set(params)


def test_fixed_positions_of_another_size_are_interpolated():
  make = functools.partial(vit.make, variant="Mu/2")
  fixed, learned = (make(pos=pos) for pos in ("sincos2d", "learned"))
  small = make(pos="sincos2d", img_size=8)
  variables = fill(fixed, images())
  run = lambda module, x, **more: apply(
    module, {"params": variables["params"] | more}, x
  )["tokens"]
  x = images()
  np.testing.assert_array_equal(run(small, x), run(fixed, x))
  x = jnp.tile(x, (1, 2, 2, 1))  # 16 x 16
  table = vit.sincos2d(32, 4, 4).reshape(4, 4, 32)
  same = run(learned, x, pos_embed=table, cls_pos=jnp.zeros((1, 32)))
  np.testing.assert_allclose(run(small, x), same, atol=1e-5)
  assert not np.allclose(run(small, x), run(fixed, x), atol=0.1)


def test_vit_drop_path():
  module = vit.make(variant="Mu/2", drop_path=0.5, depth=4)
  x = jnp.broadcast_to(images(1), (64, 8, 8, 3))
  variables = fill(module, x)
  run = functools.partial(apply, module, variables)
  plain = run(x, train=False)["pooled"]
  out = run(x, train=True, key=keys(64))["pooled"]
  # Each example's own key decides, not its place in the batch.
  back = run(x, train=True, key=keys(64)[::-1])["pooled"]
  np.testing.assert_allclose(out[::-1], back, atol=1e-5)
  one = run(x[:1], train=True, key=keys(64)[5:6])["pooled"]
  np.testing.assert_allclose(out[5:6], one, atol=1e-5)
  assert len(np.unique(np.round(out[:, 0], 4))) > 8
  assert not np.allclose(out, plain, atol=1e-2)
  with pytest.raises(ValueError, match="key"):
    run(x, train=True)


def test_vit_drop_path_rates():
  scales = np.asarray(vit._drop_scales(keys(4000), 0.6, 4))
  assert scales.shape == (4, 4000, 2)
  rates = np.array([0, 0.2, 0.4, 0.6])
  np.testing.assert_allclose((scales == 0).mean((1, 2)), rates, atol=0.03)
  np.testing.assert_allclose(scales.mean((1, 2)), 1, atol=0.05)
  # The two branches are drawn apart.
  both = (scales[3] == 0).all(-1).mean()
  np.testing.assert_allclose(both, 0.36, atol=0.03)


@pytest.mark.parametrize(
  "make",
  [
    lambda dtype: resnet.make(variant="18", width=8, stem="cifar", dtype=dtype),
    lambda dtype: vit.make(variant="Mu/2", dtype=dtype),
  ],
)
def test_bfloat16(make):
  x = 10 * images()
  variables = fill(make(jnp.bfloat16), x)
  declared = jax.tree.leaves(shapes(make(jnp.bfloat16), x))
  assert all(p.dtype == jnp.float32 for p in declared)
  full, half = (
    apply(make(dtype), variables, x, layers=(0,))
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(half))
  error = np.abs(full["pooled"] - half["pooled"]).max()
  assert 0 < error < 0.1 * np.abs(full["pooled"]).max()


def test_solo_learns_stem_starts_as_torchs_layers():
  x = jnp.zeros((1, 32, 32, 3))
  start = lambda stem: resnet.make(variant="18", stem=stem).init(
    jax.random.key(0), x, train=False
  )["params"]["conv1"]["kernel"]
  kernel = start("cifar_pad2")
  assert 0.9 * 27**-0.5 < np.abs(kernel).max() <= 27**-0.5
  np.testing.assert_allclose(kernel.std(), (3 * 27) ** -0.5, rtol=0.05)
  np.testing.assert_allclose(
    start("cifar").std(), (2 / (9 * 64)) ** 0.5, rtol=0.05
  )


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", [vit, gpt])
def test_small_branches_are_not_lost_in_bfloat16(kind, scan):
  make = lambda dtype: kind.make(
    variant="Mu/2" if kind is vit else "Mu", scan=scan, dtype=dtype
  )
  x = images() if kind is vit else jnp.arange(8)[None]
  variables = make(jnp.float32).init(jax.random.key(0), x, train=False)
  small = lambda path, w: (
    1e-4 * w if {"proj", "fc2"} & {p.key for p in path} else w
  )
  variables = jax.tree_util.tree_map_with_path(small, variables)

  def added(dtype):
    """What the second block adds to the stream."""
    out = apply(make(dtype), variables, x, layers=(0, 1))["layers"]
    assert all(p.dtype == jnp.float32 for p in out)
    return out[1] - out[0]

  full, half = map(added, (jnp.float32, jnp.bfloat16))
  assert 0 < np.abs(full).max() < 1e-2
  assert np.linalg.norm(half - full) < 0.1 * np.linalg.norm(full)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_vit_every_parameter_learns(pool):
  module = vit.make(variant="Mu/2", pool=pool, registers=1, scan=True)
  x = images()
  loss = lambda p: jnp.square(
    module.apply({"params": p}, x, train=True)["pooled"] - 1
  ).sum()
  grads = jax.jit(jax.grad(loss))(fill(module, x)["params"])
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
  "options,names",
  [
    # SimCLR v1: a norm after each layer, the last without offset.
    (
      dict(out_norm="batch_no_offset"),
      {"dense0/kernel", "bn0/scale", "bn0/bias", "dense1/kernel", "bn1/scale"},
    ),
    # MoCo v2: no norm.
    (
      dict(hidden_norm=False),
      {"dense0/kernel", "dense0/bias", "dense1/kernel", "dense1/bias"},
    ),
    # MoCo v3 and SimSiam: the last without scale and offset.
    (
      dict(out_norm="batch_no_affine"),
      {"dense0/kernel", "bn0/scale", "bn0/bias", "dense1/kernel"},
    ),
    # BYOL and Barlow Twins: a plain last layer without bias.
    (
      dict(out_bias=False),
      {"dense0/kernel", "bn0/scale", "bn0/bias", "dense1/kernel"},
    ),
  ],
)
def test_heads(options, names):
  head = heads.MLP(features=(None, 4), **options)
  x = 3 + jax.random.normal(jax.random.key(0), (64, 6))
  variables = fill(head, x)
  found = {
    f"{a}/{b}" for a, leaves in variables["params"].items() for b in leaves
  }
  assert found == names
  assert variables["params"]["dense0"]["kernel"].shape == (6, 6)
  out, changed = head.apply(variables, x, train=True, mutable=["batch_stats"])
  assert out.shape == (64, 4)
  if options.get("out_norm"):
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    scale = variables["params"].get("bn1", {}).get("scale", 1)
    np.testing.assert_allclose(out.std(0) / scale, 1, atol=1e-3)
  if options.get("hidden_norm", True):
    # A tenth of the way: momentum 0.9 in Flax's sense.
    h = (x @ variables["params"]["dense0"]["kernel"]).mean(0)
    old, new = (v["batch_stats"]["bn0"]["mean"] for v in (variables, changed))
    np.testing.assert_allclose(new, 0.9 * old + 0.1 * h, rtol=1e-4, atol=1e-6)


def test_head_unknown_norm():
  with pytest.raises(ValueError, match="batch_no_offset"):
    shapes(heads.MLP(features=(4,), out_norm="layer"), jnp.ones((2, 3)))


def test_a_head_of_dino_starts_with_the_deviation_given():
  head = heads.Bottleneck(hidden_dim=64, out_dim=64, std=0.1)
  params = head.init(jax.random.key(0), jnp.zeros((1, 64)), train=False)
  for layer in params["params"].values():
    np.testing.assert_allclose(layer["kernel"].std(), 0.1, rtol=0.1)


@pytest.mark.parametrize("kind", ["exact", "tanh"])
def test_gelu_in_bfloat16_keeps_its_tail(kind):
  x = jnp.linspace(-4, 4, 257, dtype=jnp.bfloat16)
  f = jax.vmap(jax.value_and_grad(lambda x: vit.gelu(x, kind)))
  exact = {
    "exact": lambda x: x * jax.scipy.stats.norm.cdf(x),
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
  }[kind]
  exact = jax.vmap(jax.value_and_grad(exact))
  for got, want in zip(f(x), exact(x.astype(jnp.float32))):
    assert got.dtype == jnp.bfloat16
    got = got.astype(jnp.float32)
    np.testing.assert_allclose(got, want, rtol=2**-8, atol=1e-6)
