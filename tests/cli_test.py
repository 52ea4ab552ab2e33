"""The command line misused: one line that names the mend, and status 2."""

import re

import pytest

import ssljax
from ssljax import cli
from ssljax import config as config_lib

QUICK = "configs/simclr_resnet18_fashion_mnist.py:quick"


@pytest.fixture
def mistake(capsys, tmp_path):
  """`mistake(*argv) -> the one line on stderr`; `train` has what it needs."""

  def run(*argv):
    if argv[0] == "train":
      more = {"config": QUICK, "workdir": tmp_path / "run"}
      given = [a.partition("=")[0] for a in argv]
      missing = [k for k in more if f"--{k}" not in given]
      argv = [*argv, *(f"--{k}={more[k]}" for k in missing)]
    assert cli.main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [x for x in lines if x.startswith("ssljax: ")]
    return line

  return run


@pytest.mark.parametrize(
  "text, value",
  [
    ("false", False),
    ("True", True),
    ("TRUE", True),
    ("none", None),
    ("None", None),
    ("0.5", 0.5),
    ("(1, 2)", (1, 2)),
    ("falsey", "falsey"),
  ],
)
def test_an_option_that_the_file_left_out_is_read(text, value):
  flag = f"--config.optimizer.nesterov={text}"
  found = config_lib.load(QUICK, [flag]).optimizer.nesterov
  assert found == value and type(found) is type(value)


def test_decay_exclude_is_no_single_word(mistake):
  line = mistake("train", "--config.optimizer.decay_exclude=bias")
  assert "give a tuple of patterns, as ('bias',)" in line


def test_a_misspelt_variant_is_told(mistake):
  line = mistake("train", f"--config={QUICK}k")
  assert "unknown variant 'quickk': choose among fast, quick" in line


@pytest.mark.parametrize(
  "text, says",
  [
    ("Not *Python*.\n", r"config\.py is not Python \(invalid syntax"),
    ("x = 1\n", r"config\.py has no get_config"),
    ("def get_config(arg=None):\n  pass\n", "returns a ConfigDict"),
  ],
)
def test_a_file_that_is_no_config_is_told(mistake, tmp_path, text, says):
  (tmp_path / "config.py").write_text(text)
  line = mistake("train", f"--config={tmp_path / 'config.py'}")
  assert re.search(says, line), line


def test_a_config_with_a_bug_shows_where(tmp_path):
  path = tmp_path / "config.py"
  path.write_text("def get_config(arg=None):\n  raise ValueError('a bug')\n")
  with pytest.raises(ValueError, match="^a bug$"):
    config_lib.load(str(path), [])


WRONG = {
  "batch_size=0": "batch_size=0: give 1 or more",
  "batch_size=-64": "batch_size=-64: give 1 or more",
  "accumulate=0": "accumulate=0: give 1 or more",
  "log_every=0": "log_every=0: give 1 or more",
  "checkpoint.every_steps=0": "every_steps=0: give 1 or more",
  "eval.batch_size=0": "eval.batch_size=0: give 1 or more",
  "augment.views=0": "augment.views=0: give 1 or more",
  "encoder.width=0": "encoder.width=0: give 1 or more",
  "data.size=32": "config.data.size=(32,): give two numbers",
  "augment.size=32": "config.augment.size=32: give two numbers",
  "augment.area=0.3": "config.augment.area=(0.3,): give two numbers",
  "augment.local_size=(0,4)": "local_size=(0, 4): give two numbers",
  "augment.interpolation=nearest": "choose bilinear or bicubic",
  "method.out_dim=abc": "simclr: out_dim='abc' is not int",
  "method.hidden_dim=abc": "simclr: hidden_dim='abc' is not int | None",
  "optimizer.freeze=encoder": "freeze='encoder': give dicts of match and steps",
  "optimizer.groups=encoder": "group e: give match",
  "method.name=distillation": "ssljax.methods.distillation has no `make`",
  "encoder.name=heads": "ssljax.models.heads has no `make`",
}


@pytest.mark.parametrize("flag", WRONG)
def test_a_wrong_value_is_told(mistake, flag):
  assert WRONG[flag] in mistake("train", f"--config.{flag}")


def test_a_topology_of_no_devices_is_told(mistake):
  line = mistake("plan", f"--config={QUICK}", "--topology=cpu:0")
  assert "unknown --topology=cpu:0" in line


@pytest.mark.parametrize("text", ["", '{"seed": 0,', "[]", '{"seed": 0}'])
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_damaged_config_of_a_run_is_told(mistake, tmp_path, command, text):
  (tmp_path / "config.json").write_text(text)
  line = mistake(command, f"--workdir={tmp_path}")
  assert f"{tmp_path / 'config.json'} is damaged" in line


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_each_command_tells_its_usage(capsys, command):
  said = set()
  for argv in (
    [command, "--help"],
    [command, "--workdir=W", "-h"],
    ["--help", command],
    ["help", command],
  ):
    assert cli.main(argv) == 0
    said.add(capsys.readouterr().out)
  (usage,) = said
  assert usage.startswith(f"usage: ssljax {command} ")
  others = [c for c in cli._COMMANDS if c != command]
  assert not any(re.search(rf"^  {c} ", usage, re.M) for c in others)
  assert "Exit status" not in usage


def test_help_and_version(capsys, mistake):
  assert cli.main(["--help"]) == 0
  assert "\n  train " in capsys.readouterr().out
  assert cli.main(["--version"]) == 0
  assert capsys.readouterr().out == f"ssljax {ssljax.__version__}\n"
  assert "unknown command 'trian'" in mistake("trian", "--help")


@pytest.mark.parametrize(
  "argv",
  [
    ["train", "steps=5"],
    ["train", "--config.steps", "5"],
    ["evaluate", "--workdir=W", "knn"],
    ["plan", f"--config={QUICK}", "--topology=cpu:1", "largest"],
    ["import", "steps=5"],
  ],
)
def test_arguments_without_dashes_are_refused(mistake, argv):
  assert f"unexpected {argv[-1]!r}: flags begin with --" in mistake(*argv)


def test_arguments_without_dashes_are_names_where_meant(mistake, tmp_path):
  assert "did you mean 'resume'" in mistake("selftest", "resum")
  runs = [f"--workdir={tmp_path / 'one'}", str(tmp_path / "two")]
  assert "no run in" in mistake("report", *runs)
