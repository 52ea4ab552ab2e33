"""Weights and inputs drawn from their names, the same in two libraries.

So a stored file holds results alone, and full-sized networks fit into it.
"""

import zlib

import numpy as np


def draw(name, shape):
  """The array of a name in torch's naming, float32, of a trained one's size."""
  rng = np.random.RandomState(zlib.crc32(name.encode()))
  if name.endswith("running_var") or (
    name.endswith("weight") and len(shape) == 1
  ):
    x = rng.uniform(0.5, 1.5, shape)
  elif name.endswith("weight"):
    x = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
  elif name.startswith("input"):
    x = rng.normal(0, 1, shape)
  else:  # offsets, running means, tokens, positions
    x = rng.normal(0, 0.1, shape)
  return x.astype(np.float32)
