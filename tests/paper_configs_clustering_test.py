"""SwAV's and the DeepClusters' configs are the papers'."""

import os

import numpy as np
import pytest

from ssljax import config as config_lib
from tests import configs_test as shared

RESNET50 = 25_557_032 - 2048 * 1000 - 1000
PROJECTOR = 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128


def paper(name):
  path = os.path.join(shared.ROOT, "configs", name)
  return shared.paper_state(path, (256, 256, 3))


@pytest.mark.parametrize("name", ["swav", "deepcluster_v2"])
def test_multi_crop_on_imagenet_is_the_papers(name):
  config, state, rate = paper(f"{name}_resnet50_imagenet.py")
  assert shared.count(state.params["encoder"]) == RESNET50
  assert shared.count(state.params["projector"]) == PROJECTOR
  if name == "swav":
    assert state.params["prototypes"].shape == (3000, 128)
    assert "queue" not in state.method_state
    (frozen,) = config.optimizer.freeze
    assert frozen["steps"] == 313
  else:
    assert state.method_state["prototypes"].shape == (3, 3000, 128)
    assert state.method_state["memory"].shape == (2, 1281167, 128)
  assert (config.batch_size, config.epochs) == (4096, 800.0)
  warmup = 10 * (1281167 // 4096)
  np.testing.assert_allclose(rate(0), 0.3, rtol=1e-6)
  np.testing.assert_allclose(rate(warmup), 4.8, rtol=1e-6)
  np.testing.assert_allclose(rate(31200), 0.0048, rtol=1e-4)


def test_small_swav_on_imagenet_is_the_papers():
  config, state, rate = paper("swav_resnet50_imagenet.py:small")
  assert (config.batch_size, config.epochs) == (256, 400.0)
  assert state.method_state["queue"].shape == (2, 3840, 128)
  assert config.optimizer.freeze[0]["steps"] == 5005
  np.testing.assert_allclose(rate(0), 0.6, rtol=1e-6)
  np.testing.assert_allclose(rate(31200), 0.0006, rtol=1e-4)


def test_deepcluster_on_imagenet_is_the_papers():
  config, state, rate = paper("deepcluster_resnet50_imagenet.py")
  # Sobel leaves two channels of three.
  assert shared.count(state.params["encoder"]) == RESNET50 - 49 * 64
  assert state.params["head"]["kernel"].shape == (2048, 10000)
  assert (config.batch_size, config.epochs) == (256, 200.0)
  np.testing.assert_allclose([rate(0), rate(31199)], 0.05, rtol=1e-6)


@pytest.mark.parametrize("name", ["swav", "deepcluster_v2"])
def test_cifar10_is_solo_learns(name):
  path = os.path.join(shared.ROOT, "configs", f"{name}_resnet18_cifar10.py")
  config, state, rate = shared.paper_state(
    path,
    (32, 32, 3),
    num_examples=50000,
    steps_per_epoch=195,
    total_steps=195000,
  )
  assert shared.count(state.params["encoder"]) == 11_168_832
  hidden = 512 * 2048 + 2 * 2048 + 2048 * 128 + 128
  assert shared.count(state.params["projector"]) == hidden
  assert (config.batch_size, config.epochs) == (256, 1000.0)
  assert config.optimizer.trust_coefficient == 0.02
  warmup = round({"swav": 10, "deepcluster_v2": 11}[name] * 50000 / 256)
  np.testing.assert_allclose(rate(warmup), 0.6, rtol=1e-6)


def test_quick_has_small_crops_where_the_paper_has():
  path = os.path.join(shared.ROOT, "configs", "swav_resnet50_imagenet.py")
  config = config_lib.load(f"{path}:quick", [])
  assert config.augment.local_views and config.augment.local_size == (4, 4)
