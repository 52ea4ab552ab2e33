"""Documents as rows of tokens of one length."""

import random
from collections.abc import Iterable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssljax import errors

_SHORT = 0.1  # part of the documents whose pairs are shorter


class Rows(NamedTuple):
  """Documents in rows of one length.

  Attributes:
    arrays: by name: `tokens` int32 [n t]; `mask` bool [n t], False at padding;
      where documents are packed, `segment` int32 [n t], the document of each
      place, counted in its row from 0; for pairs `kinds` int32 [n t], 1 in the
      second, and `next` int32 [n], 0 where that follows the first and 1 where
      it is any other, as BERT's authors number them.
    cut: how many documents lost their ends.
  """

  arrays: dict[str, np.ndarray]
  cut: int = 0


def of(kind: str, documents: Iterable, length: int, tokenizer) -> Rows:
  """The rows of a kind: "one" document each, "packed", "joined" or "pairs".

  Args:
    kind: as above; see the functions below.
    documents: int [n] each; for "pairs" lists of such, the sentences.
    length: tokens a row.
    tokenizer: with the numbers of its special tokens.

  Raises:
    UserError: an unknown kind, or a tokenizer that lacks what it needs.
  """
  pad = 0 if tokenizer.pad is None else tokenizer.pad
  start, end = tokenizer.start, tokenizer.end
  if kind == "one":
    return one_a_row(documents, length, pad=pad, start=start, end=end)
  if kind == "packed":
    return packed(documents, length, pad=pad, start=start, end=end)
  if end is None or (kind == "pairs" and start is None):
    raise errors.UserError(
      f"data.rows={kind!r} needs a tokenizer with tokens for start and end"
    )
  if kind == "joined":
    return joined(documents, length, pad=pad, end=end)
  if kind == "pairs":
    return pairs(documents, length, pad=pad, start=start, end=end)
  raise errors.UserError(
    f"unknown data.rows={kind!r}: choose one, packed, joined or pairs"
  )


def one_a_row(
  documents: Iterable[np.ndarray],
  length: int,
  *,
  pad: int,
  start: int | None = None,
  end: int | None = None,
) -> Rows:
  """Each document in a row of its own, between `start` and `end`, padded.

  What is longer is cut before `end`.
  """
  room = _room(length, start, end)
  documents = list(documents)
  tokens = np.full((len(documents), length), pad, np.int32)
  mask = np.zeros(tokens.shape, bool)
  cut = 0
  for row, document in enumerate(documents):
    cut += len(document) > room
    whole = _framed(document[:room], start, end)
    tokens[row, : len(whole)] = whole
    mask[row, : len(whole)] = True
  return Rows({"tokens": tokens, "mask": mask}, cut)


