"""Evaluation protocols against scikit-learn, and at their extremes."""

import gzip
import json
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn import datasets
from sklearn import linear_model
from sklearn import neighbors

from ssljax import config as config_lib
from ssljax import errors
from ssljax import evaluate
from ssljax import held_out
from ssljax import run as run_lib
from ssljax import tuning
from ssljax.data import sources
from ssljax.evals import floors
from ssljax.evals import knn
from ssljax.evals import linear_probe

PROTOCOLS = {"knn": knn.knn, "linear": linear_probe.linear_probe}
BOTH = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


@pytest.fixture(scope="module")
def digits():
  """(train_x [1400 64], train_y, test_x [397 64], test_y)"""
  x, y = datasets.load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(x))
  x, y = x[order].astype(np.float32) / 16, y[order].astype(np.int32)
  return x[:1400], y[:1400], x[1400:], y[1400:]


def noisy(sets):
  """With a third of the training labels drawn anew: neighbours disagree."""
  x, y, *test = sets
  rng = np.random.default_rng(1)
  wrong = rng.random(len(y)) < 1 / 3
  return x, np.where(wrong, rng.integers(0, 10, len(y)), y), *test


@pytest.mark.parametrize("k, temperature", [(20, 0.1), (5, 1.0), (200, 0.02)])
def test_knn_is_scikit_learns(digits, k, temperature):
  train_x, train_y, test_x, test_y = noisy(digits)
  reference = neighbors.KNeighborsClassifier(
    k,
    metric="cosine",
    weights=lambda distance: np.exp((1 - distance) / temperature),
  ).fit(train_x, train_y)
  got = knn.knn(
    train_x,
    train_y,
    test_x,
    test_y,
    num_classes=10,
    k=k,
    temperature=temperature,
  )
  assert type(got["accuracy"]) is float
  assert got["accuracy"] == reference.score(test_x, test_y)
  assert got["protocol"].startswith(f"knn/1 k={k} ")


def test_knn_in_blocks_is_the_same_and_compiles_once(digits, monkeypatch):
  sets = noisy(digits)
  whole = knn.knn(*sets, num_classes=10)
  monkeypatch.setattr(knn, "_BLOCK", 50 * 1400)  # 397 is not a multiple of 50
  before = knn._predict._cache_size()
  assert knn.knn(*sets, num_classes=10) == whole
  assert knn._predict._cache_size() == before + 1


def test_knn_bounds_votes_too(digits, monkeypatch):
  sets = noisy(digits)
  whole = knn.knn(*sets, num_classes=10)
  shapes, real = [], knn._predict

  def predict(train_x, train_y, test_x, **options):
    shapes.append(test_x.shape)
    return real(train_x, train_y, test_x, **options)

  monkeypatch.setattr(knn, "_predict", predict)
  monkeypatch.setattr(knn, "_BLOCK", 50 * 20 * 100)
  sets[1][:20] = 0
  assert knn.knn(*sets, num_classes=100) == whole
  assert {len_ for len_, _ in shapes} == {50}


@pytest.mark.parametrize("scale", [1e-18, 1e-7, 1e18])
def test_knn_of_features_of_any_size_is_the_same(digits, scale):
  train_x, train_y, test_x, test_y = noisy(digits)
  whole = knn.knn(train_x, train_y, test_x, test_y, num_classes=10)
  scale = np.float32(scale)
  sets = train_x * scale, train_y, test_x * scale, test_y
  got = knn.knn(*sets, num_classes=10)["accuracy"]
  assert got == pytest.approx(whole["accuracy"], abs=0.003)  # digits are lost


def test_knn_weighs_by_similarity():
  # One at the same place against two at right angles: e^10 against 2.
  train_x = np.float32([[0, 1], [0, 2], [3, 0]])
  label = np.int32([0, 0, 1])
  test = np.float32([[1, 0]]), np.int32([1])
  of = lambda **kw: knn.knn(train_x, label, *test, num_classes=2, k=3, **kw)
  assert of()["accuracy"] == 1.0
  assert of(temperature=1e-4)["accuracy"] == 1.0  # e^10000 is no float32
  assert of(temperature=10.0)["accuracy"] == 0.0


