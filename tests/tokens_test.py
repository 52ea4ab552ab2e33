"""Tokenizers, and documents as rows."""

import numpy as np
import pytest

from ssljax import errors
from ssljax.data import tokens

pytest.importorskip("tokenizers")

TEXTS = [
  "a large animal that lives in Africa",
  'a small animal that lives in houses; "a cat"',
  "the act of living in Africa",
] * 20


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt"])
def test_a_tokenizer_learns_and_is_stored(kind, tmp_path):
  tokenizer = tokens.train(TEXTS, kind=kind, vocab=320)
  path = str(tmp_path / "tokenizer.json")
  tokenizer.save(path)
  other = tokens.load(path)
  assert other.vocab == tokenizer.vocab <= 320
  assert other.special == tokenizer.special
  for a, b in zip(tokenizer.encode(TEXTS[:3]), other.encode(TEXTS[:3])):
    np.testing.assert_array_equal(a, b)
    assert not np.isin(a, tokenizer.special).any()
  fields = (other.pad, other.start, other.end, other.mask)
  expected = {
    "bert": (0, 2, 3, 4),
    "roberta": (1, 0, 2, 4),
    "gpt": (None, 0, 0, None),
  }
  assert fields == expected[kind]


@pytest.mark.parametrize("kind", ["roberta", "gpt"])
def test_bytes_come_back_whatever_they_are(kind):
  tokenizer = tokens.train(TEXTS, kind=kind, vocab=300)
  for text in ("Africa", "  two spaces", "naïve ✓ 日本", "", "\n\t"):
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text


def test_wordpiece_is_lower_cased_and_joined_again():
  tokenizer = tokens.train(TEXTS, kind="bert", vocab=200)
  (ids,) = tokenizer.encode(["A Large CAT"])
  assert tokenizer.decode(ids) == "a large cat"
  (ids,) = tokenizer.encode(["日"])
  assert list(ids) == [tokenizer.unknown]
  framed = [tokenizer.start, *tokenizer.encode(["a cat"])[0], tokenizer.end]
  assert tokenizer.decode(framed, special=False) == "a cat"
  assert "[CLS]" in tokenizer.decode(framed)


def test_the_common_words_are_whole():
  tokenizer = tokens.train(TEXTS, kind="gpt", vocab=400)
  (ids,) = tokenizer.encode([" animal"])
  assert len(ids) == 1


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: tokens.load("/no/such.json"), "give a tokenizer.json"),
    (lambda: tokens.train(TEXTS, kind="word", vocab=99), "choose among"),
    (lambda: tokens.train(TEXTS, kind="gpt", vocab=200), "more than 257"),
    (lambda: tokens.one_a_row([], 2, pad=0, start=1, end=2), "no room"),
  ],
)
def test_mistakes_are_named(call, words):
  with pytest.raises(errors.UserError, match=words):
    call()


def test_a_file_that_is_no_tokenizer(tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_text("{}")
  with pytest.raises(errors.UserError, match="give a tokenizer.json"):
    tokens.load(str(path))


def documents(*sizes):
  """10, 11, ... for the first, 20, 21, ... for the second."""
  return [np.arange(n) + 10 * (i + 1) for i, n in enumerate(sizes)]


def test_one_document_a_row():
  rows = tokens.one_a_row(documents(2, 0, 5), 5, pad=0, start=1, end=2)
  np.testing.assert_array_equal(
    rows.tokens, [[1, 10, 11, 2, 0], [1, 2, 0, 0, 0], [1, 30, 31, 32, 2]]
  )
  np.testing.assert_array_equal(rows.mask.sum(axis=1), [4, 2, 5])
  assert rows.segment is None and rows.cut == 1


def test_packed_documents_lose_nothing():
  rows = tokens.packed(documents(2, 5, 1), 4, pad=0, end=9)
  np.testing.assert_array_equal(
    rows.tokens, [[10, 11, 9, 20], [21, 22, 23, 24], [9, 30, 9, 0]]
  )
  np.testing.assert_array_equal(
    rows.segment, [[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, -1]]
  )
  np.testing.assert_array_equal(rows.mask.sum(axis=1), [4, 4, 3])
  assert rows.cut == 0


def test_padding_is_of_no_document():
  rows = tokens.packed(documents(4, 4, 1), 4)
  np.testing.assert_array_equal(rows.segment[-1], [0, -1, -1, -1])


def test_nothing_to_pack():
  rows = tokens.packed([], 4)
  assert rows.tokens.shape == rows.mask.shape == rows.segment.shape == (0, 4)
