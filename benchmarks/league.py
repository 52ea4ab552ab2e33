"""Every method on Fashion-MNIST: `python -m benchmarks.league`.

One encoder family, a ResNet-10 of width 16 whose stem halves the image (where a
method needs patches, the ViT of its config with 4 layers of width 64), batches
of 256, 1,170 updates, then kNN and a linear probe on frozen features, beside
raw pixels, the random encoder and the supervised ceiling. What a config says of
views, optimiser and method stays.

A row a run goes to `league.csv` beside this file, keyed by the hash of its
config; what is there is not run again, and a run that was stopped goes on, so
that the table can be made in parts. `--table` alone writes the README's table
and `docs/league.png` from the rows of configs that are as they were.

`--own` trains the encoders of the configs themselves, a ResNet-18 of width 16
with the CIFAR stem (or a ViT), in a table of its own: on two cores that takes
about an hour each, on a GPU some minutes.

`--part=0/2` and `--part=1/2` go side by side, each on half of the cores. On two
cores that takes a sixth less time than all in turn: a step of SimCLR took
0.430 s in each of two such runs of 60, and 0.255 s alone.
"""

import argparse
import glob
import hashlib
import json
import os
import subprocess
import sys
import time

from benchmarks import rows as rows_lib
from ssljax import config as config_lib

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_RUNS = os.path.join(_ROOT, "runs", "league")
_ROWS = os.path.join(_ROOT, "benchmarks", "league.csv")
_README = os.path.join(_ROOT, "README.md")
_PLOT = os.path.join(_ROOT, "docs", "league.png")
_MARKS = {
  own: (f"<!-- {name} -->\n", f"<!-- /{name} -->\n")
  for own, name in ((False, "league"), (True, "league of own encoders"))
}
_FIELDS = (
  "key", "method", "encoder", "seed", "steps", "knn", "linear", "random_knn",
  "random_linear", "raw_knn", "raw_linear", "collapsed", "curve", "jax", "cpus",
  "device",
)  # fmt: skip
_FLOORS = ("random_knn", "random_linear", "raw_knn", "raw_linear")
# What all runs share; of the probes nothing is chosen on the test set.
_FLAGS = (
  "--config.batch_size=256",
  "--config.steps=1170",
  "--config.accumulate=1",
  "--config.eval.every_epochs=1",
  "--config.eval.last=True",
  "--config.checkpoint.every_steps=200",
  "--config.checkpoint.keep=1",
)


# By encoder: what is smaller than in the configs.
_SMALL = {
  "resnet18": ("variant=10", "stem=small"),
  "vit": ("dim=64", "depth=4", "heads=2"),
}
# Ceilings of the others.
_LABELLED = ("supervised", "supcon")


def configs():
  """{method: path} of the Fashion-MNIST configs, a ResNet's before a ViT's."""
  found = {}
  for path in sorted(glob.glob(os.path.join(_ROOT, "configs", "*.py"))):
    name = os.path.basename(path)
    if name.endswith("_fashion_mnist.py"):
      method, _, encoder = name[: -len("_fashion_mnist.py")].rpartition("_")
      if method not in found or encoder.startswith("resnet"):
        found[method] = path
  return found


def flags(path, seed, own=False):
  """Of a run of a config; with its own encoder, or the small one."""
  small = () if own else _SMALL[encoder_of(path)]
  encoder = [f"--config.encoder.{flag}" for flag in small]
  return [*_FLAGS, f"--config.seed={seed}", *encoder]


def encoder_of(path):
  """As the name of a config says it."""
  return os.path.basename(path).split("_")[-3]


def encoder_name(path, own):
  """Of the encoder that is trained, as rows have it."""
  resnet = "resnet18" if own else "resnet10-small"
  vit = "vit" if own else "vit-small"
  return resnet if encoder_of(path).startswith("resnet") else vit


def path_of(method):
  """Of its config; ends the program where there is none."""
  known = configs()
  if method not in known:
    raise SystemExit(f"no config for {method!r}: one of {', '.join(known)}")
  return known[method]


