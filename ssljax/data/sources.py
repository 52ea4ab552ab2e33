"""Sources: a dataset as `read(indices) -> batch`, and those of images.

Images are read from TFDS, folders and arrays. Small sets are decoded once into
memory, so that reading is a gather.
"""

import concurrent.futures
import hashlib
import importlib.util
import os
import threading

import numpy as np
from absl import logging

from ssljax import errors
from ssljax.data import folders
from ssljax.data import images

_CHUNK = 32  # images that a thread decodes at a time


class Source:
  """What a source says of its examples; `read(indices [n]) -> batch`.

  A batch has the arrays of `example`, "index" int32 [n] and, where the source
  was opened with labels, "label" int32 [n].

  Attributes:
    modality: whose views and readers fit: "image" or "text".
    name: for messages.
    example: {name: (shape, dtype)} of the arrays of one example.
    num_classes: of the labels; None without them.
    class_names: by label; None where they have none.
    unit: what throughput counts.
    per_example: how many units an example has.
    like: options with which another dataset is read in the same way.
    identity: a digest of what decides which example is at which place; None
      where it is not known.
    files: {name: text}, what a run must keep to read its data again; the name
      is of the option of `make` that then takes the file's path.
  """

  modality = "image"
  unit = "images"
  per_example = 1.0
  files = {}
  class_names = None
  like = {}
  identity = None

  def check(self, encoder) -> None:
    """Raises UserError where the encoder cannot take the examples."""

  def order(self) -> np.ndarray:
    """The places 0 to n - 1 in the order in which all are read fastest."""
    return np.arange(len(self))

  def cut(self, batch: dict, indices: np.ndarray) -> dict:
    """What was read without the padding that all of `indices` have."""
    return batch

  def labels(self) -> np.ndarray:
    """Of all examples; of some where all would have to be decoded for it."""
    n = len(self)
    return self.read(np.linspace(0, n - 1, min(n, 64)).astype(int))["label"]


class Part(Source):
  """Some examples of a source."""

  def __init__(self, source: Source, places: np.ndarray):
    self._source, self._places = source, places
    self.modality, self.name = source.modality, source.name
    self.example, self.num_classes = source.example, source.num_classes
    self.class_names = source.class_names
    if texts := getattr(source, "texts", None):
      self.texts = [texts[i] for i in places]

  def __len__(self):
    return len(self._places)

  def read(self, indices):
    return self._source.read(self._places[indices])

  def cut(self, batch, indices):
    return self._source.cut(batch, self._places[indices])


class ImageSource(Source):
  """Examples are `image` uint8 [h w c], its `shape`."""

  def check(self, encoder):
    if hasattr(encoder, "vocab"):
      raise errors.UserError(
        f"{type(encoder).__name__} takes text, and {self.name} are images: "
        "give config.encoder.name=resnet or vit"
      )

  @property
  def example(self):
    return {"image": (self.shape, np.uint8)}

  @property
  def like(self):
    return {"size": self.shape[:2], "channels": self.shape[2]}


class ArraySource(ImageSource):
  """Arrays in memory.

  Args:
    arrays: `image` [n h w c] uint8 and, for labels, `label` [n] int.
    name: for messages.
    num_classes: None is the largest label and one.
    class_names: by label.
  """

  def __init__(
    self, arrays, *, name="arrays", num_classes=None, class_names=None
  ):
    self._arrays = {k: np.asarray(v) for k, v in arrays.items()}
    image = self._arrays["image"]
    if image.ndim != 4 or image.dtype != np.uint8:
      raise errors.UserError(
        f"{name}: images are {image.dtype} {image.shape}, not uint8 [n h w c]"
      )
    n = len(image)
    self._arrays.setdefault("index", np.arange(n, dtype=np.int32))
    if "label" in self._arrays:
      label = self._arrays["label"] = self._arrays["label"].astype(np.int32)
      if label.shape != (n,):
        raise errors.UserError(
          f"{name}: labels are {label.shape} for {n} images: give [n]"
        )
      num_classes = num_classes or int(label.max()) + 1
    self.name, self.shape, self.num_classes = name, image.shape[1:], num_classes
    self.class_names = class_names

  def __len__(self):
    return len(self._arrays["image"])

  def read(self, indices):
    return {k: v[indices] for k, v in self._arrays.items()}

  def labels(self):
    return self._arrays["label"]


