"""What a config or a command line says arrives where it is meant, and what
evaluation looks at is what it says."""

import json
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import augment
from ssljax import cli
from ssljax import config as config_lib
from ssljax import core
from ssljax import evaluate
from ssljax import plan
from ssljax import run as run_lib
from ssljax import train
from ssljax.data import sources
from ssljax.evals import floors
from ssljax.methods import byol
from ssljax.methods import dino
from ssljax.methods import simclr
from ssljax.models import resnet
from tests import toys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QUICK = os.path.join(ROOT, "configs", "simclr_vit_fashion_mnist.py:quick")


@pytest.fixture(name="run", scope="module")
def fixture_run():
  return run_lib.build(config_lib.load(QUICK, ["--config.mesh.data=1"]))


def changed(run, **values):
  return run._replace(config=plan.changed(run.config, **values))


def test_precision_is_the_encoders(run):
  for name in ("float32", "bfloat16"):
    encoder = run_lib.make_encoder(changed(run, precision=name).config)
    assert encoder.dtype == jnp.dtype(name)


def test_options_of_the_step_arrive(run, monkeypatch):
  seen = []
  monkeypatch.setattr(
    core, "make_train_step", lambda *args, **given: seen.append(given) or len
  )
  train.compile_step(run)
  values = dict(accumulate=2, statistics_per_microbatch=True, nonfinite="skip")
  train.compile_step(changed(run, **values))
  names = ("accumulate", "statistics_per_microbatch", "skip_nonfinite")
  assert [tuple(given[n] for n in names) for given in seen] == [
    (1, False, False),
    (2, True, True),
  ]


def test_the_seed_is_of_weights_batches_and_steps(run):
  found = {}
  for seed in (0, 1):
    other = changed(run, seed=seed)
    state, keys = run_lib.init_state(other), []

    def step(state, batch, rng, keys=keys):
      keys.append(np.asarray(jax.random.key_data(rng)))
      return state, {}

    (update,) = train.updates(other, state, step, stop=1)
    found[seed] = jax.tree.leaves(state.params), update.batch["index"], keys[0]
  (params, index, key), (params1, index1, key1) = found[0], found[1]
  assert any((a != b).any() for a, b in zip(params, params1))
  assert (index != index1).any() and (key != key1).any()


def test_each_refresh_draws_anew(run):
  keys = []

  def refresh(params, method_state, read, *, rng):
    keys.append(np.asarray(jax.random.key_data(rng)).tolist())
    return params, method_state

  refresh = run_lib.make_refresh(
    run._replace(method=run.method._replace(refresh=refresh))
  )
  state = run_lib.init_state(run)
  for step in (0, 4, 4):
    refresh(state._replace(step=jnp.int32(step)))
  assert keys[0] != keys[1] == keys[2]


def test_floors_are_of_the_encoder_before_training(run, monkeypatch):
  monkeypatch.setattr(evaluate, "embed", lambda run, state, source: state)
  monkeypatch.setattr(floors, "measure", lambda name, a, b, classes: (a, b))
  monkeypatch.setattr(floors, "floor", lambda *a: {"knn": "raw"})
  sets = [types.SimpleNamespace(num_classes=10)] * 2
  of = lambda start: dict(
    evaluate._of_features(run, "trained", start, sets, ("knn",))
  )
  assert of("start") == {
    "knn": ("trained", "trained"),
    "random_knn": ("start", "start"),
    "raw_knn": "raw",
  }
  assert of(None) == {"knn": ("trained", "trained")}


def test_embeddings_come_in_the_order_of_the_examples(run):
  class Backwards(sources.ArraySource):
    def order(self):
      return np.arange(len(self))[::-1]

  image = np.tile(np.arange(7, dtype=np.uint8)[:, None, None, None], (4, 4, 1))
  means = lambda state, batch: batch["image"].mean((1, 2, 3))[:, None]
  other = changed(run, eval=dict(batch_size=3))._replace(embed=means)
  found = evaluate.embed(other, None, Backwards({"image": image}))
  np.testing.assert_array_equal(found["pooled"][:, 0], np.arange(7))
  np.testing.assert_array_equal(found["index"], np.arange(7))


