"""Names and shapes of an encoder's weights, here and in other libraries.

An encoder's variables are first a flat dict in torch's shapes, by the names of
torchvision (ResNets) and timm (ViTs). A layout then renames them, one name to
one or more, and says what else its files may hold. NumPy alone; nothing but the
order of numbers changes. Language models are `layouts_text.py`'s.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ssljax import errors
from ssljax.models import bert
from ssljax.models import gpt
from ssljax.models import resnet
from ssljax.models import vit

# The largest difference between a file's positions and ours where ours are
# fixed; the authors compute theirs in float32.
_SAME_POSITIONS = 1e-5


class Layout(NamedTuple):
  """How a library names weights.

  Attributes:
    encoders: the classes that it is for.
    rename: timm's or torchvision's name of a weight -> its names here; where
      there are several, the weight is their concatenation along axis 0.
    top: keys of a checkpoint under which its weights may lie, the best first.
    prefixes: what may precede a name, as the wrapper's of a model.
    aliases: (pattern, replacement) for names of other versions.
    ignored: pattern of what a file may hold beside the encoder.
    class_token: whether an encoder must have one.
  """

  encoders: tuple[type, ...]
  rename: Callable[[str], tuple[str, ...]] = lambda name: (name,)
  top: tuple[str, ...] = ("model", "state_dict")
  prefixes: tuple[str, ...] = ()
  aliases: tuple[tuple[str, str], ...] = ()
  ignored: str = ""
  class_token: bool = True


def _huggingface(name):
  block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
  if block:
    i, part, leaf = block.groups()
    parts = _HUGGINGFACE_BLOCK[part]
    return tuple(f"encoder.layer.{i}.{part}.{leaf}" for part in parts)
  for ours, theirs in _HUGGINGFACE:
    if name.startswith(ours):
      return (name.replace(ours, theirs),)
  raise ValueError(f"no name for {name}")


_HUGGINGFACE = (
  ("cls_token", "embeddings.cls_token"),
  ("pos_embed", "embeddings.position_embeddings"),
  ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
  ("norm.", "layernorm."),
)
_HUGGINGFACE_BLOCK = {
  "norm1": ("layernorm_before",),
  "attn.qkv": (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
  ),
  "attn.proj": ("attention.output.dense",),
  "norm2": ("layernorm_after",),
  "mlp.fc1": ("intermediate.dense",),
  "mlp.fc2": ("output.dense",),
}
# Files have the names above; in memory models have these since transformers 5.
_TRANSFORMERS_5 = (
  (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
  (r"\.attention\.q_proj\.", ".attention.attention.query."),
  (r"\.attention\.k_proj\.", ".attention.attention.key."),
  (r"\.attention\.v_proj\.", ".attention.attention.value."),
  (r"\.attention\.o_proj\.", ".attention.output.dense."),
  (r"\.mlp\.fc1\.", ".intermediate.dense."),
  (r"\.mlp\.fc2\.", ".output.dense."),
)

LAYOUTS = {
  "torchvision": Layout(
    (resnet.ResNet,), ignored=r"fc\..*|.*\.num_batches_tracked"
  ),
  "timm": Layout(
    (vit.ViT,),
    rename=lambda name: (re.sub(r"\.scale([12])$", r".ls\1.gamma", name),),
    ignored=r"(head|pre_logits)\..*",
    class_token=False,
  ),
  "huggingface": Layout(
    (vit.ViT, bert.Bert, gpt.GPT),
    rename=_huggingface,
    prefixes=("vit.",),
    aliases=_TRANSFORMERS_5,
    ignored=r"(pooler|classifier|decoder)\..*|embeddings\.mask_token",
  ),
  # DINO publishes ResNets as well; the paper evaluates the teacher.
  "dino": Layout(
    (vit.ViT, resnet.ResNet),
    top=("teacher", "student"),
    prefixes=("module.", "backbone."),
    ignored=r"(head|fc)\..*|.*\.num_batches_tracked",
  ),
  "mae": Layout((vit.ViT,), ignored=r"decoder_.*|mask_token|head\..*"),
}


def get(name: str, encoder) -> Layout:
  """The layout of a name.

  Raises:
    UserError: there is none, or none for this encoder.
  """
  if name not in LAYOUTS:
    raise errors.UserError(
      f"unknown layout {name!r}: choose among {', '.join(LAYOUTS)}"
    )
  if not isinstance(encoder, LAYOUTS[name].encoders):
    fit = [k for k, v in LAYOUTS.items() if isinstance(encoder, v.encoders)]
    raise errors.UserError(
      f"layout {name!r} is for no {type(encoder).__name__}: "
      + (f"give --layout={' or '.join(fit)}" if fit else "no layout is")
    )
  have = lambda key: getattr(encoder, key, None)
  for key, lacks in (
    ("pos", have("pos") == "relative"),
    ("embed_norm", have("embed_norm")),
    ("gelu", have("gelu") == "tanh"),
    ("bias", isinstance(encoder, vit.ViT) and not encoder.bias),
    ("norm", isinstance(encoder, resnet.ResNet) and encoder.norm != "batch"),
  ):
    if lacks:
      raise errors.UserError(
        f"no layout has an encoder with encoder.{key}={have(key)!r}"
      )
  if name != "timm" and have("layer_scale") is not None:
    raise errors.UserError(
      f"layout {name!r} has no encoder.layer_scale: give --layout=timm"
    )
  return LAYOUTS[name]


def write(layout: Layout, encoder, params, stats, *, grid) -> dict:
  """Returns the weights as a file of the layout holds them.

  Args:
    layout: as `get` gives it.
    encoder: the module.
    params: its parameters.
    stats: its batch statistics, {} where there are none.
    grid: (rows, columns) of patches for which fixed positions are written.

  Returns:
    {name: float32 array}. The mask token has no name in a layout and is left
    out.

  Raises:
    UserError: the layout cannot express the encoder.
  """
  flat = _flatten(params) | _flatten(stats)
  return _write(layout, encoder, flat, grid)


def _write(layout, encoder, flat, grid):
  written = {}
  for path, leaf in _torch_entries(encoder, flat, grid).items():
    names = layout.rename(_torch_name(path))
    leaf = _to_torch(leaf, path, getattr(encoder, "patch", None))
    written |= zip(names, np.split(leaf, len(names)))
  if layout.class_token and ("cls_token",) not in flat:
    if isinstance(encoder, vit.ViT):
      raise errors.UserError(
        "this layout needs an encoder with a class token: give "
        "--layout=timm, or encoder.class_token=True in the config"
      )
  return written


def config_of(encoder, params, grid) -> dict:
  """Returns what transformers' config.json says of a ViT's weights.

  Args:
    encoder: a ViT.
    params: its parameters.
    grid: (rows, columns) of patches at which positions are written.
  """
  if (table := params.get("pos_embed")) is not None:
    grid = table.shape[:2]
  pixels = params["patch_embed"]["kernel"].shape[0]
  return {
    "architectures": ["ViTModel"],
    "model_type": "vit",
    "hidden_size": encoder.dim,
    "num_hidden_layers": encoder.depth,
    "num_attention_heads": encoder.heads,
    "intermediate_size": int(encoder.dim * encoder.mlp_ratio),
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": [side * encoder.patch for side in grid],
    "patch_size": encoder.patch,
    "num_channels": pixels // encoder.patch**2,
    "qkv_bias": True,
  }


def read(layout: Layout, encoder, arrays, params, stats, *, file, grid):
  """The inverse of `write`, strict.

  Args:
    layout: as `get` gives it.
    encoder: the module.
    arrays: {name: array}, the file's.
    params: the encoder's parameters; shapes matter, and the mask token is kept.
    stats: its batch statistics, {} where there are none.
    file: the file's name, for messages.
    grid: (rows, columns) of the patches in the run's images.

  Returns:
    (params, stats, used, dropped, positions): the pytrees, {name: array} of
    what was taken, the names of what was not, and the largest difference
    between the file's positions and ours where ours are fixed, None elsewhere.

  Raises:
    UserError: a weight is missing, unexpected or of another shape, or the
      file's positions are not ours.
  """
  arrays = plain_names(arrays, file, layout.prefixes, layout.aliases)
  fixed = getattr(encoder, "pos", None) == "sincos2d"
  place = layout.rename("pos_embed")[0]
  if fixed and place in arrays:
    own, grid = grid, _grid(arrays[place], grid)
    if encoder.img_size and grid != own:
      raise _of_another_size(file, grid, encoder)
  params, stats = _flatten(params), _flatten(stats)
  like = params | stats
  # Memory that nobody touches is not taken.
  zeros = {k: np.zeros(leaf.shape, np.float32) for k, leaf in like.items()}
  expected = _write(layout, encoder, zeros, grid)
  dropped = [
    name
    for name in arrays
    if name not in expected and re.fullmatch(layout.ignored, name)
  ]
  used = {k: v for k, v in arrays.items() if k not in dropped}
  if not fixed and place in used and place in expected:
    _require_positions(used[place], expected[place], encoder, file)
  require_same_names(expected, used, file)
  positions = None
  if fixed:
    positions = _compare_positions(used.pop(place), expected[place], file)
  flat = {}
  for path in _torch_entries(encoder, zeros, grid):
    names = layout.rename(_torch_name(path))
    if names[0] in used:  # fixed positions are not
      whole = np.concatenate([used[name] for name in names])
      flat[path] = _from_torch(whole, path)
  if isinstance(encoder, vit.ViT):
    flat = _read_vit(flat, like)
  params, stats = (
    traverse_util.unflatten_dict({path: flat[path] for path in tree})
    for tree in (params, stats)
  )
  return params, stats, used, sorted(dropped), positions


def _require_positions(theirs, ours, encoder, file):
  """Learned ones are of a size of images, which a square of them tells."""
  rows, columns = _grid(theirs, (0, 0))
  same = theirs.shape[2:] == ours.shape[2:]
  # On one grid it is the class token that only one has, which its name tells.
  if same and rows and (rows, columns) != _grid(ours, (0, 0)):
    raise _of_another_size(file, (rows, columns), encoder)


def _of_another_size(file, grid, encoder):
  rows, columns = grid
  return errors.UserError(
    f"{file} has positions of {rows} x {columns} patches: give "
    f"--config.encoder.img_size={rows * encoder.patch}"
  )


def _compare_positions(theirs, ours, file):
  difference = float(np.abs(theirs - ours).max())
  if not difference <= _SAME_POSITIONS:
    raise errors.UserError(
      f"{file}: its positions differ by {difference:.3g} from the fixed ones "
      "of encoder.pos='sincos2d': give encoder.pos='learned' in the config"
    )
  return difference


def _torch_entries(encoder, flat, grid):
  """{path: leaf}, one for each weight that torch has."""
  is_vit = isinstance(encoder, vit.ViT)
  return _write_vit(encoder, flat, grid) if is_vit else flat


def plain_names(arrays, file, prefixes=(), aliases=()):
  """Names without prefixes and of one version; floats are float32."""
  plain = {}
  for name, array in arrays.items():
    while before := [p for p in prefixes if name.startswith(p)]:
      name = name.removeprefix(before[0])
    for pattern, replacement in aliases:
      name = re.sub(pattern, replacement, name)
    if name in plain:
      raise errors.UserError(
        f"{file} holds {name} twice, under two prefixes: keep one of them"
      )
    if jnp.issubdtype(array.dtype, jnp.floating):
      array = np.asarray(array, np.float32)
    plain[name] = array
  return plain


def require_same_names(expected, used, file):
  """Raises UserError where names or shapes of two dicts of arrays differ, or
  what is used is no float or not finite."""
  wrong = {
    "missing": sorted(expected.keys() - used.keys()),
    "unexpected": sorted(used.keys() - expected.keys()),
    "of another shape": [
      f"{name} {list(used[name].shape)} (here {list(expected[name].shape)})"
      for name in sorted(expected.keys() & used.keys())
      if used[name].shape != expected[name].shape
    ],
  }
  told = [
    f"{kind}: {', '.join(names[:3])}"
    + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    for kind, names in wrong.items()
    if names
  ]
  if told:
    raise errors.UserError(
      f"{file} does not fit the encoder; {'; '.join(told)}: give another "
      "--layout, or another encoder in --config"
    )
  for name, array in used.items():
    if array.dtype != np.float32:
      raise errors.UserError(
        f"{file} holds {name} in {array.dtype}, which would need a scale: give "
        "weights in floating point"
      )
    if not np.isfinite(array).all():
      raise errors.UserError(
        f"{file}: not all of {name} is finite: give other weights"
      )


def _grid(positions, ours):
  """(rows, columns) of a file's positions [1 n d]: ours, or a square."""
  n = positions.shape[1] if positions.ndim == 3 else 0
  if ours[0] * ours[1] in (n - 1, n):
    return ours
  for patches in (n - 1, n):
    side = math.isqrt(max(patches, 0))
    if side and side * side == patches:
      return side, side
  return ours


