"""Tokenizers."""

import time

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
  (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
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


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt"])
def test_training_is_deterministic(kind):
  # Many words that are as frequent as others, so that ties are broken.
  rng = np.random.default_rng(0)
  word = lambda: "".join(chr(97 + c) for c in rng.integers(0, 6, 5))
  texts = [" ".join(word() for _ in range(8)) for _ in range(60)]
  one, *others = [
    tokens.train(texts, kind=kind, vocab=330).to_json() for _ in range(4)
  ]
  assert all(other == one for other in others)


def test_word_pieces_are_those_of_the_frequent_pairs():
  texts = ["abab ab abab cb"] * 5
  pieces = ["a", "c", "##a", "##b", "ab", "##ab", "abab"]
  tokenizer = tokens.train(texts, kind="bert", vocab=5 + len(pieces))
  (ids,) = tokenizer.encode(["abab ababab cb ca"])
  names = [tokenizer.decode([i]) for i in ids]
  assert names == ["abab", "abab", "##ab", "c", "##b", "c", "##a"]


@pytest.mark.parametrize("kind", ["roberta", "gpt"])
def test_bytes_come_back_whatever_they_are(kind):
  tokenizer = tokens.train(TEXTS, kind=kind, vocab=300)
  for text in ("Africa", "  two spaces", "naïve ✓ 日本", "", "\n\t"):
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt"])
def test_special_tokens_that_are_written_in_a_text_are_text(kind, tmp_path):
  trained = tokens.train(TEXTS, kind=kind, vocab=300)
  (tmp_path / "a.json").write_text(trained.to_json())
  text = "a [MASK] [PAD] <s>b</s> <pad> <mask> <|endoftext|>"
  for tokenizer in (trained, tokens.load(str(tmp_path / "a.json"))):
    (ids,) = tokenizer.encode([text])
    special = set(tokenizer.special) - {tokenizer.unknown}
    assert len(ids) > 20 and not special & set(ids.tolist())


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_word_without_an_end_takes_no_time(kind):
  word = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 200_000)))
  start = time.process_time()
  tokens.train([*TEXTS, word], kind=kind, vocab=400)
  assert time.process_time() - start < 5  # 8 s and more of 160,000 whole


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


def test_a_vocabulary_that_the_characters_alone_exceed_is_refused():
  characters = "".join(chr(0x4E00 + i) for i in range(200))
  with pytest.raises(errors.UserError, match="give 205 or more"):
    tokens.train([" ".join(characters)], kind="bert", vocab=100)


def test_a_byte_level_token_of_hashes_is_not_word_pieces():
  texts = ["## a title\n### another small animal"] * 9
  tokenizer = tokens.train(texts, kind="gpt", vocab=290)
  (ids,) = tokenizer.encode(["##"])
  assert len(ids) == 1  # the tokenizer has it
  (ids,) = tokenizer.encode([" small animal"])
  assert (~tokenizer.goes_on[ids]).sum() == 2


def test_which_tokens_continue_a_word():
  for kind in ("bert", "gpt"):
    tokenizer = tokens.train(TEXTS, kind=kind, vocab=290)
    (ids,) = tokenizer.encode([" small animal"])
    goes_on = tokenizer.goes_on[ids]
    assert (~goes_on).sum() == 2 and not goes_on[0]


def test_words_of_sentencepiece_begin_with_its_space():
  import tokenizers

  made = tokenizers.Tokenizer(tokenizers.models.Unigram())
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  made.train_from_iterator(
    TEXTS,
    tokenizers.trainers.UnigramTrainer(
      vocab_size=60,
      special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
      unk_token="<unk>",
      show_progress=False,
    ),
  )
  tokenizer = tokens.Tokenizer(made)
  (row,) = tokenizer.encode(["a large animal"])
  assert (~tokenizer.goes_on[row]).sum() == 3
