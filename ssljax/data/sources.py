"""Sources: a dataset as `read(indices) -> batch`, for TFDS, folders, arrays.

A source has `name`, `shape` (h, w, c), `num_classes` (None without labels),
`len(source)` and `read(indices [n]) -> {"image": [n h w c] uint8, "index": [n]
int32}`, with "label" [n] int32 where it was opened with labels. Small sets are
decoded once into memory, so that reading is a gather.
"""

import concurrent.futures
import os
import threading

import numpy as np
from absl import logging

from ssljax import errors
from ssljax.data import images

# Images decoded by one thread at a time; more only lengthens the wait.
_CHUNK = 512


class ArraySource:
  """Arrays in memory.

  Args:
    arrays: `image` [n h w c] uint8 and, for labels, `label` [n] int.
    name: for messages.
    num_classes: None is the largest label and one.
  """

  def __init__(self, arrays, *, name="arrays", num_classes=None):
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
      num_classes = num_classes or int(label.max()) + 1
    self.name, self.shape, self.num_classes = name, image.shape[1:], num_classes

  def __len__(self):
    return len(self._arrays["image"])

  def read(self, indices):
    return {k: v[indices] for k, v in self._arrays.items()}


class DecodedSource:
  """Records decoded as they are read.

  A corrupt record is replaced by the next good one, named once, and counted.

  Args:
    records: `len`, `name(i)`, and `get(indices) -> [(image or None, label)]`.
    shape: (h, w, c) that all images are fitted to.
    max_corrupt: more corrupt records than this end the run by a UserError.
  """

  def __init__(self, records, shape, *, name, labels, num_classes, max_corrupt):
    self._records, self._labels = records, labels
    self._max_corrupt = max_corrupt
    self._corrupt = set()
    self._lock = threading.Lock()
    self.name, self.shape = name, tuple(shape)
    self.num_classes = num_classes if labels else None

  def __len__(self):
    return len(self._records)

  def read(self, indices):
    n = len(indices)
    batch = {
      "image": np.empty((n, *self.shape), np.uint8),
      "index": np.asarray(indices, np.int32).copy(),
    }
    if self._labels:
      batch["label"] = np.empty(n, np.int32)
    for row, (image, label) in enumerate(self._records.get(indices)):
      image = self._fit(image)
      while image is None:
        index = int(batch["index"][row])
        self._note(index)
        index = (index + 1) % len(self)
        batch["index"][row] = index
        image, label = self._records.get([index])[0]
        image = self._fit(image)
      batch["image"][row] = image
      if self._labels:
        batch["label"][row] = label
    return batch

  def _fit(self, image):
    if image is None:
      return None
    try:
      return images.fit(image, self.shape[:2], self.shape[2])
    except ValueError:
      return None

  def _note(self, index):
    with self._lock:
      if index in self._corrupt:
        return
      self._corrupt.add(index)
      name = self._records.name(index)
      logging.warning("corrupt, the next one is taken: %s", name)
      if len(self._corrupt) > self._max_corrupt:
        names = ", ".join(self._records.name(i) for i in sorted(self._corrupt))
        raise errors.UserError(
          f"more than data.max_corrupt={self._max_corrupt} images of "
          f"{self.name} are corrupt: {names}; mend or remove them, or allow more"
        )

  def in_memory(self):
    """An ArraySource of the same examples."""
    chunks = np.array_split(
      np.arange(len(self)), max(1, -(-len(self) // _CHUNK))
    )
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      batches = list(pool.map(self.read, chunks))
    arrays = {
      k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]
    }
    return ArraySource(arrays, name=self.name, num_classes=self.num_classes)


def make(
  name: str,
  *,
  split: str,
  size: tuple[int, int] | None = None,
  channels: int | None = None,
  labels: bool = False,
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
    size: (height, width) that images are fitted to; None keeps theirs, which
      must then be equal.
    channels: 1 or 3; None keeps theirs.
    labels: whether batches have `label`.
    data_dir: TFDS' root.
    memory_budget: bytes; a set that is smaller when decoded is held in memory.
    max_corrupt: images that may be skipped.

  Raises:
    UserError: no such dataset, split, folder or image; images of several sizes.
  """
  if not name:
    raise errors.UserError("data.name is not given: a TFDS name or folder:PATH")
  if name == "digits":
    records = _Digits(split)
  elif name.startswith("folder:"):
    records = _Folder(name.removeprefix("folder:"), split)
  else:
    from ssljax.data import tfds_records  # TFDS is imported where it is used

    records = tfds_records.Records(name, split, data_dir)
  if labels and records.num_classes is None:
    raise errors.UserError(
      f"{name} has no labels, which evaluation needs: set "
      "--config.eval.train_split='', or name labelled data"
    )
  if not len(records):
    raise errors.UserError(f"{name} has no examples in split {split!r}")
  source = DecodedSource(
    records,
    _shape(records, name, size, channels, max_corrupt),
    name=name,
    labels=labels,
    num_classes=records.num_classes,
    max_corrupt=max_corrupt,
  )
  if len(source) * int(np.prod(source.shape)) <= memory_budget:
    return source.in_memory()
  return source


def _shape(records, name, size, channels, max_corrupt):
  """(h, w, c) of what is read, from the records where it is not given."""
  known = getattr(records, "shape", (None, None, None))
  if size is None and None not in known[:2]:
    size = known[:2]
  channels = channels or known[2]
  if size is None or channels is None:
    found = [records.get([i])[0][0] for i in range(min(len(records), 64))]
    found = [image.shape for image in found if image is not None]
    if not found:
      raise errors.UserError(
        f"the first images of {name} are all corrupt: mend or remove them"
      )
    sizes = sorted({shape[:2] for shape in found})
    if size is None and len(sizes) > 1:
      raise errors.UserError(
        f"{name} has images of several sizes, as {sizes[0]} and {sizes[-1]}: "
        "give --config.data.size='(HEIGHT, WIDTH)'"
      )
    size = size or sizes[0]
    channels = channels or max(shape[2] for shape in found)
  return (*map(int, size), int(channels))


class _Digits:
  """scikit-learn's digits; a dependency carries them."""

  num_classes = 10
  shape = (8, 8, 1)

  def __init__(self, split):
    from sklearn import datasets

    parts = {"train": slice(0, 1437), "test": slice(1437, None)}
    if split not in parts:
      raise errors.UserError(f"digits has no split {split!r}: train or test")
    data = datasets.load_digits()
    image = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    self._image = image[parts[split]]
    self._label = data.target[parts[split]]

  def __len__(self):
    return len(self._image)

  def name(self, i):
    return f"digits[{i}]"

  def get(self, indices):
    return [(self._image[i], self._label[i]) for i in indices]


class _Folder:
  """Images in a folder and its subfolders, in the order of their paths."""

  def __init__(self, path, split):
    if not os.path.isdir(path):
      raise errors.UserError(f"no folder {path}: give data.name=folder:PATH")
    root = path if split == "all" else os.path.join(path, split)
    if not os.path.isdir(root):
      have = ", ".join(_subfolders(path)) or "none"
      raise errors.UserError(
        f"{path} has no subfolder {split!r} for the split: there is {have}; "
        "'all' takes them all"
      )
    self._paths = [
      os.path.join(folder, file)
      for folder, _, files in os.walk(root, followlinks=True)
      for file in files
      if file.lower().endswith(images.SUFFIXES)
    ]
    self._paths.sort()
    if not self._paths:
      raise errors.UserError(
        f"no images in {root}: files end with {', '.join(images.SUFFIXES)}"
      )
    classes = _subfolders(root)
    self._class_of = {name: i for i, name in enumerate(classes)}
    self._root = root
    self.num_classes = len(classes) or None

  def __len__(self):
    return len(self._paths)

  def name(self, i):
    return self._paths[i]

  def get(self, indices):
    return [
      (images.read_file(self._paths[i]), self._label(self._paths[i]))
      for i in indices
    ]

  def _label(self, path):
    first = os.path.relpath(path, self._root).split(os.sep)[0]
    return self._class_of.get(first, -1)


def _subfolders(path):
  return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