class DecodedSource(ImageSource):
  """Records decoded as they are read.

  A record that is corrupt, or whose channels do not fit, is replaced by the
  next good one, named once, and counted.

  Args:
    records: `len`, `name(i)`, `get(indices)`, an iterable of (image or None,
      label), and perhaps `why(i)`, of None.
    shape: (h, w, c) of the batches.
    fits: whether images of another size are fitted to it; else they are a
      UserError.
    max_corrupt: more bad records than this are a UserError.
  """

  def __init__(
    self, records, shape, *, name, labels, num_classes, fits, max_corrupt
  ):
    self._records, self._labels, self._fits = records, labels, fits
    self._max_corrupt = max_corrupt
    self.class_names = getattr(records, "class_names", None)
    self._bad = {}  # why, by index
    self._lock = threading.Lock()
    self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    self.name, self.shape = name, tuple(shape)
    self.num_classes = num_classes if labels else None

  def __len__(self):
    return len(self._records)

  def read(self, indices):
    batch = self._empty(len(indices))

    def fill(start):
      part = slice(start, start + _CHUNK)
      self._read_into({k: v[part] for k, v in batch.items()}, indices[part])

    # Threads share a batch: a batch for each would take too much memory.
    for _ in self._pool.map(fill, range(0, len(indices), _CHUNK)):
      pass  # the first error is raised here
    return batch

  def in_memory(self):
    """An ArraySource of the same examples."""
    return ArraySource(
      self.read(np.arange(len(self))),
      name=self.name,
      num_classes=self.num_classes,
      class_names=self.class_names,
    )

  def _empty(self, n):
    batch = {
      "image": np.empty((n, *self.shape), np.uint8),
      "index": np.empty(n, np.int32),
    }
    return batch | ({"label": np.empty(n, np.int32)} if self._labels else {})

  def _read_into(self, batch, indices):
    batch["index"][:] = indices  # what is replaced keeps its place
    for row, (i, record) in enumerate(zip(indices, self._records.get(indices))):
      i = int(i)
      image, label = self._fit(i, *record)
      while image is None:
        i = (i + 1) % len(self)
        image, label = self._fit(i, *next(iter(self._records.get([i]))))
      batch["image"][row] = image
      if self._labels:
        batch["label"][row] = label

  def _fit(self, i, image, label):
    """(image as the batch has it or None, label)."""
    if image is None:
      self._note(i, _why(self._records, i))
    elif image.shape[:2] != self.shape[:2] and not self._fits:
      raise _several_sizes(self.name, self.shape[:2], image.shape[:2])
    else:
      try:
        return images.fit(image, self.shape[:2], self.shape[2]), label
      except ValueError as e:
        self._note(i, str(e))
    return None, label

  def _note(self, index, why):
    with self._lock:
      if index not in self._bad:
        self._bad[index] = why
        name = self._records.name(index)
        logging.warning("%s: %s; the next one is taken", name, why)
      # All of them bad would be looked through for ever.
      if len(self._bad) > min(self._max_corrupt, len(self) - 1):
        names = ", ".join(
          f"{self._records.name(i)} ({why})" for i, why in self._bad.items()
        )
        raise errors.UserError(
          f"more than data.max_corrupt={self._max_corrupt} images of "
          f"{self.name} cannot be used: {names}; mend or remove them, or allow "
          "more"
        )


def make(
  name: str,
  *,
  split: str,
  size: tuple[int, int] | None = None,
  channels: int | None = None,
  labels: bool | None = False,
  data_dir: str | None = None,
  memory_budget: int = 2 << 30,
  max_corrupt: int = 10,
):
  """Opens a source.

  Args:
    name: a TFDS name, prepared where it is missing; "folder:PATH"; or "digits",
      scikit-learn's 8 x 8 digits, whose train split is the first 1,437 and test
      split the last 360.
    split: of TFDS, slices included ("train[:90%]"); of a folder, a subfolder,
      or "all".
    size: (height, width) that images are fitted to, by their short side and
      the centre; None keeps theirs, which must then be equal.
    channels: None is the most that some of them have; grey becomes colour, and
      colour grey, and of other numbers nothing else.
    labels: whether batches have `label`; None is where there are any.
    data_dir: TFDS' root.
    memory_budget: bytes; a set that is smaller when decoded is held in memory.
    max_corrupt: images that may be skipped.

  Raises:
    UserError: no such dataset, split, folder or image; images of several sizes;
      channels that they do not make; too many that cannot be used.
  """
  if not name:
    raise errors.UserError("data.name is not given: a TFDS name or folder:PATH")
  if name == "digits":
    records = _Digits(split)
  elif name == "descriptions":
    raise errors.UserError(
      "descriptions are texts, and the run is of images: give a TFDS name, "
      "folder:PATH or digits"
    )
  elif name.startswith("folder:"):
    records = _Images(name.removeprefix("folder:"), split)
  else:
    from ssljax.data import tfds_records  # TFDS is imported where it is used

    records = tfds_records.Images(name, split, data_dir)
  labels = check(records, name, split, labels=labels)
  source = DecodedSource(
    records,
    _shape(records, name, size, channels),
    name=name,
    labels=labels,
    num_classes=records.num_classes,
    fits=size is not None,
    max_corrupt=max_corrupt,
  )
  if len(source) * int(np.prod(source.shape)) <= memory_budget:
    source = source.in_memory()
  source.identity = hashlib.sha256(os.fsencode(records.identity)).hexdigest()
  return source


