"""Writes bert.npz: steps of google-research/bert's optimiser.

Run where TensorFlow 2.15 is installed, with a checkout of the authors' code:

  python tests/fidelity/make_bert.py CHECKOUT

The loss is the sum of weights times given numbers, which are so its gradients.
Stored are the start, the gradients, and the weights after each step; both the
cut of the norm and the end of the warm-up happen within.
"""

import os
import sys

import numpy as np
import tensorflow

tf = sys.modules["tensorflow"] = tensorflow.compat.v1
sys.path.insert(0, sys.argv[1])

import optimization  # noqa: E402

STEPS, WARMUP, RATE = 12, 4, 0.05
SHAPES = {
  "block/kernel": (5, 4),
  "block/bias": (4,),
  "block/LayerNorm/gamma": (4,),
  "head/kernel": (4, 3),
}


def main():
  rng = np.random.default_rng(0)
  draw = lambda shape: rng.normal(size=shape).astype(np.float32)
  start = {name: draw(shape) for name, shape in SHAPES.items()}
  # Norms about the one that they are cut to.
  scales = np.geomspace(0.02, 2.0, STEPS)[rng.permutation(STEPS)]
  grads = {
    name: np.stack([np.float32(s) * draw(shape) for s in scales])
    for name, shape in SHAPES.items()
  }
  tf.disable_v2_behavior()
  # The step is fed: the authors' graph does not order its reading and its
  # increase, and on this CPU the rate was read a step late.
  count = tf.placeholder(tf.int64, [])
  count.assign = lambda value: tf.no_op()
  tf.train.get_or_create_global_step = lambda: count
  given = {name: tf.placeholder(tf.float32, s) for name, s in SHAPES.items()}
  variables = {n: tf.get_variable(n, initializer=x) for n, x in start.items()}
  loss = sum(tf.reduce_sum(given[n] * variables[n]) for n in SHAPES)
  train = optimization.create_optimizer(loss, RATE, STEPS, WARMUP, False)
  history = []
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for i in range(STEPS):
      session.run(train, {count: i} | {given[n]: grads[n][i] for n in given})
      history.append(session.run(variables))
  arrays = {"hyper": np.array([STEPS, WARMUP, RATE])}
  for name in SHAPES:
    arrays[f"start/{name}"] = start[name]
    arrays[f"grads/{name}"] = grads[name]
    arrays[f"adam/{name}"] = np.stack([weights[name] for weights in history])
  path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bert.npz")
  np.savez_compressed(path, **arrays)
  norms = np.sqrt(sum((g**2).reshape(STEPS, -1).sum(1) for g in grads.values()))
  print(path, os.path.getsize(path), norms.round(2))


if __name__ == "__main__":
  main()
