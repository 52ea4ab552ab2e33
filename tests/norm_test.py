"""Batch norm against Flax's, and its groups against as many batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import errors
from ssljax.models import norm

X = np.random.default_rng(0).normal(3.0, 2.0, (12, 5, 4, 8)).astype(np.float32)


def apply(module, variables, x):
  return module.apply(variables, x, mutable=["batch_stats"])


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_forward_and_backward_are_flaxs(train, dtype):
  x = jnp.asarray(X, dtype)
  flax = nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype
  )
  ours = norm.BatchNorm(train=train, dtype=dtype)
  variables = flax.init(jax.random.key(0), x)
  assert jax.tree.all(
    jax.tree.map(
      lambda a, b: (a == b).all(), variables, ours.init(jax.random.key(0), x)
    )
  )
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda v: jnp.asarray(rng.uniform(0.5, 2.0, v.shape), v.dtype), variables
  )

  def loss(module, variables, x):
    y, changed = apply(module, variables, x)
    return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, changed)

  results = []
  for module in (flax, ours):
    (_, aux), grads = jax.value_and_grad(
      lambda v, x, module=module: loss(module, v, x),
      argnums=(0, 1),
      has_aux=True,
    )(variables, x)
    results.append((*aux, grads))
  assert results[1][0].dtype == dtype
  tolerance = 2e-5 if dtype == jnp.float32 else 4e-2
  for a, b in zip(*map(jax.tree.leaves, results)):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(b, a, rtol=tolerance, atol=30 * tolerance)


@pytest.mark.parametrize("strided", [False, True])
def test_groups_are_batches_of_their_own(strided):
  one = norm.BatchNorm(train=True)
  variables = one.init(jax.random.key(0), X)
  module = norm.BatchNorm(train=True, groups=3, strided=strided)
  y, changed = apply(module, variables, X)
  cut = [X[i::3] for i in range(3)] if strided else np.split(X, 3)
  parts = [apply(one, variables, part) for part in cut]
  join = np.stack if strided else np.concatenate
  expected = join([part for part, _ in parts], axis=1 if strided else 0)
  np.testing.assert_allclose(y, expected.reshape(X.shape), rtol=1e-5, atol=1e-5)
  means = [stats["batch_stats"]["mean"] for _, stats in parts]
  np.testing.assert_allclose(
    changed["batch_stats"]["mean"], np.mean(means, axis=0), rtol=1e-5
  )


def test_groups_that_do_not_divide_are_refused():
  one = norm.BatchNorm(train=True)
  variables = one.init(jax.random.key(0), X)
  with pytest.raises(errors.UserError, match="=5 does not divide"):
    apply(norm.BatchNorm(train=True, groups=5), variables, X)


def test_options_leave_parameters_out():
  module = norm.BatchNorm(train=True, use_bias=False, use_scale=False)
  assert "params" not in module.init(jax.random.key(0), X)
