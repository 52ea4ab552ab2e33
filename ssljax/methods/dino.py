"""DINO: self-distillation with no labels.

Caron et al. 2021, arXiv:2104.14294; the authors' code is facebookresearch/dino
`main_dino.py`. The student sees crops, large and small, and predicts what the
teacher, a moving average of it, says of each other large one: a distribution
over prototypes, centred and sharpened.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import losses
from ssljax import ops
from ssljax.methods import distillation
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  total_steps: int,
  steps_per_epoch: int,
  out_dim: int = 65536,
  hidden_dim: int = 2048,
  bottleneck_dim: int = 256,
  head_layers: int = 3,
  head_std: float = 0.02,
  head_norm: bool = False,
  norm_last_layer: bool = True,
  student_temperature: float = 0.1,
  teacher_temperature: float | Callable = 0.04,
  warmup_teacher_temperature: float = 0.04,
  warmup_teacher_epochs: int = 0,
  centre_ema: float = 0.9,
  ema: float | Callable = 0.996,
) -> core.Method:
  """Returns DINO around a Flax encoder; batches carry `views` [b 2 h w c] and
  maybe `local_views` [b l h w c], smaller.

  The optimiser freezes "prototypes" for the first epoch.

  Args:
    encoder: a module under the encoder contract.
    total_steps: of the run, for the schedule of `ema`.
    steps_per_epoch: for that of the teacher's temperature.
    out_dim: number of prototypes, K.
    hidden_dim: width of the head's hidden layers.
    bottleneck_dim: width of what meets the prototypes.
    head_layers: dense layers before them.
    head_std: deviation of their start, see `heads.Bottleneck`.
    head_norm: batch norm in the head.
    norm_last_layer: prototypes have length 1; else their lengths are learned.
    student_temperature: tau_s.
    teacher_temperature: tau_t, or `step -> value`.
    warmup_teacher_temperature: where it starts.
    warmup_teacher_epochs: how long it takes, an epoch a step.
    centre_ema: decay of the centre; 1 is without centring.
    ema: decay of the teacher: its first value, which goes to 1 by a cosine, or
      `step -> value`.
  """
  temperature = distillation.warm_up(
    warmup_teacher_temperature,
    teacher_temperature,
    warmup_teacher_epochs,
    steps_per_epoch,
    by_epoch=True,
  )
  teacher_encoder = distillation.teacher_of(encoder)
  head = heads.Bottleneck(
    layers=head_layers,
    std=head_std,
    hidden_dim=hidden_dim,
    out_dim=bottleneck_dim,
    norm=head_norm,
    dtype=encoder.dtype,
    axis_name=encoder.axis_name,
  )

  def init(rng, batch):
    ops.require_views(batch, 2, more=True, local=True)
    encoder_rng, head_rng = jax.random.split(rng)
    x = batch["views"][:, 0]
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, encoder_rng, x)
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["head"], stats["head"] = distillation.init_head(
      head,
      head_rng,
      h["pooled"].shape[-1],
      out_dim,
      norm_last_layer=norm_last_layer,
    )
    return params, {
      "batch_stats": stats,
      "teacher": {"params": params, "batch_stats": stats},
      "centre": jnp.zeros(out_dim),
    }

  def project(params, stats, h, *, train):
    return linen.apply(
      head, params["head"]["mlp"], stats["head"], h, train=train
    )

  def forward(params, method_state, batch, *, step, train):
    del step
    stats, teacher = method_state["batch_stats"], method_state["teacher"]
    h, _, encoder_stats = distillation.student_crops(
      encoder, params["encoder"], stats["encoder"], batch, train=train
    )
    student, head_stats = project(params, stats, h, train=train)
    stats = {"encoder": encoder_stats, "head": head_stats}
    # The teacher sees the global crops alone, with batch norm in training mode
    # as the authors': its statistics are its own.
    old = teacher["batch_stats"]
    out, encoder_stats = distillation.apply_views(
      teacher_encoder,
      teacher["params"]["encoder"],
      old["encoder"],
      batch["views"],
      train=train,
      key=batch["key"],
    )
    target, head_stats = project(
      teacher["params"], old, out["pooled"], train=train
    )
    new = {"encoder": encoder_stats, "head": head_stats}
    features = {"student": student, "teacher": jax.lax.stop_gradient(target)}
    return features, method_state | {
      "batch_stats": stats,
      "teacher": teacher | {"batch_stats": new},
    }

  def objective(params, method_state, features, *, step):
    student = distillation.logits(params["head"], features["student"])
    teacher = distillation.logits(
      method_state["teacher"]["params"]["head"], features["teacher"]
    )
    # Algorithm 1: centred, then sharpened.
    centre = method_state["centre"]
    targets = jax.nn.softmax((teacher - centre) / temperature(step))
    loss = losses.dino(student, targets, temperature=student_temperature)
    # Equation 4, after the loss.
    centre = ops.ema(centre, teacher.mean(axis=(0, 1)), centre_ema)
    metrics = distillation.entropies(targets)
    return loss, (method_state | {"centre": centre}, metrics)

  return core.Method(
    init,
    forward,
    objective,
    distillation.embed_by(encoder),
    distillation.after_update_by(distillation.ema_of(ema, total_steps)),
  )
