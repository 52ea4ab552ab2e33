"""The trainer, as a user runs it: in subprocesses, killed, and misused."""

import collections
import contextlib
import glob
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ssljax import checkpoint
from ssljax import cli
from ssljax import config as config_lib
from ssljax import digests
from ssljax import errors
from ssljax import evaluate
from ssljax import replay
from ssljax import run as run_lib
from ssljax import train
from ssljax import workdir as workdir_lib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """A config with a tiny ViT, in a file of its own."""
  path = tmp_path_factory.mktemp("config") / "tiny.py"
  path.write_text(
    """
from ssljax import config as config_lib

def get_config(arg=None):
  config = config_lib.base()
  config.data.name = "digits"
  config.batch_size = 32
  config.steps = 80
  config.log_every = 2
  config.augment = dict(name="simclr", area=(0.2, 1.0), strength=0.5)
  config.encoder = dict(name="vit", variant="Mu/2", depth=1)
  config.method = dict(name="simclr", temperature=0.2, out_dim=16)
  config.optimizer = dict(name="adamw", learning_rate=1e-3)
  config.checkpoint.every_steps = 20
  config.eval.last = False
  config.monitor = dict(every_steps=30, examples=64)
  return config_lib.finish(config, arg)
"""
  )
  return str(path)


def command(*args):
  return [sys.executable, "-m", "ssljax", *args]


def environment(**extra):
  count = "--xla_force_host_platform_device_count="
  flags = os.environ["XLA_FLAGS"].replace(f"{count}8", f"{count}1")
  return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **extra}


def ssljax(*args, status=0, **env):
  """Runs a command; returns its JSON line, or its last line on stderr."""
  done = subprocess.run(
    command(*args),
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=environment(**env),
    check=False,
  )
  assert done.returncode == status, done.stderr[-3000:]
  if status:
    # Orbax may tell of its own threads after us.
    lines = done.stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("ssljax: ")]
    return line
  return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
  """A run that nobody disturbed: (workdir, figures)."""
  workdir = str(tmp_path_factory.mktemp("runs") / "whole")
  figures = ssljax("train", f"--config={config}", f"--workdir={workdir}")
  return workdir, figures


def test_figures_and_files_of_a_run(whole):
  workdir, figures = whole
  assert figures["steps"] == 80
  assert figures["compiles"] == 1
  assert figures["resumed_from"] is None
  assert np.isfinite(figures["loss"])
  assert figures["collapsed"] is None
  assert figures["images_per_s"] > 0 and figures["train_s"] > 0
  assert {"config.json", "metrics.jsonl", "environment.json", "tb"} <= set(
    os.listdir(workdir)
  )
  assert sorted(map(int, _steps(workdir))) == [40, 60, 80]  # the last three
  rows = _rows(workdir)
  assert [row["step"] for row in rows] == list(range(2, 81, 2))
  assert all(np.isfinite(row["loss"]) for row in rows)


def test_a_run_starts_from_another_with_an_optimizer_of_its_own(
  config, whole, tmp_path
):
  flags = [
    f"--config.init_from={whole[0]}",
    "--config.steps=1",
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.0",
    "--config.mesh.data=1",
  ]
  run = config_lib.load(config, flags)
  loss = train.train(run, str(tmp_path / "run"))["loss"]
  _, old = evaluate.restore(whole[0])
  _, new = evaluate.restore(str(tmp_path / "run"))
  assert sorted(_steps(tmp_path / "run")) == ["0", "1"]
  shutil.copytree(tmp_path / "run", tmp_path / "alone")
  path = tmp_path / "alone" / "config.json"  # the other run is gone
  path.write_text(path.read_text().replace(whole[0], "/nowhere"))
  again = replay.replay(str(tmp_path / "alone"), 1)
  assert (again["from"], again["loss"]) == (0, loss)
  jax.tree.map(np.testing.assert_array_equal, new.params, old.params)
  wider = config_lib.load(config, [*flags, "--config.encoder.dim=64"])
  with pytest.raises(errors.UserError, match=r"is \(32,\) there and is \(64"):
    train.train(wider, str(tmp_path / "wider"))
  assert not (tmp_path / "wider").exists()
  fewer = config_lib.load(config, [*flags, "--config.encoder.pos=sincos2d"])
  with pytest.raises(errors.UserError, match="pos.* there and is not here"):
    train.train(fewer, str(tmp_path / "fewer"))
  # What the step's trace alone tells: nothing is saved, which would be a run.
  torn = config_lib.load(config, [*flags, "--config.method.blocks=3"])
  with pytest.raises(errors.UserError, match="blocks=3"):
    train.train(torn, str(tmp_path / "torn"))
  assert not (tmp_path / "torn" / "checkpoints").exists()
  nowhere = config_lib.load(config, [*flags, "--config.init_from=/nowhere"])
  missing = "no checkpoint in /nowhere/.* --config.init_from"
  with pytest.raises(errors.UserError, match=missing):
    train.train(nowhere, str(tmp_path / "nowhere"))


