"""data2vec for text: the authors' numbers, the teacher, devices."""

import functools
import os

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
from ssljax.augment import text
from ssljax.methods import data2vec_text
from ssljax.models import bert
from tests import toys
from tests.fidelity import drawn

FILE = os.path.join(os.path.dirname(__file__), "fidelity", "data2vec.npz")
MASK = drawn.VOCAB - 1
RNG = jax.random.key(0)


def make(encoder=None, **options):
  encoder = dict(dropout=0.0, depth=3) | (encoder or {})
  encoder = bert.make(
    variant="roberta-Mu", vocab=drawn.VOCAB, positions=16, **encoder
  )
  return data2vec_text.make(encoder, **(dict(top_k=2) | options))


@functools.cache
def batch_of(step, rows=8):
  """Rows of `hide` with padding; tokens from 4 on, what is below is special."""
  rng = np.random.default_rng(step)
  tokens = rng.integers(4, MASK, (rows, 12)).astype(np.int32)
  mask = np.arange(12) < rng.integers(4, 13, (rows, 1))
  tokens[~mask] = 1
  keys = jax.random.split(jax.random.key(step), rows)
  hidden = text.hide(
    keys,
    tokens,
    mask_token=MASK,
    vocab=drawn.VOCAB,
    special=(1, 0, 2, 3, MASK),
    most=5,
    rate=0.35,
    mask_part=1.0,
    random_part=0.0,
  )
  return {"mask": mask, "whole": tokens} | jax.tree.map(np.asarray, hidden)


@functools.cache
def started():
  """Parameters and state of `make()`."""
  return jax.jit(make().init)(RNG, batch_of(0))


def loss_fn(method, batch, train=False):
  def loss(params, method_state):
    features, _ = method.forward(
      params, method_state, batch, step=0, train=train
    )
    return method.objective(params, method_state, features, step=0)[0]

  return loss


def weights_named(name):
  """By their names, of the module `name`: our leaves of a dense layer."""
  shapes = {"fc1": (128, 32), "fc2": (32, 128)}
  shapes |= {"regression_head.0": (64, 32), "regression_head.2": (32, 64)}
  shape = shapes.get(name if "head" in name else name.split(".")[-1], (32, 32))
  return {
    "kernel": drawn.draw(f"{name}.weight", shape).T,
    "bias": drawn.draw(f"{name}.bias", shape[:1]),
  }


def norm_named(name):
  return {
    "scale": drawn.draw(f"{name}.weight", (32,)),
    "bias": drawn.draw(f"{name}.bias", (32,)),
  }


def start():
  """The parameters that `make_data2vec.py` starts from."""
  inner = "sentence_encoder."
  table = drawn.draw(f"{inner}embed_tokens.weight", (drawn.VOCAB, 32))
  table[1] = 0
  encoder = {
    "token_embed": {"embedding": table},
    "pos_embed": {
      "embedding": drawn.draw(f"{inner}embed_positions.weight", (18, 32))
    },
    "kind_embed": {"embedding": np.zeros((1, 32), np.float32)},
    "norm": norm_named(f"{inner}layernorm_embedding"),
  }
  for i in range(3):
    name = f"{inner}layers.{i}"
    qkv = [weights_named(f"{name}.self_attn.{x}_proj") for x in "qkv"]
    encoder[f"block{i}"] = {
      "qkv": jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *qkv),
      "proj": weights_named(f"{name}.self_attn.out_proj"),
      "norm1": norm_named(f"{name}.self_attn_layer_norm"),
      "fc1": weights_named(f"{name}.fc1"),
      "fc2": weights_named(f"{name}.fc2"),
      "norm2": norm_named(f"{name}.final_layer_norm"),
    }
  head = {
    f"dense{i}": weights_named(f"regression_head.{2 * i}") for i in (0, 1)
  }
  return {"encoder": encoder, "head": head}


# Where the stored weights are in ours.
PLACES = {
  "embed_tokens.weight": lambda p: p["token_embed"]["embedding"],
  "embed_positions.weight": lambda p: p["pos_embed"]["embedding"],
  "layernorm_embedding.weight": lambda p: p["norm"]["scale"],
  "layers.0.self_attn.q_proj.weight": lambda p: (
    p["block0"]["qkv"]["kernel"][:, :32].T
  ),
  "layers.0.fc1.weight": lambda p: p["block0"]["fc1"]["kernel"].T,
  "layers.1.self_attn.out_proj.bias": lambda p: p["block1"]["proj"]["bias"],
  "layers.1.fc2.weight": lambda p: p["block1"]["fc2"]["kernel"].T,
  "layers.2.final_layer_norm.bias": lambda p: p["block2"]["norm2"]["bias"],
  "layers.2.self_attn.v_proj.bias": lambda p: p["block2"]["qkv"]["bias"][64:],
}
HEAD_PLACES = {
  "regression_head.0.bias": lambda p: p["dense0"]["bias"],
  "regression_head.2.weight": lambda p: p["dense1"]["kernel"].T,
}


