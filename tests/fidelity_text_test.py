"""Language models against transformers', on stored numbers.

Weights are drawn by their names there (`fidelity/drawn.py`), the batch has
padding, segments and a row with nothing hidden; `fidelity/README.md` has the
largest differences seen.
"""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ssljax.methods import bert as bert_method
from ssljax.methods import gpt as gpt_method
from ssljax.models import bert
from ssljax.models import gpt
from tests.fidelity import drawn

FILE = os.path.join(os.path.dirname(__file__), "fidelity", "text.npz")
KEY = jax.random.split(jax.random.key(0), 3)
SMALL = dict(vocab=drawn.VOCAB, positions=16)

# Ours, by pattern: the names of transformers, whose parts are joined.
_BLOCK = r"encoder/block(\d+)/"
_NORM = {"scale": "weight", "bias": "bias"}
_BERT_BLOCK = {
  "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
  "proj": ("attention.output.dense",),
  "norm1": ("attention.output.LayerNorm",),
  "fc1": ("intermediate.dense",),
  "fc2": ("output.dense",),
  "norm2": ("output.LayerNorm",),
}
_GPT_BLOCK = {
  "qkv": ("attn.c_attn",),
  "proj": ("attn.c_proj",),
  "norm1": ("ln_1",),
  "fc1": ("mlp.c_fc",),
  "fc2": ("mlp.c_proj",),
  "norm2": ("ln_2",),
}
_OTHERS = {
  "bert": {
    "encoder/token_embed": "bert.embeddings.word_embeddings",
    "encoder/pos_embed": "bert.embeddings.position_embeddings",
    "encoder/kind_embed": "bert.embeddings.token_type_embeddings",
    "encoder/norm": "bert.embeddings.LayerNorm",
    "head/dense": "cls.predictions.transform.dense",
    "head/norm": "cls.predictions.transform.LayerNorm",
    "bias": "cls.predictions.bias",
    "next/pooler": "bert.pooler.dense",
    "next/classifier": "cls.seq_relationship",
  },
  "roberta": {
    "encoder/token_embed": "roberta.embeddings.word_embeddings",
    "encoder/pos_embed": "roberta.embeddings.position_embeddings",
    "encoder/kind_embed": "roberta.embeddings.token_type_embeddings",
    "encoder/norm": "roberta.embeddings.LayerNorm",
    "head/dense": "lm_head.dense",
    "head/norm": "lm_head.layer_norm",
    "bias": "lm_head.bias",
  },
  "gpt": {
    "encoder/token_embed": "transformer.wte",
    "encoder/pos_embed": "transformer.wpe",
    "encoder/norm": "transformer.ln_f",
  },
}


def names_of(model, path):
  """Transformers' names of the parameter at a path of ours."""
  path = "/".join(path)
  if path == "bias":
    return (_OTHERS[model]["bias"],)
  module, _, leaf = path.rpartition("/")
  leaf = "bias" if leaf == "bias" else "weight"
  if found := re.match(_BLOCK + r"(\w+)$", module):
    i, part = found.groups()
    if model == "gpt":
      return tuple(f"transformer.h.{i}.{n}.{leaf}" for n in _GPT_BLOCK[part])
    return tuple(
      f"{model}.encoder.layer.{i}.{n}.{leaf}" for n in _BERT_BLOCK[part]
    )
  return (f"{_OTHERS[model][module]}.{leaf}",)


def transposed(model, path):
  """Whether torch has it the other way round; GPT-2's Conv1D does not."""
  return model != "gpt" and path[-1] == "kernel"


