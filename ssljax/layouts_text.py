"""Names and shapes of language models' weights, here and in transformers.

BERT's, RoBERTa's and GPT-2's: the layout "huggingface" of encoders that take
tokens. Unlike those of images, a file's heads are the pre-training's own, and
are taken where the method has them. NumPy alone; nothing but the order of
numbers changes.
"""

import re
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from ssljax import errors
from ssljax import layouts
from ssljax.models import bert
from ssljax.models import gpt


class Family(NamedTuple):
  """How transformers names the weights of a family.

  Attributes:
    types: `model_type` in config.json, the first written.
    choice: how a config asks for the family.
    modules: our module -> theirs, or the several that ours joins along the last
      axis; {} is the block's number. "" is a method's own `bias`.
    conv1d: whether kernels are [in out], as here; torch has [out in].
    aliases: (pattern, replacement) for names without the prefix that a model
      with a head has, and of other versions.
    heads: beginnings of names; a file has all or none of each.
    tied: name of a copy that may be there -> name of the weight.
    ignored: pattern of what else a file may hold.
  """

  types: tuple[str, ...]
  choice: str
  modules: dict[str, tuple[str, ...]]
  conv1d: bool
  aliases: tuple[tuple[str, str], ...]
  heads: tuple[str, ...]
  tied: dict[str, str]
  ignored: str


def _bert(prefix, head, **fields):
  """BERT's family; `head` is ours -> theirs of what is not the encoder."""
  layer = f"{prefix}.encoder.layer.{{}}"
  attention = f"{layer}.attention"
  words, decoder = f"{prefix}.embeddings.word_embeddings", head[""]
  parts = ("query", "key", "value")
  return Family(
    modules={
      "encoder/token_embed": (words,),
      "encoder/pos_embed": (f"{prefix}.embeddings.position_embeddings",),
      "encoder/kind_embed": (f"{prefix}.embeddings.token_type_embeddings",),
      "encoder/norm": (f"{prefix}.embeddings.LayerNorm",),
      "encoder/block/qkv": tuple(f"{attention}.self.{p}" for p in parts),
      "encoder/block/proj": (f"{attention}.output.dense",),
      "encoder/block/norm1": (f"{attention}.output.LayerNorm",),
      "encoder/block/fc1": (f"{layer}.intermediate.dense",),
      "encoder/block/fc2": (f"{layer}.output.dense",),
      "encoder/block/norm2": (f"{layer}.output.LayerNorm",),
    }
    | {ours: (theirs,) for ours, theirs in head.items()},
    conv1d=False,
    tied={
      f"{decoder}.decoder.weight": f"{words}.weight",
      f"{decoder}.decoder.bias": f"{decoder}.bias",
    },
    aliases=(
      (r"^(embeddings|encoder|pooler)\.", rf"{prefix}.\1."),
      # As the TensorFlow checkpoints had them.
      (r"\.LayerNorm\.gamma$", ".LayerNorm.weight"),
      (r"\.LayerNorm\.beta$", ".LayerNorm.bias"),
    ),
    **fields,
  )


_FAMILIES = {
  "bert": _bert(
    "bert",
    {
      "head/dense": "cls.predictions.transform.dense",
      "head/norm": "cls.predictions.transform.LayerNorm",
      "": "cls.predictions",
      "next/pooler": "bert.pooler.dense",
      "next/classifier": "cls.seq_relationship",
    },
    types=("bert",),
    choice="encoder.name='bert'",
    heads=("cls.predictions.", "bert.pooler.", "cls.seq_relationship."),
    ignored=(
      r"cls\.predictions\.(bias|transform\.(dense|LayerNorm)\.(weight|bias))|"
      r"(bert\.pooler\.dense|cls\.seq_relationship)\.(weight|bias)|"
      r"bert\.embeddings\.(position|token_type)_ids|"
      r"(classifier|qa_outputs)\..*"
    ),
  ),
  "roberta": _bert(
    "roberta",
    {
      "head/dense": "lm_head.dense",
      "head/norm": "lm_head.layer_norm",
      "": "lm_head",
    },
    # The same names and the same computation; the vocabularies differ.
    types=("roberta", "xlm-roberta", "camembert"),
    choice="encoder.name='bert', with a variant such as 'roberta-base'",
    heads=("lm_head.",),
    ignored=(
      r"lm_head\.(bias|(dense|layer_norm)\.(weight|bias))|"
      r"roberta\.pooler\.dense\.(weight|bias)|"
      r"roberta\.embeddings\.(position|token_type)_ids|"
      r"(classifier|qa_outputs)\..*"
    ),
  ),
  "gpt2": Family(
    types=("gpt2",),
    choice="encoder.name='gpt'",
    modules={
      "encoder/token_embed": ("transformer.wte",),
      "encoder/pos_embed": ("transformer.wpe",),
      "encoder/norm": ("transformer.ln_f",),
      "encoder/block/norm1": ("transformer.h.{}.ln_1",),
      "encoder/block/qkv": ("transformer.h.{}.attn.c_attn",),
      "encoder/block/proj": ("transformer.h.{}.attn.c_proj",),
      "encoder/block/norm2": ("transformer.h.{}.ln_2",),
      "encoder/block/fc1": ("transformer.h.{}.mlp.c_fc",),
      "encoder/block/fc2": ("transformer.h.{}.mlp.c_proj",),
    },
    conv1d=True,
    aliases=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),
    heads=(),
    tied={"lm_head.weight": "transformer.wte.weight"},
    ignored=(
      r"transformer\.h\.\d+\.attn\.(bias|masked_bias)|"
      r"(score|classifier|qa_outputs)\..*"
    ),
  ),
}


