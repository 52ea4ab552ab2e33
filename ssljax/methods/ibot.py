"""iBOT: image BERT pre-training with an online tokenizer.

Zhou et al. 2021, arXiv:2111.07832; the authors' code is bytedance/ibot
`main_ibot.py`. DINO on class tokens, and the same between patches: of a crop
with masked patches the student predicts what the teacher, who sees them, says
of these.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import core
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
  out_dim: int = 8192,
  patch_out_dim: int = 8192,
  shared_head: bool = True,
  hidden_dim: int = 2048,
  bottleneck_dim: int = 256,
  head_layers: int = 3,
  head_std: float = 0.02,
  norm_last_layer: bool = True,
  mask_probability: float = 0.5,
  mask_ratio: tuple[float, float] = (0.1, 0.5),
  student_temperature: float = 0.1,
  teacher_temperature: float | Callable = 0.07,
  warmup_teacher_temperature: float = 0.04,
  patch_temperature: float | Callable = 0.07,
  warmup_patch_temperature: float = 0.04,
  warmup_teacher_epochs: int = 30,
  centre_ema: float = 0.9,
  patch_centre_ema: float = 0.9,
  patch_weight: float = 1.0,
  ema: float | Callable = 0.996,
) -> core.Method:
  """Returns iBOT around a ViT; batches carry `views` [b 2 h w c] and maybe
  `local_views` [b l h w c], smaller; `masks` bool [b 2 n] where they shall not
  be drawn.

  The optimiser freezes "prototypes" for the first epoch.

  Args:
    encoder: a ViT with `mask_token=True`; the authors' have `pool="cls"`.
    total_steps: of the run, for the schedule of `ema`.
    steps_per_epoch: for that of the temperatures.
    out_dim: number of prototypes, K.
    patch_out_dim: of those for patches, where they are others.
    shared_head: class tokens and patches have the same prototypes, as in all
      of the authors' published runs.
    hidden_dim: width of the head's hidden layers.
    bottleneck_dim: width of what meets the prototypes.
    head_layers: dense layers before them.
    head_std: deviation of their start, see `heads.Bottleneck`.
    norm_last_layer: prototypes have length 1; else their lengths are learned.
    mask_probability: that a global crop is masked.
    mask_ratio: the least and the most part of its patches. The authors' blocks
      may mask fewer; here single patches make up the number.
    student_temperature: tau_s.
    teacher_temperature: tau_t of class tokens, or `step -> value`.
    warmup_teacher_temperature: where it starts.
    patch_temperature: tau_t of patches, or `step -> value`.
    warmup_patch_temperature: where it starts.
    warmup_teacher_epochs: how long both take, an epoch a step.
    centre_ema: decay of the class tokens' centre.
    patch_centre_ema: of the patches'.
    patch_weight: of the patches' loss, lambda_2.
    ema: decay of the teacher: its first value, which goes to 1 by a cosine, or
      `step -> value`.

  Raises:
    UserError: the encoder has no mask token.
  """
  distillation.check_mask_token(encoder, "ibot")
  warm_up = lambda first, last: distillation.warm_up(
    first, last, warmup_teacher_epochs, steps_per_epoch, by_epoch=True
  )
  temperature = warm_up(warmup_teacher_temperature, teacher_temperature)
  patch_heat = warm_up(warmup_patch_temperature, patch_temperature)
  teacher_encoder = distillation.teacher_of(encoder)
  head = heads.Bottleneck(
    layers=head_layers,
    std=head_std,
    hidden_dim=hidden_dim,
    out_dim=bottleneck_dim,
    dtype=encoder.dtype,
  )
  patch_out_dim = out_dim if shared_head else patch_out_dim

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
    if not shared_head:  # the MLP is, as the authors'
      other, _ = distillation.init_head(
        head, patch_rng, encoder.dim, patch_out_dim, **options
      )
      params["head"]["patch_prototypes"] = other["prototypes"]
    return params, {
      "teacher": {"params": params, "batch_stats": {}},
      "centre": jnp.zeros(out_dim),
      "patch_centre": jnp.zeros(patch_out_dim),
    }

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
        min_block=max((min(grid) // 3) ** 2, 1),
      )
    most = distillation.most_masked(mask_ratio, grid)
    places, masked = masks.places_of(mask, most)
    project = lambda params, h: linen.apply(
      head, params["head"]["mlp"], {}, h, train=train
    )[0]
    pooled, tokens, _ = distillation.student_crops(
      encoder,
      params["encoder"],
      {},
      batch | {"key": key},
      train=train,
      mask=mask,
    )
    pooled = distillation.of_last_block(pooled, encoder)
    out, _ = distillation.apply_views(
      teacher_encoder, teacher["encoder"], {}, views, train=train, key=key
    )
    class_token = distillation.of_last_block(out["pooled"], encoder)
    patches = project(teacher, out["tokens"])  # [b 2 n d]
    features = {
      "student": project(params, pooled),
      "student_patch": project(params, distillation.take(tokens, places)),
    }
    targets = {
      "teacher": project(teacher, class_token),
      "teacher_patch": distillation.take(patches, places),
      "teacher_mean": patches.mean(axis=2),
    }
    targets = jax.lax.stop_gradient(targets)
    return features | targets | {"masked": masked}, method_state

  def objective(params, method_state, features, *, step):
    student, teacher = params["head"], method_state["teacher"]["params"]["head"]
    # Class tokens: DINO, equation 1.
    logits = distillation.logits(teacher, features["teacher"])
    centre = method_state["centre"]
    targets = jax.nn.softmax((logits - centre) / temperature(step))
    class_loss = losses.dino(
      distillation.logits(student, features["student"]),
      targets,
      temperature=student_temperature,
    )
    metrics = distillation.entropies(targets)
    centre = ops.ema(centre, logits.mean(axis=(0, 1)), centre_ema)
    # Patches: equation 2, between the same crop's.
    student, teacher = _for_patches(student), _for_patches(teacher)
    patch_centre = method_state["patch_centre"]
    logits = distillation.logits(teacher, features["teacher_patch"])
    targets = jax.nn.softmax((logits - patch_centre) / patch_heat(step))
    patch_loss = losses.soft_cross_entropy(
      distillation.logits(student, features["student_patch"]),
      targets,
      temperature=student_temperature,
    )
    patch_loss = distillation.mean_of_masked(patch_loss, features["masked"])
    # Of all patches, also those that no mask hides: prototypes are linear, so
    # that the mean can be taken before them.
    mean = distillation.logits(teacher, features["teacher_mean"])
    patch_centre = ops.ema(
      patch_centre, mean.mean(axis=(0, 1)), patch_centre_ema
    )
    metrics |= {"class_loss": class_loss, "patch_loss": patch_loss}
    new = {"centre": centre, "patch_centre": patch_centre}
    loss = class_loss + patch_weight * patch_loss
    return loss, (method_state | new, metrics)

  return core.Method(
    init,
    forward,
    objective,
    distillation.embed_by(encoder),
    distillation.after_update_by(distillation.ema_of(ema, total_steps)),
  )


def _for_patches(head):
  """The head with the prototypes of patches, where they are others."""
  return {"prototypes": head.get("patch_prototypes", head["prototypes"])}
