"""Documents as rows of tokens."""

import os
import types

import numpy as np
import pytest

from ssljax import errors
from ssljax.data import rows as rows_lib
from ssljax.data import texts


def documents(*sizes):
  """10, 11, ... for the first, 20, 21, ... for the second."""
  return [np.arange(n) + 10 * (i + 1) for i, n in enumerate(sizes)]


def test_one_document_a_row():
  rows = rows_lib.one_a_row(documents(2, 0, 5), 5, pad=0, start=1, end=2)
  np.testing.assert_array_equal(
    rows.arrays["tokens"],
    [[1, 10, 11, 2, 0], [1, 2, 0, 0, 0], [1, 30, 31, 32, 2]],
  )
  np.testing.assert_array_equal(rows.arrays["mask"].sum(axis=1), [4, 2, 5])
  assert "segment" not in rows.arrays and rows.cut == 1


def test_packed_documents_lose_nothing():
  rows = rows_lib.packed(documents(2, 5, 1), 4, pad=0, end=9)
  np.testing.assert_array_equal(
    rows.arrays["tokens"], [[10, 11, 9, 20], [21, 22, 23, 24], [9, 30, 9, 0]]
  )
  np.testing.assert_array_equal(
    rows.arrays["segment"], [[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, -1]]
  )
  np.testing.assert_array_equal(rows.arrays["mask"].sum(axis=1), [4, 4, 3])
  assert rows.cut == 0


def test_padding_is_of_no_document():
  rows = rows_lib.packed(documents(4, 4, 1), 4)
  np.testing.assert_array_equal(rows.arrays["segment"][-1], [0, -1, -1, -1])


def test_nothing_to_pack():
  rows = rows_lib.packed([], 4)
  assert {v.shape for v in rows.arrays.values()} == {(0, 4)}


def test_joined_documents_are_each_predicted_once():
  rows = rows_lib.joined(documents(2, 3), 4, end=9)
  np.testing.assert_array_equal(
    rows.arrays["tokens"], [[9, 10, 11, 9], [9, 20, 21, 22], [22, 9, 0, 0]]
  )
  mask = rows.arrays["mask"]
  np.testing.assert_array_equal(mask.sum(axis=1), [4, 4, 2])
  targets = rows.arrays["tokens"][:, 1:][mask[:, 1:]]
  np.testing.assert_array_equal(targets, [10, 11, 9, 20, 21, 22, 9])


PAIRS = np.load(os.path.join(os.path.dirname(__file__), "fidelity/pairs.npz"))


@pytest.mark.parametrize("case", ["short", "long"])
def test_pairs_are_those_of_berts_authors(case):
  given = {k.split("/")[1]: PAIRS[k] for k in PAIRS.files if k.startswith(case)}
  ends = np.cumsum(given["sizes"])[:-1]
  sentences = iter(np.split(given["in"], ends))
  many = [[next(sentences) for _ in range(n)] for n in given["counts"]]
  length = given["tokens"].shape[1]
  rows = rows_lib.pairs(many, length, pad=0, start=1, end=2)
  for name in ("tokens", "kinds", "next"):
    np.testing.assert_array_equal(rows.arrays[name], given[name])
  np.testing.assert_array_equal(rows.arrays["mask"], given["tokens"] > 0)


def test_lines_are_sentences_and_blank_lines_end_documents():
  class Letters:
    pad, start, end = 0, 1, 2

    def encode(self, texts):
      return [np.array([ord(c) for c in t.strip()]) for t in texts]

  found = texts._sentences(["ab\nc\n \nd\n", "e"], Letters())
  letters = [["".join(map(chr, s)) for s in d] for d in found]
  assert letters == [["ab", "c"], ["d"], ["e"]]


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: rows_lib.one_a_row([], 2, pad=0, start=1, end=2), "no room"),
    (
      lambda: rows_lib.pairs([documents(3, 3)], 9, pad=0, start=1, end=2),
      "give 2 and 5 or more; a blank line ends a document",
    ),
    (
      lambda: rows_lib.pairs(
        [documents(3), documents(4)], 9, pad=0, start=1, end=2
      ),
      "no document has two sentences",
    ),
    (
      lambda: rows_lib.of(
        "pairs", [], 9, types.SimpleNamespace(pad=0, start=None, end=1)
      ),
      "tokens for start and end",
    ),
  ],
)
def test_mistakes_are_named(call, words):
  with pytest.raises(errors.UserError, match=words):
    call()
