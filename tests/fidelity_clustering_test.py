"""SwAV, DeepCluster v2 and DeepCluster against the authors' code.

`tests/fidelity/README.md` says which, and how the numbers were made.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import core
from ssljax import kmeans
from ssljax import ops
from ssljax import optim
from ssljax.methods import deepcluster
from ssljax.methods import deepcluster_v2
from ssljax.methods import swav
from tests import fidelity_methods_test as shared
from tests import toys

assert_close = shared.assert_close
SIZES = dict(num_prototypes=7, hidden_dim=10, out_dim=6)


class Encoder(nn.Module):
  """That of `make_clustering.py`: it sees the first nine numbers."""

  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train, keep=None, key=None):
    h = nn.relu(nn.Dense(8, name="body")(x[..., :9]))
    return {"pooled": h, "tokens": h[:, None]}


def stored(name):
  return shared.stored("clustering")[name]


def network_params(case):
  head = "projection_head"
  return {
    "encoder": {"body": shared.dense(case, "body")},
    "projector": {
      # A bias that batch norm takes away is not there.
      "dense0": {"kernel": case[f"{head}.0.weight"].T},
      "bn0": shared.batch_norm(case, f"{head}.1"),
      "dense1": shared.dense(case, f"{head}.3"),
    },
  }


def sgd(**options):
  return optim.make(
    name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-3, **options
  )


def start(method, tx, batch, params):
  state = toys.init_state(method, tx, jax.random.key(0), batch)
  same = jax.tree.structure(state.params) == jax.tree.structure(params)
  assert same
  params = jax.tree.map(jnp.asarray, params)
  return state._replace(params=params, opt_state=tx.init(params))


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_sinkhorn_is_the_authors(name):
  case = stored("sinkhorn")[name]
  assert_close(ops.sinkhorn(case["logits"], epsilon=0.05), case["out"])


def test_swav_trains_as_the_authors():
  """Eight steps: prototypes frozen for two, a queue from the fifth, full and
  used for the last two."""
  case = stored("swav")
  method = swav.make(
    Encoder(), steps_per_epoch=4, queue_size=32, queue_start_epoch=1, **SIZES
  )
  tx = sgd(freeze=(dict(match="prototypes", steps=2),))
  batches = [
    {"views": a, "local_views": b}
    for a, b in zip(case["views"], case["local_views"])
  ]
  of = lambda case: (
    network_params(case) | {"prototypes": case["prototypes.weight"]}
  )
  state = start(method, tx, batches[0], of(case["start"]))
  step = jax.jit(core.make_train_step(method, tx))
  history = []
  for batch in batches:
    state, metrics = step(state, batch, jax.random.key(0))
    history.append(metrics["loss"])
  assert_close(np.array(history), case["losses"])
  jax.tree.map(assert_close, state.params, of(case["end"]))
  # Theirs has the newest rows first, ours is a ring.
  newest, oldest = np.split(case["queue"], 2, axis=1)
  queue = np.concatenate([oldest, newest], axis=1)
  assert_close(state.method_state["queue"], queue)


def test_deepcluster_v2_trains_as_the_authors(monkeypatch):
  """Two epochs of three steps, each after its clusterings."""
  case = stored("deepcluster_v2")
  method = deepcluster_v2.make(Encoder(), num_examples=48, **SIZES)
  tx = sgd()
  order = case["order"].reshape(6, 16)
  batches = [
    {"views": a, "local_views": b, "index": index.astype(np.int32)}
    for a, b, index in zip(case["views"], case["local_views"], order)
  ]
  state = start(method, tx, batches[0], network_params(case["start"]))
  memory = jnp.asarray(case["memory"])
  state = state._replace(method_state=state.method_state | {"memory": memory})
  starts = iter(case["starts"])
  monkeypatch.setattr(jax.random, "choice", lambda *unused: next(starts))
  step = jax.jit(core.make_train_step(method, tx))
  history = []
  for epoch in range(2):
    params, method_state = method.refresh(
      state.params, state.method_state, None, rng=jax.random.key(0)
    )
    assert_close(method_state["prototypes"], case[f"prototypes{epoch}"])
    np.testing.assert_array_equal(
      method_state["assignments"], case["assignments"][epoch]
    )
    state = state._replace(params=params, method_state=method_state)
    for batch in batches[3 * epoch : 3 * epoch + 3]:
      state, metrics = step(state, batch, jax.random.key(0))
      history.append(metrics["loss"])
  assert_close(np.array(history), case["losses"])
  jax.tree.map(assert_close, state.params, network_params(case["end"]))
  assert_close(state.method_state["memory"], case["memory_end"])


def test_deepclusters_whitening_and_clusters_are_faiss():
  case = stored("clusters")
  x = ops.l2_normalize(ops.pca_whiten(case["x"], 5))
  # The signs of components are free; products of rows are not.
  assert_close(x[:40] @ x.T, case["gram"])
  found = kmeans.fit(
    x, k=10, key=jax.random.key(0), start=x[case["start"]], iterations=20
  )
  np.testing.assert_array_equal(found.assignments, case["assignments"])


def test_sobel_is_deepclusters():
  case = stored("sobel")
  assert_close(ops.sobel(case["images"]), case["out"])


def test_deepcluster_trains_as_the_authors():
  """Two epochs of three steps, each with a new head without momentum."""
  case = stored("deepcluster")
  method = deepcluster.make(Encoder(), num_examples=48, num_clusters=7)
  tx = sgd(groups=(dict(match="^head/", momentum=0.0),))
  of = lambda body, head: {
    "encoder": {"body": {"kernel": body["weight"].T, "bias": body["bias"]}},
    "head": {"kernel": head["weight"].T, "bias": head["bias"]},
  }
  batches = [
    {"views": x, "index": index.astype(np.int32)}
    for x, index in zip(case["views"], case["order"])
  ]
  state = start(method, tx, batches[0], of(case["start"], case["head0"]))
  step = jax.jit(core.make_train_step(method, tx))
  history = []
  for i, batch in enumerate(batches):
    labels = jnp.asarray(case["labels"][i // 3], jnp.int32)
    state = state._replace(
      method_state=state.method_state | {"assignments": labels}
    )
    if i == 3:
      head = jax.tree.map(jnp.asarray, of(case["start"], case["head1"])["head"])
      state = state._replace(params=state.params | {"head": head})
    state, metrics = step(state, batch, jax.random.key(0))
    history.append(metrics["loss"])
  assert_close(np.array(history), case["losses"])
  expected = of(case["end"], case["head_end"])
  jax.tree.map(assert_close, state.params, expected)
