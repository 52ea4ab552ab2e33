"""Evaluation of a run's encoder, beside its floors.

The floors are raw pixels and the encoder as it was before training. Protocols
are fixed and carry a version; what they gave is comparable across releases.
"""

import hashlib
import json
import os
import re

import jax
import numpy as np

from ssljax import checkpoint
from ssljax import checks
from ssljax import core
from ssljax import errors
from ssljax import files
from ssljax import held_out
from ssljax import run as run_lib
from ssljax import sharding
from ssljax import tuning
from ssljax import workdir as workdir_lib
from ssljax.data import described
from ssljax.evals import finetune
from ssljax.evals import floors as floors_lib
from ssljax.evals import knn as knn_lib

_FEATURES = tuple(floors_lib.PROTOCOLS)


def evaluate(
  workdir: str,
  *,
  protocols: tuple[str, ...] | None = None,
  step: int | None = None,
  data: str | None = None,
  train_split: str | None = None,
  test_split: str | None = None,
  fractions: tuple[float, ...] | None = None,
  seeds: int | None = None,
  floors: bool = True,
  blocks: int | None = None,
) -> dict:
  """Evaluates a checkpoint of a run, with floors.

  Args:
    workdir: of the run.
    protocols: among `knn`, `linear`, `loss`, the held-out loss of the method,
      and `finetune`; None is the config's.
    step: of the checkpoint; None is the latest.
    data: a TFDS name or `folder:PATH`; None is the run's own.
    train_split: for the probes; None is the config's.
    test_split: for the accuracies; None is the config's.
    fractions: of the labels, for `finetune`; None is 0.01, 0.1 and 1.
    seeds: how many of each, for `finetune`; None is 1.
    floors: whether `knn` and `linear` come with those of raw input and random
      encoder, which take as long again.
    blocks: of a ViT, the last so many, whose features `knn` and `linear` see
      joined (`ViT.pool_blocks`); their names then end with `_last` and this.
      DINO's authors probe a ViT-S by four and a ViT-B by one.

  Returns:
    `dataset`, `splits`, `protocol`, a version for each, and their figures.
    `knn` and `linear`: accuracies in [0, 1], for the encoder, for the raw input
    (`raw_`: pixels, or TF-IDF) and for the encoder before training (`random_`).
    `loss`: `test_` and the loss and each metric; of language models also the
    perplexity, and of causal ones bits a byte.
    `finetune`: by fraction the mean accuracy over the seeds, its spread (the
    sample standard deviation) and all, from this start and from before training
    (`scratch_`), the `labels` and the `rate` that were used, and `raw_linear`,
    the linear probe of the raw input. Kept in
    `eval/<step>.json` in the workdir as well, beside what other protocols gave;
    of another dataset or split, their names follow the step.

  Raises:
    UserError: no such run, checkpoint, protocol, dataset or split; the same for
      training and test; features of fewer blocks; or what no protocol reads.
  """
  workdir = os.fspath(workdir)
  config = workdir_lib.restore_config(workdir).eval
  protocols = tuple(protocols or config.get("protocols", _FEATURES))
  known = checks.PROTOCOLS
  if unknown := set(protocols) - set(known):
    raise errors.UserError(
      f"unknown protocol {min(unknown)!r}: choose among {', '.join(known)}"
    )
  if "finetune" not in protocols and (fractions or seeds):
    raise errors.UserError(
      "--fractions and --seeds are of finetune: add it to --protocols"
    )
  fractions, seeds = fractions or (0.01, 0.1, 1.0), seeds or 1
  if blocks is not None and not set(protocols) <= set(_FEATURES):
    raise errors.UserError(
      "--blocks is of knn and linear: give these alone to --protocols"
    )
  alone = set(protocols) == {"loss"}
  if alone and train_split:
    raise errors.UserError("the loss alone reads no --train_split: leave it")
  run, state = restore(workdir, step, examples=False)
  if blocks is not None:
    run = _of_blocks(run, state, blocks)
  figures = {
    "dataset": data or run.source.name,
    "splits": {
      "train": train_split or config.train_split,
      "test": test_split or config.test_split,
    },
    "step": int(state.step),
  }
  needed = ("test",) if alone else ("train", "test")
  if not all(figures["splits"][name] for name in needed):
    raise errors.UserError(
      "the run was made without evaluation: give --train_split and "
      "--test_split, and where its data have no labels --data=NAME"
    )
  if not alone and len(set(figures["splits"].values())) == 1:
    raise errors.UserError(
      f"--train_split and --test_split are both {figures['splits']['test']!r}, "
      "where each example would find itself: give two"
    )
  versions = {}
  path = os.path.join(workdir, "eval", _file_name(figures, run))

  def record():  # as soon as there is something: what follows may take long
    figures.update(protocol=versions, workdir=workdir)
    _record(figures, path)

  if "loss" in protocols:
    figures |= held_out.measure(run, state, data, figures["splits"]["test"])
    versions["loss"] = "loss/2 no dropout, views of epoch 0, shuffled"
    record()
  if set(protocols) - {"loss"}:
    sets = [labelled(run, data, s) for s in figures["splits"].values()]
    parts = None
    if "finetune" in protocols:  # before anything that takes long
      labels, _ = (
        knn_lib.check_labels(split, tuning.labels(s), sets[0].num_classes)
        for split, s in zip(figures["splits"].values(), sets)
      )
      parts = {f: finetune.subset(labels, f) for f in fractions}
    if floors and (parts or set(protocols) & set(_FEATURES)):
      floors_lib.require_memory(sets)
    start = run_lib.init_state(run)
    for name, result in _of_features(
      run, state, start if floors else None, sets, protocols
    ):
      if blocks is not None and not name.startswith("raw_"):
        name += f"_last{blocks}"
        result["protocol"] += f", the last {blocks} blocks joined"
      figures[name] = result["accuracy"]
      if result["protocol"] not in versions.values():  # the floors' own
        versions[name] = result["protocol"]
      record()
    if parts is not None:
      figures["finetune"] = {}
      for fraction, row, protocol in tuning.finetuned(
        run, state, start, sets, parts, seeds, floors
      ):
        figures["finetune"][f"{fraction:g}"] = row
        versions["finetune"] = protocol
        record()
  return figures


