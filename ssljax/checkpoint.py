"""Checkpoints by Orbax: saved beside the compute, restored to the bit.

Orbax itself restores what a disk has changed. Here a step counts as saved once
it is wholly on the disk, was read back, and its digests lie beside it; only
then are earlier ones removed, which Orbax would do before.
"""

import concurrent.futures
import contextlib
import errno
import glob
import hashlib
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging
from jax.experimental import multihost_utils

from ssljax import digests
from ssljax import errors
from ssljax import sharding

_FULL = errno.ENOSPC, errno.EDQUOT  # a disk, or what one may have of it


class Checkpoints:
  """The checkpoints of a run: the last `keep` and the best by kNN.

  Attributes:
    knn: {step: accuracy} of all steps where it is known, by the caller, who may
      add to it at any time.
  """

  def __init__(self, directory: str, *, keep: int = 3, read_only: bool = False):
    """Opens them; `read_only` leaves alone what a run under way is writing.

    Else what is not whole is set aside first, down to the newest step that is.

    Raises:
      SafeStop: there were whole checkpoints, and all are damaged.
      UserError: `keep` is below 1, there is a bracket in the path, or no step
        of several has digests: an older version wrote them.
    """
    if keep < 1:
      raise errors.UserError(f"config.checkpoint.keep={keep}: give 1 or more")
    self._directory = os.path.abspath(directory)
    require_no_bracket(self._directory)
    self.knn = {}
    self._keep = keep
    self._read_only = read_only
    self._wrong = {}  # by step, what `digests.wrong_file` said
    self._saved = None  # the future of the save under way
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    if not read_only:
      newest = sharding.by_first(lambda: _set_aside(self._directory))
      # The others need not read it all again.
      whole = sharding.of_first(-1 if newest is None else newest)
      self._wrong[int(whole)] = None
    options = ocp.CheckpointManagerOptions(
      cleanup_tmp_directories=not read_only,
      read_only=read_only,
      # What else it would warn of.
      create=not read_only,
      save_interval_steps=0 if read_only else 1,
    )
    verbosity = logging.get_verbosity()
    try:
      if read_only:  # which it would warn of
        logging.set_verbosity(logging.ERROR)
      self._manager = ocp.CheckpointManager(self._directory, options=options)
    finally:
      logging.set_verbosity(verbosity)

  def latest_step(self, before: int | None = None) -> int | None:
    """The newest step, or the newest before another; None is none.

    Beside a run that goes on, damaged ones are passed over, and told.
    """
    if not self._read_only:  # what is damaged was set aside
      steps = sorted(self._manager.all_steps(), reverse=True)
      whole = lambda step: True
    else:
      steps, whole = steps_in(self._directory), self._is_whole
    older = (s for s in steps if before is None or s < before)
    return next(filter(whole, older), None)

  def save(self, step: int, state) -> None:
    """Starts to save; the arrays may be donated as soon as this returns.

    The host holds the state twice until the save is done.

    Raises:
      SafeStop: this save or the one before could not be written; what was
        saved earlier is kept.
    """
    self.wait()
    if step == self.latest_step():
      return
    parts = digests.copies(state)
    try:
      self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
    except (OSError, ValueError) as e:
      self._failed(e)
    self._saved = self._thread.submit(self._verify, step, parts)

  def _verify(self, step, parts):
    """Once Orbax is done: reads the arrays back, and writes the digests."""
    arrays = digests.of_arrays(parts)
    del parts
    self._manager.wait_until_finished()
    read = _reader(os.path.join(self._folder(step), "default"), arrays)
    if wrong := digests.wrong_part(read, arrays):
      raise OSError(f"{wrong} of step {step} reads otherwise than written")
    digests.write(self._folder(step), arrays)

  def check(self) -> None:
    """Raises SafeStop as `save` does, if its save has failed by now."""
    if self._saved is not None and self._saved.done():
      self.wait()

  def wait(self) -> None:
    """Waits for the save under way. Raises SafeStop as `save` does."""
    saved, self._saved = self._saved, None
    if saved is None:
      return
    try:
      saved.result()
    except Exception as e:  # Orbax raises what its threads met, of any kind.
      self._failed(e)
    if sharding.is_first():
      self._prune()

  def _prune(self):
    """Removes what is older than the newest whole step and not to be kept."""
    steps = steps_in(self._directory)
    whole = [s for s in steps if digests.exist(self._folder(s))]
    known = [(self.knn[s], s) for s in whole if s in self.knn]
    kept = whole[: self._keep] + [s for _, s in sorted(known)[-1:]]
    kept.append(0)  # weights of elsewhere, from which `replay` may begin
    for step in steps:
      if step in kept or step > max(whole, default=-1):  # or being written
        continue
      self._thread.submit(_remove, self._folder(step))  # takes milliseconds

  def _failed(self, error):
    whole = (
      s for s in steps_in(self._directory) if digests.exist(self._folder(s))
    )
    kept = next((f"step {step}" for step in whole), "none")
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
    full = any(os.strerror(e) in str(error) for e in _FULL)
    mend = "make room" if full else "mend that"
    raise errors.SafeStop(
      f"a checkpoint could not be written ({reason}); the last good one, "
      f"{kept}, is kept: {mend} and start again in the same workdir"
    ) from error

  def _folder(self, step):
    return os.path.join(self._directory, str(step))

  def _is_whole(self, step):
    told = step in self._wrong
    wrong, folder = self._wrong_file(step), self._folder(step)
    if wrong and not told and digests.exist(folder):  # else it is being written
      logging.warning("%s is damaged (%s): passed over", folder, wrong)
    return wrong is None

  def _wrong_file(self, step):
    """`digests.wrong_file` of a step, whose files are read once."""
    if step not in self._wrong:
      self._wrong[step] = digests.wrong_file(self._folder(step))
    return self._wrong[step]

  def restore(self, abstract, step: int | None = None):
    """Restores the latest state, or that of `step`.

    Args:
      abstract: a pytree of jax.ShapeDtypeStruct with shardings.
      step: of the checkpoint; None is the latest.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or the run, which
        goes on, has removed it.
    """
    have = sorted(steps_in(self._directory))
    asked, step = step, self.latest_step() if step is None else step
    if step not in have:
      what = "that is whole" if asked is None else f"of step {asked}"
      there = ", ".join(map(str, have)) or "none"
      other = "--workdir" if asked is None else "--step"
      mend = f"give another {other}" if have else "`train` makes one"
      raise errors.UserError(
        f"no checkpoint {what} in {self._directory}, there is {there}: {mend}"
      )
    folder = self._folder(step)
    with _there(folder):
      wrong = self._wrong_file(step)
      if wrong is None:
        _refuse_others(folder, digests.shapes(folder), abstract)
        args = ocp.args.StandardRestore(abstract)
        state = self._manager.restore(step, args=args)
        wrong = digests.wrong_array(state, digests.read(folder))
      if wrong is None:
        return state
      raise errors.UserError(
        f"the checkpoint {folder} is damaged ({wrong}): give another --step"
      )

  def restore_part(self, abstract: dict):
    """Restores these parts of the latest state alone.

    Args:
      abstract: {"params": ..., ...}, of jax.ShapeDtypeStruct with shardings.

    Raises:
      UserError: there is no checkpoint, it has other arrays, or the run, which
        goes on, has removed it.
    """
    if (step := self.latest_step()) is None:
      raise errors.UserError(f"no checkpoint in {self._directory}")
    with _there(self._folder(step)):
      return self._part(self._folder(step), abstract)

  def _part(self, folder, abstract):
    there = _of_parts(digests.shapes(folder), abstract)
    _refuse_others(folder, there, abstract)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      return checkpointer.restore(
        os.path.join(folder, "default"),
        args=ocp.args.PyTreeRestore(
          item=abstract,
          restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
          partial_restore=True,
        ),
      )

  def close(self) -> None:
    self._thread.shutdown()
    with contextlib.suppress(Exception):  # of a save, which `wait` has told
      self._manager.wait_until_finished()
    self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, kind, *unused):
    """Waits and closes; after an error a failed save is only logged."""
    try:
      self.wait()
    except errors.SafeStop as e:
      if kind is None:
        raise
      logging.error("%s", e)
    finally:
      self.close()