MONITORS = {
  f"monitor/{name}"
  for name in ("rankme", "alpha_req", "alignment", "uniformity", "std")
}


def test_monitors_are_logged_every_so_many_steps_and_last(whole):
  workdir, _ = whole
  rows = _rows(workdir, "monitor/rankme")
  assert [row["step"] for row in rows] == [30, 60, 80]
  for row in rows:
    assert set(row) == {"step"} | MONITORS
    assert np.isfinite(list(row.values())).all()
  assert rows[0] != rows[1] | {"step": 30}
  events = b"".join(
    open(os.path.join(workdir, "tb", name), "rb").read()
    for name in os.listdir(os.path.join(workdir, "tb"))
  )
  for name in MONITORS:
    assert events.count(name.encode()) == 3


def test_monitors_change_nothing_and_can_be_off(config, whole, tmp_path):
  workdir = str(tmp_path / "off")
  figures = ssljax(
    "train",
    f"--config={config}",
    f"--workdir={workdir}",
    "--config.monitor.every_steps=0",
  )
  assert not _rows(workdir, "monitor/rankme")
  assert figures["collapsed"] is None
  assert figures["state_sha256"] == whole[1]["state_sha256"]


@pytest.fixture
def monitor(config):
  """`monitor(flags) -> (the monitor, the state before the first step)`."""

  def make(*flags):
    run = run_lib.build(config_lib.load(config, list(flags)))
    return train._Monitor(run), run_lib.init_state(run)

  return make


def test_monitors_are_the_same_on_eight_devices(monitor):
  figures = []
  for devices in (1, 8):
    one, state = monitor(f"--config.mesh.data={devices}")
    one.compile(state)
    figures.append(one(state))
    assert one.dim == 32
  assert 3 < figures[0]["rankme"] < 32
  for name in figures[0]:
    np.testing.assert_allclose(figures[1][name], figures[0][name], rtol=1e-3)


@pytest.mark.parametrize("wanted, read", [(3, 8), (30, 24), (5000, 1432)])
def test_monitored_examples_are_spread_and_fit_devices(monitor, wanted, read):
  flags = "--config.mesh.data=8", f"--config.monitor.examples={wanted}"
  batch = monitor(*flags)[0]._batch  # of 1437 examples
  assert len(batch["index"]) == read
  assert (np.diff(batch["index"]) > 0).all()
  assert batch["index"][0] == 0 and batch["index"][-1] == 1436


COLLAPSING = """
import jax.numpy as jnp

from ssljax import core
from ssljax.methods import simclr

def make(encoder):
  sound = simclr.make(encoder)

  def init(rng, batch):
    return {"encoder": sound.init(rng, batch)[0]["encoder"]}, {
      "batch_stats": {"encoder": {}}
    }

  def forward(params, method_state, batch, *, step, train):
    out = sound.embed(params, method_state, batch)
    return {"z": out["pooled"]}, method_state

  def objective(params, method_state, features, *, step):
    # All are to be the same, and nothing keeps them apart.
    return jnp.mean(jnp.square(features["z"] - 1)), (method_state, {})

  return core.Method(init, forward, objective, sound.embed)
"""


