"""Every config: it builds, `:quick` learns, the papers' are the papers'."""

import glob
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config as config_lib
from ssljax import core
from ssljax import run as run_lib
from ssljax import train

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIGS = sorted(glob.glob(os.path.join(ROOT, "configs", "*.py")))
IDS = [os.path.basename(path)[:-3] for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_quick_learns_with_one_compile(path):
  config = config_lib.load(
    f"{path}:quick", ["--config.mesh.data=1", "--config.batch_size=32"]
  )
  run = run_lib.build(config)
  step = train.compile_step(run)
  start = run_lib.init_state(run)
  before = jax.tree.map(np.asarray, start)
  state, rng = start, jax.random.key(0)
  for i in range(6):
    batch = run.source.read(np.arange(32 * i, 32 * i + 32))
    state, metrics = step(state, batch, rng)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
  assert step._cache_size() == 1
  assert int(state.step) == 6
  for leaf in jax.tree.leaves(state):
    assert np.isfinite(leaf).all()
  moved = jax.tree_util.tree_map_with_path(
    lambda path, a, b: (jax.tree_util.keystr(path), (a != b).any()),
    before.params,
    jax.tree.map(np.asarray, state.params),
  )
  pairs = jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple))
  still = [name for name, changed in pairs if not changed]
  assert not still, f"no gradient reached {still}"


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_labels_are_in_no_batch(path):
  config = config_lib.load(f"{path}:quick", ["--config.mesh.data=1"])
  run = run_lib.build(config)
  assert set(run.source.read(np.arange(4))) == {"image", "index"}


def paper_state(path, classes_shape):
  """The state of a paper's config under eval_shape, without its dataset."""
  config = config_lib.load(path, [])
  known = dict(num_examples=1281167, steps_per_epoch=312, total_steps=31200)
  method = run_lib.make_method(config, **known)
  tx, rate = run_lib.make_tx(config, **known)
  views, _ = run_lib.make_augments(config, classes_shape)
  batch = {"image": jax.ShapeDtypeStruct((2, *classes_shape), jnp.uint8)}
  init = lambda rng, batch: core.init_state(
    method, tx, rng, batch, augment=views
  )
  return config, jax.eval_shape(init, jax.random.key(0), batch), rate


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_simclr_resnet50_imagenet_is_the_papers():
  path = os.path.join(ROOT, "configs", "simclr_resnet50_imagenet.py")
  config, state, rate = paper_state(path, (256, 256, 3))
  # ResNet-50 without its classifier, and a head of 2048-2048-128 whose last
  # batch norm has no offset.
  assert count(state.params["encoder"]) == 25_557_032 - 2048 * 1000 - 1000
  head = 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128
  assert count(state.params["projector"]) == head
  assert config.batch_size == 4096
  warmup = round(10 * 1281167 / 4096)
  np.testing.assert_allclose(rate(warmup), 0.075 * 64, rtol=1e-6)
  np.testing.assert_allclose(rate(warmup // 2), 0.0375 * 64, rtol=1e-3)
  np.testing.assert_allclose(rate(31200), 0.0, atol=1e-6)
  _, v2, _ = paper_state(f"{path}:v2", (256, 256, 3))
  more = 2048 * 2048 + 2 * 2048
  assert count(v2.params["projector"]) == head + more
