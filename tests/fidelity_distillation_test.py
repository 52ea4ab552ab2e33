"""DINO, iBOT and DINOv2 against the authors' code.

`tests/fidelity/README.md` says which, and how the numbers were made.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import core
from ssljax import optim
from ssljax import schedules
from ssljax.methods import dino
from ssljax.methods import dinov2
from ssljax.methods import ibot
from ssljax.models import vit
from tests import fidelity_methods_test as shared
from tests import toys

# Tiny, as `make_distillation.py` has them.
STEPS, LENGTH, K = 6, 2, 12
OPTIONS = dict(
  total_steps=STEPS,
  steps_per_epoch=LENGTH,
  out_dim=K,
  hidden_dim=10,
  bottleneck_dim=6,
  warmup_teacher_epochs=2,
  ema=0.8,
)


def encoder(**options):
  return vit.make(variant="Mu/2", dim=8, **options)


def make_dino():
  return dino.make(
    encoder(), norm_last_layer=False, teacher_temperature=0.07, **OPTIONS
  )


def make_ibot(shared_head):
  return ibot.make(
    encoder(mask_token=True),
    patch_out_dim=K - 3,
    shared_head=shared_head,
    teacher_temperature=0.06,
    patch_temperature=0.07,
    warmup_patch_temperature=0.05,
    **OPTIONS,
  )


def make_dinov2(**options):
  return dinov2.make(
    encoder(mask_token=True, registers=2, layer_scale=0.5),
    patch_out_dim=K - 3,
    patch_bottleneck_dim=5,
    **options,
    **OPTIONS,
  )


METHODS = {
  "dino": make_dino,
  "ibot": lambda: make_ibot(True),
  "ibot_apart": lambda: make_ibot(False),
  "dinov2": make_dinov2,
  "short": lambda: make_dinov2(separate_head=False, centring="mean"),
}


def optimizer(name, algorithm="sgd", **options):
  """Theirs, with their schedules, clipping and frozen prototypes."""
  schedule = lambda base, end: schedules.schedule(
    "cosine", base=base, end=end, total_steps=STEPS
  )
  own = dict(clip_by_param=3.0)
  if name in ("dinov2", "short"):
    own = dict(
      clip_by_module=3.0,
      layer_decay=0.7,
      groups=(dict(match="encoder/patch_embed", lr_mult=0.2),),
    )
  frozen = dict(match="prototypes", steps=LENGTH)
  if name in ("dinov2", "short"):
    frozen["moments"] = True
  return optim.make(
    name=algorithm,
    learning_rate=schedule(0.05, 1e-3),
    weight_decay=schedule(0.04, 0.4),
    decay_exclude=("1d",),
    freeze=(frozen,),
    **own,
    **options,
  )


def block(case, name):
  params = shared.mae_block(case, name)
  for i in (1, 2):
    if f"{name}.ls{i}.gamma" in case:
      params[f"scale{i}"] = case[f"{name}.ls{i}.gamma"]
  return params


def vit_params(case):
  patch = case["backbone.patch_embed.proj.weight"]  # [d c p p]
  positions = case["backbone.pos_embed"][0]
  params = {
    "patch_embed": {
      "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, len(patch)),
      "bias": case["backbone.patch_embed.proj.bias"],
    },
    "cls_token": case["backbone.cls_token"][0],
    "cls_pos": positions[:1],
    "pos_embed": positions[1:].reshape(4, 4, -1),
    "block0": block(case, "backbone.blocks.0"),
    "block1": block(case, "backbone.blocks.1"),
    "norm": shared.batch_norm(case, "backbone.norm"),
  }
  if "backbone.register_tokens" in case:
    params["registers"] = case["backbone.register_tokens"][0]
  for name in ("backbone.masked_embed", "backbone.mask_token"):
    if name in case:
      params["mask_token"] = case[name]
  return params


def prototypes(case, name, learned):
  params = {"direction": case[f"{name}.weight_v"].T}
  if learned:
    params["length"] = case[f"{name}.weight_g"].T
  return params


def head_params(case, name, learned):
  mlp = {
    f"dense{i}": shared.dense(case, f"{name}.mlp.{2 * i}") for i in (0, 1, 2)
  }
  return {
    "mlp": mlp,
    "prototypes": prototypes(case, f"{name}.last_layer", learned),
  }


def torch_params(name, case):
  params = {"encoder": vit_params(case)}
  if name in ("dinov2", "short"):
    params["head"] = head_params(case, "dino_head", True)
    if name == "dinov2":
      params["patch_head"] = head_params(case, "ibot_head", True)
    return params
  params["head"] = head_params(case, "head", name == "dino")
  if name == "ibot_apart":
    params["head"]["patch_prototypes"] = prototypes(
      case, "head.last_layer2", False
    )
  return params


def unpack(values, like):
  """What `pack` wrote, by name."""
  out, place = {}, 0
  for name in sorted(like):
    shape = like[name].shape
    size = int(np.prod(shape))
    out[name] = values[place : place + size].reshape(shape)
    place += size
  assert place == len(values)
  return out


def train(name, stored):
  """The losses and the state after the stored steps."""
  case, method, tx = stored[name], METHODS[name](), optimizer(name)

  def batch(i):
    x = jnp.asarray(stored["views"][i], jnp.float32)
    batch = {"views": x[:, :2], "local_views": x[:, 2:]}
    if name != "dino":
      masks = stored["masks"][i]
      batch["masks"] = jnp.asarray(masks.reshape(*masks.shape[:2], -1))
    return batch

  state = toys.init_state(method, tx, jax.random.key(0), batch(0))
  params = jax.tree.map(jnp.asarray, torch_params(name, case["start"]))
  same = lambda a, b: jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
  assert same(state.params, params)
  teacher = state.method_state["teacher"] | {"params": params}
  state = state._replace(
    params=params,
    method_state=state.method_state | {"teacher": teacher},
  )
  step = jax.jit(core.make_train_step(method, tx))
  history = []
  for i in range(STEPS):
    state, metrics = step(state, batch(i), jax.random.key(0))
    history.append(metrics["loss"])
  return np.array(history), state


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_as_the_authors(name):
  stored = shared.stored("distillation")
  case = stored[name]
  history, state = train(name, stored)
  shared.assert_close(history, case["losses"])
  want = torch_params(name, unpack(case["end"], case["start"]))
  jax.tree.map(shared.assert_close, state.params, want)
  got = dict(state.method_state["teacher"]["params"])
  want = torch_params(name, unpack(case["teacher"], case["start"]))
  if name.startswith("ibot"):  # whose teacher has no mask token
    got["encoder"] = got["encoder"] | {
      "mask_token": want["encoder"]["mask_token"]
    }
  jax.tree.map(shared.assert_close, got, want)
  for centre in ("centre", "patch_centre"):
    if centre in case:
      shared.assert_close(state.method_state[centre], case[centre])


def test_adamw_with_all_its_schedules_is_dinos():
  case = shared.stored("distillation")["dino"]["adamw"]
  tree = lambda part: {
    "mlp": {"kernel": case[part]["mlp.weight"], "bias": case[part]["mlp.bias"]},
    "prototypes": case[part]["last_layer.weight"],
  }
  tx = optimizer("dino", "adamw")
  history = shared.run_optimizer(tx, tree("start"), tree("grads"))
  jax.tree.map(shared.assert_close, history, tree("history"))