def fits(encoder) -> bool:
  """Whether an encoder's weights are named here and not in `layouts`."""
  return isinstance(encoder, (bert.Bert, gpt.GPT))


def write(encoder, params) -> dict:
  """Returns the weights as a file of transformers holds them.

  Args:
    encoder: the module.
    params: of the method, {"encoder": ...} and its heads.

  Returns:
    {name: float32 array}, with the prefix of a model with a head and without
    copies of tied weights. What transformers' models lack is left out.

  Raises:
    UserError: transformers has no such encoder.
  """
  family, written = _family(encoder), {}
  for path, leaf in _blocks_apart(traverse_util.flatten_dict(params)).items():
    names = _names(family, path)
    if names:
      parts = np.split(np.asarray(leaf, np.float32), len(names), axis=-1)
      turn = path[-1] == "kernel" and not family.conv1d
      written |= {n: part.T if turn else part for n, part in zip(names, parts)}
  return written


def read(encoder, arrays, params, *, file):
  """The inverse of `write`, strict.

  Args:
    encoder: the module.
    arrays: {name: array}, the file's.
    params: of the method; shapes matter, and what the file lacks is kept.
    file: the file's name, for messages.

  Returns:
    (params, used, dropped, kept): the pytree; {name: array} of what was taken;
    the names of what was not; and the paths of what stays, as the heads of a
    file without.

  Raises:
    UserError: a weight is missing, unexpected or of another shape, a decoder is
      not tied, or transformers has no such encoder.
  """
  family = _family(encoder)
  arrays = layouts.plain_names(arrays, file, aliases=family.aliases)
  arrays = _without_copies(family, arrays, file)
  flat = traverse_util.flatten_dict(params)
  # Memory that nobody touches is not taken.
  zeros = {path: np.zeros(x.shape, np.float32) for path, x in flat.items()}
  lacking = tuple(
    head for head in family.heads if not any(n.startswith(head) for n in arrays)
  )
  expected = {
    name: x
    for name, x in write(encoder, traverse_util.unflatten_dict(zeros)).items()
    if not name.startswith(lacking)
  }
  dropped = [
    name
    for name in arrays
    if name not in expected and re.fullmatch(family.ignored, name)
  ]
  used = {name: x for name, x in arrays.items() if name not in dropped}
  layouts.require_same_names(expected, used, file)

  def whole(path):
    turn = path[-1] == "kernel" and not family.conv1d
    parts = [used[name] for name in _names(family, path)]
    return np.concatenate([x.T if turn else x for x in parts], axis=-1)

  found, kept = {}, []
  for path, leaf in flat.items():
    paths = list(_blocks_apart({path: leaf}))
    names = [name for p in paths for name in _names(family, p)]
    if not names or names[0] not in expected:
      found[path] = leaf
      kept.append("/".join(path))
    elif path[:2] == ("encoder", "blocks"):
      found[path] = np.stack([whole(p) for p in paths])
    else:
      found[path] = whole(path)
  return traverse_util.unflatten_dict(found), used, sorted(dropped), kept


def config_of(encoder, params) -> dict:
  """Returns what transformers' config.json says of `write`'s weights."""
  name = _family(encoder).types[0]
  settings = {key: value for key, (value, _) in _settings(encoder).items()}
  masked = {"dense", "norm"} <= params.get("head", {}).keys()
  head = "ForMaskedLM" if masked else "Model"
  if name == "bert" and {"head", "next"} <= params.keys():
    head = "ForPreTraining"
  dropout = ("hidden_dropout_prob", "attention_probs_dropout_prob")
  if name == "gpt2":
    head, dropout = "LMHeadModel", ("attn_pdrop", "embd_pdrop", "resid_pdrop")
    # Which tokens these are is the tokenizer's matter.
    settings |= {"bos_token_id": None, "eos_token_id": None}
  model = {"bert": "Bert", "roberta": "Roberta", "gpt2": "GPT2"}[name]
  return {
    "architectures": [model + head],
    "model_type": name,
    **settings,
    **dict.fromkeys(dropout, encoder.dropout),
    "tie_word_embeddings": True,
  }


