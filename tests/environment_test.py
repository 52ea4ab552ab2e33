"""What a run tells of where it ran."""

import os
import platform
import subprocess

from ssljax import environment


def test_the_cpus_that_are_told_are_the_process_own(monkeypatch):
  one = lambda pid: {3}
  monkeypatch.setattr(os, "sched_getaffinity", one, raising=False)
  assert environment.describe()["cpus"] == 1
  monkeypatch.delattr(os, "sched_getaffinity")  # as on a Mac
  assert environment.describe()["cpus"] == os.cpu_count()


def test_without_git_the_commit_is_not_known(monkeypatch):
  monkeypatch.setenv("PATH", "")
  assert environment.describe()["git"] is None


def test_the_commit_is_of_what_runs(monkeypatch, tmp_path):
  git = lambda *args: subprocess.run(
    ["git", "-c", "user.name=a", "-c", "user.email=a@b", *args],
    cwd=tmp_path,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.strip()
  git("init")
  git("commit", "--allow-empty", "--message=another project")
  file = tmp_path / "environment.py"
  file.write_text("")
  monkeypatch.setattr(environment, "__file__", str(file))
  assert environment.describe()["git"] is None  # it is installed there
  git("add", "environment.py")
  git("commit", "--message=its own")
  git("tag", "v1")
  assert environment.describe()["git"] == git("rev-parse", "HEAD")
  file.write_text("changed")
  assert environment.describe()["git"] == git("rev-parse", "HEAD") + "-dirty"


def test_the_kind_of_cpu_is_told(monkeypatch, tmp_path):
  told = lambda: environment.describe()["cpu"]
  info = tmp_path / "cpuinfo"
  monkeypatch.setattr(environment, "_CPUINFO", str(info))
  monkeypatch.setattr(platform, "processor", lambda: "")
  assert told() == platform.machine()  # as where there is no such file
  info.write_text("processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n")
  assert told() == "AMD EPYC"
  info.write_text(
    "cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t:\n"
  )
  assert told() == "AMD EPYC, cpu family 26, model 2"
