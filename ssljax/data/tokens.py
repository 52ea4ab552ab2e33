"""Tokenizers.

Needs Hugging Face's `tokenizers`: `pip install 'ssljax[text]'`.
"""

import itertools
import re
from collections.abc import Iterable

import numpy as np

from ssljax import errors

# What the special tokens are called by BERT, RoBERTa and GPT-2.
_NAMES = {
  "pad": ("[PAD]", "<pad>"),
  "unknown": ("[UNK]", "<unk>"),
  "start": ("[CLS]", "<s>", "<|endoftext|>"),
  "end": ("[SEP]", "</s>", "<|endoftext|>"),
  "mask": ("[MASK]", "<mask>"),
}
# In the order of their numbers: BERT's, fairseq's, GPT-2's.
_SPECIAL = {
  "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
  "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
  "gpt": ("<|endoftext|>",),
}


_LONG = re.compile(r"\S{1000}")


class Tokenizer:
  """A tokenizer of `tokenizers`, and the numbers of its special tokens.

  Attributes:
    vocab: how many tokens there are.
    pad, unknown, start, end, mask: their numbers; None where there is none.
    special: all that there are, the padding first where there is one.
  """

  def __init__(self, tokenizer):
    # A "<s>" that is written in a text is text.
    tokenizer.encode_special_tokens = True
    self._tokenizer = tokenizer
    self.vocab = tokenizer.get_vocab_size()
    found = {}
    for field, names in _NAMES.items():
      numbers = map(tokenizer.token_to_id, names)
      found[field] = next((i for i in numbers if i is not None), None)
    self.pad, self.unknown = found["pad"], found["unknown"]
    self.start, self.end, self.mask = (
      found[k] for k in ("start", "end", "mask")
    )
    numbers = [i for i in found.values() if i is not None]
    self.special = tuple(dict.fromkeys(numbers))

  @property
  def goes_on(self) -> np.ndarray:
    """Which tokens [vocab] continue a word: "##ing", or no space before.

    A space is "\u0120" in BPE of bytes and "\u2581" in SentencePiece.
    """
    words = [self._tokenizer.id_to_token(i) or "" for i in range(self.vocab)]
    if type(self._tokenizer.model).__name__ == "WordPiece":
      found = np.array([w.startswith("##") for w in words])
    else:
      found = np.array([not w.startswith(("\u0120", "\u2581")) for w in words])
    found[list(self.special)] = False
    return found

  def encode(self, texts: Iterable[str]) -> list[np.ndarray]:
    """Each text's tokens int32 [n], without special ones added."""
    texts, found = iter(texts), []
    # An encoding holds many times what its tokens are.
    while some := list(itertools.islice(texts, 1000)):
      encodings = self._tokenizer.encode_batch(some, add_special_tokens=False)
      found += [np.asarray(e.ids, np.int32) for e in encodings]
    return found

  def decode(self, tokens, *, special: bool = True) -> str:
    """The text of tokens; special ones are left out where not `special`."""
    return self._tokenizer.decode(
      [int(i) for i in tokens], skip_special_tokens=not special
    )

  def to_json(self) -> str:
    """What a tokenizer.json holds."""
    return self._tokenizer.to_str(pretty=True)


def load(path: str) -> Tokenizer:
  """Reads a tokenizer.json.

  Raises:
    UserError: it is not there, or not one.
  """
  try:
    tokenizer = _library().Tokenizer.from_file(path)
  except Exception as e:  # the library raises Exception itself
    raise errors.UserError(
      f"no tokenizer in {path!r} ({e}): give a tokenizer.json"
    ) from e
  tokenizer.no_padding()  # which some files ask for; rows are made here
  tokenizer.no_truncation()
  return Tokenizer(tokenizer)


def train(texts: Iterable[str], *, kind: str, vocab: int) -> Tokenizer:
  """Learns a tokenizer.

  Of a word longer than 1,000 characters, as no language has, it learns parts:
  the trainer takes time by the square of a word.

  Args:
    texts: the documents.
    kind: "bert" (WordPiece of lower-cased words), "roberta" or "gpt" (BPE of
      bytes), which differ in their special tokens.
    vocab: at most so many tokens, special ones included.

  Raises:
    UserError: another kind, or a vocabulary smaller than what each needs.
  """
  if kind not in _SPECIAL:
    raise errors.UserError(
      f"unknown tokenizer {kind!r}: choose among {', '.join(_SPECIAL)}"
    )
  library, special = _library(), list(_SPECIAL[kind])
  texts = (_LONG.sub(r"\g<0> ", text) for text in texts)
  least = len(special) + (0 if kind == "bert" else 256)
  if vocab <= least:
    raise errors.UserError(
      f"a vocabulary of {vocab} is too small for {kind!r}: give more than "
      f"{least}"
    )
  if kind == "bert":
    made = Tokenizer(_word_pieces(library, texts, special, vocab))
    if made.vocab > vocab:
      raise errors.UserError(
        f"a vocabulary of {vocab} is too small for the characters of these "
        f"texts: give {made.vocab} or more"
      )
    return made
  byte_level = library.pre_tokenizers.ByteLevel
  tokenizer = library.Tokenizer(library.models.BPE())
  tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
  tokenizer.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=vocab,
    special_tokens=special,
    initial_alphabet=byte_level.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return Tokenizer(tokenizer)


# Characters inside of words, for the trainer: moved to where Unicode has none.
_INSIDE = 0xF0000


def _word_pieces(library, texts, special, vocab):
  """A WordPiece tokenizer of lower-cased words.

  The library's own trainer gives another vocabulary each time (its issue 1794):
  it numbers "##" pieces in the order of a hash table. Its BPE trainer is the
  same without these, and deterministic; here it sees characters inside of words
  as characters of their own.
  """
  normalizer = library.normalizers.BertNormalizer(lowercase=True)
  splitter = library.pre_tokenizers.BertPreTokenizer()

  def moved(word):
    inside = (
      chr(_INSIDE + ord(c)) if ord(c) <= 0x1FFFF else c for c in word[1:]
    )
    return word[:1] + "".join(inside)

  def lines():
    for text in texts:
      words = splitter.pre_tokenize_str(normalizer.normalize_str(text))
      yield " ".join(moved(word) for word, _ in words)

  def piece(token):
    if token in special:
      return token
    plain = "".join(
      chr(ord(c) - _INSIDE) if ord(c) >= _INSIDE else c for c in token
    )
    return f"##{plain}" if ord(token[0]) >= _INSIDE else plain

  learner = library.Tokenizer(library.models.BPE())
  learner.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
  learner.train_from_iterator(
    lines(),
    library.trainers.BpeTrainer(
      vocab_size=vocab, special_tokens=special, show_progress=False
    ),
  )
  pieces = {piece(token): i for token, i in learner.get_vocab().items()}
  tokenizer = library.Tokenizer(
    library.models.WordPiece(pieces, unk_token="[UNK]")
  )
  tokenizer.add_special_tokens(special)
  tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
  tokenizer.decoder = library.decoders.WordPiece()
  return tokenizer


def _library():
  try:
    import tokenizers
    import tokenizers.decoders
    import tokenizers.models
    import tokenizers.normalizers
    import tokenizers.pre_tokenizers
    import tokenizers.trainers
  except ImportError as e:
    raise errors.UserError(
      "text needs tokenizers: pip install 'ssljax[text]'"
    ) from e
  return tokenizers
