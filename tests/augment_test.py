"""Views against torchvision's stored results and moments, and their contract.

`tests/fidelity/make_augment.py` wrote the numbers.
"""

import functools
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import augment
from ssljax import errors
from ssljax.augment import image as ops

STORED = np.load(
  os.path.join(os.path.dirname(__file__), "fidelity", "augment.npz")
)
DRAWS = 10_000
SIZE = 16, 20
IMAGE = STORED["image"].astype(np.float32) / 255  # [3 20 24]


def one(op, **options):
  """An op without randomness on the stored image."""
  return np.asarray(op(x=jnp.asarray(IMAGE[None]), **options))[0]


def crop(size, interpolation):
  """The box of 13 x 11 pixels at (3, 5), resized."""
  n = lambda v: jnp.full((1,), float(v))
  rows = ops.resize_matrix(20, size[0], n(3), n(13), interpolation)
  columns = ops.resize_matrix(24, size[1], n(5), n(11), interpolation)
  return one(ops._along_axes, rows=rows, columns=columns)


KEY = jax.random.split(jax.random.key(0), 1)
EXACT = {
  "shrink_bilinear": lambda: crop((7, 8), "bilinear"),
  "shrink_bicubic": lambda: crop((7, 8), "bicubic"),
  "grow_bilinear": lambda: crop((28, 20), "bilinear"),
  "grow_bicubic": lambda: crop((28, 20), "bicubic"),
  "hue_up": lambda: one(ops.shift_hue, shift=jnp.array([0.13])),
  "hue_down": lambda: one(ops.shift_hue, shift=jnp.array([-0.4])),
  "grayscale": lambda: np.repeat(one(ops.grayscale), 3, axis=0),
  "blur": lambda: one(ops.gaussian_blur, key=KEY, kernel=5, sigma=(1.3, 1.3)),
  "solarize": lambda: one(ops.solarize, key=KEY),
}


@pytest.mark.parametrize("name", EXACT)
def test_op_is_torchvisions(name):
  np.testing.assert_allclose(EXACT[name](), STORED[f"exact/{name}"], atol=2e-6)


def jitter(*strengths, p=1.0):
  return functools.partial(ops.color_jitter, strengths=strengths, p=p)


def moco_v2(key, x):
  """The preset, through `augment.make`."""
  image = jnp.round(255 * x).astype(jnp.uint8).transpose(0, 2, 3, 1)
  views = augment.make("moco_v2", size=SIZE, views=1, blur_kernel=3)
  return views({"image": image, "key": key})["views"][:, 0].transpose(
    0, 3, 1, 2
  )


RANDOM = {
  "crop_bilinear": functools.partial(ops.random_resized_crop, size=SIZE),
  "crop_bicubic": functools.partial(
    ops.random_resized_crop,
    size=SIZE,
    area=(0.2, 1.0),
    interpolation="bicubic",
  ),
  "flip": functools.partial(ops.random_flip, p=0.3),
  "brightness": jitter(0.8, 0.0, 0.0, 0.0),
  "contrast": jitter(0.0, 0.8, 0.0, 0.0),
  "saturation": jitter(0.0, 0.0, 0.8, 0.0),
  "hue": jitter(0.0, 0.0, 0.0, 0.2),
  "jitter": jitter(0.8, 0.8, 0.8, 0.2, p=0.8),
  "jitter_grey": jitter(0.4, 0.4, 0.0, 0.0, p=0.8),
  "grayscale": functools.partial(ops.random_grayscale, p=0.2),
  "blur": functools.partial(ops.gaussian_blur, kernel=5, p=0.5),
  "solarize": functools.partial(ops.solarize, p=0.2),
  "preset_moco_v2": moco_v2,
}


