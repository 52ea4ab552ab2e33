"""Ours and the peers', in turn: `python -m benchmarks.peers --peer=PYTHON`.

PYTHON is an interpreter that has torch and torchvision. Each pair is timed A B
A B in one run, both in float32, the peer at the best of its variants, and the
ratio of the medians is given: absolute times of a shared machine mean little.
Writes `peers.md` and `peers.png` to `--out`, and prints one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

_HERE = os.path.dirname(os.path.abspath(__file__))
_MODELS = ("vit_ti", "mae_ti", "bert_mini", "resnet18_16", "resnet18_64")
_VARIANTS = {
  "vit_ti": ([], ["--compile"]),
  "mae_ti": ([], ["--compile"]),
  "bert_mini": ([], ["--compile"]),
  "resnet18_16": ([], ["--channels-last"]),
  "resnet18_64": ([], ["--channels-last"]),
}


def run(command, **environment):
  """The last line on stdout, as JSON."""
  done = subprocess.run(
    command,
    check=True,
    capture_output=True,
    text=True,
    env={**os.environ, **environment},
  )
  return json.loads(done.stdout.strip().splitlines()[-1])


def ours(module, *args, **environment):
  return run(
    [sys.executable, "-m", f"benchmarks.{module}", *args], **environment
  )


def theirs(python, script, *args):
  return run([python, os.path.join(_HERE, script), *args])


def steps(python, model, rounds):
  """A row for one train step."""
  times = {}
  for _ in range(rounds):
    a = ours("step", f"--model={model}")
    times.setdefault("ours", []).append(a["step_s"])
    for variant in _VARIANTS[model]:
      try:
        b = theirs(python, "torch_step.py", f"--model={model}", *variant)
      except subprocess.CalledProcessError:  # no compiler for torch.compile
        continue
      times.setdefault(" ".join(["torch", *variant]), []).append(b["step_s"])
  medians = {k: statistics.median(v) for k, v in times.items()}
  peer = min((k for k in medians if k != "ours"), key=medians.get)
  return {
    "what": f"step, {model}",
    "ours": medians["ours"],
    "peer": medians[peer],
    "unit": "s",
    "with": peer,
    "ratio": round(medians["ours"] / medians[peer], 3),
  }


def masking():
  """The encoder's step with a quarter of the patches over that with all."""
  masked, whole = (
    ours("step", f"--model={m}")["step_s"]
    for m in ("encoder_ti_masked", "encoder_ti")
  )
  return {
    "what": "ViT-Ti step, 75 % masked over all visible",
    "ours": masked,
    "peer": whole,
    "unit": "s",
    "with": "ours, unmasked",
    "ratio": round(masked / whole, 3),
  }


def views(python, rounds):
  rows = ours("views", f"--peer={python}", f"--rounds={rounds}")
  return [
    {
      "what": f"two views, {name}",
      "ours": row["images_per_s"],
      "peer": row["torchvision"],
      "unit": "images/s",
      "with": "torchvision",
      "ratio": row["ratio"],
    }
    for name, row in rows.items()
  ]


def first_step():
  """Start to the end of the first step, with and without a warm cache."""
  with tempfile.TemporaryDirectory() as cache:
    setting = {
      "JAX_COMPILATION_CACHE_DIR": cache,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    cold, warm = (
      ours("step", "--model=vit_ti", "--steps=1", **setting)["first_s"]
      for _ in range(2)
    )
  return {
    "what": "first step of vit_ti, compiled before or not",
    "ours": warm,
    "peer": cold,
    "unit": "s",
    "with": "ours, without a compilation cache",
    "ratio": round(warm / cold, 3),
  }


def loop():
  row = ours("loop")
  return {
    "what": "step in `ssljax train` over the bare step",
    "ours": row["loop_step_s"],
    "peer": row["bare_step_s"],
    "unit": "s",
    "with": "ours, bare",
    "ratio": row["ratio"],
  }


def write(rows, out):
  os.makedirs(out, exist_ok=True)
  lines = [
    "| what | ours | peer | | peer is | ours / peer |",
    "|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {r['what']} | {r['ours']} | {r['peer']} | {r['unit']} | {r['with']} "
    f"| {r['ratio']} |"
    for r in rows
  ]
  with open(os.path.join(out, "peers.md"), "w") as f:
    f.write("\n".join(lines) + "\n")
  from matplotlib import pyplot as plt

  fig, axis = plt.subplots(figsize=(8, 0.5 * len(rows) + 1))
  axis.barh([r["what"] for r in rows], [r["ratio"] for r in rows])
  axis.axvline(1.0, color="black", linewidth=1)
  axis.set_xscale("log")
  axis.set_xlabel("ours / peer")
  axis.invert_yaxis()
  fig.tight_layout()
  fig.savefig(os.path.join(out, "peers.png"))


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--peer", required=True)
  parser.add_argument("--out", default="runs/benchmarks")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  rows = [steps(args.peer, model, args.rounds) for model in _MODELS]
  rows.append(masking())
  rows += views(args.peer, args.rounds)
  rows += [loop(), first_step()]
  reading = ours("reading")
  write(rows, args.out)
  print(json.dumps({"rows": rows, "reading": reading, "out": args.out}))


if __name__ == "__main__":
  main()
