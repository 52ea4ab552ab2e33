"""The interface of a self-supervised method, and its train step.

A method is split where the mathematics splits: `forward` looks at each example
by itself, `objective` at the whole batch. The step below owns everything that
lies between the two: who sees which examples. So one device or many, `jit`,
`pmap` or `shard_map`, whole batches or microbatches give the same loss and the
same gradients to rounding, and no method holds a collective.

Needs jax and optax alone.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssljax import errors
from ssljax import ops

PyTree = Any


class TrainState(NamedTuple):
  """All that a run must keep: saving it and the seed is saving the run."""

  step: jax.Array  # int32 [], the number of updates done
  params: PyTree  # learned by gradient; the backbone is params["encoder"]
  method_state: PyTree  # all else a method carries: batch_stats, teacher, queue
  opt_state: PyTree


def _unchanged(params, method_state, step):
  del step
  return params, method_state


class Method(NamedTuple):
  """A self-supervised objective as pure functions; closures hold no arrays.

  Attributes:
    init: `(rng, batch) -> (params, method_state)`; the batch as it comes out of
      `augment`.
    forward: `(params, method_state, batch, *, step, train) -> (features,
      method_state)`. Features are a pytree of arrays [b ...]; counts and other
      numbers that no parameter moves are integers. Examples meet in batch norm
      only; randomness comes from `batch["key"]` [b].
    objective: `(params, method_state, features, *, step) -> (loss,
      (method_state, metrics))` on the features of the global batch: plain
      mathematics, no collectives; the value itself, never a local share.
    embed: `(params, method_state, batch) -> {"pooled": [b d], "tokens":
      [b n d]}`, by the network that the paper evaluates.
    after_update: `(params, method_state, step) -> (params, method_state)` after
      the optimiser's update number `step`, counted from 0: moving averages,
      prototypes normalised.
    refresh: None, or `(params, method_state, read, *, rng) -> (params,
      method_state)` on the host before an epoch: k-means over the set.
      `read(function, *, train=False)` yields `index` [b] and `function(batch)`,
      one array [b ...], for all examples in order: both as NumPy arrays, whole
      in each process. Batches come out of the evaluation's view, or of the
      training views with `train`; jit the function. Shapes stay. Where it
      leaves `method_state["sampling_weights"]` [examples], the epoch's examples
      are drawn by them.
    show: named functions for the report and notebooks, pure, each `(params,
      method_state, batch) -> ...` on a batch as it comes out of the
      evaluation's augmentation, and `key` [b]: of images `{title: images
      [b h w c] float32 in the scale of the views}`; of text "logits" [b t
      vocab].
    is_mean: whether the loss is `features["sum"].sum()`, a float [b], times
      a factor that integer features alone decide, such as one over a count. Its
      gradient is then known before all of the batch is, and accumulation does
      with one forward pass.
  """

  init: Callable
  forward: Callable
  objective: Callable
  embed: Callable
  after_update: Callable = _unchanged
  refresh: Callable | None = None
  show: dict[str, Callable] = {}
  is_mean: bool = False


def init_state(
  method: Method,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  batch: PyTree,
  *,
  augment: Callable | None = None,
) -> TrainState:
  """Returns the state before the first step.

  Call it under `jit`, or a teacher that starts as the student shares its
  buffers with it and cannot be donated.

  Args:
    method: what is learned.
    tx: the optimiser.
    rng: a typed key (`jax.random.key`).
    batch: a dict of arrays [b ...] as the stream gives them; only shapes
      matter.
    augment: `batch -> batch`, as given to `make_train_step`.
  """
  rng, init_rng = jax.random.split(rng)
  batch = _with_keys(batch, rng, jnp.int32(0), None)
  if augment is not None:
    batch = augment(batch | {"key": _fold_in(batch["key"], 0)})
  params, method_state = method.init(init_rng, batch)
  return TrainState(jnp.int32(0), params, method_state, tx.init(params))


def make_train_step(
  method: Method,
  tx: optax.GradientTransformation,
  *,
  augment: Callable | None = None,
  axis_name: str | tuple[str, ...] | None = None,
  accumulate: int = 1,
  statistics_per_microbatch: bool = False,
  skip_nonfinite: bool = False,
) -> Callable:
  """Returns `step(state, batch, rng) -> (state, metrics)`, not yet jitted.

  The gradient is taken in two stages, as GradCache does (Gao et al. 2021,
  arXiv:2101.06983): the features of all examples, the gradient of the objective
  in them, then back through `forward`. Between the stages features are gathered
  and microbatches joined, so that the objective always sees the global batch.

  Args:
    method: what is learned.
    tx: the optimiser.
    augment: `batch -> batch`, applied in the step, with a key for each example.
    axis_name: the mapped axis where the step is called inside `pmap` or
      `shard_map`; `batch` is then the local part and `state` replicated. Batch
      norm, which heads have too, needs the same axis: encoders take it, and
      heads have their encoder's. None under `jit`, on any mesh.
    accumulate: the number of microbatches, run one after the other.
    statistics_per_microbatch: allow batch norm to see a microbatch at a time,
      or one device's examples.
    skip_nonfinite: where the loss, the gradient's norm or that of the new
      parameters is not finite, leave all but the number of the step as it was;
      also the optimiser's own count, so that its schedules go on a step later.

  A batch is a dict of arrays [b ...]; the step adds `key` [b]. `rng` is a typed
  key, the same at every step, which folds in the number of the step.

  The step raises ValueError where `accumulate` does not divide the batch, `rng`
  is no typed key or batch norm was not told of `axis_name`, and UserError where
  it meets batch norm with `accumulate`, both but for
  `statistics_per_microbatch`.
  """

  def forward(params, method_state, batch, step):
    keys = batch["key"]
    if augment is not None:
      batch = augment(batch | {"key": _fold_in(keys, 0)})
    batch = batch | {"key": _fold_in(keys, 1)}
    features, method_state = method.forward(
      params, method_state, batch, step=step, train=True
    )
    floats, others = _partition(features)
    return floats, (others, method_state)

  def train_step(state, batch, rng):
    step, params, method_state, opt_state = state
    if accumulate > 1 and not statistics_per_microbatch:
      _refuse_batch_norm(method_state)
    batch = _with_keys(batch, rng, step, axis_name)
    if axis_name is not None and not statistics_per_microbatch:
      _refuse_local_batch_norm(forward, params, method_state, batch, step)
    # Stage one: the features of the local examples, and the way back.
    floats, others, method_state, backward = _features(
      lambda p, s, b: forward(p, s, b, step),
      _varying(params, axis_name),
      method_state,
      batch,
      accumulate,
      method.is_mean,
    )
    # The objective and its gradient, in the features of the global batch.
    everyone = _gather((floats, others), axis_name)
    objective = lambda params, floats: method.objective(
      params, method_state, _merge(floats, everyone[1]), step=step
    )
    (loss, (method_state, metrics)), (direct, cotangents) = jax.value_and_grad(
      objective, argnums=(0, 1), has_aux=True
    )(params, everyone[0])
    # Stage two: back through `forward`, each device with its own examples.
    through = backward(_local(cotangents, floats, axis_name))
    grads = jax.tree.map(jnp.add, direct, _sum(through, axis_name))
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    params, method_state = method.after_update(params, method_state, step)
    norms = {
      "grad_norm": optax.global_norm(grads),
      "param_norm": optax.global_norm(params),
    }
    metrics = {"loss": loss} | norms | metrics
    new = TrainState(step + 1, params, method_state, opt_state)
    if skip_nonfinite:
      finite = jnp.isfinite(jnp.stack([loss, *norms.values()])).all()
      keep = lambda x, old: jnp.where(finite, x, old)
      new = jax.tree.map(keep, new, state._replace(step=new.step))
    return new, metrics

  return train_step


def make_embed(method: Method, augment: Callable | None = None) -> Callable:
  """Returns `embed(state, batch) -> {"pooled", "tokens"}` through `augment`.

  `augment` is the evaluation preset: its keys are those of places in the batch,
  the same in each.
  """

  def embed(state, batch):
    n = jax.tree.leaves(batch)[0].shape[0]
    batch = batch | {"key": jax.random.split(jax.random.key(0), n)}
    if augment is not None:
      batch = augment(batch)
    return method.embed(state.params, state.method_state, batch)

  return embed


def _features(forward, params, method_state, batch, n, is_mean):
  """Features [b ...], the new state, and `backward(cotangents) -> grads`."""
  if n == 1:
    floats, vjp, (others, new_state) = jax.vjp(
      lambda p: forward(p, method_state, batch), params, has_aux=True
    )
    return floats, others, new_state, lambda cotangents: vjp(cotangents)[0]

  microbatches = ops.strided_split(batch, n)
  zeros = jax.tree.map(jnp.zeros_like, params)
  if is_mean:
    return _sums(forward, params, method_state, microbatches, zeros)

  def collect(method_state, microbatch):
    floats, (others, method_state) = forward(params, method_state, microbatch)
    return method_state, (floats, others)

  new_state, features = jax.lax.scan(collect, method_state, microbatches)

  def backward(cotangents):
    def add(total, inputs):
      microbatch, cotangents = inputs
      _, vjp, _ = jax.vjp(
        lambda p: forward(p, method_state, microbatch), params, has_aux=True
      )
      return jax.tree.map(jnp.add, total, vjp(cotangents)[0]), None

    parts = microbatches, ops.strided_split(cotangents, n)
    return jax.lax.scan(add, zeros, parts)[0]

  return *ops.strided_join(features), new_state, backward


def _sums(forward, params, method_state, microbatches, zeros):
  """As `_features`, of a loss that is a sum times what is known afterwards."""

  def add(carry, microbatch):
    total, method_state = carry
    floats, vjp, (others, method_state) = jax.vjp(
      lambda p: forward(p, method_state, microbatch), params, has_aux=True
    )
    ones = jax.tree.map(jnp.zeros_like, floats)
    ones = ones | {"sum": jnp.ones_like(floats["sum"])}
    total = jax.tree.map(jnp.add, total, vjp(ones)[0])
    return (total, method_state), (floats, others)

  (total, new_state), features = jax.lax.scan(
    add, (zeros, method_state), microbatches
  )
  backward = lambda cotangents: jax.tree.map(
    lambda g: g * cotangents["sum"][0].astype(g.dtype), total
  )
  return *ops.strided_join(features), new_state, backward


def _with_keys(batch, rng, step, axis_name):
  """Adds `key` [b]: of the step, and the place in the global batch alone."""
  if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
    raise ValueError("rng is a raw array: give a typed key, jax.random.key(0)")
  n = jax.tree.leaves(batch)[0].shape[0]
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * n
  places = first + jnp.arange(n)
  rng = jax.random.fold_in(rng, step)
  keys = jax.vmap(lambda place: jax.random.fold_in(rng, place))(places)
  return batch | {"key": keys}


def _fold_in(keys, data):
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def _partition(tree):
  """Splits leaves into those with a gradient and the others; None elsewhere."""
  is_float = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)
  floats = jax.tree.map(lambda x: x if is_float(x) else None, tree)
  others = jax.tree.map(lambda x: None if is_float(x) else x, tree)
  return floats, others


def _merge(floats, others):
  pick = lambda x, y: y if x is None else x
  return jax.tree.map(pick, floats, others, is_leaf=lambda x: x is None)


def _varying(tree, axis_name):
  """Marks replicated arrays as local, so that gradients come out local too."""
  if axis_name is None:
    return tree
  cast = lambda x: jax.lax.pcast(x, axis_name, to="varying")
  return jax.tree.map(cast, tree)


def _gather(tree, axis_name):
  """Local [b ...] -> global [b ...], the same on all devices."""
  if axis_name is None:
    return tree
  gather = lambda x: jax.lax.all_gather(
    x, axis_name, axis=0, tiled=True, to="invarying"
  )
  return jax.tree.map(gather, tree)


def _local(tree, like, axis_name):
  """The part of global arrays [b ...] that belongs to this device."""
  if axis_name is None:
    return tree
  place = jax.lax.axis_index(axis_name)
  cut = lambda x, y: jax.lax.dynamic_slice_in_dim(
    x, place * y.shape[0], y.shape[0]
  )
  return jax.tree.map(cut, tree, like)


def _sum(tree, axis_name):
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _refuse_local_batch_norm(forward, params, method_state, batch, step):
  """Batch norm that never asks other devices takes each one's own statistics.

  It would be another loss, and without a word. One `psum` in `forward` is
  enough: this finds an encoder that was not told, not one head among several.
  """
  if not _has_batch_norm(method_state):
    return
  jaxpr = jax.make_jaxpr(forward)(params, method_state, batch, step)
  asks = lambda name: "psum" in name or "all_gather" in name
  if not any(map(asks, _primitives(jaxpr.jaxpr))):
    raise ValueError(
      "batch norm sees the examples of one device alone: give the encoder the "
      "same axis_name as the step, or statistics_per_microbatch=True"
    )


def _primitives(jaxpr):
  """The names of a jaxpr's operations, those inside of others too."""
  for eqn in jaxpr.eqns:
    yield eqn.primitive.name
    for inner in jax.tree.leaves(list(eqn.params.values())):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from _primitives(inner)


def _refuse_batch_norm(method_state):
  if _has_batch_norm(method_state):
    raise errors.UserError(
      "batch norm would see one microbatch at a time, not the whole batch: "
      "use accumulate=1, an encoder without batch norm, or allow it by "
      "statistics_per_microbatch=True"
    )


def _has_batch_norm(method_state):
  leaves = jax.tree_util.tree_leaves_with_path(method_state)
  return any("batch_stats" in jax.tree_util.keystr(path) for path, _ in leaves)
