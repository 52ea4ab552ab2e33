"""Methods of images learn on a tiny problem, as a user trains them: kNN of
digits of 8 x 8 pixels by their `:quick` rises above the random encoder's."""

import os

import pytest

from benchmarks import league
from ssljax import config as config_lib
from tests import configs_test

# So few pixels stand milder views than the configs have, under which most
# methods learn to tell digits less well than a random encoder does.
_FLAGS = (
  "augment.area=(0.7,1.0)",
  "augment.flip_p=0.0",
  "augment.strength=0.3",
  "augment.blur_p=0.0",
  "augment.solarize_p=0.0",
  "eval.last=False",
  "log_every=100",
  "checkpoint.every_steps=1000",
  "steps=440",
)
# Deeper than in `:quick`, whose random features are hard to surpass: kNN 0.83.
_RESNET = ("encoder.variant=10", "encoder.width=8")
# The tiny ViT needs more steps, and larger ones.
_VIT = ("steps=660", "optimizer.learning_rate=3e-3")
# On 16 patches these need many more.
_LONG = {
  **dict.fromkeys(("data2vec", "dinov2", "ibot", "ijepa"), "1e-3"),
  "simmim": "3e-3",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", configs_test.of_images())
def test_knn_of_digits_rises(path, tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", os.environ["SSLJAX_TEST_LONGER"])
  config = config_lib.load(path, [])
  flags = _FLAGS + (_VIT if config.encoder.name == "vit" else _RESNET)
  if rate := _LONG.get(config.method.name):
    flags += ("steps=4000", f"optimizer.learning_rate={rate}")
  workdir = f"--workdir={tmp_path / 'run'}"
  given = [f"--config.{flag}" for flag in flags]
  name = f"--config={path}:quick"
  trained = league.command("train", name, workdir, *given)
  assert not trained["collapsed"]
  figures = league.command("evaluate", workdir, "--protocols=knn")
  assert figures["knn"] > figures["random_knn"] + 0.02, figures
