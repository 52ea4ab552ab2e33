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


VOCAB = 97


def text_batch():
  """Three rows of twelve tokens: one whole, one padded, one hardly filled.

  Three tokens are hidden in the first row, one in the second, none in the last.
  Tokens 0 and 1 do not occur, for some libraries take them as padding.
  """
  rng = np.random.RandomState(0)
  length = np.array([12, 9, 3])
  return {
    "tokens": rng.randint(2, VOCAB, (3, 12)).astype(np.int32),
    "mask": np.arange(12) < length[:, None],
    "kinds": (np.arange(12) >= length[:, None] // 2).astype(np.int32),
    "places": np.array([[1, 4, 10], [8, 0, 0], [0, 0, 0]], np.int32),
    "targets": rng.randint(2, VOCAB, (3, 3)).astype(np.int32),
    "weights": np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], np.int32),
    "next": np.array([1, 0, 1], np.int32),
  }


def masked_batch():
  """The same with every hidden token replaced by the last one, the mask.

  Tokens from 4 on, for what is below is special to fairseq; padding is 1.
  """
  batch = text_batch()
  rng = np.random.RandomState(1)
  tokens = rng.randint(4, VOCAB - 1, (3, 12)).astype(np.int32)
  tokens[~batch["mask"]] = 1
  for row, where in enumerate(batch["weights"] > 0):
    tokens[row, batch["places"][row][where]] = VOCAB - 1
  targets = rng.randint(4, VOCAB - 1, (3, 3)).astype(np.int32)
  names = ("mask", "places", "weights")
  return {k: batch[k] for k in names} | {"tokens": tokens, "targets": targets}
