"""Weights from other libraries, and to them: `ssljax import`, `ssljax export`.

Files are read and written here, names and shapes are `layouts.py`'s. Nothing
here unpickles: torch's own files are read by torch, where it is installed, with
`weights_only`.
"""

import argparse
import json
import os
import zipfile
import zlib

import jax
import numpy as np
from absl import logging

from ssljax import checkpoint
from ssljax import config as config_lib
from ssljax import environment
from ssljax import errors
from ssljax import evaluate
from ssljax import files
from ssljax import layouts
from ssljax import layouts_text
from ssljax import run as run_lib
from ssljax import workdir as workdir_lib
from ssljax.models import vit

_TORCH = (".pth", ".pt", ".bin")


def import_weights(config, workdir: str, *, weights: str, layout: str) -> dict:
  """Makes a workdir whose encoder, at step 0, is that of a file.

  A momentum teacher's encoder becomes the same, and so do the heads of a
  language model where the file has them; all else is fresh, drawn from the
  config's seed. A config.json beside the file must fit as well.

  Args:
    config: of the run, with the encoder that the weights are for.
    workdir: the folder to make; it holds no run yet.
    weights: a .safetensors or .npz file, or torch's .pth, .pt or .bin.
    layout: among `layouts.LAYOUTS`.

  Returns:
    `weights` and `parameters`, how many were taken; `dropped`, the names of
    those that were not; `largest_difference` between the file and the
    checkpoint, read again and written in the layout; of images
    `positions_difference`, between the file's positions and ours where ours are
    fixed; of text `kept`, what of the method the file lacks and is fresh.

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
  if layout == "huggingface":
    _check_config(encoder, weights)
  run = run_lib.build(config)
  state = run_lib.init_state(run)
  params, stats, used, told = _read(spec, run, arrays, state, file=weights)
  for what, names in (
    ("not the run's, dropped", told["dropped"]),
    ("not in the file, fresh", told.get("kept")),
  ):
    if names:
      logging.warning("%s: %s", what, ", ".join(names))
  _save(run, _with(state, params, stats), workdir)
  _, stored = evaluate.restore(workdir)
  return {
    "workdir": workdir,
    "weights": len(used),
    "parameters": sum(x.size for x in used.values()),
    "largest_difference": _difference(used, _write(spec, run, stored)),
    **told,
  }


def export(
  workdir: str,
  out: str,
  *,
  layout: str,
  step: int | None = None,
  network: str | None = None,
) -> dict:
  """Writes a run's encoder for another library.

  Of an encoder of images positions are written also where they are fixed, for
  the size of the run's images. With that of a language model go its heads. The
  layout "huggingface" has a config.json beside a .safetensors file: as
  DIRECTORY/model.safetensors, transformers' `from_pretrained(DIRECTORY)` loads
  it.

  Args:
    workdir: of the run.
    out: the .safetensors or .npz file.
    layout: among `layouts.LAYOUTS`.
    step: of the checkpoint; None is the latest.
    network: "encoder", or "teacher" for a momentum teacher's; None is the one
      that `evaluate` and `embed` look at: of DINO, for one, the teacher.

  Returns:
    `out`, `step`, `network`, `weights` and `parameters`, how many were written,
    and `largest_difference` between the checkpoint and the file, read again.

  Raises:
    UserError: no such run or checkpoint, a file that cannot be written, or an
      encoder that the layout cannot express.
  """
  if not out.endswith((".safetensors", ".npz")):
    raise errors.UserError(f"--out={out}: give a .safetensors or .npz file")
  run, state = evaluate.restore(workdir, step, examples=False)
  encoder = run_lib.make_encoder(run.config)
  spec = layouts.get(layout, encoder)
  network = network or run_lib.evaluated_network(run)
  arrays = _write(spec, run, state, network)
  config = None
  if layout == "huggingface" and out.endswith(".safetensors"):
    params, _ = _networks(state, network)
    if layouts_text.fits(encoder):
      config = layouts_text.config_of(encoder, params)
    else:
      grid = _grid(run, encoder)
      config = layouts.config_of(encoder, params["encoder"], grid)
    _refuse_another_config(config, out)
  write_file(out, arrays)
  if config is not None:
    _write_config(config, out)
  ours = jax.tree.map(np.asarray, _networks(state, network))
  again = _read(spec, run, read_file(out), state, network, file=out)[:2]
  leaves = lambda tree: dict(enumerate(jax.tree.leaves(tree)))
  return {
    "out": out,
    "step": int(state.step),
    "network": network,
    "weights": len(arrays),
    "parameters": sum(x.size for x in arrays.values()),
    "largest_difference": _difference(leaves(ours), leaves(again)),
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
  if not isinstance(arrays, dict):
    raise errors.UserError(
      f"{path} holds a {type(arrays).__name__}, not arrays by name: give a "
      "file of weights"
    )
  for key in top:
    if isinstance(arrays.get(key), dict):
      arrays = arrays[key]
      break
  for name, array in arrays.items():
    if not hasattr(array, "shape") or array.dtype.kind in "OSU":
      raise errors.UserError(
        f"{path} holds {name!r}, which is no array: give another --layout, or "
        "a file of weights alone"
      )
    if array.dtype.type is np.void:  # NumPy's files lose what it was
      raise errors.UserError(
        f"{path} holds {name!r} in {array.dtype}, as .npz has bfloat16: save "
        "it in float32, or as .safetensors"
      )
  return arrays


def _read_npz(path):
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (
    *(TypeError, ValueError, OSError, EOFError),
    *(zipfile.BadZipFile, zlib.error),
  ) as e:
    raise errors.UserError(f"{path} is no .npz of plain arrays: {e}") from e


def _read_safetensors(path):
  safetensors = _safetensors(path)
  try:
    with safetensors.safe_open(path, framework="np") as file:
      return {name: file.get_tensor(name) for name in list(file.keys())}
  except (safetensors.SafetensorError, OSError) as e:
    raise errors.UserError(f"{path} is no .safetensors file: {e}") from e
  except AttributeError as e:  # float8, which NumPy has not
    raise errors.UserError(f"{path} has weights of 8 bits: {e}") from e


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
    return _numpy(tree, torch)
  except Exception as e:  # torch raises of many kinds
    reason = next(iter(str(e).splitlines()), type(e).__name__)
    raise errors.UserError(
      f"{path} cannot be read with weights_only=True ({reason}): save its "
      "weights alone"
    ) from e


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
  npz = path.endswith(".npz")
  if not npz:  # transformers reads no file that does not say so
    data = _safetensors(path).numpy.save(arrays, {"format": "pt"})
  try:
    with files.whole(path, "wb") as f:
      np.savez(f, **arrays) if npz else f.write(data)
  except OSError as e:
    raise errors.UserError(f"cannot write --out={path}: {e.strerror}") from e


def _check_config(encoder, weights):
  """Compares a config.json beside the weights, where there is one."""
  path = _config_beside(weights)
  if not os.path.exists(path):
    return
  found = _read_json(path)
  if layouts_text.fits(encoder):
    layouts_text.check_config(encoder, found, path)
    return
  # Of a ViT's weights no shape tells how many heads there are, nor what lies
  # between them.
  ours_by_name = {
    "num_attention_heads": ("heads", encoder.heads),
    "patch_size": ("patch", encoder.patch),
  }
  kind = found.get("model_type", "vit")
  if kind not in ("vit", "vit_mae", "vit_msn", "deit"):
    raise errors.UserError(
      f"{path} is of model_type {kind!r}, and the encoder a ViT: give other "
      "weights"
    )
  for name, (key, ours) in ours_by_name.items():
    theirs = found.get(name)
    if theirs == [ours, ours]:
      theirs = ours
    if theirs not in (None, ours):
      raise errors.UserError(
        f"{path} has {name}={found[name]}, and the config "
        f"encoder.{key}={ours}: give the same"
      )
  if (act := found.get("hidden_act", "gelu")) != "gelu":
    raise errors.UserError(
      f"{path} has hidden_act={act}, and the layout gelu: give other weights"
    )
  # transformers leaves out what is its default: 1e-6 of vit_msn alone.
  usual = 1e-6 if kind == "vit_msn" else 1e-12
  epsilon = found.get("layer_norm_eps") or usual
  if not isinstance(epsilon, float) or epsilon > 1e-5:
    raise errors.UserError(
      f"{path} has layer_norm_eps={epsilon!r}, and the encoder's norms 1e-6: "
      "give other weights"
    )
  if epsilon != 1e-6:
    logging.warning(
      "%s has layer_norm_eps=%s, and the encoder's norms 1e-6: its outputs are "
      "not to the last digit those of transformers", path, epsilon,
    )  # fmt: skip


def _refuse_another_config(config, out):
  """Raises UserError where the config.json beside `out` is not the same."""
  path = _config_beside(out)
  if os.path.exists(path) and _read_json(path) != config:
    raise errors.UserError(
      f"{path} is another's, and a config.json has to lie beside the weights: "
      "give --out=F in a folder of its own"
    )


def _write_config(config, out):
  path = os.path.abspath(_config_beside(out))
  try:
    files.write(path, json.dumps(config, indent=2))
  except OSError as e:
    raise errors.UserError(f"cannot write {path}: {e.strerror}") from e


def _config_beside(weights):
  return os.path.join(os.path.dirname(weights), "config.json")


def _read_json(path):
  try:
    with open(path) as f:
      return dict(json.load(f))
  except (ValueError, TypeError, OSError) as e:
    raise errors.UserError(
      f"{path}, beside the weights, is no config ({e}): mend or remove it"
    ) from e


def _save(run, state, workdir):
  """Writes what `train` would have at step 0, what makes it a run last."""
  checkpoint.require_no_bracket(workdir)
  try:
    os.makedirs(workdir, exist_ok=True)
    checkpoint.require_room(workdir, state)
    path = os.path.join(workdir, "environment.json")
    files.write(path, json.dumps(environment.describe(), indent=2))
    checkpoints = checkpoint.Checkpoints(os.path.join(workdir, "checkpoints"))
    checkpoints.save(0, state)
    checkpoints.wait()
    checkpoints.close()
    workdir_lib.keep_data(run.source, workdir)
    config_lib.save(run.config, os.path.join(workdir, "config.json"))
  except OSError as e:
    raise errors.UserError(
      f"cannot write to --workdir={workdir} ({e.strerror}): give another"
    ) from e


def _networks(state, network="encoder"):
  """Returns (params, batch_stats) by network, or the teacher's.

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
  return variables["params"], variables.get("batch_stats", {})