@pytest.mark.parametrize("name", RANDOM)
def test_moments_are_torchvisions(name):
  """Means and variances of 10,000 draws, within six standard errors."""
  mean, var, fourth = STORED[f"moments/{name}"].astype(np.float64)
  start = IMAGE[: len(mean)]
  keys = jax.random.split(jax.random.key(1), DRAWS)
  draw = jax.jit(
    lambda keys: RANDOM[name](
      keys, jnp.broadcast_to(start, (len(keys), *start.shape))
    )
  )
  draws = np.concatenate([draw(k) for k in np.split(keys, 4)]).astype(float)
  # Both sides are estimates, so that the error's variance counts twice.
  error = np.sqrt(2 * var / DRAWS) + 1e-6
  assert (np.abs(draws.mean(axis=0) - mean) / error).max() < 6
  error = np.sqrt(2 * np.maximum(fourth - var**2, 0) / DRAWS) + 1e-6
  assert (np.abs(draws.var(axis=0) - var) / error).max() < 6


def batch_of(n, c=3, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "image": rng.integers(0, 256, (n, 16, 16, c), np.uint8),
    "key": jax.random.split(jax.random.key(seed), n),
    "index": np.arange(n),
  }


# Of one channel are the views of Fashion-MNIST, whose configs are tests, too.
@pytest.mark.parametrize(
  "channels", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5))]
)
@pytest.mark.parametrize("name", augment.PRESETS)
def test_presets_give_views_of_any_number_of_channels(name, channels):
  make = functools.partial(augment.make, name, size=(12, 12), **_local(name))
  out = jax.eval_shape(make(), batch_of(4, channels))
  count = augment.PRESETS[name].get("views", 1)
  assert out["views"].shape == (4, count, 12, 12, channels)
  assert out["views"].dtype == jnp.float32
  assert "image" not in out and "index" in out
  crops = augment.PRESETS[name].get("local_views")
  if crops:
    assert out["local_views"].shape == (4, crops, 6, 6, channels)
  # Small crops differ in their keys alone: one is enough to compile.
  views = make(local_views=1) if crops else make()
  out = jax.jit(views)(batch_of(4, channels))
  assert np.isfinite(out["views"]).all()
  assert np.isfinite(out.get("local_views", 0)).all()


def _local(name):
  has_local = augment.PRESETS[name].get("local_views")
  return {"local_size": (6, 6)} if has_local else {}


def test_a_view_depends_on_its_own_key_alone():
  views = jax.jit(augment.make("simclr", size=(12, 12)))
  whole = batch_of(8)
  part = jax.tree.map(lambda x: x[2:5], whole)
  # Another batch size is another program: equal to rounding.
  np.testing.assert_allclose(
    views(whole)["views"][2:5], views(part)["views"], atol=1e-5
  )
  same = whole | {"image": np.repeat(whole["image"][:1], 8, axis=0)}
  out = np.asarray(views(same)["views"]).reshape(16, -1)
  distance = np.abs(out[:, None] - out[None]).max(-1)
  assert (distance + np.eye(16) > 1e-3).all()  # no two draws are equal


def test_views_of_byol_differ_in_blur_and_solarisation():
  image = np.full((4096, 8, 8, 3), 204, np.uint8)
  batch = {"image": image, "key": jax.random.split(jax.random.key(0), 4096)}
  views = augment.make(
    "byol", size=(8, 8), mean=None, std=None, strength=0.0, gray_p=0.0
  )
  out = np.asarray(jax.jit(views)(batch)["views"]).mean(axis=(2, 3, 4))
  inverted = np.mean(out < 0.5, axis=0)
  np.testing.assert_allclose(inverted, [0.0, 0.2], atol=0.03)


def test_evaluation_crops_the_centre_and_normalises():
  batch = batch_of(2)
  out = augment.make("none", size=(16, 16), mean=(0.5,), std=(0.25,))(batch)
  expected = (batch["image"] / np.float32(255) - 0.5) / 0.25
  np.testing.assert_allclose(out["views"][:, 0], expected, atol=1e-6)
  small = augment.make("none", size=(8, 8), crop=0.5)(batch)["views"][:, 0]
  centre = batch["image"][:, 4:12, 4:12] / np.float32(255)
  np.testing.assert_allclose(small, centre, atol=1e-6)
  source = types.SimpleNamespace(shape=(16, 16, 3))
  _, evaluation = augment.pair("simclr", source, size=(8, 8), eval_crop=0.5)
  np.testing.assert_allclose(
    evaluation(batch)["views"][:, 0], centre, atol=1e-6
  )


