"""What the pictures of a run of images need, as arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax import evaluate
from ssljax import run as run_lib
from ssljax.data import sources
from ssljax.models import vit

_EMBEDDED = 2000  # images of the test split, at most
_MAPPED = 700  # of these, points of the map
_VIEWED = 8
_ATTENDED = 6
_QUERIES, _NEIGHBOURS = 10, 8


class Arrays(NamedTuple):
  """Arrays of one run; images are uint8 [... h w c].

  Attributes:
    step: of the checkpoint.
    originals: [8 h w c] of the training split.
    views: [8 v h w c] of these.
    local_views: [8 v h w c], or None.
    split: that the embedded images are of.
    images: [n h w c], embedded.
    labels: int32 [n]; -1 is unknown.
    class_names: by label, or None.
    mapped: int [m], which of the images are on the map.
    points: [m 2] in [0, 1], or None where all embeddings are the same or one
      is not finite.
    neighbours: int [q 1 + k]: an image, then those that are nearest.
    shown: {name: {title: images [8 h w c]}} of `Method.show`.
    attention: (images [6 h w c], weights [6 heads gh gw] float32), or None
      where the encoder is no ViT.
  """

  step: int
  originals: np.ndarray
  views: np.ndarray
  local_views: np.ndarray | None
  split: str
  images: np.ndarray
  labels: np.ndarray
  class_names: list[str] | None
  mapped: np.ndarray
  points: np.ndarray | None
  neighbours: np.ndarray
  shown: dict[str, dict[str, np.ndarray]]
  attention: tuple[np.ndarray, np.ndarray] | None


def of(run: run_lib.Run, state) -> Arrays:
  """The arrays of a run at a state.

  Raises:
    UserError: no such dataset.
  """
  train_view, test_view = run.augment, run.view_for_eval
  visible = _visible(test_view, run.source.shape[2])
  originals = run.source.read(spread(len(run.source), _VIEWED))["image"]
  views = once(train_view)(_batch(originals))
  local = views.get("local_views")
  split, test = _test_set(run)
  rows = evaluate.embed(run, state, test)
  images = test.read(np.arange(len(test)))["image"]
  labels = rows.get("label", np.full(len(images), -1, np.int32))
  z = rows["pooled"].astype(np.float32)
  z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
  mapped = spread(len(z), _MAPPED)
  batch = once(test_view)(_batch(images[spread(len(images), _VIEWED)]))
  return Arrays(
    step=int(state.step),
    originals=originals,
    views=visible(views["views"]),
    local_views=None if local is None else visible(local),
    split=split,
    images=images,
    labels=labels,
    class_names=test.class_names,
    mapped=mapped,
    points=tsne(z[mapped]),
    neighbours=nearest(z, queries(labels)),
    shown={
      name: jax.tree.map(
        visible, once(show)(state.params, state.method_state, batch)
      )
      for name, show in run.method.show.items()
    },
    attention=_attention(run, state, batch["views"][:_ATTENDED, 0], visible),
  )


def once(function):
  # It runs once: compiling it with care takes longer than running it.
  return jax.jit(
    function, compiler_options={"xla_backend_optimization_level": 0}
  )


def _batch(images):
  keys = jax.random.split(jax.random.key(0), len(images))
  return {"image": jnp.asarray(images), "key": keys}


def _visible(view, channels):
  """Returns `float [... c] in the scale of the views -> uint8`.

  Black and white, seen through the evaluation view, tell its scale.
  """
  ends = np.stack([np.full((8, 8, channels), v, np.uint8) for v in (0, 255)])
  # [2 c], of the first pixel
  low, high = np.asarray(once(view)(_batch(ends))["views"])[:, 0, 0, 0]

  def visible(x):
    x = (np.asarray(x, np.float32) - low) / (high - low)
    return np.round(255 * np.clip(np.nan_to_num(x), 0, 1)).astype(np.uint8)

  return visible


def spread(n, most):
  """At most `most` of the places 0 to n - 1, evenly: folders are sorted."""
  return np.linspace(0, n - 1, min(n, most)).round().astype(int)


def _test_set(run):
  """(split, a source of at most _EMBEDDED images, with labels where known)."""
  config = run.config
  split = config.eval.test_split
  try:
    source = evaluate.labelled(run, None, split or config.data.split)
  except errors.UserError:  # no labels
    split = split or config.data.split
    try:
      source = run_lib.open_source(config, split)
    except errors.UserError:  # no such split: nobody evaluates this run
      split, source = config.data.split, run.source
  arrays = source.read(spread(len(source), _EMBEDDED))
  names = source.class_names
  arrays = sources.ArraySource(arrays, class_names=names)
  return split or config.data.split, arrays


def tsne(z):
  """A map [n 2] in [0, 1] of embeddings [n d] by t-SNE, or None.

  Van der Maaten and Hinton 2008, after PCA to 50 axes. The exact method: for
  700 points it takes 4 s of a core; Barnes and Hut's took 9 s for 1,000.
  """
  from sklearn import decomposition  # takes a second to import
  from sklearn import manifold

  n, d = z.shape
  if not np.isfinite(z).all() or min(n, d) < 4 or z.std(axis=0).max() < 1e-6:
    return None
  x = decomposition.PCA(min(50, n, d), random_state=0).fit_transform(z)
  points = manifold.TSNE(
    init="pca",
    perplexity=min(30, (n - 1) / 3),
    max_iter=500,
    method="exact",
    random_state=0,
  ).fit_transform(x)
  low, high = points.min(axis=0), points.max(axis=0)
  return (points - low) / np.maximum(high - low, 1e-12)


def queries(labels):
  """Ten images, of as many classes as there are."""
  known = np.unique(labels[labels >= 0])
  of_class = lambda c: np.flatnonzero(labels == c)
  chosen = [of_class(known[i])[0] for i in spread(len(known), _QUERIES)]
  for i in spread(len(labels), 2 * _QUERIES):
    if len(chosen) < _QUERIES and i not in chosen:
      chosen.append(i)
  return np.array(chosen, int)


def nearest(z, chosen):
  """[q 1 + k]: each chosen and its neighbours among unit vectors z [n d]."""
  similarity = z[chosen] @ z.T
  similarity[np.arange(len(chosen)), chosen] = np.inf  # itself first
  k = min(_NEIGHBOURS, len(z) - 1)
  return np.argsort(-similarity, axis=1, kind="stable")[:, : 1 + k]


def _attention(run, state, x, visible):
  encoder = run_lib.make_encoder(run.config)
  if not isinstance(encoder, vit.ViT):
    return None
  params = state.params
  if run_lib.evaluated_network(run) == "teacher":
    params = state.method_state["teacher"]["params"]
  return visible(x), _last_attention(encoder, params["encoder"], x)


def _last_attention(encoder, params, x):
  """[b heads gh gw]: where the last block of a ViT looks from what is pooled,
  the class token or the mean of the patches, for views x [b h w c]."""

  @once
  def weights(x):
    _, seen = encoder.apply(
      {"params": params}, x, train=False, mutable=["intermediates"]
    )
    found = seen["intermediates"]
    if encoder.scan:
      return found["blocks"]["attention"][0][-1]
    return found[f"block{encoder.depth - 1}"]["attention"][0]

  w = np.asarray(weights(x), np.float32)  # [b heads q k]
  gh, gw = (side // encoder.patch for side in x.shape[1:3])
  first = w.shape[-1] - gh * gw  # class token and registers come first
  queries = w[:, :, :1] if encoder.pool == "cls" else w[:, :, first:]
  maps = queries.mean(axis=2)[..., first:]
  return maps.reshape(*maps.shape[:2], gh, gw)