def _flatten(tree):
  """{path: leaf} of nested dicts."""
  return traverse_util.flatten_dict(tree)


_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
_MODULES = {
  "downsample": "downsample.0",
  "downsample_bn": "downsample.1",
  "patch_embed": "patch_embed.proj",
  "qkv": "attn.qkv",
  "proj": "attn.proj",
  "fc1": "mlp.fc1",
  "fc2": "mlp.fc2",
}


def _torch_name(path):
  """("layer1_0", "bn1", "scale") -> "layer1.0.bn1.weight"."""
  *modules, leaf = path
  names = [
    re.sub(r"^(layer\d+)_(\d+)$", r"\1.\2", _MODULES.get(name, name))
    for name in modules
  ]
  names = [re.sub(r"^block(\d+)$", r"blocks.\1", name) for name in names]
  return ".".join([*names, _LEAVES.get(leaf, leaf)])


def _to_torch(leaf, path, patch):
  """[i o] -> [o i], [h w i o] -> [o i h w], [p*p*c d] -> [d c p p]."""
  leaf = np.asarray(leaf, np.float32)
  if path[-1] != "kernel":
    return leaf
  if path[0] == "patch_embed":
    leaf = leaf.reshape(patch, patch, -1, leaf.shape[-1])
  return leaf.transpose((3, 2, 0, 1) if leaf.ndim == 4 else (1, 0))


