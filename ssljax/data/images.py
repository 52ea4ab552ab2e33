"""Decoding images and fitting them to one size, on the host."""

import os
import tokenize

import cv2
import numpy as np

# What is corrupt is told with its file's name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".npy")


def decode(data: bytes) -> np.ndarray | None:
  """An encoded image as uint8 [h w c], colours as RGB; None if it is corrupt.

  Alpha is dropped and the orientation tag ignored, as torchvision's ImageFolder
  does; 16 bits are scaled to 8.
  """
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  except cv2.error:
    return None
  if image is None:
    return None
  if image.dtype == np.uint16:
    image = (image // 257).astype(np.uint8)
  if image.dtype != np.uint8:
    return None
  if image.ndim == 2:
    return image[..., None]
  return image[..., 2::-1]  # BGR, perhaps with alpha


def read_file(path: str) -> np.ndarray | None:
  """The image in a file as uint8 [h w c]; None if it is corrupt.

  An .npy file holds [h w c] or [h w], uint8 or float in [0, 1].
  """
  try:
    if _is_npy(path):
      image = _array(path)
      if np.issubdtype(image.dtype, np.floating):
        if not (0 <= image.min() and image.max() <= 1):  # nor NaN
          return None
        image = np.round(255 * image).astype(np.uint8)
      if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        return None
      return image if image.ndim == 3 else image[..., None]
    with open(path, "rb") as f:
      return decode(f.read())
  except _BROKEN:
    return None


def why(path: str) -> str:
  """What is wrong with a file of which `read_file` gives None."""
  try:
    image = _array(path) if _is_npy(path) else None
  except _BROKEN:
    image = None
  if image is None:
    return "corrupt"
  held = f"{image.dtype} {list(image.shape)}"
  if np.issubdtype(image.dtype, np.floating) and image.size:
    held += f" of {image.min():g} to {image.max():g}"
  return f"{held}, not uint8 or float in [0, 1], of [h w c] or [h w]"


# The last two are of an .npy file whose header is damaged.
_BROKEN = OSError, ValueError, EOFError, MemoryError, tokenize.TokenError


def _is_npy(path):
  return os.path.splitext(path)[1].lower() == ".npy"


def _array(path):
  with open(path, "rb") as f:
    return np.lib.format.read_array(f, allow_pickle=False)


def channels_of(have: int) -> tuple[int, ...]:
  """What `fit` makes of so many channels."""
  return (1, 3) if have in (1, 3) else (have,)


def fit(image, size=None, channels=None) -> np.ndarray:
  """Resizes the short side, crops the centre, and sets the channels.

  Args:
    image: uint8 [h w c].
    size: (height, width) of the result; None keeps it.
    channels: None keeps them; grey becomes colour by repetition, colour becomes
      grey by ITU-R 601.

  Raises:
    ValueError: the channels cannot be made.
  """
  if size is not None and image.shape[:2] != tuple(size):
    image = _cover(image, *size)
  have = image.shape[2]
  if channels in (None, have):
    return image
  if have == 1 and channels == 3:
    return np.repeat(image, 3, axis=2)
  if have == 3 and channels == 1:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
  raise ValueError(f"an image of {have} channels does not make {channels}")


def _cover(image, height, width):
  h, w, c = image.shape
  scale = max(height / h, width / w)
  shape = max(width, round(w * scale)), max(height, round(h * scale))
  # Area averages where the image shrinks, which is antialiasing.
  how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
  image = np.ascontiguousarray(image)
  planes = [
    cv2.resize(image[..., i : i + 4], shape, interpolation=how)
    for i in range(0, c, 4)  # OpenCV resizes at most four channels at once
  ]
  planes = [p[..., None] if p.ndim == 2 else p for p in planes]
  image = np.concatenate(planes, axis=2)
  top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  return image[top : top + height, left : left + width]