def test_knn_takes_the_first_of_equals():
  x = np.ones((30, 4), np.float32)
  y = np.int32([3] * 11 + [1] * 19)
  got = knn.knn(x, y, x, y, num_classes=4, k=20)
  assert got["accuracy"] == 11 / 30
  y = np.int32([3] * 10 + [1] * 20)  # ten votes each: the lower label
  got = knn.knn(x, y, x, y, num_classes=4, k=20)
  assert got["accuracy"] == 20 / 30


def test_linear_reaches_scikit_learn(digits):
  train_x, train_y, test_x, test_y = digits
  got = linear_probe.linear_probe(*digits, num_classes=10)
  mean, std = train_x.mean(0), train_x.std(0) + 1e-6
  best = max(
    linear_model.LogisticRegression(C=c, max_iter=500)
    .fit((train_x - mean) / std, train_y)
    .score((test_x - mean) / std, test_y)
    for c in (0.01, 0.1, 1.0)
  )
  assert type(got["accuracy"]) is float
  assert got["accuracy"] >= best - 0.0051  # two of 397
  assert set(got["chosen"]) == {"rate", "decay"}
  assert got["protocol"].startswith("linear/1 ")


def test_linear_finds_the_minimum(digits):
  train_x, train_y, *_ = digits
  n, decay = 400, 0.01  # one batch: no noise is left at the end
  mean, scale = linear_probe._standardization(train_x[:n])
  x, variance, _ = linear_probe._principal((train_x[:n] - mean) / scale)
  weights = linear_probe._fit(
    jax.random.key(0),
    jnp.asarray(x),
    jnp.asarray(train_y[:n]),
    variance,
    np.arange(n),
    np.float32([[decay, 0.3]]),
    num_classes=10,
  )
  reference = linear_model.LogisticRegression(
    C=1 / (n * decay), tol=1e-8, max_iter=5000
  ).fit(x, train_y[:n])
  ours = np.asarray(weights[:, 0], np.float64)
  bias = ours[-1] - ours[-1].mean()
  np.testing.assert_allclose(ours[:-1], reference.coef_.T, atol=2e-3)
  np.testing.assert_allclose(bias, reference.intercept_, atol=2e-3)

  def objective(w, bias):
    logits = x @ w + bias
    of_label = logits[np.arange(n), train_y[:n]]
    entropy = special.logsumexp(logits, axis=1) - of_label
    return entropy.mean() + decay / 2 * np.sum(w**2)

  least = objective(reference.coef_.T, reference.intercept_)
  assert abs(objective(ours[:-1], bias) - least) < 1e-5 * least


def test_linear_does_not_mind_how_features_are_mixed(digits):
  train_x, train_y, test_x, test_y = digits
  rng = np.random.default_rng(0)
  mix = rng.standard_normal((64, 64)).astype(np.float32)
  # A direction that all share and that drowns the rest, at a tiny scale.
  common = lambda x: 1e-6 * (x @ mix + 200 * x.sum(1, keepdims=True))
  got = linear_probe.linear_probe(
    common(train_x), train_y, common(test_x), test_y, num_classes=10
  )
  assert got["accuracy"] > 0.96


def test_linear_with_more_features_than_examples(digits):
  train_x, train_y, test_x, test_y = digits
  rng = np.random.default_rng(0)
  project = rng.standard_normal((64, 300)).astype(np.float32)
  wide = lambda x: np.maximum(x @ project, 0)
  got = linear_probe.linear_probe(
    wide(train_x[:200]), train_y[:200], wide(test_x), test_y, num_classes=10
  )
  reference = linear_model.LogisticRegression(max_iter=500).fit(
    wide(train_x[:200]), train_y[:200]
  )
  assert got["accuracy"] > reference.score(wide(test_x), test_y) - 0.03


def test_linear_holds_a_tenth_out():
  # More features than examples fit any labels; not those that are held out.
  rng = np.random.default_rng(0)
  x = rng.standard_normal((200, 300)).astype(np.float32)
  y = rng.integers(0, 10, 200)
  got = linear_probe.linear_probe(x, y, x, y, num_classes=10)
  assert got["accuracy"] == 1.0  # fitted on all of it
  assert got["held_out_accuracy"] < 0.5


def test_linear_never_chooses_by_the_test_set_and_repeats(digits):
  train_x, train_y, test_x, test_y = (x[:400] for x in digits)
  sets = train_x, train_y, test_x, test_y
  a, b = (linear_probe.linear_probe(*sets, num_classes=10) for _ in range(2))
  assert a == b
  c = linear_probe.linear_probe(
    train_x, train_y, test_x, (test_y + 1) % 10, num_classes=10
  )
  assert c["accuracy"] < 0.1
  for name in ("chosen", "held_out_accuracy"):
    assert c[name] == a[name]


