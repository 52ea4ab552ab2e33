"""What the papers say of their methods, on small encoders."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import config as config_lib
from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import ops
from ssljax import run as run_lib
from ssljax.methods import byol
from ssljax.methods import mae
from ssljax.methods import moco
from ssljax.methods import mocov2plus
from ssljax.methods import mocov3
from ssljax.methods import simclr
from ssljax.methods import simsiam
from ssljax.models import resnet
from tests import toys

RNG = jax.random.key(3)


def batch_of(step, b=16):
  rng = np.random.default_rng(step)
  return {
    "image": rng.integers(0, 256, (b, 8, 8, 1), np.uint8),
    "index": np.arange(b, dtype=np.int32),
  }


def train(method, steps, tx=None, augment=toys.augment):
  """The states before the first and after each step, and the metrics."""
  tx = tx or optax.sgd(0.1)
  states = [toys.init_state(method, tx, RNG, batch_of(0), augment=augment)]
  step = jax.jit(core.make_train_step(method, tx, augment=augment))
  metrics = []
  for i in range(steps):
    state, m = step(states[-1], batch_of(i), RNG)
    states.append(state)
    metrics.append(m)
  return states, metrics


def trace(method, augment=toys.augment):
  return toys.trace(method, optax.sgd(0.1), RNG, batch_of(0), augment=augment)


@pytest.mark.parametrize(
  "name,takes",
  [(name, "1 view") for name in "mae simmim aim ijepa data2vec".split()]
  + [(name, "1 view") for name in "cpc rotation deepcluster".split()]
  + [(name, "2 views") for name in "dcl nnclr byol vicreg".split()],
)
def test_views_that_nobody_would_see_are_refused(name, takes):
  masked = name in ("mae", "simmim", "aim", "ijepa", "data2vec")
  kind = "vit" if masked else "resnet18"
  path = f"configs/{name}_{kind}_fashion_mnist.py:quick"
  flags = ["--config.mesh.data=1", "--config.augment.views=3"]
  with pytest.raises(errors.UserError, match=f"takes {takes}, .* gives 3"):
    run_lib.build(config_lib.load(path, flags))


class _Normed(nn.Module):
  """An encoder with batch norm that cannot be told of groups."""

  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train, keep=None, key=None):
    h = nn.Dense(8)(x.reshape(len(x), -1))
    h = nn.BatchNorm(use_running_average=not train)(h)
    return {"pooled": h, "tokens": h[:, None]}


def test_moco_refuses_batch_norm_that_it_cannot_shuffle():
  with pytest.raises(errors.UserError, match="_Normed .* no field bn_groups"):
    trace(moco.make(_Normed(), queue_size=32, out_dim=8, bn_groups=8))
  trace(moco.make(_Normed(), queue_size=32, out_dim=8, bn_groups=1))


def test_moco_has_groups_of_its_own():
  encoder = resnet.make(variant="18", width=8, bn_groups=4)
  with pytest.raises(errors.UserError, match="bn_groups=4: moco has method"):
    moco.make(encoder)


def test_a_raw_key_is_told():
  step = core.make_train_step(simclr.make(toys.Layer()), optax.sgd(0.1))
  state = jax.eval_shape(
    lambda key: core.init_state(
      simclr.make(toys.Layer()), optax.sgd(0.1), key, batch_of(0),
      augment=toys.augment,
    ),
    RNG,
  )  # fmt: skip
  with pytest.raises(ValueError, match="typed key, jax.random.key"):
    jax.eval_shape(step, state, batch_of(0), jax.random.PRNGKey(0))


def assert_trees_close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


def test_moco_enqueues_keys_after_the_logits_and_moves_the_teacher():
  method = moco.make(toys.Layer(), queue_size=32, out_dim=8, ema=0.9)
  states, metrics = train(method, 3)
  first = states[0].method_state
  np.testing.assert_allclose(
    np.linalg.norm(first["queue"], axis=1), 1.0, rtol=1e-5
  )
  assert_trees_close(first["teacher"]["params"], states[0].params)
  places = [int(s.method_state["place"]) for s in states]
  assert places == [0, 16, 0, 16]
  changed = states[1].method_state["queue"] != first["queue"]
  assert changed[:16].any(axis=1).all() and not changed[16:].any()
  # Random negatives, nothing learned: about the log of their number and one.
  assert abs(float(metrics[0]["loss"]) - np.log(33)) < 8
  for before, after in zip(states, states[1:]):
    expected = ops.ema(
      before.method_state["teacher"]["params"], after.params, 0.9
    )
    assert_trees_close(after.method_state["teacher"]["params"], expected)


def test_mocov2pluss_teacher_starts_as_the_student():
  method = mocov2plus.make(
    toys.Layer(), total_steps=4, hidden_dim=16, out_dim=8, queue_size=32
  )
  (state,), _ = train(method, 0)
  assert_trees_close(state.method_state["teacher"]["params"], state.params)


def test_simclrs_loss_is_of_both_directions_and_its_head_starts_small():
  method = simclr.make(toys.Layer(), out_dim=64, hidden_dim=64)
  (state,), _ = train(method, 0)
  kernel = state.params["projector"]["dense0"]["kernel"]
  assert 0.008 < kernel.std() < 0.012  # `model_util.py`
  z = jax.random.normal(RNG, (8, 2, 4))
  loss, (_, metrics) = method.objective({}, {}, {"z": z}, step=0)
  once = losses.ntxent(z[:, 0], z[:, 1], temperature=0.1)
  np.testing.assert_allclose(loss, 2 * once, rtol=1e-6)
  assert metrics["contrast_accuracy"] < 1
  same = jnp.stack([z[:, 0]] * 2, axis=1)
  _, (_, metrics) = method.objective({}, {}, {"z": same}, step=0)
  assert metrics["contrast_accuracy"] == 1


def test_simclrs_views_are_two_or_more():
  method = simclr.make(toys.Layer(), out_dim=8, hidden_dim=16)
  z = jax.random.normal(RNG, (8, 4, 8))
  loss, _ = method.objective({}, {}, {"z": z}, step=0)
  alone = jnp.full(8, -1)  # every image of a class of its own
  options = dict(temperature=0.1, base_temperature=0.1)
  expected = 2 * losses.supcon(z, alone, **options)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  views = jax.random.normal(RNG, (6, 2, 8, 8, 1))
  twice = jnp.concatenate([views, views], axis=1)
  batch = {"views": twice, "key": jax.random.split(RNG, 6)}
  compiled = toys.compiled(method)
  params, state = compiled.init(RNG, batch)
  z = compiled.forward(params, state, batch, step=0, train=True)[0]["z"]
  assert z.shape == (6, 4, 8) and (z[:, 0] != z[:, 1]).any()
  np.testing.assert_allclose(z[:, 2:], z[:, :2], rtol=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_views_are_dropped_apart(count):
  vit = toys.encoder(drop_path=0.5)
  method = toys.compiled(simclr.make(vit, head_norm=False, out_dim=8))
  views = jnp.stack([jax.random.normal(RNG, (6, 8, 8, 1))] * count, axis=1)
  batch = {"views": views, "key": jax.random.split(RNG, 6)}
  params, state = method.init(RNG, batch)
  z = method.forward(params, state, batch, step=0, train=True)[0]["z"]
  for i in range(1, count):
    assert (z[:, 0] != z[:, i]).any()
  z = method.forward(params, state, batch, step=0, train=False)[0]["z"]
  for i in range(1, count):
    np.testing.assert_allclose(z[:, 0], z[:, i], atol=1e-5)


def test_mocos_heads_start_as_torchs():
  makes = (
    lambda encoder: moco.make(encoder, queue_size=32, out_dim=64),
    lambda encoder: mocov3.make(
      encoder, total_steps=8, hidden_dim=64, out_dim=64
    ),
  )
  for make in makes:
    method = make(toys.Layer())
    batch = toys.augment(batch_of(0) | {"key": jax.random.split(RNG, 16)})
    params, _ = jax.jit(method.init)(RNG, batch)
    for head in set(params) - {"encoder"}:
      for layer in params[head].values():
        if "kernel" in layer:
          kernel = np.asarray(layer["kernel"])
          bound = 1 / np.sqrt(len(kernel))
          assert 0.9 * bound < np.abs(kernel).max() <= bound


def test_moco_shuffles_statistics():
  """Keys are normalised in other parts than queries, and neither by all."""
  encoder = resnet.make(variant="6", width=4, stem="cifar")
  views = np.random.default_rng(0).normal(size=(16, 1, 8, 8, 1))
  batch = {  # both views the same
    "views": np.repeat(views, 2, axis=1).astype(np.float32),
    "key": jax.random.split(RNG, 16),
  }

  def features(groups):
    method = toys.compiled(
      moco.make(encoder, queue_size=32, out_dim=8, bn_groups=groups)
    )
    params, state = method.init(RNG, batch)
    return method.forward(params, state, batch, step=0, train=True)[0]

  one, four = features(1), features(4)
  np.testing.assert_allclose(one["query"], one["key"], atol=1e-5)
  assert np.abs(four["query"] - four["key"]).max() > 1e-2
  assert np.abs(four["query"] - one["query"]).max() > 1e-2


def test_mocov3_teacher_has_no_predictor_and_follows_the_schedule():
  method = mocov3.make(
    toys.Layer(), total_steps=4, out_dim=8, hidden_dim=16, ema=0.5
  )
  states, _ = train(method, 4)
  start = states[0].method_state["teacher"]["params"]
  assert_trees_close(start, {name: states[0].params[name] for name in start})
  for i, (before, after) in enumerate(zip(states, states[1:])):
    old = before.method_state["teacher"]["params"]
    assert "predictor" not in old
    m = 1 - 0.5 * 0.5 * (1 + np.cos(np.pi * (i + 1) / 4))
    new = {name: after.params[name] for name in old}
    assert_trees_close(
      after.method_state["teacher"]["params"], ops.ema(old, new, m)
    )


def test_byols_target_starts_apart_and_moves_by_ema_alone():
  method = byol.make(
    toys.Layer(), total_steps=4, out_dim=8, hidden_dim=16, ema=0.5
  )
  states, metrics = train(method, 4)
  first = states[0]
  start = first.method_state["teacher"]["params"]
  assert set(start) == {"encoder", "projector"}
  for part in start:
    a, b = (
      np.concatenate([x.ravel() for x in jax.tree.leaves(tree[part])])
      for tree in (start, first.params)
    )
    drawn = (a != 0) & (a != 1)  # not offsets and scales
    assert drawn.any() and (a[drawn] != b[drawn]).all()
  for i, (before, after) in enumerate(zip(states, states[1:])):
    old = before.method_state["teacher"]["params"]
    m = 1 - 0.5 * 0.5 * (1 + np.cos(np.pi * i / 4))
    new = {name: after.params[name] for name in old}
    assert_trees_close(
      after.method_state["teacher"]["params"], ops.ema(old, new, m)
    )
  # Each network has statistics of its own, and both are of the batch.
  last = states[-1].method_state
  mean = lambda stats: stats["projector"]["bn0"]["mean"]
  online, target = (
    mean(last["batch_stats"]),
    mean(last["teacher"]["batch_stats"]),
  )
  assert np.abs(target).min() > 0 and np.abs(online - target).min() > 0
  # Two cosines of networks that know nothing of each other.
  assert 0 < metrics[0]["loss"] < 8


def test_simsiams_targets_carry_no_gradient():
  method = toys.compiled(
    simsiam.make(toys.Layer(), out_dim=16, predictor_dim=8)
  )
  views = np.random.default_rng(0).normal(size=(8, 2, 8, 8, 1))
  batch = {
    "views": views.astype(np.float32),
    "key": jax.random.split(RNG, 8),
  }
  params, state = method.init(RNG, batch)

  def of(params, part):
    out, _ = method.forward(params, state, batch, step=0, train=True)
    return sum(jnp.sum(out[f"{part}{i}"] ** 3) for i in (1, 2))

  for part, carries in (("target", False), ("prediction", True)):
    grads = jax.jit(jax.grad(of), static_argnums=1)(params, part)
    for name in ("encoder", "projector"):
      leaves = jax.tree.leaves(grads[name])
      assert any(np.any(g) for g in leaves) == carries, (part, name)
  # Targets are the standardised projections, without scale and offset.
  out, _ = method.forward(params, state, batch, step=0, train=True)
  np.testing.assert_allclose(out["target1"].mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(out["target1"].std(axis=0), 1, atol=1e-3)
  # As torch's layers: [16 8], uniform within 1 / sqrt(16).
  kernel = np.abs(params["predictor"]["dense0"]["kernel"])
  assert 0.2 < kernel.max() <= 0.25 and 0.1 < kernel.mean() < 0.15


def test_mae_sees_nothing_of_what_is_masked():
  method = mae.make(
    toys.encoder(), decoder_dim=16, decoder_depth=1, decoder_heads=2
  )
  views = np.random.default_rng(0).normal(size=(4, 1, 8, 8, 1))
  batch = {
    "views": views.astype(np.float32),
    "key": jax.random.split(RNG, 4),
  }
  params, state = jax.jit(method.init)(RNG, batch)
  show = jax.jit(method.show["reconstruction"])
  shown = show(params, state, batch)
  hidden = np.asarray(shown["masked"] == 0) & np.asarray(shown["input"] != 0)
  np.testing.assert_allclose(hidden.mean(), 0.75)
  seen = ~hidden
  np.testing.assert_allclose(shown["masked"][seen], shown["input"][seen])
  both = np.asarray(shown["reconstruction + visible"])
  np.testing.assert_allclose(both[seen], shown["input"][seen])
  # Other pixels under the mask, with the same mean and variance of each patch,
  # give the same prediction.
  patches = ops.patchify(batch["views"][:, 0], 2)
  other = ops.unpatchify(patches[..., ::-1], 2, (8, 8))
  other = jnp.where(hidden, other, batch["views"][:, 0])
  again = show(params, state, batch | {"views": other[:, None]})
  np.testing.assert_allclose(
    again["reconstruction"], shown["reconstruction"], atol=1e-5
  )


@pytest.mark.parametrize("ratio", [0.0, 0.99])
def test_mae_masks_some_and_keeps_some(ratio):
  method = mae.make(toys.encoder(), mask_ratio=ratio, decoder_heads=2)
  with pytest.raises(errors.UserError, match="keeps some and removes some"):
    trace(method, toys.one_view)
