"""Where a process runs: what a number depends on beside the config."""

import functools
import os
import platform
import re
import subprocess

import jax
import numpy as np

import ssljax

_CPUINFO = "/proc/cpuinfo"


def describe() -> dict:
  """Versions, devices, the kind of CPU and the git commit."""
  return {
    "ssljax": ssljax.__version__,
    "git": _commit(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "numpy": np.__version__,
    "platform": platform.platform(),
    "devices": [str(d) for d in jax.devices()],
    "device_kind": jax.devices()[0].device_kind,
    "processes": jax.process_count(),
    "cpu": _cpu(),
    "cpus": _cpus(),
  }


def _commit():
  """That of this file's repository, "-dirty" after it if anything is changed.

  None without git, and where this is installed, maybe inside another's.
  """
  folder, name = os.path.split(os.path.abspath(__file__))
  git = functools.partial(
    subprocess.run, cwd=folder, capture_output=True, text=True, check=False
  )
  try:
    if git(["git", "ls-files", "--error-unmatch", name]).returncode:
      return None
    commit = ["--always", "--abbrev=40", "--exclude=*", "--dirty"]
    return git(["git", "describe", *commit]).stdout.strip() or None
  except OSError:
    return None


def _cpu():
  """Its name, family and model; another kind sums in another order.

  A virtual machine's name may be that of many: "AMD EPYC".
  """
  try:
    with open(_CPUINFO) as f:
      rows = dict(re.findall(r"^(\w.*\S)\s*: (.+)$", f.read(), re.MULTILINE))
  except OSError:
    rows = {}
  if "model name" not in rows:
    return platform.processor() or platform.machine()
  known = [f"{k} {rows[k]}" for k in ("cpu family", "model") if k in rows]
  return ", ".join([rows["model name"], *known])


def _cpus():
  """Those that this process may use, where the system tells."""
  affinity = getattr(os, "sched_getaffinity", None)
  return len(affinity(0)) if affinity else os.cpu_count()