@BOTH
def test_chance_where_there_is_nothing_to_learn(protocol):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2400, 8)).astype(np.float32)
  y = rng.integers(0, 10, 2400)
  got = protocol(x[:1400], y[:1400], x[1400:], y[1400:], num_classes=10)
  assert abs(got["accuracy"] - 0.1) < 0.04  # four standard errors


@BOTH
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_features(protocol, value):
  x = np.full((1400, 8), value, np.float32)
  y = np.int32([2] * 30 + [0] * 400 + [1] * 970)
  got = protocol(x, y, x, y, num_classes=3)
  # The probe's bias says the commonest; the neighbours are the first.
  assert got["accuracy"] == (30 if protocol is knn.knn else 970) / 1400


def changed(sets, i, value):
  sets = [s.copy() for s in sets]
  sets[i][(7,) + (0,) * (sets[i].ndim - 1)] = value
  return sets


@BOTH
@pytest.mark.parametrize(
  "change, message",
  [
    (lambda s: changed(s, 0, np.nan), "training features hold NaN .* 1 of 140"),
    (lambda s: changed(s, 2, np.inf), "test features hold NaN or infinity"),
    (lambda s: changed(s, 1, 10), r"training labels are in \[0, 10\]"),
    (lambda s: changed(s, 3, -1), "test labels"),
    (lambda s: [s[0], s[1], s[2][:, :5], s[3]], r"test features \(397, 5\)"),
    (lambda s: [s[0], s[1][:9], s[2], s[3]], r"do not fit labels \(9,\)"),
    (lambda s: [s[0][:9], s[1][:9], s[2], s[3]], "9"),
    (lambda s: [*s[:3], s[3][:, None]], r"do not fit labels \(397, 1\)"),
    (lambda s: [s[0], s[1][:, None], *s[2:]], r"do not fit labels \(1400, 1\)"),
    (lambda s: [s[0][..., None], s[1], s[2][..., None], s[3]], r"give \[n d\]"),
  ],
)
def test_mistakes_name_the_mend(protocol, change, message, digits):
  with pytest.raises(errors.UserError, match=message) as e:
    protocol(*change(digits), num_classes=10)
  assert "\n" not in str(e.value)


FASHION = "/usr/share/datasets/fashion-mnist"  # Debian: dataset-fashion-mnist


def _sets(n, train, test):
  image = np.zeros((n, 2, 2, 1), np.uint8)
  make = lambda label: sources.ArraySource({"image": image, "label": label})
  return {"train": make(train), "test": make(test)}


@pytest.mark.parametrize(
  "n, train, test, message",
  [
    (19, 1, 1, "train_split=train has 19 examples, .* 20 neighbours: give"),
    (20, 1, -1, r"test_split=test has labels in \[-1, 1\], not in \[0, 2\)"),
    (20, -1, 1, r"train_split=train has labels in \[-1, 1\]"),
    (20, 1, 2, r"test_split=test has labels in \[0, 2\]"),
    (20, 1, 1, None),
  ],
)
@pytest.mark.parametrize("decoded", [False, True])
def test_what_knn_would_refuse_is_found_when_the_sets_are_opened(
  monkeypatch, n, train, test, message, decoded
):
  labels = [np.arange(n) % 2 for _ in range(2)]
  labels[0][7], labels[1][7] = train, test
  sets = _sets(n, *labels)
  if decoded:  # their labels have to be read
    sets = {k: sources.Part(s, np.arange(n)) for k, s in sets.items()}
  monkeypatch.setattr(evaluate, "labelled", lambda run, name, s: sets[s])
  run = types.SimpleNamespace(config=config_lib.base())
  if message is None:
    assert evaluate.eval_sets(run) == list(sets.values())
    return
  with pytest.raises(errors.UserError, match=message):
    evaluate.eval_sets(run)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir(FASHION), reason=f"no {FASHION}")
def test_raw_pixels_of_fashion_mnist():
  def read(name, offset):
    with gzip.open(os.path.join(FASHION, name)) as f:
      return np.frombuffer(f.read(), np.uint8, offset=offset)

  sets = []
  for part in ("train", "t10k"):
    images = read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
    sets += [images / np.float32(255)]
    sets += [read(f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int32)]
  assert abs(knn.knn(*sets, num_classes=10)["accuracy"] - 0.8447) < 0.0005
  got = linear_probe.linear_probe(*sets, num_classes=10)
  assert abs(got["accuracy"] - 0.846) < 0.003  # L-BFGS, fully converged


