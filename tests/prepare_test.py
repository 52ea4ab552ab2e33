"""Preparation: where the bytes come from, that TFDS reads them, and failures.

A tiny set stands for Fashion-MNIST, on a site of its own or as Debian's files.
"""

import functools
import gzip
import hashlib
import http.server
import os
import threading
import time
import types

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from ssljax import errors
from ssljax.data import debian as debian_lib
from ssljax.data import prepare
from ssljax.data import tfds_records

N = {"train": 30, "t10k": 12}
CLASSES = [
  "T-shirt/top",
  "Trouser",
  "Pullover",
  "Dress",
  "Coat",
  "Sandal",
  "Shirt",
  "Sneaker",
  "Bag",
  "Ankle boot",
]
DEBIAN = prepare._DEBIAN_FOLDER


def pixels(part):
  rng = np.random.default_rng(N[part])
  return rng.integers(0, 256, (N[part], 28, 28, 1), np.uint8)


def labels(part):
  return np.arange(N[part], dtype=np.uint8) * 3 % 10


@pytest.fixture
def files(tmp_path, monkeypatch):
  """A folder with the four files; Debian's and the site's are elsewhere."""
  folder = tmp_path / "files"
  folder.mkdir()
  digests = {}
  for part in N:
    for file, content in (
      (f"{part}-images-idx3-ubyte", bytes(16) + pixels(part).tobytes()),
      (f"{part}-labels-idx1-ubyte", bytes(8) + labels(part).tobytes()),
    ):
      digests[file] = hashlib.sha256(content).hexdigest()
      (folder / f"{file}.gz").write_bytes(gzip.compress(content, 1))
  monkeypatch.setattr(prepare, "_FASHION_MNIST", digests)
  monkeypatch.setattr(prepare, "_DEBIAN_FOLDER", str(tmp_path / "nowhere"))
  monkeypatch.setattr(
    debian_lib, "install", lambda *packages: "apt-get (not tried)"
  )
  point_to(monkeypatch, "http://127.0.0.1:1/")
  return folder


def point_to(monkeypatch, url):
  cls = tfds.builder_cls("fashion_mnist")
  monkeypatch.setattr(cls, "URL", url)
  for scheme in ("http", "https", "all"):
    monkeypatch.delenv(f"{scheme}_proxy", raising=False)
    monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)


@pytest.fixture
def debian(files, monkeypatch):
  monkeypatch.setattr(prepare, "_DEBIAN_FOLDER", str(files))
  return files


@pytest.fixture
def site(files, monkeypatch):
  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  handler = functools.partial(Handler, directory=str(files))
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}/")
  yield files
  server.shutdown()
  server.server_close()


def check(path, root):
  """TFDS reads it by its name, and from its folder."""
  assert path == os.path.join(root, "fashion_mnist", "3.0.1")
  for builder in (
    tfds.builder("fashion_mnist", data_dir=root),
    tfds.builder_from_directory(path),
  ):
    assert str(builder.version) == "3.0.1"
    assert builder.info.features["label"].names == CLASSES
    for split, part in (("train", "train"), ("test", "t10k")):
      rows = list(builder.as_data_source(split))
      # TFDS shuffles as it writes: each picture is found by its pixels.
      place = {x.tobytes(): y for x, y in zip(pixels(part), labels(part))}
      assert len(rows) == len(place) == N[part]
      for row in rows:
        assert row["image"].shape == (28, 28, 1)
        assert place.pop(row["image"].tobytes()) == row["label"]


def test_from_the_site(site, tmp_path, capsys):
  root = str(tmp_path / "tfds")
  check(prepare.prepare("fashion_mnist", data_dir=root), root)
  assert capsys.readouterr().out == ""  # stdout is for figures


def test_from_debian_where_the_site_is_dead(debian, tmp_path, caplog):
  root = str(tmp_path / "tfds")
  start = time.perf_counter()
  check(prepare.prepare("fashion_mnist", data_dir=root), root)
  assert time.perf_counter() - start < 10
  assert "Debian" in caplog.text


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"<html>"])
def test_a_site_with_other_bytes_is_not_believed(site, tmp_path, damage):
  path = site / "train-images-idx3-ubyte.gz"
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(errors.UserError, match="apt-get install.*dataset-fash"):
    prepare.prepare("fashion_mnist", data_dir=str(tmp_path / "tfds"))


def test_debian_files_with_other_pixels_are_refused(debian, tmp_path):
  other = bytes(16) + (pixels("train") ^ 1).tobytes()
  path = debian / "train-images-idx3-ubyte.gz"
  path.write_bytes(gzip.compress(other))
  with pytest.raises(errors.UserError, match="other bytes.*--reinstall"):
    prepare.prepare("fashion_mnist", data_dir=str(tmp_path / "tfds"))
  assert not (tmp_path / "tfds").exists()


def test_one_line_says_what_was_tried(files, tmp_path):
  with pytest.raises(errors.UserError) as e:
    prepare.prepare("fashion_mnist", data_dir=str(tmp_path))
  message = str(e.value)
  assert "\n" not in message
  for part in ("127.0.0.1:1", "no answer", "apt-get (not tried)", "Run: sudo"):
    assert part in message


