"""`ssljax plan`: what a config's train step takes on chips that are not here.

The step that trains is compiled ahead of time for a topology, from shapes
alone, so that a run that does not fit is known before a pod is asked for.
"""

import contextlib
import inspect
import math
import re
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax

from ssljax import checkpoint
from ssljax import checks
from ssljax import core
from ssljax import errors
from ssljax import named
from ssljax import run as run_lib
from ssljax import train
from ssljax.models import remat as remat_lib
from ssljax.plan import flops
from ssljax.plan import hardware
from ssljax.plan import hlo
from ssljax.plan import loader
from ssljax.plan import source as source_lib

# Of `jax_optimization_level`; the last leaves it as it is in training.
_EFFORTS = ("O0", "O1", "O2", "O3", "default")


def plan(
  config,
  topologies: Sequence[str],
  *,
  remat: Sequence[str] = (),
  largest: bool = False,
  mfu: float = 0.4,
  effort: str = "O0",
  examples: int | None = None,
  classes: int | None = None,
) -> dict[str, Any]:
  """Plans a run on each topology.

  Args:
    config: as `train` takes it.
    topologies: names, as `hardware.devices` takes them. GPUs that are not here
      have matrix products by cuBLAS and convolutions by cuDNN, without the room
      that cuDNN takes for its work, and cuBLAS beyond 4 MiB.
    remat: names of `models/remat.py` to compile beside the config's own.
    largest: whether to look for the largest batch that fits, which compiles the
      step some three times more.
    mfu: the share of the chips' peak at which model FLOPs are done.
    effort: of XLA's compiler, O0 to O3, or "default", which is training's
      and may take several times as long. O0 is the quickest. Its peak memory is
      some percent more or less than a run's, and it moves 1.7 to 5.5 times as
      much through HBM (README); so that counts for `bound` and `step_s` of TPUs
      with "default" alone. Of GPUs, O0 leaves Triton's softmax out, for which
      the compiler may try tilings for minutes, and HBM always counts: for MAE
      ViT-B, 32 images on h100:2x2, it is .96 of that with "default", and the
      peak .97.
    examples: of the dataset, where they are not known here.
    classes: of its labels, where they are not known here.

  Returns:
    The figures of the run, and by name those of each topology in `topologies`,
    as `ssljax plan --json` prints them.

  Raises:
    UserError: the config is wrong, a topology is not known, or the step fits on
      none of them.
  """
  if not 0 < mfu <= 1 or effort not in _EFFORTS:
    raise errors.UserError(
      f"mfu={mfu} and effort={effort}: give an mfu in (0, 1], and an effort "
      f"among {', '.join(_EFFORTS)}"
    )
  checks.check(config)
  places = {name: hardware.devices(name) for name in topologies}
  encoder = run_lib.make_encoder(config)
  source = source_lib.of(config, encoder, examples, classes)
  for kind in remat:  # before anything is compiled
    remat_lib.wrap(type(encoder), kind)
  runs = {
    name: run_lib.build(config, source=source, devices=devices)
    for name, (devices, _) in places.items()
  }
  run = next(iter(runs.values()))
  step_flops = model_flops(run)
  figures = _of_run(run) | {
    "flops": step_flops,
    "loader_per_s": loader.rate(source, config.batch_size),
    "mfu": mfu,
    "effort": effort,
  }
  with effort_of(effort):
    rows = {
      name: _of_topology(runs[name], chip, figures, remat, largest)
      for name, (_, chip) in places.items()
    }
  if not any(row["fits"] for row in rows.values()):
    raise errors.UserError(
      "; ".join(f"{name}: {_lacks(row)}" for name, row in rows.items())
      + ": take more chips, a smaller config.batch_size, config.accumulate, "
      "config.encoder.remat=full or config.mesh.fsdp"
    )
  return figures | {"topologies": rows}


@contextlib.contextmanager
def effort_of(effort: str):
  """XLA's compiler, told how much to try."""
  name = "jax_optimization_level"
  before = getattr(jax.config, name)
  jax.config.update(name, before if effort == "default" else effort)
  try:
    yield
  finally:
    jax.config.update(name, before)


def _of_topology(run, chip, figures, remat, largest):
  """The figures of one topology, those that were asked for among them."""
  compiled = compile_step(run, chip)
  row = _of_step(run, chip, compiled, figures)
  if remat:
    own = run.config.encoder.get("remat", "none")
    row["remat"] = {
      kind: compiled.peak
      if kind == own
      else compile_step(_with(run, encoder={"remat": kind}), chip).peak
      for kind in remat
    }
  if largest:
    row["largest_batch"] = _largest(run, chip, compiled)
  return row


