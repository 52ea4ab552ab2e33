"""`ssljax <command>`: flags in, one function call out."""

import json
import os
import re
import signal
import sys

from absl import flags
from absl import logging

import ssljax
from ssljax import errors
from ssljax import files

_USAGE = """\
usage: ssljax <command> [flags] | ssljax <command> --help | ssljax --version

  prepare NAME [--data_dir=D]           build a dataset where it is missing
          [--tokenizer=bert|roberta|gpt --vocab=N] [--feature=text]
                     NAME: of TFDS, as fashion_mnist; wordnet_glosses; bible
  train --config=FILE[:variant,...] --workdir=W [--config.key=value ...]
        [--coordinator=auto]            one of several processes, as SLURM,
        [--coordinator=HOST:PORT --processes=N --process=I]     GKE, MPI start
        [--heartbeat=S]                 seconds until a dead one ends the others
  evaluate --workdir=W [--protocols=knn,linear,loss,finetune] [--step=N]
           [--data=NAME] [--train_split=S] [--test_split=S]
           [--fractions=0.01,0.1,1 --seeds=1] [--floors=0]
           [--blocks=4]                 features of a ViT's last blocks, joined
  embed --workdir=W --out=F.npz [--split=test] [--step=N] [--data=NAME]
  generate --workdir=W --prompt=TEXT [--tokens=N] [--temperature=1]
           [--top_k=N] [--top_p=P] [--seed=0] [--step=N]       of a `gpt`
  fill --workdir=W --text="a large [MASK] ..." [--top=5] [--step=N]
  report --workdir=W [W2 ...] [--out=F.html]     one page about a run, or some
  replay --workdir=W --step=N [--out=F.npz]      one update again, to the bit
  selftest NAME [--config=FILE[:variant,...]] [--workdir=W] [--seed=0]
           [--kills=5] [--flips=20] [--config.key=value ...]
                NAME: resume, corrupt, sigterm, diskfull, devices, nan,
                stall, multihost, elastic, badrecord
  plan --config=FILE[:variant,...] --topology=v5e:4x4[,h100:4x8,cpu:8,...]
       [--json] [--remat=none,dots,full] [--largest] [--mfu=0.4]
       [--effort=O0] [--examples=N --classes=N] [--config.key=value ...]
          what a step takes on chips that are not here; effort: of the compiler,
          O0 to O3, or default, as in training; examples, classes: of data that
          are not here
  import --weights=F --layout=L --config=FILE[:variant,...] --workdir=W
         [--config.key=value ...]       L: torchvision, timm, huggingface, dino
                                        or mae; F: .safetensors, .npz, .pth
  export --workdir=W --out=F --layout=L [--step=N] [--network=N]
                 L, F: as of import, without .pth; N: encoder or teacher; else
                 the one that is evaluated

The last line on stdout is one JSON object. Exit status: 0 done, 1 a selftest
that did not pass, 2 a mistake in the command (told in one line), 3 stopped with
the last checkpoint kept, 130 after Ctrl-C and 143 after SIGTERM, `train` with
everything saved (of several processes, after SIGTERM alone).
"""


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns its exit status."""
  if argv is None:
    use_huge_pages()
    argv = sys.argv[1:]
  set_up()
  return status(lambda: _run(argv))


def status(run) -> int:
  """Calls `run`, which returns a status; an error is told, in one line."""
  try:
    return run()
  except errors.UserError as e:
    return _end(e, 2)
  except errors.SafeStop as e:
    return _end(e, 3)
  except KeyboardInterrupt:
    return _end("interrupted", 128 + signal.SIGINT)


def _run(argv):
  # As `python -m ssljax` has it: a config may name a module of the user's own.
  if sys.path[:1] != [here := os.getcwd()]:
    sys.path.insert(0, here)
  if not argv or argv[0] == "help" or {"-h", "--help"} & set(argv):
    print(_usage(argv), end="")
    return 0
  if argv[0] == "--version":
    print(f"ssljax {ssljax.__version__}")
    return 0
  figures = _command(argv[0])(argv[1:])
  print(json.dumps(files.plain(figures)), flush=True)
  return 0 if figures.get("passed", True) else 1


def use_huge_pages() -> None:
  """Starts this process again with glibc asking for huge pages.

  XLA's CPU backend takes its buffers anew each step; in small pages that costs
  a tenth of it. glibc reads the setting only as a process starts.
  """
  name, setting = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
  before = os.environ.get(name, "")
  if sys.platform == "linux" and "malloc.hugetlb" not in before:
    os.environ[name] = f"{before}:{setting}" if before else setting
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def set_up() -> None:
  """What a process needs before jax starts: logs on stderr, and XLA's flags."""
  logging.use_absl_handler()
  flags.FLAGS.mark_as_parsed()  # else each first warning speaks of it
  logging.set_verbosity(logging.WARNING)
  flag = "--xla_cpu_experimental_ynn_fusion_type"
  if flag not in os.environ.get("XLA_FLAGS", ""):
    # Without YNNPACK, whose convolutions take twice as long as Eigen's.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" {flag}="