def packed(
  documents: Iterable[np.ndarray],
  length: int,
  *,
  pad: int = 0,
  start: int | None = None,
  end: int | None = None,
) -> Rows:
  """All documents behind each other, cut into rows; the last is padded.

  A document that does not end with its row goes on in the next, as a segment
  of its own there. Nothing is lost.
  """
  _room(length, start, end)
  framed = [_framed(document, start, end) for document in documents]
  sizes = np.array([len(d) for d in framed], np.int64)
  total = int(sizes.sum())
  shape = -(-total // length), length
  tokens = np.full(shape, pad, np.int32)
  mask = np.zeros(shape, bool)
  segment = np.zeros(shape, np.int32)
  if total:
    tokens.reshape(-1)[:total] = np.concatenate(framed)
    mask.reshape(-1)[:total] = True
    segment.reshape(-1)[:total] = np.repeat(np.arange(len(framed)), sizes)
    segment -= segment[:, :1]
    segment[~mask] = -1
  return Rows({"tokens": tokens, "mask": mask, "segment": segment})


def joined(
  documents: Iterable[np.ndarray], length: int, *, end: int, pad: int = 0
) -> Rows:
  """All documents as one text, an `end` before the first and after each.

  As GPT-2 reads: rows do not tell documents apart. A row begins with the last
  token of the one before, so that a causal model predicts each token once.
  """
  if length < 2:
    raise errors.UserError(f"rows of {length} tokens have no room: give more")
  text = np.concatenate([[end], *(_framed(d, None, end) for d in documents)])
  new = length - 1
  n = max(1, -(-(len(text) - 1) // new))
  tokens = np.full(n * new + 1, pad, np.int32)
  tokens[: len(text)] = text
  places = np.arange(n)[:, None] * new + np.arange(length)
  return Rows({"tokens": tokens[places], "mask": places < len(text)})


def pairs(
  documents: Sequence[Sequence[np.ndarray]],
  length: int,
  *,
  pad: int,
  start: int,
  end: int,
  seed: int = 0,
) -> Rows:
  """Neighbouring pieces of documents, or by chance pieces of two.

  Devlin et al. 2018, section 3.1, task 2, and appendix A.2, as
  `create_instances_from_document` of google-research/bert
  `create_pretraining_data.py` has it: sentences are gathered until they fill a
  row, and cut in two between sentences; for half of the rows, and where there
  is but one sentence, the second piece is of another document, and what was
  gathered for it is used again. A tenth of the documents aims at a shorter row,
  of a length by chance. Of a pair that is too long the longer loses tokens,
  from its front or its end. A row is start, first, end, second, end.

  Args:
    documents: of each the sentences, int [n].
    length: tokens a row.
    pad, start, end: special tokens.
    seed: of all chances.

  Raises:
    UserError: fewer than two documents, no document of two sentences, or no
      room for a pair.
  """
  documents = [[s for s in d if len(s)] for d in documents]
  documents = [d for d in documents if d]
  room = length - 3
  if len(documents) < 2 or room < 2:
    raise errors.UserError(
      f"pairs of {len(documents)} documents in rows of {length}: give 2 and 5 "
      "or more; a blank line ends a document"
    )
  if max(map(len, documents)) == 1:
    raise errors.UserError(
      "no document has two sentences, so that none follows another: a line is "
      "a sentence, a blank line ends a document"
    )
  rng = random.Random(seed)
  made = [
    pair
    for i in range(len(documents))
    for pair in _pairs(documents, i, room, rng)
  ]
  tokens = np.full((len(made), length), pad, np.int32)
  kinds = np.zeros(tokens.shape, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, (first, second, _) in enumerate(made):
    first = _framed(first, start, end)
    second = _framed(second, None, end)
    whole = len(first) + len(second)
    tokens[row, :whole] = np.concatenate([first, second])
    kinds[row, len(first) : whole] = 1
    mask[row, :whole] = True
  others = np.array([other for *_, other in made], np.int32)
  return Rows({"tokens": tokens, "mask": mask, "kinds": kinds, "next": others})


def _pairs(documents, at, room, rng):
  """Yields (first, second, whether that is of another document) of one.

  The chances are drawn in the authors' order.
  """
  document, target = documents[at], room
  if rng.random() < _SHORT:
    target = rng.randint(2, room)
  begin = 0
  while begin < len(document):
    stop, size = begin, 0
    while stop < len(document) and size < target:
      size += len(document[stop])
      stop += 1
    middle = begin + 1
    if stop - begin > 1:
      middle = begin + rng.randint(1, stop - begin - 1)
    first = np.concatenate(document[begin:middle])
    other = stop - begin == 1 or rng.random() < 0.5
    if other:
      second = _elsewhere(documents, at, target - len(first), rng)
      stop = middle  # what was gathered for the second is used again
    else:
      second = np.concatenate(document[middle:stop])
    yield *_cut(first, second, room, rng), other
    begin = stop


def _elsewhere(documents, at, size, rng):
  """Sentences of another document, `size` tokens or more while there are."""
  for _ in range(10):  # as often as the authors try
    number = rng.randint(0, len(documents) - 1)
    if number != at:
      break
  document, found, total = documents[number], [], 0
  for sentence in document[rng.randint(0, len(document) - 1) :]:
    found.append(sentence)
    total += len(sentence)
    if total >= size:
      break
  return np.concatenate(found)


def _cut(first, second, room, rng):
  """The pair, its longer piece cut at the front or the end until it fits."""
  a, b = [0, len(first)], [0, len(second)]
  size = lambda bounds: bounds[1] - bounds[0]
  while size(a) + size(b) > room:
    longer = a if size(a) > size(b) else b
    if rng.random() < 0.5:
      longer[0] += 1
    else:
      longer[1] -= 1
  return first[slice(*a)], second[slice(*b)]


def _room(length, start, end):
  room = length - (start is not None) - (end is not None)
  if room < 1:
    raise errors.UserError(f"rows of {length} tokens have no room: give more")
  return room


def _framed(document, start, end):
  before = [] if start is None else [start]
  after = [] if end is None else [end]
  return np.concatenate([before, document, after]).astype(np.int32)
