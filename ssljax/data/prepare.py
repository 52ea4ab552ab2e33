"""`ssljax prepare NAME`: datasets as TFDS has them, in ArrayRecord.

What is written reads as the real dataset (`tfds.builder(name)`): same name,
version and features, and no TensorFlow on the way.
"""

import contextlib
import gzip
import hashlib
import http.client
import io
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request
import zlib

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from ssljax import errors
from ssljax.data import corpora
from ssljax.data import debian

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

  It is written beside its place and renamed when it is whole. Fashion-MNIST
  takes 9 s on two cores.

  Args:
    name: of a TFDS dataset, with "/config" and ":version" where it has them;
      those in `corpora` are among them, and "wordnet" is wordnet_glosses.
    data_dir: TFDS' root; None is TFDS' own default, `TFDS_DATA_DIR` or
      ~/tensorflow_datasets.

  Raises:
    UserError: TFDS does not know the name, or the data cannot be had: the line
      says what was tried.
  """
  if name in ("digits", "descriptions"):
    raise errors.UserError(
      f"{name} come with scikit-learn: use data.name={name}, nothing to prepare"
    )
  builder = find_builder(name, data_dir)
  if not builder.is_prepared():
    try:
      with contextlib.redirect_stdout(sys.stderr):  # stdout is for the figures
        _build(builder, name, data_dir)
    except errors.UserError:  # or another process has built it meanwhile
      if not find_builder(name, data_dir).is_prepared():
        raise
  return str(builder.data_dir)


def _build(builder, name, data_dir):
  if builder.name == "fashion_mnist":
    _build_fashion_mnist(data_dir)
  elif isinstance(builder, (corpora.WordnetGlosses, corpora.Bible)):
    builder.require()
    _write(builder)
  else:
    _download_and_prepare(builder, name)


def find_builder(name: str, data_dir: str | None = None):
  """The TFDS builder of a name.

  Raises:
    UserError: TFDS does not know it; a name that is near is given.
  """
  if name == "wordnet":  # TFDS' own of that name is a graph, with configs
    name = "wordnet_glosses"
  base, _, config = name.partition(":")[0].partition("/")
  # Looked up before TFDS is asked, which wants TensorFlow to say no.
  known = tfds.list_builders(with_community_datasets=False)
  root = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  prepared = base and os.path.isdir(os.path.join(root, base))
  if base not in known and not prepared:
    hint = errors.hint(base, known) or ": give a TFDS name."
    folder = name if os.path.isdir(name) else os.path.dirname(name)
    path = folder if os.path.isdir(folder) else "PATH"
    raise errors.UserError(
      f"no dataset {name!r}{hint} Files in a folder are folder:{path}"
    )
  if config and not prepared:
    configs = tfds.builder_cls(base).builder_configs
    if config not in configs:
      raise errors.UserError(
        f"{base} has no config {config!r}: there is "
        f"{', '.join(configs) or 'none'}"
      )
  try:
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except Exception as e:  # the builder's own code: versions, configs, imports
    if "File format is already set to" in str(e):
      raise errors.UserError(
        f"{name} was prepared in another format than ArrayRecord: prepare it "
        "anew with another --config.data.data_dir"
      ) from e
    # TFDS puts its arguments before it.
    why = str(e).rpartition('}": ')[2].strip() or str(e)
    raise errors.UserError(
      f"{name} cannot be opened: {_first_line(why)}"
    ) from e


def _download_and_prepare(builder, name):
  """TFDS' own way, which gives up on a dead site only after minutes."""
  by_hand = type(builder).MANUAL_DOWNLOAD_INSTRUCTIONS is not None
  sites = {urllib.parse.urlsplit(url)[:2]: url for url in builder.url_infos}
  if sites and not by_hand and not any(map(_answers, sites.values())):
    tried = f"no answer from {', '.join(host for _, host in sites)}"
  else:
    try:
      builder.download_and_prepare(file_format="array_record")
      return
    except Exception as e:  # TFDS raises anything: network, checksum, import.
      tried = _first_line(e)
  raise errors.UserError(
    f"{name} could not be prepared; tried TFDS' own download ({tried}). "
    "Prepare it with TensorFlow where its site can be reached and copy its "
    f"folder to {builder.data_dir}, or use data.name=folder:PATH"
  )


