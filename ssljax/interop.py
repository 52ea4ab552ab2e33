"""Weights from other libraries, and to them: `ssljax import`, `ssljax export`.

Files are read and written here, names and shapes are `layouts.py`'s. Nothing
here unpickles: torch's own files are read by torch, where it is installed, with
`weights_only`.
"""

import argparse
import json
import os
import zipfile

import jax
import numpy as np
from absl import logging

from ssljax import checkpoint
from ssljax import config as config_lib
from ssljax import errors
from ssljax import evaluate
from ssljax import layouts
from ssljax import run as run_lib
from ssljax import train
from ssljax.models import vit

_TORCH = (".pth", ".pt", ".bin")


def import_weights(config, workdir: str, *, weights: str, layout: str) -> dict:
  """Makes a workdir whose encoder, at step 0, is that of a file.

  A momentum teacher's encoder becomes the same; all else is fresh, drawn from
  the config's seed.

  Args:
    config: of the run, with the encoder that the weights are for.
    workdir: the folder to make; it holds no run yet.
    weights: a .safetensors or .npz file, or torch's .pth, .pt or .bin.
    layout: among `layouts.LAYOUTS`.

  Returns:
    `weights` and `parameters`, how many were taken; `dropped`, the names of
    those that were not; `largest_difference` between the file and the
    checkpoint, read again and written in the layout; `positions_difference`,
    between the file's positions and ours where ours are fixed.

  Raises:
    UserError: a file that cannot be read or does not fit, or a workdir in use.
  """
  for name in ("config.json", "checkpoints"):
    if os.path.exists(os.path.join(workdir, name)):
      raise errors.UserError(
        f"{workdir} holds a run already: give another --workdir"
      )
  encoder = run_lib.make_encoder(config)
  spec = layouts.get(layout, encoder)
  arrays = read_file(weights, top=spec.top)
  run = run_lib.build(config)
  state = run_lib.init_state(run)
  params, stats, used, dropped, positions = layouts.read(
    spec,
    encoder,
    arrays,
    *_encoder_of(state),
    file=weights,
    grid=_grid(run, encoder),
  )
  if dropped:
    logging.warning("not the encoder's, dropped: %s", ", ".join(dropped))
  _save(run, _with_encoder(state, params, stats), workdir)
  _, stored = evaluate.restore(workdir)
  written = layouts.write(
    spec, encoder, *_encoder_of(stored), grid=_grid(run, encoder)
  )
  return {
    "workdir": workdir,
    "weights": len(used),
    "parameters": sum(x.size for x in used.values()),
    "dropped": dropped,
    "largest_difference": _difference(used, written),
    "positions_difference": positions,
  }


def export(
  workdir: str,
  out: str,
  *,
  layout: str,
  step: int | None = None,
  network: str = "encoder",
) -> dict:
  """Writes a run's encoder for another library.

  Positions are written also where they are fixed, for the size of the run's
  images.

  Args:
    workdir: of the run.
    out: the .safetensors or .npz file.
    layout: among `layouts.LAYOUTS`.
    step: of the checkpoint; None is the latest.
    network: "encoder", or "teacher" for a momentum teacher's.

  Returns:
    `out`, `step`, `weights` and `parameters`, how many were written, and
    `largest_difference` between the checkpoint and the file, read again.

  Raises:
    UserError: no such run or checkpoint, a file that cannot be written, or an
      encoder that the layout cannot express.
  """
  if not out.endswith((".safetensors", ".npz")):
    raise errors.UserError(f"--out={out}: give a .safetensors or .npz file")
  run, state = evaluate.restore(workdir, step)
  encoder = run_lib.make_encoder(run.config)
  spec = layouts.get(layout, encoder)
  grid = _grid(run, encoder)
  ours = jax.tree.map(np.asarray, _encoder_of(state, network))
  arrays = layouts.write(spec, encoder, *ours, grid=grid)
  write_file(out, arrays)
  params, stats, *_ = layouts.read(
    spec, encoder, read_file(out), *ours, file=out, grid=grid
  )
  leaves = lambda tree: dict(enumerate(jax.tree.leaves(tree)))
  return {
    "out": out,
    "step": int(state.step),
    "weights": len(arrays),
    "parameters": sum(x.size for x in arrays.values()),
    "largest_difference": _difference(leaves(ours), leaves((params, stats))),
  }


def read_file(path: str, *, top: tuple[str, ...] = ()) -> dict:
  """Reads the arrays of a file, {name: array}.

  Args:
    path: of a .safetensors, .npz, .pth, .pt or .bin file.
    top: keys under which torch's files may hold the weights, the best first.

  Raises:
    UserError: no such file, not such a file, or a package is missing.
  """
  readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
  readers |= {suffix: _read_torch for suffix in _TORCH}
  suffix = os.path.splitext(path)[1]
  if suffix not in readers:
    raise errors.UserError(f"{path}: give a file of {', '.join(readers)}")
  if not os.path.isfile(path):
    raise errors.UserError(f"no file {path}: give one that is there")
  arrays = readers[suffix](path)
  for key in top:
    if isinstance(arrays.get(key), dict):
      arrays = arrays[key]
      break
  for name, array in arrays.items():
    if not hasattr(array, "shape"):
      raise errors.UserError(
        f"{path} holds {name!r}, which is no array: give another --layout, or "
        "a file of weights alone"
      )
  return arrays


