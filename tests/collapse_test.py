"""The warning of a collapse: what the papers report as broken trips it within
200 steps on digits, and the sound methods never do."""

import contextlib
import os
from unittest import mock

import jax
import pytest

from ssljax import config as config_lib
from ssljax import train
from ssljax.models import linen

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def without_stop_gradient():
  return mock.patch.object(jax.lax, "stop_gradient", lambda x: x)


def without_predictor():
  """Projections, of 32 dimensions, are the predictions."""
  real = linen.apply

  def apply(module, params, stats, x, **kwargs):
    if "dense0" in params and params["dense0"]["kernel"].shape[0] == 32:
      return x, stats
    return real(module, params, stats, x, **kwargs)

  return mock.patch.object(linen, "apply", apply)


def flags(*given):
  return [f"--config.{flag}" for flag in given]


SOUND = contextlib.nullcontext
# Of the config's 0.3 the keys come together at first, and spread again after
# some 100 steps on Fashion-MNIST: 200 on digits are too few for that.
MOCO = flags("optimizer.learning_rate=0.1")
CASES = {
  "simsiam": (SOUND, []),
  "simsiam without stop-gradient": (without_stop_gradient, []),
  "simsiam without predictor": (without_predictor, []),
  "byol": (SOUND, []),
  "byol without predictor": (without_predictor, []),
  "dino": (SOUND, []),
  "dino without centring": (SOUND, flags("method.centre_ema=1.0")),
  "dino without sharpening": (
    SOUND,
    flags("method.teacher_temperature=1.0", "method.warmup_teacher_epochs=0"),
  ),
  "moco": (SOUND, MOCO),
  "moco without momentum": (SOUND, MOCO + flags("method.ema=0.0")),
  "moco at a temperature of 0.001": (
    SOUND,
    MOCO + flags("method.temperature=0.001"),
  ),
  "ibot": (SOUND, []),
  "dinov2": (SOUND, []),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_collapses_and_what_is_sound_does_not(
  name, tmp_path, caplog
):
  broken_by, given = CASES[name]
  method = name.partition(" ")[0]
  encoder = "vit" if method in ("ibot", "dinov2") else "resnet18"
  path = os.path.join(ROOT, "configs", f"{method}_{encoder}_fashion_mnist.py")
  config = config_lib.load(
    f"{path}:quick",
    flags(
      "steps=200",
      "log_every=10",
      "checkpoint.every_steps=1000",
      "eval.last=False",
      "mesh.data=1",
      "monitor.every_steps=0",
    )
    + given,
  )
  with broken_by():
    figures = train.train(config, str(tmp_path / "run"))
  reason = figures["collapsed"]  # at the end; a warning tells it once
  if name == method:
    assert reason is None and "collapse" not in caplog.text
  else:
    assert reason.startswith("collapse: spread/")
    assert caplog.text.count("collapse: spread/") == 1
  again = train.train(config, str(tmp_path / "run"))
  assert again["collapsed"] == reason
