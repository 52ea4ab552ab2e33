"""The mesh of devices, and where arrays lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from ssljax import errors


def connect(
  coordinator: str,
  processes: int | None = None,
  process: int | None = None,
  heartbeat_s: int = 100,
) -> None:
  """Joins the processes of a run; before anything else of jax.

  Args:
    coordinator: HOST:PORT of process 0; "auto" where jax finds out itself, as
      under SLURM, Open MPI, on GKE and Cloud TPU.
    processes: how many; None with "auto".
    process: which this is, from 0; None with "auto".
    heartbeat_s: how long a process may be silent before the others end.

  Raises:
    UserError: they did not come together.
  """
  given = dict(num_processes=processes, process_id=process)
  if coordinator != "auto":
    if processes is None or process is None:
      raise errors.UserError(
        "--coordinator=HOST:PORT needs --processes=N and --process=I"
      )
    given["coordinator_address"] = coordinator
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_s, **given)
  except (RuntimeError, ValueError) as e:
    reason = str(e).splitlines()[0][:200]
    raise errors.UserError(
      f"--coordinator={coordinator}: the processes did not meet ({reason})"
    ) from e


def is_first() -> bool:
  """Whether this process is the one that writes what all know."""
  return jax.process_index() == 0


def make_mesh(data: int = -1) -> jax.sharding.Mesh:
  """A mesh with the axis `data`, of so many devices; -1 takes them all.

  Raises:
    UserError: there are fewer devices.
  """
  devices = jax.devices()
  count = len(devices) if data == -1 else data
  if not 1 <= count <= len(devices):
    raise errors.UserError(
      f"config.mesh.data={data}, and there are {len(devices)} devices: give "
      f"1 to {len(devices)}, or -1 for all"
    )
  # Explicit axes, the default of newer jax, would make users name shardings.
  return jax.make_mesh(
    (count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count]
  )


def put(tree, where: NamedSharding):
  """Host arrays, the same on all processes, as arrays over all devices."""
  if jax.process_count() == 1:
    return jax.device_put(tree, where)
  place = lambda x: jax.make_array_from_callback(
    np.shape(x), where, lambda index: np.asarray(x)[index]
  )
  return jax.tree.map(place, tree)


def put_parts(tree, where: NamedSharding):
  """Each process's consecutive part of host arrays [b ...], as wholes."""
  if jax.process_count() == 1:
    return jax.device_put(tree, where)
  join = lambda x: jax.make_array_from_process_local_data(where, x)
  return jax.tree.map(join, tree)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Arrays [b ...] cut along b."""
  return NamedSharding(mesh, PartitionSpec("data"))
