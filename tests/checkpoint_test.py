"""Checkpoints: what a disk does to them is found before it is restored."""

import errno
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import checkpoint
from ssljax import digests
from ssljax import errors


def _state(step):
  """Arrays of several types, over several devices and on one."""
  mesh = jax.make_mesh((8,), ("data",))
  cut = jax.NamedSharding(mesh, jax.P("data"))
  return {
    "params": {"a": jnp.full((64, 32), step, jnp.float32), "b": jnp.zeros(())},
    "moments": jax.device_put(jnp.arange(1024.0) + step, cut),
    "half": jnp.full((7,), step, jnp.bfloat16),
    "step": jnp.int32(step),
    "flags": jnp.array([True, False]),
  }


@pytest.fixture(name="saved", scope="module")
def fixture_saved(tmp_path_factory):
  """A folder of checkpoints of steps 1 to 3."""
  folder = str(tmp_path_factory.mktemp("checkpoints"))
  checkpoints = checkpoint.Checkpoints(folder)
  for step in (1, 2, 3):
    checkpoints.save(step, _state(step))
  checkpoints.wait()
  checkpoints.close()
  return folder


@pytest.fixture(name="folder")
def fixture_folder(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "checkpoints")


def _files(folder):
  for base, _, names in os.walk(folder):
    yield from (os.path.join(base, name) for name in sorted(names))


