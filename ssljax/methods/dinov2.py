"""DINOv2: learning robust visual features without supervision.

Oquab et al. 2023, arXiv:2304.07193, section 4; the authors' code is
facebookresearch/dinov2 `train/ssl_meta_arch.py`. iBOT with heads apart,
Sinkhorn-Knopp for centring and KoLeo. Registers (Darcet et al. 2023,
arXiv:2309.16588) are the encoder's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax.methods import distillation
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  total_steps: int,
  steps_per_epoch: int,
  out_dim: int = 131072,
  patch_out_dim: int = 131072,
  separate_head: bool = True,
  hidden_dim: int = 2048,
  bottleneck_dim: int = 384,
  patch_bottleneck_dim: int = 256,
  head_layers: int = 3,
  head_std: float = 0.02,
  norm_last_layer: bool = False,
  centring: str = "sinkhorn",
  mask_probability: float = 0.5,
  mask_ratio: tuple[float, float] = (0.1, 0.5),
  student_temperature: float = 0.1,
  teacher_temperature: float | Callable = 0.07,
  warmup_teacher_temperature: float = 0.04,
  warmup_teacher_epochs: float = 30,
  centre_ema: float = 0.9,
  patch_weight: float = 1.0,
  koleo_weight: float = 0.1,
  koleo_groups: int = 1,
  ema: float | Callable = 0.994,
) -> core.Method:
  """Returns DINOv2 around a ViT; batches carry `views` [b 2 h w c] and maybe
  `local_views` [b l h w c], smaller; `masks` bool [b 2 n] where they shall not
  be drawn.

  The defaults are `configs/train/vitl14.yaml`. The optimiser has a rate of zero
  for "prototypes" in the first epoch.

  Args:
    encoder: a ViT with `mask_token=True`; the authors' have `pool="cls"`.
    total_steps: of the run, for the schedule of `ema`.
    steps_per_epoch: for that of the temperature.
    out_dim: number of prototypes, K.
    patch_out_dim: of those for patches, where their head is another.
    separate_head: patches have a head of their own.
    hidden_dim: width of the heads' hidden layers.
    bottleneck_dim: width of what meets the prototypes.
    patch_bottleneck_dim: the same of the head for patches.
    head_layers: dense layers before them.
    head_std: deviation of their start, see `heads.Bottleneck`.
    norm_last_layer: prototypes have length 1; else their lengths are learned.
    centring: "sinkhorn", three iterations, or "mean", as DINO's.
    mask_probability: that a global crop is masked. The authors mask half of the
      crops of a batch; here each is drawn by itself, as iBOT's.
    mask_ratio: the least and the most part of its patches. The authors' blocks
      may mask fewer; here single patches make up the number.
    student_temperature: tau_s.
    teacher_temperature: tau_t of class tokens and patches, or `step -> value`.
    warmup_teacher_temperature: where it starts.
    warmup_teacher_epochs: how long it takes, step by step.
    centre_ema: decay of both centres of "mean".
    patch_weight: of the patches' loss.
    koleo_weight: of KoLeo, summed over the two global crops.
    koleo_groups: neighbours are sought in so many parts of the batch apart, as
      on the authors' devices.
    ema: decay of the teacher: its first value, which goes to 1 by a cosine, or
      `step -> value`.

  Raises:
    UserError: the encoder has no mask token, or an unknown `centring`; in the
      objective, `koleo_groups` that leave no neighbours or not divide a batch.
  """
  distillation.check_mask_token(encoder, "dinov2")
  if centring not in ("sinkhorn", "mean"):
    raise errors.UserError(
      f"unknown method.centring={centring!r}: choose sinkhorn or mean"
    )
  temperature = distillation.warm_up(
    warmup_teacher_temperature,
    teacher_temperature,
    warmup_teacher_epochs,
    steps_per_epoch,
    by_epoch=False,
  )
  teacher_encoder = distillation.teacher_of(encoder)
  mlp = lambda width: heads.Bottleneck(
    layers=head_layers,
    std=head_std,
    hidden_dim=hidden_dim,
    out_dim=width,
    dtype=encoder.dtype,
  )
  head = patch_head = mlp(bottleneck_dim)
  of_patches = "head"
  if separate_head:
    patch_head, of_patches = mlp(patch_bottleneck_dim), "patch_head"
  else:
    patch_out_dim = out_dim

  def init(rng, batch):
    ops.require_views(batch, 2, more=True, local=True)
    encoder_rng, head_rng, patch_rng = jax.random.split(rng, 3)
    params = {
      "encoder": linen.init(encoder, encoder_rng, batch["views"][:, 0])[0]
    }
    options = dict(norm_last_layer=norm_last_layer)
    params["head"], _ = distillation.init_head(
      head, head_rng, encoder.dim, out_dim, **options
    )
    if separate_head:
      params["patch_head"], _ = distillation.init_head(
        patch_head, patch_rng, encoder.dim, patch_out_dim, **options
      )
    state = {"teacher": {"params": params, "batch_stats": {}}}
    if centring == "mean":
      state["centre"] = jnp.zeros(out_dim)
      state["patch_centre"] = jnp.zeros(patch_out_dim)
    return params, state

  def forward(params, method_state, batch, *, step, train):
    del step
    views, teacher = batch["views"], method_state["teacher"]["params"]
    grid = tuple(side // encoder.patch for side in views.shape[2:4])
    mask_key, key = jax.vmap(jax.random.split)(batch["key"]).T
    mask = batch.get("masks")
    if mask is None:
      mask = distillation.draw_masks(
        mask_key,
        views.shape[1],
        grid,
        probability=mask_probability,
        ratio=mask_ratio,
        min_block=4,
      )
    most = distillation.most_masked(mask_ratio, grid)
    places, masked = masks.places_of(mask, most)

    def project(params, pooled, tokens):
      """Class tokens [b v d], and the masked of the patches [b 2 m d]."""
      patches = distillation.take(tokens, places)
      apply = lambda module, name, h: linen.apply(
        module, params[name]["mlp"], {}, h, train=train
      )[0]
      return apply(head, "head", pooled), apply(patch_head, of_patches, patches)

    pooled, tokens, _ = distillation.student_crops(
      encoder,
      params["encoder"],
      {},
      batch | {"key": key},
      train=train,
      mask=mask,
    )
    pooled = distillation.of_last_block(pooled, encoder)
    student, student_patch = project(params, pooled, tokens)
    out, _ = distillation.apply_views(
      teacher_encoder, teacher["encoder"], {}, views, train=train, key=key
    )
    class_token = distillation.of_last_block(out["pooled"], encoder)
    targets = project(teacher, class_token, out["tokens"])
    targets, patch_targets = jax.lax.stop_gradient(targets)
    return {
      "student": student,
      "student_patch": student_patch,
      "class_token": pooled[:, : views.shape[1]],
      "teacher": targets,
      "teacher_patch": patch_targets,
      "masked": masked,
    }, method_state

  def objective(params, method_state, features, *, step):
    teacher = method_state["teacher"]["params"]
    heat, masked = temperature(step), features["masked"]
    of_teacher = distillation.logits(teacher["head"], features["teacher"])
    of_patch = distillation.logits(
      teacher[of_patches], features["teacher_patch"]
    )
    if centring == "sinkhorn":
      rows = lambda x: x.reshape(-1, x.shape[-1])
      assign = lambda logits, present: ops.sinkhorn(
        rows(logits), epsilon=heat, iterations=3, mask=present
      ).reshape(logits.shape)
      targets = assign(of_teacher, None)
      patch_targets = assign(of_patch, masked.reshape(-1))
      new = {}
    else:
      targets, patch_targets, new = _centred(
        method_state, of_teacher, of_patch, masked, heat, centre_ema
      )
    # DINO between crops, iBOT within one, and KoLeo on the class tokens.
    class_loss = losses.dino(
      distillation.logits(params["head"], features["student"]),
      targets,
      temperature=student_temperature,
    )
    patch_loss = losses.soft_cross_entropy(
      distillation.logits(params[of_patches], features["student_patch"]),
      patch_targets,
      temperature=student_temperature,
    )
    patch_loss = distillation.mean_of_masked(patch_loss, masked)
    spread = _koleo(features["class_token"], koleo_groups)
    loss = class_loss + patch_weight * patch_loss + koleo_weight * spread
    metrics = distillation.entropies(targets) | {
      "class_loss": class_loss,
      "patch_loss": patch_loss,
      "koleo": spread / 2,
    }
    return loss, (method_state | new, metrics)

  return core.Method(
    init,
    forward,
    objective,
    distillation.embed_by(encoder),
    distillation.after_update_by(distillation.ema_of(ema, total_steps)),
  )


def _centred(method_state, logits, patch_logits, masked, heat, decay):
  """Targets as DINO's, and the centres, the patches' of masked ones alone."""
  centre, patch_centre = method_state["centre"], method_state["patch_centre"]
  targets = jax.nn.softmax((logits - centre) / heat)
  patch_targets = jax.nn.softmax((patch_logits - patch_centre) / heat)
  weights = masked / jnp.maximum(masked.sum(), 1)
  mean = jnp.einsum("bvm,bvmk->k", weights, patch_logits)
  mean = jnp.where(masked.any(), mean, patch_centre)
  return (
    targets,
    patch_targets,
    {
      "centre": ops.ema(centre, logits.mean(axis=(0, 1)), decay),
      "patch_centre": ops.ema(patch_centre, mean, decay),
    },
  )


def _koleo(tokens, groups):
  """The sum over crops of KoLeo of [b v d], the mean over parts of b."""
  b, v, d = tokens.shape
  if b % groups or b < 2 * groups:
    raise errors.UserError(
      f"method.koleo_groups={groups} does not part a batch of {b} into groups "
      "of 2 or more"
    )
  tokens = tokens.reshape(b // groups, groups, v, d)
  by_crop = jax.vmap(losses.koleo, 1)
  return jax.vmap(by_crop, 1)(tokens).mean(axis=0).sum()
