"""Sources: what is read from TFDS, folders and arrays, and what is refused."""

import contextlib
import io
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import datasets
from tensorflow_datasets.proto import tf_example_pb2

from ssljax import errors
from ssljax.data import images
from ssljax.data import prepare
from ssljax.data import sources
from ssljax.data import tfds_records


def picture(seed, h=12, w=16, c=3, dtype=np.uint8):
  top = np.iinfo(dtype).max
  rng = np.random.default_rng(seed)
  return rng.integers(0, top + 1, (h, w, c), dtype)


@pytest.fixture
def folder(tmp_path):
  """A writer of {relative path: image in RGB or bytes}."""

  def write(files):
    for name, content in files.items():
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      if isinstance(content, bytes):
        path.write_bytes(content)
      elif name.endswith(".npy"):
        np.save(path, content)
      else:
        assert cv2.imwrite(str(path), bgr(content))
    return f"folder:{tmp_path}"

  return write


def bgr(image):
  order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
  return image[..., order]


def read_all(name, **options):
  source = sources.make(name, split="all", **options)
  return source.read(np.arange(len(source)))


@pytest.mark.parametrize("ext", ["png", "bmp", "npy", "webp", "jpg"])
def test_formats(folder, ext):
  image = cv2.GaussianBlur(picture(0), (0, 0), 3)
  got = read_all(folder({f"a.{ext}": image}))["image"]
  assert got.shape == (1, 12, 16, 3) and got.dtype == np.uint8
  # WebP and JPEG lose something, but would not mistake red for blue.
  tolerance = {"webp": 12, "jpg": 12}.get(ext, 0)
  assert np.abs(got[0].astype(int) - image).max() <= tolerance