def test_a_collapse_is_told_once_and_stays_in_the_figures(config, tmp_path):
  (tmp_path / "my_lab").mkdir()
  (tmp_path / "my_lab" / "collapsing.py").write_text(COLLAPSING)
  with open(config) as f:
    text = f.read()
  text, count = re.subn(
    'dict\\(name="simclr", temp.*', 'dict(name="my_lab.collapsing")', text
  )
  assert count == 1
  (tmp_path / "config.py").write_text(text)
  flags = [
    "train",
    f"--config={tmp_path / 'config.py'}",
    f"--workdir={tmp_path / 'run'}",
    "--config.optimizer.learning_rate=0.05",
    "--config.monitor.every_steps=10",
  ]
  done = subprocess.run(
    command(*flags),
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=environment(PYTHONPATH=str(tmp_path)),
    check=True,
  )
  figures = json.loads(done.stdout.splitlines()[-1])
  assert figures["collapsed"].startswith("complete collapse:")
  assert done.stderr.count("complete collapse:") == 1
  rows = _rows(tmp_path / "run", "monitor/rankme")
  assert [row["step"] for row in rows] == list(range(10, 81, 10))
  assert sum(row["monitor/std"] < 0.01 for row in rows) > 1
  again = ssljax(*flags, PYTHONPATH=str(tmp_path))
  assert again["collapsed"] == figures["collapsed"]


def _rows(workdir, name="loss"):
  """The rows of the log that have the name."""
  with open(os.path.join(workdir, "metrics.jsonl")) as f:
    return [row for row in map(json.loads, f) if name in row]


def _steps(workdir):
  """The steps that count as saved."""
  folder = os.path.join(workdir, "checkpoints")
  names = [name for name in os.listdir(folder) if name.isdigit()]
  return [n for n in names if digests.exist(os.path.join(folder, n))]


def _wait_for_step(workdir, step, process):
  """Waits until the log shows the step."""
  path = os.path.join(workdir, "metrics.jsonl")
  for _ in range(12000):
    if os.path.exists(path):
      with open(path) as f:
        lines = [line for line in f if line.endswith("\n")]
      if lines and json.loads(lines[-1])["step"] >= step:
        return
    assert process.poll() is None, "the run ended before it could be stopped"
    time.sleep(0.01)
  raise AssertionError("the run did not come to the step")


