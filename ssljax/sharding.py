"""The mesh of devices, and where arrays lie on it.

A mesh has two axes. Examples are cut over both; the state is the same along
`data` and cut along `fsdp`, as Rajbhandari et al. 2019 (ZeRO, arXiv:1910.02054,
stage 3) and Zhao et al. 2023 (FSDP, arXiv:2304.11277) cut it. XLA gathers each
array where it is used.
"""

import re
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
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
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
      raise errors.UserError(f"--coordinator={coordinator}: give HOST:PORT")
    given["coordinator_address"] = coordinator
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_s, **given)
  except (RuntimeError, ValueError) as e:
    reason = str(e).splitlines()[0][:200]
    if coordinator == "auto":
      reason += "; where jax finds no cluster give HOST:PORT, N and I"
    raise errors.UserError(
      f"--coordinator={coordinator}: the processes did not meet ({reason})"
    ) from e


def is_first() -> bool:
  """Whether this process is the one that writes what all know."""
  return jax.process_index() == 0


def of_first(tree):
  """The first process's numbers and arrays, on all of them.

  Arrays over the devices of several are the same on all, and stay.
  """
  if jax.process_count() == 1:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  own = {
    i: np.asarray(leaf)
    for i, leaf in enumerate(leaves)
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
  }
  own = multihost_utils.broadcast_one_to_all(own)
  return structure.unflatten(
    [own.get(i, leaf) for i, leaf in enumerate(leaves)]
  )


def by_first(function: Callable):
  """What the first process gets from `function`, which the others wait for.

  They get None; a mistake that it tells ends all of them.
  """
  if jax.process_count() == 1:
    return function()
  result = told = None
  if is_first():
    try:
      result = function()
    except (errors.UserError, errors.SafeStop) as e:
      told = e
  kinds = (None, errors.UserError, errors.SafeStop)
  which = 1 + isinstance(told, errors.SafeStop) if told else 0
  kind = kinds[int(of_first(which))]
  if told is not None:
    raise told
  if kind is not None:
    raise kind("the first process stopped, and tells why")
  return result


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> jax.sharding.Mesh:
  """A mesh with the axes `data` and `fsdp`.

  Args:
    data: how many copies of the state there are; -1 takes all devices.
    fsdp: over how many devices a copy is cut.
    devices: to take them from; None is `jax.devices()`.

  Raises:
    UserError: there are fewer devices, or `fsdp` does not divide them.
  """
  devices = jax.devices() if devices is None else devices
  n = len(devices)
  if fsdp < 1 or (data == -1 and n % fsdp):
    raise errors.UserError(
      f"config.mesh.fsdp={fsdp} does not divide {n} devices: give a divisor, "
      "or config.mesh.data as well"
    )
  data = n // fsdp if data == -1 else data
  if not 1 <= data * fsdp <= n:
    raise errors.UserError(
      f"config.mesh.data={data} x config.mesh.fsdp={fsdp}, and there are {n} "
      f"devices: give 1 to {n} in all, or data=-1 for all"
    )
  used = {device.process_index for device in devices[: data * fsdp]}
  if len(used) < len({device.process_index for device in devices}):
    raise errors.UserError(
      f"config.mesh.data={data} x config.mesh.fsdp={fsdp} leaves processes "
      "without a device: start fewer, or give data=-1 for all"
    )
  # Explicit axes, the default of newer jax, would make users name shardings.
  return jax.make_mesh(
    (data, fsdp),
    ("data", "fsdp"),
    axis_types=(AxisType.Auto,) * 2,
    devices=devices[: data * fsdp],
  )


def put(tree, where: NamedSharding):
  """Host arrays, the same on all processes, as arrays over all devices."""
  if jax.process_count() == 1:
    return jax.device_put(tree, where)
  place = lambda x: jax.make_array_from_callback(
    np.shape(x), where, lambda index: np.asarray(x)[index]
  )
  return jax.tree.map(place, tree)


def rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
  """The places of a batch that lie on this process's devices, ascending.

  They need not be consecutive: a mesh of TPUs is in the order of their wires.
  """
  places = np.arange(batch_size)
  parts = by_example(mesh).addressable_devices_indices_map((batch_size,))
  return np.sort(np.concatenate([places[part] for part in parts.values()]))


def put_parts(tree, where: NamedSharding):
  """Each process's `rows` of host arrays [b ...], as wholes."""
  if jax.process_count() == 1:
    return jax.device_put(tree, where)
  join = lambda x: jax.make_array_from_process_local_data(where, x)
  return jax.tree.map(join, tree)


def gather(x: jax.Array) -> np.ndarray:
  """An array that processes may share, whole; all of them must ask for it."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Arrays [b ...] cut along b."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def by_array(
  mesh: jax.sharding.Mesh,
  shapes,
  whole: str | None = None,
  *,
  least: int = 4096,
):
  """A NamedSharding for each array of a state: cut along `fsdp`, or whole.

  An array is cut along the longest of its dimensions that the axis divides.
  Vectors stay whole, and so does what is too small to be worth its gathering.

  Args:
    mesh: of `make_mesh`.
    shapes: a pytree of arrays or jax.ShapeDtypeStruct.
    whole: a regular expression; an array stays whole where it is found in its
      path, as in "method_state/queue".
    least: elements of an array that is cut.

  Raises:
    UserError: `whole` is not a regular expression.
  """
  n = mesh.shape["fsdp"]
  try:
    kept = re.compile(whole) if whole else None
  except re.error as e:
    raise errors.UserError(
      f"config.mesh.whole={whole!r} is no regular expression: {e}"
    ) from e

  def place(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    fits = [i for i, size in enumerate(x.shape) if size % n == 0]
    small = x.ndim < 2 or x.size < least
    if n == 1 or small or not fits or (kept and kept.search(name)):
      return replicated(mesh)
    axis = max(fits, key=lambda i: x.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

  return jax.tree_util.tree_map_with_path(place, shapes)
