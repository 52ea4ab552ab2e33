"""Parameters by their paths, as "encoder/layer1_0_conv1/kernel"."""

import re

import jax
import jax.numpy as jnp
from absl import logging

from ssljax import errors

_SCANNED = "encoder/blocks/"  # of encoder.scan: arrays [depth ...]
_BLOCK = re.compile(r"^encoder/block(\d+)/")


def map_with_path(function, tree, *rest):
  """`function(path, leaf, ...)`, where paths are joined by slashes."""

  def call(path, *leaves):
    names = (str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
    return function("/".join(names), *leaves)

  return jax.tree_util.tree_map_with_path(call, tree, *rest)


def matches(patterns, path, x):
  """Whether one does; "1d" stands for arrays of less than two dimensions."""
  ndim = x.ndim - path.startswith(_SCANNED)
  return any(
    ndim < 2 if pattern == "1d" else re.search(pattern, path)
    for pattern in patterns
  )


def check_matches(patterns, params):
  """Raises UserError for one that no parameter matches."""
  paths = jax.tree.leaves(map_with_path(lambda path, w: path, params))
  for pattern in patterns:
    if not any(re.search(pattern, path) for path in paths):
      raise errors.UserError(
        f"no parameter matches {pattern!r}: patterns are for paths like "
        f"{paths[-1]}"
      )


def warn_of_unmatched(patterns, params):
  """Warns where no parameter matches one of `decay_exclude`.

  It may be for encoders of several kinds.
  """
  for pattern in patterns:
    try:
      check_matches([pattern], params)
    except errors.UserError as e:
      logging.warning("optimizer.decay_exclude: %s", e)


def refuse_scanned(params):
  """Raises UserError for scanned blocks: a norm would be of all as one."""

  def see(path, w):
    if path.startswith(_SCANNED):
      raise errors.UserError(
        "lamb, lars, larc and clip_by_param take the norm of each parameter, "
        "and scanned blocks are one: set config.encoder.scan=False"
      )

  map_with_path(see, params)


def blocks(params):
  """How many the encoder has."""

  def number(path, w):
    if found := _BLOCK.search(path):
      return int(found[1]) + 1
    return w.shape[0] if path.startswith(_SCANNED) else 0

  return max(jax.tree.leaves(map_with_path(number, params)), default=0)


def layer_depths(params):
  """How many layers below the encoder's last norm each parameter is.

  facebookresearch/dinov2 `utils/param_groups.py`, and BEiT: of a ViT of n
  blocks the last has 1, the first n, and n + 1 what comes before them: patch
  embedding, positions, class, mask and register tokens. The last norm, relative
  positions, which all blocks share, and all that is outside the encoder have 0.
  BERT's one norm of its own is of the embeddings: it has n + 1. Scanned blocks
  have an array.
  """
  count = blocks(params)
  last = ("encoder/norm", "encoder/relative/")
  if "kind_embed" in params.get("encoder", {}):
    last = ()

  def depth(path, w):
    if found := _BLOCK.search(path):
      return count - int(found[1])
    if path.startswith(_SCANNED):
      depths = count - jnp.arange(count)
      return depths.reshape(-1, *(1,) * (w.ndim - 1))
    inside = path.startswith("encoder/") and not path.startswith(last)
    return count + 1 if inside else 0

  return map_with_path(depth, params)