def check_config(encoder, config: dict, file: str) -> None:
  """Compares what a config.json says of the computation with the encoder.

  Args:
    encoder: the module.
    config: the file's; keys that it lacks are not compared.
    file: its name, for the message.

  Raises:
    UserError: it is of another family, or something differs.
  """
  types = _family(encoder).types
  kind = config.get("model_type", types[0])
  if kind not in types:
    fit = [f.choice for f in _FAMILIES.values() if kind in f.types]
    raise errors.UserError(
      f"{file} is of model_type {kind!r}, the encoder of {types[0]!r}: give "
      + (f"{fit[0]} in the config" if fit else "other weights")
    )
  dim = config.get("hidden_size", config.get("n_embd", encoder.dim))
  if config.get("n_inner", 0) is None:
    config = config | {"n_inner": 4 * dim}
  told, give, fixed = [], [], []
  for key, (ours, option) in _settings(encoder).items():
    theirs = config.get(key)
    same = _SAME_ACTS.get(theirs, theirs) if isinstance(theirs, str) else theirs
    if same in (None, ours):
      continue
    told.append(f"{key} {theirs!r} (here {ours!r})")
    if option is None or not isinstance(theirs, int | float):
      fixed.append(key)
      continue
    if option == "mlp_ratio":
      theirs = theirs / dim
    elif key == "max_position_embeddings":
      theirs -= encoder.first_position
    if theirs != getattr(encoder, option):
      give.append(f"--config.encoder.{option}={theirs}")
  mends = [f"give {' '.join(give)}"] if give else []
  if fixed:
    mends.append(f"no option changes {', '.join(fixed)}, give other weights")
  if told:
    raise errors.UserError(
      f"{file} does not fit the encoder; {', '.join(told)}: {'; '.join(mends)}"
    )


_SAME_ACTS = {"gelu_pytorch_tanh": "gelu_new"}


def _settings(encoder):
  """What config.json says of the computation: {key: (value, our option)}."""
  width = int(encoder.dim * encoder.mlp_ratio)
  if isinstance(encoder, gpt.GPT):
    return {
      "n_embd": (encoder.dim, "dim"),
      "n_layer": (encoder.depth, "depth"),
      "n_head": (encoder.heads, "heads"),
      "n_inner": (width, "mlp_ratio"),
      "vocab_size": (encoder.vocab, "vocab"),
      "n_positions": (encoder.positions, "positions"),
      "layer_norm_epsilon": (1e-5, None),
      "activation_function": ("gelu_new", None),
      "scale_attn_weights": (True, None),
      "scale_attn_by_inverse_layer_idx": (False, None),
    }
  first = encoder.first_position
  settings = {
    "hidden_size": (encoder.dim, "dim"),
    "num_hidden_layers": (encoder.depth, "depth"),
    "num_attention_heads": (encoder.heads, "heads"),
    "intermediate_size": (width, "mlp_ratio"),
    "vocab_size": (encoder.vocab, "vocab"),
    "type_vocab_size": (encoder.kinds, "kinds"),
    "max_position_embeddings": (first + encoder.positions, "positions"),
    "layer_norm_eps": (encoder.epsilon, "epsilon"),
    "hidden_act": ("gelu", None),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
  }
  # RoBERTa's positions follow the number of its padding.
  return settings | ({"pad_token_id": (first - 1, None)} if first else {})


def _family(encoder):
  if isinstance(encoder, gpt.GPT):
    return _FAMILIES["gpt2"]
  if encoder.first_position not in (0, 2):
    raise errors.UserError(
      f"encoder.first_position={encoder.first_position}: in transformers it is "
      "0 (BERT) or 2 (RoBERTa), give one of them"
    )
  return _FAMILIES["roberta" if encoder.first_position else "bert"]


_LEAVES = dict(kernel="weight", scale="weight", embedding="weight", bias="bias")


def _names(family, path):
  """Theirs of the weight at one of our paths; () where they have none."""
  *modules, leaf = path
  i, module = "", "/".join(modules)
  if block := re.fullmatch(r"encoder/block(\d+)/(\w+)", module):
    i, module = block[1], f"encoder/block/{block[2]}"
  if leaf not in _LEAVES:
    return ()
  return tuple(
    f"{theirs.format(i)}.{_LEAVES[leaf]}"
    for theirs in family.modules.get(module, ())
  )


def _blocks_apart(flat):
  """{path: leaf} with one entry for each block, also with encoder.scan."""
  apart = {}
  for path, leaf in flat.items():
    if path[:2] == ("encoder", "blocks"):  # [depth ...]
      for i in range(len(leaf)):
        apart[("encoder", f"block{i}", *path[2:])] = leaf[i]
    else:
      apart[path] = leaf
  return apart


def _without_copies(family, arrays, file):
  """The arrays without copies of tied weights, which must be the same."""
  arrays = dict(arrays)
  for copy, name in family.tied.items():
    if copy not in arrays:
      continue
    found = arrays.pop(copy)
    if not np.array_equal(found, arrays.setdefault(name, found)):
      raise errors.UserError(
        f"{file}: {copy} is not {name}, and here they are one: give weights "
        "whose decoder is tied"
      )
  return arrays
