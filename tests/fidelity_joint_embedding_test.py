"""BYOL, SimSiam, Barlow Twins and VICReg against the authors' code.

`tests/fidelity/README.md` says which, and how the numbers were made.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import core
from ssljax import optim
from ssljax import schedules
from ssljax.methods import barlow_twins
from ssljax.methods import byol
from ssljax.methods import simsiam
from ssljax.methods import vicreg
from tests import fidelity_methods_test as shared
from tests import toys

assert_close = shared.assert_close

# Small, as `make_byol.py` and `make_joint_embedding.py` have them.
METHODS = {
  "byol": lambda: byol.make(
    shared.Encoder(), total_steps=5, hidden_dim=10, out_dim=6, ema=0.8
  ),
  "simsiam": lambda: simsiam.make(shared.Encoder(), out_dim=6, predictor_dim=5),
  "barlow_twins": lambda: barlow_twins.make(
    shared.Encoder(), features=(10, 7, 6)
  ),
  "vicreg": lambda: vicreg.make(shared.Encoder(), features=(10, 7, 6)),
}
FEATURES = ("prediction1", "prediction2", "target1", "target2")


def stored(name):
  if name == "byol":
    return shared.stored("byol")
  return shared.stored("joint_embedding")[name]


@pytest.mark.parametrize("name", METHODS)
def test_objectives_are_the_authors(name):
  case = stored(name)["features"]
  names = FEATURES if len(case["z"]) == 4 else ("z1", "z2")
  objective = METHODS[name]().objective

  def loss(z):
    return objective({}, {}, dict(zip(names, z)), step=0)[0]

  value, grad = jax.jit(jax.value_and_grad(loss))(case["z"])
  assert_close(value, case["loss"])
  if name == "byol":  # whose targets are given without gradient
    grad, case["grad"] = grad[:2], case["grad"][:2]
  assert_close(grad, case["grad"])


def torch_mlp(case, prefix, layers):
  """Dense layers and their norms; what norm follows has no bias here."""
  params = {}
  for i, layer in enumerate(layers):
    params[f"dense{i}"] = {"kernel": case[f"{prefix}.{layer}.weight"].T}
    norm = f"{prefix}.{layer + 1}"
    if f"{norm}.weight" in case:
      params[f"bn{i}"] = shared.batch_norm(case, norm)
    elif f"{norm}.running_mean" not in case:
      params[f"dense{i}"] = shared.dense(case, f"{prefix}.{layer}")
  return params


def torch_params(name, case):
  if name != "simsiam":
    return {
      "encoder": {"body": shared.dense(case, "backbone.body")},
      "projector": torch_mlp(case, "projector", (0, 3, 6)),
    }
  return {
    "encoder": {"body": shared.dense(case, "encoder.body")},
    "projector": torch_mlp(case, "encoder.fc", (0, 3, 6)),
    "predictor": torch_mlp(case, "predictor", (0, 3)),
  }


@pytest.mark.parametrize("name", ["simsiam", "barlow_twins", "vicreg"])
def test_methods_train_as_the_authors(name):
  case = stored(name)
  history, state = shared.train(
    METHODS[name](),
    case,
    torch_params(name, case["start"]),
    lambda old: {},
  )
  assert_close(history, case["losses"])
  jax.tree.map(assert_close, state.params, torch_params(name, case["end"]))
  if name == "vicreg":  # whose running means have the bias that norm removes
    return
  running = state.method_state["batch_stats"]["projector"]["bn0"]["mean"]
  norm = "encoder.fc.1" if name == "simsiam" else "projector.1"
  assert_close(running, case["end"][f"{norm}.running_mean"])


def haiku_params(case, heads):
  params = {
    "encoder": {"body": {"kernel": case["body.w"], "bias": case["body.b"]}}
  }
  for head in heads:
    params[head] = {
      "dense0": {"kernel": case[f"{head}.linear.w"]},
      "bn0": {
        "scale": case[f"{head}.batch_norm.scale"],
        "bias": case[f"{head}.batch_norm.offset"],
      },
      "dense1": {"kernel": case[f"{head}.linear_1.w"]},
    }
  return jax.tree.map(jnp.float32, params)


def test_byol_trains_as_the_authors():
  """With their LARS, their warm-up and their target network."""
  case = stored("byol")
  tx = optim.make(
    name="lars",
    learning_rate=schedules.schedule(
      "cosine", base=8.0 * 16 / 256, total_steps=5, warmup_steps=2
    ),
    weight_decay=1e-2,
    decay_exclude=("1d",),
    eeta=0.1,
    rate_first=False,
  )
  online, target = ("projector", "predictor"), ("projector",)
  method = METHODS["byol"]()
  state = toys.init_state(
    method, tx, jax.random.key(0), {"views": case["views"][0]}
  )
  params = haiku_params(case["start"]["online"], online)
  teacher = haiku_params(case["start"]["target"], target)
  old = state.method_state["teacher"]
  same = lambda a, b: jax.tree.structure(a) == jax.tree.structure(b)
  assert same(state.params, params) and same(old["params"], teacher)
  state = state._replace(
    params=params,
    method_state=state.method_state | {"teacher": old | {"params": teacher}},
  )
  step = jax.jit(core.make_train_step(method, tx))
  history = []
  for views in case["views"]:
    state, metrics = step(state, {"views": views}, jax.random.key(0))
    history.append(metrics["loss"])
  assert_close(np.array(history), case["losses"])
  end = case["end"]
  jax.tree.map(assert_close, state.params, haiku_params(end["online"], online))
  jax.tree.map(
    assert_close,
    state.method_state["teacher"]["params"],
    haiku_params(end["target"], target),
  )


def test_lars_and_its_schedule_are_barlow_twins():
  case = shared.stored("joint_embedding")["lars"]
  rate = 20.0 * 512 / 256
  tx = optim.make(
    name="lars",
    learning_rate=schedules.schedule(
      "cosine", base=rate, end=1e-3 * rate, total_steps=14, warmup_steps=10
    ),
    weight_decay=1e-2,
    decay_exclude=("1d",),
    groups=(dict(match="bias$", lr_mult=0.024),),
    rate_first=False,
  )
  history = shared.run_optimizer(tx, case["start"], case["grads"])
  jax.tree.map(assert_close, history, case["history"])
