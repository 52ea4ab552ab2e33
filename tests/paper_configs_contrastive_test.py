"""Paper configs of the contrastive group, and solo-learn's for CIFAR-10."""

import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config as config_lib
from ssljax import core
from ssljax import run as run_lib
from tests import configs_test as shared

count, block = shared.count, shared.block
RESNET50 = shared.RESNET50
# torchvision's, with a stem of 3 x 3 and without the classifier.
RESNET18 = 11_689_512 - 512 * 1000 - 1000
RESNET18_CIFAR = RESNET18 - 64 * 3 * (49 - 9)


def paper_state(name, shape, examples, classes=None):
  """(config, state under eval_shape, rate, steps of a run)."""
  path = os.path.join(shared.ROOT, "configs", name)
  config = config_lib.load(path, [])
  per_epoch = examples // config.batch_size
  steps = run_lib.duration(config, per_epoch)
  known = dict(
    num_examples=examples, steps_per_epoch=per_epoch, total_steps=steps
  )
  method = run_lib.make_method(config, num_classes=classes, **known)
  tx, rate = run_lib.make_tx(config, **known)
  source = types.SimpleNamespace(modality="image", shape=shape)
  views, _ = run_lib.make_augments(config, source)
  batch = {"image": jax.ShapeDtypeStruct((2, *shape), jnp.uint8)}
  if config.data.labels:
    batch["label"] = jax.ShapeDtypeStruct((2,), jnp.int32)
  init = lambda rng, batch: core.init_state(
    method, tx, rng, batch, augment=views
  )
  state = jax.eval_shape(init, jax.random.key(0), batch)
  return config, state, rate, steps


def imagenet(name):
  return paper_state(name, (256, 256, 3), 1281167, 1000)


def norm(d):
  return 2 * d


def mlp(*widths, bias=True):
  """Dense layers with batch norm between, no bias before it."""
  pairs = list(zip(widths, widths[1:]))
  hidden = sum(a * b + norm(b) for a, b in pairs[:-1])
  a, b = pairs[-1]
  return hidden + a * b + (b if bias else 0)


# Rate, decay, projector, predictor, all of solo-learn's yaml files; the counts
# leave out what has no effect (a bias that norm follows).
SOLO = {
  "simclr": (0.4, 1e-4, 512 * 2048 + 2048 + 2048 * 256 + 256, 0),
  "mocov2plus": (0.3, 1e-4, 512 * 2048 + 2048 + 2048 * 256 + 256, 0),
  "mocov3": (
    0.3,
    1e-6,
    mlp(512, 4096, 256, bias=False),
    mlp(256, 4096, 256, bias=False),
  ),
  "byol": (
    1.0,
    1e-5,
    mlp(512, 4096, 256, bias=False),
    mlp(256, 4096, 256, bias=False),
  ),
  "simsiam": (
    0.5,
    1e-5,
    mlp(512, 2048, 2048, 2048, bias=False),
    mlp(2048, 512, 2048),
  ),
  "barlow_twins": (0.3, 1e-4, mlp(512, 2048, 2048, 2048, bias=False), 0),
  "vicreg": (0.3, 1e-4, mlp(512, 2048, 2048, 2048, bias=False), 0),
  "nnclr": (
    0.4,
    1e-5,
    mlp(512, 2048, 2048, 256, bias=False) + 256,
    mlp(256, 4096, 256),
  ),
  "wmse": (2e-3, 1e-6, mlp(512, 1024, 64, bias=False), 0),
  "supcon": (0.4, 1e-5, 512 * 2048 + 2048 + 2048 * 256 + 256, 0),
}
LARS = ("simclr", "mocov3", "byol", "barlow_twins", "vicreg", "nnclr")


