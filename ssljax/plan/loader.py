"""How fast this machine's input delivers examples like those of a source."""

import time

import cv2
import numpy as np

from ssljax.data import images
from ssljax.data import sources
from ssljax.data import stream

_PICTURE = (375, 500)  # of ImageNet's most pictures, and about 110 KB
_SECONDS = 2.0


def rate(source, batch_size: int) -> float | None:
  """Examples a second of the trainer's own reader; None for text.

  Of images that fit into memory, from there; else JPEGs of 375 x 500 pixels,
  which lie in memory, decoded and fitted. Text is always read from memory.
  """
  if source.modality == "text":
    return None
  shape, _ = source.example["image"]
  if len(source) * int(np.prod(shape)) <= 2 << 30:
    n = min(len(source), max(batch_size, 2048))
    stand_in = sources.ArraySource({"image": np.zeros((n, *shape), np.uint8)})
    return _rate(stand_in, min(batch_size, 256))
  stand_in = sources.DecodedSource(
    _Pictures(min(len(source), 1 << 16)),  # an epoch is drawn as a whole
    shape,
    name="JPEGs",
    labels=False,
    num_classes=None,
    fits=True,
    max_corrupt=0,
  )
  return _rate(stand_in, min(batch_size, 32))


def _rate(source, n):
  """Examples a second, in batches of n, once all threads have one."""
  batches = stream.batches(
    source, seed=0, start_step=0, stop_step=1 << 30, batch_size=n
  )
  for _ in range(8):
    next(batches)
  start, done = time.perf_counter(), 0
  while (spent := time.perf_counter() - start) < _SECONDS:
    next(batches)
    done += n
  batches.close()
  return round(done / spent, 1)


class _Pictures:
  """The same picture again and again, smooth as photographs are."""

  def __init__(self, n):
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    picture = cv2.resize(noise, _PICTURE[::-1], interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(1).integers(-12, 13, picture.shape)
    picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    self._n, self._data = n, cv2.imencode(".jpg", picture, quality)[1].tobytes()

  def __len__(self):
    return self._n

  def get(self, indices):
    for _ in indices:
      yield images.decode(self._data), -1