def test_a_second_time_is_free(debian, tmp_path):
  path = prepare.prepare("fashion_mnist", data_dir=str(tmp_path / "tfds"))
  times = [os.stat(os.path.join(path, f)).st_mtime_ns for f in os.listdir(path)]
  for file in debian.iterdir():
    file.unlink()
  for name in ("fashion_mnist", "fashion_mnist:3.0.1"):
    assert prepare.prepare(name, data_dir=str(tmp_path / "tfds")) == path
  again = [os.stat(os.path.join(path, f)).st_mtime_ns for f in os.listdir(path)]
  assert again == times


@pytest.mark.parametrize(
  "error, seen",
  [(KeyboardInterrupt, KeyboardInterrupt), (OSError, errors.UserError)],
)
def test_an_interrupted_preparation_leaves_nothing(
  debian, tmp_path, monkeypatch, error, seen
):
  root = str(tmp_path / "tfds")
  encode, calls = cv2.imencode, []

  def stop_in_the_middle(*args):
    calls.append(args)
    if len(calls) == N["train"] + 5:  # the train split is written by then
      raise error("stopped")
    return encode(*args)

  monkeypatch.setattr(cv2, "imencode", stop_in_the_middle)
  with pytest.raises(seen):
    prepare.prepare("fashion_mnist", data_dir=root)
  assert os.listdir(os.path.join(root, "fashion_mnist")) == []
  assert not prepare.find_builder("fashion_mnist", root).is_prepared()
  check(prepare.prepare("fashion_mnist", data_dir=root), root)


def test_a_dataset_whose_site_is_dead(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, "_answers", lambda url: False)
  with pytest.raises(errors.UserError, match="no answer from www.cs.toronto"):
    prepare.prepare("cifar10", data_dir=str(tmp_path))


def test_a_dataset_that_tfds_cannot_build(tmp_path, monkeypatch):
  def fail(self, **kwargs):
    raise AssertionError("checksums\ndiffer")

  monkeypatch.setattr(prepare, "_answers", lambda url: True)
  monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
  with pytest.raises(errors.UserError, match=r"\(checksums\)") as e:
    prepare.prepare("cifar10", data_dir=str(tmp_path))
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  "name, says",
  [
    ("fashion_mnst", "did you mean 'fashion_mnist'"),
    ("", "no dataset '': give a TFDS name. Files in a folder"),
    ("a/b/c", "no dataset 'a/b/c': give a TFDS name"),
    ("fashion_mnist/none", "no config 'none'"),
    ("fashion_mnist:9.9.9", "3.0.1"),
    ("digits", "scikit-learn"),
  ],
)
def test_names_that_are_wrong(name, says, tmp_path, capfd):
  with pytest.raises(errors.UserError, match=says):
    prepare.prepare(name, data_dir=str(tmp_path))
  assert "TensorFlow" not in capfd.readouterr().out  # TFDS' banner


def test_a_folder_of_another_format_or_that_is_not_whole_is_told(
  debian, tmp_path
):
  path = prepare.prepare("fashion_mnist", data_dir=str(tmp_path))
  info = os.path.join(path, "dataset_info.json")
  with open(info) as f:
    text = f.read()
  with open(info, "w") as f:
    f.write(text.replace('"array_record"', '"tfrecord"'))
  with pytest.raises(errors.UserError, match="in another format .*data_dir"):
    prepare.prepare("fashion_mnist", data_dir=str(tmp_path))
  with pytest.raises(errors.UserError, match="cannot be opened: .+"):
    prepare.prepare("fashion_mnist:abc", data_dir=str(tmp_path))
  os.remove(info)
  with pytest.raises(errors.UserError, match="3.0.1 is not whole: remove it"):
    tfds_records.Records("fashion_mnist", "train", str(tmp_path), "image")


def test_a_site_that_swallows_packets_is_given_up(monkeypatch):
  release = threading.Event()

  def swallow(*args):
    release.wait(30)
    raise TimeoutError

  monkeypatch.setattr(prepare.socket, "create_connection", swallow)
  start = time.perf_counter()
  assert not prepare._answers("http://127.0.0.1:1/", seconds=0.2)
  assert time.perf_counter() - start < 5
  release.set()


@pytest.mark.skipif(not os.path.isdir(DEBIAN), reason=f"no {DEBIAN}")
def test_debians_files_are_what_the_digests_say():
  files = prepare._read_debian("")
  assert {f: len(x) for f, x in files.items()} == {
    "train-images-idx3-ubyte": 16 + 60000 * 784,
    "train-labels-idx1-ubyte": 8 + 60000,
    "t10k-images-idx3-ubyte": 16 + 10000 * 784,
    "t10k-labels-idx1-ubyte": 8 + 10000,
  }


def test_what_another_process_has_built_meanwhile_is_taken(
  monkeypatch, tmp_path
):
  there = []
  builder = types.SimpleNamespace(
    name="mine", data_dir=tmp_path, is_prepared=lambda: bool(there)
  )
  monkeypatch.setattr(prepare, "find_builder", lambda *unused: builder)

  def fails(builder, name):
    there.extend(others)
    raise errors.UserError("cannot be renamed")

  monkeypatch.setattr(prepare, "_download_and_prepare", fails)
  others = []
  with pytest.raises(errors.UserError, match="cannot be renamed"):
    prepare.prepare("mine")
  others = ["another's"]
  assert prepare.prepare("mine") == str(tmp_path)