def test_tfidf_tells_classes_by_their_words():
  from ssljax.evals import tfidf

  rng = np.random.default_rng(0)
  words = [f"w{i}" for i in range(40)]
  y = rng.integers(0, 2, 400)
  # Each class has 30 of the words, 20 of them with the other.
  text = lambda c: " ".join(rng.choice(words[10 * c : 10 * c + 30], 12))
  texts = [text(c) for c in y]
  found = tfidf.tfidf(texts[:300], y[:300], texts[300:], y[300:])
  assert found["knn"]["accuracy"] > 0.85
  assert found["linear"]["accuracy"] > 0.95
  shuffled = rng.permutation(y[:300])
  chance = tfidf.tfidf(texts[:300], shuffled, texts[300:], y[300:])
  assert 0.3 < chance["linear"]["accuracy"] < 0.7
  with pytest.raises(errors.UserError, match="no words in common"):
    tfidf.tfidf(["a1", "b2"], y[:2], ["c"], y[:1])


def test_fine_tuning_learns_what_its_start_cannot_tell():
  from ssljax.data import sources
  from ssljax.evals import finetune

  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (400, 2, 2, 1)).astype(np.uint8)
  label = (image.reshape(400, 4)[:, 0] > 127).astype(np.int32)
  source = sources.ArraySource({"image": image, "label": label})
  part = lambda a, b: sources.Part(source, np.arange(a, b))
  embed = lambda params, batch: {
    "pooled": (batch["image"].reshape(-1, 4) / 8 - 16) @ params["w"]
  }
  run = lambda params: finetune.finetune(
    embed,
    params,
    part(0, 300),
    np.arange(200),
    part(300, 400),
    num_classes=2,
    seeds=2,
  )
  blind = {"w": jnp.zeros((4, 3)).at[1, 0].set(1.0)}  # sees another pixel
  found = run(blind)
  assert len(found["accuracies"]) == 2 and found["rate"] in (3e-4, 1e-3)
  seeing = run({"w": jnp.eye(4)})
  assert min(seeing["accuracies"]) > 0.75
  assert max(found["accuracies"]) < min(seeing["accuracies"])


def test_fine_tuning_sees_every_label(monkeypatch):
  from ssljax.data import sources
  from ssljax.evals import finetune

  monkeypatch.setattr(finetune, "_MOST_STEPS", 3)
  image = np.zeros((400, 2, 2, 1), np.uint8)
  source = sources.ArraySource({"image": image, "label": np.arange(400) % 2})
  seen, read = set(), source.read

  def note(places):
    seen.update(np.asarray(places).tolist())
    return read(places)

  monkeypatch.setattr(source, "read", note)
  embed = lambda params, batch: {"pooled": batch["image"].reshape(-1, 4) * 1.0}
  finetune.finetune(
    embed, {}, source, np.arange(320), sources.Part(source, np.arange(9)),
    num_classes=2,
  )  # fmt: skip
  assert seen >= set(range(320))


def test_fine_tuning_on_a_few_labels_takes_steps_enough(monkeypatch):
  from ssljax.data import sources
  from ssljax.evals import finetune

  steps = []
  monkeypatch.setattr(
    finetune, "_batches", lambda rng, places, n: steps.append(n) or []
  )
  image = np.zeros((400, 2, 2, 1), np.uint8)
  source = sources.ArraySource({"image": image, "label": np.arange(400) % 2})
  embed = lambda params, batch: {"pooled": batch["image"].reshape(-1, 4) * 1.0}
  few = sources.Part(source, np.arange(9))
  found = finetune.finetune(
    embed, {}, source, np.arange(14), few, num_classes=2
  )
  assert set(steps) == {200} and "finetune/4" in found["protocol"]