def _end(error, number):
  print(f"ssljax: {error}", file=sys.stderr, flush=True)
  return number


def _usage(argv):
  """The usage of the command in `argv`, or of all."""
  names = [a for a in argv if a not in ("help", "-h", "--help")]
  if not names:
    return _USAGE
  _command(names[0])
  part = re.search(rf"(?ms)^  {names[0]} .*?(?=^  \S|^$)", _USAGE)[0]
  return f"usage: ssljax {part.lstrip()}"


def _command(name):
  if name not in _COMMANDS:
    hint = errors.hint(name, _COMMANDS)
    raise errors.UserError(f"unknown command {name!r}{hint}")
  return _COMMANDS[name]


def _prepare(argv):
  values, names = _parse(
    argv,
    positional=True,
    data_dir=None,
    tokenizer=None,
    vocab=None,
    feature="text",
  )
  if len(names) != 1:
    raise errors.UserError("name one dataset, as in: ssljax prepare NAME")
  from ssljax.data import prepare

  data_dir = values["data_dir"]
  if values["tokenizer"] is None and values["vocab"] is not None:
    raise errors.UserError("--vocab is of a tokenizer: give --tokenizer too")
  path = prepare.prepare(names[0], data_dir=data_dir)
  figures = {"dataset": names[0], "path": str(path)}
  if values["tokenizer"] is not None:
    from ssljax.data import texts

    made = texts.tokenizer_of(
      names[0],
      values["tokenizer"],
      _number(values, "vocab", int),
      values["feature"],
      data_dir=data_dir,
    )
    figures["vocab"] = made.vocab
  return figures


def _train(argv):
  own = [a for a in argv if not a.startswith(("--config.", "--noconfig."))]
  values, _ = _parse(
    own,
    needs=("config", "workdir"),
    config=None,
    workdir=None,
    coordinator=None,
    processes=None,
    process=None,
    heartbeat=None,
  )
  counts = ("processes", "process", "heartbeat")
  if values["coordinator"] is not None:
    from ssljax import sharding

    values["heartbeat"] = values["heartbeat"] or "100"
    sharding.connect(
      values["coordinator"], *(_number(values, name, int) for name in counts)
    )
  elif alone := [name for name in counts if values[name] is not None]:
    raise errors.UserError(
      f"--{alone[0]} is of several processes: give --coordinator=HOST:PORT too"
    )
  from ssljax import config
  from ssljax import train

  return train.train(
    config.load(values["config"], argv), os.path.abspath(values["workdir"])
  )


def _evaluate(argv):
  values, _ = _parse(
    argv,
    needs=("workdir",),
    workdir=None,
    protocols=None,
    step=None,
    data=None,
    train_split=None,
    test_split=None,
    fractions=None,
    seeds=None,
    floors="1",
    blocks=None,
  )
  from ssljax import evaluate

  if values["protocols"] is not None:
    values["protocols"] = tuple(values["protocols"].split(","))
  if values["fractions"] is not None:
    parts = [{"fractions": f} for f in values["fractions"].split(",")]
    values["fractions"] = tuple(_number(p, "fractions", float) for p in parts)
  values["seeds"] = _number(values, "seeds", int, least=1)
  values["blocks"] = _number(values, "blocks", int, least=1)
  values["floors"] = bool(_number(values, "floors", int))
  return evaluate.evaluate(**_typed(values))


def _generate(argv):
  values, _ = _parse(
    argv,
    needs=("workdir", "prompt"),
    workdir=None,
    prompt=None,
    step=None,
    tokens=None,
    temperature="1",
    top_k=None,
    top_p=None,
    seed="0",
  )
  from ssljax import language

  for name, kind in (
    ("tokens", int),
    ("temperature", float),
    ("top_k", int),
    ("top_p", float),
    ("seed", int),
  ):
    values[name] = _number(values, name, kind)
  return language.generate(**_typed(values))


def _fill(argv):
  values, _ = _parse(
    argv, needs=("workdir", "text"), workdir=None, text=None, step=None, top="5"
  )
  from ssljax import language

  values["top"] = _number(values, "top", int, least=1)
  return language.fill(**_typed(values))


def _embed(argv):
  values, _ = _parse(
    argv,
    needs=("workdir", "out"),
    workdir=None,
    out=None,
    split="test",
    step=None,
    data=None,
  )
  from ssljax import evaluate

  return evaluate.write_embeddings(**_typed(values))


