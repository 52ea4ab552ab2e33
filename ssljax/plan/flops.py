"""Floating-point operations of a function, counted from its jaxpr.

The compiler's own count sees the body of a scan once, and counts what it added.
Here each matrix product and convolution counts, as often as it runs, two for a
multiplication and its addition; nothing else does, as in published counts.
"""

import math
from collections.abc import Callable

import jax


def count(function: Callable, *args) -> int:
  """Of one call; the arguments may be jax.ShapeDtypeStruct."""
  return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr):
  total = 0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == "dot_general":
      total += _dot(eqn)
    elif name == "conv_general_dilated":
      total += _convolution(eqn)
    else:
      inner = [_count(j) for j in _inner(eqn.params)]
      once = max(inner, default=0) if name == "cond" else sum(inner)
      total += once * (eqn.params["length"] if name == "scan" else 1)
  return total


def _inner(params):
  """The jaxprs that a primitive runs."""
  for value in params.values():
    for x in value if isinstance(value, (tuple, list)) else (value,):
      x = getattr(x, "jaxpr", x)
      if hasattr(x, "eqns"):
        yield x


def _dot(eqn):
  (contracted, _), _ = eqn.params["dimension_numbers"]
  shape = eqn.invars[0].aval.shape
  return 2 * _size(eqn) * math.prod(shape[i] for i in contracted)


def _convolution(eqn):
  """What is multiplied with the zeros of a dilation does not count."""
  kernel = eqn.invars[1].aval.shape
  spec = eqn.params["dimension_numbers"].rhs_spec  # out, in, window
  window = math.prod(kernel[i] for i in spec[1:])
  dilation = math.prod(eqn.params["lhs_dilation"])
  return 2 * _size(eqn) * window // dilation


def _size(eqn):
  return math.prod(eqn.outvars[0].aval.shape)