def _start(config, workdir):
  return subprocess.Popen(
    command("train", f"--config={config}", f"--workdir={workdir}"),
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_sigterm_saves_and_exits_143(config, whole, tmp_path):
  workdir = str(tmp_path / "terminated")
  process = _start(config, workdir)
  _wait_for_step(workdir, 2, process)
  process.send_signal(signal.SIGTERM)
  process.communicate()
  assert process.returncode == 143
  saved = max(map(int, _steps(workdir)))
  figures = ssljax("train", f"--config={config}", f"--workdir={workdir}")
  assert figures["resumed_from"] == saved
  assert figures["state_sha256"] == whole[1]["state_sha256"]


def test_a_finished_run_tells_its_figures_again(config, whole, tmp_path):
  workdir, expected = whole
  copy = str(tmp_path / "copy")
  shutil.copytree(workdir, copy)
  figures = ssljax("train", f"--config={config}", f"--workdir={copy}")
  assert figures["state_sha256"] == expected["state_sha256"]
  assert figures["resumed_from"] == 80 and figures["compiles"] == 0
  told = ("steps", "loss", "train_s", "step_s", "goodput")
  assert [figures[k] for k in told] == [
    pytest.approx(expected[k], abs=1e-3) for k in told
  ]


def test_a_run_from_before_a_key_can_be_read_and_goes_on(
  config, whole, tmp_path
):
  workdir = str(tmp_path / "old")
  shutil.copytree(whole[0], workdir)
  path = os.path.join(workdir, "config.json")
  with open(path) as f:
    stored = json.load(f)
  del stored["data"]["labels"], stored["eval"]["protocols"]
  with open(path, "w") as f:
    json.dump(stored, f)
  out = str(tmp_path / "embedded.npz")
  assert evaluate.write_embeddings(workdir, out)["step"] == 80
  train = ["train", f"--config={config}", f"--workdir={workdir}"]
  line = _main([*train, "--config.data.labels=true"])
  assert "(data.labels: False -> True)" in line
  assert ssljax(*train)["resumed_from"] == 80


def test_only_keys_of_every_config_have_a_default_that_may_be_missing():
  old, new = (config_lib.to_dict(config_lib.base()) for _ in range(2))
  del old["data"]["labels"], old["monitor"]
  assert not config_lib.difference(old, new)
  new["method"]["norm_pix"] = False  # its own default may be another
  assert config_lib.difference(old, new) == ["method.norm_pix: None -> False"]


@pytest.mark.parametrize("step", [pytest.param(10, marks=pytest.mark.slow), 56])
def test_an_update_is_replayed(whole, tmp_path, step):
  workdir, _ = whole
  out = str(tmp_path / "batch.npz")
  flags = [f"--workdir={workdir}", f"--out={out}"]
  last = ssljax("replay", *flags, f"--step={step}")
  assert last["from"] == (0 if step == 10 else 40)
  (row,) = (row for row in _rows(workdir) if row["step"] == step)
  before = ssljax("replay", *flags[:1], f"--step={step - 1}")
  assert np.mean([before["loss"], last["loss"]]) == row["loss"]
  assert before["batch_sha256"] != last["batch_sha256"]
  batch = dict(np.load(out))
  np.testing.assert_array_equal(batch["index"], last["index"])
  source = run_lib.build(workdir_lib.restore_config(workdir)).source
  np.testing.assert_array_equal(
    batch["image"], source.read(batch["index"])["image"]
  )


def test_eight_devices_see_the_same_batches(config, whole, tmp_path):
  assert jax.device_count() == 8  # here; one in the other's process
  workdir = str(tmp_path / "eight")
  train.train(config_lib.load(config, []), workdir)
  # Rounding grows from step to step, most of all through batch norm.
  losses = [[row["loss"] for row in _rows(w)][:5] for w in (workdir, whole[0])]
  np.testing.assert_allclose(*losses, rtol=1e-4)


def _untrained(workdir, *flags):
  """A run at step 0."""
  config = config_lib.load("configs/mae_vit_fashion_mnist.py:quick", flags)
  run = run_lib.build(config)
  config_lib.save(config, workdir / "config.json")
  with checkpoint.Checkpoints(str(workdir / "checkpoints")) as checkpoints:
    checkpoints.save(0, run_lib.init_state(run))
  return str(workdir)


def test_features_of_several_blocks_have_names_of_their_own(tmp_path):
  workdir = _untrained(tmp_path, "--config.encoder.depth=2")
  knn = dict(protocols=("knn",))
  figures = evaluate.evaluate(workdir, **knn, blocks=2)
  assert figures["knn_last2"] == figures["random_knn_last2"] > 0.3
  assert "the last 2 blocks" in figures["protocol"]["knn_last2"]
  assert figures["raw_knn"] > 0.9 and "knn" not in figures
  one = evaluate.evaluate(workdir, **knn, blocks=1, floors=False)
  plain = evaluate.evaluate(tmp_path, **knn, floors=False)  # of pathlib, too
  assert one["knn_last1"] == plain["knn"] != figures["knn_last2"]
  kept = json.loads((tmp_path / "eval" / "0.json").read_text())
  both = {"knn", "knn_last2"}
  assert both <= set(kept) and both <= set(kept["protocol"])
  with pytest.raises(errors.UserError, match="--blocks=3: .* give 1 to 2"):
    evaluate.evaluate(workdir, **knn, blocks=3)
  with pytest.raises(errors.UserError, match="--blocks is of knn and linear"):
    evaluate.evaluate(workdir, protocols=("knn", "loss"), blocks=2)


@pytest.mark.parametrize("name", ["mae", "ibot", "dinov2"])
def test_a_method_of_one_class_token_takes_the_last_of_several(name):
  flags = ["depth=2", "pool_blocks=2", "pool=cls"]
  flags = [f"--config.encoder.{flag}" for flag in flags]
  path = f"configs/{name}_vit_fashion_mnist.py:quick"
  run = run_lib.build(config_lib.load(path, flags))
  batch, key = run_lib.abstract_batch(run), jax.random.key(0)
  jax.eval_shape(train.compile_step(run), run.abstract_state, batch, key)
  images = {k: v for k, v in batch.items() if k in run.source.example}
  wide = jax.eval_shape(run.embed, run.abstract_state, images).shape[-1]
  assert wide == 2 * run.config.encoder.get("dim", 32)


@pytest.mark.parametrize(
  "name, says",
  [
    ("aim_vit", "aim makes features of its own choice of blocks"),
    ("byol_resnet18", "--blocks=2: resnet has no 'pool_blocks'"),
  ],
)
def test_what_has_no_features_of_several_blocks_says_so(name, says):
  run = run_lib.build(
    config_lib.load(f"configs/{name}_fashion_mnist.py:quick", [])
  )
  with pytest.raises(errors.UserError, match=says):
    evaluate._of_blocks(run, run.abstract_state, 2)


def test_evaluate_and_embed(whole, tmp_path):
  workdir, _ = whole
  figures = evaluate.evaluate(workdir)
  for prefix in ("", "raw_", "random_"):
    for name in ("knn", "linear"):
      assert 0 < figures[prefix + name] <= 1
  assert figures["protocol"]["knn"].startswith("knn/1")
  assert figures["raw_knn"] > 0.9  # digits are easy
  alone = evaluate.evaluate(workdir, protocols=("knn",), floors=False)
  assert alone["knn"] == figures["knn"]
  assert not {"raw_knn", "random_knn"} & set(alone)
  out = str(tmp_path / "test.npz")
  assert ssljax("embed", f"--workdir={workdir}", f"--out={out}") == {
    "out": out,
    "examples": 360,
    "dim": 32,
    "step": 80,
  }
  rows = np.load(out)
  assert rows["pooled"].shape == (360, 32)
  np.testing.assert_array_equal(rows["index"], np.arange(360))
  assert rows["label"].shape == (360,)
  mine = tmp_path / "mine"
  mine.mkdir()
  for i in range(3):
    np.save(mine / f"{i}.npy", np.full((8, 8, 1), i, np.uint8))
  ssljax(
    "embed",
    f"--workdir={workdir}",
    f"--out={out}",
    f"--data=folder:{mine}",
    "--split=all",
  )
  assert "label" not in np.load(out)


def test_loss_that_is_not_finite_stops_with_3(config, whole, tmp_path):
  workdir = str(tmp_path / "nan")
  shutil.copytree(whole[0], workdir)
  for step in ("60", "80"):
    shutil.rmtree(os.path.join(workdir, "checkpoints", step))
  # The same run, as it would be with a rate that bursts.
  path = os.path.join(workdir, "config.json")
  with open(path) as f:
    stored = json.load(f)
  stored["optimizer"]["learning_rate"] = 1e30
  with open(path, "w") as f:
    json.dump(stored, f)
  line = ssljax(
    "train",
    f"--config={config}",
    "--config.optimizer.learning_rate=1e30",
    f"--workdir={workdir}",
    status=3,
  )
  assert "not finite" in line and "begin anew with a smaller" in line
  assert re.search("step 4[0-9]", line)
  assert max(map(int, _steps(workdir))) == 40


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--config.batch_sise=1"], "mean config.batch_size"),
    (["--config.method.temprature=1"], "simclr has no .* mean 'temperature'"),
    (["--config.encoder.regsters=1"], "vit has no .* mean 'registers'"),
    (["--config.augment.blur_q=1"], "has no .* mean 'blur_p'"),
    (["--config.augment.jitter=0.4"], "jitter=0.4 is not tuple"),
    (["--config.augment.mean=0.5"], "mean=0.5 is not tuple"),
    (["--config.augment.mean=()"], r"mean=\(\): the images have 1 channels"),
    (["--config.augment.local_views=2.5"], "local_views=2.5 is not int"),
    (["--config.augment.blur_kernel=33"], "blur_kernel=33.* smaller"),
    (["--config.optimizer.mass=1"], "adamw.* 'mass'"),
    (["--config.schedule.ende=1"], "cosine has no .* mean 'end'"),
    (["--config.batch_size=many"], "batch_size"),
    (["--config.data.name=fashion_mnits"], "did you mean 'fashion_mnist'"),
    (["--config.data.split=valid"], "train or test"),
    (["--config.data.name=folder:/no/such"], "no folder /no/such"),
    (["--config.batch_size=2000"], "1437 examples"),
    (["--config.encoder.variant=Mu/3"], "does not divide images of 8 x 8"),
    (["--config.encoder.variant=Giant/2"], "choose among|give SIZE/PATCH"),
    (["--config.method.name=simclrr"], "no module ssljax.methods.simclrr"),
    (["--config.optimizer.name=adamax"], "choose among sgd, adam, adamw"),
    (["--config.accumulate=3"], "not a multiple of"),
    (["--config.monitor.examples=1"], "give 2 or more"),
    (["--config.nonfinite=ignore"], "choose stop or skip"),
    (["--config.mesh.data=64"], "devices"),
    (["--config.eval.last=1", "--config.eval.test_split=x"], "train or test"),
    (["--config.eval.last=1", "--config.eval.test_split=train"], "'train' as"),
    (["--config.eval.protocols=()"], "protocols=.*: give a tuple"),
    (["--config.optimizer.clip_global_norm=0.0"], "give more than 0"),
  ],
)
def test_wrong_configs_end_with_2_and_one_line(config, tmp_path, flags, words):
  workdir = tmp_path / "wrong"
  line = _main(["train", f"--config={config}", f"--workdir={workdir}", *flags])
  assert re.search(words, line), line
  assert not (workdir / "checkpoints").exists()


