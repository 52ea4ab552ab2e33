"""`ssljax prepare NAME`: datasets as TFDS has them, in ArrayRecord.

What is written reads as the real dataset (`tfds.builder(name)`): same name,
version and features, and no TensorFlow on the way.
"""

import difflib
import gzip
import hashlib
import io
import os
import shutil
import socket
import subprocess
import urllib.parse

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from ssljax import errors

# Debian's copy is compressed otherwise than the original, with the same bytes
# inside: these are SHA-256 digests of the decompressed files.
_FASHION_MNIST = {
  "train-images-idx3-ubyte": (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
  ),
  "train-labels-idx1-ubyte": (
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
  ),
  "t10k-images-idx3-ubyte": (
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
  ),
  "t10k-labels-idx1-ubyte": (
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
  ),
}
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"


def prepare(name: str, *, data_dir: str | None = None) -> str:
  """Builds a dataset where it is missing; returns its folder.

  Args:
    name: of a TFDS dataset, with "/config" and ":version" where it has them.
    data_dir: TFDS' root; None is TFDS' own default, `TFDS_DATA_DIR` or
      ~/tensorflow_datasets.

  Raises:
    UserError: TFDS does not know the name, or the data cannot be had: the line
      says what was tried.
  """
  builder = find_builder(name, data_dir)
  if builder.is_prepared():
    return str(builder.data_dir)
  tried = []
  if builder.name != "fashion_mnist" or _answers(type(builder).URL):
    try:
      builder.download_and_prepare(file_format="array_record")
      return str(builder.data_dir)
    except Exception as e:  # TFDS raises anything: network, checksum, import.
      tried.append(f"TFDS' own download ({str(e).splitlines()[0][:200]})")
  else:
    tried.append(f"TFDS' own download (no answer from {type(builder).URL})")
  if builder.name == "fashion_mnist":
    return _fashion_mnist_from_debian(data_dir, tried)
  raise errors.UserError(
    f"{name} could not be prepared; tried {'; '.join(tried)}. Prepare it where "
    "the site can be reached and copy its folder, or use data.name=folder:PATH"
  )


def find_builder(name: str, data_dir: str | None = None):
  """The TFDS builder of a name.

  Raises:
    UserError: TFDS does not know it; the nearest name is given.
  """
  try:
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as e:
    base = name.split("/")[0].split(":")[0]
    near = difflib.get_close_matches(base, tfds.list_builders(), 1, 0.0)[0]
    raise errors.UserError(
      f"no dataset {name!r}: did you mean {near!r}? Images in a folder are "
      "folder:PATH"
    ) from e


def _answers(url: str, seconds: float = 5.0) -> bool:
  """Whether the host of a URL takes connections; a download would hang."""
  parts = urllib.parse.urlsplit(url)
  try:
    address = parts.hostname, parts.port or 80
    socket.create_connection(address, seconds).close()
    return True
  except OSError:
    return False


def _fashion_mnist_from_debian(data_dir, tried):
  arrays = _read_debian(tried)
  with tfds.core.registered.skip_registration():
    builder = _local_builder(tfds.builder_cls("fashion_mnist"), arrays)(
      data_dir=data_dir, file_format="array_record"
    )
  builder.download_and_prepare(file_format="array_record")
  logging.warning("fashion_mnist from Debian's files: %s", builder.data_dir)
  return str(builder.data_dir)


def _local_builder(cls, arrays):
  """The dataset's own builder, fed from arrays instead of its site."""

  class Local(cls):
    name = cls.name
    VERSION = cls.VERSION

    def _split_generators(self, dl_manager):
      return {
        "train": self._local_examples("train"),
        "test": self._local_examples("t10k"),
      }

    def _local_examples(self, part):
      images = arrays[f"{part}-images-idx3-ubyte"][16:].reshape(-1, 28, 28)
      labels = arrays[f"{part}-labels-idx1-ubyte"][8:]
      level = [cv2.IMWRITE_PNG_COMPRESSION, 1]
      for i, (image, label) in enumerate(zip(images, labels)):
        png = cv2.imencode(".png", image, level)[1].tobytes()
        # An array would be encoded by TensorFlow; bytes are kept as they are.
        yield i, {"image": io.BytesIO(png), "label": int(label)}

  return Local


def _read_debian(tried):
  """{file: bytes}, checked; installs the package where it may."""
  if not os.path.isdir(_DEBIAN_FOLDER):
    _install_debian_package(tried)
  arrays = {}
  for file, expected in _FASHION_MNIST.items():
    path = os.path.join(_DEBIAN_FOLDER, f"{file}.gz")
    try:
      with gzip.open(path) as f:
        data = f.read()
    except OSError as e:
      raise errors.UserError(f"{path} cannot be read: {e}") from e
    if hashlib.sha256(data).hexdigest() != expected:
      raise errors.UserError(
        f"{path} does not hold Fashion-MNIST's bytes: install {_DEBIAN_PACKAGE}"
        " anew"
      )
    arrays[file] = np.frombuffer(data, np.uint8)
  return arrays


def _install_debian_package(tried):
  command = f"apt-get install -y {_DEBIAN_PACKAGE}"
  sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
  if shutil.which("apt-get") and (not sudo or shutil.which("sudo")):
    logging.warning("installing Debian's %s", _DEBIAN_PACKAGE)
    for part in ("apt-get update", command):
      subprocess.run(
        [*sudo, *part.split()], check=False, capture_output=True, text=True
      )
  if not os.path.isdir(_DEBIAN_FOLDER):
    raise errors.UserError(
      f"fashion_mnist could not be prepared; tried {'; '.join(tried)}, and "
      f"Debian's package. Run: sudo {command}"
    )
