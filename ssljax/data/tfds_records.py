"""Records of a TFDS dataset in ArrayRecord, read without TensorFlow."""

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from ssljax import errors
from ssljax.data import images
from ssljax.data import prepare


class Records:
  """The records of a split, and what TFDS says of them.

  Records are parsed here: TFDS' own parser, general over nested features, takes
  three times as long.

  Attributes:
    features: TFDS' own, by name.
    identity: name, config and version of the dataset, and the split.
    num_classes: of the feature "label"; None without it.
    class_names: of its labels, or None.
  """

  def __init__(self, name, split, data_dir, needs):
    builder = prepare.find_builder(name, data_dir)
    if not builder.is_prepared():
      prepare.prepare(name, data_dir=data_dir)
      builder = prepare.find_builder(name, data_dir)
    features = self.features = builder.info.features
    if needs not in features:
      raise errors.UserError(
        f"{name} has no feature {needs!r}, but {', '.join(features)}"
      )
    feature = features[needs]
    if needs != "image" and (
      feature.shape != () or np.issubdtype(feature.np_dtype, np.number)
    ):
      raise errors.UserError(
        f"the feature {needs!r} of {name} is not one text: give "
        f"--config.data.feature=NAME, of {', '.join(features)}"
      )
    skip = {"image": tfds.decode.SkipDecoding()} if needs == "image" else None
    try:
      source = builder.as_data_source(split, decoders=skip)
    except (ValueError, AssertionError, KeyError) as e:
      have = ", ".join(builder.info.splits)
      if not have:
        raise errors.UserError(
          f"{builder.data_path} is not whole: remove it, it is prepared anew"
        ) from e
      raise errors.UserError(
        f"{name} has no split {split!r}: there is {have}, and slices of them"
      ) from e
    self._records = source.data_source
    try:
      self._size = len(self._records)
    except ValueError:  # from a later example to an earlier one
      self._size = 0
    self._name = f"{name}/{split}"
    self.identity = f"{builder.info.full_name} {split}"
    label = features["label"] if "label" in features else None
    is_class = isinstance(label, tfds.features.ClassLabel)
    self.num_classes = label.num_classes if is_class else None
    self.class_names = label.names if is_class else None

  def __len__(self):
    return self._size

  def name(self, i):
    return f"{self._name}[{i}]"

  def parsed(self, indices, name):
    """(the bytes of a feature, the label or -1) of each record.

    Of a corrupt one it is (None, -1).
    """
    for record in self._read([int(i) for i in indices]):
      if record is None:
        yield None, -1
        continue
      feature = tf_example_pb2.Example.FromString(record).features.feature
      label = feature["label"].int64_list.value if "label" in feature else None
      value = feature[name].bytes_list.value
      yield value[0] if value else b"", label[0] if label else -1

  def _read(self, indices):
    try:
      return self._records.__getitems__(indices)
    except RuntimeError:  # a hash does not fit
      if len(indices) == 1:
        return [None]
    return (self._read([i])[0] for i in indices)  # as they are asked for


class Images(Records):
  """The images and labels of a split; see `sources.DecodedSource`."""

  def __init__(self, name, split, data_dir):
    super().__init__(name, split, data_dir, "image")
    self.shape = self.features["image"].shape

  def get(self, indices):
    for data, label in self.parsed(indices, "image"):  # one at a time: large
      yield None if data is None else images.decode(data), label
