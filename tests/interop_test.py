"""Weights in and out: files, and the two commands."""

import argparse
import contextlib
import functools
import io
import json
import os
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import cli
from ssljax import config as config_lib
from ssljax import errors
from ssljax import evaluate
from ssljax import interop
from ssljax import layouts
from ssljax import layouts_text
from ssljax import run as run_lib
from ssljax import workdir as workdir_lib
from ssljax.methods import bert as bert_method
from ssljax.models import bert
from ssljax.models import vit

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VIT = f"--config={ROOT}/configs/simclr_vit_fashion_mnist.py:quick"
RESNET = f"--config={ROOT}/configs/simclr_resnet18_fashion_mnist.py:quick"


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files(tmp_path, suffix):
  path = str(tmp_path / f"f{suffix}")
  # Not contiguous, as a transposed kernel is.
  arrays = {"a.b": np.arange(6, dtype=np.float32).reshape(2, 3).T}
  interop.write_file(path, arrays)
  found = interop.read_file(path)
  np.testing.assert_array_equal(found["a.b"], arrays["a.b"])
  assert os.listdir(tmp_path) == [f"f{suffix}"]
  (tmp_path / f"f{suffix}").write_bytes(b"no such thing")
  with pytest.raises(errors.UserError, match=f"is no {suffix}"):
    interop.read_file(path)
  if suffix == ".npz":
    with open(path, "wb") as f:
      np.save(f, np.zeros(3))
    with pytest.raises(errors.UserError, match="is no .npz"):
      interop.read_file(path)
  with pytest.raises(errors.UserError, match="cannot write --out="):
    interop.write_file(str(tmp_path / "none" / f"f{suffix}"), arrays)


def test_bfloat16_is_read(tmp_path):
  header = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
  header = json.dumps(header).encode()
  values = np.asarray(jnp.asarray([1.0, -2.5, 0.125], jnp.bfloat16))
  path = tmp_path / "half.safetensors"
  path.write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
  found = np.asarray(interop.read_file(str(path))["x"], np.float32)
  np.testing.assert_array_equal(found, [1.0, -2.5, 0.125])


def test_bfloat16_that_numpy_lost_is_told(tmp_path):
  path = str(tmp_path / "half.npz")
  np.savez(path, x=np.asarray(jnp.ones(3, jnp.bfloat16)))
  with pytest.raises(errors.UserError, match="as .npz has bfloat16: save it"):
    interop.read_file(path)


def test_nothing_is_unpickled(tmp_path):
  marker = tmp_path / "ran"

  class Evil:
    def __reduce__(self):
      return os.mkdir, (str(marker),)

  path = str(tmp_path / "evil.npz")
  np.savez(path, x=np.array([Evil()], object))
  with pytest.raises(errors.UserError, match="plain arrays"):
    interop.read_file(path)
  assert not marker.exists()


def test_missing_packages_and_files(tmp_path, monkeypatch):
  path = tmp_path / "f.safetensors"
  with pytest.raises(errors.UserError, match="no file"):
    interop.read_file(str(path))
  path.write_bytes(b"")
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(errors.UserError, match=r"the extra \[interop\]"):
      interop.read_file(str(path))
    with pytest.raises(errors.UserError, match=r"pip install 'ssljax\[interop"):
      interop.write_file(str(path), {})
  path = tmp_path / "f.pth"
  path.write_bytes(b"")
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(errors.UserError, match="torch is not installed"):
    interop.read_file(str(path))
  with pytest.raises(errors.UserError, match="give a file of .safetensors"):
    interop.read_file(str(tmp_path / "f.h5"))