def _flip(path, bit):
  with open(path, "r+b") as f:
    f.seek(bit // 8)
    (byte,) = f.read(1)
    f.seek(bit // 8)
    f.write(bytes([byte ^ 1 << bit % 8]))


def _restored(folder, **options):
  checkpoints = checkpoint.Checkpoints(str(folder), **options)
  everywhere = jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P())
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
  state = checkpoints.restore(jax.tree.map(shape, _state(0)))
  checkpoints.close()
  return state


def test_what_is_whole_is_restored(folder):
  jax.tree.map(np.testing.assert_array_equal, _restored(folder), _state(3))
  assert sorted(os.listdir(folder)) == ["1", "2", "3"]


def test_the_digest_of_a_state_is_of_every_bit():
  state = jax.tree.map(np.array, _state(1))
  before = checkpoint.sha256(state)
  assert before == checkpoint.sha256(_state(1)) != checkpoint.sha256(_state(2))
  for name in ("half", "moments", "flags"):
    changed = state | {name: state[name].copy()}
    changed[name].view(np.uint8)[-1] ^= 1
    assert checkpoint.sha256(changed) != before


@pytest.mark.parametrize("seed", range(20))
def test_one_bit_in_any_file_is_found_and_the_step_before_restored(
  folder, seed
):
  rng = random.Random(seed)
  path = rng.choice([p for p in _files(folder / "3") if os.path.getsize(p)])
  _flip(path, rng.randrange(8 * os.path.getsize(path)))
  jax.tree.map(np.testing.assert_array_equal, _restored(folder), _state(2))
  assert sorted(os.listdir(folder)) == ["1", "2", "damaged-3"]


def test_every_file_is_watched(folder):
  for path in list(_files(folder / "3")):
    if os.path.getsize(path):
      _flip(path, 3)
      assert digests.wrong_file(str(folder / "3")), path
      _flip(path, 3)
  assert digests.wrong_file(str(folder / "3")) is None


@pytest.mark.parametrize("how", ["truncated", "emptied", "removed"])
def test_lost_bytes_are_found(folder, how, caplog):
  path = max(_files(folder / "3" / "default"), key=os.path.getsize)
  if how == "removed":
    os.remove(path)
  else:
    os.truncate(path, 0 if how == "emptied" else os.path.getsize(path) - 1)
  assert int(_restored(folder)["step"]) == 2
  assert os.path.relpath(path, folder / "3") in caplog.text
  assert "damaged-3" in caplog.text


def test_a_folder_that_is_no_checkpoint_is_set_aside(folder):
  (folder / "9").mkdir()
  assert int(_restored(folder)["step"]) == 3
  assert sorted(os.listdir(folder)) == ["1", "2", "3", "unfinished-9"]


def test_of_what_never_counted_the_last_alone_stays(folder):
  for name in ("unfinished-4", "damaged-5", "9"):
    (folder / name).mkdir()
  _restored(folder)
  there = ["1", "2", "3", "damaged-5", "unfinished-9"]
  assert sorted(os.listdir(folder)) == there
  _restored(folder)
  assert sorted(os.listdir(folder)) == there


def test_readers_pass_over_what_is_damaged_and_leave_it(folder, caplog):
  (folder / "9").mkdir()
  _flip(max(_files(folder / "3"), key=os.path.getsize), 77)
  assert int(_restored(folder, read_only=True)["step"]) == 2
  assert sorted(os.listdir(folder)) == ["1", "2", "3", "9"]
  (told,) = [r.getMessage() for r in caplog.records if "passed" in r.msg]
  assert f"{folder}/3 is damaged (" in told


def test_a_reader_beside_a_run_sees_what_it_saves(folder):
  checkpoints = checkpoint.Checkpoints(str(folder), read_only=True)
  writer = checkpoint.Checkpoints(str(folder))
  writer.save(7, _state(7))
  writer.wait()
  assert int(checkpoints.restore(_state(0))["step"]) == 7


@pytest.mark.parametrize(
  "module, name, read",
  [
    (digests, "read", lambda c: c.restore(_state(0))),
    (digests, "_of_file", lambda c: c.restore(_state(0), 3)),
    (digests, "shapes", lambda c: c.restore_part(_state(0))),
  ],
)
def test_a_step_that_a_run_removes_while_it_is_read_is_told(
  folder, monkeypatch, module, name, read
):
  checkpoints = checkpoint.Checkpoints(str(folder), read_only=True)
  if name != "_of_file":
    assert checkpoints.latest_step() == 3  # whose files are read by then
  call = getattr(module, name)

  def gone(*args):
    shutil.rmtree(folder / "3", ignore_errors=True)
    return call(*args)

  monkeypatch.setattr(module, name, gone)
  with pytest.raises(errors.UserError, match="3 was removed .*: try again"):
    read(checkpoints)


def test_a_step_that_was_asked_for_and_is_damaged_is_an_error(folder):
  _flip(max(_files(folder / "2" / "default"), key=os.path.getsize), 77)
  checkpoints = checkpoint.Checkpoints(str(folder), read_only=True)
  with pytest.raises(errors.UserError, match="2 is damaged .*not what was"):
    checkpoints.restore(_state(0), 2)


def test_other_arrays_are_told_before_orbax_is_asked(folder, capfd):
  checkpoints = checkpoint.Checkpoints(str(folder), read_only=True)
  others = _state(0) | {"half": np.zeros(1)}
  for call in (
    lambda: checkpoints.restore(others),
    lambda: checkpoints.restore_part({"half": np.zeros(1)}),
    lambda: checkpoint.require_fit(str(folder), others),
  ):
    with pytest.raises(errors.UserError, match=r"half is .* is \(1,\) here"):
      call()
  assert capfd.readouterr().err == ""


def test_a_part_without_arrays_here_is_compared_too(tmp_path):
  params = {"params": {"w": np.zeros(2)}}
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(1, params | {"method_state": {"queue": np.zeros(5)}})
  for empty in ({}, {"batch_stats": {}}):
    with pytest.raises(errors.UserError, match=r"queue is \(5,\) there and is"):
      checkpoint.require_fit(str(tmp_path), params | {"method_state": empty})


def test_what_is_damaged_says_nothing_of_its_arrays(folder):
  checkpoint.require_fit(str(folder), _state(0))
  checkpoint.require_fit(str(folder), {"flags": _state(0)["flags"]})
  checkpoint.require_fit(str(folder / "none"), {"x": np.zeros(1)})
  (folder / "9").mkdir()
  _flip(folder / "3" / "digests.0.json", 77)
  with pytest.raises(errors.UserError, match="/2 does not fit"):
    checkpoint.require_fit(str(folder), {"x": np.zeros(1)})


def test_without_digests_nothing_counts_as_saved(folder):
  for path in list(_files(folder)):
    if os.path.basename(path).startswith("digests."):
      os.remove(path)
  with pytest.raises(errors.UserError, match="whole in .* is 1, 2, 3: give"):
    _restored(folder, read_only=True)
  with pytest.raises(errors.UserError, match="are from before .* train again"):
    checkpoint.Checkpoints(str(folder))
  assert sorted(os.listdir(folder)) == ["1", "2", "3"]
  for step in "12":  # one alone may be the first, whose process died
    shutil.rmtree(folder / step)
  assert checkpoint.Checkpoints(str(folder)).latest_step() is None
  assert os.listdir(folder) == ["unfinished-3"]


def test_all_is_on_the_disk_before_a_step_counts(tmp_path, monkeypatch):
  synced, fsync, replace = [], os.fsync, os.replace

  def noted(opened):
    synced.append(os.readlink(f"/proc/self/fd/{opened}"))
    return fsync(opened)

  def counts(source, target):
    before.extend(synced)
    return replace(source, target)

  before = []
  folder = tmp_path / "checkpoints" / "3"
  (folder / "params").mkdir(parents=True)
  for name in ("a", "params/b"):
    (folder / name).write_text(name)
  monkeypatch.setattr(digests.os, "fsync", noted)
  monkeypatch.setattr(digests.os, "replace", counts)
  digests.write(str(folder), {})
  assert {str(folder / name) for name in ("a", "params/b", "params")} <= {
    *before
  }
  assert synced[-2:] == [str(folder), str(folder.parent)]


def test_a_disk_that_fails_is_no_checkpoint(tmp_path, monkeypatch):
  (tmp_path / "3").mkdir()
  (tmp_path / "3" / "a").write_text("a")

  fsync = os.fsync

  def fails(opened):
    if os.readlink(f"/proc/self/fd/{opened}").endswith("/3/a"):
      raise OSError(errno.EIO, os.strerror(errno.EIO))
    return fsync(opened)

  monkeypatch.setattr(digests.os, "fsync", fails)
  with pytest.raises(OSError, match="Input/output"):
    digests.write(str(tmp_path / "3"), {})
  assert not digests.exist(str(tmp_path / "3"))


def test_files_are_read_once(folder, monkeypatch):
  read, sound = [], digests.wrong_file
  note = lambda folder: read.append(folder) or sound(folder)
  monkeypatch.setattr(digests, "wrong_file", note)
  for options in ({}, {"read_only": True}):
    read.clear()
    _restored(folder, **options)
    assert read == [str(folder / "3")]


def test_nothing_starts_anew_where_all_are_damaged(folder):
  for step in "123":
    _flip(max(_files(folder / step), key=os.path.getsize), 5)
  for _ in range(2):  # nor the second time
    with pytest.raises(errors.SafeStop, match="all .* of steps 3, 2, 1"):
      checkpoint.Checkpoints(str(folder))


def _other(*unused):
  return lambda name, place: np.int32(3)


def test_a_save_whose_files_change_at_once_does_not_count(
  tmp_path, monkeypatch
):
  read = checkpoint._reader

  def flipped(path, names):
    path = max(_files(path), key=os.path.getsize)
    _flip(path, 4 * os.path.getsize(path))
    return read(os.path.join(tmp_path, "1", "default"), names)

  monkeypatch.setattr(checkpoint, "_reader", flipped)
  noise = {"noise": jax.random.normal(jax.random.key(0), (1 << 16,))}
  with pytest.raises(errors.SafeStop, match="noise of step 1 reads otherwise"):
    with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
      checkpoints.save(1, _state(1) | noise)


def test_a_save_that_reads_otherwise_does_not_count(tmp_path, monkeypatch):
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  checkpoints.save(1, _state(1))
  checkpoints.wait()
  monkeypatch.setattr(checkpoint, "_reader", _other)
  checkpoints.save(2, _state(2))
  with pytest.raises(errors.SafeStop, match="flags of step 2 reads .*, step 1"):
    checkpoints.wait()
  monkeypatch.undo()
  assert int(_restored(tmp_path)["step"]) == 1
  assert "unfinished-2" in os.listdir(tmp_path)


def test_a_save_that_fails_after_another_error_is_logged(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(checkpoint, "_reader", _other)
  with pytest.raises(ValueError, match="the first"):
    with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
      checkpoints.save(2, _state(2))
      raise ValueError("the first")
  assert "flags of step 2 reads otherwise" in caplog.text
  with pytest.raises(errors.SafeStop, match="reads otherwise"):
    with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
      checkpoints.save(3, _state(3))


def test_a_step_is_removed_only_once_a_later_one_is_whole(
  tmp_path, monkeypatch
):
  read, there = checkpoint._reader, []

  def note(*args):
    there.append(sorted(os.listdir(tmp_path)))
    return read(*args)

  monkeypatch.setattr(checkpoint, "_reader", note)
  with checkpoint.Checkpoints(str(tmp_path), keep=1) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, _state(step))
  assert there == [["1"], ["1", "2"], ["2", "3"]]
  assert os.listdir(tmp_path) == ["3"]


def test_the_last_and_the_best_are_kept_over_a_restart(tmp_path):
  knn = {1: 0.5, 2: 0.9, 3: 0.4}
  for steps in ((1, 2, 3), (4, 5, 6)):
    with checkpoint.Checkpoints(str(tmp_path), keep=2) as checkpoints:
      checkpoints.knn = knn
      for step in steps:
        checkpoints.save(step, _state(step))
  assert sorted(os.listdir(tmp_path)) == ["2", "5", "6"]


def test_imported_weights_are_kept(tmp_path):
  for steps in ((0,), (1, 2)):
    with checkpoint.Checkpoints(str(tmp_path), keep=1) as checkpoints:
      for step in steps:
        checkpoints.save(step, _state(step))
  assert sorted(os.listdir(tmp_path)) == ["0", "2"]


def test_a_state_of_other_arrays_is_one_line(folder):
  everywhere = jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P())
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
  more = _state(0) | {"queue": jnp.zeros(3)}
  fewer = {k: v for k, v in _state(0).items() if k != "half"}
  with checkpoint.Checkpoints(str(folder)) as checkpoints:
    for other, words in (
      (more, r"queue is not there and is \(3,\) here"),
      (fewer, r"half is \(7,\) there and is not here"),
    ):
      with pytest.raises(errors.UserError, match=words):
        checkpoints.restore(jax.tree.map(shape, other))
      parts = {k: v for k, v in other.items() if k != "step"}
      if "half" in other:
        with pytest.raises(errors.UserError, match=words):
          checkpoints.restore_part(jax.tree.map(shape, parts))