@pytest.mark.parametrize("name", SOLO)
def test_cifar10_configs_are_solo_learns(name):
  config, state, rate, steps = paper_state(
    f"{name}_resnet18_cifar10.py", (32, 32, 3), 50000, 10
  )
  base, decay, projector, predictor = SOLO[name]
  assert config.data.name == "cifar10"
  assert config.batch_size == 256 and config.epochs == 1000
  assert config.optimizer.weight_decay == decay
  assert count(state.params["encoder"]) == RESNET18_CIFAR
  assert count(state.params["projector"]) == projector
  assert count(state.params.get("predictor", {})) == predictor
  # Ten epochs of warm-up, then a cosine to zero.
  warmup = round(10 * 50000 / 256)
  start = 0.0 if name == "wmse" else 3e-5
  np.testing.assert_allclose(rate(0), start, rtol=1e-6)
  np.testing.assert_allclose(rate(warmup), base, rtol=1e-6)
  middle = warmup + (steps - warmup) / 2
  np.testing.assert_allclose(rate(middle), base / 2, rtol=1e-3)
  np.testing.assert_allclose(rate(steps), 0, atol=1e-6)
  larc = dict(trust_coefficient=0.02, clip=True, exclude_from_adaptation=True)
  optimizer = config.optimizer
  assert (optimizer.name == "larc") == (name in LARS)
  if name in LARS:
    assert {k: optimizer[k] for k in larc} == larc
  if name == "simsiam":
    (group,) = optimizer.groups
    assert dict(group) == {"match": "^predictor", "lr": base}
  if name == "vicreg":
    assert config.method.variance == 2 * 25
  if name == "mocov2plus":
    assert state.method_state["queues"].shape == (2, 32768, 256)
  if name == "nnclr":
    assert state.method_state["queue"].shape == (65536, 256)


def test_mae_on_cifar10_is_solo_learns():
  config, state, rate, steps = paper_state(
    "mae_vit_cifar10.py", (32, 32, 3), 50000
  )
  d, pixels = 384, 48
  patches = pixels * d + d
  # A class token, 12 blocks and the last norm.
  encoder = patches + d + 12 * block(d) + norm(d)
  assert count(state.params["encoder"]) == encoder
  decoder = d * 512 + 512 + 512 + 8 * block(512) + 1024 + 512 * pixels + pixels
  assert count(state.params["decoder"]) == decoder
  assert run_lib.make_encoder(config).heads == 12
  assert config.batch_size == 256 and config.epochs == 1000
  np.testing.assert_allclose(rate(round(10 * 50000 / 256)), 2e-4, rtol=1e-6)
  assert "decay_exclude" not in config.optimizer


