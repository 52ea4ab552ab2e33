"""Sources of which only the shapes are known: a plan needs no data."""

import inspect
import types

import numpy as np
import tensorflow_datasets as tfds

from ssljax import errors
from ssljax import named
from ssljax.data import described
from ssljax.data import rows

# TFDS' training examples, classes, and (h, w, c) where all have the same.
_KNOWN = {
  "digits": (1_437, 10, (8, 8, 1)),  # scikit-learn's, as `sources` cuts them
  "cifar10": (50_000, 10, (32, 32, 3)),
  "fashion_mnist": (60_000, 10, (28, 28, 1)),
  "imagenet2012": (1_281_167, 1000, None),
  "imagenette/160px-v2": (9_469, 10, None),
}


def of(config, encoder, examples: int | None, classes: int | None):
  """The source that a config names, as far as a step depends on it.

  Args:
    config: of a run.
    encoder: the Flax module, whose vocabulary the tokenizer of text has.
    examples: how many there are; None is TFDS' count of the split, or no end
      where the config counts in steps.
    classes: of the labels; None is TFDS' count.

  Raises:
    UserError: what is not known is needed.
  """
  data = config.data
  known = _KNOWN.get(data.name, (None, None, None))
  if examples is None and known[0] is not None:
    examples = _count(data.split, known[0])
  classes = classes or known[1]
  if examples is None and config.steps is not None and not _counts(config):
    examples = 10**9  # no end is reached
  if examples is None:
    raise errors.UserError(
      f"how many examples {data.name} has is not known here: give --examples=N"
    )
  if data.modality == "text":
    return described.Texts(
      data.name,
      _rows(data),
      examples,
      _tokenizer(encoder.vocab),
      float(data.length),
    )
  if not data.labels:
    classes = None
  elif classes is None:
    raise errors.UserError(
      f"how many classes {data.name} has is not known here: give --classes=N"
    )
  return described.Images(data.name, _shape(data, known[2]), examples, classes)


def _counts(config):
  """Whether the method keeps something of each example, or the schedule is of
  epochs."""
  make = named.module("ssljax.methods", config.method.name).make
  freeze = config.optimizer.get("freeze") or ()
  return (
    bool(
      {"num_examples", "steps_per_epoch"}
      & {*inspect.signature(make).parameters}
    )
    or any(k.endswith("_epochs") for k in config.schedule)
    or any("epochs" in part for part in freeze)
  )


def _count(split, whole):
  """The examples in slices of TFDS' "train"; None of another split."""
  of = lambda n: types.SimpleNamespace(num_examples=n, shard_lengths=None)
  try:
    split = tfds.core.ReadInstruction.from_spec(split)
    # With another, "all" is not "train".
    parts = split.to_absolute({"train": of(whole), "test": of(0)})
  except (ValueError, TypeError, AttributeError):  # of shards, for one
    return None
  if any(part.splitname != "train" for part in parts):
    return None
  return sum(len(range(whole)[part.from_ : part.to]) for part in parts)


def _shape(data, known):
  size, channels = data.size, data.channels
  if known is not None:
    size, channels = size or known[:2], channels or known[2]
  if size is None or channels is None:
    raise errors.UserError(
      f"the images of {data.name} have several sizes: give "
      "--config.data.size='(HEIGHT, WIDTH)' and --config.data.channels=N"
    )
  return (*size, channels)


def _rows(data):
  """{name: (shape, dtype)} of an example, as the reader makes them."""
  documents = [np.zeros(2, np.int32)] * 3
  if data.rows == "pairs":  # of sentences
    documents = [documents] * 3
  made = rows.of(data.rows, documents, data.length, _tokenizer(8))
  return {k: (v.shape[1:], v.dtype) for k, v in made.arrays.items()}


def _tokenizer(vocab):
  pad, start, end, mask = range(4)
  return types.SimpleNamespace(
    vocab=vocab,
    pad=pad,
    start=start,
    end=end,
    mask=mask,
    special=(pad, start, end, mask),
    goes_on=np.zeros(vocab, bool),
  )
