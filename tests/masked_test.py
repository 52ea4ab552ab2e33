"""What the papers say of masked and predictive methods, on small encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import errors
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax.methods import aim
from ssljax.methods import cpc
from ssljax.methods import data2vec
from ssljax.methods import ijepa
from ssljax.methods import simmim
from ssljax.models import predictors
from ssljax.models import resnet
from ssljax.models import vit
from tests import core_test
from tests import methods_test as shared
from tests import toys

RNG = jax.random.key(3)


def small_vit(**options):
  return vit.make(variant="Mu/2", depth=1, **options)


def make_simmim(**options):
  encoder = small_vit(mask_token=True, pos="relative", layer_scale=0.1)
  return simmim.make(encoder, **(dict(unit=4) | options))


def make_data2vec(**options):
  encoder = small_vit(mask_token=True)
  options = dict(masked=9, min_block=2, top_k=1, ema=0.9) | options
  return data2vec.make(encoder, **options)


def make_ijepa(**options):
  encoder = small_vit(pool="mean", pos="sincos2d")
  sizes = dict(min_keep=0, predictor_dim=16, predictor_depth=1)
  return ijepa.make(encoder, total_steps=4, **(sizes | options))


def make_aim(**options):
  encoder = small_vit(pool="mean", pos="sincos2d", bias=False, embed_norm=True)
  sizes = dict(head_dim=16, head_depth=1, top_k=1)
  return aim.make(encoder, **(sizes | options))


def make_cpc(**options):
  encoder = resnet.make(variant="6", width=4, stem="cifar", norm="layer")
  sizes = dict(patch=4, stride=2, rows=(1,), target_dim=8, context_dim=16)
  return cpc.make(encoder, **(sizes | options))


def batch_of(views):
  keys = jax.random.split(RNG, len(views))
  return {"views": jnp.asarray(views, jnp.float32), "key": keys}


def noise(b=4):
  return np.random.default_rng(0).normal(size=(b, 1, 8, 8, 1))


SPREAD = {
  "simmim": make_simmim,
  "data2vec": make_data2vec,
  "ijepa": make_ijepa,
  "aim": make_aim,
  "cpc": lambda: cpc.make(
    toys.Layer(), patch=4, stride=2, rows=(1,), target_dim=8, context_dim=8
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREAD)
def test_masks_and_losses_do_not_depend_on_devices(name):
  run = lambda wrap, **options: core_test.run(
    SPREAD[name](), wrap, steps=2, augment=toys.one_view, **options
  )
  expected, _ = run(lambda s: core_test.under_jit(s, 1))
  for way in ("shard_map8", "jit8_accumulate4"):
    wrap, axis_name, accumulate = core_test.WAYS[way]
    options = dict(axis_name=axis_name, accumulate=accumulate)
    losses_, _ = run(wrap, **options)
    np.testing.assert_allclose(losses_, expected, rtol=1e-5, err_msg=way)


def test_units_are_masked_whole_and_equally_often():
  keys = jax.random.split(RNG, 2000)
  mask = np.asarray(masks.unit_masking(keys, (6, 8), 2, 5))
  units = mask.reshape(-1, 3, 2, 4, 2).swapaxes(2, 3)
  assert (units.sum(axis=(3, 4)) % 4 == 0).all()
  assert (mask.sum(axis=1) == 20).all()
  np.testing.assert_allclose(mask.mean(axis=0), 5 / 12, atol=0.06)


def test_blocks_have_exact_counts_of_each_example():
  counts = jnp.arange(50)
  keys = jax.random.split(RNG, 50)
  draw = jax.jit(lambda keys, n: masks.block_masking(keys, (7, 7), n))
  mask = draw(keys, counts)
  np.testing.assert_array_equal(mask.sum(axis=1), counts)
  # What an example draws depends on its key alone.
  some = draw(keys[::7], counts[::7])
  np.testing.assert_array_equal(some, mask[::7])


def test_places_come_in_raster_order_and_are_cut():
  mask = jnp.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1]], bool)
  places, valid = masks.places_of(mask, 2)
  assert places[0].tolist() == [1, 3] and valid[0].tolist() == [True, True]
  assert places[1, 0] == 4 and valid[1].tolist() == [True, False]


def test_ijepas_blocks_share_their_size_and_keep_enough():
  keys = jax.random.split(RNG, 64)
  draw = jax.jit(
    lambda key: masks.multiblock_masking(keys, key, (8, 8), min_keep=6)
  )
  for seed in range(5):
    context, targets = draw(jax.random.key(seed))
    assert len(set(targets.sum(axis=2).reshape(-1).tolist())) == 1
    assert context.sum(axis=1).min() > 6
  with pytest.raises(errors.UserError, match="min_keep=20"):
    masks.multiblock_masking(keys, RNG, (8, 8), min_keep=20)


@pytest.mark.parametrize("inclusive", [False, True])
def test_ijepas_blocks_reach_the_last_row_where_they_shall(inclusive):
  keys = jax.random.split(RNG, 200)
  drawn = masks.multiblock_masking(
    keys, RNG, (7, 7), min_keep=4, inclusive=inclusive
  )
  for blocks in drawn:
    seen = blocks.reshape(-1, 7, 7).any(axis=0)
    assert seen[:6, :6].all()
    assert (seen[6].all(), seen[:, 6].all()) == (inclusive, inclusive)


def test_a_context_that_is_too_small_gives_targets_back():
  """Where four targets leave too little, fewer are taken out."""
  options = dict(target_area=(0.3, 0.3), target_aspect=(1.0, 1.0), min_keep=12)
  draw = lambda keys: masks.multiblock_masking(
    keys, RNG, (7, 7), targets=4, **options
  )
  context, targets = jax.jit(draw)(jax.random.split(RNG, 200))
  sizes = np.asarray(context.sum(axis=1))
  overlap = np.asarray((context[:, None] & targets).sum(axis=2))
  assert sizes.min() > 12
  given_back = (overlap > 0).mean(axis=0)
  assert given_back[0] < given_back[1] < given_back[2]  # the last goes first
  assert (overlap.sum(axis=1) == 0).any()


@pytest.mark.parametrize("make", [make_simmim, make_aim])
def test_pictures_show_what_was_seen(make):
  method, batch = make(), batch_of(noise())
  params, state = jax.jit(method.init)(RNG, batch)
  shown = jax.jit(method.show["reconstruction"])(params, state, batch)
  hidden = np.asarray(shown["masked"] == 0)
  assert 0 < hidden.mean() < 1
  for name in ("masked", "reconstruction + visible"):
    np.testing.assert_allclose(
      shown[name][~hidden], shown["input"][~hidden], atol=1e-6
    )


def test_simmim_sees_nothing_of_what_is_masked():
  method, batch = make_simmim(), batch_of(noise())
  params, state = jax.jit(method.init)(RNG, batch)
  show = jax.jit(
    lambda views: method.show["reconstruction"](
      params, state, batch | {"views": views}
    )
  )
  shown = show(batch["views"])
  hidden = (shown["masked"] == 0)[:, None]
  again = show(jnp.where(hidden, 7.0, batch["views"]))
  np.testing.assert_allclose(
    again["reconstruction"], shown["reconstruction"], atol=1e-5
  )
  # Three of four units, for the ratio of .6 is rounded up.
  np.testing.assert_allclose(hidden.mean(), 0.75)


def test_data2vecs_teacher_sees_what_is_hidden(monkeypatch):
  method, batch = make_data2vec(), batch_of(noise())
  params, state = jax.jit(method.init)(RNG, batch)
  mask = jnp.arange(16) < jnp.full((4, 1), 9)
  monkeypatch.setattr(masks, "block_masking", lambda *a, **options: mask)

  @jax.jit
  def features(views):
    out, _ = method.forward(
      params, state, batch | {"views": views}, step=0, train=False
    )
    return out

  pixels = ops.unpatchify(jnp.repeat(mask[..., None], 4, axis=2), 2, (8, 8))
  other = jnp.where(pixels[:, None], 7.0, batch["views"])
  before, after = features(batch["views"]), features(other)
  assert np.abs(before["mean"] - after["mean"]).max() > 1e-3
  assert before["count"].tolist() == [9] * 4


def test_data2vecs_targets_carry_no_gradient():
  method, batch = make_data2vec(), batch_of(noise())
  params, state = jax.jit(method.init)(RNG, batch)

  def mean(teacher):
    out, _ = method.forward(
      params, {"teacher": teacher}, batch, step=0, train=False
    )
    return out["mean"].sum() + out["sum"].sum()

  grads = jax.jit(jax.grad(mean))(state["teacher"])
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["data2vec", "ijepa"])
def test_teachers_start_as_the_student_and_follow_it(name):
  if name == "ijepa":
    method, decay = make_ijepa(ema=0.5), lambda i: 0.5 + 0.5 * i / 4
  else:
    method, decay = make_data2vec(), lambda i: 0.9
  states, _ = shared.train(method, 3, augment=toys.one_view)
  teacher = lambda s: s.method_state["teacher"]["params"]
  online = lambda s: {"encoder": s.params["encoder"]}
  shared.assert_trees_close(teacher(states[0]), online(states[0]))
  for i, (before, after) in enumerate(zip(states, states[1:])):
    shared.assert_trees_close(
      teacher(after), ops.ema(teacher(before), online(after), decay(i))
    )


@pytest.mark.parametrize("name", ["data2vec", "ijepa"])
def test_one_of_two_networks_is_evaluated(name):
  make, by_teacher = {
    "data2vec": (make_data2vec, False),  # the authors' fine-tuning
    "ijepa": (make_ijepa, True),
  }[name]
  method = toys.compiled(make())
  batch = batch_of(noise())
  params, state = method.init(shared.RNG, batch)
  zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
  got = method.embed(params, state, batch)["pooled"]
  assert got.any()
  other = zeros(params), state
  if not by_teacher:
    other = params, state | {"teacher": zeros(state["teacher"])}
  same = method.embed(*other, batch)["pooled"]
  np.testing.assert_array_equal(got, same)


@pytest.mark.parametrize("part", ["prediction", "target"])
def test_ijepa_predicts_from_the_context_alone(part, monkeypatch):
  """Pixels outside of it change targets, but no prediction."""
  # Predictions start small.
  pick, scale = {"prediction": (0, 100), "target": (1, 1)}[part]
  monkeypatch.setattr(
    losses, "smooth_l1", lambda *both, beta: (scale * both[pick]) ** 3
  )
  method, batch = make_ijepa(max_context=1.0), batch_of(noise())
  params, state = jax.jit(method.init)(RNG, batch)
  draw = lambda keys: masks.multiblock_masking(
    ops.view_keys(keys, 2).reshape(-1, 2)[:, 0],
    jax.random.fold_in(jax.random.key(0), 5),
    (4, 4),
    min_keep=0,
  )
  context, _ = jax.jit(draw)(batch["key"])
  pixels = ops.unpatchify(jnp.repeat(context[..., None], 4, axis=2), 2, (8, 8))

  @jax.jit
  def forward(views):
    return method.forward(
      params, state, batch | {"views": views}, step=5, train=False
    )[0]

  sums = lambda views: np.asarray(forward(views)["sum"])
  before, x = sums(batch["views"]), batch["views"]
  outside = sums(jnp.where(pixels[:, None], x, x[..., ::-1, :] + 1))
  assert (np.abs(outside - before).max() < 1e-4) == (part == "prediction")
  inside = sums(jnp.where(pixels[:, None], x[..., ::-1, :] + 1, x))
  assert np.abs(inside - before).max() > 1e-4


@pytest.mark.slow
def test_aim_predicts_each_patch_from_those_before_and_the_prefix():
  method, batch = make_aim(norm_pix=False), batch_of(noise(1))
  params, state = jax.jit(method.init)(RNG, batch)

  def predicted(x):
    shown = method.show["reconstruction"](params, state, batch | {"views": x})
    return ops.patchify(shown["reconstruction"], 2)[0]

  jacobian = jax.jacobian(predicted)(batch["views"])  # [n p 1 1 8 8 1]
  seen = np.abs(jacobian).sum(axis=1).reshape(16, 8, 8, 1)
  seen = np.asarray(ops.patchify(seen, 2).sum(axis=-1)) > 1e-7  # [n n]
  hidden = method.show["reconstruction"](params, state, batch)["masked"] == 0
  prefix = int((~np.asarray(ops.patchify(hidden, 2)[0].all(axis=-1))).sum())
  assert 1 <= prefix < 16
  for k in range(prefix, 16):
    np.testing.assert_array_equal(seen[k], np.arange(16) < k)


def test_aims_prefix_is_uniform_and_its_attention_is_causal_behind_it():
  mask = masks.prefix_attention_mask(jnp.array([1, 3]), 4)[:, 0]
  causal = np.tril(np.ones((4, 4), bool))
  np.testing.assert_array_equal(mask[0], causal)
  both = causal | (np.arange(4) < 3)
  np.testing.assert_array_equal(mask[1], both)
  method = make_aim()
  batch = batch_of(noise(1))
  params, state = jax.jit(method.init)(RNG, batch)
  many = batch_of(np.repeat(noise(1), 400, axis=0))
  forward = toys.compiled(method).forward
  out, _ = forward(params, state, many, step=0, train=False)
  counts = np.bincount(out["count"], minlength=16)
  assert counts[0] == 0 and counts[16:].sum() == 0
  assert (counts[1:16] > 8).all()  # 27 each, give or take 5


@pytest.mark.parametrize(
  "dim, depth, init, least, most",
  [
    (384, 12, "ijepa", 3e-4, 1e-2),  # the authors'
    (32, 3, "ijepa", 0, 1e-4),
    (32, 3, "mae", 1e-2, 1),
  ],
)
def test_ijepas_predictor_sees_its_context_from_the_start(
  dim, depth, init, least, most
):
  network = predictors.Blocks(
    grid=(7, 7), dim=dim, depth=depth, heads=4, weight_init=init
  )
  context = jnp.tile(jnp.arange(12), (8, 1))
  targets = jnp.tile(jnp.arange(20, 29), (8, 1, 1))
  there = lambda places: jnp.ones(places.shape, bool)
  given = context, there(context), targets, there(targets)
  tokens = jax.random.normal(RNG, (8, 12, 64))
  predicted, _ = jax.jit(network.init_with_output)(RNG, tokens, *given)
  share = predicted.var(axis=0).mean() / jnp.square(predicted).mean()
  assert least < share < most


def test_cpcs_context_knows_no_row_below():
  network = predictors.Rows(dim=8, depth=4)
  z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4, 6)))
  params = network.init(RNG, z)
  run = lambda z: network.apply(params, z)[0]
  jacobian = jax.jit(jax.jacobian(run))(z)
  seen = np.abs(jacobian[:, :, :, 0]).sum(axis=(1, 2, 4, 5))  # [row row]
  np.testing.assert_array_equal(seen > 0, np.tril(np.ones((5, 5), bool)))


def test_cpc_looks_for_the_patch_rows_below():
  rng = np.random.default_rng(0)
  targets = rng.normal(size=(3, 4, 2, 64)).astype(np.float32)
  predictions = np.zeros_like(targets)
  predictions[:, :2] = targets[:, 2:]
  loss, accuracy = cpc.infonce_below(predictions, targets, 2)
  assert accuracy == 1 and loss < 1e-3
  loss, accuracy = cpc.infonce_below(predictions, targets, 1)
  assert accuracy < 0.3 and loss > 1
  nothing = np.zeros_like(targets)
  loss, _ = cpc.infonce_below(nothing, targets, 1)
  np.testing.assert_allclose(loss, np.log(24), rtol=1e-6)


def test_overlapping_patches_are_the_images():
  x = np.arange(2 * 8 * 7).reshape(2, 8, 7, 1)
  patches = ops.overlapping_patches(jnp.asarray(x), 4, 2)
  assert patches.shape == (2, 3, 2, 4, 4, 1)
  np.testing.assert_array_equal(patches[1, 2, 1], x[1, 4:8, 2:6])


@pytest.mark.slow
def test_layer_norm_keeps_images_apart():
  encoder = resnet.make(variant="6", width=4, stem="cifar", norm="layer")
  x = jnp.asarray(noise(3)[:, 0], jnp.float32)
  variables = encoder.init(RNG, x, train=False)
  assert set(variables) == {"params"}
  whole = encoder.apply(variables, x, train=True)["pooled"]
  alone = encoder.apply(variables, x[1:2], train=True)["pooled"]
  np.testing.assert_allclose(whole[1:2], alone, atol=1e-5)


def test_relative_positions_tell_patches_apart_and_want_their_grid():
  encoder = small_vit(pos="relative", pool="mean", class_token=True)
  x = jnp.asarray(noise(1)[:, 0], jnp.float32)
  variables = jax.jit(lambda x: encoder.init(RNG, x, train=False))(x)
  table = variables["params"]["relative"]["table"]
  assert table.shape == (7 * 7 + 3, 2)
  # The patches in another order; without positions they are a set.
  turned = x.reshape(1, 4, 2, 4, 2, 1)[:, ::-1, :, ::-1].reshape(x.shape)
  apply = jax.jit(lambda v, x: encoder.apply(v, x, train=False)["pooled"])
  np.testing.assert_allclose(
    apply(variables, turned), apply(variables, x), atol=1e-5
  )
  drawn = jax.random.normal(RNG, table.shape)
  variables = {"params": variables["params"] | {"relative": {"table": drawn}}}
  assert np.abs(apply(variables, turned) - apply(variables, x)).max() > 1e-4
  with pytest.raises(errors.UserError, match="2 x 2 patches"):
    encoder.apply(variables, x[:, :4, :4], train=False)


@pytest.mark.parametrize(
  "make, options, message",
  [
    (make_ijepa, dict(predictor_heads=3), "3 heads do not divide"),
    (make_ijepa, dict(max_context=0.05), "max_context=0.05 of 4 x 4"),
    (make_simmim, dict(unit=3), "multiple of the patch"),
    (make_simmim, dict(unit=8), "masks some and keeps some"),
    (make_data2vec, dict(top_k=2), "has 1 blocks"),
    (make_data2vec, dict(masked=16), "hides some and leaves some"),
    (make_aim, dict(top_k=2), "has 1 blocks"),
    (make_cpc, dict(rows=(3,)), "looks further below"),
  ],
)
def test_wrong_options_are_told(make, options, message):
  with pytest.raises(errors.UserError, match=message):
    shared.trace(make(**options), toys.one_view)


def test_encoders_that_do_not_fit_are_told():
  plain = small_vit()
  for make in (simmim.make, data2vec.make):
    with pytest.raises(errors.UserError, match="mask_token=True"):
      make(plain)
  for other in (plain, small_vit(pool="mean", registers=1)):
    with pytest.raises(errors.UserError, match="pool='mean'"):
      ijepa.make(other, total_steps=1)
    with pytest.raises(errors.UserError, match="pool='mean'"):
      aim.make(other)
  relative = small_vit(pos="relative")
  with pytest.raises(errors.UserError, match="takes some away"):
    relative.init(
      RNG, jnp.zeros((1, 8, 8, 1)), train=False, keep=jnp.zeros((1, 2), int)
    )