def test_fine_tuning_chooses_its_rate_without_the_test_set(monkeypatch):
  from ssljax.data import sources
  from ssljax.evals import finetune

  monkeypatch.setattr(finetune, "_MOST_STEPS", 1)
  monkeypatch.setattr(finetune, "_EVAL_BATCH", 30)  # 100 are no multiple
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (200, 2, 2, 1)).astype(np.uint8)
  source = sources.ArraySource({"image": image, "label": np.arange(200) % 2})
  train, test = (
    sources.Part(source, np.arange(*ends)) for ends in ((0, 100), (100, 200))
  )
  read, of_fit = [], []

  def note(places):
    read.extend(np.asarray(places).tolist())
    return source.read(places + 100)

  monkeypatch.setattr(test, "read", note)
  # What was learned is the label of all; the step notes what it has seen.
  step = lambda state, rows, rate: of_fit.append(len(read)) or state
  predict = lambda learned, batch: jnp.zeros(len(batch["label"]), int)
  monkeypatch.setattr(finetune, "_compiled", lambda *a: (step, predict))
  found = finetune.finetune(
    lambda params, batch: {"pooled": jnp.zeros((len(batch["label"]), 3))},
    {}, train, np.arange(100), test, num_classes=2, seeds=2,
  )  # fmt: skip
  # The test set is first read after the fits of both rates and of a seed.
  fits = 3 * (100 // 32)
  assert of_fit[:fits] == [0] * fits and of_fit[fits] > 0
  assert found["accuracies"] == [0.5, 0.5]
  assert set(read) == set(range(100))


def test_the_rate_of_fine_tuning_rises_and_falls():
  from ssljax.evals import finetune

  rates = [finetune._rate(step, 2.0, 50) for step in range(50)]
  np.testing.assert_allclose(rates[:5], [0.4, 0.8, 1.2, 1.6, 2.0])
  np.testing.assert_allclose(rates[5:], 2 * np.arange(45, 0, -1) / 45)


def test_fine_tuning_decays_and_its_head_is_quicker():
  from ssljax.evals import finetune

  embed = lambda params, batch: {"pooled": batch["x"] * params["w"]}
  step, _ = finetune._compiled(embed, 2)
  learned = {"w": jnp.ones(3)}, jnp.ones((3, 2)), jnp.zeros(2)
  batch = {"x": jnp.zeros((4, 3)), "label": jnp.array([0, 1, 0, 1])}
  # No gradient but the decay's.
  (params, weights, bias), _ = step(
    (learned, finetune._TX.init(learned)), batch, jnp.float32(0.1)
  )
  np.testing.assert_allclose(params["w"], 1 - 0.1 * 0.01, rtol=1e-6)
  np.testing.assert_allclose(weights, 1 - 10 * 0.1 * 0.01, rtol=1e-6)
  np.testing.assert_allclose(bias, 0, atol=1e-6)


def test_a_part_of_the_labels():
  from ssljax.evals import finetune

  labels = np.arange(500)
  places = finetune.subset(labels, 0.1)
  assert len(set(places)) == 50 and (np.diff(places) > 0).all()
  np.testing.assert_array_equal(places, finetune.subset(labels, 0.1))
  with pytest.raises(errors.UserError, match="give one in"):
    finetune.subset(labels, 0.01)
  with pytest.raises(errors.UserError, match="all of one class"):
    finetune.subset(np.zeros(500, int), 0.1)


def test_figures_of_protocols_are_kept_together(tmp_path):
  path = str(tmp_path / "eval" / "7.json")
  data = {"dataset": "d", "splits": {"train": "train", "test": "test"}}
  record = lambda **more: evaluate._record(data | more, path)
  record(knn=0.5, protocol={"knn": "knn/1"}, finetune={"0.1": {"accuracy": 1}})
  record(loss=2.0, protocol={"loss": "loss/1"}, finetune={"1": {"accuracy": 2}})
  with open(path) as f:
    kept = json.load(f)
  assert kept == data | {
    "knn": 0.5,
    "loss": 2.0,
    "protocol": {"knn": "knn/1", "loss": "loss/1"},
    "finetune": {"0.1": {"accuracy": 1}, "1": {"accuracy": 2}},
  }
  for other in ({"dataset": "other"}, {"splits": {"test": "held"}}):
    record(**other, knn=0.1)
    with open(path) as f:
      assert json.load(f) == data | other | {"knn": 0.1}


def test_other_fractions_are_kept_of_the_same_protocol():
  data = {"dataset": "d", "splits": {}}
  of = lambda version, part: data | {
    "protocol": {"finetune": version},
    "finetune": {part: {"accuracy": 1}},
  }
  joined = lambda *pair: evaluate._joined(*pair)["finetune"].keys()
  assert joined(of("1", "0.1"), of("1", "1")) == {"0.1", "1"}
  assert joined(of("1", "0.1"), of("2", "1")) == {"1"}


def test_the_floor_of_texts_refuses_those_without_a_label():
  class Texts(sources.Source):
    modality, num_classes, texts = "text", 2, ["one word", "one more"] * 4

    def __init__(self, labels):
      self._labels = np.resize(labels, 8)

    def __len__(self):
      return 8

    def read(self, indices):
      return {"label": self._labels[indices]}

  whole, some = Texts([0, 1]), Texts([0, -1])
  for pair in ((whole, some), (some, whole)):
    with pytest.raises(errors.UserError, match="labels are in .-1, "):
      floors.floor(*pair, ("linear",))


def test_what_is_tuned_is_what_features_depend_on():
  """Of methods that are evaluated by a teacher, too, and from each start."""
  path = "configs/dino_resnet18_fashion_mnist.py:quick"
  run = run_lib.build(config_lib.load(path, ["--config.mesh.data=1"]))
  state = run_lib.init_state(run)
  other = state._replace(
    params=jax.tree.map(lambda x: x + 0.1, state.params),
    method_state=jax.tree.map(lambda x: x * 2, state.method_state),
  )
  batch = run.source.read(np.arange(4))
  example = {k: batch[k] for k in run.source.example}
  for origin in (state, other):
    apply, learned = tuning._tuned(run, origin, run.source.example)
    total = lambda *args, apply=apply: apply(*args)["pooled"].sum()
    value, grads = jax.jit(jax.value_and_grad(total))(learned, batch)
    own = run.embed(origin, example).sum()
    np.testing.assert_allclose(value, own, rtol=1e-4)
    (_, of_teacher) = grads
    moved = [(g != 0).any() for g in jax.tree.leaves(of_teacher["encoder"])]
    assert all(moved)


@pytest.fixture(scope="module")
def resnet():
  flags = ["--config.mesh.data=1", "--config.encoder.width=8"]
  path = "configs/deepcluster_resnet18_fashion_mnist.py:quick"
  run = run_lib.build(config_lib.load(path, flags))
  return run, run_lib.init_state(run)


def test_a_loss_of_clusters_is_not_of_other_examples(resnet):
  with pytest.raises(errors.UserError, match="leave loss out of --protocols"):
    held_out.measure(*resnet, None, "test")


def test_from_scratch_batch_norm_has_the_statistics_of_the_data(resnet):
  run, state = resnet
  warmed = tuning.warmed(run, state, evaluate.labelled(run, None, "train"))
  jax.tree.map(np.testing.assert_array_equal, warmed.params, state.params)
  norm = lambda s: s.method_state["batch_stats"]["encoder"]["bn1"]
  assert not norm(state)["mean"].any() and (norm(state)["var"] == 1).all()
  batch = run.source.read(np.arange(len(run.source)))
  x = batch["image"].astype(np.float32) / 255
  kernel = state.params["encoder"]["conv1"]["kernel"]
  x = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  spread = x.var(axis=(0, 1, 2))  # of whole images, where views are crops
  assert (np.abs(np.log(norm(warmed)["var"] / spread)) < 0.7).all()


def test_statistics_of_fewer_examples_than_a_batch():
  path = "configs/supervised_resnet18_fashion_mnist.py:quick"
  flags = ["--config.mesh.data=1", "--config.encoder.bn_groups=4"]
  run = run_lib.build(config_lib.load(path, flags))
  state = run_lib.init_state(run)
  few = sources.Part(evaluate.labelled(run, None, "train"), np.arange(7))
  warmed = tuning.warmed(run, state, few)
  found = warmed.method_state["batch_stats"]["encoder"]["bn1"]["var"]
  assert np.isfinite(found).all() and (found != 1).all()


def test_raw_pixels_that_would_fill_the_memory_are_refused(monkeypatch):
  large = types.SimpleNamespace(
    modality="image", example={"image": ((224, 224, 3), np.uint8)}
  )
  many = type("Many", (type(large),), {"__len__": lambda self: 1_281_167})
  sets = [many(**vars(large))] * 2
  with pytest.raises(errors.UserError, match="6171 GB .*: give --floors=0"):
    floors.require_memory(sets)
  few = type("Few", (type(large),), {"__len__": lambda self: 10})
  floors.require_memory([few(**vars(large))] * 2)
