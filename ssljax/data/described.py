"""Sources of which all is known but the examples.

A plan needs no more, nor does a run's encoder after training.
"""

import numpy as np

from ssljax import errors
from ssljax.data import sources
from ssljax.data import tokens


class _Unread:
  """Says what to do where somebody reads after all."""

  def read(self, indices):
    raise errors.UserError(
      f"{self.name} is described alone: open it, or restore the run with "
      "examples=True"
    )


class Images(_Unread, sources.ImageSource):
  """Images [h w c], its `shape`, that cannot be read."""

  def __init__(self, name, shape, examples, num_classes):
    self.name, self.shape = name, tuple(shape)
    self._examples, self.num_classes = examples, num_classes

  def __len__(self):
    return self._examples


class Texts(_Unread, sources.Source):
  """Rows of tokens that cannot be read; `example` as sources have it."""

  modality, unit = "text", "tokens"

  def __init__(
    self, name, example, examples, tokenizer, per_example, num_classes=None
  ):
    self.name, self.example, self.tokenizer = name, example, tokenizer
    self._examples, self.num_classes = examples, num_classes
    self.per_example = per_example

  def __len__(self):
    return self._examples


def describe(source) -> dict:
  """What `of` makes such a source of, as JSON has it."""
  return {
    "modality": source.modality,
    "name": source.name,
    "examples": len(source),
    "classes": source.num_classes,
    "per_example": source.per_example,
    "identity": source.identity,
    "arrays": {
      name: [list(map(int, shape)), np.dtype(dtype).name]
      for name, (shape, dtype) in source.example.items()
    },
  }


def of(description: dict, data) -> sources.Source:
  """The source of a description; `data` of its config, for the tokenizer."""
  arrays = {
    name: (tuple(shape), np.dtype(dtype))
    for name, (shape, dtype) in description["arrays"].items()
  }
  name, examples, classes = (
    description[key] for key in ("name", "examples", "classes")
  )
  if description["modality"] == "image":
    return Images(name, arrays["image"][0], examples, classes)
  return Texts(
    name,
    arrays,
    examples,
    tokens.load(data.tokenizer),
    description["per_example"],
    classes,
  )
