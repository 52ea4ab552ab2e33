"""Eight simulated devices for all tests, set before jax starts."""

import os

os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    # Tests compile much and compute little.
    "--xla_backend_optimization_level=0",
    # Eight devices on two busy cores may wait long for each other.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
  ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
