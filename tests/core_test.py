"""The same batch gives the same step, however it is spread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax import core
from ssljax import errors
from ssljax import sharding
from ssljax.methods import barlow_twins
from ssljax.methods import byol
from ssljax.methods import dcl
from ssljax.methods import deepcluster_v2
from ssljax.methods import lejepa
from ssljax.methods import mae
from ssljax.methods import moco
from ssljax.methods import mocov3
from ssljax.methods import nnclr
from ssljax.methods import rotation
from ssljax.methods import simclr
from ssljax.methods import simsiam
from ssljax.methods import swav
from ssljax.methods import vicreg
from ssljax.methods import wmse
from ssljax.models import resnet
from ssljax.plan import flops
from tests import toys

BATCH = 32
STEPS = 5
RNG = jax.random.key(7)


def make_simclr(encoder):
  return simclr.make(encoder, head_norm=False, out_dim=16, temperature=0.2)


def make_moco(encoder):
  return moco.make(encoder, queue_size=64, out_dim=16, ema=0.9, temperature=0.2)


def make_mae(encoder):
  return mae.make(encoder, decoder_dim=16, decoder_depth=1, decoder_heads=2)


METHODS = {
  "simclr": lambda: make_simclr(toys.Layer()),
  "moco": lambda: make_moco(toys.Layer()),
  "mae": lambda: make_mae(toys.encoder(depth=1)),
  "sum_over_count": lambda: toys.masked_autoencoder(toys.encoder(depth=1)),
}


def batch_of(step):
  rng = np.random.default_rng(step)
  return {
    "image": rng.integers(0, 256, (BATCH, 8, 8, 1), np.uint8),
    "index": rng.permutation(BATCH).astype(np.int32),
    "label": rng.integers(0, 5, BATCH, np.int32),
  }


def mesh_of(devices):
  return jax.make_mesh(
    (devices,),
    ("data",),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:devices],
  )


def under_jit(step, devices):
  mesh = mesh_of(devices)
  whole, cut = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
  return jax.jit(
    step, in_shardings=(whole, cut, whole), out_shardings=(whole, whole)
  )


def under_fsdp(step, data, fsdp):
  """As the trainer does it, with arrays cut that are small."""
  mesh = sharding.make_mesh(data, fsdp)
  whole, cut = sharding.replicated(mesh), sharding.by_example(mesh)

  def call(state, batch, rng):
    where = sharding.by_array(mesh, state, least=256)
    assert not all(w == whole for w in jax.tree.leaves(where.params))
    jitted = jax.jit(
      step, in_shardings=(where, cut, whole), out_shardings=(where, whole)
    )
    return jitted(jax.device_put(state, where), batch, rng)

  return call


def under_shard_map(step, devices, check_vma):
  return jax.jit(
    jax.shard_map(
      step,
      mesh=mesh_of(devices),
      in_specs=(P(), P("data"), P()),
      out_specs=(P(), P()),
      check_vma=check_vma,
    )
  )


def under_pmap(step, devices):
  mapped = jax.pmap(
    step, "data", in_axes=(None, 0, None), devices=jax.devices()[:devices]
  )

  def call(state, batch, rng):
    cut = lambda x: x.reshape(devices, -1, *x.shape[1:])
    return jax.tree.map(
      lambda x: x[0], mapped(state, jax.tree.map(cut, batch), rng)
    )

  return call


# The bias of the keys has no gradient but rounding, which Adam would blow up.
ADAM = optax.adam(1e-3, eps=1e-5)


def init(method, augment=toys.augment):
  return toys.init_state(method, ADAM, RNG, batch_of(0), augment=augment)


def run(
  method,
  wrap,
  *,
  axis_name=None,
  accumulate=1,
  steps=STEPS,
  start=None,
  augment=toys.augment,
):
  """Losses and the last state over steps of Adam, from `init` or `start`."""
  state = init(method, augment) if start is None else start
  step = wrap(
    core.make_train_step(
      method,
      ADAM,
      axis_name=axis_name,
      accumulate=accumulate,
      augment=augment,
    )
  )
  losses = []
  for i in range(steps):
    state, metrics = step(state, batch_of(i), RNG)
    losses.append(float(metrics["loss"]))
  return losses, state


def augment_of(name):
  return toys.one_view if name == "mae" else toys.augment


@functools.cache
def start_of(name):
  return init(METHODS[name](), augment_of(name))


@functools.cache
def reference(name):
  one = lambda step: under_jit(step, 1)
  return run(
    METHODS[name](), one, start=start_of(name), augment=augment_of(name)
  )


WAYS = {
  "jit2": (lambda s: under_jit(s, 2), None, 1),
  "jit8": (lambda s: under_jit(s, 8), None, 1),
  "pmap8": (lambda s: under_pmap(s, 8), "data", 1),
  "shard_map8": (lambda s: under_shard_map(s, 8, True), "data", 1),
  "shard_map8_unchecked": (lambda s: under_shard_map(s, 8, False), "data", 1),
  "fsdp2x4": (lambda s: under_fsdp(s, 2, 4), None, 1),
  "accumulate4": (lambda s: under_jit(s, 1), None, 4),
  "jit8_accumulate4": (lambda s: under_jit(s, 8), None, 4),
  "shard_map2_accumulate4": (
    lambda s: under_shard_map(s, 2, True),
    "data",
    4,
  ),
}


def rare(names, *slow):
  """Of the names, those that others stand for are slow tests."""
  mark = lambda name: [pytest.mark.slow] if name in slow else []
  return [pytest.param(name, marks=mark(name)) for name in names]


# A ViT in each way takes long: what SimCLR and MoCo show is slow there, and
# where microbatches meet devices the ViT whose counts differ stands for both.
_SLOW = {
  "mae": (
    "jit8",
    "pmap8",
    "shard_map8_unchecked",
    "jit8_accumulate4",
    "shard_map2_accumulate4",
  ),
  "sum_over_count": (
    "jit8",
    "pmap8",
    "shard_map8",
    "shard_map8_unchecked",
    "fsdp2x4",
  ),
}
_SPREADS = [
  pytest.param(
    name,
    way,
    marks=pytest.mark.slow
    if way == "jit2" or way in _SLOW.get(name, ())
    else [],
  )
  for name in METHODS
  for way in WAYS
]


@pytest.mark.parametrize("name, way", _SPREADS)
def test_any_spread_gives_the_same_steps(name, way):
  wrap, axis_name, accumulate = WAYS[way]
  losses, state = run(
    METHODS[name](),
    wrap,
    axis_name=axis_name,
    accumulate=accumulate,
    start=start_of(name),
    augment=augment_of(name),
  )
  expected_losses, expected = reference(name)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  for a, b in zip(
    jax.tree.leaves(state.method_state), jax.tree.leaves(expected.method_state)
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("way", ["jit8", "shard_map8"])
def test_a_loss_in_blocks_gives_the_same_steps(way):
  wrap, axis_name, _ = WAYS[way]
  method = simclr.make(
    toys.Layer(), head_norm=False, out_dim=16, temperature=0.2, blocks=4
  )
  losses, _ = run(method, wrap, axis_name=axis_name)
  np.testing.assert_allclose(losses, reference("simclr")[0], rtol=1e-5)


@pytest.mark.parametrize("way", ["jit8", "shard_map8", "accumulate4"])
def test_three_views_give_the_same_steps(way):
  wrap, axis_name, accumulate = WAYS[way]
  ran = functools.partial(
    run, METHODS["simclr"](), augment=functools.partial(toys.augment, count=3)
  )
  expected, _ = ran(lambda step: under_jit(step, 1))
  losses, _ = ran(wrap, axis_name=axis_name, accumulate=accumulate)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert losses[0] > reference("simclr")[0][0]  # one more is to be found


@pytest.mark.parametrize("name", METHODS)
def test_two_stages_give_the_gradient_of_the_composition(name):
  method, augment = METHODS[name](), augment_of(name)
  tx = optax.sgd(0.5)
  state = toys.init_state(method, tx, RNG, batch_of(0), augment=augment)
  step = core.make_train_step(method, tx, augment=augment)
  after, metrics = jax.jit(step)(state, batch_of(0), RNG)

  def loss(params):
    keys = core._with_keys(batch_of(0), RNG, 0, None)["key"]
    fold = jax.vmap(jax.random.fold_in, (0, None))
    batch = augment(batch_of(0) | {"key": fold(keys, 0)})
    features, method_state = method.forward(
      params,
      state.method_state,
      batch | {"key": fold(keys, 1)},
      step=0,
      train=True,
    )
    return method.objective(params, method_state, features, step=0)[0]

  grads = jax.jit(jax.grad(loss))(state.params)
  norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
  for a, b, g in zip(
    jax.tree.leaves(state.params),
    jax.tree.leaves(after.params),
    jax.tree.leaves(grads),
  ):
    np.testing.assert_allclose(a - b, g / 2, rtol=1e-4, atol=1e-6)


def test_objective_may_depend_on_parameters_directly():
  """Prototypes in the objective: their gradient is counted once."""

  def forward(params, method_state, batch, *, step, train):
    return batch["x"] @ params["w"], method_state

  def objective(params, method_state, features, *, step):
    return jnp.mean((features @ params["v"]) ** 2), (method_state, {})

  rng = np.random.default_rng(0)
  params = {"w": rng.normal(size=(3, 2)), "v": rng.normal(size=(2,))}
  params = jax.tree.map(jnp.float32, params)
  method = core.Method(
    lambda rng, batch: (params, {}), forward, objective, lambda *a: {}
  )
  x = rng.normal(size=(16, 3)).astype(np.float32)
  tx = optax.sgd(1.0)
  results = []
  for wrap, axis_name in (
    (lambda s: under_jit(s, 1), None),
    (lambda s: under_shard_map(s, 8, True), "data"),
    (lambda s: under_shard_map(s, 8, False), "data"),
    (lambda s: under_pmap(s, 8), "data"),
  ):
    state = toys.init_state(method, tx, RNG, {"x": x})
    step = wrap(core.make_train_step(method, tx, axis_name=axis_name))
    results.append(step(state, {"x": x}, RNG)[0].params)
  grads = jax.grad(lambda p: jnp.mean((x @ p["w"] @ p["v"]) ** 2))(params)
  expected = jax.tree.map(jnp.subtract, params, grads)
  for result in results:
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected)):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_accumulation_takes_one_forward_pass_where_the_loss_is_a_mean():
  def cost(method, accumulate, augment):
    tx = optax.sgd(0.1)
    options = dict(augment=augment)
    init = lambda b: core.init_state(method, tx, RNG, b, **options)
    step = core.make_train_step(method, tx, accumulate=accumulate, **options)
    batch = batch_of(0)
    return flops.count(step, jax.eval_shape(init, batch), batch, RNG)

  other = make_simclr(toys.Layer())
  assert not other.is_mean
  for mean in (make_mae(toys.encoder(depth=1)), rotation.make(toys.Layer())):
    assert mean.is_mean
    assert cost(mean, 4, toys.one_view) == cost(mean, 1, toys.one_view)
  ratio = cost(other, 4, toys.augment) / cost(other, 1, toys.augment)
  assert 1.1 < ratio < 1.5


def test_8_microbatches_of_32_give_the_update_of_256():
  rng = np.random.default_rng(0)
  batch = {"image": rng.integers(0, 256, (256, 8, 8, 1), np.uint8)}
  method, tx = make_simclr(toys.Layer()), optax.sgd(1.0)
  options = dict(augment=toys.augment)
  state = toys.init_state(method, tx, RNG, batch, **options)
  moved = []
  for accumulate in (1, 8):
    step = core.make_train_step(method, tx, accumulate=accumulate, **options)
    new, _ = jax.jit(step)(state, batch, RNG)
    moved.append(jax.tree.map(jnp.subtract, new.params, state.params))
  one, many = (
    np.concatenate([x.ravel() for x in jax.tree.leaves(m)]) for m in moved
  )
  assert np.abs(many - one).max() < 1e-5 * np.abs(one).max()


def test_keys_depend_on_step_and_place_alone():
  batch = {"x": np.zeros((8, 1))}
  whole = jax.random.key_data(core._with_keys(batch, RNG, 3, None)["key"])
  assert len(np.unique(whole, axis=0)) == 8
  other = jax.random.key_data(core._with_keys(batch, RNG, 4, None)["key"])
  assert not (whole == other).all(axis=1).any()
  cut = jax.shard_map(
    lambda b: jax.random.key_data(core._with_keys(b, RNG, 3, "data")["key"]),
    mesh=mesh_of(4),
    in_specs=P("data"),
    out_specs=P("data"),
    check_vma=False,
  )
  np.testing.assert_array_equal(cut(batch), whole)


def batch_norm_method(axis_name=None, name="simclr"):
  encoder = resnet.make(variant="6", width=4, stem="cifar", axis_name=axis_name)
  if name == "moco":
    return moco.make(encoder, out_dim=8, queue_size=64, bn_groups=4)
  if name == "mocov3":
    options = dict(total_steps=10, out_dim=8, hidden_dim=16)
    return mocov3.make(encoder, predictor_norm=True, **options)
  return simclr.make(encoder, out_dim=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "moco", "mocov3"])
def test_batch_norm_sees_the_global_batch_everywhere(name):
  expected, _ = run(batch_norm_method(name=name), lambda s: under_jit(s, 1))
  for wrap, axis_name in (
    (lambda s: under_jit(s, 2), None),
    (lambda s: under_shard_map(s, 2, True), "data"),
    (lambda s: under_pmap(s, 2), "data"),
  ):
    method = batch_norm_method(axis_name, name)
    losses, _ = run(method, wrap, axis_name=axis_name)
    # Only the first steps: batch norm amplifies rounding from step to step.
    np.testing.assert_allclose(losses[:2], expected[:2], rtol=1e-4)


HEADS_WITH_NORM = {
  "byol": lambda encoder: byol.make(
    encoder, total_steps=10, out_dim=16, hidden_dim=32
  ),
  "simsiam": lambda encoder: simsiam.make(encoder, out_dim=16, predictor_dim=8),
  "barlow_twins": lambda encoder: barlow_twins.make(encoder, features=(32, 16)),
  "vicreg": lambda encoder: vicreg.make(encoder, features=(32, 16)),
  "nnclr": lambda encoder: nnclr.make(
    encoder, queue_size=64, hidden_dim=32, out_dim=16, predictor_dim=32
  ),
  "wmse": lambda encoder: wmse.make(
    encoder, hidden_dim=32, out_dim=4, whitening_size=16
  ),
  "dcl": lambda encoder: dcl.make(encoder, features=(32, 16)),
  "deepcluster_v2": lambda encoder: deepcluster_v2.make(
    encoder,
    num_examples=BATCH,
    num_prototypes=4,
    num_heads=2,
    hidden_dim=32,
    out_dim=16,
  ),
  "lejepa": lambda encoder: lejepa.make(encoder, slices=16, features=(32, 16)),
  "swav": lambda encoder: swav.make(
    encoder,
    steps_per_epoch=1,
    num_prototypes=24,
    hidden_dim=32,
    out_dim=16,
    queue_size=64,
    queue_start_epoch=0,
  ),
}


@pytest.mark.parametrize(
  "name",
  rare(HEADS_WITH_NORM, *(n for n in HEADS_WITH_NORM if n != "simsiam")),
)
def test_heads_with_batch_norm_see_the_global_batch_everywhere(name):
  make = lambda axis_name: HEADS_WITH_NORM[name](
    toys.Layer(axis_name=axis_name)
  )
  options = dict(steps=2, start=init(make(None)))
  expected, _ = run(make(None), lambda s: under_jit(s, 1), **options)
  for way in ("jit8", "shard_map8", "pmap8"):
    wrap, axis_name, _ = WAYS[way]
    losses, _ = run(make(axis_name), wrap, axis_name=axis_name, **options)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, err_msg=way)


def test_accumulation_with_batch_norm_is_refused():
  method, tx = simclr.make(toys.Layer(), out_dim=8), optax.sgd(0.1)
  state = toys.init_state(method, tx, RNG, batch_of(0), augment=toys.augment)
  step = core.make_train_step(method, tx, augment=toys.augment, accumulate=4)
  with pytest.raises(errors.UserError, match="one microbatch at a time"):
    step(state, batch_of(0), RNG)
  allowed = core.make_train_step(
    method,
    tx,
    augment=toys.augment,
    accumulate=4,
    statistics_per_microbatch=True,
  )
  after, metrics = jax.jit(allowed)(state, batch_of(0), RNG)
  assert np.isfinite(metrics["loss"])
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b),
    state.method_state,
    after.method_state,
  )
  assert all(jax.tree.leaves(moved))


def test_accumulation_that_does_not_divide_is_refused():
  method, tx = METHODS["simclr"](), optax.sgd(0.1)
  state = toys.init_state(method, tx, RNG, batch_of(0), augment=toys.augment)
  step = core.make_train_step(method, tx, augment=toys.augment, accumulate=5)
  with pytest.raises(ValueError, match="do not divide"):
    step(state, batch_of(0), RNG)


def test_core_needs_jax_and_optax_alone():
  import subprocess
  import sys

  code = (
    "import sys; from ssljax import core, losses, ops; "
    "bad = {'flax', 'ml_collections', 'orbax', 'tensorflow', "
    "'tensorflow_datasets', 'cv2'} & set(sys.modules); "
    "assert not bad, bad"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_can_be_left_out(where):
  sound = make_moco(toys.Layer())  # its queue and teacher move without gradient
  tx = optax.adam(1e-2)

  def objective(params, method_state, features, *, step):
    loss, rest = sound.objective(params, method_state, features, step=step)
    if where == "gradient":  # of a value that is 0
      leaf = jax.tree.leaves(params)[0]
      bad = jnp.sum(jnp.sqrt(jnp.where(step == 1, 0 * leaf, 1 + 0 * leaf)))
      return loss + jax.lax.stop_gradient(-bad) + bad, rest
    return jnp.where(step == 1, jnp.inf, loss), rest

  method = sound._replace(objective=objective)
  step = jax.jit(
    core.make_train_step(method, tx, augment=toys.augment, skip_nonfinite=True)
  )
  state = toys.init_state(method, tx, RNG, batch_of(0), augment=toys.augment)
  states = [state]
  for i in range(3):
    state, metrics = step(states[-1], batch_of(i), RNG)
    states.append(state)
    finite = np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert finite == (i != 1)
  assert [int(s.step) for s in states] == [0, 1, 2, 3]
  same = lambda a, b: jax.tree.map(np.array_equal, a[1:], b[1:])
  assert all(jax.tree.leaves(same(states[1], states[2])))
  for before, after in ((0, 1), (2, 3)):
    moved = same(states[before], states[after])
    assert not any(jax.tree.leaves(moved[0]))  # parameters
    assert not all(jax.tree.leaves(moved[1]))


def test_an_update_to_parameters_that_are_not_finite_is_left_out():
  method, tx = make_moco(toys.Layer()), optax.sgd(1e38)
  state = toys.init_state(method, tx, RNG, batch_of(0), augment=toys.augment)
  for skip in (False, True):
    step = jax.jit(
      core.make_train_step(
        method, tx, augment=toys.augment, skip_nonfinite=skip
      )
    )
    after, metrics = step(state, batch_of(0), RNG)
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert not np.isfinite(metrics["param_norm"])
    same = jax.tree.map(np.array_equal, state.params, after.params)
    assert all(jax.tree.leaves(same)) == skip


@pytest.mark.parametrize("way", ["shard_map2", "pmap2"])
def test_batch_norm_of_one_device_is_refused(way):
  wraps = {
    "shard_map2": lambda s: under_shard_map(s, 2, False),
    "pmap2": lambda s: under_pmap(s, 2),
  }
  make = lambda axis_name: HEADS_WITH_NORM["vicreg"](
    toys.Layer(axis_name=axis_name)
  )
  with pytest.raises(ValueError, match="the same axis_name as the step"):
    run(make(None), wraps[way], axis_name="data", steps=1)
  run(make("data"), wraps[way], axis_name="data", steps=1)
