"""Chips, and the devices of a topology that need not be there."""

import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from ssljax import errors

# The most devices that are simulated, and the most GPUs.
_CPUS = 1024
_MOST = 65_536


class Chip(NamedTuple):
  """What a chip can do at most.

  Attributes:
    dimensions: of a slice of TPUs.
    flops: of bfloat16 matrix products, a second; TPUs do float32's as these.
    hbm: bytes that a program may take.
    hbm_rate: bytes a second.
    wire_rate: bytes a second over all links to other chips.
    gpu: whether it is one.
    here: whether this machine has it.
  """

  dimensions: int
  flops: float
  hbm: float
  hbm_rate: float
  wire_rate: float
  gpu: bool = False
  here: bool = False


# Rates by cloud.google.com/tpu/docs/{v5e,v5p,v6e}; memory as libtpu gives it to
# a program, which is less than what the chip has.
CHIPS = {
  "v5e": Chip(2, 197e12, 15.75 * 2**30, 819e9, 200e9),
  "v5p": Chip(3, 459e12, 95.74 * 2**30, 2765e9, 600e9),
  "v6e": Chip(2, 918e12, 31.25 * 2**30, 1600e9, 400e9),
}


class _Gpu(NamedTuple):
  """What XLA asks of a GPU, and rates of NVIDIA's data sheets."""

  kind: str
  capability: int
  cores: int
  units: int  # float32 units of a core
  shared: int  # KiB of a core
  l2: int
  clock: float  # GHz
  memory: int
  memory_rate: float
  flops: float  # of bfloat16 products without sparsity
  link_rate: float  # of NVLink in one direction


# By openxla/xla `xla/backends/gpu/target_config/specs`.
_GPUS = {
  "a100": _Gpu(
    "NVIDIA A100-SXM4-80GB", 8, 108, 64, 164, 41943040, 1.41,
    85100068864, 2039e9, 312e12, 300e9,
  ),
  "h100": _Gpu(
    "NVIDIA H100 80GB HBM3", 9, 132, 128, 228, 52428800, 1.98,
    84942979072, 3352e9, 989e12, 450e9,
  ),
  "h200": _Gpu(
    "NVIDIA H200", 9, 132, 128, 228, 52428800, 1.98,
    151397597184, 4800e9, 989e12, 450e9,
  ),
  "b200": _Gpu(
    "NVIDIA B200", 10, 148, 128, 228, 132644864, 1.965,
    191514411008, 7672e9, 2250e12, 900e9,
  ),
}  # fmt: skip


def devices(topology: str) -> tuple[list, Chip | None]:
  """The devices of a topology, and what each can do, or None if not known.

  Args:
    topology: "v5e:4x4" and the like, which need libtpu and no chip; "h100:8" or
      "h100:4x8", four hosts of eight, which need jax' CUDA plugin, no GPU and
      no CUDA; "cpu:8", of simulated devices; or "cuda", the GPUs that are here.

  Raises:
    UserError: there is no such topology here.
  """
  kind, _, shape = topology.partition(":")
  if kind == "cpu" and shape.isdigit() and 0 < int(shape) <= _CPUS:
    return _cpu(int(shape)), None
  if kind == "cuda" and not shape:
    return _present()
  if kind in _GPUS and re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", shape):
    hosts, _, gpus = shape.rpartition("x")
    hosts, gpus = int(hosts or 1), int(gpus)
    if hosts * gpus <= _MOST:
      chip = chip_of_gpu(kind)
      return _cuda(topology, _GPUS[kind], hosts, gpus), chip
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
    f"like, {':8, '.join(_GPUS)}:8, hosts before them as in h100:4x8, cpu:8 or "
    "cuda"
  )


def _cpu(n):
  if not jax.devices("cpu")[n - 1 :]:
    have = len(jax.devices("cpu"))
    raise errors.UserError(
      f"--topology=cpu:{n}: jax has started with {have} devices: set XLA_FLAGS="
      f"--xla_force_host_platform_device_count={n}"
    )
  return jax.devices("cpu")[:n]


def _present():
  try:
    found = jax.devices("cuda")
  except RuntimeError as e:
    raise errors.UserError(
      "--topology=cuda: jax finds no GPU here; pip install 'ssljax[cuda12]'"
    ) from e
  kinds = {device.device_kind for device in found}
  gpu = next((gpu for gpu in _GPUS.values() if kinds == {gpu.kind}), None)
  # Some of jax' allocators have no limit.
  limit = (found[0].memory_stats() or {}).get("bytes_limit")
  known = gpu is not None and limit is not None
  return found, _chip(gpu, limit)._replace(here=True) if known else None


def chip_of_gpu(kind: str) -> Chip:
  """With as much memory as jax takes of it, and NVLink also between hosts.

  Raises:
    UserError: XLA_CLIENT_MEM_FRACTION is no share.
  """
  gpu, share = _GPUS[kind], 0.75
  for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"):
    if given := os.environ.get(name):
      share = _share(name, given)
  return _chip(gpu, share * gpu.memory)


def _chip(gpu, hbm):
  return Chip(0, gpu.flops, hbm, gpu.memory_rate, gpu.link_rate, gpu=True)


def _share(name, given):
  try:
    share = float(given)
  except ValueError:
    share = 0.0
  if not 0 < share <= 1:
    raise errors.UserError(f"{name}={given}: give a share in (0, 1]")
  return share


def _cuda(topology, gpu, hosts, gpus):
  if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
    raise errors.UserError(
      f"--topology={topology} needs jax' CUDA plugin: "
      "pip install 'ssljax[plan]'"
    )
  # Else the plugin does not start where there is no CUDA.
  os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
  return _described(
    topology,
    platform="cuda",
    topology=f"1x{hosts}x{gpus}",
    target_config=_target(gpu),
  )


def _target(gpu):
  """A GPU as XLA's `GpuTargetConfigProto`, in its text form."""
  shared = gpu.shared * 1024
  return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024
      threads_per_warp: 32
      threads_per_core_limit: 2048
      shared_memory_per_block: 49152
      shared_memory_per_block_optin: {shared - 1024}
      shared_memory_per_core: {shared}
      core_count: {gpu.cores}
      fpus_per_core: {gpu.units}
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      memory_bandwidth: {gpu.memory_rate:.0f}
      l2_cache_size: {gpu.l2}
      clock_rate_ghz: {gpu.clock}
      device_memory_size: {gpu.memory}
      cuda_compute_capability {{ major: {gpu.capability} }}
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }}
    runtime_version {{ major: 12 minor: 8 }}
    device_description_str: "{gpu.kind}"
  """


def _tpu(topology):
  if importlib.util.find_spec("libtpu") is None:
    raise errors.UserError(
      f"--topology={topology} needs libtpu: pip install 'ssljax[plan]'"
    )
  # Else libtpu asks a server of Google's what this machine is.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # Else one process alone may; no chip is taken here.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  return _described(topology, platform="tpu", topology_name=topology)


def _described(topology, /, **options):
  try:
    found = topologies.get_topology_desc(**options)
  except Exception as e:  # jax' own, of several kinds
    raise errors.UserError(
      f"--topology={topology}: {(str(e) or repr(e)).splitlines()[0][:200]}"
    ) from e
  return list(found.devices)
