"""The main job on real data: prepare, train, evaluate, and the page about it.

`python -m ssljax.quickstart` is what `make quickstart` runs. The last line on
stdout is one JSON object.
"""

import json
import os
import sys

from ssljax import cli
from ssljax import config as config_lib
from ssljax import errors
from ssljax import evaluate
from ssljax import files
from ssljax import report
from ssljax import train
from ssljax.data import prepare

_CONFIG = "configs/simclr_resnet18_fashion_mnist.py"


def main() -> int:
  cli.use_huge_pages()
  cli.set_up()
  return cli.status(_run)


def _run():
  variant, dataset = "fast", "fashion_mnist"
  try:
    prepare.prepare(dataset)
  except errors.UserError as e:
    print(
      f"*** Fashion-MNIST could not be had ({e}).\n"
      "*** Falling back to scikit-learn's digits: 1,797 images of 8 x 8.",
      file=sys.stderr,
    )
    variant, dataset = "quick", "digits"
  workdir = os.path.abspath(os.path.join("runs", f"quickstart_{dataset}"))
  config = config_lib.load(f"{_CONFIG}:{variant}", [])
  trained = train.train(config, workdir)
  figures = evaluate.evaluate(workdir)
  for name in ("train_s", "images_per_s"):
    figures[name] = trained[name]
  figures["report"] = report.report([workdir])["report"]
  _tell(figures, workdir)
  print(json.dumps(files.plain(figures)), flush=True)
  return 0


def _tell(figures, workdir):
  row = "{:24} {:>8} {:>8}".format
  lines = [row("accuracy", "kNN", "linear")]
  for prefix, name in (
    ("raw_", "raw pixels"),
    ("random_", "random encoder"),
    ("", "SimCLR"),
  ):
    accuracies = [f"{figures[prefix + p]:.4f}" for p in ("knn", "linear")]
    lines.append(row(name, *accuracies))
  lines.append(f"Everything is in {workdir}: ")
  lines.append("  metrics.jsonl, tb/, checkpoints/, eval/, config.json")
  lines.append(f"To look at, in a browser: {figures['report']}")
  print("\n".join(lines))


if __name__ == "__main__":
  sys.exit(main())
