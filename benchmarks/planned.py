"""A plan's peak memory against the measured: `python -m benchmarks.planned`.

The train step of each config on 8 simulated devices: what `ssljax plan
--topology=cpu:8` says of one device, times 8, and the largest resident memory
of three steps beyond what the process had once they were compiled and before
there was a state, as Linux counts it. That depends on how the devices, which
share the cores, fall into step: each config is run in `--rounds` processes of
its own, and the median counts. Prints one JSON object.

What no plan has is the room in which XLA's convolutions on a CPU lay out their
operands. By a count of what is allocated, one of 3 x 3 and 16 channels on
[64 28 28 16] takes 32.0 MiB where 3.1 are planned; its patches are 27.6. Of
that room a part alone is ever touched, so that the plan does not guess at it.
"""

import argparse
import json
import os
import statistics

from benchmarks import peers

DEVICES = 8
CONFIGS = (
  "configs/mae_vit_fashion_mnist.py",
  "configs/simclr_resnet18_fashion_mnist.py",
)


def measure(path):
  """(bytes that are planned, bytes that are measured), of all devices."""
  from ssljax import cli

  cli.set_up()
  flag = "--xla_force_host_platform_device_count"
  os.environ["XLA_FLAGS"] += f" {flag}={DEVICES}"
  import jax
  import jax.numpy as jnp

  from benchmarks import memory
  from ssljax import config as config_lib
  from ssljax import plan
  from ssljax import run as run_lib
  from ssljax import sharding
  from ssljax import train

  config = config_lib.load(path, ["--config.schedule.warmup_epochs=0"])
  run = run_lib.build(config)
  planned = DEVICES * plan.compile_step(run, None).peak
  step = train.compile_step(run)
  step = step.lower(
    run.abstract_state, run_lib.abstract_batch(run), jax.random.key(0)
  ).compile()
  full = lambda x: jnp.full(x.shape, 0.01, x.dtype)
  place = sharding.by_example(run.mesh)
  fill = jax.jit(
    lambda: jax.tree.map(full, run.abstract_state),
    out_shardings=run_lib.state_shardings(run),
  )
  fill = fill.lower().compile()
  batch = run.source.read(range(config.batch_size))
  batch["epoch"] = batch["index"] * 0
  rng = jax.device_put(jax.random.key(0), sharding.replicated(run.mesh))
  before = memory.memory("VmRSS")
  batch, state = jax.device_put(batch, place), fill()
  jax.block_until_ready(state)
  with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the peak so far is forgotten
  for _ in range(3):
    state, _ = step(state, batch, rng)
    jax.block_until_ready(state)
  return planned / 2**30, memory.memory("VmHWM") - before


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--config", help="of one process")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  if args.config:
    planned, measured = measure(args.config)
    print(
      json.dumps(
        {
          "planned_gib": round(planned, 3),
          "measured_gib": round(measured, 3),
          "ratio": round(planned / measured, 3),
        }
      )
    )
    return
  rows = {}
  for path in CONFIGS:
    found = [
      peers.ours(
        "planned",
        f"--config={path}",
        # Else glibc comes to keep what it could give back.
        GLIBC_TUNABLES="glibc.malloc.mmap_threshold=65536",
      )
      for _ in range(args.rounds)
    ]
    ratios = [row["ratio"] for row in found]
    rows[path] = {
      "planned_gib": found[0]["planned_gib"],
      "measured_gib": [row["measured_gib"] for row in found],
      "ratio": round(statistics.median(ratios), 3),
      "least": min(ratios),
      "most": max(ratios),
    }
  print(json.dumps(rows))


if __name__ == "__main__":
  main()
