"""Every config: it builds, `:quick` learns, the papers' are the papers'."""

import glob
import os
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config as config_lib
from ssljax import core
from ssljax import errors
from ssljax import run as run_lib
from ssljax import train

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIGS = sorted(glob.glob(os.path.join(ROOT, "configs", "*.py")))
# The methods that learn from labels; no other sees any.
SUPERVISED = ("supcon", "supervised")


def one_a_method():
  """All configs; those whose method another one shows are slow tests."""
  seen, params = set(), []
  # Those that were run here before the papers' own.
  papers = lambda p: "_fashion_mnist" not in p and "_mini_" not in p
  for path in sorted(CONFIGS, key=lambda p: (papers(p), p)):
    name = os.path.basename(path)[:-3]
    method = config_lib.load(path, []).method.name
    marks = [pytest.mark.slow] if method in seen else []
    seen.add(method)
    params.append(pytest.param(path, id=name, marks=marks))
  return params


@pytest.mark.parametrize("path", one_a_method())
def test_quick_learns_with_one_compile(path):
  config = config_lib.load(
    f"{path}:quick", ["--config.mesh.data=1", "--config.batch_size=32"]
  )
  with config.unlocked():  # it would move what no gradient reaches
    config.optimizer.weight_decay = 0.0
    config.optimizer.weight_decay_end = None
    for group in config.optimizer.get("groups") or ():
      group.pop("weight_decay", None)
  run = run_lib.build(config)
  step = train.compile_step(run)
  refresh = run_lib.make_refresh(run)
  start = run_lib.init_state(run)
  before = jax.tree.map(np.asarray, start)
  state, rng = start, jax.random.key(0)
  for i in range(6):
    if refresh and i in (0, 3):
      state = refresh(state)
    batch = run.source.read(np.arange(16 * i, 16 * i + 32))
    batch["epoch"] = np.full(32, i, np.int32)
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
  frozen = [part["match"] for part in config.optimizer.get("freeze", ())]
  expected = [
    name
    for name, _ in pairs
    if any(re.search(f, re.sub(r"[^\w]+", "/", name)) for f in frozen)
  ]
  assert still == expected, f"no gradient reached {still}"
  assert bool(frozen) == bool(expected)


def of_images():
  """The config of each method of images that was run here."""
  found = {}
  for path in CONFIGS:
    config = config_lib.load(path, [])
    if config.data.name == "fashion_mnist":
      found.setdefault(config.method.name, path)
  return [pytest.param(path, id=name) for name, path in found.items()]


@pytest.mark.slow
@pytest.mark.parametrize("path", of_images())
def test_quick_is_finite_in_bfloat16_with_small_batches(path):
  method = config_lib.load(path, []).method.name
  # MoCo's groups of batch norm and what W-MSE whitens must divide the batch.
  batch = {"moco": 8, "wmse": 32}.get(method, 2)
  flags = ["mesh.data=1", "precision=bfloat16", f"batch_size={batch}"]
  config = config_lib.load(f"{path}:quick", [f"--config.{f}" for f in flags])
  run = run_lib.build(config)
  step, refresh = train.compile_step(run), run_lib.make_refresh(run)
  state, rng = run_lib.init_state(run), jax.random.key(0)
  state = refresh(state) if refresh else state
  batches = train._batches(run, state, 0)
  for _ in range(3):
    state, metrics = step(state, next(batches), rng)
    assert all(np.isfinite(value) for value in metrics.values())
  for leaf in jax.tree.leaves(state):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize("path", one_a_method())
def test_labels_are_in_a_batch_where_the_config_says_so(path):
  config = config_lib.load(f"{path}:quick", ["--config.mesh.data=1"])
  run = run_lib.build(config)
  batch = run.source.read(np.arange(4))
  labels = {"label"} if config.method.name in SUPERVISED else set()
  assert set(batch) == {*run.source.example, "index"} | labels
  assert config.data.labels == bool(labels)
  assert set(run_lib.abstract_batch(run)) == {*batch, "epoch"}


