"""Evaluation of a run's encoder, beside its floors.

The floors are raw pixels and the encoder as it was before training. Protocols
are fixed and carry a version; what they gave is comparable across releases.
"""

import contextlib
import json
import os

import jax
import numpy as np

from ssljax import checkpoint
from ssljax import config as config_lib
from ssljax import core
from ssljax import errors
from ssljax import run as run_lib
from ssljax import sharding
from ssljax.data import sources
from ssljax.evals import knn as knn_lib
from ssljax.evals import linear_probe

PROTOCOLS = {"knn": knn_lib.knn, "linear": linear_probe.linear_probe}


def evaluate(
  workdir: str,
  *,
  protocols: tuple[str, ...] = ("knn", "linear"),
  step: int | None = None,
  data: str | None = None,
  train_split: str | None = None,
  test_split: str | None = None,
) -> dict:
  """Evaluates a checkpoint of a run, with floors.

  Args:
    workdir: of the run.
    protocols: among `knn` and `linear`.
    step: of the checkpoint; None is the latest.
    data: a TFDS name or `folder:PATH`; None is the run's own.
    train_split: for the probes; None is the config's.
    test_split: for the accuracies; None is the config's.

  Returns:
    Accuracies in [0, 1] by protocol, for the encoder, for raw pixels (`raw_`)
    and for the encoder before training (`random_`), and `protocol`, a version
    for each. Written to `eval/<step>.json` in the workdir as well.

  Raises:
    UserError: no such run, checkpoint, protocol, dataset or split.
  """
  unknown = set(protocols) - set(PROTOCOLS)
  if unknown:
    raise errors.UserError(
      f"unknown protocol {min(unknown)!r}: choose among {', '.join(PROTOCOLS)}"
    )
  run, state = restore(workdir, step)
  sets = [
    labelled(run, data, split or run.config.eval[name])
    for name, split in (
      ("train_split", train_split),
      ("test_split", test_split),
    )
  ]
  classes = sets[0].num_classes
  features = {
    "": [embed(run, state, s) for s in sets],
    "raw_": [raw(s) for s in sets],
    "random_": [embed(run, run_lib.init_state(run), s) for s in sets],
  }
  figures, versions = {}, {}
  for name in protocols:
    for prefix, (train, test) in features.items():
      result = _measure(name, train, test, classes)
      figures[prefix + name] = result["accuracy"]
      versions[name] = result["protocol"]
  figures = {
    "dataset": sets[0].name,
    "step": int(state.step),
    **figures,
    "protocol": versions,
    "workdir": workdir,
  }
  _record(figures, os.path.join(workdir, "eval", f"{int(state.step)}.json"))
  return figures


def _record(figures, path):
  """Writes the figures, whole or not at all."""
  draft = path + ".draft"
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(draft, "w") as f:
      json.dump(figures, f, indent=2)
    os.replace(draft, path)
  except OSError as e:
    with contextlib.suppress(OSError):
      os.remove(draft)
    raise errors.SafeStop(
      f"{path} could not be written ({e.strerror}): make room and evaluate "
      f"again; the figures were {json.dumps(figures)}"
    ) from e


def restore(workdir: str, step: int | None = None):
  """Returns the run that a workdir holds, built, and its state at a step."""
  path = os.path.join(workdir, "config.json")
  if not os.path.exists(path):
    raise errors.UserError(f"no run in {workdir}: give a --workdir of `train`")
  run = run_lib.build(config_lib.restore(path))
  checkpoints = checkpoint.Checkpoints(
    os.path.join(workdir, "checkpoints"), read_only=True
  )
  state = checkpoints.restore(run_lib.abstract_state(run), step)
  checkpoints.close()
  return run, state


def labelled(run, name: str | None, split: str):
  """A labelled source, the run's own or another, as the run reads images."""
  options = {**run.config.data, "split": split, "labels": True}
  if name is not None:
    options |= {"name": name, "size": run.source.shape[:2]}
    options["channels"] = run.source.shape[2]
  return sources.make(**options)


def eval_sets(run):
  """The config's (train, test) sets for evaluation; None where they are ''."""
  splits = run.config.eval.train_split, run.config.eval.test_split
  return [labelled(run, None, s) for s in splits] if all(splits) else None


def embed(run: run_lib.Run, state: core.TrainState, source) -> dict:
  """Returns `pooled` [n d] float32, `index` [n], and `label` [n] if there.

  The last batch is filled up, so that one program serves all.
  """
  size = run.config.eval.batch_size
  size += -size % run.mesh.devices.size
  place = sharding.by_example(run.mesh)
  rows = []
  for start in range(0, len(source), size):
    indices = np.arange(start, start + size)
    batch = source.read(np.minimum(indices, len(source) - 1))
    image = jax.device_put({"image": batch.pop("image")}, place)
    rows.append({"pooled": run.embed(state, image), **batch})
  stack = lambda *x: np.concatenate([np.asarray(a) for a in x])[: len(source)]
  return jax.tree.map(stack, *rows)


def raw(source) -> dict:
  """Pixels in [0, 1] as features."""
  batch = source.read(np.arange(len(source)))
  image = batch.pop("image")
  return {"pooled": image.reshape(len(image), -1) / np.float32(255), **batch}


def knn(run: run_lib.Run, state: core.TrainState, sets) -> float:
  """The accuracy of the kNN protocol, on sets as `labelled` gives them."""
  train, test = (embed(run, state, source) for source in sets)
  return _measure("knn", train, test, sets[0].num_classes)["accuracy"]


def _measure(protocol, train, test, num_classes):
  return PROTOCOLS[protocol](
    train["pooled"],
    train["label"],
    test["pooled"],
    test["label"],
    num_classes=num_classes,
  )


def write_embeddings(
  workdir: str,
  out: str,
  *,
  split: str = "test",
  step: int | None = None,
  data: str | None = None,
) -> dict:
  """Writes `pooled` [n d], `index` [n] and, where there is one, `label` [n].

  Args:
    workdir: of the run.
    out: the .npz file.
    split: of the run's dataset, or of `data`.
    step: of the checkpoint; None is the latest.
    data: another dataset; None is the run's own.
  """
  run, state = restore(workdir, step)
  rows = embed(run, state, labelled(run, data, split))
  try:
    np.savez(out, **rows)
  except OSError as e:
    raise errors.UserError(f"cannot write --out={out}: {e.strerror}") from e
  return {
    "out": out,
    "examples": len(rows["pooled"]),
    "dim": rows["pooled"].shape[1],
    "step": int(state.step),
  }