def draw_params(model, method, batch):
  shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), batch)[0])

  def draw(path, like):
    names, shape = names_of(model, path), like.shape
    if transposed(model, path):
      shape = shape[::-1]
    if len(names) > 1:
      shape = (shape[0] // len(names), *shape[1:])
    x = np.concatenate([drawn.draw(name, shape) for name in names])
    return x.T if transposed(model, path) else x

  flat = traverse_util.flatten_dict(shapes)
  return traverse_util.unflatten_dict({k: draw(k, v) for k, v in flat.items()})


def by_their_names(model, grads):
  found = {}
  for path, x in traverse_util.flatten_dict(grads).items():
    x = np.asarray(x.T if transposed(model, path) else x)
    names = names_of(model, path)
    found |= zip(names, np.split(x, len(names)))
  return found


def make(model):
  if model == "gpt":
    return gpt_method.make(gpt.make(variant="Mu", **SMALL))
  variant = {"bert": "Mu", "roberta": "roberta-Mu"}[model]
  encoder = bert.make(variant=variant, **SMALL)
  # Blocks of four, so that the nine places are padded and cut.
  return bert_method.make(encoder, next_sentence=model == "bert", block=4)


@pytest.mark.parametrize("model", ["bert", "roberta", "gpt"])
def test_loss_and_gradients_are_transformers(model):
  method, batch = make(model), drawn.text_batch()
  if model != "bert":
    del batch["kinds"], batch["next"]
  params = draw_params(model, method, batch)

  def loss_fn(params):
    features, _ = method.forward(params, {}, batch, step=0, train=False)
    loss, _ = method.objective(params, {}, features, step=0)
    return loss

  loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params)
  found = by_their_names(model, grads)
  with np.load(FILE) as arrays:
    expected = {
      k.removeprefix(f"{model}/"): arrays[k]
      for k in arrays.files
      if k.startswith(f"{model}/")
    }
  seen = {"loss": abs(float(loss) / float(expected["loss"]) - 1)}
  for key, x in expected.items():
    if key.startswith("grad/"):
      mine = found[key.removeprefix("grad/")]
      seen[key] = float(np.abs(mine - x).max() / np.abs(x).max())
  print({k: f"{v:.1e}" for k, v in seen.items()})
  assert len(seen) > 7
  assert all(v <= 1e-5 for v in seen.values()), seen  # NaN is no maximum


@pytest.mark.parametrize("model", ["bert", "roberta", "gpt"])
def test_logits_are_transformers(model):
  method, batch = make(model), drawn.text_batch()
  if model != "bert":
    del batch["kinds"], batch["next"]
  params = draw_params(model, method, batch)
  hidden = jax.jit(method.embed)(params, {}, batch)["tokens"]
  logits = hidden
  if model != "gpt":
    head = bert.Head(epsilon=1e-12 if model == "bert" else 1e-5, dtype="f")
    logits = head.apply({"params": params["head"]}, hidden)
  logits = logits @ params["encoder"]["token_embed"]["embedding"].T
  logits += params.get("bias", 0)
  logits *= batch["mask"][..., None]
  with np.load(FILE) as arrays:
    expected = arrays[f"{model}/logits"]
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f"{model} logits {difference:.1e}")
    assert difference <= 1e-5
    if model == "bert":
      classify = bert.NextSentence(dtype=jnp.float32)
      found = classify.apply({"params": params["next"]}, hidden[:, 0])
      np.testing.assert_allclose(found, arrays["bert/next"], rtol=1e-5)


@pytest.mark.parametrize(
  "make_encoder, variant, count",
  [
    # BertModel, RobertaModel without their poolers; GPT2Model.
    (bert.make, "base", 109_482_240 - 590_592),
    (bert.make, "large", 335_141_888 - 1_049_600),
    (bert.make, "roberta-base", 124_645_632 - 590_592),
    (gpt.make, "124M", 124_439_808),
    (gpt.make, "355M", 354_823_168),
  ],
)
def test_parameter_counts_are_published(make_encoder, variant, count):
  encoder = make_encoder(variant=variant)
  tokens = jnp.zeros((1, 8), jnp.int32)
  shapes = jax.eval_shape(
    lambda: encoder.init(jax.random.key(0), tokens, train=False)
  )
  assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == count
