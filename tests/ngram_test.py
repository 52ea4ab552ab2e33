"""The floors of language models against plain implementations."""

import collections
import math

import numpy as np
import pytest

from benchmarks import ngram

END, VOCAB = 0, 7


def documents(seed, count, vocab=VOCAB):
  """Documents of 1 to 12 tokens, some much more frequent than others."""
  rng = np.random.default_rng(seed)
  p = 0.5 ** np.arange(1, vocab)
  draw = lambda: rng.choice(
    np.arange(1, vocab), rng.integers(1, 13), p=p / p.sum()
  )
  return [draw() for _ in range(count)]


class Plain:
  """Modified Kneser-Ney by the book, of tuples in dictionaries."""

  def __init__(self, documents, order):
    self.order = order
    counts = [collections.Counter() for _ in range(order + 1)]
    for document in documents:
      row = (END, *map(int, document), END)
      for i in range(1, len(row)):
        for k in range(1, min(order, i + 1) + 1):
          counts[k][row[i - k + 1 : i + 1]] += 1
    self.counts = [None, *counts[1:]]
    for k in range(1, order):
      before = collections.defaultdict(set)
      for gram in counts[k + 1]:
        before[gram[1:]].add(gram[0])
      self.counts[k] = {
        gram: len(before[gram]) or count for gram, count in counts[k].items()
      }
    self.discounts = [None] + [self._discounts(c) for c in self.counts[1:]]

  def _discounts(self, counts):
    n = collections.Counter(counts.values())
    found = {}
    for r, otherwise in ((1, 0.5), (2, 1.0), (3, 1.5)):
      found[r] = otherwise
      if n[1] and n[r]:
        d = r - (r + 1) * n[1] / (n[1] + 2 * n[2]) * n[r + 1] / n[r]
        found[r] = d if 0 < d <= r else otherwise
    return found

  def p(self, token, history):
    """Of a token behind a tuple that is no longer than order - 1."""
    shorter = self.p(token, history[1:]) if history else 1 / VOCAB
    k = len(history) + 1
    follow = {g[-1]: c for g, c in self.counts[k].items() if g[:-1] == history}
    if not follow:
      return shorter
    cut = lambda c: self.discounts[k][min(c, 3)]
    total = sum(follow.values())
    rest = sum(map(cut, follow.values())) / total
    mine = follow.get(token, 0)
    return (mine - cut(mine) if mine else 0) / total + rest * shorter

  def log2(self, documents):
    out = []
    for document in documents:
      row = (END, *map(int, document), END)
      for i in range(1, len(row)):
        history = row[max(0, i - self.order + 1) : i]
        out.append(math.log2(self.p(row[i], history)))
    return np.array(out)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 60])
def test_kneser_ney_is_the_books(order, count):
  train, test = documents(0, count), documents(1, 20)
  model = ngram.KneserNey(train, vocab=VOCAB, end=END, order=order)
  np.testing.assert_allclose(
    model.log2(test), Plain(train, order).log2(test), rtol=1e-9
  )


def test_documents_shorter_than_the_order():
  train = [np.array([1, 2]), np.array([2])]
  model = ngram.KneserNey(train, vocab=VOCAB, end=END, order=5)
  test = documents(1, 5)
  np.testing.assert_allclose(
    model.log2(test), Plain(train, 5).log2(test), rtol=1e-9
  )


@pytest.mark.parametrize("history", [[], [1], [1, 1, 2], [6, 5, 6, 5]])
def test_probabilities_sum_to_one(history):
  model = ngram.KneserNey(documents(0, 60), vocab=VOCAB, end=END, order=4)
  each = [
    model.log2([np.array([*history, token])])[len(history)]
    for token in range(1, VOCAB)
  ]
  each.append(model.log2([np.array(history, int)])[-1])  # the end
  np.testing.assert_allclose(np.exp2(each).sum(), 1, rtol=1e-12)


def test_an_example_by_hand():
  # E a a E, E a b E. Discounts of bigrams: 2/3, 2; of tokens, by how many
  # stand before them (E 2, a 2, b 1): 1/5, 2; so 0.84 of them is uniform.
  a, b = 1, 2
  train = [np.array([a, a]), np.array([a, b])]
  model = ngram.KneserNey(train, vocab=3, end=END, order=2)
  found = np.exp2(model.log2([np.array([a, b])]))
  of_a, of_b, of_end = 0.28, 0.16 + 0.28, 0.28
  want = [
    0 + 1 * of_a,  # a behind E: both counts are discounted away
    (1 - 2 / 3) / 3 + 2 / 3 * of_b,
    (1 - 2 / 3) / 1 + 2 / 3 * of_end,
  ]
  np.testing.assert_allclose(found, want, rtol=1e-12)


def test_what_came_before_the_document_does_not_matter():
  train, test = documents(0, 60), documents(1, 4)
  model = ngram.KneserNey(train, vocab=VOCAB, end=END, order=5)
  alone = np.concatenate([model.log2([document]) for document in test])
  np.testing.assert_array_equal(model.log2(test), alone)


def test_xz_beyond_the_training_text():
  rng = np.random.default_rng(0)
  train, other = (rng.integers(0, 256, 4000, np.uint8).tobytes() for _ in "ab")
  alone, beyond = ngram.xz_bits(train, train[1000:3000])
  assert alone > 8 and beyond < 0.5
  alone, beyond = ngram.xz_bits(train, other)
  assert 8 <= beyond < alone