def test_to_keep_none_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="checkpoint.keep=0: give 1"):
    checkpoint.Checkpoints(str(tmp_path), keep=0)


def test_arrays_are_checked_though_their_files_are_as_written(folder):
  arrays = digests.read(str(folder / "3"))
  assert digests.wrong_array(_state(3), arrays) is None
  other = _state(3) | {"half": jnp.full((7,), 3.02, jnp.bfloat16)}
  assert digests.wrong_array(other, arrays) == "half"
  digests.write(str(folder / "2"), arrays)
  with pytest.raises(errors.UserError, match="2 is damaged"):
    checkpoint.Checkpoints(str(folder)).restore(_state(0), 2)


@pytest.mark.parametrize("spec", [jax.P(), jax.P("data")])
def test_arrays_that_processes_share_are_checked_too(folder, monkeypatch, spec):
  arrays = digests.read(str(folder / "3"))
  assert len(arrays["moments"]) == 8  # parts
  shared = jax.NamedSharding(jax.make_mesh((8,), ("data",)), spec)
  states = []
  for place in (None, 0, 1023):
    moments = np.arange(1024.0, dtype=np.float32) + 3
    if place is not None:
      moments[place] += 1
    moments = jax.device_put(moments, shared)
    states.append(_state(3) | {"moments": moments})
  monkeypatch.setattr(jax.NamedSharding, "is_fully_addressable", False)
  assert not states[0]["moments"].is_fully_addressable
  wrong = [digests.wrong_array(state, arrays) for state in states]
  assert wrong == [None, "moments", "moments"]
  arrays["moments"] = arrays["moments"][:-1]  # the last another's alone
  assert digests.wrong_array(states[2], arrays) is None


def test_a_save_that_fails_without_a_word_is_named(tmp_path):
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  with pytest.raises(errors.SafeStop, match="TimeoutError.*none, is kept"):
    checkpoints._failed(TimeoutError())
  checkpoints.close()


@pytest.mark.parametrize("name", ["p%41x", "run#3", "q?x", "a b*é"])
def test_any_name_of_a_folder_will_do(tmp_path, name):
  folder = tmp_path / name / "checkpoints"
  checkpoints = checkpoint.Checkpoints(str(folder), keep=1)
  for step in (1, 2):
    checkpoints.save(step, _state(step))
  checkpoints.wait()
  checkpoints.close()
  assert checkpoint.steps_in(str(folder)) == [2]
  jax.tree.map(np.testing.assert_array_equal, _restored(folder), _state(2))


def test_room_is_asked_for_where_it_lacks(tmp_path):
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  with pytest.raises(errors.SafeStop, match="is kept: make room and start"):
    checkpoints._failed(ValueError("pwrite: No space left on device (os 28)"))
  with pytest.raises(errors.SafeStop, match="is kept: mend that and start"):
    checkpoints._failed(OSError(5, "Input/output error"))
  checkpoints.close()