def check(records, name, split, *, labels: bool | None) -> bool:
  """Returns whether batches have labels, for None where there are any.

  Raises:
    UserError: there are no examples, or no labels but wanted.
  """
  if labels and records.num_classes is None:
    raise errors.UserError(
      f"{name} has no labels, which evaluation and data.labels need: name "
      "labelled data, or train with --config.eval.train_split='' and "
      "--config.data.labels=False"
    )
  if not len(records):
    raise errors.UserError(f"{name} has no examples in split {split!r}")
  return records.num_classes is not None if labels is None else labels


def _shape(records, name, size, channels):
  """(h, w, c) of what is read, from 64 records where it is not given."""
  known = getattr(records, "shape", (None, None, None))
  if size is None and None not in known[:2]:
    size = known[:2]
  have = {known[2]} - {None}
  # Almost any image makes 1 or 3 channels; one that does not is told by name.
  if size is None or not (have or channels in (1, 3)):
    n = len(records)
    some = np.linspace(0, n - 1, min(n, 64)).astype(int)  # of all folders
    found = [image.shape for image, _ in records.get(some) if image is not None]
    if not found:
      raise errors.UserError(
        f"the images of {name} are all corrupt, as {records.name(some[0])} "
        f"({_why(records, some[0])}): mend or remove them"
      )
    sizes = sorted({shape[:2] for shape in found})
    if size is None and len(sizes) > 1:
      raise _several_sizes(name, sizes[0], sizes[-1])
    size = size or sizes[0]
    have = have or {shape[2] for shape in found}
  can = {c for n in have for c in images.channels_of(n)}
  if channels and can and channels not in can:
    several = lambda numbers: " or ".join(map(str, sorted(numbers)))
    raise errors.UserError(
      f"config.data.channels={channels}: the images of {name} have "
      f"{several(have)}: give {several(can)}, or leave it out"
    )
  return (*map(int, size), int(channels or max(have)))


def _why(records, i):
  """What is wrong with a record that gives no image."""
  return records.why(i) if hasattr(records, "why") else "corrupt"


def _several_sizes(name, one, another):
  return errors.UserError(
    f"{name} has images of several sizes, as {one} and {another}: give "
    "--config.data.size='(HEIGHT, WIDTH)'"
  )


def sklearn_datasets():
  """The folder of the datasets that scikit-learn ships, found without importing
  it, which takes two seconds."""
  found = importlib.util.find_spec("sklearn")
  return os.path.join(*found.submodule_search_locations, "datasets")


class _Digits:
  """scikit-learn's digits; a dependency carries them."""

  num_classes = 10
  shape = (8, 8, 1)
  identity = "digits"

  def __init__(self, split):
    parts = {"train": slice(0, 1437), "test": slice(1437, None)}
    if split not in parts:
      raise errors.UserError(f"digits has no split {split!r}: train or test")
    file = os.path.join(sklearn_datasets(), "data", "digits.csv.gz")
    table = np.loadtxt(file, delimiter=",", dtype=np.int64)[parts[split]]
    pixels = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8)
    self._image = pixels.reshape(-1, *self.shape)
    self._label = table[:, -1]

  def __len__(self):
    return len(self._image)

  def name(self, i):
    return f"digits[{i}]"

  def get(self, indices):
    return [(self._image[i], self._label[i]) for i in indices]


class _Images(folders.Folder):
  """Images in a folder."""

  def __init__(self, path, split):
    super().__init__(path, split, images.SUFFIXES, "images")

  def __len__(self):
    return len(self.paths)

  def name(self, i):
    return self.paths[i]

  def get(self, indices):
    for i in indices:  # one at a time: photographs are large
      yield images.read_file(self.paths[i]), self.label(self.paths[i])

  def why(self, i):
    return images.why(self.paths[i])
