"""What the papers say of DINO, iBOT and DINOv2, on small encoders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import masks
from ssljax import optim
from ssljax.methods import dino
from ssljax.methods import dinov2
from ssljax.methods import distillation
from ssljax.methods import ibot
from ssljax.models import resnet
from tests import core_test
from tests import toys

RNG = jax.random.key(3)
K = 16
OPTIONS = dict(
  total_steps=40,
  steps_per_epoch=2,
  out_dim=K,
  hidden_dim=16,
  bottleneck_dim=8,
)


def make_dino(encoder=None, **options):
  return dino.make(encoder or toys.encoder(depth=1), **(OPTIONS | options))


def make_ibot(encoder=None, **options):
  encoder = encoder or toys.encoder(depth=1, mask_token=True)
  return ibot.make(encoder, warmup_teacher_epochs=2, **(OPTIONS | options))


def make_dinov2(encoder=None, **options):
  encoder = encoder or toys.encoder(depth=1, mask_token=True, registers=2)
  options = dict(patch_out_dim=K, patch_bottleneck_dim=8) | options
  return dinov2.make(encoder, warmup_teacher_epochs=2, **(OPTIONS | options))


METHODS = {"dino": make_dino, "ibot": make_ibot, "dinov2": make_dinov2}


def batch_of(step, b=16):
  rng = np.random.default_rng(step)
  return {"image": rng.integers(0, 256, (b, 8, 8, 1), np.uint8)}


def augment(batch, crops=3):
  """Two noisy views, and crops of a quarter of the image."""
  local = toys.augment(batch | {"index": 0})["views"]
  views = toys.augment(batch | {"index": 0})["views"]
  local = jnp.stack([local[:, i % 2, i : i + 4, :4] for i in range(crops)], 1)
  return {"views": views, "local_views": local, "key": batch["key"]}


def train(method, steps, tx=None, b=16, augment=augment):
  tx = tx or optax.sgd(0.01)
  init = jax.jit(
    functools.partial(core.init_state, method, tx, augment=augment)
  )
  states, metrics = [init(RNG, batch_of(0, b))], []
  step = jax.jit(core.make_train_step(method, tx, augment=augment))
  for i in range(steps):
    state, m = step(states[-1], batch_of(i, b), RNG)
    states.append(state)
    metrics.append(m)
  assert step._cache_size() == 1
  return states, metrics


def test_dino_is_the_mean_over_pairs_of_different_views():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4, 5, 3)).astype(np.float32)
  targets = jax.nn.softmax(rng.normal(size=(4, 2, 3)).astype(np.float32))
  log_p = jax.nn.log_softmax(logits / 0.1)
  pairs = [
    -(targets[:, t] * log_p[:, v]).sum(-1).mean()
    for t in range(2)
    for v in range(5)
    if v != t
  ]
  assert len(pairs) == 8
  loss = functools.partial(losses.dino, temperature=0.1)
  got = jax.jit(loss)(logits, targets)
  np.testing.assert_allclose(got, np.mean(pairs), rtol=1e-5)


def test_dino_does_not_teach_its_teacher():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 2, 3)).astype(np.float32)
  loss = lambda t: losses.dino(x, jax.nn.softmax(t), temperature=0.1)
  assert not jax.jit(jax.grad(loss))(x).any()


def test_koleo_pushes_neighbours_apart():
  z = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  closer = z.copy()
  closer[1] = closer[0] + 1e-3
  koleo = jax.jit(losses.koleo)
  assert koleo(closer) > koleo(z) + 0.3
  same = np.ones((4, 3), np.float32)
  value, grad = jax.jit(jax.value_and_grad(losses.koleo))(same)
  assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("name", core_test.rare(METHODS, "ibot"))
def test_the_teacher_moves_by_its_average_alone(name):
  states, metrics = train(METHODS[name](ema=lambda step: 0.9), 2)
  start = states[0].method_state["teacher"]["params"]
  jax.tree.map(np.testing.assert_array_equal, start, states[0].params)
  for before, after in zip(states, states[1:]):
    old = before.method_state["teacher"]["params"]
    want = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, after.params)
    got = after.method_state["teacher"]["params"]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want
    )
  assert all(np.isfinite(m["loss"]) for m in metrics)


@pytest.mark.parametrize("name", core_test.rare(METHODS, "dinov2"))
def test_two_examples_and_no_local_crops_will_do(name):
  _, metrics = train(METHODS[name](), 2, b=2, augment=toys_views)
  assert all(np.isfinite(m["loss"]) for m in metrics)


def toys_views(batch):
  views = toys.augment(batch | {"index": 0})["views"]
  return {"views": views, "key": batch["key"]}


@pytest.mark.slow  # DINO's config of a ResNet has such crops, too
def test_a_resnet_learns_from_crops_of_two_sizes():
  encoder = resnet.make(variant="6", width=4, stem="cifar")
  states, metrics = train(make_dino(encoder, head_norm=True), 2)
  assert np.isfinite(metrics[-1]["loss"])
  teacher = states[-1].method_state["teacher"]["batch_stats"]
  student = states[-1].method_state["batch_stats"]
  # The student's statistics are of local crops, too.
  assert jax.tree.structure(teacher) == jax.tree.structure(student)
  mean = lambda stats: stats["encoder"]["bn1"]["mean"]
  assert not np.allclose(mean(teacher), mean(student))


def test_prototypes_are_frozen_and_then_learn():
  part = dict(match="prototypes", steps=2)
  tx = optim.make(name="adamw", learning_rate=1e-2, freeze=(part,))
  states, _ = train(make_dino(toys.Layer()), 3, tx, augment=toys_views)
  at = lambda i: states[i].params["head"]["prototypes"]["direction"]
  assert (at(0) == at(2)).all() and (at(3) != at(2)).any()
  mlp = lambda i: states[i].params["head"]["mlp"]["dense0"]["kernel"]
  assert (mlp(1) != mlp(0)).any()


def test_moments_may_be_gathered_by_what_is_frozen():
  rng = np.random.default_rng(0)
  grads = rng.normal(size=(4, 3)).astype(np.float32)
  rate = lambda step: jnp.where(step < 2, 0.0, 0.1)

  def last(learning_rate, **options):
    tx = optim.make(name="adamw", learning_rate=learning_rate, **options)
    params = {"head": jnp.ones(3)}
    state = tx.init(params)
    for g in grads:
      updates, state = tx.update({"head": g}, state, params)
      params = optax.apply_updates(params, updates)
    return params["head"]

  part = dict(match="head", steps=2)
  gathered = last(0.1, freeze=(part | {"moments": True},))
  np.testing.assert_allclose(gathered, last(rate), rtol=1e-6)
  assert not np.allclose(gathered, last(0.1, freeze=(part,)))


def test_temperatures_warm_up_by_epoch_or_by_step():
  options = dict(steps_per_epoch=4)
  warm_up = functools.partial(distillation.warm_up, 0.04, 0.07, **options)
  by_epoch = warm_up(3, by_epoch=True)
  got = [float(by_epoch(jnp.int32(s))) for s in (0, 3, 4, 8, 100)]
  np.testing.assert_allclose(got, [0.04, 0.04, 0.055, 0.07, 0.07], rtol=1e-6)
  by_step = warm_up(1.25, by_epoch=False)
  got = [float(by_step(jnp.int32(s))) for s in range(7)]
  want = [*np.linspace(0.04, 0.07, 5), 0.07, 0.07]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  none = warm_up(0, by_epoch=True)
  np.testing.assert_allclose(none(jnp.int32(0)), 0.07, rtol=1e-6)


def test_the_centre_keeps_the_teacher_from_one_prototype():
  """Given a teacher that prefers one, centred targets soon do not."""
  method = toys.compiled(make_dino(centre_ema=0.5))
  params, kept = method.init(RNG, toys_views(with_keys(batch_of(0))))
  w = params["head"]["prototypes"]["direction"]
  one = w[:, 0] / jnp.linalg.norm(w[:, 0])
  z = jnp.broadcast_to(one, (8, 2, 8))
  metrics = []
  for _ in range(12):
    features = {"student": z, "teacher": z}
    _, (kept, m) = method.objective(params, kept, features, step=0)
    metrics.append(m["usage_entropy"])
  assert metrics[0] < 0.5 < 0.9 * np.log(K) < metrics[-1]


def test_masks_are_of_about_half_of_the_crops():
  keys = jax.random.split(RNG, 400)
  options = dict(probability=0.5, ratio=(0.1, 0.5), min_block=4)
  draw = lambda keys: distillation.draw_masks(keys, 2, (7, 7), **options)
  mask = jax.jit(draw)(keys)
  assert mask.shape == (400, 2, 49)
  counts = np.asarray(mask.sum(-1)).ravel()
  masked = counts[counts > 0]
  assert 0.43 < len(masked) / 800 < 0.57
  assert masked.min() >= 4 and masked.max() <= 24
  assert 0.25 < masked.mean() / 49 < 0.33


def test_masked_places_are_those_of_the_mask():
  mask = np.zeros((2, 9), bool)
  mask[0, [2, 5, 8]] = True
  places, present = masks.places_of(jnp.asarray(mask), 4)
  np.testing.assert_array_equal(places[0, :3], [2, 5, 8])
  np.testing.assert_array_equal(present, [[1, 1, 1, 0], [0, 0, 0, 0]])
  loss = jnp.asarray([[3.0, 6.0, 9.0, np.nan], [np.nan] * 4])
  # A crop without masked patches counts as 0.
  got = distillation.mean_of_masked(loss, present)
  np.testing.assert_allclose(got, 3.0)


@pytest.mark.parametrize("centring", ["sinkhorn", "mean"])
def test_without_masks_there_is_no_loss_of_patches(centring):
  rng = np.random.default_rng(0)
  method = toys.compiled(make_dinov2(centring=centring))
  batch = with_keys(batch_of(0, 2))
  params, state = method.init(RNG, toys_views(batch))
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  features = {
    "student": draw(4, 3, 8),
    "student_patch": draw(4, 2, 5, 8),
    "class_token": draw(4, 2, 32),
    "teacher": draw(4, 2, 8),
    "teacher_patch": draw(4, 2, 5, 8),
  }
  for masked in (False, True):
    features["masked"] = jnp.full((4, 2, 5), masked)
    _, (new, metrics) = method.objective(params, state, features, step=0)
    assert np.isfinite(metrics["class_loss"])
    assert (metrics["patch_loss"] > 0) == masked
    if centring == "mean":
      assert new["patch_centre"].any() == masked


def with_keys(batch):
  return batch | {"key": jax.random.split(RNG, len(batch["image"]))}


def test_sinkhorn_uses_all_prototypes_alike():
  method = toys.compiled(make_dinov2())
  batch = jax.jit(augment)(with_keys(batch_of(0)))
  params, state = method.init(RNG, batch)
  features, state = method.forward(params, state, batch, step=0, train=True)
  _, (_, metrics) = method.objective(params, state, features, step=0)
  np.testing.assert_allclose(metrics["usage_entropy"], np.log(K), rtol=0.01)


def test_unknown_centring_is_refused():
  with pytest.raises(errors.UserError, match="sinkhorn or mean"):
    make_dinov2(centring="none")


@pytest.mark.parametrize("make", [make_ibot, make_dinov2])
def test_an_encoder_without_mask_token_is_refused(make):
  for encoder in (toys.encoder(depth=1), toys.Layer()):
    with pytest.raises(errors.UserError, match="mask_token=True"):
      make(encoder)


@pytest.mark.parametrize("groups", [3, 8])
def test_koleo_needs_groups_with_neighbours(groups):
  with pytest.raises(errors.UserError, match=f"groups={groups}.*batch of 8"):
    train(make_dinov2(koleo_groups=groups), 1, b=8)


def test_a_teacher_drops_nothing():
  encoder = toys.encoder(drop_path=0.5)
  assert distillation.teacher_of(encoder).drop_path == 0.0
  assert encoder.drop_path == 0.5


def test_koleo_is_the_mean_over_groups_and_the_sum_over_crops():
  z = jax.random.normal(RNG, (8, 2, 4))
  parts = [
    losses.koleo(z[group::2, crop]) for group in (0, 1) for crop in (0, 1)
  ]
  np.testing.assert_allclose(
    dinov2._koleo(z, 2), np.sum(parts) / 2, rtol=1e-5
  )


def test_the_teacher_is_what_is_evaluated():
  method = toys.compiled(make_dino())
  batch = toys_views(with_keys(batch_of(0)))
  params, state = method.init(RNG, batch)
  got = method.embed(params, state, batch)["pooled"]
  assert got.any()
  zeros = jax.tree.map(jnp.zeros_like, params)
  same = method.embed(zeros, state, batch)["pooled"]
  np.testing.assert_array_equal(got, same)


@pytest.mark.parametrize(
  "name", core_test.rare(METHODS, "ibot", "dinov2")
)
def test_any_spread_gives_the_same_steps(name):
  make = {
    "dino": lambda axis_name: make_dino(
      toys.Layer(axis_name=axis_name), head_norm=True
    ),
    "ibot": lambda axis_name: make_ibot(),
    "dinov2": lambda axis_name: make_dinov2(),
  }[name]
  one = lambda step: core_test.under_jit(step, 1)
  options = dict(steps=2, start=core_test.init(make(None)))
  expected, state = core_test.run(make(None), one, **options)
  # Batch norm may not see microbatches.
  ways = ["shard_map8", "jit8" if name == "dino" else "jit8_accumulate4"]
  for way in ways:
    wrap, axis_name, accumulate = core_test.WAYS[way]
    got, other = core_test.run(
      make(axis_name),
      wrap,
      axis_name=axis_name,
      accumulate=accumulate,
      **options,
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, err_msg=way)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3),
      other.method_state["teacher"],
      state.method_state["teacher"],
    )


@pytest.mark.parametrize("ratio", [(0.0, 0.05), (0.5, 0.1)])
def test_masks_hide_a_patch_or_more(ratio):
  assert distillation.most_masked((0.1, 0.5), (4, 4)) == 8
  with pytest.raises(errors.UserError, match="the least and the most"):
    distillation.most_masked(ratio, (4, 4))
