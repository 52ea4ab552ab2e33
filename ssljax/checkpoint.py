"""Checkpoints by Orbax: saved beside the compute, restored to the bit."""

import hashlib
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ssljax import errors


class Checkpoints:
  """The checkpoints of a run: the last `keep` and the best by kNN."""

  def __init__(self, directory: str, *, keep: int = 3, read_only: bool = False):
    """Opens them; `read_only` leaves alone what a run under way is writing."""
    self._directory = os.path.abspath(directory)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
          [
            policies.LatestN(keep),
            policies.BestN(
              get_metric_fn=lambda metrics: metrics["knn"],
              n=1,
              keep_checkpoints_without_metrics=False,
            ),
          ]
        ),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
      ),
    )

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(self, step: int, state, *, knn: float | None = None) -> None:
    """Starts to save; the arrays may be donated as soon as this returns.

    Raises:
      SafeStop: this save or the one before could not be written; what was
        saved earlier is kept.
    """
    self.wait()
    if step == self.latest_step():
      return
    try:
      self._manager.save(
        step,
        args=ocp.args.StandardSave(state),
        metrics=None if knn is None else {"knn": knn},
        force=True,
      )
    except (OSError, ValueError) as e:
      self._failed(e)

  def wait(self) -> None:
    """Waits for the save under way. Raises SafeStop as `save` does."""
    try:
      self._manager.wait_until_finished()
    except Exception as e:  # Orbax raises what its threads met, of any kind.
      self._failed(e)

  def _failed(self, error):
    steps = sorted(self._manager.all_steps(read=True))
    kept = f"step {steps[-1]}" if steps else "none"
    reason = str(error).splitlines()[0][:200]
    raise errors.SafeStop(
      f"a checkpoint could not be written ({reason}); the last good one, "
      f"{kept}, is kept: make room and start again in the same workdir"
    ) from error

  def restore(self, abstract, step: int | None = None):
    """Restores the latest state, or that of `step`.

    Args:
      abstract: a pytree of jax.ShapeDtypeStruct with shardings.
      step: of the checkpoint; None is the latest.

    Raises:
      UserError: there is no such checkpoint.
    """
    step = self.latest_step() if step is None else step
    if step not in self._manager.all_steps():
      have = ", ".join(map(str, self._manager.all_steps())) or "none"
      raise errors.UserError(
        f"no checkpoint of step {step} in {self._directory}: there is {have}"
      )
    return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

  def restore_part(self, abstract: dict):
    """Restores these parts of the latest state alone.

    Args:
      abstract: {"params": ..., ...}, of jax.ShapeDtypeStruct with shardings.

    Raises:
      UserError: there is no checkpoint, or it has other arrays.
    """
    if (step := self.latest_step()) is None:
      raise errors.UserError(f"no checkpoint in {self._directory}")
    path = os.path.join(self._directory, str(step), "default")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      there = checkpointer.metadata(path).item_metadata.tree
      _refuse_others(path, _shapes(there), _shapes(abstract))
      return checkpointer.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=abstract,
          restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
          partial_restore=True,
        ),
      )

  def close(self) -> None:
    self._manager.close()


def _shapes(tree):
  """{"params/encoder/...": shape} of arrays, concrete or not."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def _refuse_others(path, there, here):
  """Names the first array that the checkpoint at `path` has otherwise."""
  for name, shape in here.items():
    if there.get(name) != shape:
      has = f"is {there[name]}" if name in there else "is not"
      raise errors.UserError(
        f"{path} does not fit: {name} {has} there and {shape} here: give the "
        "encoder and the method of that run"
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


def sha256(state) -> str:
  """A digest of every leaf: its path, type, shape and bytes."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    leaf = np.ascontiguousarray(leaf)
    name = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}"
    digest.update(name.encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()
