"""data2vec for images: predict a teacher's representations of hidden patches.

Baevski et al. 2022, arXiv:2202.03555; the authors' code is
facebookresearch/data2vec_vision `beit/run_cyclical.py` and
`engine_for_cyclical.py`, and the defaults are those of its README. A momentum
teacher sees the whole image, the student one with blocks hidden; what it must
tell of them is the mean of the teacher's last blocks. Text is in
`data2vec_text.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax.models import linen
from ssljax.models import vit
from ssljax.models import vit_init


def make(
  encoder,
  *,
  masked: int = 120,
  min_block: int = 16,
  max_block: int | None = None,
  top_k: int = 6,
  beta: float = 2.0,
  ema: float | Callable = 0.9998,
) -> core.Method:
  """Returns data2vec around a ViT; batches carry `views` [b 1 h w c].

  The loss is the mean over all hidden patches of the batch and over channels.

  Args:
    encoder: a ViT with `mask_token`, as `models.vit` has it; the authors' has
      relative positions and layer scale.
    masked: how many patches are hidden; the authors hide 120 of 196.
    min_block: the least area of a hidden block, in patches.
    max_block: the largest; None is all that is still to be hidden.
    top_k: how many of the teacher's last blocks are averaged.
    beta: where smooth L1 turns from squares to lines; 0 is the squared error.
    ema: decay of the teacher, or `step -> value`.

  Raises:
    UserError: the encoder has no mask token, or fewer blocks than `top_k`.
  """
  if not encoder.mask_token:
    raise errors.UserError("data2vec needs config.encoder.mask_token=True")
  if not 0 < top_k <= encoder.depth:
    raise errors.UserError(
      f"method.top_k={top_k}: the encoder has {encoder.depth} blocks"
    )
  schedule = ema if callable(ema) else lambda step: ema
  start = vit_init.get("beit").layer
  head = vit.dense(encoder.dim, encoder.dtype, None, kernel_init=start)
  last = tuple(range(encoder.depth - top_k, encoder.depth))

  def init(rng, batch):
    ops.require_views(batch, 1)
    encoder_rng, head_rng = jax.random.split(rng)
    x = batch["views"][:, 0]
    params = {"encoder": linen.init(encoder, encoder_rng, x)[0]}
    tokens = jnp.zeros((1, 1, encoder.dim))
    params["head"] = head.init(head_rng, tokens)["params"]
    # It starts as the student.
    return params, {"teacher": {"params": {"encoder": params["encoder"]}}}

  def encode(params, x, *, train, **options):
    return linen.apply(
      encoder, params["encoder"], {}, x, train=train, **options
    )[0]

  def hide(x, key):
    """The mask bool [b n]."""
    grid = (x.shape[1] // encoder.patch, x.shape[2] // encoder.patch)
    if not 0 < masked < grid[0] * grid[1]:
      raise errors.UserError(
        f"method.masked={masked} of {grid[0] * grid[1]} patches: give a number "
        "that hides some and leaves some"
      )
    return masks.block_masking(
      key, grid, masked, min_block=min_block, max_block=max_block
    )

  def targets(teacher, x):
    """[b n d] from the image without anything hidden."""
    blocks = encode(teacher["params"], x, train=False, layers=last)["layers"]
    return ops.standardize(sum(map(ops.standardize, blocks)) / top_k)

  def forward(params, method_state, batch, *, step, train):
    del step
    x = batch["views"][:, 0]
    mask_key, drop_key = ops.view_keys(batch["key"], 2).reshape(-1, 2).T
    mask = hide(x, mask_key)
    out = encode(params, x, train=train, mask=mask, key=drop_key)
    tokens = out["tokens"].astype(encoder.dtype)
    predicted = head.apply({"params": params["head"]}, tokens)
    target = jax.lax.stop_gradient(targets(method_state["teacher"], x))
    error = losses.smooth_l1(predicted, target, beta=beta).mean(axis=-1)
    features = {
      "sum": jnp.sum(error * mask, axis=1),
      "count": mask.sum(axis=1, dtype=jnp.int32),
      "mean": target.mean(axis=1),
      "square": jnp.square(target).mean(axis=1),
    }
    return features, method_state

  def objective(params, method_state, features, *, step):
    del params, step
    loss = features["sum"].sum() / features["count"].sum()
    # Close to zero where the teacher tells all patches alike.
    mean, square = (features[k].mean(axis=0) for k in ("mean", "square"))
    spread = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0.0)).mean()
    return loss, (method_state, {"target_std": spread})

  def embed(params, method_state, batch):
    del method_state
    out = encode(params, batch["views"][:, 0], train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  def after_update(params, method_state, step):
    old = method_state["teacher"]["params"]
    new = ops.ema(old, {"encoder": params["encoder"]}, schedule(step))
    return params, method_state | {"teacher": {"params": new}}

  return core.Method(
    init, forward, objective, embed, after_update, is_mean=True
  )
