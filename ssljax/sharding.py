"""The mesh of devices, and where arrays lie on it."""

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from ssljax import errors


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


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Arrays [b ...] cut along b."""
  return NamedSharding(mesh, PartitionSpec("data"))