def test_an_encoder_that_the_method_cannot_use_is_told():
  config = config_lib.base()
  config.encoder = dict(name="resnet", variant="18")
  config.method.name = "mae"
  with pytest.raises(errors.UserError, match="mae needs .*'patch'.* resnet"):
    run_lib.make_method(config)


def _main(argv):
  """Runs `cli.main` here, which is quicker; returns its one line on stderr."""
  err = io.StringIO()
  with contextlib.redirect_stderr(err):
    assert cli.main(argv) == 2
  lines = [x for x in err.getvalue().splitlines() if x.startswith("ssljax: ")]
  assert len(lines) == 1, err.getvalue()
  return lines[0]


def test_other_mistakes(config, whole, tmp_path):
  assert "did you mean 'train'" in _main(["trian"])
  assert "--workdir=... is missing" in _main(["train", f"--config={config}"])
  assert "no config" in _main(["train", "--config=no.py", "--workdir=/tmp/x"])
  line = _main(
    [
      "train",
      f"--config={config}",
      f"--workdir={whole[0]}",
      "--config.seed=1",
    ]
  )
  assert "seed: 0 -> 1" in line and "another --workdir" in line
  file = tmp_path / "file"
  file.write_text("")
  line = _main(["train", f"--config={config}", f"--workdir={file / 'below'}"])
  assert "cannot write to --workdir" in line
  assert "no run in" in _main(["evaluate", f"--workdir={tmp_path}"])
  line = _main(["evaluate", f"--workdir={whole[0]}", "--protocols=knn,liner"])
  assert "unknown protocol 'liner'" in line
  line = _main(["replay", f"--workdir={whole[0]}", "--step=81"])
  assert "has the updates 1 to 80" in line
  for flags, words in (
    (["--protocols=knn", "--seeds=2"], "are of finetune"),
    (["--protocols=knn", "--fractions=0.1"], "are of finetune"),
    (["--protocols=loss", "--train_split=x"], "reads no --train_split"),
    (["--train_split=test"], "both 'test', where each"),
  ):
    assert words in _main(["evaluate", f"--workdir={whole[0]}", *flags])
  line = _main(["evaluate", f"--workdir={whole[0]}", "--step=5"])
  assert "no checkpoint of step 5" in line


