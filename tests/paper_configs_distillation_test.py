"""The recipes of DINO, iBOT and DINOv2 are the papers'."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config as config_lib
from ssljax import run as run_lib
from tests import configs_test as shared


def load(name, shape=(256, 256, 3)):
  path = os.path.join(shared.ROOT, "configs", name)
  return shared.paper_state(path, shape)


def head(d, out, bottleneck=256, lengths=False):
  """Parameters of DINO's head: three layers, prototypes, maybe lengths."""
  mlp = d * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * bottleneck + bottleneck
  return mlp + bottleneck * out + lengths * out


def sizes(state):
  return {k: shared.count(v) for k, v in state.params.items()}


# Classes and positions of 197 are not counted in these; here both are learned.
VIT_S = shared.VITS["S"] + 197 * 384
VIT_L = shared.VITS["L"] + 197 * 1024


def updates(config, params, step):
  """One step of ones from fresh moments, at `step`."""
  tx, rate = run_lib.make_tx(config, **shared.known_of(config))
  state = tx.init(params)._replace(count=jnp.int32(step))
  ones = jax.tree.map(jnp.ones_like, params)
  return tx.update(ones, state, params)[0], rate


@pytest.mark.parametrize("variant", ["", ":boost"])
def test_dino_vit_imagenet_is_the_papers(variant):
  config, state, rate = load(f"dino_vit_imagenet.py{variant}")
  lengths = bool(variant)
  want = {"encoder": VIT_S, "head": head(384, 65536, lengths=lengths)}
  assert sizes(state) == want
  assert shared.count(state.method_state["teacher"]["params"]) == sum(
    want.values()
  )
  assert state.method_state["centre"].shape == (65536,)
  batch, epochs = {"": (512, 100), ":boost": (1024, 300)}[variant]
  assert (config.batch_size, config.epochs) == (batch, epochs)
  warmup = 10 * (1281167 // batch)
  np.testing.assert_allclose(rate(warmup), 5e-4 * batch / 256, rtol=1e-5)
  np.testing.assert_allclose(rate(31200), 1e-6, rtol=1e-4)


def test_dino_resnets_are_the_papers():
  config, state, rate = load("dino_resnet50_imagenet.py")
  assert sizes(state) == {
    "encoder": shared.RESNET50,
    "head": head(2048, 65536),
  }
  np.testing.assert_allclose(rate(10 * (1281167 // 512)), 0.06, rtol=1e-5)


def test_dino_resnet18_cifar10_is_solo_learns():
  path = os.path.join(shared.ROOT, "configs", "dino_resnet18_cifar10.py")
  config = config_lib.load(path, [])
  known = dict(num_examples=50_000, steps_per_epoch=195, total_steps=195_000)
  method = run_lib.make_method(config, **known)
  views = jnp.zeros((2, 2, 32, 32, 3))
  init = lambda rng: method.init(rng, {"views": views})
  params, _ = jax.eval_shape(init, jax.random.key(0))
  # torchvision's, with the 3 x 3 stem in place of 7 x 7, without classifier.
  encoder = 11_689_512 - 513_000 - 64 * 3 * (49 - 9)
  assert shared.count(params["encoder"]) == encoder
  assert shared.count(params["head"]) == head(512, 4096)
  assert (config.batch_size, config.epochs) == (256, 1000)
  assert config.method.ema == 0.9995
  _, rate = run_lib.make_tx(config, **known)
  np.testing.assert_allclose(rate(round(10 * 50_000 / 256)), 0.3, rtol=1e-5)


def test_ibot_vit_imagenet_is_the_papers():
  config, state, rate = load("ibot_vit_imagenet.py")
  assert sizes(state) == {
    "encoder": VIT_S + 384,  # the mask token
    "head": head(384, 8192, lengths=True),
  }
  assert state.method_state["patch_centre"].shape == (8192,)
  assert (config.batch_size, config.epochs) == (1024, 800)
  warmup = 10 * (1281167 // 1024)
  np.testing.assert_allclose(rate(warmup), 2e-3, rtol=1e-5)


@pytest.mark.parametrize("variant", ["", ":apart,registers"])
def test_dinov2_vit_imagenet_is_the_papers(variant):
  config, state, rate = load(f"dinov2_vit_imagenet.py{variant}")
  more = 24 * 2 * 1024 + 1024  # layer scale, mask token
  want = {
    "encoder": VIT_L + more + (4 * 1024 if variant else 0),
    "head": head(1024, 65536, lengths=True),
  }
  if variant:
    want["patch_head"] = want["head"]
  assert sizes(state) == want
  assert ("centre" in state.method_state) == (not variant)
  assert (config.batch_size, config.steps) == (2048, 125_000)
  np.testing.assert_allclose(rate(12_500), 4e-3 * 2**0.5, rtol=1e-6)


def test_weight_decay_goes_up_by_a_cosine():
  config, _, _ = load("dino_vit_imagenet.py")
  params = {"encoder": {"kernel": jnp.ones((2, 2))}, "prototypes": jnp.ones(1)}
  warmup = 10 * (1281167 // 512)
  for step in (warmup, 31199):
    update, rate = updates(config, params, step)
    part = (1 + np.cos(np.pi * step / 31200)) / 2
    decay = 0.4 + (0.04 - 0.4) * part
    # Adam's first step of ones is 1; the decay joins it.
    want = -rate(step) * (1 + decay)
    np.testing.assert_allclose(update["encoder"]["kernel"], want, rtol=1e-5)
    assert not update["prototypes"].any()  # frozen for its first 2,502 steps


def test_dinov2_slows_lower_layers():
  config, _, _ = load("dinov2_vit_imagenet.py")
  names = ("patch_embed", "cls_token", "block0", "block1", "norm")
  params = {"encoder": {name: {"w": jnp.ones(3)} for name in names}}
  params["head"] = {"mlp": jnp.ones(3), "prototypes": jnp.ones(3)}
  update, rate = updates(config, params, 12_500)
  rate = float(rate(12_500))
  got = {k: -float(v["w"][0]) / rate for k, v in update["encoder"].items()}
  want = dict(
    patch_embed=0.9**3 * 0.2, cls_token=0.9**3, block0=0.81, block1=0.9, norm=1
  )
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(-update["head"]["mlp"], rate, rtol=1e-5)
