"""Encoders of tokens and their methods: masks, packing, caches, blocks."""

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
from ssljax import sharding
from ssljax.methods import bert as bert_method
from ssljax.methods import gpt as gpt_method
from ssljax.models import bert
from ssljax.models import gpt
from ssljax.plan import hlo
from tests import toys
from tests.fidelity import drawn

SMALL = dict(vocab=drawn.VOCAB, positions=16)
TOKENS = drawn.text_batch()["tokens"]


def encoder(kind, **options):
  return {"bert": bert, "gpt": gpt}[kind].make(
    variant="Mu", **(SMALL | options)
  )


@functools.cache
def init(module):
  call = jax.jit(functools.partial(module.init, train=False))
  return call(jax.random.key(0), TOKENS)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_padding_changes_nothing(kind):
  module = encoder(kind)
  variables = init(module)
  mask = np.arange(12) < np.array([12, 9, 3])[:, None]
  apply = jax.jit(functools.partial(module.apply, train=False))
  run = lambda tokens: apply(
    variables, tokens, attention_mask=masks.attention_mask(mask)
  )["tokens"]
  other = np.where(mask, TOKENS, 5)
  assert not np.array_equal(TOKENS, other)
  a, b = run(TOKENS), run(other)
  np.testing.assert_array_equal(a[mask], b[mask])
  alone = apply(variables, TOKENS[1:2, :9])["tokens"]
  np.testing.assert_allclose(a[1, :9], alone[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_packed_documents_do_not_meet(kind):
  module = encoder(kind)
  variables = init(module)
  segment = np.array([[0] * 5 + [1] * 7] * 3)
  apply = jax.jit(functools.partial(module.apply, train=False))
  run = lambda tokens, segment: apply(
    variables,
    tokens,
    attention_mask=masks.attention_mask(segment=segment),
  )["tokens"]
  other = np.where(segment == 0, (TOKENS + 1) % drawn.VOCAB, TOKENS)
  a, b = run(TOKENS, segment), run(other, segment)
  np.testing.assert_array_equal(a[:, 5:], b[:, 5:])
  assert np.abs(run(TOKENS, None) - run(other, None))[:, 5:].max() > 1e-3


def test_gpt_looks_back_only():
  module = encoder("gpt")
  variables = init(module)
  apply = jax.jit(functools.partial(module.apply, train=False))
  run = lambda tokens: apply(variables, tokens)["tokens"]
  other = TOKENS.copy()
  other[:, 7] += 1
  a, b = run(TOKENS), run(other)
  np.testing.assert_array_equal(a[:, :7], b[:, :7])
  assert (np.abs(a - b)[:, 7:].max(axis=-1) > 0).all()


@pytest.mark.parametrize("scan", [False, True])
def test_the_cache_gives_the_same_tokens(scan):
  module = encoder("gpt", scan=scan)
  variables = init(module)
  apply = jax.jit(functools.partial(module.apply, train=False))
  whole = apply(variables, TOKENS)["tokens"]
  cache, parts = module.init_cache(3, 16), []
  for piece in (TOKENS[:, :4], TOKENS[:, 4:5], TOKENS[:, 5:]):
    out = apply(variables, piece, cache=cache)
    cache = out["cache"]
    parts.append(out["tokens"])
  assert int(cache["place"]) == 12
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_scan_and_remat_change_nothing(kind):
  plain = encoder(kind)
  variables = init(plain)
  blocks = [variables["params"][f"block{i}"] for i in range(2)]
  rest = {k: v for k, v in variables["params"].items() if "block" not in k}
  stacked = {
    "params": rest | {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
  }
  scanned = encoder(kind, scan=True, remat="full")
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  start = functools.partial(scanned.init, train=False)
  start = jax.eval_shape(start, jax.random.key(0), TOKENS)
  assert shapes(start) == shapes(stacked)
  key = jax.random.split(jax.random.key(1), 3)

  def run(module, variables):
    apply = functools.partial(module.apply, train=True, layers=(0, 1))
    out = jax.jit(apply)(variables, TOKENS, key=key)
    return out["tokens"], out["layers"]

  a, b = run(plain, variables), run(scanned, stacked)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_dropout_is_by_example(kind):
  module = encoder(kind, dropout=0.5)
  variables = init(module)
  key = jax.random.split(jax.random.key(1), 3)
  apply = jax.jit(module.apply, static_argnames="train")
  run = lambda tokens, key, train=True: apply(
    variables, tokens, train=train, key=key
  )["tokens"]
  a = run(TOKENS, key)
  np.testing.assert_allclose(a[1:], run(TOKENS[1:], key[1:]), atol=1e-5)
  assert np.abs(a - run(TOKENS, key[::-1])).max() > 0.1
  np.testing.assert_array_equal(
    run(TOKENS, key, False), run(TOKENS, None, False)
  )
  with pytest.raises(ValueError, match="needs key"):
    run(TOKENS, None)


def test_dropout_keeps_the_mean():
  from ssljax.models import text

  x = jnp.ones((4, 20000))
  out = text.dropout(x, jax.random.split(jax.random.key(0), 4), 0.3)
  np.testing.assert_allclose(out.mean(axis=1), 1, atol=0.02)
  np.testing.assert_allclose((out == 0).mean(axis=1), 0.3, atol=0.02)


@pytest.mark.parametrize("shape", [(8,), (3, 7), (2, 2, 5)])
@pytest.mark.parametrize("block", [1, 3, 5, 8, 64])
def test_blocks_of_the_vocabulary_change_nothing(block, shape):
  rng = np.random.default_rng(0)
  hidden, table, bias = (
    rng.normal(size=s).astype(np.float32)
    for s in ((*shape, 16), (50, 16), (50,))
  )
  # Of half the words the target is the likeliest.
  likeliest = (hidden @ table.T + bias).argmax(axis=-1)
  half = np.arange(likeliest.size).reshape(shape) % 2 == 0
  targets = np.where(half, likeliest, rng.integers(0, 50, shape))

  def loss(hidden, table, bias, block):
    nats, right, log_z = losses.token_cross_entropy(
      hidden, table, targets, bias=bias, block=block
    )
    return (nats + 1e-2 * jnp.square(log_z)).sum(), right

  def plain(hidden, table, bias):
    logits = hidden @ table.T + bias
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    z = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return (nats + 1e-2 * z).sum(), logits.argmax(axis=-1) == targets

  both = lambda f, *a: jax.jit(
    jax.value_and_grad(f, (0, 1, 2), has_aux=True)
  )(*a)
  (a, right), grads = both(lambda *x: loss(*x, block), hidden, table, bias)
  (b, expected), plain_grads = both(plain, hidden, table, bias)
  np.testing.assert_allclose(a, b, rtol=1e-6)
  np.testing.assert_array_equal(right, expected)
  assert right[half].all() and not right.all()
  for x, y in zip(grads, plain_grads):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_blocks_leave_rows_on_their_devices():
  mesh = sharding.make_mesh()
  cut, whole = sharding.by_example(mesh), sharding.replicated(mesh)

  def loss(hidden, table, targets):
    return losses.token_cross_entropy(hidden, table, targets, block=32)[0].sum()

  step = jax.jit(
    jax.grad(loss, (0, 1)),
    in_shardings=(cut, whole, cut),
    out_shardings=(cut, whole),
  )
  compiled = step.lower(
    jax.ShapeDtypeStruct((16, 24, 8), jnp.float32),
    jax.ShapeDtypeStruct((50, 8), jnp.float32),
    jax.ShapeDtypeStruct((16, 24), jnp.int32),
  ).compile()
  moved = hlo.read(compiled.as_text(), 8).collectives
  assert set(moved) == {"all-reduce"}  # of the table's gradient


def test_the_gradient_of_a_table_in_bfloat16_is_as_exact_in_many_blocks():
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(4, 256, 32)), jnp.bfloat16)
  table = jnp.asarray(rng.normal(size=(50, 32)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 40, (4, 256)))

  # Compiled, as in a step: jax 0.12 rounds once more op by op.
  def gradient(dtype, block):
    loss = lambda t: losses.token_cross_entropy(
      hidden.astype(dtype), t, targets, block=block
    )[0].mean()
    return jax.jit(jax.grad(loss))(table)

  want = gradient(jnp.float32, 4096)
  for block in (4096, 4):
    off = jnp.linalg.norm(gradient(jnp.bfloat16, block) - want)
    assert off < 0.005 * jnp.linalg.norm(want)


def test_blocks_save_memory():
  def temporary(block):
    def loss(hidden, table):
      nats, *_ = losses.token_cross_entropy(
        hidden, table, jnp.zeros(2048, jnp.int32), block=block
      )
      return nats.sum()

    args = [
      jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2048, 8), (5000, 8))
    ]
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(128) < temporary(2048) / 8