@contextlib.contextmanager
def _there(folder):
  """An error while a checkpoint is read, which is gone then, is due to that."""
  try:
    yield
  except Exception as e:
    if os.path.isdir(folder):
      raise
    raise errors.UserError(
      f"{folder} was removed while it was read, by the run, which goes on: try "
      "again"
    ) from e


def steps_in(directory: str) -> list[int]:
  """The steps that have a folder, whole or not; the newest first."""
  names = os.listdir(directory) if os.path.isdir(directory) else ()
  return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _remove(folder):
  """Of a checkpoint; what cannot be removed stays until the next time."""
  with contextlib.suppress(OSError):
    # Without digests first: what is half removed is not to look whole.
    for path in glob.glob(os.path.join(glob.escape(folder), "digests.*")):
      os.remove(path)
    shutil.rmtree(folder)


def _set_aside(directory):
  """Renames what is not whole, down to the newest step that is: returns it."""
  found, newest = [], None
  for step in steps_in(directory):
    folder = os.path.join(directory, str(step))
    if not digests.exist(folder):  # never saved: the process died before
      found.append((step, "unfinished", "no digests"))
    elif wrong := digests.wrong_file(folder):
      found.append((step, "damaged", wrong))
    else:
      newest = step
      break
  else:
    damaged = [str(step) for step, kind, _ in found if kind == "damaged"]
    if damaged:
      raise errors.SafeStop(
        f"all checkpoints in {directory} are damaged, of steps "
        f"{', '.join(damaged)}: give another --workdir to start anew"
      )
    if len(found) > 1:  # one alone is the first that a process died before
      raise errors.UserError(
        f"the checkpoints in {directory} are from before there were digests, "
        "and cannot be verified: train again in another --workdir, or use the "
        "version of ssljax that wrote them"
      )
  if found:  # earlier ones that never counted, each as large as a checkpoint
    pattern = os.path.join(glob.escape(directory), "unfinished-*")
    for path in glob.glob(pattern):
      shutil.rmtree(path, ignore_errors=True)
  for step, kind, wrong in found:
    aside = os.path.join(directory, f"{kind}-{step}")
    shutil.rmtree(aside, ignore_errors=True)  # an earlier one of this step
    os.rename(os.path.join(directory, str(step)), aside)
    logging.warning(
      "step %d is %s (%s): set aside as %s", step, kind, wrong, aside
    )
  return newest


