"""Operations that methods share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import ops


def test_patchify_is_raster_order_and_unpatchify_its_inverse():
  x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
  patches = ops.patchify(x, 2)
  assert patches.shape == (2, 6, 12)
  np.testing.assert_array_equal(patches[0, 1], x[0, :2, 2:4].reshape(-1))
  np.testing.assert_array_equal(ops.unpatchify(patches, 2, (4, 6)), x)


def test_masking_keeps_the_smallest_noise_and_restore_undoes_it():
  noise = jnp.array([[0.3, 0.1, 0.9, 0.2]])
  kept, restore, mask = ops.masking_of_noise(noise, 2)
  np.testing.assert_array_equal(kept, [[1, 3]])
  np.testing.assert_array_equal(mask, [[True, False, True, False]])
  order = jnp.array([1, 3, 0, 2])
  np.testing.assert_array_equal(order[restore[0]], np.arange(4))


def test_random_masking_is_uniform_and_by_example():
  keys = jax.random.split(jax.random.key(0), 4000)
  kept, _, mask = ops.random_masking(keys, 8, 2)
  assert kept.shape == (4000, 2)
  np.testing.assert_array_equal(mask.sum(axis=1), 6)
  np.testing.assert_allclose(1 - mask.mean(axis=0), 0.25, atol=0.03)
  part, _, _ = ops.random_masking(keys[10:20], 8, 2)
  np.testing.assert_array_equal(part, kept[10:20])


def test_enqueue_writes_over_the_oldest():
  queue = jnp.zeros((6, 1))
  queue = ops.enqueue(queue, jnp.ones((2, 1)), jnp.int32(4))
  np.testing.assert_array_equal(queue[:, 0], [0, 0, 0, 0, 1, 1])
  with pytest.raises(ValueError, match="not a multiple of 4"):
    ops.enqueue(queue, jnp.ones((4, 1)), jnp.int32(0))


def test_ema():
  old, new = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
  np.testing.assert_allclose(ops.ema(old, new, 0.9)["w"], 0.9)


def test_l2_normalize_of_zero_is_zero_with_a_finite_gradient():
  grad = jax.grad(lambda x: ops.l2_normalize(x).sum())(jnp.zeros(3))
  assert np.isfinite(grad).all()