def test_make_tx_tells_what_is_missing_or_twice():
  path = os.path.join(ROOT, "configs", "dino_resnet18_fashion_mnist.py")
  config = config_lib.load(path, [])
  known = dict(num_examples=1000, steps_per_epoch=3, total_steps=9)
  with config.unlocked():
    del config.optimizer.weight_decay  # then it comes from zero to its end
    run_lib.make_tx(config, **known)
    twice = dict(match="prototypes", steps=1, epochs=1.0)
    config.optimizer.freeze = (twice,)
    with pytest.raises(errors.UserError, match="freeze has steps and epochs"):
      run_lib.make_tx(config, **known)
    del config.optimizer.learning_rate
    with pytest.raises(errors.UserError, match="give .*learning_rate"):
      run_lib.make_tx(config, **known)


def test_an_epoch_of_the_schedule_is_one_of_the_run():
  path = os.path.join(ROOT, "configs", "simclr_resnet18_fashion_mnist.py")
  flags = ["--config.batch_size=10", "--config.schedule.warmup_epochs=8"]
  # Of 19 examples nine are in no batch.
  known = dict(num_examples=19, steps_per_epoch=1, total_steps=20)
  _, rate = run_lib.make_tx(config_lib.load(path, flags), **known)
  assert max(range(20), key=lambda step: float(rate(step))) == 8


def known_of(config):
  """Of a run on ImageNet."""
  per_epoch = 1281167 // config.batch_size
  return dict(
    num_examples=1281167, steps_per_epoch=per_epoch, total_steps=31200
  )


def paper_state(path, classes_shape, **sizes):
  """The state of a paper's config under eval_shape, without its dataset, which
  is ImageNet's size where `sizes` do not say other."""
  config = config_lib.load(path, [])
  known = known_of(config) | sizes
  method = run_lib.make_method(config, **known)
  tx, rate = run_lib.make_tx(config, **known)
  source = types.SimpleNamespace(modality="image", shape=classes_shape)
  views, _ = run_lib.make_augments(config, source)
  batch = {"image": jax.ShapeDtypeStruct((2, *classes_shape), jnp.uint8)}
  init = lambda rng, batch: core.init_state(
    method, tx, rng, batch, augment=views
  )
  return config, jax.eval_shape(init, jax.random.key(0), batch), rate


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_simclrs_multi_view_is_of_four_solarised_views():
  own = os.path.join(ROOT, "configs", "simclr_resnet18_fashion_mnist.py")
  path = f"{own}:multi_view"
  config = config_lib.load(f"{path},quick", ["--config.mesh.data=1"])
  run = run_lib.build(config)
  batch = run_lib.abstract_batch(run)
  batch["key"] = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 64))
  assert jax.eval_shape(run.augment, batch)["views"].shape[:2] == (64, 4)
  plain, many = (
    config_lib.flat(config_lib.to_dict(config_lib.load(p, [])))
    for p in (own, path)
  )
  differs = {k: v for k, v in many.items() if plain.get(k) != v}
  assert differs == {
    "epochs": 5.0,
    "augment.views": 4,
    "augment.solarize_p": 0.2,
    "optimizer.learning_rate": 0.6,
  }


