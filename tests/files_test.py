import errno
import fcntl
import os
import types

import numpy as np
import pytest

from ssljax import config as config_lib
from ssljax import errors
from ssljax import files
from ssljax import workdir as workdir_lib
from ssljax.data import sources


def test_what_a_run_goes_on_by_is_moved_into_place(tmp_path, monkeypatch):
  moved = []
  replace = os.replace
  note = lambda old, new: (
    moved.append(os.path.basename(new)) or replace(old, new)
  )
  monkeypatch.setattr(os, "replace", note)
  source = sources.ArraySource({"image": np.zeros((3, 8, 8, 1), np.uint8)})
  source.files = {"tokenizer": "{}"}
  run = types.SimpleNamespace(config=config_lib.base(), source=source)
  with workdir_lib.claimed(run, str(tmp_path)):
    pass
  kept = ["config.json", "tokenizer.json", "source.json", "environment.json"]
  assert moved == kept
  with workdir_lib.claimed(run, str(tmp_path)):
    with pytest.raises(errors.UserError, match="another process trains in"):
      with workdir_lib.claimed(run, str(tmp_path)):
        pass
  assert moved == kept


def test_a_kill_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
  path = str(tmp_path / "folder" / "config.json")
  files.write(path, "old")

  def killed(*_):
    raise KeyboardInterrupt

  for name in ("fsync", "replace"):
    with monkeypatch.context() as patch:
      patch.setattr(os, name, killed)
      with pytest.raises(KeyboardInterrupt):
        files.write(path, "new")
    assert open(path).read() == "old"
  files.write(path, "new")
  assert open(path).read() == "new"
  assert os.listdir(tmp_path / "folder") == ["config.json"]


def test_a_full_disk_leaves_what_was_there_and_nothing_beside(
  tmp_path, monkeypatch
):
  path = str(tmp_path / "config.json")
  files.write(path, "old")

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space"):
    files.write(path, "new")
  assert open(path).read() == "old"
  assert os.listdir(tmp_path) == ["config.json"]


def test_rows_that_are_damaged_are_left_out(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  assert files.rows(str(path)) == []
  path.write_bytes(
    b'{"step": 1}\n\0\0\xff\n{"stfp": 2}\n{"step": "2"}\n3\n'
    b'{"step": 2, "loss": "0.1"}\n'
    b'{"step": 3}\n{"step"'
  )
  assert files.rows(str(path)) == [{"step": 1}, {"step": 3}]
  assert caplog.text.count("a damaged line is left out") == 5
  path.write_text('{"step": 1, "loss": null}\n')  # not finite
  assert files.rows(str(path)) == [{"step": 1, "loss": None}]


def test_what_is_equal_is_left_alone(tmp_path):
  path = str(tmp_path / "config.json")
  files.write(path, "text")
  before = os.stat(path).st_ino
  files.write(path, "text")
  assert os.stat(path).st_ino == before


def test_arrays_are_whole_or_as_they_were(tmp_path, monkeypatch):
  out = str(tmp_path / "out.npz")
  files.write_npz(out, {"x": np.arange(3)})
  for missing in ("nowhere/out.npz", "out.npy"):
    with pytest.raises(errors.UserError, match="give a name"):
      files.require_npz(str(tmp_path / missing))
  files.require_npz(out)

  def full(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(errors.UserError, match="No space"):
    files.write_npz(out, {"x": np.arange(5)})
  assert os.listdir(tmp_path) == ["out.npz"]
  np.testing.assert_array_equal(np.load(out)["x"], np.arange(3))


def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
  def none(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(fcntl, "flock", none)
  with files.alone(str(tmp_path)):
    assert "no locks in" in caplog.text