def make(kind):
  if kind == "gpt":
    return gpt_method.make(encoder("gpt"))
  return bert_method.make(encoder("bert"), next_sentence=True, block=8)


def batch_of(step, rows=8):
  batch = drawn.text_batch()
  order = np.random.default_rng(step).integers(0, 3, rows)
  return {k: v[order] for k, v in batch.items()}


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize(
  "way",
  # The trainer's way; the other two show the same of these methods.
  [pytest.param("jit8", marks=pytest.mark.slow), "shard_map8", "accumulate4"],
)
def test_rows_of_any_spread_give_the_same_steps(kind, way):
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  whole, cut = (
    jax.NamedSharding(mesh, jax.P()),
    jax.NamedSharding(mesh, jax.P("data")),
  )
  rng, tx = jax.random.key(0), optax.sgd(0.1)

  method = make(kind)
  start = toys.init_state(method, tx, rng, batch_of(0))

  def run(wrap, **options):
    state = start
    step = jax.jit(wrap(core.make_train_step(method, tx, **options)))
    losses = []
    for i in range(3):
      state, metrics = step(state, batch_of(i), rng)
      losses.append(float(metrics["loss"]))
    return losses, state.params

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
  losses, params = run(wrap, **options)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    params,
    expected,
  )


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_packed_document_is_learned_by_itself(kind):
  method = gpt_method.make(encoder("gpt"))
  if kind == "bert":
    method = bert_method.make(encoder("bert"))
  method, batch = toys.compiled(method), drawn.text_batch()
  batch.pop("mask", None)
  rows, t = batch["tokens"].shape
  segment = np.tile(np.arange(t) >= 5, (rows, 1)).astype(np.int32)
  batch["segment"] = segment
  if kind == "bert":  # what is hidden lies in the second document
    batch["weights"] = (batch["places"] >= 5).astype(np.int32)
    assert batch["weights"].any()
  params, _ = method.init(jax.random.key(0), batch)
  of = lambda batch: method.forward(params, {}, batch, step=0, train=False)[0]
  other = (batch["tokens"] + 1) % drawn.VOCAB
  tokens = np.where(segment == 0, other, batch["tokens"])
  here, there = of(batch), of(batch | {"tokens": tokens})
  if kind == "gpt":  # the first of a document follows nothing
    np.testing.assert_array_equal(here["count"], t - 2)
    assert (here["sum"] != there["sum"]).any()
    return
  np.testing.assert_allclose(here["sum"], there["sum"], rtol=1e-5)