def test_simclr_resnet50_imagenet_is_the_papers():
  path = os.path.join(ROOT, "configs", "simclr_resnet50_imagenet.py")
  config, state, rate = paper_state(path, (256, 256, 3))
  # ResNet-50 without its classifier, and a head of 2048-2048-128 whose last
  # batch norm has no offset.
  assert count(state.params["encoder"]) == 25_557_032 - 2048 * 1000 - 1000
  head = 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128
  assert count(state.params["projector"]) == head
  assert config.batch_size == 4096
  warmup = 10 * (1281167 // 4096)
  np.testing.assert_allclose(rate(warmup), 0.075 * 64, rtol=1e-6)
  np.testing.assert_allclose(rate(warmup // 2), 0.0375 * 64, rtol=1e-3)
  np.testing.assert_allclose(rate(31200), 0.0, atol=1e-6)
  _, v2, _ = paper_state(f"{path}:v2", (256, 256, 3))
  more = 2048 * 2048 + 2 * 2048
  assert count(v2.params["projector"]) == head + more


@pytest.mark.parametrize("variant", ["", ":v2"])
def test_moco_resnet50_imagenet_is_the_papers(variant):
  path = os.path.join(ROOT, "configs", "moco_resnet50_imagenet.py")
  config, state, rate = paper_state(path + variant, (256, 256, 3))
  assert count(state.params["encoder"]) == 25_557_032 - 2048 * 1000 - 1000
  hidden = 2048 * 2048 + 2048 if variant else 0
  assert count(state.params["projector"]) == hidden + 2048 * 128 + 128
  assert state.method_state["queue"].shape == (65536, 128)
  assert config.batch_size == 256 and config.epochs == 200
  half = {"": 0.03, ":v2": 0.015}[variant]
  np.testing.assert_allclose(rate(0), 0.03, rtol=1e-6)
  np.testing.assert_allclose(rate(15600), half, rtol=1e-6)
  drops = [float(rate(s)) for s in (18719, 18720, 24959, 24960)]
  if not variant:
    np.testing.assert_allclose(drops, [0.03, 0.003, 0.003, 3e-4], rtol=1e-5)


RESNET50 = 25_557_032 - 2048 * 1000 - 1000


def test_byol_resnet50_imagenet_is_the_papers():
  path = os.path.join(ROOT, "configs", "byol_resnet50_imagenet.py")
  config, state, rate = paper_state(path, (256, 256, 3))
  norm = 2 * 4096
  projector = 2048 * 4096 + norm + 4096 * 256
  assert count(state.params["encoder"]) == RESNET50
  assert count(state.params["projector"]) == projector
  assert count(state.params["predictor"]) == 2 * 256 * 4096 + norm
  teacher = count(state.method_state["teacher"]["params"])
  assert teacher == RESNET50 + projector
  assert config.batch_size == 4096 and config.epochs == 1000
  warmup = 10 * (1281167 // 4096)
  np.testing.assert_allclose(rate(warmup), 0.2 * 16, rtol=1e-6)
  np.testing.assert_allclose(rate(31200), 0.0, atol=1e-6)
  for epochs, base, decay, ema in (
    (1000, 0.2, 1.5e-6, 0.996),
    (300, 0.3, 1e-6, 0.99),
    (100, 0.45, 1e-6, 0.99),
  ):
    variant = "" if epochs == 1000 else f":epochs{epochs}"
    config = config_lib.load(path + variant, [])
    optimizer = config.optimizer
    got = (optimizer.learning_rate, optimizer.weight_decay, config.method.ema)
    assert config.epochs == epochs and got == (base, decay, ema)


def test_simsiam_resnet50_imagenet_is_the_papers():
  path = os.path.join(ROOT, "configs", "simsiam_resnet50_imagenet.py")
  config, state, rate = paper_state(path, (256, 256, 3))
  assert count(state.params["encoder"]) == RESNET50
  # The last norm has no parameters.
  projector = 3 * 2048 * 2048 + 2 * 2 * 2048
  assert count(state.params["projector"]) == projector
  predictor = 2048 * 512 + 2 * 512 + 512 * 2048 + 2048
  assert count(state.params["predictor"]) == predictor
  assert config.batch_size == 512 and config.epochs == 100
  np.testing.assert_allclose(rate(0), 0.1, rtol=1e-6)
  np.testing.assert_allclose(rate(15600), 0.05, rtol=1e-6)
  (group,) = config.optimizer.groups
  assert group["lr"] == pytest.approx(float(rate(0)))


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_barlow_twins_and_vicreg_resnet50_imagenet_are_the_papers(name):
  path = os.path.join(ROOT, "configs", f"{name}_resnet50_imagenet.py")
  config, state, rate = paper_state(path, (256, 256, 3))
  assert count(state.params["encoder"]) == RESNET50
  projector = 2048 * 8192 + 2 * 8192 * 8192 + 2 * 2 * 8192
  assert count(state.params["projector"]) == projector
  assert config.batch_size == 2048 and config.epochs == 1000
  warmup = 10 * (1281167 // 2048)
  np.testing.assert_allclose(rate(warmup), 0.2 * 8, rtol=1e-6)
  np.testing.assert_allclose(rate(31200), 0.2 * 8 * 1e-3, rtol=1e-6)
  # One step of ones, without momentum before: biases by their own rate.
  tx, _ = run_lib.make_tx(
    config, num_examples=1281167, steps_per_epoch=625, total_steps=31200
  )
  small = {"conv": {"kernel": jnp.ones((2, 2))}, "bn": {"bias": jnp.ones(2)}}
  inner = tx.init(small)._replace(count=jnp.int32(warmup))
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, small), inner, small)
  base = {"barlow_twins": 0.0048, "vicreg": 0.2}[name]
  np.testing.assert_allclose(updates["bn"]["bias"], -8 * base, rtol=1e-6)
  # LARS: a thousandth of the weights' norm.
  np.testing.assert_allclose(
    updates["conv"]["kernel"], -8 * 0.2 * 1e-3, rtol=1e-6
  )


def block(d):
  """Parameters of a ViT's block of width d."""
  return 12 * d * d + 13 * d


# timm's counts without classifier and positions, which are fixed here.
VITS = {
  "S": 22_050_664 - 385_000 - 197 * 384,
  "B": 86_567_656 - 769_000 - 197 * 768,
  "L": 304_326_632 - 1_025_000 - 197 * 1024,
  "H": 632_045_800 - 1_281_000 - 257 * 1280,
}


@pytest.mark.parametrize("size", ["S", "B"])
def test_mocov3_vit_imagenet_is_the_papers(size):
  path = os.path.join(ROOT, "configs", "mocov3_vit_imagenet.py")
  path += "" if size == "S" else ":B"
  config, state, rate = paper_state(path, (256, 256, 3))
  assert count(state.params["encoder"]) == VITS[size]
  d, norm = {"S": 384, "B": 768}[size], 2 * 4096
  projector = d * 4096 + norm + 4096 * 4096 + norm + 4096 * 256
  assert count(state.params["projector"]) == projector
  assert count(state.params["predictor"]) == 2 * 256 * 4096 + norm
  teacher = count(state.method_state["teacher"]["params"])
  assert teacher == VITS[size] + projector
  assert config.batch_size == 4096 and config.epochs == 300
  warmup = 40 * (1281167 // 4096)
  np.testing.assert_allclose(rate(warmup), 1.5e-4 * 16, rtol=1e-6)


@pytest.mark.parametrize("size", ["B", "L", "H"])
def test_mae_vit_imagenet_is_the_papers(size):
  path = os.path.join(ROOT, "configs", "mae_vit_imagenet.py")
  config, state, rate = paper_state(f"{path}:{size}", (256, 256, 3))
  assert count(state.params["encoder"]) == VITS[size]
  d, pixels = {"B": (768, 768), "L": (1024, 768), "H": (1280, 588)}[size]
  decoder = d * 512 + 512 + 512 + 8 * block(512) + 1024 + 512 * pixels + pixels
  assert count(state.params["decoder"]) == decoder
  assert config.batch_size == 4096 and config.epochs == 800
  warmup = 40 * (1281167 // 4096)
  np.testing.assert_allclose(rate(warmup), 1.5e-4 * 16, rtol=1e-6)


def text_state(name, vocab):
  """As `paper_state`, for a config of text."""
  config = config_lib.load(os.path.join(ROOT, "configs", name), [])
  steps = run_lib.duration(config, steps_per_epoch=1)
  known = dict(num_examples=10**8, steps_per_epoch=1000, total_steps=steps)
  method = run_lib.make_method(config, **known)
  tx, rate = run_lib.make_tx(config, **known)
  row = ((config.data.length,), jnp.int32)
  example = {"tokens": row, "mask": row}
  if config.data.rows == "pairs":
    example |= {"kinds": row, "next": ((), jnp.int32)}
  source = types.SimpleNamespace(
    modality="text",
    example=example,
    tokenizer=types.SimpleNamespace(
      vocab=vocab, mask=4, pad=0, special=(0, 1, 2, 3, 4), goes_on=np.zeros(0)
    ),
  )
  views, _ = run_lib.make_augments(config, source)
  batch = {
    k: jax.ShapeDtypeStruct((2, *shape), dtype)
    for k, (shape, dtype) in (example | {"index": ((), jnp.int32)}).items()
  }
  init = lambda rng, batch: core.init_state(
    method, tx, rng, batch, augment=views
  )
  return config, jax.eval_shape(init, jax.random.key(0), batch), rate


@pytest.mark.parametrize(
  "size, d, depth", [("base", 768, 12), ("large", 1024, 24)]
)
def test_bert_wikipedia_is_the_papers(size, d, depth):
  name = f"bert_base_wikipedia.py:{size}"
  config, state, rate = text_state(name, 30522)
  encoder = (30522 + 512 + 2) * d + 2 * d + depth * block(d)
  assert count(state.params["encoder"]) == encoder
  # The published count has the pooler, as our next-sentence head has it.
  published = {"base": 109_482_240, "large": 335_141_888}[size]
  assert encoder + d * d + d == published
  assert count(state.params["next"]) == d * d + d + 2 * d + 2
  assert count(state.params["head"]) == d * d + d + 2 * d
  assert count(state.params["bias"]) == 30522
  assert config.batch_size == 256 and config.steps == 900_000
  np.testing.assert_allclose(rate(5000), 0.5e-4, rtol=1e-6)
  np.testing.assert_allclose(rate(450_000), 0.55e-4, rtol=1e-6)
  long, _, its = text_state(f"{name},long", 30522)
  assert (long.data.length, long.steps) == (512, 100_000)
  # One line, to zero at a million steps.
  np.testing.assert_allclose(rate(899_999), its(0), rtol=1e-4)
  np.testing.assert_allclose(its(0), 1e-5, rtol=1e-6)
  np.testing.assert_allclose(its(50_000), 0.5e-5, rtol=1e-6)


def test_roberta_base_is_the_papers():
  config, state, rate = text_state("roberta_base_wikipedia.py", 50265)
  # transformers' count without pooler.
  assert count(state.params["encoder"]) == 124_055_040
  assert config.batch_size == 2048 and config.steps == 125_000
  np.testing.assert_allclose(rate(10_000), 5e-4, rtol=1e-6)
  np.testing.assert_allclose(rate(67_500), 2.5e-4, rtol=1e-6)


def test_gpt_124m_is_the_papers():
  config, state, rate = text_state("gpt_124m_webtext.py", 50257)
  assert count(state.params) == 124_439_808
  assert (config.batch_size, config.data.length) == (512, 1024)
  np.testing.assert_allclose(rate(2000), 2.5e-4, rtol=1e-6)


def test_options_that_the_file_left_out_can_be_given():
  path = "configs/simclr_resnet18_fashion_mnist.py:quick"
  flags = [
    "--config.augment.ratio=(0.9,1.1)",
    "--config.encoder.zero_init_residual=True",
    "--config.method.num_layers=3",
    "--config.schedule.end=0.01",
    "--config.optimizer.nesterov=True",
  ]
  config = config_lib.load(path, flags)
  assert config.augment.ratio == (0.9, 1.1)
  assert config.is_locked
  run = run_lib.build(config)
  projector = run.abstract_state.params["projector"]
  assert set(projector) >= {"dense0", "dense1", "dense2"}
  assert run.learning_rate(run.total_steps) == pytest.approx(0.01)


def test_configs_share_no_value():
  first, second = config_lib.base(), config_lib.base()
  first.data.size = (8, 8)
  assert second.data.size is None
  assert config_lib.base().data.size is None


def test_papers_of_imagenet_evaluate_on_the_centre_without_resizing():
  for path in CONFIGS:
    config = config_lib.load(path, [])
    if config.data.name.startswith("imagenet2012"):
      kept = [config.augment.eval_crop * side for side in config.data.size]
      assert kept == pytest.approx(config.augment.size), path