def _read_npz(path):
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
    raise errors.UserError(f"{path} is no .npz of plain arrays: {e}") from e


def _read_safetensors(path):
  safetensors = _safetensors(path)
  try:
    with safetensors.safe_open(path, framework="np") as file:
      return {name: file.get_tensor(name) for name in list(file.keys())}
  except (safetensors.SafetensorError, OSError) as e:
    raise errors.UserError(f"{path} is no .safetensors file: {e}") from e


def _safetensors(path):
  try:
    import safetensors
    import safetensors.numpy
  except ImportError as e:
    raise errors.UserError(
      f"{path} needs safetensors, the extra [interop]: pip install "
      "'ssljax[interop]'"
    ) from e
  return safetensors


def _read_torch(path):
  try:
    import torch
  except ImportError as e:
    raise errors.UserError(
      f"{path} is torch's and torch is not installed: install it, or save the "
      "weights as .safetensors where it is"
    ) from e
  try:
    # The authors' checkpoints hold their flags beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
      tree = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as e:  # torch raises of many kinds
    reason = str(e).splitlines()[0]
    raise errors.UserError(
      f"{path} cannot be read with weights_only=True ({reason}): save its "
      "weights alone"
    ) from e
  return _numpy(tree, torch)


def _numpy(tree, torch):
  if isinstance(tree, dict):
    return {key: _numpy(value, torch) for key, value in tree.items()}
  if isinstance(tree, torch.Tensor):
    tree = tree.detach()
    return (tree.float() if tree.is_floating_point() else tree).numpy()
  return tree


def write_file(path: str, arrays: dict) -> None:
  """Writes {name: array} to a .safetensors or .npz file, whole or not at all.

  Raises:
    UserError: it cannot be written, or safetensors is missing.
  """
  arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
  beside = f"{path}.part"
  try:
    if path.endswith(".npz"):
      with open(beside, "wb") as f:
        np.savez(f, **arrays)
    else:
      # transformers reads no file that does not say so.
      data = _safetensors(path).numpy.save(arrays, {"format": "pt"})
      with open(beside, "wb") as f:
        f.write(data)
    os.replace(beside, path)
  except OSError as e:
    raise errors.UserError(f"cannot write --out={path}: {e.strerror}") from e


def _save(run, state, workdir):
  """Writes what `train` would have at step 0, what makes it a run last."""
  try:
    os.makedirs(workdir, exist_ok=True)
    checkpoint.require_room(workdir, state)
    with open(os.path.join(workdir, "environment.json"), "w") as f:
      json.dump(train.environment(), f, indent=2)
    checkpoints = checkpoint.Checkpoints(os.path.join(workdir, "checkpoints"))
    checkpoints.save(0, state)
    checkpoints.wait()
    checkpoints.close()
    config_lib.save(run.config, os.path.join(workdir, "config.json"))
  except OSError as e:
    raise errors.UserError(
      f"cannot write to --workdir={workdir} ({e.strerror}): give another"
    ) from e


def _encoder_of(state, network="encoder"):
  """Returns (params, batch_stats) of the encoder, or of its teacher's.

  Raises:
    UserError: no such network.
  """
  if network not in ("encoder", "teacher"):
    raise errors.UserError(f"--network={network}: give encoder or teacher")
  variables = {"params": state.params, **state.method_state}
  if network == "teacher":
    variables = variables.get("teacher", {})
  if "encoder" not in variables.get("params", {}):
    raise errors.UserError("this method has no teacher: give --network=encoder")
  return (
    variables["params"]["encoder"],
    variables.get("batch_stats", {}).get("encoder", {}),
  )


def _with_encoder(state, params, stats):
  """The state with another encoder, its momentum teacher's included."""

  def replace(variables):
    new = {"params": params, "batch_stats": stats}
    return {
      name: {**tree, "encoder": new[name]}
      if name in new and "encoder" in tree
      else tree
      for name, tree in variables.items()
    }

  changed = replace({"params": state.params, **state.method_state})
  if "teacher" in changed:
    changed["teacher"] = replace(changed["teacher"])
  new = state._replace(params=changed.pop("params"), method_state=changed)
  # On the devices where the old ones are, each array apart.
  return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), new, state)


def _grid(run, encoder):
  """(rows, columns) of the patches in the views that evaluation sees."""
  if not isinstance(encoder, vit.ViT):
    return None
  _, view = run_lib.make_augments(run.config, run.source.shape)
  batch = {
    "image": jax.ShapeDtypeStruct((1, *run.source.shape), np.uint8),
    "key": jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
  }
  h, w = jax.eval_shape(view, batch)["views"].shape[2:4]
  return h // encoder.patch, w // encoder.patch


def _difference(a, b):
  """The largest of all arrays of `a` to those of the same names in `b`."""
  gaps = [np.abs(np.asarray(a[k]) - np.asarray(b[k])).max() for k in a]
  return float(np.max(gaps))