def _from_torch(array, path):
  if path[-1] != "kernel":
    return array
  if array.ndim == 2:
    return array.T
  array = array.transpose(2, 3, 1, 0)
  return (
    array.reshape(-1, array.shape[-1]) if path[0] == "patch_embed" else array
  )


def _write_vit(encoder, flat, grid):
  """One entry for each of timm's: blocks apart, positions in one table."""
  if ("registers",) in flat:
    raise errors.UserError(
      "no layout has registers: give encoder.registers=0 in the config"
    )
  written = {}
  for path, leaf in flat.items():
    if path[0] == "blocks":  # of encoder.scan, [depth ...]
      for i in range(encoder.depth):
        written[(f"block{i}", *path[1:])] = leaf[i]
    elif len(path) > 1:
      written[path] = leaf
  table = flat.get(("pos_embed",))
  if table is None:
    table = vit.sincos2d(encoder.dim, *grid)
  table = np.reshape(table, (-1, encoder.dim))
  if ("cls_token",) in flat:
    written[("cls_token",)] = np.asarray(flat[("cls_token",)])[None]
    first = flat.get(("cls_pos",), np.zeros((1, encoder.dim), np.float32))
    table = np.concatenate([first, table])
  written[("pos_embed",)] = table[None]
  return written


def _read_vit(flat, like):
  """The inverse of `_write_vit`; the mask token is that of `like`."""
  read = {}
  for path, leaf in like.items():
    if path[0] == "blocks":
      blocks = [flat[(f"block{i}", *path[1:])] for i in range(len(leaf))]
      read[path] = np.stack(blocks)
    elif path == ("cls_pos",):
      read[path] = flat[("pos_embed",)][0, :1]
    elif path == ("pos_embed",):
      patches = flat[path][0, int(("cls_pos",) in like) :]
      read[path] = patches.reshape(leaf.shape)
    elif path == ("cls_token",):
      read[path] = flat[path][0]
    elif path == ("mask_token",):
      read[path] = np.asarray(leaf)
    else:
      read[path] = flat[path]
  return read
