"""Protocols of features by name, and what the raw input gives by them."""

import math
import os

import numpy as np

from ssljax import errors
from ssljax.evals import knn as knn_lib
from ssljax.evals import linear_probe
from ssljax.evals import tfidf

PROTOCOLS = {"knn": knn_lib.knn, "linear": linear_probe.linear_probe}


def measure(protocol, train, test, num_classes):
  """The protocol on features with labels, as `evaluate.embed` gives them."""
  return PROTOCOLS[protocol](
    train["pooled"],
    train["label"],
    test["pooled"],
    test["label"],
    num_classes=num_classes,
  )


def floor(train, test, protocols: tuple[str, ...]) -> dict[str, dict]:
  """What the raw input of two labelled sources gives, by protocol."""
  if train.modality == "text":
    labels = [
      knn_lib.check_labels(
        name, s.read(np.arange(len(s)))["label"], train.num_classes
      )
      for name, s in (("training", train), ("test", test))
    ]
    return tfidf.tfidf(
      train.texts, labels[0], test.texts, labels[1], protocols=protocols
    )
  pixels = _pixels(train), _pixels(test)
  return {n: measure(n, *pixels, train.num_classes) for n in protocols}


def _pixels(source) -> dict:
  """Pixels in [0, 1] as features."""
  batch = source.read(np.arange(len(source)))
  image = batch.pop("image")
  return {"pooled": image.reshape(len(image), -1) / np.float32(255), **batch}


def require_memory(sets):
  """Raises UserError where raw pixels as features would fill the memory."""
  if sets[0].modality == "text":
    return
  have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  (shape, _), n = sets[0].example["image"], sum(map(len, sets))
  need = 4 * 4 * n * math.prod(shape)  # with what the probe makes of them
  if need > have:
    need, have = (round(size / 1e9) for size in (need, have))
    raise errors.UserError(
      f"the floor of raw pixels needs {need} GB of the {have} that are here: "
      "give --floors=0"
    )
