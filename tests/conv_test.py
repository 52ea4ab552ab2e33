"""The gradient of a convolution in its kernel, as a CPU takes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import sharding
from ssljax.models import conv
from ssljax.plan import flops


def plain(x, kernel, strides, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def ours(x, kernel, strides, padding):
  return conv.convolve(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=None,
    lhs_dilation=(1, 1),
    feature_group_count=1,
  )


def given(n, side, channels, size, strides, padding, dtype=jnp.float32):
  """x, kernel, and a weight for each output."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  c, d = channels
  x, kernel = draw(n, side, side + 1, c), draw(size, size, c, d)
  out = jax.eval_shape(lambda: plain(x, kernel, strides, padding))
  return x, kernel, draw(*out.shape)


def gradients(function, x, kernel, weight, strides, padding):
  loss = lambda x, k: (function(x, k, strides, padding) * weight).sum()
  return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)


SAME, NONE = ((1, 1), (1, 1)), ((0, 0), (0, 0))


@pytest.mark.parametrize(
  "n, channels, size, strides, padding",
  [
    (16, (8, 12), 3, (1, 1), SAME),
    (8, (9, 8), 3, (2, 2), SAME),
    (24, (8, 4), 3, (1, 2), ((0, 2), (1, 0))),
    (16, (8, 5), 1, (1, 1), NONE),
    (16, (8, 5), 2, (1, 1), ((1, 0), (0, 1))),
    (16, (8, 5), 5, (2, 1), ((2, 2), (2, 2))),
    (10, (8, 5), 3, (1, 1), SAME),  # not in parts of eight
    (16, (3, 5), 3, (1, 1), SAME),  # few channels
  ],
)
def test_gradients_are_those_of_the_plain_one(
  n, channels, size, strides, padding
):
  x, kernel, weight = given(n, 6, channels, size, strides, padding)
  np.testing.assert_array_equal(
    ours(x, kernel, strides, padding), plain(x, kernel, strides, padding)
  )
  got = gradients(ours, x, kernel, weight, strides, padding)
  want = gradients(plain, x, kernel, weight, strides, padding)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_in_bfloat16_the_sum_is_float32():
  exact = given(64, 6, (8, 8), 3, (1, 1), SAME)
  rounded = [v.astype(jnp.bfloat16) for v in exact]
  exact = [v.astype(jnp.float32) for v in rounded]
  got = gradients(ours, *rounded, (1, 1), SAME)[1]
  want = np.asarray(gradients(plain, *exact, (1, 1), SAME)[1])
  assert got.dtype == jnp.bfloat16
  apart = np.abs(np.asarray(got, np.float32) - want)
  assert apart.max() < 2**-8 * np.abs(want).max()


def test_many_devices_take_the_same_gradient():
  x, kernel, weight = given(32, 6, (8, 8), 3, (1, 1), SAME)
  mesh = sharding.make_mesh(8, 1)
  place = functools.partial(jax.device_put, device=sharding.by_example(mesh))
  one = gradients(ours, x, kernel, weight, (1, 1), SAME)[1]
  many = gradients(ours, place(x), kernel, place(weight), (1, 1), SAME)[1]
  np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-4)


def test_only_a_cpu_takes_it():
  """Elsewhere it is one convolution, and so it is counted."""
  x, kernel, weight = given(16, 6, (8, 8), 3, (1, 1), SAME)
  args = (x, kernel, weight, (1, 1), SAME)
  texts = {
    platform: jax.jit(lambda: gradients(ours, *args))
    .trace()
    .lower(lowering_platforms=(platform,))
    .as_text()
    for platform in ("cpu", "tpu")
  }
  assert "stablehlo.while" in texts["cpu"]
  assert "stablehlo.while" not in texts["tpu"]
  counted = [
    flops.count(lambda f=f: gradients(f, *args)) for f in (ours, plain)
  ]
  assert counted[0] == counted[1] > 0


def test_what_nobody_asks_for_is_not_counted():
  x, kernel, weight = given(16, 6, (8, 8), 3, (1, 1), SAME)

  def counted(function):
    loss = lambda k: (function(x, k, (1, 1), SAME) * weight).sum()
    return flops.count(jax.grad(loss), kernel)

  assert counted(ours) == counted(plain)


def test_inside_shard_map_the_kernel_may_be_everybodys():
  x, kernel, weight = given(32, 6, (8, 8), 3, (1, 1), SAME)
  mesh = jax.sharding.Mesh(jax.devices()[:4], ("data",))
  P = jax.sharding.PartitionSpec

  def local(function, kernel, x, weight):
    loss = lambda k: (function(x, k, (1, 1), SAME) * weight).sum()
    return jax.grad(lambda k: jax.lax.psum(loss(k), "data"))(kernel)

  got, want = (
    jax.jit(
      jax.shard_map(
        functools.partial(local, function),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
      )
    )(kernel, x, weight)
    for function in (ours, plain)
  )
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
  "given", [dict(feature_group_count=2), dict(rhs_dilation=(2, 2))]
)
def test_what_it_cannot_do_is_refused(given):
  x, kernel = jnp.ones((8, 4, 4, 8)), jnp.ones((3, 3, 8, 8))
  with pytest.raises(ValueError, match="alone|no dilation"):
    conv.convolve(x, kernel, (1, 1), SAME, dimension_numbers=None, **given)
