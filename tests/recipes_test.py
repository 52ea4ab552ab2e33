"""The held-out recipes' bookkeeping."""

import json
import os

import pytest

from benchmarks import league
from benchmarks import recipes


@pytest.fixture
def ran(monkeypatch, tmp_path):
  """The flags of the runs, in place of which figures are made."""
  commands = []
  monkeypatch.setattr(recipes, "_RUNS", str(tmp_path))
  monkeypatch.setattr(recipes, "_ROWS", str(tmp_path / "recipes.csv"))

  def command(name, *flags):
    if name == "evaluate":
      assert "--protocols=linear" in flags
      return {"linear": 0.85}
    assert name == "train"
    commands.append(flags)
    (workdir,) = [f[10:] for f in flags if f.startswith("--workdir=")]
    os.mkdir(workdir)
    rows = [
      {"step": 195, "knn": 0.7},
      {"step": 390, "monitor/rankme": 40.04},
      {"step": 390, "knn": 0.8 + len(commands) / 100},
    ]
    with open(os.path.join(workdir, "metrics.jsonl"), "w") as f:
      f.write("\n".join(map(json.dumps, rows)))
    with open(os.path.join(workdir, "environment.json"), "w") as f:
      f.write('{"jax": "1", "device_kind": "cpu"}')
    return {"steps": 390}

  monkeypatch.setattr(league, "command", command)
  return commands


def test_a_recipe_is_run_once_on_held_out_images(ran):
  row = recipes.run("simclr", ["--config.augment.strength=0.7"])
  assert (row["knn"], row["linear"], row["rankme"]) == (0.81, 0.85, 40.0)
  again = recipes.run("simclr", ["--config.augment.strength=0.7"])
  assert again["key"] == row["key"] and len(ran) == 1
  recipes.run("simclr", [])  # as the config has it
  recipes.run("simclr", ["--config.augment.strength=1.0"])  # the same
  assert len(ran) == 2
  for flags in ran:
    splits = [f for f in flags if "split" in f]
    assert splits == [
      "--config.data.split=train[:50000]",
      "--config.eval.train_split=train[:50000]",
      "--config.eval.test_split=train[50000:]",
    ]


def test_the_table_has_the_best_first_and_the_configs_own_in_bold(ran):
  rows = [
    recipes.run("simclr", []),
    recipes.run("simclr", ["--config.augment.strength=0.7"]),
    recipes.run("byol", ["--config.method.ema=0.9"]),
  ]
  assert recipes.table(rows).splitlines()[2:] == [
    "| byol | resnet10-small | `method.ema=0.9` | 0.83 | 0.85 | 40.0 |",
    "| simclr | resnet10-small | `augment.strength=0.7` | 0.82 | 0.85 | 40.0 |",
    "| simclr | resnet10-small |  | **0.81** | 0.85 | 40.0 |",
  ]


def test_unknown_methods_end_with_the_known_ones():
  with pytest.raises(SystemExit, match="'simclear': one of .*simclr"):
    recipes.run("simclear", [])


def test_swavs_multi_crop_is_the_recipe_that_its_figures_are_of():
  path = league.path_of("swav") + ":multi_crop"
  key = league.key_of(path, 0, recipes.flags_of(own=True), own=True)
  rows = {row["key"]: row for row in recipes.rows_lib.read(recipes._ROWS)}
  told = open(league.path_of("swav")).read()
  for figure in ("knn", "linear"):
    assert f"{float(rows[key][figure]):.4f}" in told
