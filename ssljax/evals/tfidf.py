"""The floor of text classification: TF-IDF of words and pairs of words.

What a bag of words tells, by scikit-learn; nothing is learned without labels.
"""

import numpy as np

from ssljax import errors

# Inverse decays of the logistic regression, from strong to weak decay.
_C = (3.0, 30.0)
_K, _TEMPERATURE = 20, 0.1  # as `knn.knn`
_BLOCK = 500


def tfidf(
  train_texts: list[str],
  train_y: np.ndarray,
  test_texts: list[str],
  test_y: np.ndarray,
  *,
  protocols: tuple[str, ...] = ("knn", "linear"),
  seed: int = 0,
) -> dict[str, dict]:
  """Returns `accuracy` in [0, 1] and `protocol` by name.

  "linear" is logistic regression, its decay chosen on a held-out tenth of the
  training set; "knn" votes as `knn.knn` does.

  Args:
    train_texts: n documents.
    train_y: int [n].
    test_texts: m documents.
    test_y: int [m].
    protocols: among "knn" and "linear"; others are left out.
    seed: of the held-out tenth.

  Raises:
    UserError: no word is in two documents.
  """
  from sklearn.feature_extraction import text  # takes a second to import

  vectorizer = text.TfidfVectorizer(
    ngram_range=(1, 2), min_df=2, sublinear_tf=True, dtype=np.float32
  )
  try:
    train_x = vectorizer.fit_transform(train_texts)
  except ValueError as e:
    raise errors.UserError(
      f"{len(train_texts)} training texts have no words in common: give more, "
      "or --floors=0 where words have no spaces between them"
    ) from e
  test_x = vectorizer.transform(test_texts)
  words = "tfidf/1 words and pairs, in 2 documents or more, sublinear"
  found = {}
  if "knn" in protocols:
    found["knn"] = {
      "accuracy": _knn(train_x, train_y, test_x, test_y),
      "protocol": f"{words}; k={_K} cosine temperature={_TEMPERATURE:g}",
    }
  if "linear" in protocols:
    found["linear"] = {
      "accuracy": _linear(train_x, train_y, test_x, test_y, seed),
      "protocol": f"{words}; logistic regression C={_C} held_out=0.1",
    }
  return found


def _linear(train_x, train_y, test_x, test_y, seed):
  from sklearn import dummy
  from sklearn import linear_model

  def fit(x, y, c):
    if len(np.unique(y)) == 1:
      return dummy.DummyClassifier().fit(x, y)
    model = linear_model.LogisticRegression(C=c, max_iter=200, tol=1e-3)
    return model.fit(x, y)

  n = train_x.shape[0]
  order = np.random.default_rng(seed).permutation(n)
  held, kept = order[: n // 10], order[n // 10 :]
  scores = [
    fit(train_x[kept], train_y[kept], c).score(train_x[held], train_y[held])
    for c in _C
  ]
  model = fit(train_x, train_y, _C[int(np.argmax(scores))])
  return float(model.score(test_x, test_y))


def _knn(train_x, train_y, test_x, test_y):
  k = min(_K, train_x.shape[0])
  classes = int(max(train_y.max(), test_y.max())) + 1
  right = 0
  for start in range(0, test_x.shape[0], _BLOCK):
    rows = slice(start, start + _BLOCK)
    similarity = np.asarray((test_x[rows] @ train_x.T).todense())  # unit rows
    places = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    weights = np.exp(
      np.take_along_axis(similarity, places, axis=1) / _TEMPERATURE
    )
    votes = np.zeros((len(places), classes))
    rank = np.arange(len(places))[:, None]
    np.add.at(votes, (rank, train_y[places]), weights)
    right += (votes.argmax(axis=1) == test_y[rows]).sum()
  return float(right / test_x.shape[0])
