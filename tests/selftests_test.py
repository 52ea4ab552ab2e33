"""The record of the selftests: what is there is not run again, what failed is
told."""

import json
import subprocess
import types

import pytest

from benchmarks import selftests


@pytest.fixture
def ran(monkeypatch, tmp_path):
  """The commands that ran, in place of which `nan` fails for MoCo."""
  commands = []
  monkeypatch.setattr(selftests, "_ROWS", str(tmp_path / "selftests.csv"))
  monkeypatch.setattr(selftests, "git", lambda: "abc")

  def run(command, **unused):
    *_, test, config = command
    commands.append((test, config))
    failures = ["a"] if (test, "moco" in config) == ("nan", True) else []
    result = {"passed": not failures, "failures": failures}
    return types.SimpleNamespace(stdout=json.dumps(result) + "\n", stderr="")

  monkeypatch.setattr(subprocess, "run", run)
  return commands


def play(monkeypatch, *flags):
  monkeypatch.setattr("sys.argv", ["selftests", *flags])
  selftests.main()


def test_three_are_of_all_methods_and_the_others_of_each_family(
  ran, monkeypatch
):
  play(monkeypatch, "--tests=resume,stall")
  methods = selftests.configs()
  of = lambda test: [config for name, config in ran if name == test]
  assert len(of("resume")) == len(methods) > 25
  assert len(of("stall")) == len(selftests._FAMILIES)
  assert all(config.endswith(":quick") for _, config in ran)
  papers = ("imagenet", "wikipedia", "webtext")
  assert not any(name in config for _, config in ran for name in papers)


def test_what_is_there_is_not_run_again_and_failures_end_with_1(
  ran, monkeypatch
):
  play(monkeypatch, "--tests=nan,corrupt", "--methods=byol")
  assert len(ran) == 2
  with pytest.raises(SystemExit, match="1"):
    play(monkeypatch, "--tests=nan", "--methods=byol,moco")
  assert len(ran) == 3
  rows = selftests.rows_lib.read(selftests._ROWS)
  assert [r["passed"] for r in rows] == ["True", "True", "False"]
  assert rows[-1]["failures"] == "a" and rows[-1]["git"] == "abc"


def test_what_ends_without_a_result_did_not_pass(monkeypatch):
  ended = types.SimpleNamespace(
    stdout="", stderr="x\nssljax: no mount\n", returncode=2
  )
  monkeypatch.setattr(subprocess, "run", lambda *a, **k: ended)
  passed, failures, _ = selftests.run("diskfull", "c.py")
  assert not passed and failures == "ssljax: no mount"
  ended.stderr = ""
  assert selftests.run("diskfull", "c.py")[:2] == (False, "status 2")
