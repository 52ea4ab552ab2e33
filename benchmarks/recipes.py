"""A recipe for the league on held-out images: `python -m benchmarks.recipes
METHOD --config.KEY=VALUE ...`.

Trains the method's Fashion-MNIST config, with the flags given, as the league
does, but for 390 updates and on 50,000 of the training images; the other 10,000
tell which recipe a config shall have. No test image is seen. `--own` trains
the config's own encoder instead, for all of the league's updates: what is best
for a small one soon after its start need not be best for that. A row a recipe
goes to `recipes.csv` beside this file, keyed by the hash of its config, and one
that is there is not run again. Without a method the table of all is printed,
flags as they were given to the config of their time, and what the configs have
now in bold.
"""

import argparse
import json
import os
import shlex

from benchmarks import league
from benchmarks import rows as rows_lib

_HERE = os.path.dirname(os.path.abspath(__file__))
_RUNS = os.path.join(os.path.dirname(_HERE), "runs", "recipes")
_ROWS = os.path.join(_HERE, "recipes.csv")
_FIELDS = (
  "key", "method", "encoder", "flags", "steps", "knn", "linear", "rankme",
  "jax", "device",
)  # fmt: skip
_STEPS = 390  # two epochs of them
_FLAGS = (
  "--config.data.split=train[:50000]",
  "--config.eval.train_split=train[:50000]",
  "--config.eval.test_split=train[50000:]",
)


def flags_of(own, given=()):
  """Those on top of the league's."""
  few = () if own else (f"--config.steps={_STEPS}",)
  return [*few, *_FLAGS, *given]


def run(method, given, own=False):
  """The row of one recipe; trains it where there is none."""
  path = league.path_of(method)
  flags = flags_of(own, given)
  key = league.key_of(path, 0, flags, own)
  for row in rows_lib.read(_ROWS):
    if row["key"] == key:
      return row
  workdir = os.path.join(_RUNS, f"{method}-{key}")
  trained = league.command(
    "train",
    f"--config={path}",
    f"--workdir={workdir}",
    *league.flags(path, 0, own),
    *flags,
  )
  probed = league.command(
    "evaluate", f"--workdir={workdir}", "--protocols=linear", "--floors=0"
  )
  rows = league.logged(workdir)
  last = lambda name: [row[name] for row in rows if name in row][-1]
  here = league.environment(workdir)
  row = {
    "key": key,
    "method": method,
    "encoder": league.encoder_name(path, own),
    "flags": shlex.join(given),
    "steps": trained["steps"],
    "knn": round(last("knn"), 4),
    "linear": round(probed["linear"], 4),
    "rankme": round(last("monitor/rankme"), 1),
    "jax": here["jax"],
    "device": here["device_kind"],
  }
  rows_lib.append(_ROWS, _FIELDS, row)
  return row


def table(rows):
  """Markdown, by method, best first."""
  lines = [
    "| | encoder | the config, with | kNN, held out | linear | RankMe |",
    "|---|---|---|---|---|---|",
  ]
  now = {
    league.key_of(path, 0, flags_of(own), own)
    for path in league.configs().values()
    for own in (False, True)
  }
  order = lambda row: (row["method"], row["encoder"], -float(row["knn"]))
  for row in sorted(rows, key=order):
    bold = "**" if row["key"] in now else ""
    flags = " ".join(f"`{f[9:]}`" for f in shlex.split(row["flags"]))
    lines.append(
      f"| {row['method']} | {row['encoder']} | {flags} "
      f"| {bold}{row['knn']}{bold} | {row['linear']} | {row['rankme']} |"
    )
  return "\n".join(lines) + "\n"


def main():
  parser = argparse.ArgumentParser(usage=__doc__)
  parser.add_argument("method", nargs="?")
  parser.add_argument("--own", action="store_true")
  args, flags = parser.parse_known_args()
  if args.method:
    print(json.dumps(run(args.method, flags, args.own)), flush=True)
  else:
    print(table(rows_lib.read(_ROWS)), end="")


if __name__ == "__main__":
  main()