def _write(spec, run, state, network="encoder"):
  """{name: array} of a state in a layout."""
  encoder = run_lib.make_encoder(run.config)
  params, stats = _networks(state, network)
  if layouts_text.fits(encoder):
    return layouts_text.write(encoder, params)
  return layouts.write(
    spec,
    encoder,
    params["encoder"],
    stats.get("encoder", {}),
    grid=_grid(run, encoder),
  )


def _read(spec, run, arrays, state, network="encoder", *, file):
  """A layout's arrays in the place of a state's.

  Returns (params, batch_stats, used, told): by network, as `_networks` gives
  them; what was taken; and figures.
  """
  encoder = run_lib.make_encoder(run.config)
  params, stats = _networks(state, network)
  if layouts_text.fits(encoder):
    params, used, dropped, kept = layouts_text.read(
      encoder, arrays, params, file=file
    )
    return params, stats, used, {"dropped": dropped, "kept": kept}
  own, own_stats, used, dropped, positions = layouts.read(
    spec,
    encoder,
    arrays,
    params["encoder"],
    stats.get("encoder", {}),
    file=file,
    grid=_grid(run, encoder),
  )
  params = {**params, "encoder": own}
  if "encoder" in stats:
    stats = {**stats, "encoder": own_stats}
  told = {"dropped": dropped, "positions_difference": positions}
  return params, stats, used, told


def _with(state, params, stats):
  """The state with other networks; a teacher gets the encoder alone."""
  new = {"params": params, "batch_stats": stats}
  method_state = dict(state.method_state)
  if "batch_stats" in method_state:
    method_state["batch_stats"] = stats
  if "teacher" in method_state:
    method_state["teacher"] = {
      name: {**tree, "encoder": new[name]["encoder"]}
      if name in new and "encoder" in tree
      else tree
      for name, tree in method_state["teacher"].items()
    }
  new = state._replace(params=params, method_state=method_state)
  # On the devices where the old ones are, each array apart.
  return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), new, state)


def _grid(run, encoder):
  """(rows, columns) of the patches in the views that evaluation sees.

  Where the encoder has fixed positions of another size, in images of that.
  """
  if not isinstance(encoder, vit.ViT):
    return None
  if encoder.pos == "sincos2d" and encoder.img_size:
    h, w = np.broadcast_to(encoder.img_size, 2).tolist()
    return h // encoder.patch, w // encoder.patch
  view = run.view_for_eval
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