def _import(argv):
  own = [a for a in argv if not a.startswith(("--config.", "--noconfig."))]
  values, _ = _parse(
    own,
    needs=("weights", "layout", "config", "workdir"),
    weights=None,
    layout=None,
    config=None,
    workdir=None,
  )
  from ssljax import config
  from ssljax import interop

  return interop.import_weights(
    config.load(values["config"], argv),
    os.path.abspath(values["workdir"]),
    weights=values["weights"],
    layout=values["layout"],
  )


def _export(argv):
  values, _ = _parse(
    argv,
    needs=("workdir", "out", "layout"),
    workdir=None,
    out=None,
    layout=None,
    step=None,
    network=None,
  )
  from ssljax import interop

  return interop.export(**_typed(values))


def _report(argv):
  values, more = _parse(
    argv, needs=("workdir",), positional=True, workdir=[], out=None
  )
  from ssljax import report

  return report.report([*values["workdir"], *more], values["out"])


def _replay(argv):
  values, _ = _parse(
    argv, needs=("workdir", "step"), workdir=None, step=None, out=None
  )
  from ssljax import replay

  return replay.replay(**_typed(values))


def _selftest(argv):
  own = [a for a in argv if not a.startswith(("--config.", "--noconfig."))]
  values, names = _parse(
    own,
    positional=True,
    config=None,
    workdir=None,
    seed="0",
    kills="5",
    flips="20",
  )
  if len(names) != 1:
    raise errors.UserError("name one test, as in: ssljax selftest resume")
  from ssljax import selftest

  values["seed"] = _number(values, "seed", int)
  for name in ("kills", "flips"):
    values[name] = _number(values, name, int, least=1)
  overrides = [a for a in argv if a not in own]
  return selftest.selftest(names[0], overrides=overrides, **values)


def _plan(argv):
  own = [a for a in argv if not a.startswith(("--config.", "--noconfig."))]
  values, _ = _parse(
    own,
    needs=("config", "topology"),
    config=None,
    topology=None,
    json=False,
    remat=None,
    largest=False,
    mfu="0.4",
    effort="O0",
    examples=None,
    classes=None,
  )
  names = values.pop("topology").split(",")
  if "cuda" not in names:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu looks for a chip
  cpus = [int(n[4:]) for n in names if n.startswith("cpu:") and n[4:].isdigit()]
  flag = "--xla_force_host_platform_device_count"
  if cpus and flag not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += f" {flag}={max(cpus)}"
  from ssljax import config
  from ssljax import plan
  from ssljax.plan import table

  as_json, path = values.pop("json"), values.pop("config")
  for name, kind in (("mfu", float), ("examples", int), ("classes", int)):
    values[name] = _number(values, name, kind)
  values["remat"] = values["remat"].split(",") if values["remat"] else ()
  figures = plan.plan(config.load(path, argv), names, **values)
  if not as_json:
    print(table.table(figures))
  return figures


def _typed(values):
  values["workdir"] = os.path.abspath(values["workdir"])
  values["step"] = _number(values, "step", int)
  return values


def _number(values, name, kind, least=0):
  """A flag's number, which is not below `least`; None stays None."""
  text = values[name]
  try:
    number = None if text is None else kind(text)
  except ValueError:
    number = least - 1
  if number is not None and not number >= least:
    raise errors.UserError(f"--{name}={text} is not a number from {least} on")
  return number


def _parse(argv, needs=(), positional=False, **defaults):
  """Returns ({flag: value}, positional arguments).

  A flag whose default is a list may be given several times; one whose default
  is False takes no value.

  Raises:
    UserError: an unknown flag, positional arguments where there are to be none,
      or one of `needs` is missing.
  """
  values = flags.FlagValues()
  for name, default in defaults.items():
    several = isinstance(default, list)
    define = flags.DEFINE_multi_string if several else flags.DEFINE_string
    if default is False:
      define = flags.DEFINE_boolean
    define(name, default, "", flag_values=values)
  try:
    rest = values(["ssljax", *argv])[1:]
  except flags.Error as e:
    raise errors.UserError(
      str(e).replace("FATAL Flags parsing error: ", "")
    ) from e
  if rest and not positional:
    raise errors.UserError(
      f"unexpected {rest[0]!r}: flags begin with --, and a config's are one "
      "word, as --config.steps=5"
    )
  for name in needs:
    if values[name].value in (None, [], ""):
      raise errors.UserError(f"--{name}=... is missing")
  return {name: values[name].value for name in defaults}, rest


_COMMANDS = {
  "prepare": _prepare,
  "train": _train,
  "evaluate": _evaluate,
  "embed": _embed,
  "generate": _generate,
  "fill": _fill,
  "report": _report,
  "replay": _replay,
  "selftest": _selftest,
  "plan": _plan,
  "import": _import,
  "export": _export,
}