def test_nothing_hidden_is_a_loss_of_zero():
  method = bert_method.make(encoder("bert"))
  batch = drawn.text_batch()
  batch["weights"] = np.zeros_like(batch["weights"])
  params, _ = jax.jit(method.init)(jax.random.key(0), batch)

  def loss_fn(params):
    features, _ = method.forward(params, {}, batch, step=0, train=False)
    return method.objective(params, {}, features, step=0)[0]

  loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params)
  assert float(loss) == 0
  assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_embed_leaves_padding_out():
  for kind in ("bert", "gpt"):
    method, batch = toys.compiled(make(kind)), drawn.text_batch()
    params, _ = method.init(jax.random.key(0), batch)
    a = method.embed(params, {}, batch)["pooled"]
    batch["tokens"] = np.where(batch["mask"], batch["tokens"], 5)
    np.testing.assert_allclose(
      a, method.embed(params, {}, batch)["pooled"], atol=1e-6
    )


@pytest.mark.parametrize(
  "module, options, words",
  [
    (bert, dict(variant="giant"), "unknown bert variant"),
    (bert, dict(variant="gpt-base"), "unknown bert variant"),
    (bert, dict(variant="mini", heads=3), "does not divide"),
    (bert, dict(variant="mini", drop=0.1), "did you mean 'dropout'"),
    (gpt, dict(variant="125M"), "choose among"),
    (gpt, dict(variant="mini", heads=3), "does not divide"),
    (gpt, dict(variant="mini", vocabulary=3), "did you mean 'vocab'"),
  ],
)
def test_wrong_options_are_named(module, options, words):
  with pytest.raises(errors.UserError, match=words):
    module.make(**options)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_what_an_encoder_cannot_honour_is_refused(kind):
  module = encoder(kind)
  variables = init(module)
  run = lambda tokens, **given: module.apply(
    variables, tokens, train=False, **given
  )
  with pytest.raises(ValueError, match="has no keep"):
    run(TOKENS, keep=np.zeros((3, 2), int))
  with pytest.raises(ValueError, match="17 tokens"):
    run(np.zeros((1, 17), int))
  with pytest.raises(ValueError, match="2 blocks"):
    run(TOKENS, layers=(2,))