def test_flags_of_evaluate_arrive(monkeypatch, capsys):
  seen = []
  monkeypatch.setattr(evaluate, "evaluate", lambda **k: seen.append(k) or {})
  command = ["evaluate", "--workdir=W", "--protocols=knn,finetune", "--step=7"]
  command += ["--fractions=0.1,1", "--seeds=3", "--floors=0", "--data=digits"]
  command += ["--train_split=a", "--test_split=b", "--blocks=2"]
  assert cli.main(command) == 0
  assert json.loads(capsys.readouterr().out) == {}
  (given,) = seen
  assert {k: v for k, v in given.items() if k != "workdir"} == {
    "protocols": ("knn", "finetune"),
    "step": 7,
    "fractions": (0.1, 1.0),
    "seeds": 3,
    "floors": False,
    "data": "digits",
    "train_split": "a",
    "test_split": "b",
    "blocks": 2,
  }


NORMED = {
  "simclr": lambda encoder: simclr.make(encoder, out_dim=8),
  "byol": lambda encoder: byol.make(
    encoder, total_steps=2, hidden_dim=8, out_dim=8
  ),
  "dino": lambda encoder: dino.make(
    encoder, total_steps=2, steps_per_epoch=1, out_dim=8, bottleneck_dim=8
  ),
}


@pytest.mark.parametrize("name", NORMED)
def test_evaluation_does_not_see_the_batch(name):
  encoder = resnet.make(variant="6", width=2, stem="cifar")
  method = toys.compiled(NORMED[name](encoder))
  views = np.random.default_rng(0).normal(size=(4, 2, 8, 8, 1))
  batch = {"views": jnp.asarray(views, jnp.float32)}
  params, method_state = method.init(jax.random.key(0), batch)
  whole = method.embed(params, method_state, batch)["pooled"]
  one = jax.tree.map(lambda x: x[:1], batch)
  alone = method.embed(params, method_state, one)["pooled"]
  np.testing.assert_allclose(whole[:1], alone, rtol=1e-4, atol=1e-6)


def test_local_crops_are_smaller_parts_of_their_own():
  source = types.SimpleNamespace(modality="image", shape=(16, 16, 1))
  views, _ = augment.pair(
    "multi_crop",
    source,
    size=(16, 16),
    area=(1.0, 1.0),
    ratio=(1.0, 1.0),
    flip_p=0.0,
    jitter=(0.0,) * 4,
    blur_p=0.0,
    solarize_p=1.0,
    gray_p=0.0,
    local_views=2,
    local_size=(16, 16),
    local_area=(0.1, 0.2),
    local_blur_p=0.0,
    mean=None,
    std=None,
  )
  ramp = np.tile(np.arange(0, 256, 16, dtype=np.uint8)[:, None, None], (16, 1))
  keys = jax.random.split(jax.random.key(0), 3)
  batch = {"image": jnp.asarray(np.stack([ramp] * 3)), "key": keys}
  found = jax.jit(views)(batch)
  whole, local = np.asarray(found["views"]), np.asarray(found["local_views"])
  high = ramp / 255
  expected = np.where(high >= 0.5, 1 - high, high)  # solarised, and whole
  np.testing.assert_allclose(
    whole, np.broadcast_to(expected, whole.shape), atol=2e-2
  )
  # A fifth of the image at the most, as it was: the ramp goes one way.
  height = np.sqrt(0.2)
  spans = local[..., -1, :, :] - local[..., 0, :, :]
  assert (spans >= 0).all() and spans.max() < height + 0.1
  assert (local[:, 0] != local[:, 1]).any(axis=(1, 2, 3)).all()