def test_alpha_is_dropped_and_16_bits_become_8(folder):
  alpha, deep = picture(1, c=4), picture(2, dtype=np.uint16)
  got = read_all(folder({"a.png": alpha, "b.png": deep}))["image"]
  np.testing.assert_array_equal(got[0], alpha[..., :3])
  np.testing.assert_array_equal(got[1], deep // 257)


def test_grey_and_colour(folder):
  grey, colour = picture(1, c=1), picture(2)
  name = folder({"a.png": grey, "b.png": colour})
  got = read_all(name)["image"]  # the most channels that some have
  np.testing.assert_array_equal(got[0], np.repeat(grey, 3, axis=2))
  np.testing.assert_array_equal(got[1], colour)
  got = read_all(name, channels=1)["image"]
  np.testing.assert_array_equal(got[0], grey)
  luma = colour @ np.array([0.299, 0.587, 0.114])
  np.testing.assert_allclose(got[1, ..., 0], luma, atol=1)


def test_npy_of_many_channels(folder):
  image = picture(3, c=7)
  name = folder({"a.npy": image, "b.npy": image / 255.0})
  got = read_all(name)["image"]
  np.testing.assert_array_equal(got, [image, image])
  assert read_all(name, size=(6, 6))["image"].shape == (2, 6, 6, 7)


def test_fit_takes_the_centre_and_averages_areas():
  image = np.zeros((8, 20, 3), np.uint8)
  image[:, 6:14] = 100  # the middle square
  np.testing.assert_array_equal(images.fit(image, (8, 8)), image[:, 6:14])
  tall = image.swapaxes(0, 1)
  np.testing.assert_array_equal(images.fit(tall, (8, 8)), tall[6:14])
  checks = np.indices((8, 8)).sum(0) % 2 * np.uint8(200)
  got = images.fit(checks[..., None].astype(np.uint8), (4, 4))
  np.testing.assert_array_equal(got, np.full((4, 4, 1), 100))
  assert images.fit(image, (31, 17)).shape == (31, 17, 3)


def test_sizes_that_differ(folder):
  name = folder({"a.png": picture(1), "b.png": picture(2, h=20)})
  with pytest.raises(errors.UserError, match="config.data.size"):
    read_all(name)
  assert read_all(name, size=(8, 8))["image"].shape == (2, 8, 8, 3)


def test_a_size_that_differs_late_is_not_fitted_in_silence(folder):
  files = {f"{i:03}.bmp": picture(i) for i in range(130)}
  files["001.bmp"] = picture(0, h=13)  # not among the 64 that are looked at
  with pytest.raises(errors.UserError, match="config.data.size"):
    read_all(folder(files))


def test_order_and_labels(folder):
  names = ["bee/2.png", "ant/1.png", "ant/deep/0.png", "loose.png"]
  files = {name: picture(i) for i, name in enumerate(names)}
  got = read_all(folder(files), labels=True)
  for row, file in enumerate([1, 2, 0, 3]):
    np.testing.assert_array_equal(got["image"][row], picture(file))
  np.testing.assert_array_equal(got["label"], [0, 0, 1, -1])
  np.testing.assert_array_equal(got["index"], range(4))
  assert {v.dtype for k, v in got.items() if k != "image"} == {np.dtype("i4")}
  assert "label" not in read_all(folder({}))


def test_splits_of_a_folder_have_the_same_classes(folder):
  name = folder(
    {
      "train/ant/a.png": picture(0),
      "train/bee/a.png": picture(1),
      "test/bee/a.png": picture(2),
    }
  )
  got = sources.make(name, split="test", labels=True)
  assert got.read(np.array([0]))["label"] == [1] and got.num_classes == 2
  assert got.class_names == ["ant", "bee"]
  assert len(sources.make(name, split="train")) == 2
  with pytest.raises(errors.UserError, match="test, train"):
    sources.make(name, split="valid")


def test_all_splits_of_a_folder_have_its_classes_and_links_are_read_once(
  folder, tmp_path
):
  names = ["train/ant/a.png", "train/bee/a.png", "test/bee/a.png", "test/b.png"]
  name = folder({file: picture(i) for i, file in enumerate(names)})
  (tmp_path / "train" / "ant" / "loop").symlink_to(tmp_path / "train")
  got = read_all(name, labels=True)
  np.testing.assert_array_equal(got["label"], [-1, 1, 0, 1])


@pytest.mark.parametrize(
  "names, classes",
  [
    (["cat/a", "dog/a", "train/a"], ["cat", "dog", "train"]),
    (["training/cat/a", "validation/dog/a"], ["cat", "dog"]),
    (["train/a", "test/a", "unlabeled/a"], None),
    (["train/cat/a", "rest/cat/a"], ["cat"]),
  ],
)
def test_a_class_may_have_the_name_of_a_split(folder, names, classes):
  files = {f"{name}.png": picture(i) for i, name in enumerate(names)}
  got = sources.make(folder(files), split="all", labels=None)
  assert got.class_names == classes
  assert ("label" in got.read(np.arange(len(names)))) == bool(classes)


def test_a_folder_is_the_same_in_whatever_order_the_disk_has_it(
  folder, tmp_path, monkeypatch
):
  name = folder({"ant/a.png": picture(0), "cat/a.png": picture(1)})
  (tmp_path / "kitten").symlink_to(tmp_path / "cat")
  scandir, found = os.scandir, []

  class Ordered(contextlib.AbstractContextManager):
    def __init__(self, path):
      entries = sorted(scandir(path), key=lambda entry: entry.name)
      entries = entries[::-1] if self.reverse else entries
      self._entries = iter(entries)

    def __iter__(self):
      return self._entries

    def __next__(self):
      return next(self._entries)

    def __exit__(self, *unused):
      pass

  monkeypatch.setattr(os, "scandir", Ordered)
  for Ordered.reverse in (False, True):
    found.append(sources.make(name, split="all", labels=True))
  assert found[0].identity == found[1].identity
  np.testing.assert_array_equal(found[0].labels(), [0, 1])
  np.testing.assert_array_equal(found[1].labels(), [0, 1])


@pytest.fixture
def unlistable(monkeypatch):
  """`unlistable(name, error)`: folders of that name cannot be listed."""
  scandir = os.scandir

  def refuse(name, error):
    def refused(path):
      if str(path).endswith(name):
        raise error
      return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)

  return refuse


