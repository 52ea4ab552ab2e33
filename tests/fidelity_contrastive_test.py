"""NNCLR, MoCo v2+, DCL, W-MSE, LeJEPA, supervised learning, SupCon and RotNet
against the authors' code.

`tests/fidelity/README.md` says which, and how the numbers were made.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import core
from ssljax import losses
from ssljax import ops
from ssljax import optim
from ssljax.methods import dcl
from ssljax.methods import lejepa
from ssljax.methods import mocov2plus
from ssljax.methods import nnclr
from ssljax.methods import rotation
from ssljax.methods import supcon
from ssljax.methods import supervised
from ssljax.methods import wmse
from tests import fidelity_methods_test as shared
from tests import toys

assert_close = shared.assert_close


class Encoder(nn.Module):
  """The layer of `make_contrastive.py`, under the encoder contract."""

  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train, keep=None, key=None):
    h = nn.relu(nn.Dense(8, name="body")(x.reshape(len(x), -1)))
    return {"pooled": h, "tokens": h[:, None]}


# Small, as the script has them.
METHODS = {
  "nnclr": lambda e: nnclr.make(
    e,
    temperature=0.2,
    queue_size=32,
    hidden_dim=10,
    out_dim=6,
    predictor_dim=9,
  ),
  "mocov2plus": lambda e: mocov2plus.make(
    e,
    total_steps=3,
    hidden_dim=10,
    out_dim=6,
    queue_size=32,
    ema=0.8,
    ema_end=0.95,
  ),
  "dcl": lambda e: dcl.make(e, temperature=0.1, features=(10, 6)),
  "dclw": lambda e: dcl.make(e, temperature=0.1, sigma=0.5, features=(10, 6)),
  "wmse2": lambda e: wmse.make(
    e, hidden_dim=10, out_dim=4, whitening_size=16, iterations=2
  ),
  "lejepa": lambda e: lejepa.make(
    e, weight=0.1, slices=20, features=(10, 9, 6)
  ),
  "supcon": lambda e: supcon.make(e, temperature=0.1, out_dim=6),
  "supervised": lambda e: supervised.make(e, num_classes=5),
  "rotation": rotation.make,
}
METHODS["wmse3"] = METHODS["wmse2"]
# The layers of each part that is not the encoder: where torch has them.
PARTS = {
  "nnclr": {"projector": (0, 3, 6), "predictor": (0, 3)},
  "dcl": {"projector": (0, 3)},
  "dclw": {"projector": (0, 3)},
  "wmse2": {"projector": (0, 3)},
  "wmse3": {"projector": (0, 3)},
  "lejepa": {"projector": (0, 3, 6)},
  "supcon": {"projector": (0, 2)},
  "mocov2plus": {"projector": (0, 2)},
}


def stored(name):
  return shared.stored("contrastive")[name]


def torch_params(name, case):
  """The parameters under our names; what norm follows has no bias."""
  params = {"encoder": {"body": shared.dense(case, "encoder.body")}}
  if name not in PARTS:
    return params | {"classifier": {"dense0": shared.dense(case, "projector")}}
  for part, layers in PARTS[name].items():
    params[part] = {}
    for i, layer in enumerate(layers):
      dense = shared.dense(case, f"{part}.{layer}")
      norm = f"{part}.{layer + 1}"
      if f"{norm}.weight" in case:
        del dense["bias"]
        params[part][f"bn{i}"] = shared.batch_norm(case, norm)
      params[part][f"dense{i}"] = dense
  # What a norm or whitening takes away again.
  if name == "nnclr":
    del params["projector"]["bn2"]["bias"]
  if name.startswith("wmse"):
    del params["projector"]["dense1"]["bias"]
  return params


def step_as_stored(name, case, method, tx, monkeypatch):
  """A step that is also given its number: it draws what the reference drew."""
  waiting, take = [], lambda *_: waiting.pop(0)
  drawn = np.zeros((3, 0))
  if name == "lejepa":
    monkeypatch.setattr(lejepa, "directions", take)
    drawn = np.float32(case["directions"])[:, None]
  if name.startswith("wmse"):
    monkeypatch.setattr(jnp, "argsort", take)
    drawn = case["permutations"]
  step = core.make_train_step(method, tx)

  @jax.jit
  def call(state, batch, drawn):
    waiting.extend(drawn)  # in the order in which the step asks for it
    out = step(state, batch, jax.random.key(0))
    assert not waiting
    return out

  return lambda state, batch, i: call(state, batch, drawn[i])


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_as_the_authors(name, monkeypatch):
  case = stored(name)
  method = METHODS[name](Encoder())
  if name.startswith("wmse"):
    options = dict(name="adam", learning_rate=3e-3, eps=1e-6)
  else:
    options = dict(name="sgd", learning_rate=0.1, momentum=0.9)
  tx = optim.make(weight_decay=1e-3, **options)
  batches = [{"views": views} for views in case["views"]]
  if "labels" in case:
    for batch, label in zip(batches, case["labels"]):
      batch["label"] = label.astype(np.int32)
  state = toys.init_state(method, tx, jax.random.key(0), batches[0])
  params = jax.tree.map(jnp.asarray, torch_params(name, case["start"]))
  assert jax.tree.structure(state.params) == jax.tree.structure(params)
  method_state = state.method_state
  if name == "nnclr":
    method_state |= {"queue": jnp.asarray(case["queue_start"])}
  if name == "mocov2plus":
    teacher = method_state["teacher"] | {"params": params}
    queues = jnp.asarray(case["queue_start"].swapaxes(1, 2))
    method_state |= {"queues": queues, "teacher": teacher}
  state = core.TrainState(state.step, params, method_state, tx.init(params))
  step = step_as_stored(name, case, method, tx, monkeypatch)
  history = []
  for i, batch in enumerate(batches):
    state, metrics = step(state, batch, i)
    history.append(metrics["loss"])
  assert_close(np.array(history), case["losses"])
  jax.tree.map(assert_close, state.params, torch_params(name, case["end"]))
  if name == "nnclr":
    assert_close(state.method_state["queue"], case["queue_end"])
    assert state.method_state["place"] == 16
  if name == "mocov2plus":
    assert_close(state.method_state["queues"], case["queue_end"].swapaxes(1, 2))
    teacher = state.method_state["teacher"]["params"]
    jax.tree.map(assert_close, teacher, torch_params(name, case["teacher"]))


def both_ways(z, **options):
  z1, z2 = z[:, 0], z[:, 1]
  return losses.dcl(z1, z2, **options) + losses.dcl(z2, z1, **options)


def whitened_distance(z):
  one, other = (ops.whiten(z[:, i], eps=0.1) for i in range(2))
  return jnp.mean(2 - 2 * losses.cosine(one, other))


LOSSES = {
  "dcl": lambda z, case: both_ways(z, temperature=0.1),
  "dclw": lambda z, case: both_ways(z, temperature=0.1, sigma=0.5),
  "wmse": lambda z, case: whitened_distance(z),
  "supcon": lambda z, case: losses.supcon(
    z, jnp.asarray(case["labels"]), temperature=0.1
  ),
  "lejepa": lambda z, case: losses.sigreg(
    z[:, 0], jnp.float32(case["directions"])
  ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_the_authors(name):
  case = stored(name)["features"]
  loss = lambda z: LOSSES[name](z, case)
  value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(case["z"]))
  assert_close(value, case["loss"])
  assert_close(grad, case["grad"])
