"""I-JEPA: learning from images with a joint-embedding predictive architecture.

Assran et al. 2023, arXiv:2301.08243; the authors' code is `src/train.py` of
facebookresearch/ijepa, and the defaults are those of
`configs/in1k_vith14_ep300.yaml`. From the tokens of one block of an image a
predictor tells those of others, as a moving average of the encoder sees them in
the whole image.

Theirs cuts contexts to the shortest of the batch, in raster order. Here each
keeps what it has, up to a static maximum, and attention leaves out the rest, so
that shapes never change.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax import schedules
from ssljax.models import linen
from ssljax.models import predictors


def make(
  encoder,
  *,
  total_steps: int,
  targets: int = 4,
  target_area: tuple[float, float] = (0.15, 0.2),
  target_aspect: tuple[float, float] = (0.75, 1.5),
  context_area: tuple[float, float] = (0.85, 1.0),
  min_keep: int = 10,
  inclusive: bool = False,
  max_context: float = 0.7,
  predictor_dim: int = 384,
  predictor_depth: int = 12,
  predictor_heads: int | None = None,
  predictor_init: str = "ijepa",
  ema: float | Callable = 0.996,
) -> core.Method:
  """Returns I-JEPA around a ViT; batches carry `views` [b 1 h w c].

  Args:
    encoder: a ViT of patches alone, as `models.vit` has it.
    total_steps: of the run, for the schedule of `ema`.
    targets: number of blocks to predict.
    target_area: least and largest part of the image that one takes.
    target_aspect: least and largest height over width of one.
    context_area: part of the image of the context, before targets are taken
      out of it.
    min_keep: a context has more patches than this.
    inclusive: blocks reach the last row and column of patches, which the
      authors' never do.
    max_context: part of the patches that a context may have; of larger ones the
      last are left out. The authors cut those of a GPU's batch to the shortest,
      0.27 on average for 128 images of 16 x 16 patches.
    predictor_dim: width of the predictor.
    predictor_depth: its number of blocks.
    predictor_heads: of its attention; None is the encoder's.
    predictor_init: how its weights start, a name of `models/vit_init.py`. The
      authors' deviation of 0.02 is for a width of 384 and more; one much
      narrower then hardly sees the context.
    ema: decay of the target encoder: its first value, which goes to 1 by a
      line, or `step -> value`.

  Raises:
    UserError: the encoder has a class token or registers; where it is first
      called, numbers that leave no context.
  """
  if encoder.pool == "cls" or encoder.class_token or encoder.registers:
    raise errors.UserError(
      "ijepa needs config.encoder.pool='mean', without registers"
    )
  schedule = ema
  if not callable(ema):
    schedule = schedules.schedule(
      "linear", base=ema, end=1.0, total_steps=total_steps
    )

  def grid_of(x):
    return x.shape[1] // encoder.patch, x.shape[2] // encoder.patch

  def predictor(x):
    return predictors.Blocks(
      grid=grid_of(x),
      dim=predictor_dim,
      depth=predictor_depth,
      heads=predictor_heads or encoder.heads,
      weight_init=predictor_init,
      dtype=encoder.dtype,
    )

  def init(rng, batch):
    ops.require_views(batch, 1)
    encoder_rng, predictor_rng = jax.random.split(rng)
    x = batch["views"][:, 0]
    params = {"encoder": linen.init(encoder, encoder_rng, x)[0]}
    tokens = jnp.zeros((1, 1, encoder.dim))
    place, true = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    params["predictor"] = predictor(x).init(
      predictor_rng, tokens, place, true, place[None], true[None]
    )["params"]
    return params, {"teacher": {"params": {"encoder": params["encoder"]}}}

  def encode(params, x, *, train, **options):
    return linen.apply(
      encoder, params["encoder"], {}, x, train=train, **options
    )[0]

  def draw_masks(x, key, step):
    """Context int32, bool [b k] and targets int32, bool [b t m]."""
    grid = grid_of(x)
    # The authors seed the sizes by a count of batches: all examples of a batch
    # have blocks of the same size.
    context, wanted = masks.multiblock_masking(
      key,
      jax.random.fold_in(jax.random.key(0), step),
      grid,
      targets=targets,
      target_area=target_area,
      target_aspect=target_aspect,
      context_area=context_area,
      min_keep=min_keep,
      inclusive=inclusive,
    )
    _, longest = masks.block_areas(grid, context_area, (1.0, 1.0))
    longest = min(longest, int(max_context * grid[0] * grid[1]))
    if longest <= min_keep:
      raise errors.UserError(
        f"method.max_context={max_context} of {grid[0]} x {grid[1]} patches is "
        f"{longest}, and method.min_keep={min_keep}: raise it, or lower that"
      )
    _, largest = masks.block_areas(grid, target_area, target_aspect)
    return masks.places_of(context, longest), masks.places_of(wanted, largest)

  def forward(params, method_state, batch, *, step, train):
    x = batch["views"][:, 0]
    mask_key, drop_key = ops.view_keys(batch["key"], 2).reshape(-1, 2).T
    (places, seen), (wanted, asked) = draw_masks(x, mask_key, step)
    out = encode(
      params,
      x,
      train=train,
      keep=places,
      attention_mask=seen[:, None, None],
      key=drop_key,
    )
    predicted = predictor(x).apply(
      {"params": params["predictor"]},
      out["tokens"],
      places,
      seen,
      wanted,
      asked,
    )
    # The target encoder sees the whole image.
    whole = encode(method_state["teacher"]["params"], x, train=False)["tokens"]
    whole = jax.lax.stop_gradient(ops.standardize(whole))
    target = jax.vmap(lambda rows, at: rows[at])(whole, wanted)
    # Equation 1 has squares; the authors' code smooth L1.
    error = losses.smooth_l1(predicted, target, beta=1.0).mean(axis=-1)
    features = {
      "sum": jnp.sum(error * asked, axis=(1, 2)),
      "count": asked.sum(axis=(1, 2), dtype=jnp.int32),
      "context": seen.sum(axis=1, dtype=jnp.int32),
    }
    return features, method_state

  def objective(params, method_state, features, *, step):
    del params, step
    loss = features["sum"].sum() / features["count"].sum()
    return loss, (method_state, {"context": features["context"].mean()})

  def embed(params, method_state, batch):
    del params
    params = method_state["teacher"]["params"]
    out = encode(params, batch["views"][:, 0], train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  def after_update(params, method_state, step):
    old = method_state["teacher"]["params"]
    new = ops.ema(old, {"encoder": params["encoder"]}, schedule(step))
    return params, method_state | {"teacher": {"params": new}}

  return core.Method(
    init, forward, objective, embed, after_update, is_mean=True
  )
