"""Examples that cannot be read."""

import glob
import os
import re
import shutil

import cv2
import numpy as np

from ssljax.data import prepare
from ssljax.data import sources
from ssljax.data import texts

_BAD, _IMAGES = 3, 200
_RECORDS = "train[:2%]", 1200  # of Fashion-MNIST


def badrecord(trial, **unused):
  """Corrupt images in a folder, and corrupt records in ArrayRecord.

  Of a config of text: documents that are not UTF-8, lines that are no JSON, and
  a file of another code.
  """
  if trial.config.data.modality == "text":
    return _of_texts(trial)
  folder, names = _folder(trial)
  split, count = _RECORDS
  twice = 2 * count // trial.config.batch_size  # the images yet more often
  flags = [
    *("--config.data.size=8,8", "--config.data.channels=1"),
    *("--config.data.memory_budget=0", f"--config.steps={twice}"),
    "--config.monitor.every_steps=0",
  ]
  name = f"--config.data.name=folder:{folder}"
  _expect(trial, "folder", [name, "--config.data.split=all", *flags], names)
  flags += [
    *("--config.data.name=fashion_mnist", f"--config.data.split={split}"),
    f"--config.data.data_dir={_array_record(trial)}",
  ]
  name = f"fashion_mnist/{split}["
  first = _expect(trial, "array_record", flags, [name])
  named = set(re.findall(re.escape(name) + r"\d+\]", first.stderr))
  trial.expect("array_record: names all", len(named) >= _BAD, sorted(named))
  return {"bad": _BAD, "images": _IMAGES}


def _of_texts(trial):
  folder = trial.workdir("texts")
  os.makedirs(folder)
  documents = texts.make(
    "descriptions", split="train", tokenizer="gpt", vocab=300, length=16
  ).texts
  bad = set(trial.rng.sample(range(len(documents)), _BAD))
  for i, text in enumerate(documents):
    with open(os.path.join(folder, f"{i:03}.txt"), "wb") as f:
      f.write(b"\xff" * (i in bad) + text.encode())
  flags = [
    *(f"--config.data.name=folder:{folder}", "--config.data.split=all"),
    *("--config.eval.train_split=", "--config.steps=20"),
    "--config.monitor.every_steps=0",
  ]
  first = trial.run("folder", *flags)
  names = [f"{i:03}.txt" for i in sorted(bad)]
  told = [name for name in names if name in first.stderr]
  counted = f"{_BAD} documents are not UTF-8" in first.stderr
  trial.expect("folder: says how many", counted)
  trial.expect("folder: trains on, and names them", told == names, told)
  trial.run("folder_again", *flags)
  same = trial.batches("folder") == trial.batches("folder_again")
  trial.expect("folder: the batches are the same again", same)
  with open(os.path.join(folder, "more.jsonl"), "w") as f:
    f.write('{"text": "a line that is whole"}\n{"text": "one that')
  ended = trial.end(trial.start("lines", *flags), "lines")
  trial.expect("lines: a broken one ends it with 2", ended.status == 2)
  _expect_line(trial, "lines", ended, "more.jsonl:2")
  with open(os.path.join(folder, "code.txt"), "wb") as f:
    f.write("a text of another code".encode("utf-16"))
  ended = trial.end(trial.start("code", *flags), "code")
  trial.expect("code: another one ends it with 2", ended.status == 2)
  _expect_line(trial, "code", ended, "code.txt is not text in UTF-8")
  return {"bad": _BAD, "documents": len(documents)}


def _expect_line(trial, what, ended, words):
  line = [s for s in ended.stderr.splitlines() if s.startswith("ssljax: ")]
  ok = len(line) == 1 and words in line[0]
  trial.expect(f"{what}: in one line", ok, [s[:80] for s in line])


def _expect(trial, what, flags, names):
  allowed = "--config.data.max_corrupt=5000"
  first = trial.run(what, *flags, allowed)
  told = [name for name in names if name in first.stderr]
  trial.expect(f"{what}: trains on, and names them", told == names, told)
  trial.run(f"{what}_again", *flags, allowed)
  same = trial.batches(what) == trial.batches(f"{what}_again")
  trial.expect(f"{what}: the batches are the same again", same)
  started = trial.start(f"{what}_more", *flags, "--config.data.max_corrupt=1")
  ended = trial.end(started, f"{what}_more")
  trial.expect(f"{what}: more than allowed end it with 2", ended.status == 2)
  _expect_line(trial, what, ended, "max_corrupt=1")
  return first


def _folder(trial):
  """A folder of digits, some of them cut short; and the names of those."""
  folder = trial.workdir("images")
  os.makedirs(folder)
  digits = sources.make("digits", split="train").read(np.arange(_IMAGES))
  for i, image in enumerate(digits["image"]):
    cv2.imwrite(os.path.join(folder, f"{i:03}.png"), image)
  bad = sorted(trial.rng.sample(range(_IMAGES), _BAD))
  bad = [f"{i:03}.png" for i in bad]
  for name in bad:
    os.truncate(os.path.join(folder, name), 40)
  return folder, bad


def _array_record(trial):
  """A TFDS folder whose Fashion-MNIST has bytes of its records overwritten."""
  prepare.prepare("fashion_mnist")
  where = prepare.find_builder("fashion_mnist", None).data_path
  data_dir = trial.workdir("tfds")
  copy = os.path.join(data_dir, *os.path.normpath(where).split(os.sep)[-2:])
  shutil.copytree(where, copy)
  path = sorted(glob.glob(os.path.join(copy, "*train*")))[0]
  size = os.path.getsize(path)
  for part in range(1, _BAD + 1):  # in the first hundredth
    with open(path, "r+b") as f:
      f.seek(size * part // (100 * _BAD))
      f.write(bytes(64))
  return data_dir
