"""Operations that methods share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import errors
from ssljax import masks
from ssljax import ops


def test_patchify_is_raster_order_and_unpatchify_its_inverse():
  x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
  patches = ops.patchify(x, 2)
  assert patches.shape == (2, 6, 12)
  np.testing.assert_array_equal(patches[0, 1], x[0, :2, 2:4].reshape(-1))
  np.testing.assert_array_equal(ops.unpatchify(patches, 2, (4, 6)), x)


def test_masking_keeps_the_smallest_noise_and_restore_undoes_it():
  noise = jnp.array([[0.3, 0.1, 0.9, 0.2]])
  kept, restore, mask = masks.masking_of_noise(noise, 2)
  np.testing.assert_array_equal(kept, [[1, 3]])
  np.testing.assert_array_equal(mask, [[True, False, True, False]])
  order = jnp.array([1, 3, 0, 2])
  np.testing.assert_array_equal(order[restore[0]], np.arange(4))


def test_random_masking_is_uniform_and_by_example():
  keys = jax.random.split(jax.random.key(0), 4000)
  kept, _, mask = masks.random_masking(keys, 8, 2)
  assert kept.shape == (4000, 2)
  np.testing.assert_array_equal(mask.sum(axis=1), 6)
  np.testing.assert_allclose(1 - mask.mean(axis=0), 0.25, atol=0.03)
  part, _, _ = masks.random_masking(keys[10:20], 8, 2)
  np.testing.assert_array_equal(part, kept[10:20])


def test_enqueue_writes_over_the_oldest():
  queue = jnp.zeros((6, 1))
  queue = ops.enqueue(queue, jnp.ones((2, 1)), jnp.int32(4))
  np.testing.assert_array_equal(queue[:, 0], [0, 0, 0, 0, 1, 1])
  with pytest.raises(errors.UserError, match="not a multiple of 4"):
    ops.enqueue(queue, jnp.ones((4, 1)), jnp.int32(0))


def test_no_row_of_a_queue_stays_when_batches_grow():
  queue, place = -jnp.ones((8, 1)), jnp.int32(6)  # as batches of 2 have left it
  for i in range(2):
    queue = ops.enqueue(queue, jnp.full((4, 1), i), place)
    place = (place + 4) % 8
  np.testing.assert_array_equal(queue[:, 0], [1, 1, 1, 1, 0, 0, 0, 0])


def test_ema():
  old, new = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
  np.testing.assert_allclose(ops.ema(old, new, 0.9)["w"], 0.9)


def test_ema_keeps_dtypes_under_a_schedule():
  old = {"a": jnp.ones(3, jnp.bfloat16), "count": jnp.int32(3)}
  new = {"a": jnp.zeros(3, jnp.float32), "count": jnp.int32(4)}
  mixed = ops.ema(old, new, jnp.float32(0.5))
  assert mixed["a"].dtype == jnp.bfloat16 and (mixed["a"] == 0.5).all()
  assert mixed["count"].dtype == jnp.int32 and mixed["count"] == 4


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_l2_normalize_of_halves(dtype):
  x = jnp.array([[0.0, 0.0], [300.0, 400.0], [3e-4, 4e-4]], dtype)
  y = ops.l2_normalize(x)
  assert y.dtype == dtype
  np.testing.assert_allclose(
    y.astype(jnp.float32), [[0, 0], [0.6, 0.8], [0.6, 0.8]], atol=0.01
  )


def test_l2_normalize_of_zero_is_zero_with_a_finite_gradient():
  grad = jax.grad(lambda x: ops.l2_normalize(x).sum())(jnp.zeros(3))
  assert np.isfinite(grad).all()


def _sinkhorn(logits, epsilon, iterations):
  """facebookresearch/swav's, in float64 NumPy."""
  q = np.exp(np.float64(logits) / epsilon).T
  q /= q.sum()
  for _ in range(iterations):
    q /= q.sum(axis=1, keepdims=True) * q.shape[0]
    q /= q.sum(axis=0, keepdims=True) * q.shape[1]
  return (q * q.shape[1]).T


@pytest.mark.parametrize("scale", [1.0, 8.0])  # as scales, as logarithms
def test_sinkhorn_is_the_authors(scale):
  logits = np.random.RandomState(0).uniform(-1, 1, (24, 10)) * scale
  ours = ops.sinkhorn(jnp.array(logits), epsilon=0.05, iterations=3)
  expected = _sinkhorn(logits, 0.05, 3)
  np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(ours.sum(axis=1), 1, rtol=1e-5)


def test_small_rows_are_normalised_too():
  np.testing.assert_allclose(
    ops.l2_normalize(jnp.array([[1e-4, 0.0], [0.0, -2e-6]])),
    [[1, 0], [0, -1]],
    rtol=2.0**-22,  # two units in the last place, of the CPU's reciprocal root
  )


def test_sinkhorn_does_not_see_masked_rows_nor_overflow():
  logits = jnp.array(np.random.RandomState(0).normal(size=(12, 5)))
  mask = jnp.arange(12) < 8
  for scale, far in ((1.0, 1.0), (1e4, 1.0), (1.0, 1e30)):
    x = (logits * scale).at[8:].multiply(far)
    masked = ops.sinkhorn(x, epsilon=0.5, mask=mask)
    alone = ops.sinkhorn(x[:8], epsilon=0.5)
    np.testing.assert_allclose(masked[:8], alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(masked[8:], 0)
    none = ops.sinkhorn(x, epsilon=0.5, mask=jnp.zeros(12, bool))
    np.testing.assert_array_equal(none, 0)


def test_constant_features_are_whitened_to_zero():
  out = ops.pca_whiten(jnp.full((9, 4), 3.0), 2)
  np.testing.assert_array_equal(out, np.zeros((9, 2)))