def test_a_try_that_failed_leaves_the_workdir_free(
  config, tmp_path, monkeypatch
):
  def loop(*_):
    raise errors.UserError("it trains")

  monkeypatch.setattr(train, "_loop", loop)
  flags = ["train", f"--config={config}", f"--workdir={tmp_path}"]
  flags.append("--config.monitor.every_steps=0")
  assert _main([*flags, "--config.seed=2"]) == "ssljax: it trains"
  assert config_lib.restore(tmp_path / "config.json").seed == 2
  assert _main(flags) == "ssljax: it trains"
  assert config_lib.restore(tmp_path / "config.json").seed == 0
  (tmp_path / "checkpoints" / "20").mkdir()
  line = _main([*flags, "--config.seed=1"])
  assert "another config (seed: 0 -> 1)" in line


def test_a_lost_config_is_not_replaced_by_one_that_does_not_fit(
  config, whole, tmp_path
):
  workdir = tmp_path / "run"
  shutil.copytree(whole[0], workdir)
  os.remove(workdir / "config.json")
  flags = ["train", f"--config={config}", f"--workdir={workdir}"]
  line = _main([*flags, "--config.encoder.dim=64"])
  assert "does not fit: params/encoder/" in line
  assert not (workdir / "config.json").exists()
  assert ssljax(*flags)["state_sha256"] == whole[1]["state_sha256"]


