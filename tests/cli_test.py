"""The command line misused: one line that names the mend, and status 2."""

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
