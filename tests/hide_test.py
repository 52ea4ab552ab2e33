"""What masked language models hide: counts, kinds, places, whole words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.augment import text

PAD, CLS, SEP, MASK = SPECIAL = (0, 1, 2, 3)
VOCAB, T, ROWS = 50, 40, 2000
OPTIONS = dict(mask_token=MASK, vocab=VOCAB, special=SPECIAL, most=8)


def rows(length=T, n=ROWS):
  tokens = np.random.default_rng(0).integers(4, VOCAB, (n, T)).astype(np.int32)
  tokens[:, 0] = CLS
  tokens[:, length - 1] = SEP
  tokens[:, length:] = PAD
  return tokens


def hide(tokens, seed=0, **options):
  keys = jax.random.split(jax.random.key(seed), len(tokens))
  run = jax.jit(functools.partial(text.hide, **(OPTIONS | options)))
  if "word" in options:
    word = options.pop("word")
    run = jax.jit(
      lambda k, t: text.hide(k, t, word=word, **(OPTIONS | options))
    )
  return jax.tree.map(np.asarray, run(keys, tokens))


@pytest.mark.parametrize("length, count", [(40, 6), (20, 3), (3, 1)])
def test_as_many_as_berts(length, count):
  out = hide(rows(length))
  # A row of three has one token that is not special.
  assert (out["weights"].sum(axis=1) == count).all()


def test_no_more_than_most():
  out = hide(rows(), most=4)
  assert out["places"].shape == (ROWS, 4)
  assert (out["weights"].sum(axis=1) == 4).all()


def test_probabilistic_rounding_has_the_mean():
  out = hide(rows(30), probabilistic=True)  # 4.5 of 30
  counts = out["weights"].sum(axis=1)
  assert set(counts) == {4, 5}
  assert counts.mean() == pytest.approx(4.5, abs=0.05)


def test_targets_are_what_was_there_and_the_rest_stays():
  tokens = rows(33)
  out = hide(tokens)
  at = np.take_along_axis(tokens, out["places"], axis=1)
  np.testing.assert_array_equal(out["targets"], at)
  chosen = np.zeros(tokens.shape, bool)
  np.put_along_axis(chosen, out["places"], out["weights"] > 0, axis=1)
  np.testing.assert_array_equal(out["tokens"][~chosen], tokens[~chosen])
  assert not np.isin(tokens[chosen], SPECIAL).any()
  # Places are not given twice.
  assert chosen.sum() == out["weights"].sum()


def test_kinds_are_80_10_10_and_places_uniform():
  tokens = rows()
  out = hide(tokens)
  now = np.take_along_axis(out["tokens"], out["places"], axis=1)
  real = out["weights"] > 0
  now, target = now[real], out["targets"][real]
  n = len(now)
  error = 4 * np.sqrt(0.2 / n)
  assert (now == MASK).mean() == pytest.approx(0.8 + 0.1 / VOCAB, abs=error)
  assert (now == target).mean() == pytest.approx(0.1 + 0.1 / VOCAB, abs=error)
  drawn = now[(now != MASK) & (now != target)]
  assert np.isin(drawn, (PAD, CLS, SEP)).any()
  assert len(np.unique(drawn)) > VOCAB - 5
  places = np.bincount(out["places"][real], minlength=T)[1:-1]
  expected = n / (T - 2)
  assert np.abs(places - expected).max() < 5 * np.sqrt(expected)


def test_random_tokens_without_special_ones():
  out = hide(rows(), mask_part=0.0, random_part=1.0, random_special=False)
  now = np.take_along_axis(out["tokens"], out["places"], axis=1)
  now = now[out["weights"] > 0]
  assert now.min() == 4 and now.max() == VOCAB - 1
  counts = np.bincount(now)[4:]
  assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_whole_words_are_hidden_whole():
  tokens = rows()
  rng = np.random.default_rng(1)
  starts = rng.random(tokens.shape) < 0.5
  starts[:, :2] = starts[:, -1] = True
  word = np.cumsum(starts, axis=1) - 1
  out = hide(tokens, word=word.astype(np.int32))
  chosen = np.zeros(tokens.shape, bool)
  np.put_along_axis(chosen, out["places"], out["weights"] > 0, axis=1)
  for row, w in zip(chosen[:300], word):
    for i in np.unique(w[1:-1]):
      of_word = row[1:-1][w[1:-1] == i]
      assert of_word.all() or not of_word.any()
  counts = chosen.sum(axis=1)
  assert counts.max() == 6
  assert (counts == 6).mean() > 0.9  # a word of one mostly fills the last place
  assert not chosen[:, [0, -1]].any()


def test_special_tokens_alone_hide_nothing():
  tokens = np.full((2, T), PAD, np.int32)
  tokens[:, :2] = CLS, SEP
  out = hide(tokens)
  assert out["weights"].sum() == 0
  np.testing.assert_array_equal(out["tokens"], tokens)


def test_keys_depend_on_the_epoch_and_the_example_alone():
  data = lambda keys: np.asarray(jax.random.key_data(keys))
  index = jnp.array([5, 9, 2])
  a = data(text.example_keys(0, jnp.int32(3), index))
  b = data(text.example_keys(0, jnp.array([3, 3]), index[1:]))
  np.testing.assert_array_equal(a[1:], b)
  later = data(text.example_keys(0, jnp.int32(13), index))
  assert (a != later).any(axis=1).all()
  static = lambda epoch: data(text.example_keys(0, jnp.int32(epoch), index, 10))
  np.testing.assert_array_equal(static(3), static(13))
  assert (static(3) != static(4)).any(axis=1).all()
  assert (
    (a != data(text.example_keys(1, jnp.int32(3), index))).any(axis=1).all()
  )


def test_spans_are_runs_of_hidden_tokens():
  """As fairseq's: 0.35 * 40 / 4 of them, rounded by chance, begin anywhere."""
  tokens = rows()
  out = hide(tokens, rate=0.35, span=4, most=18, mask_part=1.0, random_part=0.0)
  hidden = out["tokens"] == MASK
  np.testing.assert_array_equal(hidden.sum(axis=1), out["weights"].sum(axis=1))
  rng, expected = np.random.default_rng(0), np.zeros((20_000, T), bool)
  for row in expected:
    runs = int(0.35 * T / 4 + rng.random())
    starts = rng.choice(T, runs, replace=False)
    places = (starts[:, None] + np.arange(4)).ravel()
    row[places[places < T]] = True
  expected[:, [0, T - 1]] = False
  np.testing.assert_allclose(
    hidden.mean(axis=0), expected.mean(axis=0), atol=0.04
  )
  counts, wanted = hidden.sum(axis=1), expected.sum(axis=1)
  assert counts.max() == wanted.max() == 16
  assert counts.mean() == pytest.approx(wanted.mean(), abs=0.2)
  for x in (hidden, expected):  # runs that do not end where the row does
    edges = np.diff(np.pad(x, ((0, 0), (1, 1))).astype(int), axis=1)
    runs = [(np.flatnonzero(e == 1), np.flatnonzero(e == -1)) for e in edges]
    inner = np.concatenate([(b - a)[b < T - 1] for a, b in runs])
    assert inner.min() >= 3  # where a special token took one
    assert (inner == 4).mean() > 0.6


def test_spans_stay_before_the_padding():
  tokens = rows(11)
  out = hide(tokens, rate=0.35, span=4, most=18, mask_part=1.0)
  assert not (out["tokens"][:, 10:] == MASK).any()
  assert (out["tokens"] == MASK).any(axis=0)[1:10].all()
