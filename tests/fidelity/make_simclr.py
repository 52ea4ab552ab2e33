"""Writes simclr.npz: NT-Xent and LARS as google-research/simclr computes them.

Run where TensorFlow 2.15 is installed, with a checkout of the authors' code:

  python tests/fidelity/make_simclr.py CHECKOUT
"""

import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(sys.argv[1], "tf2"))

import lars_optimizer
import objective
import tensorflow as tf

STEPS = 5


def contrast(arrays):
  rng = np.random.default_rng(0)
  z = rng.normal(size=(24, 16)).astype(np.float32)
  arrays["ntxent/z"] = z  # the first views, then the second
  for temperature in (0.1, 0.5):
    x = tf.Variable(z)
    with tf.GradientTape() as tape:
      loss = objective.add_contrastive_loss(x, temperature=temperature)[0]
    arrays[f"ntxent/{temperature}/loss"] = loss.numpy()
    arrays[f"ntxent/{temperature}/grad"] = tape.gradient(loss, x).numpy()


def lars(arrays):
  rng = np.random.default_rng(1)
  shapes = {"kernel": (3, 3, 2, 4), "bias": (4,), "zeros": (5, 2)}
  start = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
  start["zeros"][:] = 0
  grads = [
    {k: 0.1 * rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    for _ in range(STEPS)
  ]
  for name, value in start.items():
    arrays[f"lars/start/{name}"] = value
    arrays[f"lars/grads/{name}"] = np.stack([g[name] for g in grads])
  for nesterov in (False, True):
    optimizer = lars_optimizer.LARSOptimizer(
      20.0,  # large, so that updates are not lost in the rounding
      momentum=0.9,
      weight_decay=1e-2,
      exclude_from_weight_decay=["bias"],
      use_nesterov=nesterov,
    )
    variables = {k: tf.Variable(v, name=k) for k, v in start.items()}
    history = {k: [] for k in variables}
    for g in grads:
      optimizer.apply_gradients((g[k], v) for k, v in variables.items())
      for k, v in variables.items():
        history[k].append(v.numpy())
    for k, values in history.items():
      arrays[f"lars/nesterov={nesterov}/{k}"] = np.stack(values)


def main():
  arrays = {}
  contrast(arrays)
  lars(arrays)
  path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "simclr.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path))


if __name__ == "__main__":
  main()