@pytest.mark.parametrize(
  "kind", ["bert", pytest.param("gpt", marks=pytest.mark.slow)]
)
def test_bfloat16_learns_with_float32_parameters(kind):
  module = encoder(kind, dtype=jnp.bfloat16, dropout=0.1)
  module_of = {"bert": bert_method, "gpt": gpt_method}[kind]
  method, tx = module_of.make(module), optax.adam(1e-2)
  start = toys.init_state(method, tx, jax.random.key(0), batch_of(0))
  state = start
  dtypes = {str(x.dtype) for x in jax.tree.leaves(state.params)}
  assert dtypes == {"float32"}
  step = jax.jit(core.make_train_step(method, tx))
  losses = []
  for _ in range(12):
    state, metrics = step(state, batch_of(0), jax.random.key(1))
    losses.append(float(metrics["loss"]))
    assert np.isfinite(metrics["grad_norm"])
  assert losses[-1] < 0.9 * losses[0]
  plain = module_of.make(encoder(kind, dropout=0.1))
  _, exact = jax.jit(core.make_train_step(plain, tx))(
    start, batch_of(0), jax.random.key(1)
  )
  np.testing.assert_allclose(losses[0], exact["loss"], rtol=2e-2)


def test_rows_that_do_not_fit_a_method_are_told():
  batch = drawn.text_batch()
  plain = {k: batch[k] for k in ("tokens", "mask")}

  def forward(method, batch):
    def call():
      params, state = method.init(jax.random.key(0), batch)
      return method.forward(params, state, batch, step=0, train=False)

    jax.eval_shape(call)

  with pytest.raises(errors.UserError, match="config.augment.name=mlm"):
    forward(bert_method.make(encoder("bert")), plain)
  pairs = bert_method.make(encoder("bert"), next_sentence=True)
  alone = {k: v for k, v in batch.items() if k != "next"}
  with pytest.raises(errors.UserError, match="config.data.rows=pairs"):
    forward(pairs, alone)