def _of_blocks(run, state, blocks):
  """The run, whose `embed` joins the features of its last blocks."""
  config = run.config.copy_and_resolve_references()
  own = config.encoder.get("pool_blocks", 1)
  with config.unlocked():
    config.encoder.pool_blocks = blocks
  try:
    joined = run_lib.build(config, source=run.source)
  except errors.UserError as e:
    raise errors.UserError(f"--blocks={blocks}: {e}") from e
  example = {
    k: jax.ShapeDtypeStruct((run.mesh.devices.size, *shape), dtype)
    for k, (shape, dtype) in run.source.example.items()
  }
  dim, wide = (
    jax.eval_shape(r.embed, state, example).shape[-1] for r in (run, joined)
  )
  if wide * own != blocks * dim:
    raise errors.UserError(
      f"--blocks={blocks}: {run.config.method.name} makes features of its own "
      "choice of blocks: leave it out"
    )
  return run._replace(embed=joined.embed)


def _of_features(run, state, start, sets, protocols):
  """Yields (name, what the protocol gave): the encoder, then its floors.

  Those are left out where `start`, the state before training, is None.
  """
  names = [name for name in protocols if name in _FEATURES]
  if not names:
    return
  encoders = {"": state} if start is None else {"": state, "random_": start}
  for prefix, encoder in encoders.items():
    pair = [embed(run, encoder, s) for s in sets]
    for name in names:
      yield prefix + name, floors_lib.measure(name, *pair, sets[0].num_classes)
  if start is None:
    return
  for name, result in floors_lib.floor(*sets, tuple(names)).items():
    yield "raw_" + name, result


def _file_name(figures, run):
  """The step, and what data they are of unless they are the config's."""
  step, data, splits = (figures[k] for k in ("step", "dataset", "splits"))
  own = {k: run.config.eval[f"{k}_split"] for k in splits}
  if (data, splits) == (run.source.name, own):
    return f"{step}.json"
  words = "-".join([data, *splits.values()])
  short = re.sub("[^-.0-9A-Za-z]", "_", words)[-100:]
  digest = hashlib.sha256(words.encode()).hexdigest()[:8]
  return f"{step}-{short}-{digest}.json"


def _record(figures, path):
  """Adds the figures to those of other protocols, whole or not at all."""
  joined = files.plain(_joined(_before(path), figures))
  try:
    files.write(path, json.dumps(joined, indent=2))
  except OSError as e:
    raise errors.SafeStop(
      f"{path} could not be written ({e.strerror}): make room and evaluate "
      f"again; the figures were {json.dumps(figures)}"
    ) from e


