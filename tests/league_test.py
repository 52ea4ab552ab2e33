"""The league's bookkeeping: what is there is not run again, nor what changed
shown."""

import json
import os
import pathlib
import re

import pytest

from benchmarks import league


@pytest.fixture
def ran(monkeypatch, tmp_path):
  """The commands that the league ran, in place of which figures are made."""
  commands = []
  readme = tmp_path / "README.md"
  readme.write_text("before\n<!-- league -->\nold\n<!-- /league -->\nafter\n")
  monkeypatch.setattr(league, "_RUNS", str(tmp_path))
  monkeypatch.setattr(league, "_ROWS", str(tmp_path / "league.csv"))
  monkeypatch.setattr(league, "_README", str(readme))
  monkeypatch.setattr(league, "_PLOT", str(tmp_path / "league.png"))

  def command(name, *flags):
    commands.append((name, flags))
    (workdir,) = [f[10:] for f in flags if f.startswith("--workdir=")]
    if name == "train":
      workdir = pathlib.Path(workdir)
      workdir.mkdir()
      rows = [{"step": 234, "knn": 0.7}, {"step": 240, "loss": 1.0}]
      text = "\n".join(map(json.dumps, rows))
      (workdir / "metrics.jsonl").write_text(text)
      here = {"jax": "1", "cpus": 2, "device_kind": "cpu"}
      (workdir / "environment.json").write_text(json.dumps(here))
      return {"steps": 1170, "collapsed": None}
    figures = {"knn": 0.8 + 0.001 * len(commands), "linear": 0.85}
    if "--floors=1" in flags:
      names = ("random_knn", "random_linear", "raw_knn", "raw_linear")
      figures |= dict.fromkeys(names, 0.5)
    return figures

  monkeypatch.setattr(league, "command", command)
  return commands


def test_rows_are_run_once_and_shown(ran):
  league.play(["simclr", "byol", "mae"], minutes=1)
  assert [name for name, _ in ran] == 3 * ["train", "evaluate"]
  floors = [flags[-1] for name, flags in ran if name == "evaluate"]
  # One random ResNet for all, and one of the ViT.
  assert floors == ["--floors=1", "--floors=0", "--floors=1"]
  league.play(["simclr", "byol", "mae"], minutes=1)
  assert len(ran) == 6
  rows = league.current()
  assert [row["method"] for row in rows] == ["simclr", "byol", "mae"]
  encoders = [row["encoder"] for row in rows]
  assert encoders == ["resnet10-small", "resnet10-small", "vit-small"]
  assert rows[1]["random_knn"] == "0.5" and rows[0]["curve"] == "234:0.7000"
  league.write(rows)
  text = pathlib.Path(league._README).read_text()
  assert text.startswith("before\n") and text.endswith("after\n")
  assert "old" not in text
  line = "| byol | resnet10-small | 1 | .8040 | .8500 | .5000 | .5000 |\n"
  assert line in text
  assert os.path.getsize(league._PLOT) > 1000


def test_own_encoders_have_rows_and_a_table_of_their_own(ran):
  league.play(["simclr"], minutes=1)
  league.play(["simclr"], minutes=1, own=True, seeds=(0, 1))
  small, *own = [flags for name, flags in ran if name == "train"]
  assert any("config.encoder" in flag for flag in small) and len(own) == 2
  assert not any("config.encoder" in flag for flags in own for flag in flags)
  assert [row["encoder"] for row in league.current()] == ["resnet10-small"]
  rows = league.current(own=True)
  assert [(r["encoder"], r["seed"]) for r in rows] == [
    ("resnet18", "0"),
    ("resnet18", "1"),
  ]
  with pytest.raises(SystemExit, match="has no <!-- league of own encoders"):
    league.write(rows, own=True)
  text = "<!-- league of own encoders -->\n<!-- /league of own encoders -->\n."
  pathlib.Path(league._README).write_text(text)
  league.write(rows, own=True)
  assert "| simclr | resnet18 | 2 |" in pathlib.Path(league._README).read_text()


def test_parts_are_all_and_the_best_wait_for_them(ran, monkeypatch):
  few = {m: league.configs()[m] for m in ("byol", "mae", "simclr")}
  monkeypatch.setattr(league, "configs", lambda: few)
  trained = lambda: [
    r["method"] for r in league.rows_lib.read(league._ROWS) if r["seed"] == "0"
  ]
  league.play([], 1, part=1, parts=2)
  assert trained() == ["mae"] and len(ran) == 2
  league.play([], 1, part=0, parts=2)
  assert trained() == ["mae", "byol", "simclr"]
  seeds = [
    (r["method"], r["seed"]) for r in league.rows_lib.read(league._ROWS)[3:]
  ]
  # Half of both seeds of all three.
  assert seeds == [("mae", "1"), ("simclr", "1"), ("byol", "2")]
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5})
  pinned = []
  monkeypatch.setattr(os, "sched_setaffinity", lambda pid, c: pinned.append(c))
  league.pin(0, 2)
  assert pinned == [[1, 5]]
  with pytest.raises(SystemExit, match="there are 3 cores"):
    league.pin(3, 4)


def test_rows_of_other_configs_are_not_shown(ran, monkeypatch):
  league.play(["simclr", "byol"], minutes=1)
  monkeypatch.setattr(league, "_FLAGS", (*league._FLAGS, "--config.epochs=9.0"))
  assert league.current() == []


def test_all_have_one_encoder_of_a_family():
  sizes = {}
  for path in league.configs().values():
    encoder = league.config_lib.load(path, league.flags(path, 0)).encoder
    keys = ("variant", "stem", "width", "dim", "depth", "heads")
    size = {key: encoder[key] for key in keys if key in encoder}
    sizes.setdefault(league.encoder_of(path), []).append(size)
  resnet, small = dict(variant="10", stem="small", width=16), dict(dim=64)
  assert all(size == resnet for size in sizes.pop("resnet18"))
  small |= dict(variant="Ti/4", depth=4, heads=2)
  assert all(size == small for size in sizes.pop("vit"))
  assert not sizes


def test_a_default_that_is_new_changes_no_key(monkeypatch):
  path = league.configs()["simclr"]
  before = league.key_of(path, 0)
  assert before != league.key_of(path, 1)
  real = league.config_lib.to_dict
  monkeypatch.setattr(
    league.config_lib, "to_dict", lambda config: real(config) | {"more": 1}
  )
  assert league.key_of(path, 0) == before


def test_an_unknown_method_and_the_time(ran):
  with pytest.raises(SystemExit, match="no config for 'simclear'"):
    league.play(["simclear"], minutes=1)
  with pytest.raises(SystemExit, match="the time is up"):
    league.play(["simclr"], minutes=-1)
  assert not ran


def test_what_configs_say_of_the_league_is_in_its_rows():
  told = {}
  for method, path in league.configs().items():
    with open(path) as f:
      words = " ".join(f.read().split())
    if found := re.search("smaller one has kNN ([^,]+), linear ([^ ]+)", words):
      told[method] = tuple(map(float, found.groups()))
  rows = {
    row["method"]: (float(row["knn"]), float(row["linear"]))
    for row in league.current()
    if row["seed"] == "0"
  }
  assert len(told) > 15
  assert told == {method: rows.get(method) for method in told}
