"""`ssljax selftest` passes on what is sound, and fails on what is not."""

import json
import math
import os
import subprocess
import sys
import types

import jax
import pytest

from ssljax import cli
from ssljax import errors
from ssljax import selftest
from ssljax.selftest import trial

CONFIG = "configs/mae_vit_fashion_mnist.py:quick"


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Of the runs, where a test does not say how many."""
  count = "--xla_force_host_platform_device_count="
  flags = os.environ["XLA_FLAGS"].replace(f"{count}8", f"{count}1")
  monkeypatch.setenv("XLA_FLAGS", flags)


# `resume` is quick, and all others are run with the slow tests.
NAMES = [
  pytest.param(name, marks=[] if name == "resume" else pytest.mark.slow)
  for name in selftest.TESTS
]


@pytest.mark.parametrize("name", NAMES)
def test_sound(name, capsys):
  flags = [f"--config={CONFIG}", "--kills=1", "--seed=1"]
  flags += ["--config.encoder.depth=1", "--config.method.decoder_depth=1"]
  assert cli.main(["selftest", name, *flags]) == 0
  figures = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert figures["passed"] and figures["test"] == name


def test_what_does_not_come_out_is_told(monkeypatch, tmp_path, capsys):
  def fails(trial, **unused):
    trial.expect("one is two", False, (1, 2))
    return {}

  monkeypatch.setitem(selftest.TESTS, "resume", fails)
  monkeypatch.chdir(tmp_path)  # its own config is found from everywhere
  workdir = f"--workdir={tmp_path / 'runs'}"
  assert cli.main(["selftest", "resume", workdir]) == 1
  out, err = capsys.readouterr()
  assert json.loads(out)["failures"] == ["one is two (1, 2)"]
  assert "FAILED: one is two" in err


def test_mistakes(tmp_path):
  with pytest.raises(errors.UserError, match="did you mean 'corrupt'"):
    selftest.selftest("corupt")
  (tmp_path / "there").write_text("")
  with pytest.raises(errors.UserError, match="is not empty"):
    selftest.selftest("nan", workdir=str(tmp_path))
  for place in (tmp_path / "there", tmp_path / "there" / "below"):
    with pytest.raises(errors.UserError, match="cannot write to --workdir"):
      selftest.selftest("nan", workdir=str(place))
  none = ["--config.optimizer.learning_rate=none"]
  with pytest.raises(errors.UserError, match="learning_rate is not given"):
    selftest.selftest("nan", overrides=none)
  with pytest.raises(errors.UserError, match="no config 'no.py'"):
    selftest.selftest("sigterm", config="no.py")
  unfit = ["--config.batch_size=1000000"]
  with pytest.raises(errors.UserError, match="status 2, not 0: ssljax: .*few"):
    selftest.selftest("sigterm", overrides=unfit)


def test_a_loss_that_crosses_zero_is_compared_with_the_largest():
  one = {1: 0.02, 2: 1e-4, 3: -0.01}
  other = one | {2: 1e-4 + 1e-7}
  assert trial.apart(one, other) == pytest.approx(5e-6, rel=1e-3)
  assert trial.apart(one, one | {3: -0.011}) == pytest.approx(0.05)
  assert trial.apart(one, one | {3: -0.011}, steps=2) == 0
  assert not trial.apart(one, one | {3: math.nan}) < 1


def test_there_is_nothing_to_compare_on_one_device(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  with pytest.raises(errors.UserError, match="JAX_PLATFORMS=cpu"):
    selftest.selftest("devices", config=CONFIG)


def test_simulated_devices_are_of_a_cpu(monkeypatch, tmp_path):
  started = []
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  kept = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
  monkeypatch.delenv(kept, raising=False)
  monkeypatch.setattr(
    trial.subprocess, "Popen", lambda *args, env, **kw: started.append(env)
  )
  both = trial.Trial(CONFIG, str(tmp_path), [], seed=0)
  both.start("one")
  both.start("eight", devices=8)
  assert [env["JAX_PLATFORMS"] for env in started] == ["cuda", "cpu"]
  assert "device_count=8" in started[1]["XLA_FLAGS"]
  assert [env[kept] for env in started] == ["0", "0"]  # all is compiled once


@pytest.mark.parametrize("wanted", [True, False])
def test_evaluation_is_as_the_config_has_it(monkeypatch, tmp_path, wanted):
  started = []
  monkeypatch.setattr(
    trial.subprocess, "Popen", lambda args, **options: started.append(args)
  )
  flags = [f"--config.eval.last={wanted}"]
  one = trial.Trial(CONFIG, str(tmp_path), flags, seed=0)
  one.start("without")
  one.start("as_it_is", *one.evaluated)
  last = lambda c: [a for a in c if a.startswith("--config.eval.last=")][-1]
  assert [last(command).rpartition("=")[2] for command in started] == [
    "False",
    str(wanted),
  ]


def test_a_single_checkpoint_is_too_few_to_damage():
  few = ["--config.checkpoint.keep=1", "--config.steps=8"]
  with pytest.raises(errors.UserError, match="kept 1 checkpoint: give --conf"):
    selftest.selftest("corrupt", config=CONFIG, overrides=few)


def test_a_run_that_crashes_has_not_passed(monkeypatch, capsys):
  crash = [sys.executable, "-c", "raise SystemExit('ValueError: it broke')"]
  start = lambda *_, **options: subprocess.Popen(crash, **options)
  popen = types.SimpleNamespace(
    Popen=lambda command, **options: start(**options), PIPE=subprocess.PIPE
  )
  monkeypatch.setattr(trial, "subprocess", popen)
  assert cli.main(["selftest", "nan", f"--config={CONFIG}"]) == 1
  figures = json.loads(capsys.readouterr().out)
  assert not figures["passed"] and figures["test"] == "nan"
  assert "status 1, not 3: ValueError: it broke" in figures["failures"][0]


@pytest.mark.slow
def test_processes_cluster_together():
  config = "configs/deepcluster_v2_resnet18_fashion_mnist.py:quick"
  assert cli.main(["selftest", "multihost", f"--config={config}"]) == 0