def test_a_blur_reflects_each_side_and_keeps_no_cube_of_it():
  x = np.random.default_rng(0).random((2, 1, 5, 700), np.float32)
  key = jax.random.split(KEY[0], 2)
  blur = functools.partial(ops.gaussian_blur, key, sigma=(2, 2))
  for kernel in (3, 9):  # as wide as reflection can serve
    radius = kernel // 2
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 2) ** 2)
    expected = x.astype(float)
    for axis in (2, 3):
      pad = [(0, 0)] * 4
      pad[axis] = radius, radius
      windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(expected, pad, "reflect"), kernel, axis
      )
      expected = windows @ (taps / taps.sum())
    np.testing.assert_allclose(blur(x, kernel=kernel), expected, atol=1e-6)
  wide = jnp.zeros((2, 1, 4, 1000))
  program = jax.make_jaxpr(functools.partial(blur, kernel=7))(wide)
  assert max(c.size for c in [*program.consts, np.zeros(1)]) < 1000**2


def test_a_blur_wider_than_the_image_and_colour_ops_on_grey_are_refused():
  x = jnp.zeros((1, 1, 4, 4))
  with pytest.raises(ValueError, match="blur kernel of 9"):
    ops.gaussian_blur(KEY, x, kernel=9)
  with pytest.raises(ValueError, match="3 channels"):
    ops.random_grayscale(KEY, x)
  with pytest.raises(ValueError, match="3 channels"):
    ops.color_jitter(KEY, x, strengths=(0.0, 0.0, 0.0, 0.1))


def test_unknown_presets_and_keys_are_named():
  with pytest.raises(errors.UserError, match="choose among simclr"):
    augment.make("simclrr", size=(8, 8))
  with pytest.raises(errors.UserError, match="did you mean 'blur_p'"):
    augment.make("simclr", size=(8, 8), blurp=1.0)


def test_statistics_may_be_of_as_many_channels_as_there_are():
  five = tuple(i / 10 for i in range(1, 6))
  make = functools.partial(augment.make, "none", size=(12, 12))
  batch = batch_of(2, 5)
  plain = make(mean=(0.0,), std=(1.0,))(batch)["views"]
  got = make(mean=five, std=five[::-1])(batch)["views"]
  np.testing.assert_allclose(
    got, (plain - np.array(five)) / np.array(five[::-1]), atol=1e-5
  )
  with pytest.raises(errors.UserError, match="mean=0.5 is not tuple"):
    make(mean=0.5)


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(local_views=-1), "local_views=-1: give 0 or more"),
    (dict(size=(100_000, 32)), "size=.100000, 32.: .* at most 16,384 pixels"),
    (dict(flip_p=(0.5, 0.5)), "flip_p=.* is not float"),
    (dict(blur_p=[1.0, 0.1, 0.1]), "is not of 2 views"),
  ],
)
def test_options_that_would_fail_inside_are_told(options, words):
  with pytest.raises(errors.UserError, match=words):
    augment.make("byol", **{"size": (32, 32), **options})


def test_lists_are_as_good_as_tuples():
  lists = augment.make("byol", size=(32, 32), blur_p=[1.0, 0.1])
  jax.eval_shape(lists, batch_of(2))


def test_what_is_no_image_or_size_is_told():
  batch = {"image": jnp.ones((2, 8, 8, 1)) / 2}
  batch["key"] = jax.random.split(jax.random.key(0), 2)
  with pytest.raises(errors.UserError, match="of uint8 images.*float32"):
    augment.make("none", size=(8, 8))(batch)
  with pytest.raises(errors.UserError, match="size=8: give .height, width"):
    augment.make("none", size=8)
  for crop in (0.0, 1.5):
    with pytest.raises(errors.UserError, match="crop=.*: give a part of"):
      augment.make("none", size=(8, 8), crop=crop)