def test_torchs_own_files(tmp_path):
  torch = pytest.importorskip("torch")
  path = str(tmp_path / "f.pth")
  x = torch.arange(3, dtype=torch.bfloat16)
  args = argparse.Namespace(lr=0.1)  # as the authors' checkpoints have it
  torch.save({"student": {}, "teacher": {"x": x}, "args": args}, path)
  found = interop.read_file(path, top=("teacher", "student"))
  np.testing.assert_array_equal(found["x"], [0.0, 1.0, 2.0])
  with pytest.raises(errors.UserError, match="no array"):
    interop.read_file(path)
  for wrong, words in (
    ([x], "holds a list"),
    ({"x": x.to_sparse()}, "weights_only=True"),
  ):
    torch.save(wrong, path)
    with pytest.raises(errors.UserError, match=words):
      interop.read_file(path)
  for content in (b"", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02"):
    with open(path, "wb") as f:
      f.write(content)
    with pytest.raises(errors.UserError, match="weights_only=True"):
      interop.read_file(path)
  torch.save({"x": os.mkdir}, path)
  with pytest.raises(errors.UserError, match="weights_only=True"):
    interop.read_file(path)


def ssljax(*argv, status=0):
  """Runs `cli.main`; returns its JSON line, or its one line on stderr."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    assert cli.main(list(argv)) == status, err.getvalue()
  if status == 0:
    return json.loads(out.getvalue().splitlines()[-1])
  (line,) = [x for x in err.getvalue().splitlines() if x.startswith("ssljax: ")]
  return line


def weights_of(encoder, layout, path, side=8, channels=1):
  """Writes a file of drawn weights; returns them."""
  shapes = jax.eval_shape(
    functools.partial(encoder.init, train=False),
    jax.random.key(0),
    jnp.zeros((1, side, side, channels)),
  )
  rng = np.random.default_rng(3)
  draw = lambda x: rng.uniform(0.1, 0.5, x.shape).astype(np.float32)
  tree = jax.tree.map(draw, dict(shapes))
  params, stats = tree["params"], tree.get("batch_stats", {})
  grid = (side // 2, side // 2)
  spec = layouts.get(layout, encoder)
  arrays = layouts.write(spec, encoder, params, stats, grid=grid)
  interop.write_file(path, arrays)
  return params, stats, arrays


@pytest.mark.slow
def test_commands_with_a_resnet(tmp_path):
  file, workdir = str(tmp_path / "w.safetensors"), str(tmp_path / "run")
  config = config_lib.load(RESNET.removeprefix("--config="), [])
  encoder = run_lib.make_encoder(config)
  params, stats, arrays = weights_of(encoder, "torchvision", file)
  flags = [f"--weights={file}", RESNET, f"--workdir={workdir}"]
  figures = ssljax("import", "--layout=torchvision", *flags)
  assert figures == {
    "workdir": workdir,
    "weights": len(arrays),
    "parameters": sum(x.size for x in arrays.values()),
    "dropped": [],
    "largest_difference": 0.0,
    "positions_difference": None,
  }
  assert {"config.json", "environment.json"} <= set(os.listdir(workdir))
  run, state = evaluate.restore(workdir)
  assert int(state.step) == 0
  assert_same(state.params["encoder"], params)
  assert_same(state.method_state["batch_stats"]["encoder"], stats)
  fresh = run_lib.init_state(run)
  assert_same(state.params["projector"], fresh.params["projector"])

  assert "holds a run already" in ssljax(
    "import", "--layout=torchvision", *flags, status=2
  )
  out = str(tmp_path / "out.npz")
  where = [f"--workdir={workdir}", f"--out={out}"]
  assert ssljax("export", "--layout=torchvision", *where) == {
    "out": out,
    "step": 0,
    "weights": len(arrays),
    "network": "encoder",
    "parameters": figures["parameters"],
    "largest_difference": 0.0,
  }
  assert_same(interop.read_file(out), arrays)
  for flags, words in (
    (["--layout=timm"], "for no ResNet"),
    (["--layout=torchvision", "--step=7"], "no checkpoint of step 7"),
    (["--layout=torchvision", "--network=teacher"], "no teacher"),
    (["--layout=torchvision", "--network=head"], "encoder or teacher"),
  ):
    assert words in ssljax("export", *flags, *where, status=2)
  line = ssljax("export", "--layout=timm", where[0], "--out=f.pth", status=2)
  assert "give a .safetensors or .npz" in line

  # Another run starts from it, and goes on from its step 0.
  other = str(tmp_path / "other")
  more = ["--config.steps=5", "--config.eval.last=False"]
  start = [RESNET, f"--config.init_from={workdir}", f"--workdir={other}"]
  assert ssljax("train", *start, *more)["steps"] == 5
  assert ssljax("embed", f"--workdir={workdir}", f"--out={out}")["step"] == 0


def test_commands_with_a_vit(tmp_path):
  file, workdir = str(tmp_path / "w.npz"), str(tmp_path / "run")
  encoder = vit.make(variant="Mu/2", pos="sincos2d")
  params, _, arrays = weights_of(encoder, "huggingface", file)
  kind = [VIT, "--config.encoder.pool=cls", "--layout=huggingface"]
  flags = [f"--weights={file}", *kind]
  here = f"--workdir={workdir}"
  beside = tmp_path / "config.json"
  beside.write_text('{"num_attention_heads": 4, "patch_size": 2}')
  line = ssljax("import", *flags, here, status=2)
  assert "num_attention_heads=4, and the config encoder.heads=2" in line
  for name, value in (
    ("hidden_act", "relu"),
    ("layer_norm_eps", 0.01),
    ("layer_norm_eps", "small"),
  ):
    beside.write_text(json.dumps({name: value}))
    line = ssljax("import", *flags, here, status=2)
    assert f"has {name}={value!r}, and the" in line.replace("=relu", "='relu'")
  beside.write_text('{"model_type": "bert"}')
  line = ssljax("import", *flags, here, status=2)
  assert "is of model_type 'bert', and the encoder a ViT" in line
  beside.write_text('{"num_attention_heads": null, "patch_size": [2, 2]}')
  # `quick` has learned positions: they are taken for such.
  assert ssljax("import", *flags, here)["weights"] == len(arrays)
  _, state = evaluate.restore(workdir)
  found = state.params["encoder"]
  np.testing.assert_array_equal(
    found["pos_embed"], vit.sincos2d(32, 4, 4).reshape(4, 4, 32)
  )
  assert_same({k: found[k] for k in params}, params)
  out = str(tmp_path / "out.safetensors")
  figures = ssljax("export", here, f"--out={out}", "--layout=timm")
  assert figures["largest_difference"] == 0.0
  assert "blocks.1.attn.qkv.bias" in interop.read_file(out)
  # What is exported for transformers says what it is, and comes back.
  theirs = str(tmp_path / "theirs" / "model.safetensors")
  os.mkdir(os.path.dirname(theirs))
  ssljax("export", here, f"--out={theirs}", "--layout=huggingface")
  config = json.loads((tmp_path / "theirs" / "config.json").read_text())
  assert config["model_type"] == "vit" and config["layer_norm_eps"] == 1e-6
  assert config["image_size"] == [8, 8] and config["num_channels"] == 1
  sizes = ("hidden_size", "intermediate_size", "num_attention_heads")
  assert [config[k] for k in sizes] == [32, 128, 2]
  again = [f"--weights={theirs}", *kind, f"--workdir={tmp_path / 'again'}"]
  assert ssljax("import", *again)["weights"] == len(arrays)
  # A misfit leaves no workdir behind.
  missing = str(tmp_path / "missing")
  line = ssljax(
    "import",
    f"--weights={out}",
    *kind,
    f"--workdir={missing}",
    status=2,
  )
  assert "missing: embeddings.cls_token" in line
  assert not os.path.exists(missing)


CONFIG = """
from ssljax import config as config_lib

def get_config(arg=None):
  config = config_lib.base()
  config.data.name = "digits"
  config.batch_size = 32
  config.steps = 2
  config.augment = dict(name="simclr", size=(8, 8))
  config.encoder = dict(name="vit", variant="Mu/2", pos="sincos2d", scan=True)
  config.method = dict(name="with_teacher", temperature=0.2)
  config.optimizer = dict(name="adamw", learning_rate=1e-3)
  return config_lib.finish(config, arg).unlock()
"""
METHOD = '''
"""SimCLR with a momentum teacher that nothing reads."""
import jax
from ssljax.methods import simclr

def make(encoder, **options):
  method = simclr.make(encoder, **options)
  def init(rng, batch):
    params, state = jax.jit(method.init)(rng, batch)
    other, _ = method.init(jax.random.fold_in(rng, 1), batch)
    teacher = {"params": {"encoder": other["encoder"]}}
    return params, {**state, "teacher": teacher}
  return method._replace(init=init)
'''


def test_a_teacher_gets_the_weights_too(tmp_path, monkeypatch):
  (tmp_path / "with_teacher_lab").mkdir()
  (tmp_path / "with_teacher_lab" / "method.py").write_text(METHOD)
  monkeypatch.syspath_prepend(str(tmp_path))
  config = tmp_path / "config.py"
  config.write_text(
    CONFIG.replace('"with_teacher"', '"with_teacher_lab.method"')
  )
  file, workdir = str(tmp_path / "w.npz"), str(tmp_path / "run")
  encoder = vit.make(variant="Mu/2", pos="sincos2d", scan=True)
  params, _, arrays = weights_of(encoder, "mae", file)
  figures = ssljax(
    "import",
    f"--weights={file}",
    f"--config={config}",
    "--layout=mae",
    f"--workdir={workdir}",
  )
  assert figures["largest_difference"] == 0.0
  assert figures["positions_difference"] == 0.0
  _, state = evaluate.restore(workdir)
  assert_same(state.params["encoder"], params)
  assert_same(state.method_state["teacher"]["params"]["encoder"], params)
  out = str(tmp_path / "out.npz")
  where = [f"--workdir={workdir}", f"--out={out}", "--layout=mae"]
  assert ssljax("export", "--network=teacher", *where)["step"] == 0
  assert_same(interop.read_file(out), arrays)


TEXT = """
from ssljax import config as config_lib

def get_config(arg=None):
  config = config_lib.base("text")
  config.data.update(name="folder:{folder}", tokenizer="bert", vocab=64)
  config.data.update(split="all", length=8)
  config.update(batch_size=2, steps=1)
  config.mesh.data = 1
  config.augment = dict(name="mlm")
  config.encoder = dict(
    name="bert", variant="Mu", vocab=64, positions=16, scan=True
  )
  config.method = dict(name="bert")
  config.optimizer = dict(name="adamw", learning_rate=1e-3)
  return config_lib.finish(config, arg)
"""


def test_commands_with_a_language_model(tmp_path):
  for i in range(4):
    (tmp_path / f"{i}.txt").write_text("a small animal in the house")
  config = tmp_path / "text.py"
  config.write_text(TEXT.format(folder=tmp_path))
  encoder = bert.make(variant="Mu", vocab=64, positions=16)  # blocks apart
  method = bert_method.make(encoder)
  batch = {"tokens": jnp.zeros((1, 8), jnp.int32)}
  params = jax.tree.map(
    lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype("f"),
    jax.eval_shape(lambda: method.init(jax.random.key(0), batch)[0]),
  )
  arrays = layouts_text.write(encoder, params)
  more = {"bert.pooler.dense.bias": np.zeros(32, np.float32)}
  file, workdir = str(tmp_path / "w.safetensors"), str(tmp_path / "run")
  interop.write_file(file, arrays | more)
  beside = layouts_text.config_of(encoder, params)
  (tmp_path / "config.json").write_text(json.dumps(beside | {"vocab_size": 65}))
  flags = [f"--weights={file}", f"--config={config}", f"--workdir={workdir}"]
  line = ssljax("import", "--layout=huggingface", *flags, status=2)
  assert line.endswith(
    "vocab_size 65 (here 64): give --config.encoder.vocab=65"
  )
  assert not os.path.exists(workdir)
  (tmp_path / "config.json").write_text(json.dumps(beside))
  assert ssljax("import", "--layout=huggingface", *flags) == {
    "workdir": workdir,
    "weights": len(arrays),
    "parameters": sum(x.size for x in arrays.values()),
    "dropped": list(more),
    "kept": [],
    "largest_difference": 0.0,
  }
  run, state = evaluate.restore(workdir)
  assert_same(state.params["head"], params["head"])
  block = jax.tree.map(lambda x: x[1], state.params["encoder"]["blocks"])
  assert_same(block, params["encoder"]["block1"])
  # The tokenizer is kept, as `train` keeps it.
  assert os.path.exists(workdir_lib.data_file(workdir, "tokenizer"))

  where = [f"--workdir={workdir}", "--layout=huggingface"]
  line = ssljax("export", *where, f"--out={workdir}/w.safetensors", status=2)
  assert "give --out=F in a folder of its own" in line
  (tmp_path / "out").mkdir()
  out = str(tmp_path / "out" / "model.safetensors")
  figures = ssljax("export", *where, f"--out={out}")
  assert figures["largest_difference"] == 0.0
  assert_same(interop.read_file(out), arrays)
  with open(tmp_path / "out" / "config.json") as f:
    assert json.load(f) == beside


@pytest.mark.parametrize(
  "name, network",
  [
    ("dino_resnet18", "teacher"),
    ("ijepa_vit", "teacher"),
    ("byol_resnet18", "encoder"),
    ("data2vec_vit", "encoder"),
    ("simclr_resnet18", "encoder"),
  ],
)
def test_what_is_evaluated_is_exported(name, network):
  path = f"configs/{name}_fashion_mnist.py:quick"
  run = run_lib.build(config_lib.load(path, ["--config.mesh.data=1"]))
  assert run_lib.evaluated_network(run) == network


def test_an_export_is_of_the_network_that_is_evaluated(tmp_path, monkeypatch):
  path = "configs/dino_resnet18_fashion_mnist.py:quick"
  run = run_lib.build(config_lib.load(path, ["--config.mesh.data=1"]))
  state = run_lib.init_state(run)
  state = state._replace(params=jax.tree.map(lambda x: x + 1, state.params))
  monkeypatch.setattr(evaluate, "restore", lambda *_, **unused: (run, state))
  found = {}
  for network in (None, "teacher", "encoder"):
    out = str(tmp_path / f"{network}.npz")
    told = interop.export("W", out, layout="torchvision", network=network)
    assert told["network"] == (network or "teacher")
    found[network] = interop.read_file(out)
  assert_same(found[None], found["teacher"])
  assert (found["encoder"]["conv1.weight"] != found[None]["conv1.weight"]).all()


def test_fixed_positions_are_written_as_the_encoder_has_them():
  flags = ["--config.encoder.pos=sincos2d", "--config.encoder.img_size=16"]
  config = VIT.partition("=")[2]
  for more, grid in ((flags[:1], (4, 4)), (flags, (8, 8))):
    run = run_lib.build(config_lib.load(config, more))
    assert interop._grid(run, run_lib.make_encoder(run.config)) == grid
