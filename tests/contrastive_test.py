"""What the papers say of NNCLR, MoCo v2+, DCL, W-MSE, LeJEPA, SupCon, RotNet
and of supervised learning, on small encoders; and who sees labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import config as config_lib
from ssljax import core
from ssljax import errors
from ssljax import held_out
from ssljax import losses
from ssljax import ops
from ssljax import optim
from ssljax import run as run_lib
from ssljax.data import sources
from ssljax.methods import dcl
from ssljax.methods import deepcluster
from ssljax.methods import lejepa
from ssljax.methods import mocov2plus
from ssljax.methods import nnclr
from ssljax.methods import rotation
from ssljax.methods import supcon
from ssljax.methods import supervised
from ssljax.methods import wmse
from tests import core_test
from tests import toys

RNG = jax.random.key(5)


def views_of(step, b=16, v=2):
  """Views of patterns that repeat: [b v 8 8 1]."""
  rng = np.random.default_rng(step)
  one = np.random.default_rng(0).normal(size=(8, 1, 8, 8, 1))
  index = rng.integers(0, 8, b)
  noise = 0.3 * rng.normal(size=(b, v, 8, 8, 1))
  return {
    "views": (one[index] + noise).astype(np.float32),
    "label": (index % 4).astype(np.int32),
  }


def train(method, steps, tx=None, **batch):
  """The states before the first and after each step, and the metrics."""
  tx = tx or optax.sgd(0.1)
  states = [toys.init_state(method, tx, RNG, views_of(0, **batch))]
  step = jax.jit(core.make_train_step(method, tx))
  metrics = []
  for i in range(steps):
    state, m = step(states[-1], views_of(i, **batch), RNG)
    states.append(state)
    metrics.append(m)
  return states, metrics


def features_of(method, batch):
  batch = batch | {"key": jax.random.split(RNG, len(batch["views"]))}
  method = toys.compiled(method)
  params, state = method.init(RNG, batch)
  features, _ = method.forward(params, state, batch, step=0, train=True)
  return params, state, features


def test_nnclrs_positive_is_the_nearest_of_earlier_batches():
  method = nnclr.make(
    toys.Layer(), queue_size=48, hidden_dim=16, out_dim=8, predictor_dim=16
  )
  states, metrics = train(method, 4)
  queues = [s.method_state["queue"] for s in states]
  np.testing.assert_allclose(np.linalg.norm(queues[0], axis=1), 1, rtol=1e-5)
  changed = [(a != b).any(axis=1) for a, b in zip(queues, queues[1:])]
  # Sixteen rows a step, the oldest, and the ring begins anew.
  for i, rows in enumerate(changed):
    expected = np.zeros(48, bool)
    expected[16 * (i % 3) : 16 * (i % 3 + 1)] = True
    np.testing.assert_array_equal(rows, expected)
  # What a batch looks for is found once the queue holds such.
  similarity = [float(m["neighbour_similarity"]) for m in metrics]
  assert min(similarity[2:]) > max(similarity[:2]) + 0.05, similarity


def test_nnclr_sends_gradients_through_predictions_alone():
  method = nnclr.make(
    toys.Layer(), queue_size=16, hidden_dim=16, out_dim=8, predictor_dim=16
  )
  params, state, features = features_of(method, views_of(0))
  value = jax.jit(lambda f: method.objective(params, state, f, step=0)[0])
  grads = jax.jit(jax.grad(value))(features)
  for i in (1, 2):
    assert np.any(grads[f"prediction{i}"])
    assert not np.any(grads[f"projection{i}"])
  # Nothing but the neighbours is the target: other projections with the same
  # neighbours give the same loss.
  row = state["queue"][
    jnp.argmax(features["projection1"] @ state["queue"].T, 1)
  ]
  np.testing.assert_allclose(
    value(features | {"projection1": row}), value(features), rtol=1e-6
  )


def test_mocov2plus_is_symmetric_and_its_momentum_ends_below_one():
  make = lambda: mocov2plus.make(
    toys.Layer(),
    total_steps=4,
    hidden_dim=16,
    out_dim=8,
    queue_size=32,
    ema=0.5,
    ema_end=0.9,
  )
  states, _ = train(make(), 4)
  for i, (before, after) in enumerate(zip(states, states[1:])):
    m = 0.9 - 0.4 * (1 + np.cos(np.pi * i / 4)) / 2
    old = before.method_state["teacher"]["params"]
    want = ops.ema(old, after.params, m)
    got = after.method_state["teacher"]["params"]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), got, want
    )
  assert states[0].method_state["queues"].shape == (2, 32, 8)
  # The views exchanged, and their queues, give the same loss.
  method = toys.compiled(make())
  params, state, f = features_of(method, views_of(0))
  other = {
    f"{part}{i}": f[f"{part}{3 - i}"]
    for part in ("query", "key")
    for i in (1, 2)
  }
  swapped = state | {"queues": state["queues"][::-1]}
  np.testing.assert_allclose(
    method.objective(params, swapped, other, step=0)[0],
    method.objective(params, state, f, step=0)[0],
    rtol=1e-6,
  )


def test_dcl_has_no_positive_in_its_denominator():
  rng = np.random.default_rng(0)
  z1, z2 = rng.normal(size=(2, 12, 8))
  unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)
  a, b = unit(z1), unit(z2)
  apart = ~np.eye(12, dtype=bool)
  total = (np.exp(a @ a.T / 0.2) * apart).sum(1)
  total += (np.exp(a @ b.T / 0.2) * apart).sum(1)
  positive = (a * b).sum(1)
  want = np.mean(np.log(total) - positive / 0.2)
  np.testing.assert_allclose(losses.dcl(z1, z2, temperature=0.2), want, 1e-5)
  weights = 2 - 12 * np.exp(positive / 0.5) / np.exp(positive / 0.5).sum()
  want = np.mean(np.log(total) - weights * positive / 0.2)
  got = losses.dcl(z1, z2, temperature=0.2, sigma=0.5)
  np.testing.assert_allclose(got, want, 1e-5)
  # The pull of a positive that is found already does not fade (section 3), as
  # NT-Xent's does.
  one = jnp.eye(8)
  other = one + 0.3 * jnp.roll(one, 1, axis=1)
  pull = lambda loss: np.linalg.norm(
    jax.jit(jax.grad(lambda z: loss(z, other, temperature=0.05)))(one)
  )
  assert pull(losses.dcl) > 10 * pull(losses.ntxent)


def test_dcl_is_finite_for_two_examples_and_small_temperatures():
  z = jnp.float32(np.random.default_rng(0).normal(size=(2, 2, 4)))
  for sigma in (None, 0.5):
    loss = lambda z, s=sigma: losses.dcl(*z, temperature=0.01, sigma=s)
    value, grad = jax.jit(jax.value_and_grad(loss))(z)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_whitening_gives_the_identity():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(64, 6)) @ rng.normal(size=(6, 6)) + 3
  w = np.asarray(ops.whiten(jnp.float32(x)))
  np.testing.assert_allclose(w.mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(np.cov(w.T), np.eye(6), atol=1e-4)
  # The lower factor: the first column of the result is the first of x, scaled.
  np.testing.assert_allclose(
    w[:, 0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std(ddof=1), atol=1e-4
  )


def test_wmse_whitens_alike_in_all_views_and_anew_each_time():
  method = toys.compiled(
    wmse.make(toys.Layer(), hidden_dim=16, out_dim=4, whitening_size=8)
  )
  batch = views_of(0)
  batch["views"][:, 1] = batch["views"][:, 0]
  params, state, features = features_of(method, batch)
  value = lambda f: float(method.objective(params, state, f, step=0)[0])
  # Views that are the same stay so, however they are cut.
  np.testing.assert_allclose(value(features), 0, atol=1e-4)
  noise = features["noise"]
  assert noise.shape == (16, 1) and len(np.unique(noise)) == 16
  z = jnp.float32(np.random.default_rng(1).normal(size=(16, 2, 4)))
  cuts = {
    value({"z": z, "noise": jnp.roll(noise, i, axis=0)}) for i in range(4)
  }
  assert len(cuts) > 1
  # The same examples together: the order within does not matter.
  order = jnp.argsort(noise[:, 0])
  moved = {"z": z[order], "noise": jnp.arange(16)[:, None]}
  np.testing.assert_allclose(
    value(moved), value({"z": z, "noise": noise}), rtol=1e-4
  )


def test_wmse_refuses_parts_that_cannot_be_whitened():
  with pytest.raises(errors.UserError, match="must be more than"):
    wmse.make(toys.Layer(), out_dim=8, whitening_size=8)
  method = wmse.make(toys.Layer(), hidden_dim=16, out_dim=4, whitening_size=6)
  with pytest.raises(errors.UserError, match="does not divide the batch"):
    toys.trace(method, optax.sgd(0.1), RNG, views_of(0))


def test_sigreg_is_small_for_gaussians_alone():
  rng = np.random.default_rng(0)
  a = jax.jit(lambda seed: lejepa.directions(seed, 8, 64))(jnp.uint32(3))
  np.testing.assert_allclose(np.linalg.norm(a, axis=0), 1, rtol=1e-5)
  normal = rng.normal(size=(512, 8)).astype(np.float32)
  others = {
    "collapsed": 0 * normal,
    "wide": 3 * normal,
    "shifted": normal + 1,
    "flat": normal * (np.arange(8) < 4),
    "discrete": np.sign(normal),
  }
  sigreg = jax.jit(losses.sigreg)
  least = float(sigreg(normal, a))
  assert least < 2
  for name, z in others.items():
    assert sigreg(z, a) > 1.5 * least, name
  # n times a distance: twice as many of the same are twice as far.
  twice = np.concatenate([others["wide"]] * 2)
  np.testing.assert_allclose(
    sigreg(twice, a), 2 * sigreg(others["wide"], a), rtol=1e-4
  )


def test_lejepa_takes_local_views_and_centres_on_global_ones():
  method = toys.compiled(
    lejepa.make(toys.Layer(), slices=16, features=(16, 4), weight=0.0)
  )
  batch = views_of(0)
  local = {"local_views": views_of(1, v=3)["views"]}
  params, state, features = features_of(method, batch | local)
  assert features["global"].shape == (16, 2, 4)
  assert features["local"].shape == (16, 3, 4)
  z = np.concatenate([features["global"], features["local"]], axis=1)
  centre = np.asarray(features["global"]).mean(axis=1, keepdims=True)
  loss, (_, metrics) = method.objective(params, state, features, step=0)
  np.testing.assert_allclose(loss, np.square(z - centre).mean(), rtol=1e-5)
  assert metrics["sigreg_loss"] > 0


def test_lejepa_draws_other_directions_each_step_for_all_views_the_same():
  method = toys.compiled(
    lejepa.make(toys.Layer(), slices=16, features=(16, 4), weight=1.0)
  )
  params, state, features = features_of(method, views_of(0))
  value = lambda f: float(method.objective(params, state, f, step=0)[0])
  first = value(features)
  # The first example's seed is the batch's.
  seed = features["seed"]
  assert value(features | {"seed": seed.at[1:].add(1)}) == first
  assert value(features | {"seed": seed.at[0].add(1)}) != first
  swapped = features | {"global": features["global"][:, ::-1]}
  np.testing.assert_allclose(value(swapped), first, rtol=1e-5)


def test_lejepa_does_not_collapse_without_a_teacher():
  method = lejepa.make(toys.Layer(), slices=64, features=(32, 4), weight=0.1)
  states, metrics = train(method, 60, optax.adam(3e-3), b=64)
  assert metrics[-1]["sigreg_loss"] < metrics[0]["sigreg_loss"] / 2
  params, state = states[-1].params, states[-1].method_state
  batch = views_of(99, b=64) | {"key": jax.random.split(RNG, 64)}
  forward = toys.compiled(method).forward
  z, _ = forward(params, state, batch, step=0, train=False)
  assert np.asarray(z["global"]).std(axis=(0, 1)).min() > 0.3


def test_supcon_is_simclr_where_every_label_is_another():
  z = jnp.float32(np.random.default_rng(0).normal(size=(12, 2, 8)))
  ntxent = losses.ntxent(z[:, 0], z[:, 1], temperature=0.2)
  options = dict(temperature=0.2, base_temperature=0.2)
  loss = jax.jit(lambda z, label: losses.supcon(z, label, **options))
  own = loss(z, jnp.arange(12))
  unknown = loss(z, jnp.full(12, -1))
  np.testing.assert_allclose([own, unknown], ntxent, rtol=1e-6)
  half = jnp.where(jnp.arange(12) < 6, 0, -1)
  assert abs(loss(z, half) - ntxent) > 1e-3


def test_supcon_wants_labels():
  batch = views_of(0)
  del batch["label"]
  with pytest.raises(errors.UserError, match=r"data\.labels=True"):
    core.init_state(supcon.make(toys.Layer()), optax.sgd(0.1), RNG, batch)
  with pytest.raises(errors.UserError, match=r"data\.labels=True"):
    supervised.make(toys.Layer(), num_classes=None)


@pytest.mark.parametrize("method", ["supervised", "supcon"])
def test_what_has_labels_learns_them(method):
  if method == "supervised":
    method, name = (
      supervised.make(toys.Layer(), num_classes=4),
      "train_accuracy",
    )
    views = 1
  else:
    method, name = supcon.make(toys.Layer(), out_dim=8), "neighbour_accuracy"
    views = 2
  _, metrics = train(method, 40, b=32, v=views)
  assert metrics[-1][name] > 0.9 > metrics[0][name] - 0.1
  assert metrics[-1]["loss"] < metrics[0]["loss"] / 1.2


def test_supervised_leaves_unknown_labels_out():
  method = toys.compiled(supervised.make(toys.Layer(), num_classes=4))
  batch = views_of(0, v=1)
  params, state, all_known = features_of(method, batch)
  unknown = batch["label"].copy()
  unknown[8:] = -1
  batch = batch | {"key": jax.random.split(RNG, 16)}
  forward = lambda label: method.forward(
    params, state, batch | {"label": label}, step=0, train=True
  )[0]
  features = forward(unknown)
  loss = method.objective(params, state, features, step=0)[0]
  np.testing.assert_allclose(loss, all_known["sum"][:8].mean(), rtol=1e-5)
  none = forward(np.full(16, -1, np.int32))
  assert method.objective(params, state, none, step=0)[0] == 0


def test_supervised_takes_the_mean_over_views():
  method = toys.compiled(supervised.make(toys.Layer(), num_classes=4))
  batches = [views_of(seed, v=1) for seed in (0, 1)]
  batches[1]["label"] = batches[0]["label"]
  views = np.concatenate([b["views"] for b in batches], axis=1)
  sums = [
    features_of(method, b)[2]["sum"]
    for b in (*batches, batches[0] | {"views": views})
  ]
  np.testing.assert_allclose(sums[2], (sums[0] + sums[1]) / 2, rtol=1e-5)


def test_dcls_scale_is_of_its_loss():
  batch = views_of(0)
  loss = {}
  for scale in (1.0, 0.5):
    method = toys.compiled(dcl.make(toys.Layer(), scale=scale))
    params, state, features = features_of(method, batch)
    loss[scale], _ = method.objective(params, state, features, step=0)
  np.testing.assert_allclose(loss[0.5], loss[1.0] / 2, rtol=1e-6)


def test_rotation_sees_four_turns_and_learns_them():
  x = jnp.arange(8.0).reshape(2, 2, 2, 1)
  turned = rotation.rotated(x)
  for k in range(4):
    want = np.stack([np.rot90(image, k) for image in np.asarray(x)])
    np.testing.assert_array_equal(turned[:, k], want)
  _, metrics = train(rotation.make(toys.Layer()), 60, v=1)
  assert abs(metrics[0]["loss"] - np.log(4)) < 0.5
  assert metrics[-1]["rotation_accuracy"] > 0.9
  batch = views_of(0, v=1)
  batch["views"] = batch["views"][:, :, :6]
  with pytest.raises(errors.UserError, match="square"):
    core.init_state(rotation.make(toys.Layer()), optax.sgd(0.1), RNG, batch)


ALIKE = {
  "deepcluster": lambda e: deepcluster.make(
    e, num_examples=core_test.BATCH, num_clusters=4, pca_dim=4
  ),
  "supcon": lambda e: supcon.make(e, out_dim=8),
  "supervised": lambda e: supervised.make(e, num_classes=5),
  "rotation": rotation.make,
  "mocov2plus": lambda e: mocov2plus.make(
    e, total_steps=2, hidden_dim=16, out_dim=8, queue_size=64
  ),
}


@pytest.mark.parametrize(
  "name", core_test.rare(ALIKE, "deepcluster", "mocov2plus", "rotation")
)
def test_any_spread_gives_the_same_steps(name):
  make = lambda: ALIKE[name](toys.Layer())
  one = name in ("deepcluster", "supervised", "rotation")
  augment = toys.one_view if one else toys.augment
  start = core_test.init(make(), augment)
  options = dict(steps=2, start=start, augment=augment)
  expected, _ = core_test.run(
    make(), lambda s: core_test.under_jit(s, 1), **options
  )
  wrap, axis_name, accumulate = core_test.WAYS["shard_map2_accumulate4"]
  got, _ = core_test.run(
    make(), wrap, axis_name=axis_name, accumulate=accumulate, **options
  )
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_adam_is_l2_not_decoupled():
  w, g = {"w": jnp.float32([2.0, -3.0])}, {"w": jnp.float32([0.5, 0.1])}
  tx = optim.make(name="adam", learning_rate=0.1, weight_decay=0.2)
  update, _ = tx.update(g, tx.init(w), w)
  # The first step's size is the rate, whatever the decay; its sign is that of
  # gradient and decay together.
  np.testing.assert_allclose(update["w"], [-0.1, 0.1], rtol=1e-5)


def config_of(name, *flags):
  path = f"configs/{name}_resnet18_fashion_mnist.py:quick"
  return config_lib.load(path, ["--config.mesh.data=1", *flags])


def test_labels_and_their_number_reach_the_method():
  run = run_lib.build(config_of("supervised", "--config.batch_size=32"))
  assert run.source.num_classes == 10
  state = run_lib.init_state(run)
  assert state.params["classifier"]["dense0"]["kernel"].shape[1] == 10
  figures = held_out.measure(run, state, None, "test")
  assert 0 <= figures["test_train_accuracy"] <= 1


@pytest.mark.parametrize("label", [-1, 10])
def test_a_held_out_loss_of_labels_that_are_not_known_is_none(
  monkeypatch, label
):
  run = run_lib.build(config_of("supervised", "--config.batch_size=32"))
  state, open_source = run_lib.init_state(run), run_lib.open_source

  def others(*args, **options):
    source = open_source(*args, **options)
    read, label_of = source.read, lambda i: np.full(len(i), label, np.int32)
    source.read = lambda i: read(i) | {"label": label_of(i)}
    return source

  monkeypatch.setattr(run_lib, "open_source", others)
  with pytest.raises(errors.UserError, match=f"test go up to {label} "):
    held_out.measure(run, state, None, "test")


def test_a_held_out_loss_of_whole_batches_is_their_mean():
  run = run_lib.build(config_of("simclr", "--config.batch_size=128"))
  state = run_lib.init_state(run)

  def forward(params, method_state, batch, *, step, train):
    index = batch["index"].astype(jnp.float32)
    return {"z": jnp.stack([index, index], axis=1)}, method_state

  def objective(params, method_state, features, *, step):
    return features["z"].max(), (method_state, {})

  method = run.method._replace(forward=forward, objective=objective)
  figures = held_out.measure(run._replace(method=method), state, None, "test")
  # Of 360 examples two batches are whole, in an order that is not the disk's.
  order = np.random.default_rng(0).permutation(360)
  expected = order[:128].max() / 2 + order[128:256].max() / 2
  assert figures["test_loss"] == expected != (127 + 255) / 2


def test_a_held_out_loss_is_the_same_in_any_batches_on_any_devices():
  losses = []
  for flags in (("64", "1"), ("48", "8"), ("360", "1")):
    size, devices = flags
    path = "configs/mae_vit_fashion_mnist.py:quick"
    flags = [f"--config.batch_size={size}", f"--config.mesh.data={devices}"]
    run = run_lib.build(config_lib.load(path, flags))
    state = run_lib.init_state(run)
    losses.append(held_out.measure(run, state, None, "test")["test_loss"])
  np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_without_data_labels_supervised_methods_say_what_is_missing():
  for name in ("supervised", "supcon"):
    config = config_of(name, "--noconfig.data.labels")
    with pytest.raises(errors.UserError, match=r"data\.labels=True"):
      run_lib.build(config)


def test_an_older_config_without_the_key_has_no_labels():
  config = config_of("nnclr")
  with config.unlocked():
    del config.data["labels"]
  run = run_lib.build(config)
  assert "label" not in run.source.read(np.arange(2))
  assert "label" not in run_lib.abstract_batch(run)


def test_labels_that_are_not_there_are_named():
  @dataclasses.dataclass
  class Records:
    num_classes = None

    def __len__(self):
      return 3

  with pytest.raises(errors.UserError, match=r"data\.labels=False"):
    sources.check(Records(), "photos", "train", labels=True)