def test_what_cannot_be_listed_is_told(folder, unlistable):
  name = folder({"ant/a.png": picture(0), "bee/a.png": picture(1)})
  unlistable("bee", OSError(5, "Input/output error", "a/bee"))
  with pytest.raises(errors.UserError, match="bee cannot be read .Input/out"):
    sources.make(name, split="all")


def test_a_folder_beside_the_splits_may_be_unreadable(folder, unlistable):
  name = folder(
    {
      "train/ant/a.png": picture(0),
      "test/bee/a.png": picture(1),
      "lost+found/b.png": picture(2),
    }
  )
  unlistable("lost+found", PermissionError(13, "Permission denied"))
  source = sources.make(name, split="train", labels=True)
  assert source.class_names == ["ant", "bee"]


def test_npy_whose_header_is_damaged_is_corrupt(folder):
  whole = io.BytesIO()
  np.save(whole, picture(0))
  zipped = io.BytesIO()
  np.savez(zipped, picture(0))
  data = whole.getvalue()
  broken = data[:12] + b"(" + data[13:]  # no end of its brackets
  huge = data.replace(b"(12, 16, 3)", b"(99999999999, 99999, 3)")
  files = {"a.npy": broken, "b.npy": zipped.getvalue(), "c.npy": huge}
  got = read_all(folder(files | {"d.npy": picture(1)}), max_corrupt=3)
  for row in range(3):
    np.testing.assert_array_equal(got["image"][row], picture(1))


def test_hidden_files_are_no_examples_and_hidden_folders_no_classes(folder):
  name = folder(
    {
      "ant/a.png": picture(0),
      "ant/._a.png": b"what some systems keep beside it",
      ".ipynb_checkpoints/b.png": picture(1),
    }
  )
  source = sources.make(name, split="all", labels=True, max_corrupt=0)
  assert source.class_names == ["ant"] and len(source) == 1


def test_a_file_name_may_be_of_any_bytes(folder, tmp_path):
  name = folder({"a.png": picture(0)})
  os.rename(tmp_path / "a.png", os.fsencode(tmp_path / "caf") + b"\xe9.png")
  assert len(sources.make(name, split="all").identity) == 64


def test_threads_share_a_batch(folder):
  files = {f"{i:03}.png": picture(i) for i in range(70)}
  source = sources.make(folder(files), split="all", memory_budget=0)
  got = source.read(np.arange(70)[::-1])
  np.testing.assert_array_equal(got["index"], np.arange(70)[::-1])
  for row in (0, 31, 32, 69):
    np.testing.assert_array_equal(got["image"][row], picture(69 - row))


@pytest.mark.parametrize("value", [255.0, -1.0, np.nan])
def test_npy_that_is_no_picture_is_corrupt(folder, value):
  image = np.full((4, 4, 1), value, np.float32)
  got = read_all(folder({"a.npy": image, "b.npy": picture(1, c=1)[:4, :4]}))
  np.testing.assert_array_equal(got["image"][0], got["image"][1])


