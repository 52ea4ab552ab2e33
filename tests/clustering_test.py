"""What the papers say of SwAV and the DeepClusters, on small encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import ops
from ssljax import optim
from ssljax.methods import deepcluster
from ssljax.methods import deepcluster_v2
from ssljax.methods import swav
from tests import toys

RNG = jax.random.key(3)
B, N = 16, 64
SIZES = dict(num_prototypes=12, hidden_dim=16, out_dim=8)


def batch_of(step):
  rng = np.random.default_rng(step)
  return {
    "image": rng.integers(0, 256, (B, 8, 8, 1), np.uint8),
    "index": np.arange(step * B, step * B + B, dtype=np.int32) % N,
  }


def augment(batch):
  """Two views, and three that see a quarter of the image."""
  out = toys.augment(batch)
  small = (
    out["views"][:, :1, :4, :4]
    * jnp.array([0.9, 1.0, 1.1])[:, None, None, None]
  )
  return out | {"local_views": small}


def read(function, *, train=False):
  """The set as the trainer gives it, the last batch filled up."""
  for step in range(N // B):
    batch = batch_of(step)
    batch["key"] = jax.random.split(jax.random.key(step + 10 * train), B)
    yield batch["index"], np.asarray(function(toys.augment(batch)))


def start(method, tx=None, augment=toys.augment):
  tx = tx or optax.sgd(0.1)
  state = toys.init_state(method, tx, RNG, batch_of(0), augment=augment)
  return state, jax.jit(core.make_train_step(method, tx, augment=augment))


def refreshed(method, state, seed=0):
  params, method_state = method.refresh(
    state.params, state.method_state, read, rng=jax.random.key(seed)
  )
  return state._replace(params=params, method_state=method_state)


def test_swapped_prediction_is_the_papers():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(4, 6, 5)).astype(np.float32)
  codes = rng.dirichlet(np.ones(5), size=(2, 6)).astype(np.float32)
  x = scores / 0.1
  log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
  terms = [
    -(codes[i] * log_p[v]).sum(1).mean()
    for i in range(2)
    for v in range(4)
    if v != i
  ]
  got = losses.swapped_prediction(scores, codes, temperature=0.1)
  np.testing.assert_allclose(got, np.mean(terms), rtol=1e-5)


def test_unknown_labels_are_left_out():
  logits = jnp.array(np.random.default_rng(0).normal(size=(4, 3)))
  labels = jnp.array([0, -1, 2, -1])
  got = losses.known_cross_entropy(logits, labels)
  log_p = jax.nn.log_softmax(logits)
  np.testing.assert_allclose(got, -(log_p[0, 0] + log_p[2, 2]) / 2, rtol=1e-6)
  assert losses.known_cross_entropy(logits, -jnp.ones(4, jnp.int32)) == 0


def test_swav_prototypes_have_length_one_and_freeze():
  method = swav.make(toys.Layer(), steps_per_epoch=4, **SIZES)
  tx = optim.make(
    name="sgd",
    learning_rate=0.5,
    weight_decay=0.1,
    freeze=(dict(match="prototypes", steps=2),),
  )
  state, step = start(method, tx)
  moved = []
  for i in range(4):
    before = state.params["prototypes"]
    state, metrics = step(state, batch_of(i), RNG)
    rows = state.params["prototypes"]
    np.testing.assert_allclose(jnp.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    moved.append(bool((rows != before).any()))
    # Each prototype has its share of the batch: some are used, not one.
    assert 0.3 < metrics["prototypes_used"] <= 1
  assert moved == [False, False, True, True]


def test_swav_queue_begins_at_its_epoch_and_is_used_once_full(monkeypatch):
  masks = []
  plain = swav.ops.sinkhorn

  def watched(logits, *, mask, **options):
    jax.debug.callback(lambda m: masks.append(int(m.sum())), mask)
    return plain(logits, mask=mask, **options)

  monkeypatch.setattr(swav.ops, "sinkhorn", watched)
  method = swav.make(
    toys.Layer(), steps_per_epoch=2, queue_size=32, queue_start_epoch=1, **SIZES
  )
  state, step = start(method)
  queued = []
  for i in range(7):
    state, _ = step(state, batch_of(i), RNG)
    queued.append(int(state.method_state["queued"]))
  jax.effects_barrier()
  # Steps 0 and 1 are before epoch 1; two batches of 16 fill it.
  assert queued == [0, 0, 16, 32, 48, 32, 48]
  assert masks[::2] == [16, 16, 16, 16, 48, 48, 48]
  assert np.abs(state.method_state["queue"]).sum(-1).min() > 0


def test_swavs_queue_of_another_run_waits_for_its_epoch():
  method = swav.make(
    toys.Layer(), steps_per_epoch=2, queue_size=32, queue_start_epoch=1, **SIZES
  )
  state, _ = start(method)
  z = ops.l2_normalize(jax.random.normal(RNG, (B, 2, 8)))

  @jax.jit
  def loss(queue, step):
    full = {"queue": queue, "queued": jnp.int32(32)}
    method_state = state.method_state | full
    return method.objective(state.params, method_state, {"z": z}, step=step)[0]

  queue = state.method_state["queue"]
  others = ops.l2_normalize(jax.random.normal(RNG, queue.shape), axis=-1)
  assert loss(others, 0) == loss(others[:, ::-1] * 0.5, 0)
  assert loss(others, 2) != loss(others[:, ::-1] * 0.5, 2)


def test_swav_small_crops_predict_and_are_not_assigned():
  method = swav.make(toys.encoder(depth=1), steps_per_epoch=4, **SIZES)
  state, step = start(method, augment=augment)
  state, metrics = step(state, batch_of(0), RNG)
  assert np.isfinite(metrics["loss"])
  params, method_state = state.params, state.method_state
  z = np.random.default_rng(0).normal(size=(B, 5, 8)).astype(np.float32)

  @jax.jit
  def loss(z):
    return method.objective(params, method_state, {"z": z}, step=0)[0]

  # Moving small crops of others changes nothing but by their predictions: the
  # assignments of the large ones are the same.
  grads = jax.jit(jax.grad(loss))(z)
  assert (np.abs(grads).sum(axis=(0, 2)) > 0).all()
  z2 = z.copy()
  z2[0, 4] = -z2[0, 4]
  difference = loss(z2) - loss(z)
  x = jnp.stack([z, z2])[:, 0, 4] @ params["prototypes"].T / 0.1
  log_p = jax.nn.log_softmax(x)
  sinkhorn = jax.jit(lambda x: swav.ops.sinkhorn(x, epsilon=0.05))
  codes = [sinkhorn(z[:, i] @ params["prototypes"].T)[0] for i in range(2)]
  expected = sum((c * (log_p[0] - log_p[1])).sum() for c in codes) / B / 8
  np.testing.assert_allclose(difference, expected, rtol=1e-3)


def test_deepcluster_v2_remembers_and_gives_classes():
  method = deepcluster_v2.make(toys.Layer(), num_examples=N, **SIZES)
  state, step = start(method)
  assert (state.method_state["assignments"] == -1).all()
  assert not state.method_state["memory"].any()
  state = refreshed(method, state)
  first = state.method_state
  norms = jnp.linalg.norm(first["memory"], axis=2)
  np.testing.assert_allclose(norms, 1, rtol=1e-5)
  for head in range(3):  # the largest cosine, with the memory of its crop
    cosines = first["memory"][head % 2] @ first["prototypes"][head].T
    best = jnp.take_along_axis(
      cosines, first["assignments"][head][:, None], axis=1
    )[:, 0]
    np.testing.assert_allclose(best, cosines.max(axis=1), atol=1e-6)
  assert (first["assignments"][0] != first["assignments"][2]).any()
  state, _ = step(state, batch_of(1), RNG)
  changed = (state.method_state["memory"] != first["memory"]).any(axis=(0, 2))
  np.testing.assert_array_equal(changed, (np.arange(N) // B) == 1)
  for name in ("prototypes", "assignments"):
    np.testing.assert_array_equal(state.method_state[name], first[name])
  # From the memory, not by looking again.
  again = method.refresh(state.params, state.method_state, None, rng=RNG)[1]
  np.testing.assert_array_equal(again["memory"], state.method_state["memory"])


def test_deepcluster_draws_evenly_and_starts_a_new_head():
  method = deepcluster.make(
    toys.Layer(), num_examples=N, num_clusters=9, pca_dim=6
  )
  state, step = start(method, augment=toys.one_view)
  after = refreshed(method, state)
  labels = np.asarray(after.method_state["assignments"])
  weights = np.asarray(after.method_state["sampling_weights"])
  share = [weights[labels == c].sum() for c in sorted(set(labels))]
  np.testing.assert_allclose(share, 1, rtol=1e-5)
  assert len(set(np.bincount(labels))) > 1  # they are not of one size
  head = after.params["head"]
  assert (head["kernel"] != state.params["head"]["kernel"]).all()
  assert not head["bias"].any() and 0.008 < head["kernel"].std() < 0.012
  other = refreshed(method, state, seed=1)
  assert (other.params["head"]["kernel"] != head["kernel"]).all()
  # A class for each example by its index: learned, it is told.
  state = after
  for i in range(150):
    state, metrics = step(state, batch_of(i % 4), RNG)
  assert metrics["cluster_accuracy"] > 0.7


def test_more_clusters_than_examples_are_refused():
  with pytest.raises(errors.UserError, match="more than the 5 examples"):
    deepcluster.make(toys.Layer(), num_examples=5)
  with pytest.raises(errors.UserError, match="lower config.method.num_proto"):
    deepcluster_v2.make(toys.Layer(), num_examples=5)
