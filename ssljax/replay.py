"""One update of a run again: the batch that it saw and the loss that it gave.

For the update that stopped a run: what was in that batch?
"""

import collections
import hashlib
import os

import jax
import numpy as np

from ssljax import checkpoint
from ssljax import errors
from ssljax import files
from ssljax import run as run_lib
from ssljax import train
from ssljax import workdir as workdir_lib


def replay(workdir: str, step: int, out: str | None = None) -> dict:
  """Goes from the nearest checkpoint before the update up to it.

  Without such a checkpoint it goes from the start. On the machine and with the
  devices of the run, the figures are those of the run to the bit.

  Args:
    workdir: of the run.
    step: of the update, counted from 1, as in metrics.jsonl.
    out: an .npz file for the batch as it was read, or None.

  Returns:
    The step, its metrics, the batch's `index` and sha256, and the checkpoint's
    step in `from`.

  Raises:
    UserError: there is no such run or update, its data are others now, or
      `out` cannot be written.
  """
  if out is not None:
    files.require_npz(out)
  run = run_lib.build(workdir_lib.restore_config(workdir))
  workdir_lib.refuse_other_examples(run, workdir)
  if not 1 <= step <= run.total_steps:
    raise errors.UserError(
      f"--step={step}: the run has the updates 1 to {run.total_steps}"
    )
  checkpoints = checkpoint.Checkpoints(
    os.path.join(workdir, "checkpoints"), read_only=True
  )
  start = checkpoints.latest_step(before=step)
  if start is None:
    state = train.first_state(run)
  else:
    state = checkpoints.restore(run.abstract_state, start)
  checkpoints.close()
  updates = train.updates(run, state, train.compile_step(run), stop=step)
  (update,) = collections.deque(updates, maxlen=1)
  batch = jax.tree.map(np.asarray, update.batch)
  if out is not None:
    files.write_npz(out, batch)
  return {
    "step": step,
    "from": start or 0,
    **{name: _json(value) for name, value in update.metrics.items()},
    "index": batch["index"].tolist(),
    "batch_sha256": batch_sha256(batch),
    "out": out,
  }


def _json(value):
  number = float(value)
  return number if np.isfinite(number) else str(number)


def batch_sha256(batch: dict[str, np.ndarray]) -> str:
  """A digest of a batch as it was read: names, types, shapes and bytes."""
  digest = hashlib.sha256()
  for name, array in sorted(batch.items()):
    array = np.ascontiguousarray(array)
    digest.update(f"{name} {array.dtype} {array.shape}".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