def key_of(path, seed, more=(), own=False):
  """A hash of what the config, with `more` flags, has other than the base."""
  given = [*flags(path, seed, own), *more]
  config = config_lib.to_dict(config_lib.load(path, given))
  base = config_lib.to_dict(config_lib.base())
  text = json.dumps(config_lib.difference(base, config))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def current(own=False):
  """The rows of configs as they are now."""
  known = configs()
  return [
    row
    for row in rows_lib.read(_ROWS)
    if row["method"] in known
    and row["key"] == key_of(known[row["method"]], int(row["seed"]), own=own)
  ]


def command(*args):
  """The last line of an `ssljax` command, as JSON."""
  done = subprocess.run(
    [sys.executable, "-m", "ssljax", *args], stdout=subprocess.PIPE, text=True
  )
  if done.returncode:
    raise SystemExit(f"ssljax {args[0]} ended with {done.returncode}")
  return json.loads(done.stdout.strip().splitlines()[-1])


def logged(workdir):
  """The lines of a run's metrics."""
  with open(os.path.join(workdir, "metrics.jsonl")) as f:
    return [json.loads(line) for line in f]


def environment(workdir):
  with open(os.path.join(workdir, "environment.json")) as f:
    return json.load(f)


def run(method, path, seed, key, own=False):
  """Trains and evaluates one method; returns its row."""
  workdir = os.path.join(_RUNS, f"{method}-{seed}-{key}")
  name = f"--workdir={workdir}"
  trained = command("train", f"--config={path}", name, *flags(path, seed, own))
  encoder, floors = encoder_name(path, own), {}
  if encoder.startswith("resnet"):  # all the same one; ViTs differ in details
    floors = next((r for r in current(own) if r["encoder"] == encoder), {})
  figures = {k: float(v) for k, v in floors.items() if k in _FLOORS}
  figures |= command(
    "evaluate", name, "--protocols=knn,linear", f"--floors={int(not floors)}"
  )
  curve = {r["step"]: r["knn"] for r in logged(workdir) if "knn" in r}
  here = environment(workdir)
  return {
    "key": key,
    "method": method,
    "encoder": encoder,
    "seed": seed,
    "steps": trained["steps"],
    "collapsed": bool(trained["collapsed"]),
    "curve": " ".join(f"{step}:{knn:.4f}" for step, knn in curve.items()),
    "jax": here["jax"],
    "cpus": here["cpus"],
    "device": here["device_kind"],
    **{k: round(v, 4) for k, v in figures.items() if k in _FIELDS},
  }


def best(rows, count):
  """The methods without labels that have the best linear probes of seed 0."""
  first = [r for r in rows if r["seed"] == "0" and r["method"] not in _LABELLED]
  first.sort(key=lambda r: -float(r["linear"]))
  return [r["method"] for r in first[:count]]


def play(methods, minutes, part=0, parts=1, own=False, seeds=(0,)):
  """Runs what is missing: seed 0 of all, then seeds 1 and 2 of the best; of
  `methods`, where some are named, the `seeds` alone."""
  stop = time.monotonic() + 60 * minutes
  known = configs()
  for method in methods:
    path_of(method)

  def missing(pairs):
    there = {row["key"] for row in rows_lib.read(_ROWS)}
    for method, seed in pairs[part::parts]:
      key = key_of(known[method], seed, own=own)
      if key not in there:
        yield method, known[method], seed, key, own

  def play_all(pairs):
    for entry in missing(pairs):
      if time.monotonic() > stop:
        raise SystemExit("the time is up; what is there is kept")
      row = run(*entry)
      rows_lib.append(_ROWS, _FIELDS, row)
      print(json.dumps(row), flush=True)

  play_all([(m, seed) for seed in seeds for m in methods or known])
  there = current(own)
  if not methods and known.keys() == {row["method"] for row in there}:
    play_all([(m, seed) for seed in (1, 2) for m in best(there, 5)])


