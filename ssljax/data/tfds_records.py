"""Records of a TFDS dataset in ArrayRecord, read without TensorFlow."""

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from ssljax import errors
from ssljax.data import images
from ssljax.data import prepare


class Records:
  """The images and labels of a split; see `sources.DecodedSource`.

  Records are parsed here: TFDS' own parser, general over nested features, takes
  three times as long.
  """

  def __init__(self, name, split, data_dir):
    builder = prepare.find_builder(name, data_dir)
    if not builder.is_prepared():
      prepare.prepare(name, data_dir=data_dir)
      builder = prepare.find_builder(name, data_dir)
    features = builder.info.features
    if "image" not in features:
      raise errors.UserError(
        f"{name} has no feature 'image', but {', '.join(features)}"
      )
    try:
      source = builder.as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
      )
    except (ValueError, AssertionError, KeyError) as e:
      have = ", ".join(builder.info.splits)
      raise errors.UserError(
        f"{name} has no split {split!r}: there is {have}, and slices of them"
      ) from e
    except NotImplementedError as e:
      raise errors.UserError(
        f"{name} was prepared in another format than ArrayRecord: prepare it "
        "anew with another --config.data.data_dir"
      ) from e
    self._records = source.data_source
    self._name = f"{name}/{split}"
    self.shape = features["image"].shape
    label = features["label"] if "label" in features else None
    self.num_classes = getattr(label, "num_classes", None)

  def __len__(self):
    return len(self._records)

  def name(self, i):
    return f"{self._name}[{i}]"

  def get(self, indices):
    rows = []
    for record in self._records.__getitems__([int(i) for i in indices]):
      feature = tf_example_pb2.Example.FromString(record).features.feature
      label = feature["label"].int64_list.value if "label" in feature else None
      image = images.decode(feature["image"].bytes_list.value[0])
      rows.append((image, label[0] if label else -1))
    return rows