def _before(path):
  try:
    with open(path) as f:
      found = json.load(f)
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _joined(old, new):
  """The figures of the same data, those of `new` first."""
  if any(old.get(k) != new[k] for k in ("dataset", "splits")):
    return new
  of = lambda figures: figures.get("protocol", {})
  joined = old | new | {"protocol": of(old) | of(new)}
  both = "finetune" in old and "finetune" in new
  if both and of(old).get("finetune") == of(new).get("finetune"):
    joined["finetune"] = old["finetune"] | new["finetune"]  # by fraction
  return joined


def restore(workdir: str, step: int | None = None, *, examples: bool = True):
  """Returns the run that a workdir holds, built, and its state at a step.

  Args:
    workdir: of the run.
    step: of the checkpoint; None is the latest.
    examples: whether the run's source is to be read; else its data need not
      be here.
  """
  config = workdir_lib.restore_config(workdir)
  source, kept = None, workdir_lib.kept_data(workdir)
  if kept is not None and not examples:
    source = described.of(kept, config.data)
  run = run_lib.build(config, source=source)
  checkpoints = checkpoint.Checkpoints(
    os.path.join(workdir, "checkpoints"), read_only=True
  )
  state = checkpoints.restore(run.abstract_state, step)
  checkpoints.close()
  return run, state


def labelled(run, name: str | None, split: str, labels: bool | None = True):
  """A source with labels, the run's own or another, read as the run reads its
  own; `labels=None` takes them where there are any."""
  return run_lib.open_like(run, name, split, labels=labels)


def eval_sets(run):
  """The config's (train, test) sets for evaluation; None where they are ''.

  Raises:
    UserError: they are one, or `knn` would refuse them, which is found before
      training.
  """
  splits = {k: run.config.eval[k] for k in ("train_split", "test_split")}
  if not all(splits.values()):
    return None
  if len(set(splits.values())) == 1:
    raise errors.UserError(
      f"config.eval has {splits['train_split']!r} as train_split and as "
      "test_split, where each example would find itself: give two, or '' for "
      "no evaluation"
    )
  sets = [labelled(run, None, split) for split in splits.values()]
  (n, classes), k = (len(sets[0]), sets[0].num_classes), knn_lib.K
  or_none = "or set --config.eval.train_split='' for no evaluation"
  if n < k:
    raise errors.UserError(
      f"config.eval.train_split={splits['train_split']} has {n} examples, and "
      f"kNN takes {k} neighbours: give a larger split, {or_none}"
    )
  for (key, split), source in zip(splits.items(), sets):
    labels = source.labels()
    if labels.min() < 0 or labels.max() >= classes:
      raise errors.UserError(
        f"config.eval.{key}={split} has labels in [{labels.min()}, "
        f"{labels.max()}], not in [0, {classes}): give a split whose examples "
        f"are all labelled, {or_none}"
      )
  return sets


def embed(run: run_lib.Run, state: core.TrainState, source) -> dict:
  """Returns `pooled` [n d] float32, `index` [n], and `label` [n] if there.

  The last batch is filled up, so that one program serves all.
  """
  size = run.config.eval.batch_size
  size += -size % run.mesh.devices.size
  place = sharding.by_example(run.mesh)
  own = sharding.rows(run.mesh, size)
  order, rows = source.order(), []
  for start in range(0, len(source), size):
    indices = order[np.minimum(start + np.arange(size), len(source) - 1)]
    batch = source.cut(source.read(indices[own]), indices)
    batch = sharding.put_parts(batch, place)
    example = {k: batch.pop(k) for k in source.example}
    pooled = run.embed(state, example)
    if rows:  # one batch late: the device has the next, and no more
      rows[-1] = jax.tree.map(sharding.gather, rows[-1])
    rows.append({"pooled": pooled, **batch})
  rows[-1] = jax.tree.map(sharding.gather, rows[-1])
  back = np.argsort(order)
  return jax.tree.map(lambda *x: np.concatenate(x)[back], *rows)


def knn(run: run_lib.Run, state: core.TrainState, sets) -> float:
  """The accuracy of the kNN protocol, on sets as `labelled` gives them."""
  train, test = (embed(run, state, source) for source in sets)
  return floors_lib.measure("knn", train, test, sets[0].num_classes)["accuracy"]


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
  files.require_npz(out)
  run, state = restore(workdir, step, examples=False)
  rows = embed(run, state, labelled(run, data, split, labels=None))
  files.write_npz(out, rows)
  return {
    "out": out,
    "examples": len(rows["pooled"]),
    "dim": rows["pooled"].shape[1],
    "step": int(state.step),
  }
