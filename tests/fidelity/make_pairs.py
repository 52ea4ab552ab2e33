"""Writes pairs.npz: google-research/bert's pairs for next-sentence prediction.

  python tests/fidelity/make_pairs.py CHECKOUT

Needs a checkout of the authors' code alone: what it takes of TensorFlow, it
takes for reading and writing files. Their masks draw nothing here, for ours are
drawn elsewhere, and the generator starts as ours does.
"""

import os
import random
import sys
import types
from unittest import mock

import numpy as np

sys.modules["tensorflow"] = mock.MagicMock()
sys.modules["tokenization"] = types.ModuleType("tokenization")
sys.path.insert(0, sys.argv[1])

import create_pretraining_data as theirs  # noqa: E402

CASES = {"short": (24, 3), "long": (64, 20)}  # a row's tokens, a sentence's
SPECIAL = {"[CLS]": 1, "[SEP]": 2}


def main():
  rng = np.random.default_rng(0)
  arrays = {}
  unmasked = lambda tokens, *args: (tokens, [], [])
  for name, (length, longest) in CASES.items():
    # Documents of 1 to 12 sentences; what each holds, and where it ends.
    counts = rng.integers(1, 13, 40)
    sizes = rng.integers(1, longest + 1, counts.sum())
    tokens = rng.integers(10, 1000, sizes.sum())
    sentences = iter(np.split(tokens, np.cumsum(sizes)[:-1]))
    documents = [[next(sentences).tolist() for _ in range(n)] for n in counts]
    chance, made = random.Random(0), []
    with mock.patch.object(theirs, "create_masked_lm_predictions", unmasked):
      for i in range(len(documents)):
        made += theirs.create_instances_from_document(
          documents, i, length, 0.1, 0.15, 20, [], chance
        )
    rows = np.zeros((len(made), length), np.int32)
    kinds = np.zeros_like(rows)
    for row, kind, one in zip(rows, kinds, made):
      row[: len(one.tokens)] = [SPECIAL.get(t, t) for t in one.tokens]
      kind[: len(one.segment_ids)] = one.segment_ids
    arrays |= {
      f"{name}/counts": counts,
      f"{name}/sizes": sizes,
      f"{name}/in": tokens,
      f"{name}/tokens": rows,
      f"{name}/kinds": kinds,
      f"{name}/next": np.array([one.is_random_next for one in made]),
    }
  folder = os.path.dirname(os.path.abspath(__file__))
  np.savez_compressed(os.path.join(folder, "pairs.npz"), **arrays)
  print({k: v.shape for k, v in arrays.items()})


if __name__ == "__main__":
  main()