def pin(part, parts):
  """Keeps this process, and what it starts, to its part of the cores."""
  cores = sorted(os.sched_getaffinity(0))
  if not 0 <= part < parts <= len(cores):
    raise SystemExit(f"--part={part}/{parts}: there are {len(cores)} cores")
  os.sched_setaffinity(0, cores[part::parts])


def table(rows):
  """Markdown, best linear probe first; several seeds as mean ± half range, with
  the encoder as it was before training."""
  by_method = {}
  for row in rows:
    by_method.setdefault((row["method"], row["encoder"]), []).append(row)

  def value(group, name):
    values = [float(r[name]) for r in group]
    text = f"{sum(values) / len(values):.4f}".lstrip("0")
    if len(values) > 1:
      text += f" ± {(max(values) - min(values)) / 2:.4f}".replace("0.", ".")
    return text

  def mean(group, name):
    return sum(float(r[name]) for r in group) / len(group)

  lines = [
    "| | encoder | seeds | kNN | linear | random kNN | random linear |",
    "|---|---|---|---|---|---|---|",
  ]
  order = sorted(by_method.items(), key=lambda e: -mean(e[1], "linear"))
  for (method, encoder), group in order:
    note = " (with labels)" if method in _LABELLED else ""
    lines.append(
      f"| {method}{note} | {encoder} | {len(group)} | {value(group, 'knn')} | "
      f"{value(group, 'linear')} | {value(group[:1], 'random_knn')} | "
      f"{value(group[:1], 'random_linear')} |"
    )
  knn, linear = (value(rows[:1], f"raw_{name}") for name in ("knn", "linear"))
  lines.append(f"| raw pixels | | | {knn} | {linear} | | |")
  return "\n".join(lines) + "\n"


def plot(rows):
  from matplotlib import pyplot as plt

  fig, axis = plt.subplots(figsize=(9, 6))
  ends = sorted(
    (r for r in rows if r["seed"] == "0"), key=lambda r: -float(r["knn"])
  )
  for i, row in enumerate(ends):
    points = [p.split(":") for p in row["curve"].split()]
    axis.plot(
      [0, *(int(step) for step, _ in points)],
      [float(row["random_knn"]), *(float(knn) for _, knn in points)],
      label=f"{row['method']} {float(row['knn']):.3f}",
      linestyle=("-", "--", ":")[i // 10 % 3],
      color=f"C{i % 10}",
    )
  raw = float(rows[0]["raw_knn"])
  axis.axhline(raw, color="black", linewidth=1, label=f"raw pixels {raw:.3f}")
  axis.set(xlabel="updates", ylabel="kNN accuracy, test")
  axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
  fig.tight_layout()
  fig.savefig(_PLOT, dpi=90)


def write(rows, own=False):
  """The table between its marks in the README, and the plot of the small."""
  begin, end = _MARKS[own]
  with open(_README) as f:
    text = f.read()
  before, _, rest = text.partition(begin)
  _, _, after = rest.partition(end)
  if not after:
    raise SystemExit(f"{_README} has no {begin.strip()} ... {end.strip()}")
  with open(_README, "w") as f:
    f.write(before + begin + table(rows) + end + after)
  if not own:
    plot(rows)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--methods", default="", help="names between commas")
  parser.add_argument("--minutes", type=float, default=1e9)
  parser.add_argument("--table", action="store_true")
  parser.add_argument("--own", action="store_true")
  parser.add_argument("--seeds", default="0", help="of --methods")
  parser.add_argument("--part", default="0/1", help="I/N: every Nth, from I on")
  args = parser.parse_args()
  if not args.table:
    part, parts = map(int, args.part.split("/"))
    if parts > 1:
      pin(part, parts)
    methods = [m for m in args.methods.split(",") if m]
    seeds = tuple(map(int, args.seeds.split(",")))
    play(methods, args.minutes, part, parts, args.own, seeds)
  if there := current(args.own):
    write(there, args.own)


if __name__ == "__main__":
  main()