def difference(got, want):
  return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def test_it_trains_as_the_authors():
  method = make(ema=0.5, ema_end=0.9, ema_steps=2)
  tx = optim.make(
    name="sgd",
    learning_rate=0.05,
    momentum=0.0,
    freeze=(dict(match="kind_embed", steps=None),),  # fairseq has none
  )
  batch, params = drawn.masked_batch(), start()
  fresh = toys.init_state(method, tx, RNG, batch)
  assert jax.tree.structure(fresh.params) == jax.tree.structure(params)
  teacher = {"params": {"encoder": params["encoder"]}}
  state = fresh._replace(params=params, method_state={"teacher": teacher})
  step = jax.jit(core.make_train_step(method, tx))
  history = []
  for _ in range(3):
    state, metrics = step(state, batch, RNG)
    history.append(float(metrics["loss"]))
  seen = {}
  with np.load(FILE) as stored:
    seen["losses"] = difference(history, stored["losses"])
    teacher = state.method_state["teacher"]["params"]["encoder"]
    for name, find in PLACES.items():
      path = f"sentence_encoder.{name}"
      mine = find(state.params["encoder"])
      seen[name] = difference(mine, stored[f"end/{path}"])
      seen[f"teacher {name}"] = difference(
        find(teacher), stored[f"teacher/{path}"]
      )
    for name, find in HEAD_PLACES.items():
      mine = find(state.params["head"])
      seen[name] = difference(mine, stored[f"end/{name}"])
  print({k: f"{v:.1e}" for k, v in seen.items()})
  assert all(v <= 1e-5 for v in seen.values()), seen  # NaN is no maximum


@pytest.mark.parametrize(
  "beta, scale", [(4.0, 1.0), (0.5, 1.0), (0.0, 8**-0.5)]
)
def test_the_loss_of_features_is_the_authors(beta, scale):
  with np.load(FILE) as stored:
    case = {
      k.removeprefix("loss/"): stored[k] for k in stored.files if "loss/" in k
    }
  added, hidden = case["added"][-2:], case["hidden"]
  target = sum(map(ops.standardize, jnp.asarray(added))) / 2

  def loss(predicted):
    error = losses.smooth_l1(predicted, target, beta=beta).sum(axis=-1)
    return scale * (error * hidden).sum() / hidden.sum()

  value, grad = jax.value_and_grad(loss)(jnp.asarray(case["predicted"]))
  assert difference(value, case[f"beta={beta}/loss"]) <= 1e-6
  assert difference(grad, case[f"beta={beta}/grad"]) <= 1e-6


def test_shapes_and_counts():
  method, batch = make(), batch_of(0)
  params, state = started()

  @jax.jit
  def forward(params, state, batch):
    out, same = method.forward(params, state, batch, step=0, train=False)
    assert same is state
    return out

  features = forward(params, state, batch)
  assert jax.tree.map(jnp.shape, features) == {"sum": (8,), "count": (8,)}
  np.testing.assert_array_equal(features["count"], batch["weights"].sum(1))
  assert len(set(features["count"].tolist())) > 1
  assert jnp.issubdtype(features["count"].dtype, jnp.integer)
  out = jax.jit(method.embed)(params, state, batch)
  assert out["pooled"].shape == (8, 32) and out["tokens"].shape == (8, 12, 32)
  np.testing.assert_allclose(
    out["pooled"][0],
    out["tokens"][0][batch["mask"][0]].mean(axis=0),
    rtol=1e-5,
    atol=1e-6,
  )
  cls = jax.jit(make(pool="cls").embed)(params, state, batch)
  np.testing.assert_array_equal(cls["pooled"], out["tokens"][:, 0])


def test_the_teacher_sees_what_was_hidden():
  batch = batch_of(0)
  np.testing.assert_array_equal(data2vec_text._whole(batch), batch["whole"])
  assert (batch["tokens"] != batch["whole"]).any()
  # Places without weight change nothing, whatever they say.
  other = batch | {"targets": np.where(batch["weights"], batch["targets"], 7)}
  np.testing.assert_array_equal(data2vec_text._whole(other), batch["whole"])
  # Another truth under the mask is another loss.
  loss = jax.jit(lambda batch, *args: loss_fn(make(), batch)(*args))
  changed = batch | {"targets": (batch["targets"] + 1) % MASK}
  a, b = (float(loss(x, *started())) for x in (batch, changed))
  assert abs(a - b) > 1e-4


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_gradient_reaches_all_that_learns_and_not_the_teacher(dropout):
  method = make(dict(dropout=dropout))
  batch = batch_of(0) | {"key": jax.random.split(RNG, 8)}
  params, state = jax.jit(method.init)(RNG, batch)
  grads, teacher = jax.jit(
    jax.grad(loss_fn(method, batch, train=True), (0, 1))
  )(params, state)
  assert all(not np.any(g) for g in jax.tree.leaves(teacher))
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.abs(g).max() > 1e-9, jax.tree_util.keystr(path)


