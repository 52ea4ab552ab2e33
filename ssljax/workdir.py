"""The folder of a run: what it holds, whether it fits, and who writes there."""

import contextlib
import glob
import json
import math
import os

import jax

from ssljax import checkpoint
from ssljax import config as config_lib
from ssljax import environment
from ssljax import errors
from ssljax import files
from ssljax import sharding
from ssljax.data import described

# What `described.of` reads.
_DESCRIBED = "modality", "name", "examples", "classes", "arrays", "per_example"


def restore_config(workdir: str):
  """The config of a run, reading the data files that the run has kept.

  Where its mesh does not fit the devices that are here, it is spread over as
  many as divide its batch.

  Raises:
    UserError: there is no run.
  """
  path = os.path.join(workdir, "config.json")
  if not os.path.exists(path):
    raise errors.UserError(f"no run in {workdir}: give a --workdir of `train`")
  config = config_lib.restore(path)
  with config.unlocked():
    for key in config.data:
      if os.path.exists(kept := data_file(workdir, key)):
        config.data[key] = kept
    have, mesh = jax.device_count(), config.mesh
    every = mesh.data == -1
    whole = config.batch_size // config.accumulate
    if every:
      fits = not (have % mesh.fsdp or whole % have)
    else:
      fits = mesh.data * mesh.fsdp <= have
    if not fits:
      mesh.update(data=math.gcd(whole, have), fsdp=1)
  return config


def data_file(workdir: str, name: str) -> str:
  """Where a run keeps one of its source's `files`."""
  return os.path.join(workdir, "data", f"{name}.json")


def keep_data(source, workdir: str) -> None:
  """Writes what a run must keep of its data: files, and its description.

  Raises:
    OSError: it cannot be written.
  """
  for name, text in source.files.items():
    files.write(data_file(workdir, name), text)
  text = json.dumps(described.describe(source), indent=2)
  files.write(data_file(workdir, "source"), text)


def kept_data(workdir: str) -> dict | None:
  """The description of a run's data; None where it was not kept.

  Raises:
    UserError: it is damaged.
  """
  path = data_file(workdir, "source")
  try:
    with open(path) as f:
      found = json.load(f)
    for key in _DESCRIBED:
      found[key]
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError) as e:
    raise errors.UserError(f"{path} is damaged ({e!r}): remove it") from e
  return found


def refuse_another_run(run, workdir):
  """Raises UserError where the workdir holds a run of another config or data.

  Without a checkpoint it is what a failed try has left, to be written anew.
  """
  if checkpoint.steps_in(os.path.join(workdir, "checkpoints")):
    refuse_another_config(run.config, workdir)
    refuse_other_files(run, workdir)
    refuse_other_examples(run, workdir)


def refuse_another_config(config, workdir):
  """Raises UserError where the workdir holds a run of another config."""
  path = os.path.join(workdir, "config.json")
  if not os.path.exists(path):
    return
  old, new = map(config_lib.to_dict, (config_lib.restore(path), config))
  for key, value in new["data"].items():
    kept = os.path.realpath(data_file(workdir, key))
    if isinstance(value, str) and os.path.realpath(value) == kept:
      new["data"][key] = old["data"].get(key)
  if rows := config_lib.difference(old, new):
    more = f"; and {len(rows) - 4} more" if len(rows) > 4 else ""
    raise errors.UserError(
      f"{workdir} holds a run of another config ({'; '.join(rows[:4])}{more}): "
      "give the same config to go on, or another --workdir, with "
      f"--config.init_from={workdir} to start from its weights"
    )


def refuse_other_files(run, workdir):
  """Raises UserError where the data's files are not those that a run kept.

  They may have been prepared anew, say with another vocabulary.
  """
  for name, text in run.source.files.items():
    path = data_file(workdir, name)
    if not os.path.exists(path):
      continue
    with open(path) as f:
      if f.read() != text:
        raise errors.UserError(
          f"{path} is not the {name} that {run.source.name} has now: give "
          f"--config.data.{name}={path}, or another --workdir"
        )


def refuse_other_examples(run, workdir):
  """Raises UserError where a run's data are not as they were when it began.

  In a folder that has grown, say, the order of the examples is another.
  """
  old, new = kept_data(workdir), described.describe(run.source)
  for key in ("examples", "arrays", "classes"):
    if old is not None and old[key] != new[key]:
      raise errors.UserError(
        f"{run.source.name} has {key}={new[key]}, and the run in {workdir} "
        f"began with {old[key]}: give it the data of then, or another --workdir"
      )
  began_with = (old or {}).get("identity")  # older runs have not kept it
  if began_with not in (None, new["identity"]):
    raise errors.UserError(
      f"{run.source.name} has other examples, or the same in another order, "
      f"than when the run in {workdir} began: give it the data of then, or "
      "another --workdir"
    )


def drop_evaluations(workdir):
  """Forgets what was measured of an earlier run, as the log does."""
  if sharding.is_first():
    for path in glob.glob(os.path.join(glob.escape(workdir), "eval", "*.json")):
      if os.path.basename(path)[0].isdigit():  # as `evaluate` names them
        with contextlib.suppress(OSError):
          os.remove(path)


@contextlib.contextmanager
def claimed(run, workdir):
  """Makes the workdir this run's own, and no other process's meanwhile."""
  with contextlib.ExitStack() as stack:

    def claim():
      try:
        os.makedirs(os.path.join(workdir, "checkpoints"), exist_ok=True)
        stack.enter_context(files.alone(workdir))
        refuse_another_run(run, workdir)  # that ended while this one began
        path = os.path.join(workdir, "config.json")
        goes_on = checkpoint.steps_in(os.path.join(workdir, "checkpoints"))
        if not (goes_on and os.path.exists(path)):
          config_lib.save(run.config, path)
        keep_data(run.source, workdir)
        path = os.path.join(workdir, "environment.json")
        files.write(path, json.dumps(environment.describe(), indent=2))
      except OSError as e:
        raise errors.UserError(
          f"cannot write to --workdir={workdir} ({e.strerror}): give another"
        ) from e

    sharding.by_first(claim)
    os.makedirs(own_folder(workdir), exist_ok=True)
    yield


def own_folder(workdir):
  """Where a process tells of itself: the first one in the workdir."""
  if sharding.is_first():
    return workdir
  return os.path.join(workdir, f"process_{jax.process_index()}")
