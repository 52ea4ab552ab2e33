"""Writes byol.npz: BYOL's loss on features, and five steps of training.

Run where jax, dm-haiku, dm-tree and optax are installed, with a checkout of
google-deepmind/deepmind-research:

  JAX_ENABLE_X64=1 python tests/fidelity/make_byol.py DEEPMIND_RESEARCH

Heads, loss, LARS and schedules are the authors' `byol/utils`. How they are put
together is written again here, after `_forward`, `loss_fn` and `_update_fn` of
`byol_experiment.py`, which imports TensorFlow and acme; the encoder is a layer,
and the classifier, which gives the encoder no gradient, is left out.
"""

import importlib.util
import os
import sys

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS, BATCH, INPUT, WIDTH, HIDDEN, DIM = 5, 16, 12, 8, 10, 6


def load(name):
  path = os.path.join(sys.argv[1], "byol", "utils", f"{name}.py")
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


helpers = load("helpers")
networks = load("networks")
optimizers = load("optimizers")
schedules = load("schedules")


def both(views, is_training):
  """The projection and the prediction of each view."""
  norm = dict(decay_rate=0.9, eps=1e-5, create_scale=True, create_offset=True)
  body = hk.Linear(WIDTH, name="body")
  projector = networks.MLP("projector", HIDDEN, DIM, norm)
  predictor = networks.MLP("predictor", HIDDEN, DIM, norm)

  def once(x):
    z = projector(jax.nn.relu(body(x)), is_training)
    return z, predictor(z, is_training)

  return [once(x) for x in views]


def regression(p1, p2, z1, z2):
  loss = helpers.regression_loss(p1, jax.lax.stop_gradient(z2))
  loss = loss + helpers.regression_loss(p2, jax.lax.stop_gradient(z1))
  return jnp.mean(loss)


def store(arrays, prefix, params):
  for module, leaves in params.items():
    for name, value in leaves.items():
      name = f"{prefix}/{module.replace('/', '.')}.{name}"
      arrays[name] = np.squeeze(value)


def features(arrays):
  rng = np.random.default_rng(0)
  shared = rng.normal(size=(1, 12, 8))
  x = (shared + 0.5 * rng.normal(size=(4, 12, 8))).astype("float32")
  loss, grad = jax.value_and_grad(lambda x: regression(*x))(jnp.float64(x))
  arrays["features/z"], arrays["features/loss"] = x, loss
  arrays["features/grad"] = grad


def train(arrays):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(STEPS, BATCH, 1, INPUT))
  x = x + 0.3 * rng.normal(size=(STEPS, BATCH, 2, INPUT))
  x = arrays["views"] = x.astype("float32")
  forward = hk.without_apply_rng(hk.transform_with_state(both))
  views = lambda i: (jnp.float64(x[i, :, 0]), jnp.float64(x[i, :, 1]))

  def draw(seed):  # float32, for the other side
    params, state = forward.init(jax.random.PRNGKey(seed), views(0), True)
    rounded = lambda w: jnp.float64(jnp.float32(w))
    return jax.tree.map(rounded, params), state

  (online, online_state), (target, target_state) = draw(0), draw(1)
  store(arrays, "start/online", online)
  store(arrays, "start/target", target)

  def optimizer(rate):
    return optimizers.lars(
      rate,
      weight_decay=1e-2,
      eta=0.1,
      weight_decay_filter=optimizers.exclude_bias_and_norm,
      lars_adaptation_filter=optimizers.exclude_bias_and_norm,
    )

  def loss_fn(online, target, online_state, target_state, views):
    out, online_state = forward.apply(online, online_state, views, True)
    goal, target_state = forward.apply(target, target_state, views, True)
    (_, p1), (_, p2) = out
    (z1, _), (z2, _) = goal
    return regression(p1, p2, z1, z2), (online_state, target_state)

  opt_state, losses = optimizer(0).init(online), []
  for step in range(STEPS):
    (loss, (online_state, target_state)), grads = jax.value_and_grad(
      loss_fn, has_aux=True
    )(online, target, online_state, target_state, views(step))
    rate = schedules.learning_schedule(
      jnp.asarray(step),
      batch_size=BATCH,
      base_learning_rate=8.0,
      total_steps=STEPS,
      warmup_steps=2,
    )
    updates, opt_state = optimizer(rate).update(grads, opt_state, online)
    online = optax.apply_updates(online, updates)
    tau = schedules.target_ema(jnp.asarray(step), base_ema=0.8, max_steps=STEPS)
    move = lambda x, y, tau=tau: x + (1 - tau) * (y - x)
    target = jax.tree.map(move, target, online)
    losses.append(loss)
  arrays["losses"] = np.array(losses)
  store(arrays, "end/online", online)
  store(arrays, "end/target", target)


def main():
  assert jax.config.jax_enable_x64
  jax.tree_map = jax.tree.map  # newer versions have dropped it
  arrays = {}
  features(arrays)
  train(arrays)
  path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "byol.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path), arrays["features/loss"], arrays["losses"])


if __name__ == "__main__":
  main()
