"""Evaluation of a run's encoder, beside its floors.

The floors are raw pixels and the encoder as it was before training. Protocols
are fixed and carry a version; what they gave is comparable across releases.
"""

import json
import math
import os

import jax
import numpy as np

from ssljax import checkpoint
from ssljax import core
from ssljax import errors
from ssljax import files
from ssljax import run as run_lib
from ssljax import sharding
from ssljax.data import sources
from ssljax.evals import finetune
from ssljax.evals import knn as knn_lib
from ssljax.evals import linear_probe
from ssljax.evals import tfidf

_WARM = 50  # batches of them, after which running statistics are of the data
# Of features, and of the run itself.
_FEATURES = {"knn": knn_lib.knn, "linear": linear_probe.linear_probe}
PROTOCOLS = (*_FEATURES, "loss", "finetune")


def evaluate(
  workdir: str,
  *,
  protocols: tuple[str, ...] | None = None,
  step: int | None = None,
  data: str | None = None,
  train_split: str | None = None,
  test_split: str | None = None,
  fractions: tuple[float, ...] = (0.01, 0.1, 1.0),
  seeds: int = 1,
  floors: bool = True,
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
    fractions: of the labels, for `finetune`.
    seeds: how many of each, for `finetune`.
    floors: whether `knn` and `linear` come with those of raw input and random
      encoder, which take as long again.

  Returns:
    `dataset`, `splits`, `protocol`, a version for each, and their figures.
    `knn` and `linear`: accuracies in [0, 1], for the encoder, for the raw input
    (`raw_`: pixels, or TF-IDF) and for the encoder before training (`random_`).
    `loss`: `test_` and the loss and each metric; of language models also the
    perplexity, and of causal ones bits a byte.
    `finetune`: by fraction the mean accuracy over the seeds, its spread (the
    sample standard deviation) and all, from this start and from before training
    (`scratch`), and `raw`, `linear` of the raw input. Kept in
    `eval/<step>.json` in the workdir as well, beside what other protocols gave.

  Raises:
    UserError: no such run, checkpoint, protocol, dataset or split.
  """
  config = run_lib.restore_config(workdir).eval
  protocols = tuple(protocols or config.get("protocols", tuple(_FEATURES)))
  unknown = set(protocols) - set(PROTOCOLS)
  if unknown:
    raise errors.UserError(
      f"unknown protocol {min(unknown)!r}: choose among {', '.join(PROTOCOLS)}"
    )
  run, state = restore(workdir, step)
  figures = {
    "dataset": data or run.source.name,
    "splits": {
      "train": train_split or config.train_split,
      "test": test_split or config.test_split,
    },
    "step": int(state.step),
  }
  versions = {}
  path = os.path.join(workdir, "eval", f"{int(state.step)}.json")

  def record():  # as soon as there is something: what follows may take long
    figures.update(protocol=versions, workdir=workdir)
    _record(figures, path)

  if "loss" in protocols:
    figures |= held_out(run, state, data, figures["splits"]["test"])
    versions["loss"] = "loss/1 no dropout, views of epoch 0"
    record()
  if set(protocols) - {"loss"}:
    sets = [labelled(run, data, s) for s in figures["splits"].values()]
    parts = None
    if "finetune" in protocols:  # before anything that takes long
      labels = _labels(sets[0])
      parts = {f: finetune.subset(labels, f) for f in fractions}
    if floors and set(protocols) & set(_FEATURES):
      _require_memory(sets)
    start = run_lib.init_state(run)
    for name, result in _of_features(
      run, state, start if floors else None, sets, protocols
    ):
      figures[name] = result["accuracy"]
      if result["protocol"] not in versions.values():  # the floors' own
        versions[name] = result["protocol"]
      record()
    if parts is not None:
      start = warmed(run, start, sets[0])
      found = _finetuned(run, state, start, sets, parts, seeds)
      figures["finetune"], versions["finetune"] = found
      record()
  return figures


def _require_memory(sets):
  """Raises UserError where raw pixels as features would fill the memory."""
  if sets[0].modality == "text":
    return
  have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  (shape, _), n = sets[0].example["image"], sum(map(len, sets))
  need = 4 * n * math.prod(shape)
  if need > have / 2:
    need, have = (round(size / 1e9) for size in (need, have))
    raise errors.UserError(
      f"the floor of raw pixels needs {need} GB of the {have} that are here: "
      "give --floors=0"
    )


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
      yield prefix + name, _measure(name, *pair, sets[0].num_classes)
  if start is None:
    return
  for name, result in floor(*sets, tuple(names)).items():
    yield "raw_" + name, result


def floor(train, test, protocols: tuple[str, ...]) -> dict[str, dict]:
  """What the raw input of two labelled sources gives, by protocol."""
  if train.modality == "text":
    label = lambda s: s.read(np.arange(len(s)))["label"]
    return tfidf.tfidf(
      train.texts, label(train), test.texts, label(test), protocols=protocols
    )
  pixels = raw(train), raw(test)
  return {n: _measure(n, *pixels, train.num_classes) for n in protocols}


def held_out(run: run_lib.Run, state, data: str | None, split: str) -> dict:
  """The method's loss and metrics on a split, `test_` before their names.

  The features of all examples meet in one objective where each example has
  numbers of its own alone, sums and counts; else, as in contrastive methods,
  those of whole batches do, and the figures are the batches' mean.

  Raises:
    UserError: the method keeps something of each training example, as clusters.
  """
  if run.method.refresh is not None:
    raise errors.UserError(
      f"{run.config.method.name} learns from what it keeps of each training "
      "example, and has nothing of others: leave loss out of --protocols"
    )
  like = {} if data is None else {"name": data, **run.source.like}
  source = run_lib.open_source(run.config, split, **like)
  size, found = min(run.config.batch_size, len(source)), []

  @jax.jit
  def features(state, batch):
    n = batch["index"].shape[0]
    keys = jax.random.split(jax.random.key(0), n)
    batch = run.augment(batch | {"key": keys})
    return run.method.forward(
      state.params, state.method_state, batch, step=state.step, train=False
    )[0]

  @jax.jit
  def objective(state, features):
    loss, (_, metrics) = run.method.objective(
      state.params, state.method_state, features, step=state.step
    )
    return {"loss": loss, **metrics}

  for first in range(0, len(source), size):
    places = np.arange(first, min(first + size, len(source)))
    batch = source.read(places)
    batch["epoch"] = np.zeros(len(places), np.int32)
    found.append(jax.tree.map(np.asarray, features(state, batch)))
  if all(x.ndim == 1 for x in jax.tree.leaves(found[0])):
    found = [jax.tree.map(lambda *x: np.concatenate(x), *found)]
  else:
    found = found[: len(source) // size]
  rows = [objective(state, x) for x in found]
  figures = {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}
  if "masked_loss" in figures:  # of hidden tokens alone
    figures["perplexity"] = float(np.exp(figures["masked_loss"]))
  if "bits_per_token" in figures:
    bits = figures["bits_per_token"]
    figures["perplexity"] = float(np.exp2(bits))
    figures["bits_per_byte"] = bits * source.tokens_per_byte
  return {f"test_{name}": value for name, value in figures.items()}


def warmed(run: run_lib.Run, state, source):
  """The state with the running statistics, of batch norm, of a source's views.

  Before training they are of nothing; `finetune` holds them as they are.
  """
  if not jax.tree.leaves(state.method_state.get("batch_stats", {})):
    return state
  rng = np.random.default_rng(0)
  size = min(run.config.batch_size, len(source))

  @jax.jit
  def forward(method_state, batch):
    keys = jax.random.split(jax.random.key(0), size)
    batch = run.augment(batch | {"key": keys})
    return run.method.forward(
      state.params, method_state, batch, step=state.step, train=True
    )[1]

  method_state = state.method_state
  for _ in range(_WARM):
    batch = source.read(np.sort(rng.choice(len(source), size, replace=False)))
    batch["epoch"] = np.zeros(size, np.int32)
    method_state = method_state | forward(method_state, batch)
  return state._replace(method_state=method_state)


def _finetuned(run, state, start, sets, parts, seeds):
  """({fraction: figures}, the protocol)."""
  train, test = sets
  origins = [
    (name, *_tuned(run, origin, train.example))
    for name, origin in (("", state), ("scratch_", start))
  ]
  found, protocol = {}, None
  for fraction, places in parts.items():
    row = {"labels": len(places)}
    for name, apply, params in origins:
      result = finetune.finetune(
        apply,
        params,
        train,
        places,
        test,
        num_classes=train.num_classes,
        seeds=seeds,
      )
      protocol, values = result["protocol"], result["accuracies"]
      row[name + "accuracy"] = float(np.mean(values))
      if seeds > 1:
        row[name + "spread"] = float(np.std(values, ddof=1))
      row[name + "all"], row[name + "rate"] = values, result["rate"]
    part = sources.Part(train, places)
    row["raw_linear"] = floor(part, test, ("linear",))["linear"]["accuracy"]
    found[f"{fraction:g}"] = row
  return found, protocol


def _labels(source):
  """[n], read a part at a time: with images, what is read may be large."""
  parts = np.array_split(np.arange(len(source)), -(-len(source) // 1000))
  return np.concatenate([source.read(places)["label"] for places in parts])


def _tuned(run, state, example):
  """`apply(learned, batch)` and what is learned: the parameters, and those of
  the teacher where there is one, for some methods are evaluated by it."""
  embed_fn = core.make_embed(run.method, run.view_for_eval)
  kept = state.method_state
  teacher = kept.get("teacher", {"params": ()})

  def apply(learned, batch):
    params, of_teacher = learned
    method_state = dict(kept)
    if "teacher" in kept:
      method_state["teacher"] = teacher | {"params": of_teacher}
    tuned = state._replace(params=params, method_state=method_state)
    return embed_fn(tuned, {k: batch[k] for k in example})

  return apply, (state.params, teacher["params"])


def _record(figures, path):
  """Adds the figures to those of other protocols, whole or not at all."""
  try:
    files.write(path, json.dumps(_joined(_before(path), figures), indent=2))
  except OSError as e:
    raise errors.SafeStop(
      f"{path} could not be written ({e.strerror}): make room and evaluate "
      f"again; the figures were {json.dumps(figures)}"
    ) from e


def _before(path):
  try:
    with open(path) as f:
      return json.load(f)
  except (FileNotFoundError, ValueError):
    return {}


def _joined(old, new):
  """The figures of the same data, those of `new` first."""
  if any(old.get(k) != new[k] for k in ("dataset", "splits")):
    return new
  joined = old | new
  for key in ("protocol", "finetune"):  # by protocol, by fraction
    if key in old and key in new:
      joined[key] = old[key] | new[key]
  return joined


def restore(workdir: str, step: int | None = None):
  """Returns the run that a workdir holds, built, and its state at a step."""
  run = run_lib.build(run_lib.restore_config(workdir))
  checkpoints = checkpoint.Checkpoints(
    os.path.join(workdir, "checkpoints"), read_only=True
  )
  state = checkpoints.restore(run.abstract_state, step)
  checkpoints.close()
  return run, state


def labelled(run, name: str | None, split: str, labels: bool | None = True):
  """A source with labels, the run's own or another, read as the run reads its
  own; `labels=None` takes them where there are any."""
  like = {} if name is None else {"name": name, **run.source.like}
  return run_lib.open_source(run.config, split, labels=labels, **like)


def eval_sets(run):
  """The config's (train, test) sets for evaluation; None where they are ''.

  Raises:
    UserError: `knn` would refuse them, which is found before training.
  """
  splits = {k: run.config.eval[k] for k in ("train_split", "test_split")}
  if not all(splits.values()):
    return None
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
  order, rows = source.order(), []
  for start in range(0, len(source), size):
    places = np.arange(start, start + size)
    batch = source.read(order[np.minimum(places, len(source) - 1)])
    example = {k: batch.pop(k) for k in source.example}
    pooled = run.embed(state, sharding.put(example, place))
    if rows:  # one batch late: the device has the next, and no more
      rows[-1]["pooled"] = np.asarray(rows[-1]["pooled"])
    rows.append({"pooled": pooled, **batch})
  back = np.argsort(order)
  stack = lambda *x: np.concatenate([np.asarray(a) for a in x])[back]
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
  return _FEATURES[protocol](
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
  require_npz(out)
  run, state = restore(workdir, step)
  rows = embed(run, state, labelled(run, data, split, labels=None))
  write_npz(out, rows)
  return {
    "out": out,
    "examples": len(rows["pooled"]),
    "dim": rows["pooled"].shape[1],
    "step": int(state.step),
  }


def require_npz(out: str) -> None:
  """Raises UserError where numpy would write a file of another name."""
  if not out.endswith(".npz"):
    raise errors.UserError(f"--out={out}: give a name that ends with .npz")


def write_npz(out: str, arrays: dict) -> None:
  """Raises UserError where `--out` cannot be written."""
  try:
    np.savez(out, **arrays)
  except OSError as e:
    raise errors.UserError(f"cannot write --out={out}: {e.strerror}") from e
