"""Peak memory of a step over a large vocabulary: `python -m benchmarks.memory`.

GPT mini on 16 x 512 tokens of 50,257 kinds: the loss in blocks of 512, the same
with a scan over rematerialised layers, and the plain way, all logits at once by
optax. Each runs in a process of its own, compiled before; given is the largest
resident memory of the steps beyond what the process had before them, as Linux
counts it. Prints one JSON object; on two cores 1.67, 0.57 and 4.41 GiB. Blocks
compute their logits twice, which costs time.
"""

import argparse
import json
import time

from benchmarks import peers

ROWS, LENGTH = 16, 512
WAYS = ("blocks", "blocks+remat", "plain")


def step(way):
  """Figures of three steps; `way` is a key of `WAYS`."""
  from ssljax import cli

  cli.set_up()
  import jax
  import numpy as np

  from ssljax import core
  from ssljax import optim
  from ssljax.methods import gpt as gpt_method
  from ssljax.models import gpt

  # Outside of a scan XLA's CPU backend undoes rematerialisation.
  remat = way == "blocks+remat"
  kind = "full" if remat else "none"
  decoder = gpt.make(variant="mini", dropout=0.0, remat=kind, scan=remat)
  method = gpt_method.make(decoder, block=512)
  if way == "plain":
    method = method._replace(forward=_plain(decoder))
  tx = optim.make(name="adamw", learning_rate=1e-3)
  rng = jax.random.key(0)
  tokens = np.random.default_rng(0).integers(0, decoder.vocab, (ROWS, LENGTH))
  batch = jax.device_put({"tokens": tokens.astype(np.int32)})
  state = jax.jit(lambda rng: core.init_state(method, tx, rng, batch))(rng)
  compiled = (
    jax.jit(core.make_train_step(method, tx), donate_argnums=0)
    .lower(state, batch, rng)
    .compile()
  )
  jax.block_until_ready(state)
  with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the peak so far is forgotten
  before, times = memory("VmRSS"), []
  for _ in range(3):
    start = time.perf_counter()
    state, metrics = compiled(state, batch, rng)
    jax.block_until_ready(state)
    times.append(time.perf_counter() - start)
  return {
    "peak_gib": round(memory("VmHWM") - before, 3),
    "before_gib": round(before, 3),
    "step_s": round(min(times), 2),
    "loss": round(float(metrics["loss"]), 4),
  }


def _plain(decoder):
  """All logits at once, by optax."""
  import jax.numpy as jnp
  import optax

  def forward(params, method_state, batch, *, step, train):
    del step
    tokens, encoder = batch["tokens"], {"params": params["encoder"]}
    hidden = decoder.apply(encoder, tokens, train=train)["tokens"][:, :-1]
    logits = hidden @ params["encoder"]["token_embed"]["embedding"].T
    nats = optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[:, 1:]
    )
    right = (logits.argmax(axis=-1) == tokens[:, 1:]).sum(axis=1)
    count = jnp.full(len(tokens), tokens.shape[1] - 1)
    features = {"sum": nats.sum(axis=1), "count": count, "right": right}
    return features, method_state

  return forward


def memory(field):
  """GiB by /proc/self/status."""
  with open("/proc/self/status") as f:
    line = next(line for line in f if line.startswith(field))
  return int(line.split()[1]) / 2**20


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--way", choices=WAYS)
  args = parser.parse_args()
  if args.way:
    print(json.dumps(step(args.way)))
    return
  rows = {}
  for way in WAYS:
    rows[way] = peers.ours("memory", f"--way={way}")
  for way in WAYS[:-1]:
    ratio = rows[way]["peak_gib"] / rows["plain"]["peak_gib"]
    rows[way]["of_plain"] = round(ratio, 3)
  print(json.dumps(rows))


if __name__ == "__main__":
  main()