def test_the_teacher_does_not_drop():
  batch = batch_of(0) | {"key": jax.random.split(RNG, 8)}
  still, drops = make(), make(dict(dropout=0.5))
  params, state = started()
  # With a student that predicts zero the loss is of the targets alone.
  params = params | {"head": jax.tree.map(jnp.zeros_like, params["head"])}
  a, b = (
    jax.jit(loss_fn(m, batch, train=True))(params, state)
    for m in (still, drops)
  )
  np.testing.assert_allclose(a, b, rtol=1e-6)


def test_blocks_of_the_teacher_move_by_ema_and_embeddings_are_the_students():
  method = make(ema=0.5, ema_end=0.9, ema_steps=4)
  tx = optax.sgd(0.1)
  batch = batch_of(0)
  state = jax.jit(lambda: core.init_state(method, tx, RNG, batch))()
  step = jax.jit(core.make_train_step(method, tx), donate_argnums=0)
  read = lambda state: jax.tree.map(
    np.array,
    (state.params["encoder"], state.method_state["teacher"]["params"]),
  )
  for decay in (0.6, 0.7, 0.8, 0.9, 0.9):
    before = read(state)[1]["encoder"]
    state, _ = step(state, batch_of(int(state.step)), RNG)
    student, after = read(state)
    after = after["encoder"]
    for name in student:
      want = student[name]
      if name.startswith("block"):
        want = ops.ema(before[name], want, decay)
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        after[name],
        want,
      )
    kernel = lambda tree: tree["block0"]["fc1"]["kernel"]
    assert difference(kernel(student), kernel(after)) > 1e-4


def test_the_decay_may_be_a_function():
  method = make(ema=lambda step: jnp.where(step == 1, 1.0, 0.0))
  params, state = started()
  moved = jax.tree.map(lambda x: x + 1, params)
  teacher = lambda state: state["teacher"]["params"]["encoder"]["block0"]
  kept = method.after_update(moved, state, 0)[1]
  jax.tree.map(
    np.testing.assert_array_equal, teacher(kept), params["encoder"]["block0"]
  )
  copied = method.after_update(moved, state, 1)[1]
  jax.tree.map(
    np.testing.assert_array_equal, teacher(copied), moved["encoder"]["block0"]
  )


def test_scanned_blocks_are_the_same():
  plain, batch = make(), batch_of(0)
  params, state = started()

  def stacked(tree):
    blocks = [tree[f"block{i}"] for i in range(3)]
    rest = {k: v for k, v in tree.items() if not k.startswith("block")}
    return rest | {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}

  scanned = make(dict(scan=True, remat="full"))
  other = params | {"encoder": stacked(params["encoder"])}
  teacher = {"params": {"encoder": stacked(params["encoder"])}}
  run = lambda method: jax.jit(jax.value_and_grad(loss_fn(method, batch)))
  a = run(plain)(params, state)
  b = run(scanned)(other, {"teacher": teacher})
  np.testing.assert_allclose(a[0], b[0], rtol=1e-5)
  want = a[1] | {"encoder": stacked(a[1]["encoder"])}
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5)
  jax.tree.map(close, want, b[1])


@pytest.mark.parametrize(
  "way",
  [
    "jit8",
    # BERT, whose features are sums and counts, too, is run in these.
    pytest.param("shard_map8", marks=pytest.mark.slow),
    pytest.param("accumulate4", marks=pytest.mark.slow),
  ],
)
def test_rows_of_any_spread_give_the_same_steps(way):
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  whole, cut = (
    jax.NamedSharding(mesh, jax.P()),
    jax.NamedSharding(mesh, jax.P("data")),
  )
  tx = optax.sgd(0.1)

  method = make(dict(dropout=0.1), ema=0.9)
  start = toys.init_state(method, tx, RNG, batch_of(0))

  def run(wrap, **options):
    state = start
    step = jax.jit(wrap(core.make_train_step(method, tx, **options)))
    history = []
    for i in range(3):
      state, metrics = step(state, batch_of(i), RNG)
      history.append(float(metrics["loss"]))
    return history, (state.params, state.method_state)

  plain = lambda step: step
  ways = {
    "jit8": (
      lambda step: jax.jit(step, in_shardings=(whole, cut, whole)),
      {},
    ),
    "shard_map8": (
      lambda step: jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(jax.P(), jax.P("data"), jax.P()),
        out_specs=jax.P(),
      ),
      {"axis_name": "data"},
    ),
    "accumulate4": (plain, {"accumulate": 4}),
  }
  expected_losses, expected = run(plain)
  wrap, options = ways[way]
  found_losses, found = run(wrap, **options)
  np.testing.assert_allclose(found_losses, expected_losses, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    found,
    expected,
  )


def test_nothing_hidden_is_a_loss_of_zero():
  method, batch = make(), batch_of(0)
  batch = batch | {"weights": np.zeros_like(batch["weights"])}
  loss = jax.jit(jax.value_and_grad(loss_fn(method, batch)))
  loss, grads = loss(*started())
  assert float(loss) == 0
  assert all(not np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(top_k=4), "the encoder has 3 blocks"),
    (dict(top_k=0), "top_k=0"),
    (dict(pool="max"), "choose mean or cls"),
  ],
)
def test_wrong_options_are_named(options, words):
  with pytest.raises(errors.UserError, match=words):
    make(**options)
