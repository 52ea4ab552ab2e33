"""Convolutions whose gradient in the kernel is quick on a CPU, too.

There XLA takes it as a convolution with a window as large as the image, which
takes two to four times as long as that in the input (jax 0.10.2). It is a
product of all patches with the cotangents, and is taken as such here, a few
images at a time, so that their patches stay in the cache: a ResNet-18's forward
and backward pass then takes 0.7 of the time. Has no forward-mode derivative.
"""

import functools

import jax
import jax.numpy as jnp

_IMAGES = 8  # whose patches are multiplied at a time; many devices divide it
_CHANNELS = 8  # with fewer the plain gradient is as quick
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(
  x, kernel, strides, padding, *, dimension_numbers, precision=None, **plain
):
  """`jax.lax.conv_general_dilated`, for `flax.linen.Conv`.

  Where the sum over the images is cut over devices, they meet n / 8 times for a
  convolution, and not once: on CPUs alone, where many devices are a test.

  Args:
    x: [n h w c].
    kernel: [k l c d].
    strides: (rows, columns).
    padding: ((before, after), (before, after)).
    dimension_numbers: as Flax gives them, which has these layouts alone.
    precision: as Flax gives it.
    **plain: dilations and groups as Flax gives them, which a ResNet has not.

  Raises:
    ValueError: it has them.
  """
  if plain.pop("feature_group_count", 1) != 1 or isinstance(padding, str):
    raise ValueError("padding in numbers and one group of channels alone")
  if any(d != 1 for dilation in plain.values() for d in dilation):
    raise ValueError("no dilation here")
  strides, padding = tuple(strides), tuple(map(tuple, padding))
  if x.shape[0] % _IMAGES or x.shape[3] < _CHANNELS:
    return _plain(x, kernel, strides, padding, precision)
  # In `shard_map` the kernel is often the same on all devices, and x not: a sum
  # of nothing makes them alike, and the gradients meet on the way back.
  none = lambda v: jax.lax.stop_gradient(v[:0].sum())
  x, kernel = x + none(kernel), kernel + none(x)
  return _convolve(x, kernel, strides, padding, precision)


def _plain(x, kernel, strides, padding, precision):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=_DIMENSIONS,
    precision=precision,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x, kernel, strides, padding, precision):
  return _plain(x, kernel, strides, padding, precision)


def _forward(x, kernel, strides, padding, precision):
  return _plain(x, kernel, strides, padding, precision), (x, kernel)


def _backward(strides, padding, precision, kept, cotangent):
  x, kernel = kept
  plain = lambda x, kernel: _plain(x, kernel, strides, padding, precision)

  def by_convolution(x, cotangent):
    return jax.linear_transpose(lambda k: plain(x, k), kernel)(cotangent)[0]

  by_products = functools.partial(
    _by_products, shape=kernel.shape, strides=strides, padding=padding
  )
  (in_x,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(cotangent)
  in_kernel = jax.lax.platform_dependent(
    x, cotangent, cpu=by_products, default=by_convolution
  )
  return in_x, in_kernel


_convolve.defvjp(_forward, _backward)


def _by_products(x, cotangent, *, shape, strides, padding):
  """The gradient in the kernel; every n / 8 th image at a time.

  So, and not one image after the other, each of up to eight devices that share
  the images has some of them each time.
  """
  x, cotangent = (
    v.reshape(_IMAGES, v.shape[0] // _IMAGES, *v.shape[1:])
    for v in (x, cotangent)
  )

  def part(i):
    some = (
      jax.lax.dynamic_index_in_dim(v, i, 1, keepdims=False)
      for v in (x, cotangent)
    )
    return _of_some(*some, shape, strides, padding)

  add = lambda i, total: total + part(i)
  return jax.lax.fori_loop(1, x.shape[1], add, part(0)).astype(x.dtype)


def _of_some(x, cotangent, shape, strides, padding):
  """float32 [k l c d], of x [n h w c] and the cotangent [n p q d]."""
  (rows, columns, c, d), (_, p, q, _) = shape, cotangent.shape
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  product = lambda a, b: jax.lax.dot_general(
    a.reshape(-1, a.shape[-1]),
    b.reshape(-1, b.shape[-1]),
    (((0,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  if strides == (1, 1):
    # A patch's rows beside each other in x, its columns in the cotangent, each
    # moved as far: the product holds each pair of them once.
    by_row = jnp.concatenate([x[:, i : i + p] for i in range(rows)], -1)
    by_column = jnp.concatenate(
      [
        jnp.pad(cotangent, ((0, 0), (0, 0), (j, columns - 1 - j), (0, 0)))
        for j in range(columns)
      ],
      -1,
    )
    found = product(by_row, by_column).reshape(rows, c, columns, d)
    return found.transpose(0, 2, 1, 3)
  a, b = strides
  patches = [
    x[:, i : i + a * (p - 1) + 1 : a, j : j + b * (q - 1) + 1 : b]
    for i in range(rows)
    for j in range(columns)
  ]
  return product(jnp.concatenate(patches, -1), cotangent).reshape(shape)
