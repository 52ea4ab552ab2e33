"""Chips, and the devices of a topology that need not be there."""

import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from ssljax import errors

# The most devices that are simulated.
_CPUS = 1024


class Chip(NamedTuple):
  """What a chip can do at most.

  Attributes:
    dimensions: of a slice.
    flops: of bfloat16 matrix products, a second.
    hbm: bytes that a program may take.
    hbm_rate: bytes a second.
    wire_rate: bytes a second over all links to other chips.
  """

  dimensions: int
  flops: float
  hbm: float
  hbm_rate: float
  wire_rate: float


# Rates by cloud.google.com/tpu/docs/{v5e,v5p,v6e}; memory as libtpu gives it to
# a program, which is less than what the chip has.
CHIPS = {
  "v5e": Chip(2, 197e12, 15.75 * 2**30, 819e9, 200e9),
  "v5p": Chip(3, 459e12, 95.74 * 2**30, 2765e9, 600e9),
  "v6e": Chip(2, 918e12, 31.25 * 2**30, 1600e9, 400e9),
}


def devices(topology: str) -> tuple[list, Chip | None]:
  """The devices of a topology, and what each can do where that is known.

  Args:
    topology: "v5e:4x4" and the like, which need libtpu and no chip; "cpu:8", of
      simulated devices; or "cuda", the GPUs that are there.

  Raises:
    UserError: there is no such topology here.
  """
  kind, _, shape = topology.partition(":")
  if kind == "cpu" and shape.isdigit() and 0 < int(shape) <= _CPUS:
    return _cpu(int(shape)), None
  if kind == "cuda" and not shape:
    try:
      return jax.devices("cuda"), None
    except RuntimeError as e:
      raise errors.UserError(
        "--topology=cuda: jax finds no GPU here; pip install 'ssljax[cuda12]'"
      ) from e
  if kind in CHIPS and re.fullmatch(r"\d+(x\d+)+", shape):
    chip = CHIPS[kind]
    if shape.count("x") != chip.dimensions - 1:  # at which libtpu aborts
      raise errors.UserError(
        f"--topology={topology}: a slice of {kind} has {chip.dimensions} "
        "dimensions"
      )
    return _tpu(topology), chip
  raise errors.UserError(
    f"unknown --topology={topology}: give v5e:4x4, v5p:8x8x8, v6e:16x16 or the "
    "like, cpu:8 or cuda"
  )


def _cpu(n):
  if not jax.devices("cpu")[n - 1 :]:
    have = len(jax.devices("cpu"))
    raise errors.UserError(
      f"--topology=cpu:{n}: jax has started with {have} devices: set XLA_FLAGS="
      f"--xla_force_host_platform_device_count={n}"
    )
  return jax.devices("cpu")[:n]


def _tpu(topology):
  if importlib.util.find_spec("libtpu") is None:
    raise errors.UserError(
      f"--topology={topology} needs libtpu: pip install 'ssljax[plan]'"
    )
  # Else libtpu asks a server of Google's what this machine is.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # Else one process alone may; no chip is taken here.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
  except Exception as e:  # jax' own, of several kinds
    raise errors.UserError(
      f"--topology={topology}: {str(e).splitlines()[0][:200]}"
    ) from e
  return list(found.devices)
