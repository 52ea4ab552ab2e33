"""Methods and optimisers against numbers that the authors' code gave.

`tests/fidelity/README.md` says which code, and how the numbers were made.
"""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import core
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax import optim
from ssljax import schedules
from ssljax.methods import mae
from ssljax.methods import moco
from ssljax.methods import mocov3
from ssljax.models import vit
from tests import toys

FOLDER = os.path.join(os.path.dirname(__file__), "fidelity")


def stored(name):
  """The arrays of a fixture, nested by the parts of their names."""
  tree = {}
  with np.load(os.path.join(FOLDER, f"{name}.npz")) as file:
    for path in file.files:
      *folders, leaf = path.split("/")
      node = tree
      for folder in folders:
        node = node.setdefault(folder, {})
      node[leaf] = file[path]
  return tree


def assert_close(got, want, tolerance=1e-5):
  """Relative to the largest absolute value."""
  want = np.asarray(want)
  scale = max(np.abs(want).max(), 1e-12)
  difference = np.abs(np.asarray(got) - want).max() / scale
  assert np.shape(got) == want.shape
  assert difference <= tolerance, difference


@pytest.mark.parametrize("temperature", ["0.1", "0.5"])
def test_ntxent_is_simclrs(temperature):
  case = stored("simclr")["ntxent"]
  z = jnp.asarray(case["z"])
  # The authors add both directions.
  ntxent = lambda z: (
    2 * losses.ntxent(*jnp.split(z, 2), temperature=float(temperature))
  )
  loss, grad = jax.jit(jax.value_and_grad(ntxent))(z)
  assert_close(loss, case[temperature]["loss"])
  assert_close(grad, case[temperature]["grad"])


def run_optimizer(tx, start, grads):
  """Parameters after each step, stacked."""
  params, history = start, []
  state, update = tx.init(params), jax.jit(tx.update)
  for i in range(len(jax.tree.leaves(grads)[0])):
    updates, state = update(
      jax.tree.map(lambda g, i=i: g[i], grads), state, params
    )
    params = jax.tree.map(jnp.add, params, updates)
    history.append(params)
  return jax.tree.map(lambda *x: jnp.stack(x), *history)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_simclrs(nesterov):
  case = stored("simclr")["lars"]
  tx = optim.make(
    name="lars",
    learning_rate=20.0,
    weight_decay=1e-2,
    decay_exclude=("bias",),
    nesterov=nesterov,
  )
  history = run_optimizer(tx, case["start"], case["grads"])
  for name, want in case[f"nesterov={nesterov}"].items():
    assert_close(history[name], want)


@pytest.mark.parametrize("clip", [False, True])
def test_larc_is_apexs(clip):
  case = stored("moco")["larc"]
  tx = optim.make(
    name="larc",
    learning_rate=0.3,
    weight_decay=1e-2,
    trust_coefficient=0.02,
    clip=clip,
  )
  history = run_optimizer(tx, {"w": case["start"]}, {"w": case["grads"]})
  assert_close(history["w"], case[f"clip={clip}"])


def test_adamw_without_bias_correction_and_its_schedule_are_berts():
  case = stored("bert")
  steps, warmup, rate = case["hyper"]
  tx = optim.make(
    name="adamw",
    learning_rate=schedules.schedule(
      "bert", base=rate, total_steps=steps, warmup_steps=warmup
    ),
    weight_decay=0.01,
    decay_exclude=("LayerNorm", "bias"),
    clip_global_norm=1.0,
    eps=1e-6,
    bias_correction=False,
  )
  history = run_optimizer(tx, case["start"], case["grads"])
  jax.tree.map(assert_close, history, case["adam"])


class Encoder(nn.Module):
  """The small network of `make_moco.py`, under the encoder contract."""

  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train, keep=None, key=None):
    h = nn.relu(nn.Dense(8, name="body")(x))
    return {"pooled": h, "tokens": h[:, None]}


def dense(case, name):
  layer = {"kernel": case[f"{name}.weight"].T}
  if f"{name}.bias" in case:
    layer["bias"] = case[f"{name}.bias"]
  return layer


def batch_norm(case, name):
  return {"scale": case[f"{name}.weight"], "bias": case[f"{name}.bias"]}


def moco_params(case, encoder):
  return {
    "encoder": {"body": dense(case, f"{encoder}.body")},
    "projector": {
      "dense0": dense(case, f"{encoder}.fc.0"),
      "dense1": dense(case, f"{encoder}.fc.2"),
    },
  }


def mocov3_params(case, encoder):
  params = {"encoder": {"body": dense(case, f"{encoder}.body")}}
  heads = {"projector": f"{encoder}.fc"}
  if encoder == "base_encoder":
    heads["predictor"] = "predictor"
  for head, name in heads.items():
    params[head] = {
      "dense0": dense(case, f"{name}.0"),
      "bn0": batch_norm(case, f"{name}.1"),
      "dense1": dense(case, f"{name}.3"),
    }
  return params