# Options of methods whose losses go over blocks, as one block has them.
_WHOLE = {"block": 1 << 40, "blocks": 1}


def model_flops(run, forward: bool = False) -> int:
  """Of one step: products and convolutions of the method, all chips together.

  Counted from the step itself: a student's forward and backward pass, a
  teacher's forward pass, each of its crops and visible tokens alone; `forward`
  leaves the backward passes out. What the augmentation does, and what is
  computed again to save memory, does not count.
  """
  options = inspect.signature(
    named.module("ssljax.methods", run.config.method.name).make
  ).parameters
  whole = {k: v for k, v in _WHOLE.items() if k in options}
  plain = {"remat": "none"} if "remat" in run.config.encoder else {}
  run = _with(run, encoder=plain, method=whole)
  batch = run_lib.abstract_batch(run)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  n = run.config.batch_size
  keys = jax.ShapeDtypeStruct((n,), keys.dtype)
  views = jax.eval_shape(run.augment, batch | {"key": keys})
  if forward:
    return flops.count(_forward(run.method), run.abstract_state, views)
  del views["key"]
  step = core.make_train_step(run.method, run.tx)
  return flops.count(step, run.abstract_state, views, _key())


def _forward(method):
  """`(state, views) -> loss`, as a step computes it."""

  def loss(state, views):
    step, params, method_state, _ = state
    features, method_state = method.forward(
      params, method_state, views, step=step, train=True
    )
    return method.objective(params, method_state, features, step=step)[0]

  return loss


class Compiled(NamedTuple):
  """A compiled step: bytes on a chip at its peak, and what it moves.

  Where it does not fit, the compiler says what it needs, and there is no
  program.
  """

  peak: int
  program: hlo.Program | None


def compile_step(run, chip) -> Compiled:
  lowered = train.compile_step(run).lower(
    run.abstract_state, run_lib.abstract_batch(run), _key()
  )
  try:
    compiled = lowered.compile(compiler_options=_options(chip))
  except jax.errors.JaxRuntimeError as e:
    # It says one or the other; the second leaves arguments out.
    used = re.search(
      r"(?:Used |HLO temporaries \()([\d.]+)([KMGT])(?: of|\))", str(e)
    )
    if chip is None or used is None:
      raise
    unit = 2 ** (10 * (1 + "KMGT".index(used[2])))
    return Compiled(int(float(used[1]) * unit), None)
  m = compiled.memory_analysis()
  peak = m.argument_size_in_bytes + m.output_size_in_bytes
  peak += m.temp_size_in_bytes - m.alias_size_in_bytes
  peak = max(peak, m.peak_memory_in_bytes) + m.generated_code_size_in_bytes
  return Compiled(peak, hlo.read(compiled.as_text(), run.mesh.devices.size))


def _options(chip):
  """Of the compiler for GPUs."""
  if chip is None or not chip.gpu:
    return {}
  options = {}
  if not chip.here:
    # Triton's products are chosen by timing them on a GPU.
    options["xla_gpu_enable_triton_gemm"] = False
  if jax.config.jax_optimization_level == "O0":
    # For its softmax some programs are tiled in all ways, which takes minutes.
    options["xla_disable_hlo_passes"] = "triton-softmax-rewriter"
  return options


def _key():
  return jax.eval_shape(lambda: jax.random.key(0))


def _of_run(run):
  """What does not depend on the chips."""
  config, state = run.config, run.abstract_state
  seen = {}

  def objective(params, method_state, features, *, step):
    seen.update(_shapes(features))
    return run.method.objective(params, method_state, features, step=step)

  step = core.make_train_step(
    run.method._replace(objective=objective), run.tx, augment=run.augment
  )
  jax.eval_shape(step, state, run_lib.abstract_batch(run), _key())
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  parts = ("params", "method_state", "opt_state")
  return {
    "method": config.method.name,
    "batch_size": config.batch_size,
    "steps": run.total_steps,
    "refreshes": (
      -(-run.total_steps // run.steps_per_epoch) if run.method.refresh else 0
    ),
    "precision": config.precision,
    "unit": run.source.unit,
    "per_step": config.batch_size * run.source.per_example,
    "parameters": count(state.params),
    "encoder_parameters": count(state.params["encoder"]),
    "state_bytes": {k: checkpoint.size(getattr(state, k)) for k in parts},
    "checkpoint_bytes": checkpoint.size(state),
    "objective_sees": seen,
    "method_state": {
      name: shape
      for name, shape in _shapes(state.method_state).items()
      if not name.startswith(("batch_stats", "teacher"))
    },
  }


def _shapes(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): list(x.shape) for path, x in leaves if x.ndim}