@pytest.mark.parametrize("memory_budget", [0, 1 << 30])
def test_corrupt_images_are_replaced_and_named(folder, caplog, memory_budget):
  good = picture(0)
  whole = cv2.imencode(".jpg", cv2.GaussianBlur(good, (0, 0), 3))[1].tobytes()
  name = folder(
    {
      "a.png": good,
      "b.jpg": whole[: len(whole) // 2],
      "c.npy": b"nonsense",
      "d.png": picture(3),
      "e.png": b"",
    }
  )
  for _ in range(2):
    source = sources.make(name, split="all", memory_budget=memory_budget)
    got = source.read(np.array([1, 4, 3, 2]))
    np.testing.assert_array_equal(got["index"], [1, 4, 3, 2])
    for row, image in enumerate((picture(3), good, picture(3), picture(3))):
      np.testing.assert_array_equal(got["image"][row], image)
    source.read(np.array([1]))
    for bad in ("b.jpg", "c.npy", "e.png"):
      assert caplog.text.count(f"{bad}: corrupt") == 1
    caplog.clear()
  with pytest.raises(errors.UserError, match="b.jpg.*c.npy"):
    sources.make(name, split="all", max_corrupt=1).read(np.array([1, 2]))


@pytest.mark.parametrize(
  "image, held",
  [
    (picture(0) * 1.0, "float64 .12, 16, 3. of 0 to 255"),
    (picture(0).astype(np.int64), "int64 .12, 16, 3."),
    (picture(0)[None], "uint8 .1, 12, 16, 3."),
  ],
)
def test_npy_of_other_values_tells_what_it_is_to_hold(
  folder, caplog, image, held
):
  says = f"a.npy .{held}, not uint8 or float in .0, 1., of .h w c. or .h w."
  with pytest.raises(errors.UserError, match=f"all corrupt, as .*{says}"):
    read_all(folder({"a.npy": image}))
  read_all(folder({"b.npy": picture(1)}))
  assert "uint8 or float in [0, 1]" in caplog.text


def test_nothing_but_corrupt_images_ends(folder):
  name = folder({"a.png": b"", "b.png": b""})
  for options in ({}, {"size": (8, 8), "channels": 3}):
    with pytest.raises(errors.UserError, match="corrupt"):
      read_all(name, **options)
  one = folder({"a.png": picture(0), "b.png": b""})
  source = sources.make(one, split="all", max_corrupt=0, memory_budget=0)
  for _ in range(2):  # by whatever thread
    with pytest.raises(errors.UserError, match="corrupt"):
      source.read(np.array([1]))


def test_channels_that_cannot_be_made_are_named(folder):
  name = folder({"a.npy": picture(0, c=5)})
  with pytest.raises(errors.UserError, match="5 channels does not make 3"):
    read_all(name, channels=3, size=(12, 16))


@pytest.mark.parametrize(
  "have, wanted, mend",
  [(3, 2, "1 or 3"), (1, 4, "1 or 3"), (5, 3, "5"), (5, 4, "5")],
)
def test_channels_that_no_image_makes_are_told_at_once(
  folder, caplog, have, wanted, mend
):
  says = f"config.data.channels={wanted}: .* have {have}: give {mend}, or leave"
  name = folder({f"{i}.npy": picture(i, c=have) for i in range(12)})
  sizes = [None] if wanted == 3 else [None, (8, 8)]
  for size in sizes:
    with pytest.raises(errors.UserError, match=says):
      read_all(name, channels=wanted, size=size)
  if have == 1:
    with pytest.raises(errors.UserError, match=says):
      sources.make("digits", split="train", channels=wanted)
  assert not caplog.text


def test_a_folder_that_is_missing_or_empty(folder, tmp_path):
  with pytest.raises(errors.UserError, match="no folder"):
    sources.make("folder:/no/such/folder", split="all")
  with pytest.raises(errors.UserError, match="no images in .*png"):
    sources.make(folder({"read.me": b"x"}), split="all")


def test_arrays():
  image = picture(0, h=6)[None].repeat(3, 0)
  source = sources.ArraySource({"image": image, "label": [2, 0, 1]})
  got = source.read(np.array([2, 0]))
  assert (len(source), source.shape, source.num_classes) == (3, (6, 16, 3), 3)
  np.testing.assert_array_equal(got["label"], [1, 2])
  np.testing.assert_array_equal(got["index"], [2, 0])
  with pytest.raises(errors.UserError, match="float64"):
    sources.ArraySource({"image": image / 255.0})
  for label in ([0, 1], [[0], [1], [2]]):
    with pytest.raises(errors.UserError, match=r"for 3 images: give \[n\]"):
      sources.ArraySource({"image": image, "label": label})


def test_digits():
  train = sources.make("digits", split="train", labels=True)
  test = sources.make("digits", split="test", labels=True, size=(16, 16))
  assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
  assert (train.shape, test.shape) == ((8, 8, 1), (16, 16, 1))
  data = datasets.load_digits()
  got = train.read(np.arange(1437))
  np.testing.assert_array_equal(got["label"], data.target[:1437])
  expected = data.images[:1437, ..., None] / 16
  np.testing.assert_allclose(got["image"] / 255, expected, atol=0.5 / 255)
  np.testing.assert_array_equal(
    test.read(np.arange(360))["label"], data.target[1437:]
  )
  with pytest.raises(errors.UserError, match="train or test"):
    sources.make("digits", split="train[:10]")


# TFDS: a tiny Fashion-MNIST, with pixels of our own.


@pytest.fixture(scope="module")
def tiny_tfds(tmp_path_factory):
  root = str(tmp_path_factory.mktemp("tfds"))
  files = {}
  for part, n in (("train", 40), ("t10k", 8)):
    image = np.random.default_rng(n).integers(0, 256, (n, 28, 28), np.uint8)
    head = np.zeros(16, np.uint8)
    files[f"{part}-images-idx3-ubyte"] = np.r_[head, image.ravel()]
    label = np.arange(n, dtype=np.uint8) % 10
    files[f"{part}-labels-idx1-ubyte"] = np.r_[head[:8], label]
  cls = tfds.builder_cls("fashion_mnist")
  with tfds.core.registered.skip_registration():
    builder = prepare._local_builder(cls, files)(
      data_dir=root, file_format="array_record"
    )
  builder.download_and_prepare(file_format="array_record")
  return root


@pytest.mark.parametrize("memory_budget", [0, 1 << 30])
def test_tfds_reads_what_tfds_reads(tiny_tfds, memory_budget):
  source = sources.make(
    "fashion_mnist:3.0.1",
    split="train",
    labels=True,
    data_dir=tiny_tfds,
    memory_budget=memory_budget,
  )
  assert (len(source), source.num_classes) == (40, 10)
  assert source.shape == (28, 28, 1)
  got = source.read(np.array([39, 0, 7]))
  builder = tfds.builder("fashion_mnist", data_dir=tiny_tfds)
  theirs = builder.as_data_source("train")
  for row, i in enumerate([39, 0, 7]):
    np.testing.assert_array_equal(got["image"][row], theirs[i]["image"])
    assert got["label"][row] == theirs[i]["label"]


def test_tfds_slices(tiny_tfds):
  make = lambda split: sources.make(
    "fashion_mnist", split=split, data_dir=tiny_tfds
  )
  everything = make("train").read(np.arange(40))["image"]
  part = make("train[10:20]")
  got = part.read(np.arange(10))
  np.testing.assert_array_equal(got["image"], everything[10:20])
  np.testing.assert_array_equal(got["index"], range(10))
  assert len(make("train[:90%]")) == 36 and len(make("train+test")) == 48
  with pytest.raises(errors.UserError, match="no examples in split 'train.5:2"):
    make("train[5:2]")
  for wrong in ("valid", "train[:1o%]"):
    with pytest.raises(errors.UserError, match="there is .*train"):
      make(wrong)


def test_reading_imports_no_tensorflow(tiny_tfds):
  code = f"""
import sys
import numpy as np
from ssljax.data import sources, stream
source = sources.make("fashion_mnist", split="train", data_dir={tiny_tfds!r})
steps = stream.batches(source, seed=0, start_step=0, stop_step=3, batch_size=8)
assert len(list(steps)) == 3
assert "tensorflow" not in sys.modules
"""
  env = os.environ | {"PYTHONPATH": os.getcwd()}
  subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)


def test_an_unknown_dataset_names_the_nearest():
  for name in ("fashion_mnst", "fashion-mnist", "mnist_fashion"):
    with pytest.raises(errors.UserError, match="did you mean 'fashion_mnist'"):
      sources.make(name, split="train")
  with pytest.raises(errors.UserError, match="data.name"):
    sources.make("", split="train")
  with pytest.raises(errors.UserError, match="descriptions are texts, .* imag"):
    sources.make("descriptions", split="train")


def test_a_corrupt_record_leaves_the_others_of_its_batch():
  class Reader:
    def __getitems__(self, indices):
      if 2 in indices:
        raise RuntimeError("chunk data hash mismatch")
      return [_example(bytes([i]), i) for i in indices]

  def _example(data, label):
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(data)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()

  records = object.__new__(tfds_records.Records)
  records._records = Reader()
  rows = list(records.parsed([1, 2, 3], "image"))
  assert rows == [(b"\x01", 1), (None, -1), (b"\x03", 3)]
