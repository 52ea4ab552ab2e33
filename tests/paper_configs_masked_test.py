"""The paper configs of masked and predictive methods are the papers'."""

import os

import numpy as np
import pytest

from tests import configs_test as shared

count, block = shared.count, shared.block
ROOT = os.path.join(shared.ROOT, "configs")
SHAPE = (256, 256, 3)


def state_of(name, shape=SHAPE):
  return shared.paper_state(os.path.join(ROOT, f"{name}.py"), shape)


# Relative positions, layer scale and a mask token.
BEIT = (27 * 27 + 3) * 12 + 12 * 2 * 768 + 768


def test_simmim_vit_imagenet_is_the_papers():
  config, state, rate = state_of("simmim_vit_imagenet")
  assert count(state.params["encoder"]) == shared.VITS["B"] + BEIT
  assert count(state.params["head"]) == 768 * 768 + 768
  assert config.batch_size == 2048 and config.epochs == 800
  warmup = 10 * (1281167 // 2048)
  np.testing.assert_allclose(rate(0), 5e-7 * 4, rtol=1e-6)
  np.testing.assert_allclose(rate(warmup), 1e-4 * 4, rtol=1e-6)
  np.testing.assert_allclose(rate(27299), 1e-4 * 4, rtol=1e-6)  # of 31200
  np.testing.assert_allclose(rate(27300), 1e-5 * 4, rtol=1e-6)


def test_data2vec_vit_imagenet_is_the_papers():
  config, state, rate = state_of("data2vec_vit_imagenet")
  encoder = shared.VITS["B"] + BEIT
  assert count(state.params["encoder"]) == encoder
  assert count(state.params["head"]) == 768 * 768 + 768
  assert count(state.method_state["teacher"]) == encoder
  assert config.batch_size == 2048 and config.epochs == 800
  warmup = 10 * (1281167 // 2048)
  np.testing.assert_allclose(rate(warmup), 2e-3, rtol=1e-6)
  np.testing.assert_allclose(rate(31200), 1e-5, rtol=1e-5)


def test_ijepa_vit_imagenet_is_the_papers():
  config, state, rate = state_of("ijepa_vit_imagenet")
  encoder = shared.VITS["H"] - 1280  # no class token
  assert count(state.params["encoder"]) == encoder
  assert count(state.method_state["teacher"]) == encoder
  predictor = 1280 * 384 + 384 + 12 * block(384) + 2 * 384 + 384
  predictor += 384 * 1280 + 1280
  assert count(state.params["predictor"]) == predictor
  assert config.batch_size == 2048 and config.epochs == 300
  warmup = 40 * (1281167 // 2048)
  np.testing.assert_allclose(rate(0), 2e-4, rtol=1e-6)
  np.testing.assert_allclose(rate(warmup), 1e-3, rtol=1e-6)
  np.testing.assert_allclose(rate(31200), 1e-6, rtol=1e-4)
  optimizer = config.optimizer
  assert (optimizer.weight_decay, optimizer.weight_decay_end) == (0.04, 0.4)


@pytest.mark.parametrize("d, depth", [(1536, 24)])
def test_aim_vit_imagenet_is_the_papers(d, depth):
  config, state, rate = state_of("aim_vit_imagenet")
  pixels = 14 * 14 * 3
  trunk = depth * (12 * d * d + 4 * d) + pixels * d + d + 4 * d
  assert count(state.params["encoder"]) == trunk
  head = d * 2048 + 12 * (8 * 2048 * 2048 + 2 * 2048) + 2 * 2048 + 2048 * pixels
  assert count(state.params["head"]) == head
  assert config.batch_size == 4096 and config.steps == 500_000
  np.testing.assert_allclose(rate(1950), 1e-3, rtol=1e-6)  # of 31200


def test_cpc_resnet50_imagenet_is_the_papers():
  config, state, rate = state_of("cpc_resnet50_imagenet", (300, 300, 3))
  assert count(state.params["encoder"]) == shared.RESNET50
  rows = 5 * (
    2048 * 256 + 256 + 3 * 256 * 256 + 256 + 2 * 256 * 256 + 256
    + 256 * 2048 + 2048
  )  # fmt: skip
  assert count(state.params["context"]) == rows
  assert count(state.params["target"]) == 2048 * 64 + 64
  assert count(state.params["prediction"]) == 2048 * 64 + 64
  assert config.batch_size == 512 and config.epochs == 200
  np.testing.assert_allclose(rate(100), 4e-4, rtol=1e-6)