def _first_line(error):
  return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _answers(url: str, seconds: float = 8.0) -> bool:
  """Whether the host of a URL takes connections, through a proxy if one is set.

  The limit is for the name and all addresses together, for which a socket's
  own timeout does not serve.
  """
  parts = urllib.parse.urlsplit(url)
  if parts.scheme in urllib.request.getproxies():
    return True
  port = parts.port or {"https": 443, "ftp": 21}.get(parts.scheme, 80)
  connected = threading.Event()

  def connect():
    with contextlib.suppress(OSError):
      socket.create_connection((parts.hostname, port), seconds).close()
      connected.set()

  thread = threading.Thread(target=connect, daemon=True)
  thread.start()
  thread.join(seconds)
  return connected.is_set()


def _build_fashion_mnist(data_dir):
  """By TFDS' builder, fed with bytes: its own encoding wants TensorFlow."""
  cls = tfds.builder_cls("fashion_mnist")
  try:
    files = _read_site(cls.URL)
  except _BAD_FILE as e:
    tried = f"TFDS' site {cls.URL} ({_first_line(e)})"
    logging.warning("fashion_mnist from Debian's package, not from %s", tried)
    files = _read_debian(tried)
  with tfds.core.registered.skip_registration():
    builder = _local_builder(cls, files)(
      data_dir=data_dir, file_format="array_record"
    )
  _write(builder)


def _write(builder):
  """Prepares what has its bytes at hand."""
  try:
    builder.download_and_prepare(file_format="array_record")
  except OSError as e:
    raise errors.UserError(
      f"{builder.name} cannot be written to {builder.data_dir} "
      f"({_first_line(e)}): make room there, or give another data_dir"
    ) from e


# What a file raises that is not there, not whole, or not the right one.
_BAD_FILE = (
  OSError,
  EOFError,
  ValueError,
  zlib.error,
  http.client.HTTPException,
)


def _read_site(url):
  if not _answers(url):
    raise OSError("no answer")
  files = {}
  for file in _FASHION_MNIST:
    with urllib.request.urlopen(f"{url}{file}.gz", timeout=20) as response:
      files[file] = _unzip(response.read(), file)
  return files


def _unzip(data, file):
  """The bytes of a file, uint8 [n], checked."""
  data = gzip.decompress(data)
  if hashlib.sha256(data).hexdigest() != _FASHION_MNIST[file]:
    raise ValueError(f"{file}.gz holds other bytes than Fashion-MNIST's")
  return np.frombuffer(data, np.uint8)


def _read_debian(tried):
  """{file: uint8 [n]} of Debian's package, installed where that may be done."""
  paths = {f: os.path.join(_DEBIAN_FOLDER, f"{f}.gz") for f in _FASHION_MNIST}
  if not all(map(os.path.exists, paths.values())):
    tried = f"{tried}; {debian.install(_DEBIAN_PACKAGE)}"
  files = {}
  for file, path in paths.items():
    try:
      with open(path, "rb") as f:
        files[file] = _unzip(f.read(), file)
    except _BAD_FILE as e:
      raise errors.UserError(
        f"fashion_mnist could not be prepared; tried {tried}; Debian's {path} "
        f"({_first_line(e)}). Run: sudo apt-get install -y --reinstall "
        f"{_DEBIAN_PACKAGE}"
      ) from e
  return files


def _local_builder(cls, files):
  """The dataset's own builder, fed from `files` instead of its site."""

  class Local(cls):
    name = cls.name
    VERSION = cls.VERSION

    def _split_generators(self, dl_manager):
      return {
        "train": self._local_examples("train"),
        "test": self._local_examples("t10k"),
      }

    def _local_examples(self, part):
      images = files[f"{part}-images-idx3-ubyte"][16:].reshape(-1, 28, 28)
      labels = files[f"{part}-labels-idx1-ubyte"][8:]
      level = [cv2.IMWRITE_PNG_COMPRESSION, 1]
      for i, (image, label) in enumerate(zip(images, labels)):
        png = cv2.imencode(".png", image, level)[1].tobytes()
        # An array would be encoded by TensorFlow; bytes are kept as they are.
        yield i, {"image": io.BytesIO(png), "label": int(label)}

  return Local
