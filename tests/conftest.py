"""Eight simulated devices for all tests, set before jax starts."""

import importlib.metadata
import os
import tempfile

import pytest

# Tests compile much and compute little.
_old = importlib.metadata.version("jaxlib").startswith("0.10.")
# The first takes two fifths off compiling, and is gone from later versions; the
# second a seventh of the rest: programs are not cut up for idle cores.
_quick = (
  "--xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1"
  if _old
  else ""
)
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    _quick,
    # Eight devices on two busy cores may wait long for each other.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
  ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# For what trains longer, in processes of its own.
os.environ["SSLJAX_TEST_LONGER"] = (
  f"{_quick} --xla_backend_optimization_level=1"
)

# Tests run the same programs in many processes: each is compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _cache = tempfile.TemporaryDirectory(prefix="ssljax-test-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
  """Frees what a module compiled; a thousand tests would fill the memory."""
  yield
  import jax

  jax.clear_caches()