def test_nnclr_resnet50_imagenet_is_the_papers():
  config, state, rate, steps = imagenet("nnclr_resnet50_imagenet.py")
  assert count(state.params["encoder"]) == RESNET50
  projector = mlp(2048, 2048, 2048, 256, bias=False) + 256  # a scale
  assert count(state.params["projector"]) == projector
  assert count(state.params["predictor"]) == mlp(256, 4096, 256)
  assert state.method_state["queue"].shape == (98304, 256)
  assert config.batch_size == 4096 and config.epochs == 1000
  warmup = 10 * (1281167 // 4096)
  np.testing.assert_allclose(rate(warmup), 0.3 * 16, rtol=1e-6)


def test_dcl_configs_are_their_references():
  config, state, rate, _ = imagenet("dcl_resnet50_imagenet.py")
  assert count(state.params["encoder"]) == RESNET50
  assert count(state.params["projector"]) == mlp(2048, 2048, 128)
  assert config.batch_size == 256 and config.epochs == 200
  warmup = 10 * (1281167 // 256)
  np.testing.assert_allclose(rate(warmup), 0.075 * 16, rtol=1e-6)
  config, state, rate, steps = paper_state(
    "dcl_resnet18_cifar10.py:dclw", (32, 32, 3), 50000
  )
  assert count(state.params["encoder"]) == RESNET18_CIFAR
  assert count(state.params["projector"]) == mlp(512, 512, 128)
  assert config.batch_size == 256 and config.epochs == 100
  assert config.method.sigma == 0.5 and config.method.temperature == 0.1
  np.testing.assert_allclose([rate(0), rate(steps)], 1e-3, rtol=1e-6)


def test_wmse_configs_are_the_authors():
  config, state, rate, steps = paper_state(
    "wmse_resnet18_imagenet100.py", (256, 256, 3), 126689
  )
  assert count(state.params["encoder"]) == RESNET18
  assert count(state.params["projector"]) == mlp(512, 1024, 128, bias=False)
  assert config.batch_size == 512 and config.epochs == 240
  assert config.augment.blur_p == 0.5
  epoch = steps / 240
  rates = [float(rate(round(e * epoch))) for e in (100, 189, 191, 214, 216)]
  np.testing.assert_allclose(rates, [2e-3, 2e-3, 4e-4, 4e-4, 8e-5], rtol=1e-5)
  np.testing.assert_allclose(rate(250), 1e-3, rtol=1e-6)
  config, _, rate, steps = paper_state(
    "wmse_resnet18_cifar10.py:authors", (32, 32, 3), 50000
  )
  assert config.batch_size == 512
  at = [float(rate(round(f * steps))) for f in (0.5, 0.96, 0.98)]
  np.testing.assert_allclose(at, [3e-3, 6e-4, 1.2e-4], rtol=1e-5)


def test_lejepa_vit_imagenet_is_the_authors():
  config, state, rate, steps = imagenet("lejepa_vit_imagenet.py")
  d, pixels = 1024, 14 * 14 * 3
  blocks = 24 * block(d) + norm(d)
  # Learned positions of 16 x 16 patches, and the class token's.
  positions = 256 * d + d
  want = pixels * d + d + d + positions + blocks
  assert count(state.params["encoder"]) == want
  assert count(state.params["projector"]) == mlp(1024, 2048, 2048, 512)
  assert config.batch_size == 512 and config.epochs == 100
  np.testing.assert_allclose(rate(steps), 5e-7, rtol=1e-5)
  np.testing.assert_allclose(rate(10 * (1281167 // 512)), 5e-4, rtol=1e-6)


def test_lejepa_vit_imagenette_is_the_authors_example():
  config, state, rate, steps = paper_state(
    "lejepa_vit_imagenette.py", (160, 160, 3), 9469
  )
  assert count(state.params["projector"]) == mlp(384, 2048, 2048, 16)
  assert (config.batch_size, config.epochs) == (256, 800)
  assert (config.augment.views, config.method.weight) == (4, 0.02)
  np.testing.assert_allclose(rate(round(9469 / 256)), 2e-3, rtol=1e-6)
  np.testing.assert_allclose(rate(steps), 1e-3, rtol=1e-6)


def test_supervised_and_supcon_resnet50_imagenet():
  config, state, rate, steps = imagenet("supervised_resnet50_imagenet.py")
  assert count(state.params) == 25_557_032  # torchvision's
  assert config.batch_size == 256 and config.epochs == 90
  rates = [float(rate(round(steps * f))) for f in (0.1, 0.4, 0.7)]
  np.testing.assert_allclose(rates, [0.1, 0.01, 0.001], rtol=1e-5)
  config, state, rate, _ = imagenet("supcon_resnet50_imagenet.py")
  assert count(state.params["encoder"]) == RESNET50
  head = 2048 * 2048 + 2048 + 2048 * 128 + 128
  assert count(state.params["projector"]) == head
  assert config.batch_size == 6144 and config.epochs == 350
  warmup = 12 * (1281167 // 6144)
  np.testing.assert_allclose(rate(warmup), 0.4 * 24, rtol=1e-6)


def test_rotation_resnet50_imagenet_has_the_authors_schedule():
  config, state, rate, steps = imagenet("rotation_resnet50_imagenet.py")
  assert count(state.params["encoder"]) == RESNET50
  assert count(state.params["classifier"]) == 2048 * 4 + 4
  assert config.batch_size == 192 and config.epochs == 50
  rates = [float(rate(round(steps * e / 50))) for e in (14, 16, 31, 46)]
  np.testing.assert_allclose(rates, [1e-2, 1e-3, 1e-4, 1e-5], rtol=1e-5)


@pytest.mark.parametrize(
  "name", "nnclr dcl wmse lejepa supervised supcon rotation".split()
)
def test_fashion_mnist_configs_are_of_one_budget(name):
  path = f"configs/{name}_resnet18_fashion_mnist.py"
  config = config_lib.load(os.path.join(shared.ROOT, path), [])
  assert config.batch_size == 256
  assert run_lib.duration(config, 60000 // 256) == 1170
  encoder = dict(name="resnet", variant="18", width=16, stem="cifar")
  assert config.encoder.to_dict() == encoder
