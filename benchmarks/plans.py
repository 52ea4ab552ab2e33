"""The papers' own recipes on TPUs and GPUs: `python -m benchmarks.plans`.

Writes `docs/plans.md`; takes some ten minutes a config on two CPU cores. Needs
`pip install 'ssljax[plan]'`, and no chip.
"""

import argparse
import json
import os
import subprocess
import sys

# Slices on which each fits. What more would fit is told of the first.
PLANS = {
  "simclr_resnet50_imagenet.py": "v5e:8x8,v5p:4x4x4,v6e:8x8,h100:4x8",
  "mocov3_vit_imagenet.py:B": "v5e:8x8,v5p:4x4x4,v6e:8x8,h100:4x8",
  "mae_vit_imagenet.py:L": "v5e:16x16,v5p:8x8x8,v6e:16x16,h100:4x8",
  "mae_vit_imagenet.py:H": "v5e:16x16,v5p:8x8x8,v6e:16x16,h100:4x8",
  "dino_vit_imagenet.py": "v5e:8x8,v5p:4x4x4,v6e:8x8,h100:4x8",
  "bert_base_wikipedia.py": "v5e:4x4,v5p:2x2x4,v6e:4x4,h100:8",
  "gpt_124m_webtext.py": "v5e:8x8,v5p:4x4x4,v6e:8x8,h100:4x8",
}
_HEAD = """\
# Plans

What the papers' own recipes take on TPUs and GPUs, by `python -m
benchmarks.plans`, which is `ssljax plan --config=configs/NAME --topology=...`:
the step that trains, compiled for chips that were not there. Nothing here was
run on one.

Memory is the compiler's, of one chip at its peak; of GPUs it is without the
room that cuDNN works in, and cuBLAS beyond 4 MiB, and they have what JAX takes,
three quarters of theirs. Their wire is NVLink, between hosts too. FLOPs and
wire are what a step takes at the least by each; FLOPs are the method's own,
without augmentation. HBM is what the compiler's program moves, which for a TPU
at O0, its quick level, is 1.7 to 5.5 times what a run's does, so there it does
not count; for a GPU it is without Triton's softmax. The time of a step assumes
{mfu:.0%} of the chips' peak FLOPs, or is that of HBM or the wire where that is
longer; of an H200, two steps that were measured had 12% and 20% (README).
Chip-hours are for the whole schedule. The objective sees arrays of the global
batch: its negatives, targets or Sinkhorn's rows are all of them. What a machine
reads was measured on two CPU cores beside other work. The last line of each is
of `--largest --remat=none,dots,full` on the first of the slices: the largest
batch is that of the memory, found to an eighth, and no advice; memory by remat
is of the recipe's own batch.
"""
_KINDS = ("none", "dots", "full")


def plan(name, topologies, *flags):
  """The lines that `ssljax plan` prints, the last of them JSON."""
  command = [sys.executable, "-m", "ssljax", "plan", *flags]
  command += [f"--config={os.path.join('configs', name)}"]
  command += [f"--topology={topologies}"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
  return done.stdout.strip().splitlines()


def more(topology, row):
  """A line on what else would fit."""
  by_kind = ", ".join(
    f"{kind} {row['remat'][kind] / 2**30:.4g} GiB" for kind in _KINDS
  )
  return (
    f"On {topology} the largest batch is {row['largest_batch']:,}; memory by "
    f"remat: {by_kind}"
  )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--only", help="a part of the configs' names")
  parser.add_argument("--mfu", type=float, default=0.4)
  parser.add_argument("--out", default="docs/plans.md")
  args = parser.parse_args()
  parts = [_HEAD.format(mfu=args.mfu)]
  for name, topologies in PLANS.items():
    if args.only and args.only not in name:
      continue
    *lines, _ = plan(name, topologies, f"--mfu={args.mfu}")
    first, *_ = topologies.split(",")
    remat = f"--remat={','.join(_KINDS)}"
    *_, last = plan(name, first, remat, "--largest")
    lines += ["", more(first, json.loads(last)["topologies"][first])]
    parts.append(f"## `{name}`\n\n" + "\n".join(lines) + "\n")
    print(name, file=sys.stderr)
  with open(args.out, "w") as f:
    f.write("\n".join(parts))


if __name__ == "__main__":
  main()
