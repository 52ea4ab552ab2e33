"""What a run keeps of its data, and what it can do without them."""

import json
import os
import re

import numpy as np
import pytest

from ssljax import config as config_lib
from ssljax import errors
from ssljax import evaluate
from ssljax import interop
from ssljax import replay
from ssljax import run as run_lib
from ssljax import train
from ssljax import tuning
from ssljax import workdir as workdir_lib

SIMCLR = "configs/simclr_resnet18_fashion_mnist.py:quick"


def folder_of(path, n):
  """A folder of n small images in each of two classes."""
  rng = np.random.default_rng(0)
  for split, count in (("train", n), ("test", 8)):
    for name in ("a", "b"):
      place = path / split / name
      place.mkdir(parents=True, exist_ok=True)
      for i in range(count):
        image = rng.integers(0, 256, (8, 8, 1), dtype=np.uint8)
        np.save(place / f"{i:03}.npy", image)
  return f"folder:{path}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(workdir, the flags) of a run on a folder of images."""
  place = tmp_path_factory.mktemp("kept")
  flags = [
    f"--config.data.name={folder_of(place / 'images', 16)}",
    "--config.batch_size=16",
    "--config.steps=4",
    "--config.eval.train_split=",
  ]
  workdir = str(place / "run")
  train.train(config_lib.load(SIMCLR, flags), workdir)
  return workdir, place, flags


def test_what_is_trained_needs_no_training_data(trained, tmp_path):
  workdir, place, _ = trained
  other = folder_of(tmp_path / "other", 4)
  os.rename(place / "images", place / "elsewhere")
  try:
    figures = evaluate.write_embeddings(
      workdir, str(tmp_path / "out.npz"), data=other
    )
    assert figures["examples"] == 16
    out = str(tmp_path / "out.safetensors")
    assert interop.export(workdir, out=out, layout="torchvision")["step"] == 4
    with pytest.raises(errors.UserError, match="no folder"):
      evaluate.restore(workdir)
  finally:
    os.rename(place / "elsewhere", place / "images")


def test_a_kept_source_is_what_was_read(trained):
  workdir, *_ = trained
  kept = evaluate.restore(workdir, examples=False)[0].source
  read = evaluate.restore(workdir)[0].source
  names = ("modality", "name", "shape", "num_classes", "like", "unit")
  for name in (*names, "example", "per_example"):
    assert getattr(kept, name) == getattr(read, name)
  assert len(kept) == len(read) == 32
  with pytest.raises(errors.UserError, match="examples=True"):
    kept.read([0])


def test_a_run_from_before_data_were_kept(trained, tmp_path):
  workdir, *_ = trained
  path = workdir_lib.data_file(workdir, "source")
  os.rename(path, tmp_path / "source.json")
  try:
    run, _ = evaluate.restore(workdir, examples=False)
    assert len(run.source.read([0])["image"]) == 1
  finally:
    os.rename(tmp_path / "source.json", path)


def refused(workdir, flags, says):
  """Neither the run nor a step of it goes on."""
  config = config_lib.load(SIMCLR, flags)
  with pytest.raises(errors.UserError, match=says):
    train.train(config, workdir)
  with pytest.raises(errors.UserError, match=says):
    replay.replay(workdir, step=1)


def test_other_data_are_refused(trained):
  workdir, place, flags = trained
  more = place / "images" / "train" / "a" / "more.npy"
  np.save(more, np.zeros((8, 8, 1), np.uint8))
  try:
    refused(workdir, flags, "examples=33, .* with 32")
  finally:
    os.remove(more)


def test_a_damaged_description_is_named(trained, tmp_path):
  workdir, *_ = trained
  path = workdir_lib.data_file(workdir, "source")
  with open(path) as f:
    text = f.read()
  try:
    for damaged in (text[: len(text) // 2], "{}", "[]", '{"examples": 3}'):
      with open(path, "w") as f:
        f.write(damaged)
      with pytest.raises(errors.UserError, match="is damaged .*: remove it"):
        evaluate.restore(workdir, examples=False)
  finally:
    with open(path, "w") as f:
      f.write(text)
  assert json.loads(text)["examples"] == 32


def test_what_other_data_gave_is_kept_apart(trained):
  workdir, *_ = trained
  losses = {
    split: evaluate.evaluate(
      workdir, protocols=("loss",), train_split="", test_split=split
    )["test_loss"]
    for split in ("test", "train")
  }
  assert losses["test"] != losses["train"]
  found = {}
  for name in os.listdir(os.path.join(workdir, "eval")):
    with open(os.path.join(workdir, "eval", name)) as f:
      found[name] = json.load(f)["test_loss"]
  (other,) = [name for name in found if name != "4.json"]
  assert re.fullmatch(r"4-.*_images--train-[0-9a-f]{8}\.json", other), other
  assert found == {"4.json": losses["test"], other: losses["train"]}


def test_data_in_another_order_are_refused(trained):
  workdir, place, flags = trained
  train_folder = place / "images" / "train"
  old, new = train_folder / "a" / "000.npy", train_folder / "b" / "zzz.npy"
  os.rename(old, new)
  try:
    refused(workdir, flags, "in another order")
  finally:
    os.rename(new, old)
  config = config_lib.load(SIMCLR, flags)
  assert train.train(config, workdir)["resumed_from"] == 4


def test_a_test_set_is_read_as_the_run_reads_its_own(trained, tmp_path):
  """Grey images beside the colour that a run was trained on."""
  rng = np.random.default_rng(0)
  for split, channels in (("train", 3), ("test", 1)):
    for name in ("a", "b"):
      (place := tmp_path / split / name).mkdir(parents=True)
      for i in range(12):
        image = rng.integers(0, 256, (8, 8, channels), dtype=np.uint8)
        np.save(place / f"{i}.npy", image)
  _, _, flags = trained
  name = f"--config.data.name=folder:{tmp_path}"
  flags = [name, "--config.data.channels=none", *flags[1:]]
  run = run_lib.build(config_lib.load(SIMCLR, flags))
  assert run.source.shape == (8, 8, 3)
  assert evaluate.labelled(run, None, "test").shape == (8, 8, 3)


def test_unlabelled_examples_are_not_tuned_on(trained, tmp_path, monkeypatch):
  workdir, *_ = trained
  data = folder_of(tmp_path, 8)
  np.save(tmp_path / "test" / "stray.npy", np.zeros((8, 8, 1), np.uint8))
  monkeypatch.setattr(tuning, "finetuned", None)  # which takes long
  with pytest.raises(errors.UserError, match="test labels are in .-1, 1."):
    evaluate.evaluate(
      workdir,
      protocols=("finetune",),
      data=data,
      train_split="train",
      test_split="test",
      fractions=(1.0,),
      floors=False,
    )


def test_a_run_without_evaluation_tells_what_one_needs(trained):
  with pytest.raises(errors.UserError, match="give --train_split .* --data=NA"):
    evaluate.evaluate(trained[0], protocols=("knn",))