def _of_step(run, chip, compiled, figures):
  """The figures of one topology; `figures` are those of all."""
  chips, step_flops = run.mesh.devices.size, figures["flops"]
  row = {
    "chips": chips,
    "peak_bytes": compiled.peak,
    "memory_bytes": chip and int(chip.hbm),
    "fits": chip is None
    or (compiled.program is not None and compiled.peak <= chip.hbm),
    "state_bytes": _state_bytes(run),
  }
  if compiled.program is None:
    return row
  program = compiled.program
  row["collectives"] = program.collectives
  row["hbm_bytes"] = program.hbm_bytes
  row["wire_bytes"] = program.wire_bytes
  if chip is None:
    return row
  floors = {
    "flops": step_flops / chips / _flops_rate(chip, run.config.precision),
    "hbm": program.hbm_bytes / chip.hbm_rate,
    "interconnect": program.wire_bytes / chip.wire_rate,
  }
  costs = floors | {"flops": floors["flops"] / figures["mfu"]}
  if figures["effort"] != "default" and not chip.gpu:
    del costs["hbm"]
  bound = max(costs, key=costs.get)
  step_s = costs[bound]
  per_step = run.config.batch_size * run.source.per_example
  return row | {
    "floors_s": floors,
    "bound": bound,
    "step_s": step_s,
    "per_s": per_step / step_s,
    "chip_hours": chips * step_s * run.total_steps / 3600,
  }


def _flops_rate(chip, precision):
  # A GPU's float32 products are TF32 by default, half as many.
  return chip.flops / (2 if chip.gpu and precision == "float32" else 1)


def _state_bytes(run):
  """Of the state, on one chip."""
  local = lambda x: math.prod(x.sharding.shard_shape(x.shape))
  state = jax.tree.leaves(run.abstract_state)
  return sum(local(x) * x.dtype.itemsize for x in state)


def changed(config, **sections):
  """A copy of a config with other keys, in sections or at the top."""
  copied = config.copy_and_resolve_references()
  with copied.unlocked():
    for name, value in sections.items():
      if isinstance(value, dict):
        copied[name].update(value)
      else:
        copied[name] = value
  return copied


def _with(run, **changes):
  """The run of another config on the same chips."""
  config, devices = changed(run.config, **changes), list(run.mesh.devices.flat)
  return run_lib.build(config, source=run.source, devices=devices)


def _largest(run, chip, compiled):
  """The largest batch that fits, to an eighth; None where no limit is known.

  The memory is nearly a line in the batch, so that some four programs tell,
  the one that is `compiled` among them. A batch that the method refuses, as a
  queue does that it does not divide, counts as too large.
  """
  if chip is None:
    return None
  unit = run.mesh.devices.size * run.config.accumulate
  # Of so many epochs it may be longer than the run, where batches are smaller.
  no_warmup = {
    key: 0
    for key, value in run.config.schedule.items()
    if key.startswith("warmup_") and value is not None
  }

  def compile_of(n):
    try:
      # The schedule's own limits are not the memory's.
      larger = _with(
        run, batch_size=n * unit, steps=run.total_steps, schedule=no_warmup
      )
      return compile_step(larger, chip)
    except errors.UserError:
      return Compiled(0, None)

  low, high = 0, len(run.source) // unit + 1
  peaks = {0: _state_bytes(run)}
  n = run.config.batch_size // unit
  while True:
    if compiled.program is not None:  # else the peak may be of a part alone
      peaks[n] = compiled.peak
    fits = compiled.program is not None and compiled.peak <= chip.hbm
    low, high = (n, high) if fits else (low, n)
    step = max(1, low // 8)
    if high - low <= step:
      return low * unit
    n = _crossing(peaks, chip.hbm)
    if n is None or n >= high:
      n = (low + high) // 2
    # From the one end or the other of an eighth, one more tells.
    n = max(low + step, min(n - n // 32, high - high // 9))
    n = min(n, high - 1)
    compiled = compile_of(n)


def _crossing(peaks, limit):
  """Where the line through the two peaks that are nearest to it has `limit`."""
  nearest = sorted(peaks, key=lambda n: abs(peaks[n] - limit))[:2]
  if len(nearest) < 2 or peaks[nearest[0]] == peaks[nearest[1]]:
    return None
  n, other = nearest
  slope = (peaks[other] - peaks[n]) / (other - n)
  return int(n + (limit - peaks[n]) / slope)


def _lacks(row):
  need, have = (row[k] / 2**30 for k in ("peak_bytes", "memory_bytes"))
  text = f"a chip needs {need:.2f} GiB and has {have:.2f}"
  for kind, peak in row.get("remat", {}).items():
    text += f", with config.encoder.remat={kind} {peak / 2**30:.2f}"
  if "largest_batch" in row:
    text += f", the largest batch is {row['largest_batch']}"
  return text