def train(method, case, params, changed):
  """Losses and the last state of the stored steps, from the stored start."""
  tx = optim.make(
    name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-3
  )
  batch = {"views": case["views"][0]}
  state = toys.init_state(method, tx, jax.random.key(0), batch)
  assert jax.tree.structure(state.params) == jax.tree.structure(params)
  state = core.TrainState(
    state.step,
    jax.tree.map(jnp.asarray, params),
    state.method_state | changed(state.method_state),
    tx.init(params),
  )
  step = jax.jit(core.make_train_step(method, tx))
  history = []
  for views in case["views"]:
    state, metrics = step(state, {"views": views}, jax.random.key(0))
    history.append(metrics["loss"])
  return np.array(history), state


def test_moco_trains_as_the_authors():
  case = stored("moco")["moco"]
  start, end = case["start"], case["end"]
  queue = start["queue"].T
  method = moco.make(
    Encoder(),
    temperature=0.2,
    out_dim=6,
    mlp=True,
    queue_size=len(queue),
    ema=0.9,
  )
  teacher = moco_params(start, "encoder_k")
  history, state = train(
    method,
    case,
    moco_params(start, "encoder_q"),
    lambda old: {
      "queue": jnp.asarray(queue),
      "teacher": old["teacher"] | {"params": teacher},
    },
  )
  assert_close(history, case["losses"])
  want = moco_params(end, "encoder_q")
  jax.tree.map(assert_close, state.params, want)
  assert_close(state.method_state["queue"], end["queue"].T)
  assert state.method_state["place"] == end["queue_ptr"]
  # The authors move the momentum encoder only in the next step.
  moved = ops.ema(moco_params(end, "encoder_k"), want, 0.9)
  jax.tree.map(assert_close, state.method_state["teacher"]["params"], moved)


def test_mocov3_trains_as_the_authors():
  case = stored("moco")["mocov3"]
  start, end = case["start"], case["end"]
  method = mocov3.make(
    Encoder(),
    total_steps=3,
    temperature=0.5,
    out_dim=6,
    hidden_dim=10,
    ema=0.8,
  )
  teacher = mocov3_params(start, "momentum_encoder")
  history, state = train(
    method,
    case,
    mocov3_params(start, "base_encoder"),
    lambda old: {"teacher": old["teacher"] | {"params": teacher}},
  )
  assert_close(history, case["losses"])
  jax.tree.map(assert_close, state.params, mocov3_params(end, "base_encoder"))
  # The schedule has come to 1: the teacher stays where the authors' is.
  jax.tree.map(
    assert_close,
    state.method_state["teacher"]["params"],
    mocov3_params(end, "momentum_encoder"),
  )


def mae_block(case, name):
  return {
    "norm1": batch_norm(case, f"{name}.norm1"),
    "qkv": dense(case, f"{name}.attn.qkv"),
    "proj": dense(case, f"{name}.attn.proj"),
    "norm2": batch_norm(case, f"{name}.norm2"),
    "fc1": dense(case, f"{name}.mlp.fc1"),
    "fc2": dense(case, f"{name}.mlp.fc2"),
  }


def mae_params(case):
  patch = case["patch_embed.proj.weight"]  # [d c p p]
  kernel = patch.transpose(2, 3, 1, 0).reshape(-1, len(patch))
  return {
    "encoder": {
      "patch_embed": {"kernel": kernel, "bias": case["patch_embed.proj.bias"]},
      "cls_token": case["cls_token"][0],
      "block0": mae_block(case, "blocks.0"),
      "block1": mae_block(case, "blocks.1"),
      "norm": batch_norm(case, "norm"),
    },
    "decoder": {
      "embed": dense(case, "decoder_embed"),
      "mask_token": case["mask_token"][0],
      "block0": mae_block(case, "decoder_blocks.0"),
      "norm": batch_norm(case, "decoder_norm"),
      "predict": dense(case, "decoder_pred"),
    },
  }


@pytest.mark.parametrize("norm_pix", [False, True])
def test_mae_is_the_authors_given_its_noise(norm_pix, monkeypatch):
  case = stored("mae")
  params = jax.tree.map(jnp.asarray, mae_params(case["weights"]))
  method = mae.make(
    vit.make(variant="Mu/4", pos="sincos2d"),
    norm_pix=norm_pix,
    decoder_dim=16,
    decoder_depth=1,
    decoder_heads=2,
  )
  views = case["images"].transpose(0, 2, 3, 1)[:, None]
  batch = {"views": views, "key": jax.random.split(jax.random.key(0), 4)}
  fresh, _ = jax.jit(method.init)(jax.random.key(0), batch)
  assert jax.tree.structure(fresh) == jax.tree.structure(params)
  drawn = []

  def masking(key, n, keep):
    with jax.ensure_compile_time_eval():  # to be looked at below
      drawn.append(masks.masking_of_noise(jnp.asarray(case["noise"]), keep))
    return drawn[-1]

  monkeypatch.setattr(masks, "random_masking", masking)

  def loss(params):
    features, state = method.forward(params, {}, batch, step=0, train=True)
    return method.objective(params, state, features, step=0)[0]

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_array_equal(drawn[0][2], case["mask"].astype(bool))
  assert_close(value, case[f"norm_pix={norm_pix}"]["loss"])
  if not norm_pix:
    return
  # A gradient of zeros but for rounding: softmax does not see the keys' bias.
  assert_grads = lambda got, want: assert_close(
    got, want, 1e-5 if np.abs(want).max() > 1e-6 else np.inf
  )
  jax.tree.map(assert_grads, grads, mae_params(case["grads"]))
