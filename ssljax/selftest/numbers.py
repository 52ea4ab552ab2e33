"""Numbers that must not depend on devices, and numbers that are none."""

import re

import jax
import numpy as np

from ssljax import errors
from ssljax import evaluate
from ssljax.selftest import trial as trial_lib


def devices(trial, **unused):
  """1, 2, 4 and 8 devices, the state whole or cut: the same losses."""
  counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
  simulated = jax.default_backend() == "cpu"
  if simulated:
    counts = [1, 2, 4, 8]
  if len(counts) < 2:
    raise errors.UserError(
      "there is one device, and nothing to compare it with: run the test with "
      "JAX_PLATFORMS=cpu"
    )
  # data x fsdp: each number of devices, with copies of the state and one cut.
  meshes = [(n, 1) for n in counts]
  meshes += [(1, n) for n in counts[1:]]
  meshes += [(n // 2, 2) for n in counts[-1:] if n > 2]
  losses, norms, batches = {}, {}, {}
  for data, fsdp in meshes:
    name = f"{data}x{fsdp}"
    flags = [f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}"]
    # Nothing is compiled but the step.
    flags += ["--config.steps=5", "--config.monitor.every_steps=0"]
    flags += trial.slow
    trial.run(name, *flags, devices=data * fsdp if simulated else None)
    losses[name], batches[name] = trial.losses(name), trial.batches(name)
    norms[name] = trial.losses(name, "grad_norm")
    trial.say(f"{name}: {list(losses[name].values())}")
  one, *others = losses
  differences = {}
  for name in others:
    off = trial_lib.apart(losses[one], losses[name])
    differences[name] = off
    trial.expect(f"{name} devices: losses within 1e-5", off < 1e-5, off)
    off = trial_lib.apart(norms[one], norms[name])
    trial.expect(f"{name} devices: gradients within 1e-2", off < 1e-2, off)
    same = batches[name] == batches[one]
    trial.expect(f"{name} devices: the same batches", same)
  return {"data_x_fsdp": list(losses), "largest_difference": differences}


def nan(trial, **unused):
  """Features that become NaN in step 20: stop, skip, and look at it again."""
  at = 20
  flags = [f"--config.steps={at + 5}", "--config.checkpoint.every_steps=8"]
  stopped = trial.run("stopped", *flags, poison=at, status=3)
  (line,) = re.findall("^ssljax: .*", stopped.stderr, re.M)
  trial.expect("the step is named", f"step {at}:" in line, line[:60])
  skip = [*flags, "--config.nonfinite=skip"]
  skipped = trial.run("skipped", *skip, poison=at).figures
  trial.expect("one update is left out", skipped["skipped"] == 1)
  _, state = evaluate.restore(trial.workdir("skipped"))
  finite = all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  trial.expect("parameters are finite", finite and int(state.step) == at + 5)
  replays = {}
  for name, step in (("stopped", at), ("stopped", at - 1), ("skipped", at)):
    again = trial.run(name, f"--step={step}", command="replay", poison=at)
    replays[f"{name} {step}"] = again = again.figures
    (digest,) = trial.batches(name)[step]
    trial.expect(
      f"replay of step {step}: the same batch", again["batch_sha256"] == digest
    )
    loss = trial.losses(name).get(step, "nan")
    trial.expect(
      f"replay of step {step}: the same loss", again["loss"] == loss, loss
    )
  return {"replays": {k: v["loss"] for k, v in replays.items()}}
