"""Floors for language models: `python -m benchmarks.ngram --data=bible`.

What no network is needed for, in bits a byte of held-out text: `xz -9` of the
text alone, and beyond that of the training text; and interpolated n-grams with
modified Kneser-Ney smoothing (Chen & Goodman 1998, "An empirical study of
smoothing techniques for language modeling") over a model's own tokens. The text
is the documents, each with one token behind it that ends it, which counts as a
byte. Prints one JSON object; for the Bible with the default tokenizer xz_alone
2.252, xz_after_train 1.719, ngram 1.337, in 17 s on a busy core.
"""

import argparse
import json
import lzma
import time

import numpy as np
import tensorflow_datasets as tfds

from ssljax.data import prepare
from ssljax.data import tokens


def xz_bits(train: bytes, test: bytes) -> tuple[float, float]:
  """Bits a byte of `test` alone, and of what it adds behind `train`."""
  size = lambda text: len(lzma.compress(text, preset=9))
  beyond = size(train + test) - size(train)
  return 8 * size(test) / len(test), 8 * beyond / len(test)


class KneserNey:
  """An n-gram model of documents int [n], each of which `end` ends.

  A history does not reach into the document before; that document's `end`
  begins it, as the token that starts a sentence does elsewhere.
  """

  def __init__(self, documents, *, vocab: int, end: int, order: int = 5):
    self.vocab, self.end, self.order = vocab, end, order
    stream, start = self._stream(documents)
    ends = stream  # the number of the (k - 1)-gram that ends at each place
    self._keys, numbers = [np.arange(vocab)], [stream]
    raw = [np.bincount(stream[1:], minlength=vocab)]
    for k in range(2, order + 1):
      key = _after(ends) * vocab + stream
      valid = np.arange(len(stream)) - start >= k - 1
      found, number, count = np.unique(
        key[valid], return_inverse=True, return_counts=True
      )
      ends = np.full(len(stream), -1)
      ends[valid] = number
      self._keys.append(found)
      numbers.append(ends)
      raw.append(count)
    self._levels = [self._level(k, numbers, raw[k]) for k in range(order)]

  def _level(self, k, numbers, count):
    """(k + 1)-grams: what is left of each one's part, by history the rest."""
    if k + 1 < self.order:
      # Below the top it counts how many different tokens stand before it. None
      # does before what begins a document, which keeps its own count.
      longer, place = np.unique(numbers[k + 1], return_index=True)
      suffix = numbers[k][place[longer >= 0]]
      before = np.bincount(suffix, minlength=len(count))
      count = np.where(before > 0, before, count)
    discount = _discounts(count)[np.minimum(count, 3)]
    history = self._keys[k] // self.vocab
    histories = len(self._keys[k - 1]) if k else 1
    total = np.bincount(history, count, histories)
    rest = np.bincount(history, discount, histories) / np.maximum(total, 1)
    return (count - discount) / total[history], rest

  def log2(self, documents) -> np.ndarray:
    """log2 of the probability of each token and each `end`, in their order."""
    stream, _ = self._stream(documents)
    left, rest = self._levels[0]
    p = left[stream] + rest[0] / self.vocab
    ends = stream
    for k in range(1, self.order):
      left, rest = self._levels[k]
      if not len(left):  # no document is so long
        break
      history = _after(ends)
      key = history * self.vocab + stream
      at = np.minimum(np.searchsorted(self._keys[k], key), len(left) - 1)
      seen = self._keys[k][at] == key
      # Nothing follows a history with an `end` in it, but for its first token.
      known = (history >= 0) & (rest[history] > 0)
      p = np.where(known, seen * left[at] + rest[history] * p, p)
      ends = np.where(seen, at, -1)
    return np.log2(p[1:])

  def _stream(self, documents):
    """All tokens behind each other, an `end` before each document and after
    the last, and the place of the `end` before each token."""
    parts = [[self.end]]
    for document in documents:
      parts += [document, [self.end]]
    stream = np.concatenate(parts).astype(np.int64)
    sizes = [len(document) + 1 for document in documents]
    start = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    return stream, np.concatenate([[0], start])


def _after(ends):
  """The number of what ends before each place; -1 at the first."""
  return np.concatenate([[-1], ends[:-1]])


def _discounts(count):
  """For counts of 0, 1, 2, and more, as Chen & Goodman estimate them.

  Where there are too few counts to estimate one, as KenLM's fallback has it.
  """
  n = np.bincount(np.minimum(count, 5), minlength=6)
  r = np.arange(1, 4)
  with np.errstate(divide="ignore", invalid="ignore"):
    found = r - (r + 1) * n[1] / (n[1] + 2 * n[2]) * n[2:5] / n[1:4]
  found = np.where((found > 0) & (found <= r), found, [0.5, 1.0, 1.5])
  return np.concatenate([[0.0], found])


def read(name: str, split: str, data_dir: str | None) -> list[str]:
  folder = prepare.prepare(name, data_dir=data_dir)
  source = tfds.builder_from_directory(folder).as_data_source(split)
  text = lambda x: x.decode() if isinstance(x, bytes) else str(x)
  return [text(example["text"]) for example in source]


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--data", default="bible")
  parser.add_argument("--data_dir")
  parser.add_argument("--test_split", default="test")
  # Not BERT's, which forgets capitals and spaces, and so bytes.
  parser.add_argument("--tokenizer", default="gpt", choices=("gpt", "roberta"))
  parser.add_argument("--vocab", type=int, default=4096)
  parser.add_argument("--order", type=int, default=5)
  args = parser.parse_args()
  train, test = (
    read(args.data, split, args.data_dir)
    for split in ("train", args.test_split)
  )
  text = {
    name: "".join(f"{document}\n" for document in documents).encode()
    for name, documents in (("train", train), ("test", test))
  }
  begun = time.perf_counter()
  alone, beyond = xz_bits(text["train"], text["test"])
  compressed = time.perf_counter()
  tokenizer = tokens.train(train, kind=args.tokenizer, vocab=args.vocab)
  train, test = tokenizer.encode(train), tokenizer.encode(test)
  encoded = time.perf_counter()
  model = KneserNey(
    train, vocab=tokenizer.vocab, end=tokenizer.end, order=args.order
  )
  bits = -model.log2(test)
  done = time.perf_counter()
  print(
    json.dumps(
      vars(args)
      | {
        "bits_per_byte": {
          "xz_alone": round(alone, 4),
          "xz_after_train": round(beyond, 4),
          "ngram": round(bits.sum() / len(text["test"]), 4),
        },
        "ngram_nats_per_token": round(np.log(2) * bits.mean(), 4),
        "documents": {"train": len(train), "test": len(test)},
        "bytes": {name: len(x) for name, x in text.items()},
        "tokens": {
          "train": sum(map(len, train)) + len(train),
          "test": len(bits),
        },
        "seconds": {
          "xz": round(compressed - begun, 1),
          "tokenizer": round(encoded - compressed, 1),
          "ngram": round(done - encoded, 1),
        },
      }
    )
  )


if __name__ == "__main__":
  main()
