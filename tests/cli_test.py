"""The command line misused: one line that names the mend, and status 2."""

import re

import pytest

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