def _reader(path, names):
  """Returns `read(name, place)`: a part of an array in Orbax's files."""
  context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 26}})
  base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
  opened = {
    name: ts.open(
      {
        "driver": "zarr",
        "kvstore": base | {"path": name.replace("/", ".")},
        "recheck_cached_data": False,
      },
      context=context,
      read=True,
    )
    for name in names
  }

  def read(name, place):
    array = opened[name].result()
    return array[tuple(slice(*ends) for ends in place)].read().result()

  return read


def _shapes(tree):
  """{"params/encoder/...": shape} of arrays, concrete or not."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def require_fit(directory: str, abstract) -> None:
  """Raises UserError where the newest checkpoint has other arrays.

  Args:
    directory: of the checkpoints; none need be there, nor be whole.
    abstract: a state, or {"params": ..., ...}, parts of it.
  """
  for step in steps_in(directory):
    folder = os.path.join(directory, str(step))
    try:
      there = digests.shapes(folder)
    except (OSError, ValueError):  # it is not whole, or damaged
      continue
    return _refuse_others(folder, _of_parts(there, abstract), abstract)


def _of_parts(shapes, abstract):
  """Those of the parts, as "params", that `abstract` has."""
  parts = getattr(abstract, "_fields", abstract)  # some may have no arrays
  return {k: v for k, v in shapes.items() if k.partition("/")[0] in parts}


def _refuse_others(path, there, abstract):
  """Names the first array that only one has, or both with other shapes.

  Orbax would name it in hundreds of lines.
  """
  here = _shapes(abstract)
  for name in here | there:
    if there.get(name) != here.get(name):
      of = lambda arrays, n=name: f"is {arrays[n]}" if n in arrays else "is not"
      raise errors.UserError(
        f"{path} does not fit: {name} {of(there)} there and {of(here)} here: "
        "give the encoder and the method of that run"
      )


def require_no_bracket(directory: str) -> None:
  if "[" in os.path.abspath(directory):
    raise errors.UserError(
      f"{directory} has a bracket, and Orbax finds no checkpoints below one: "
      "give another --workdir"
    )


def size(state) -> int:
  """Bytes of all arrays, concrete or abstract."""
  leaves = jax.tree.leaves(state)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def require_room(directory: str, state) -> None:
  """Raises UserError where one checkpoint more does not fit on the disk."""
  need, free = size(state), shutil.disk_usage(directory).free
  if need > free:
    raise errors.UserError(
      f"a checkpoint needs {need / 1e6:.0f} MB and {directory} has "
      f"{free / 1e6:.0f} MB free: make room or give another --workdir"
    )


def _whole(leaf):
  """An array that processes share as one; each must ask for it."""
  if isinstance(leaf, jax.Array) and not (
    leaf.is_fully_addressable or leaf.is_fully_replicated
  ):
    return multihost_utils.process_allgather(leaf, tiled=True)
  return leaf


def sha256(state) -> str:
  """A digest of every leaf: its path, type, shape and bytes."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    leaf = np.ascontiguousarray(_whole(leaf))
    name = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}"
    digest.update(name.encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()