def test_what_was_measured_of_an_earlier_run_goes_with_it(
  config, whole, tmp_path
):
  flags = ["--config.steps=2", "--config.monitor.every_steps=0"]
  (tmp_path / "eval").mkdir()
  (tmp_path / "eval" / "mine.json").write_text("{}")
  (tmp_path / "eval" / "2.json").write_text('{"step": 2, "knn": 0.5}')
  train.train(config_lib.load(config, flags), str(tmp_path))
  assert os.listdir(tmp_path / "eval") == ["mine.json"]
  (tmp_path / "eval" / "2.json").write_text('{"step": 2, "knn": 0.5}')
  train.train(config_lib.load(config, flags), str(tmp_path))
  assert (tmp_path / "eval" / "2.json").exists()  # of the same run


def test_a_log_that_is_a_folder_is_told(config, tmp_path, capsys):
  (tmp_path / "metrics.jsonl").mkdir()
  flags = [f"--config={config}", "--config.monitor.every_steps=0"]
  assert cli.main(["train", *flags, f"--workdir={tmp_path}"]) == 3
  assert "metrics.jsonl could not be written" in capsys.readouterr().err


def test_a_file_in_place_of_a_folder_is_told_before_training(config, tmp_path):
  (tmp_path / "checkpoints").write_text("")
  line = _main(["train", f"--config={config}", f"--workdir={tmp_path}"])
  assert f"cannot write to --workdir={tmp_path} (File exists)" in line


def test_a_start_that_is_not_there_is_told_before_anything(config, tmp_path):
  flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
  flags.append("--config.data.name=nowhere")  # which is not read yet
  line = _main(["train", *flags, "--config.init_from=/none"])
  assert "no checkpoint in /none/" in line and "--config.init_from" in line
  assert not (tmp_path / "run").exists()


def test_a_run_that_ended_while_this_one_began_is_not_taken_over(
  config, whole, tmp_path, monkeypatch
):
  workdir, build = str(tmp_path / "run"), run_lib.build

  def slow(config, **options):
    shutil.copytree(whole[0], workdir)
    return build(config, **options)

  monkeypatch.setattr(run_lib, "build", slow)
  flags = [f"--config={config}", f"--workdir={workdir}", "--config.seed=1"]
  assert "another config (seed: 0 -> 1)" in _main(["train", *flags])
  assert config_lib.restore(os.path.join(workdir, "config.json")).seed == 0


def test_no_room_for_a_checkpoint_is_said_before_training(
  config, tmp_path, monkeypatch
):
  usage = collections.namedtuple("usage", "total used free")
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
  line = _main(["train", f"--config={config}", f"--workdir={tmp_path / 'w'}"])
  assert "a checkpoint needs" in line and "make room" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_ends_with_3_and_keeps_what_was_saved(config, tmp_path):
  mount = tmp_path / "small"
  mount.mkdir()
  sizes = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(mount)]
  if subprocess.run(sizes, capture_output=True, check=False).returncode:
    pytest.skip("no tmpfs can be mounted here")
  try:
    workdir = str(mount / "run")
    flags = [f"--config={config}", f"--workdir={workdir}"]
    # Sixteen checkpoints, of which about four fit.
    flags += [
      "--config.checkpoint.keep=100",
      "--config.checkpoint.every_steps=5",
    ]
    line = ssljax("train", *flags, status=3)
    # The checkpoint, or the log that is written meanwhile.
    assert "could not be written" in line and " kept" in line
    steps = sorted(map(int, _steps(workdir)))
    assert steps, "no checkpoint fitted; the test's disk is too small"
    filler = mount / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as f:
      while True:
        f.write(bytes(512))
    knn = [f"--workdir={workdir}", "--protocols=knn"]
    line = ssljax("evaluate", *knn, status=3)
    assert "make room" in line and '"knn": ' in line
    assert not glob.glob(os.path.join(workdir, "eval", "*"))
    filler.unlink()
    shutil.rmtree(os.path.join(workdir, "tb"))
    assert ssljax("evaluate", *knn)["step"] == steps[-1]
  finally:
    subprocess.run(["umount", str(mount)], check=True)
