"""Debian's texts as TFDS datasets, from small files that look like them."""

import json
import os
import stat

import pytest
import tensorflow_datasets as tfds

from ssljax import errors
from ssljax.data import corpora
from ssljax.data import debian
from ssljax.data import prepare

LICENCE = "  1 This software and database is being provided to you\n"


def synset(offset, lexicographer, kind, gloss):
  return f"{offset:08} {lexicographer:02} {kind} 01 word 0 000 | {gloss}  \n"


@pytest.fixture
def wordnet(tmp_path, monkeypatch):
  folder = tmp_path / "wordnet"
  folder.mkdir()
  for file, kind, lexicographer in (
    ("data.noun", "n", 5),
    ("data.verb", "v", 38),
    ("data.adj", "s", 44),
    ("data.adv", "r", 2),
  ):
    lines = [
      synset(i, lexicographer, kind, f'{file} {i}; "a | b"')
      for i in range(1740, 1800)
    ]
    (folder / file).write_text(LICENCE + "".join(lines))
  monkeypatch.setattr(corpora.WordnetGlosses, "FOLDER", str(folder))
  return folder


@pytest.fixture
def bible(tmp_path, monkeypatch):
  """A program of 40 chapters with two verses each."""
  path = tmp_path / "program"
  lines = [f"Ge{c}:{v} Verse {v} of {c}." for c in range(40) for v in (1, 2)]
  text = "\n".join(lines)
  path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setattr(corpora.Bible, "PROGRAM", str(path))
  return path


def read(name, root):
  builder = tfds.builder(name, data_dir=str(root))
  text = lambda x: x.decode() if isinstance(x, bytes) else x
  return {
    split: [
      {k: text(v) for k, v in row.items()}
      for row in builder.as_data_source(split=split)
    ]
    for split in builder.info.splits
  }


def test_glosses_with_their_labels(wordnet, tmp_path):
  prepare.prepare("wordnet", data_dir=str(tmp_path))
  rows = read("wordnet_glosses", tmp_path)
  assert {k: len(v) for k, v in rows.items()} == {
    "train": 4 * 54,
    "validation": 4 * 3,
    "test": 4 * 3,
  }
  by_synset = {row["synset"]: row for part in rows.values() for row in part}
  row = by_synset["n00001741"]
  assert row["text"] == 'data.noun 1741; "a | b"'
  assert corpora.LEXNAMES[row["label"]] == "noun.animal"
  assert corpora.LEXNAMES[by_synset["s00001745"]["label"]] == "adj.ppl"
  assert {int(row["synset"][1:]) % 20 for row in rows["test"]} == {1}
  assert {int(row["synset"][1:]) % 20 for row in rows["validation"]} == {0}


def test_there_are_45_names():
  assert len(corpora.LEXNAMES) == 45
  assert corpora.LEXNAMES[18] == "noun.person"


def test_verses_by_chapter(bible, tmp_path):
  prepare.prepare("bible", data_dir=str(tmp_path))
  rows = read("bible", tmp_path)
  assert {k: len(v) for k, v in rows.items()} == {
    "train": 72,
    "validation": 4,
    "test": 4,
  }
  assert {row["verse"] for row in rows["validation"]} == {
    "Ge0:1",
    "Ge0:2",
    "Ge20:1",
    "Ge20:2",
  }
  assert {row["text"] for row in rows["test"]} >= {"Verse 2 of 21."}
  verses = [row["verse"] for row in rows["train"]]  # each after the one before
  place = lambda verse: tuple(map(int, verse.removeprefix("Ge").split(":")))
  assert verses == sorted(verses, key=place)


@pytest.mark.parametrize("name", ["wordnet", "bible"])
def test_what_is_not_there_is_named(name, tmp_path, monkeypatch):
  monkeypatch.setattr(corpora.WordnetGlosses, "FOLDER", str(tmp_path / "no"))
  monkeypatch.setattr(corpora.Bible, "PROGRAM", str(tmp_path / "no"))
  monkeypatch.setattr(debian, "install", lambda *packages: "apt-get (no)")
  with pytest.raises(errors.UserError) as e:
    prepare.prepare(name, data_dir=str(tmp_path))
  line = str(e.value)
  assert "apt-get (no)" in line and "sudo apt-get install -y " in line
  assert "\n" not in line
  assert not any(f.startswith("incomplete") for f in os.listdir(tmp_path))


@pytest.mark.slow
def test_the_real_ones(tmp_path):
  counts = {}
  for name in ("wordnet_glosses", "bible"):
    path = prepare.prepare(name, data_dir=str(tmp_path))
    with open(os.path.join(path, "dataset_info.json")) as f:
      splits = json.load(f)["splits"]
    counts[name] = {s["name"]: sum(map(int, s["shardLengths"])) for s in splits}
  assert sum(counts["wordnet_glosses"].values()) == 117_659
  assert sum(counts["bible"].values()) == 31_102
