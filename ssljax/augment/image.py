"""Image operations for views, on batches, with a key for each example.

Each is `op(key [b], x [b c h w], ...) -> [b c h w]` on float32 in [0, 1], and
has torchvision's distribution: `torchvision.transforms.v2` on float tensors,
with antialiasing. What an example draws depends on its own key alone. Planes
of a channel lie together, so that everything below runs along rows of pixels.

Crops, resizes and blur are matrix products, at the precision that jax has for
them: unless it is told otherwise, pixels are rounded to 11 bits on a GPU with
TF32, and to 8 on a TPU, as they were in the file.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors

# ITU-R 601, as torchvision's rgb_to_grayscale.
_LUMA = (0.2989, 0.587, 0.114)


def uniform(key, shape=(), low=0.0, high=1.0):
  """[b] keys -> [b *shape] floats."""
  draw = lambda k: jax.random.uniform(k, shape, minval=low, maxval=high)
  return jax.vmap(draw)(key)


def random_resized_crop(
  key,
  x,
  *,
  size: tuple[int, int],
  area=(0.08, 1.0),
  ratio=(3 / 4, 4 / 3),
  interpolation="bilinear",
):
  """A box of random area and shape, resized; one product an axis.

  Ten tries for a box inside the image, then the largest central one of an
  allowed shape (`RandomResizedCrop.make_params`).

  Args:
    key: [b].
    x: [b c h w].
    size: (height, width) of the result.
    area: range of the box's part of the image.
    ratio: range of its width over its height, uniform in the logarithm.
    interpolation: "bilinear" or "bicubic", both with antialiasing.
  """
  top, left, height, width = random_box(key, x.shape[2:], area, ratio)
  rows = resize_matrix(x.shape[2], size[0], top, height, interpolation)
  columns = resize_matrix(x.shape[3], size[1], left, width, interpolation)
  return _along_axes(x, rows, columns)


def random_box(key, shape, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
  """Returns (top, left, height, width), each [b] float32 of whole pixels."""
  h, w = shape
  u = uniform(key, (22,))
  parts = area[0] + u[:, :10] * (area[1] - area[0])
  low, high = np.log(ratio[0]), np.log(ratio[1])
  ratios = jnp.exp(low + u[:, 10:20] * (high - low))
  widths = jnp.round(jnp.sqrt(parts * (h * w) * ratios))
  heights = jnp.round(jnp.sqrt(parts * (h * w) / ratios))
  fits = (widths > 0) & (widths <= w) & (heights > 0) & (heights <= h)
  first = jnp.argmax(fits, axis=1)[:, None]
  pick = lambda a: jnp.take_along_axis(a, first, axis=1)[:, 0]
  # The fallback: the whole image, cut to the nearest allowed shape.
  shape = w / h
  w0 = np.round(h * ratio[1]) if shape > ratio[1] else w
  h0 = np.round(w / ratio[0]) if shape < ratio[0] else h
  found = fits.any(axis=1)
  width = jnp.where(found, pick(widths), w0)
  height = jnp.where(found, pick(heights), h0)
  top = jnp.floor(u[:, 20] * (h - height + 1))
  left = jnp.floor(u[:, 21] * (w - width + 1))
  top = jnp.where(found, top, (h - h0) // 2)
  left = jnp.where(found, left, (w - w0) // 2)
  return top, left, height, width


def resize_matrix(n, out, start, length, interpolation="bilinear"):
  """Weights [b out n] that resize pixels start .. start + length of n to out.

  As torch's `_upsample_bilinear2d_aa` and `_upsample_bicubic2d_aa` (a = -0.5):
  the filter is widened by the scale where the image shrinks.
  """
  filters = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}
  if interpolation not in filters:
    raise errors.UserError(
      f"interpolation={interpolation!r}: choose bilinear or bicubic"
    )
  filter_fn, support = filters[interpolation]
  start, length = start[:, None, None], length[:, None, None]  # [b 1 1]
  scale = length / out
  centre = scale * (jnp.arange(out) + 0.5)[:, None]  # [b out 1]
  stretch = jnp.maximum(scale, 1.0)
  place = jnp.arange(n) - start + 0.5  # [b 1 n]
  distance = (place - centre) / stretch
  inside = (place > 0) & (place < length) & (jnp.abs(distance) < support)
  weights = jnp.where(inside, filter_fn(jnp.abs(distance)), 0.0)
  return weights / weights.sum(axis=2, keepdims=True)


def _triangle(x):
  return jnp.maximum(1 - x, 0.0)


def _cubic(x, a=-0.5):
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return jnp.where(x < 1, near, far)


def _along_axes(x, rows, columns):
  """[b c h w] by [b o h] and [b p w] -> [b c o p]."""
  # Plane by plane: on the CPU faster than one product that repeats `rows`.
  planes = [rows @ x[:, i] @ columns.mT for i in range(x.shape[1])]
  return jnp.stack(planes, axis=1)


def resize(x, *, size, crop=1.0, interpolation="bilinear"):
  """The central `crop` of each side, resized to `size`, antialiased."""
  matrices = []
  for n, out in zip(x.shape[2:], size):
    length = max(1, round(n * crop))
    matrices.append(
      resize_matrix(
        n,
        out,
        jnp.full((1,), float((n - length) // 2)),
        jnp.full((1,), float(length)),
        interpolation,
      )
    )
  return _along_axes(x, *(jnp.repeat(m, len(x), axis=0) for m in matrices))


def random_flip(key, x, *, p=0.5):
  """Left and right exchanged with probability `p`."""
  return jnp.where(_chosen(key, p), x[..., ::-1], x)


def color_jitter(key, x, *, strengths, p=1.0):
  """`RandomApply(ColorJitter(brightness, contrast, saturation, hue), p)`.

  The four come in a random order. Brightness, contrast and saturation are all
  mixtures with another image (black, the mean grey, the grey), so that a place
  in the order costs one mixture; hue, the dear one, is computed once between
  those that come before it and those that come after.

  Args:
    key: [b].
    x: [b c h w]; with c other than 3 there are brightness and contrast alone.
    strengths: of the four. A factor is uniform in [max(0, 1 - s), 1 + s], the
      shift of the hue in [-s, s].
    p: probability that an image is changed at all.

  Raises:
    ValueError: saturation or hue are asked for and c is not 3.
  """
  colour = x.shape[1] == 3
  if not colour and (strengths[2] or strengths[3]):
    raise ValueError(f"saturation and hue need 3 channels, not {x.shape[1]}")
  u = uniform(key, (9,))
  low = np.maximum(0.0, 1 - np.asarray(strengths[:3]))
  high = 1 + np.asarray(strengths[:3])
  factors = low + u[:, :3] * (high - low)
  applied = u[:, 3] < p
  factors = jnp.where(applied[:, None], factors, 1.0)
  # Four uniforms sorted are a uniform permutation; hue is the fourth.
  places = jnp.argsort(u[:, 4:8], axis=1)
  order = jnp.argsort(places, axis=1)  # of each op
  mixed = 3 if colour else 2

  def mix(x, place, active):
    """The mixture that stands at `place` [b], where `active` [b]."""
    which = order[:, :mixed] == place[:, None]  # [b mixed]
    active = active & which.any(axis=1)
    factor = jnp.sum(jnp.where(which, factors[:, :mixed], 0.0), axis=1)
    factor = jnp.where(active, factor, 1.0)[:, None, None, None]
    grey = grayscale(x) if colour else x
    mean = grey.mean(axis=(1, 2, 3), keepdims=True)
    at = lambda i: which[:, i][:, None, None, None]
    other = jnp.where(at(1), mean, 0.0)
    if colour:
      other = jnp.where(at(2), grey, other)
    return jnp.clip(factor * x + (1 - factor) * other, 0.0, 1.0)

  if not colour:
    # Order among the two alone.
    first = jnp.argmin(order[:, :2], axis=1)
    order = jnp.stack([first, 1 - first], axis=1)
    everywhere = jnp.ones(len(x), bool)
    for place in range(2):
      x = mix(x, jnp.full(len(x), place), everywhere)
    return x

  hue_place = order[:, 3]
  for place in range(3):  # before hue
    place = jnp.full(len(x), place)
    x = mix(x, place, place < hue_place)
  if strengths[3]:
    shift = jnp.where(applied, (2 * u[:, 8] - 1) * strengths[3], 0.0)
    x = shift_hue(x, shift)
  for place in range(1, 4):  # after hue
    place = jnp.full(len(x), place)
    x = mix(x, place, place > hue_place)
  return x


def shift_hue(x, shift):
  """Adds `shift` [b], in turns, to the hue of x [b 3 h w] in HSV."""
  r, g, b = x[:, 0], x[:, 1], x[:, 2]
  top = jnp.maximum(jnp.maximum(r, g), b)
  chroma = top - jnp.minimum(jnp.minimum(r, g), b)
  safe = jnp.where(chroma > 0, chroma, 1.0)
  sextant = jnp.where(
    top == r,
    (g - b) / safe,
    jnp.where(top == g, 2.0 + (b - r) / safe, 4.0 + (r - g) / safe),
  )
  sextant = sextant + 6.0 * shift[:, None, None]

  def channel(n):
    k = n + sextant
    k = k - 6.0 * jnp.floor(k / 6.0)
    return top - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

  return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=1)


def grayscale(x):
  """[b 3 h w] -> [b 1 h w]."""
  return sum(weight * x[:, i : i + 1] for i, weight in enumerate(_LUMA))


def random_grayscale(key, x, *, p=0.2):
  """Three equal channels of grey with probability `p`.

  Raises:
    ValueError: x does not have 3 channels.
  """
  if x.shape[1] != 3:
    raise ValueError(f"greyscale needs 3 channels, not {x.shape[1]}")
  return jnp.where(_chosen(key, p), grayscale(x), x)


def gaussian_blur(key, x, *, kernel, sigma=(0.1, 2.0), p=1.0):
  """Blur of random width, borders reflected, as one product an axis.

  Args:
    key: [b].
    x: [b c h w].
    kernel: number of taps, odd.
    sigma: range of the width in pixels.
    p: probability that an image is blurred.

  Raises:
    ValueError: `kernel` is even, or wider than reflection can serve.
  """
  radius = kernel // 2
  if kernel % 2 == 0 or radius >= min(x.shape[2:]):
    raise ValueError(f"a blur kernel of {kernel} for {x.shape[2:]} pixels")
  u = uniform(key, (2,))
  width = sigma[0] + u[:, :1] * (sigma[1] - sigma[0])
  taps = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / width) ** 2)
  taps = taps / taps.sum(axis=1, keepdims=True)  # [b kernel]
  # Not blurred is the tap in the middle alone.
  identity = (jnp.arange(kernel) == radius).astype(jnp.float32)
  taps = jnp.where(u[:, 1:] < p, taps, identity)
  rows, columns = (_blur_matrix(taps, n) for n in x.shape[2:])
  return _along_axes(x, rows, columns)


def _blur_matrix(taps, n):
  """Weights [b n n] of taps [b kernel] at n pixels, reflected at borders."""
  radius, wide = taps.shape[1] // 2, n + taps.shape[1] - 1
  # What repeats after wide + 1 places is shifted by one from row to row.
  rows = jnp.tile(jnp.pad(taps, ((0, 0), (0, n))), n)[:, : n * wide]
  rows = rows.reshape(-1, n, wide)
  room = n - 1 - radius
  left = rows[..., :radius][..., ::-1]
  left = jnp.pad(left, ((0, 0), (0, 0), (1, room)))
  right = rows[..., radius + n :][..., ::-1]
  right = jnp.pad(right, ((0, 0), (0, 0), (room, 1)))
  return rows[..., radius : radius + n] + left + right


def solarize(key, x, *, threshold=0.5, p=1.0):
  """Values at or above the threshold inverted, with probability `p`."""
  inverted = jnp.where(x >= threshold, 1 - x, x)
  return jnp.where(_chosen(key, p), inverted, x)


def normalize(x, mean, std):
  """(x - mean) / std by channel; None leaves it out."""
  planes = lambda v: jnp.asarray(v, jnp.float32)[:, None, None]
  if mean is not None:
    x = x - planes(mean)
  return x if std is None else x / planes(std)


def _chosen(key, p):
  """[b 1 1 1] bool, true with probability `p`."""
  return (uniform(key) < p)[:, None, None, None]
