"""Configs: what every config starts from, variants, and loading with flags.

A config file defines `get_config(arg)`; `--config=FILE:variant,variant` gives
the part after the colon as `arg`, and `--config.a.b=value` overrides one key or
gives an option that the file left out. `none` takes an option out again.
"""

import ast
import importlib.machinery
import importlib.util
import inspect
import json
import os
import sys
import traceback

from absl import flags
from ml_collections import config_dict
from ml_collections import config_flags

from ssljax import errors
from ssljax import files


def base(modality: str = "image") -> config_dict.ConfigDict:
  """Every top-level key with its default; a config fills in the rest.

  Of `steps`, `examples` and `epochs` the first that is given holds; a flag for
  one clears those before it.

  Args:
    modality: of the data: "image" or "text".
  """
  return config_dict.ConfigDict(
    dict(
      seed=0,
      batch_size=256,
      steps=config_dict.placeholder(int),
      examples=config_dict.placeholder(int),
      epochs=config_dict.placeholder(float),
      precision="float32",  # of the computation; parameters are float32
      accumulate=1,  # microbatches a step; the update is that of the whole
      statistics_per_microbatch=False,  # lets batch norm see a microbatch
      nonfinite="stop",  # or "skip" an update that is not finite
      # Seconds without a step, after which all stacks are told.
      watchdog_s=config_dict.placeholder(float),
      log_every=10,  # steps
      # Examples are cut over data x fsdp devices, -1 being all there are; the
      # state is cut over fsdp, but what the regular expression `whole` finds.
      mesh=dict(data=-1, fsdp=1, whole="queue|cent(er|re)"),
      init_from=config_dict.placeholder(str),  # the workdir of another run
      data=dict(
        modality=modality,
        name="",  # a TFDS name, folder:PATH, or digits
        split="train",
        data_dir=config_dict.placeholder(str),
        labels=False,  # whether batches of training have `label`
        **_DATA[modality](),
      ),
      augment=dict(name="none"),
      encoder=dict(name=""),
      method=dict(name=""),
      optimizer=dict(name=""),
      schedule=dict(name="cosine"),
      eval=dict(
        every_epochs=config_dict.placeholder(float),
        last=True,  # after the last step
        train_split="train",
        test_split="test",
        batch_size=500,
        protocols=("knn", "linear"),  # of `ssljax evaluate`
      ),
      checkpoint=dict(every_steps=500, keep=3),
      # Label-free figures of fixed training examples; 0 steps is never.
      monitor=dict(every_steps=100, examples=256),
    )
  )


# What `data` has for each modality; see `sources.make` and `texts.make`. Made
# anew each time: configs that share a placeholder share its value.
_DATA = {
  "image": lambda: dict(
    size=config_dict.placeholder(tuple),  # (height, width) on the host
    channels=config_dict.placeholder(int),
    memory_budget=2 << 30,  # bytes; a smaller set is decoded into memory
    max_corrupt=10,  # images that may be skipped before the run stops
  ),
  "text": lambda: dict(
    tokenizer="",  # bert, roberta, gpt, or a tokenizer.json
    vocab=config_dict.placeholder(int),  # of one that is trained
    rows="one",  # document a row; packed, joined, pairs
    length=128,  # tokens a row
    label_length=config_dict.placeholder(int),  # where there are labels
    feature="text",
  ),
}

# Encoders for `:quick`, by the name of the module.
_TINY = {
  "resnet": dict(name="resnet", variant="6", width=32, stem="cifar"),
  "vit": dict(name="vit", variant="Mu/2"),
  "bert": dict(name="bert", variant="Mu", vocab=400, positions=64),
  "gpt": dict(name="gpt", variant="Mu", vocab=400, positions=64),
}
# What methods need of an encoder, whatever its size.
_KINDS = (
  "pool",
  "class_token",
  "registers",
  "mask_token",
  "layer_scale",
  "norm",
)
# Data for `:quick`, which scikit-learn ships, by modality.
_EMBEDDED = {
  "image": dict(name="digits", split="train", size=(8, 8), channels=1),
  "text": dict(name="descriptions", split="train", vocab=400, length=48),
}


def finish(
  config, arg: str | None, variants=None, quick=None
) -> config_dict.ConfigDict:
  """Applies the variants in `arg`, the part of --config after the colon.

  Args:
    config: as the file wrote it.
    arg: variants between commas, or None.
    variants: functions `config -> None` by name; `quick` is always there.
    quick: keys of the method that `quick` makes small, or None.

  Raises:
    UserError: a variant is not known.
  """
  variants = {**(variants or {}), "quick": lambda c: _quick(c, quick or {})}
  for name in filter(None, (arg or "").split(",")):
    if name not in variants:
      known = ", ".join(variants)
      raise errors.UserError(f"unknown variant {name!r}: choose among {known}")
    variants[name](config)
  return config.lock()


def _quick(config, method):
  """The same method and optimiser, tiny, on data that scikit-learn ships."""
  config.method.update(method)
  config.update(batch_size=64, steps=40, log_every=1, accumulate=1)
  config.data.update(_EMBEDDED[config.data.modality])
  if "size" in config.augment:
    config.augment.size = (8, 8)
  if "local_size" in config.augment:
    config.augment.local_size = (4, 4)
    config.augment.local_views = 2
  if "blur_kernel" in config.augment:
    config.augment.blur_kernel = 3
  if config.data.get("tokenizer", "").endswith(".json"):
    config.data.tokenizer = "gpt" if config.encoder.name == "gpt" else "bert"
  if config.encoder.name in _TINY:  # a user's own stays as it is
    family, _, _ = config.encoder.get("variant", "").rpartition("-")
    kinds = {k: v for k, v in config.encoder.items() if k in _KINDS}
    tiny = _TINY[config.encoder.name] | kinds
    config.encoder = config_dict.ConfigDict(tiny)
    if family:
      config.encoder.variant = f"{family}-{config.encoder.variant}"
  for key in ("mean", "std"):
    if key in config.augment:
      del config.augment[key]
  for key in list(config.schedule):
    if key.startswith("warmup_"):
      del config.schedule[key]
  config.schedule.warmup_steps = 4
  config.eval.update(train_split="train", test_split="test", every_epochs=None)
  config.checkpoint.every_steps = 10
  config.monitor.every_steps = 20


# Sections that name what is built, which refuses options that it does not have.
NAMED = ("augment", "encoder", "method", "optimizer", "schedule")


def load(path: str, argv: list[str]) -> config_dict.ConfigDict:
  """Reads `--config=path` and the `--config.a.b=value` among `argv`.

  Raises:
    UserError: no such file, one that is no config or raises something, an
      unknown key (one that is near is named), a word for a section, or a value
      of another type.
  """
  config = _read(path)
  _complete(config, path)
  _refuse_unknown(config, path)
  known = set(_paths(config))
  overrides, options, cleared = [], [], []
  for override in _key_by_key(argv):
    key, _, value = override.split(".", 1)[1].partition("=")
    section, _, option = key.partition(".")
    if inside := sorted(k for k in known if k.startswith(f"{key}.")):
      _refuse_a_word(key, value, inside)
    # What `make` then takes by default; "none" is also the name of views.
    unset = section in NAMED and option != "name" and value.lower() == "none"
    if key in known & _optional() and value.lower() == "none":
      cleared.append(key)
    elif key in known and not unset:
      overrides.append(override)
      cleared += _outranking(key, argv)
    elif section in NAMED and option.isidentifier() and value:
      options.append((section, option, value))
    elif section in NAMED and option.isidentifier():
      raise errors.UserError(
        f"config.{key} has no value: give --config.{key}=..., where it is an "
        f"option of {section}"
      )
    else:
      raise errors.UserError(f"unknown key config.{key}{_hint(key, known)}")
  try:
    _override(config, overrides)
  except (flags.Error, TypeError, ValueError) as e:
    message = str(e).splitlines()[0]
    raise errors.UserError(f"a wrong value: {message}") from e
  with config.unlocked():
    for key in cleared:
      section, _, name = key.rpartition(".")
      (config[section] if section else config)[name] = None
    for section, option, value in options:
      config[section][option] = _literal(value)
  return config


def _key_by_key(argv):
  """The overrides among `argv`; a dict for a section as one for each key of it.

  What names another module for a section stays, and is all of it.
  """
  for override in argv:
    if not override.startswith(("--config.", "--noconfig.")):
      continue
    name, _, value = override.partition("=")
    section, given = name.removeprefix("--config."), _literal(value)
    apart = isinstance(given, dict) and section in base()
    if apart and not (section in NAMED and "name" in given):
      for key, value in given.items():
        yield f"{name}.{key}={value if isinstance(value, str) else repr(value)}"
    else:
      yield override


def _complete(config, file):
  """Gives a file's config what it lacks of `base`.

  Raises:
    UserError: it lacks a section, or has another modality.
  """
  modality = (config.get("data") or {}).get("modality")
  if modality not in _DATA:
    raise errors.UserError(
      f"{file} has config.data.modality={modality!r}: begin it with "
      "config.base('image') or ('text')"
    )
  whole = base(modality)
  is_section = lambda value: isinstance(value, config_dict.ConfigDict)
  for key, value in whole.items():
    if is_section(value) and not is_section(config.get(key)):
      raise errors.UserError(
        f"{file} has no section config.{key}: begin it with "
        f"config.base({modality!r})"
      )
  with config.unlocked():
    for path in _paths(whole):
      section, dot, key = path.rpartition(".")
      ours, theirs = (c[section] if dot else c for c in (config, whole))
      if key not in ours and section not in NAMED:
        ours[key] = theirs.get_ref(key)


def _refuse_unknown(config, file):
  """Raises UserError for a key of the file that `base` has not.

  What sections name has options of its own, of which others tell.
  """
  known = set(_paths(base(config.data.modality)))
  for key in _paths(config):
    section = key.partition(".")[0]
    if key not in known and (section not in NAMED or key == section):
      raise errors.UserError(
        f"{file}: unknown key config.{key}{_hint(key, known)}"
      )


def _optional():
  """The keys of `base` that are None unless they are given."""
  return {
    path
    for modality in _DATA
    for path, value in flatten(to_dict(base(modality))).items()
    if value is None
  }


def _outranking(key, argv):
  """Of `steps`, `examples` and `epochs` those before `key`, if not in argv."""
  names = ("steps", "examples", "epochs")
  given = lambda name: any(a.startswith(f"--config.{name}=") for a in argv)
  before = names[: names.index(key)] if key in names else ()
  return [name for name in before if not given(name)]


def _hint(key, known):
  """As `errors.hint`: of the keys beside an unknown one, or of all."""
  section, dot, name = key.rpartition(".")
  beside = sorted(k for k in known if k.rpartition(".")[0] == section)
  near = errors.nearest(name, [k.rpartition(".")[2] for k in beside])
  near = near and section + dot + near
  if not section or not beside:
    near = near or errors.nearest(key, known)
  if near:
    return f": did you mean config.{near}?"
  return f": choose among {', '.join(beside)}" if beside else ""


def _refuse_a_word(section, value, inside):
  """A section takes a dict that names its module."""
  if isinstance(_literal(value), dict):
    return
  named = f"{section}.name" in inside
  mend = f"{section}.name={value}" if named else f"{inside[0]}=..."
  raise errors.UserError(f"config.{section} is a section: give --config.{mend}")


def _literal(text):
  words = {"true": True, "false": False, "none": None}
  if text.lower() in words:
    return words[text.lower()]
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def _read(path):
  """What the file's `get_config` gives for the variants in `path`.

  absl would wrap the UserError of an unknown variant.
  """
  file, colon, arg = path.partition(":")
  if not os.path.isfile(file):
    raise errors.UserError(f"no config {file!r}: give a file, as in configs/")
  loader = importlib.machinery.SourceFileLoader("config_file", file)
  spec = importlib.util.spec_from_loader(loader.name, loader)
  module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
  try:
    loader.exec_module(module)
  except SyntaxError as e:
    raise errors.UserError(
      f"{file} is not Python ({e}): give a config, as in configs/"
    ) from e
  except errors.UserError:
    raise
  except (Exception, SystemExit) as e:  # of any code
    raise _mistake(file, e) from e
  get_config = getattr(module, "get_config", None)
  if not callable(get_config):
    get_config = lambda *unused: None
  variants = [arg] if colon else []
  try:
    inspect.signature(get_config).bind(*variants)
  except TypeError as e:
    mend = f"give --config={file}:VARIANT"
    if colon:
      mend = f"it has no variants, so give --config={file}"
    raise errors.UserError(f"{file}: {mend}") from e
  try:
    config = get_config(*variants)
  except errors.UserError:
    raise
  except (Exception, SystemExit) as e:
    raise _mistake(file, e) from e
  if not isinstance(config, config_dict.ConfigDict):
    raise errors.UserError(
      f"{file} has no get_config that returns a ConfigDict: give a config, as "
      "in configs/"
    )
  return config


def _mistake(file, e):
  """What the code of a config file raised, and its line there."""
  lines = [
    f.lineno
    for f in traceback.extract_tb(e.__traceback__)
    if f.filename == file
  ]
  place = f"{file}, line {lines[-1]}" if lines else file
  reason = next(iter(str(e).splitlines()), "without a reason")
  return errors.UserError(
    f"{place}: {type(e).__name__} ({reason}): mend the config"
  )


def _override(config, overrides):
  values = flags.FlagValues()
  argv = ["ssljax", *overrides]
  config_flags.DEFINE_config_dict(
    "config", config, flag_values=values, sys_argv=argv
  )
  values(argv)


def _paths(config, prefix=""):
  for key, value in config.items():
    yield prefix + key
    if isinstance(value, config_dict.ConfigDict):
      yield from _paths(value, f"{prefix}{key}.")


def save(config: config_dict.ConfigDict, path: str) -> None:
  files.write(path, json.dumps(to_dict(config), indent=2, sort_keys=True))


def to_dict(config: config_dict.ConfigDict) -> dict:
  """As plain JSON holds it: tuples are lists.

  Raises:
    UserError: a value that JSON does not have.
  """
  for path, value in flatten(config.to_dict()).items():
    try:
      json.dumps(value)
    except TypeError as e:
      raise errors.UserError(
        f"config.{path}={value!r} cannot be kept in config.json: give numbers, "
        "words, tuples or dicts (a schedule of your own is for code of your "
        "own, which calls the method's `make`)"
      ) from e
  return json.loads(json.dumps(config.to_dict()))


def restore(path: str) -> config_dict.ConfigDict:
  """Reads a config that `save` wrote.

  Keys that `base` has got since then have its default, as in `difference`.

  Raises:
    UserError: the file is damaged.
  """
  try:
    with open(path) as f:
      config = json.load(f)
    known = to_dict(base(config["data"]["modality"]))
    _require_kinds(config, known)
  except (ValueError, KeyError, TypeError) as e:
    raise errors.UserError(
      f"{path} is damaged ({e!r}): remove it, and `train` with the run's own "
      "config writes it again"
    ) from e
  return config_dict.ConfigDict(_with_defaults(config, known)).lock()


def _require_kinds(config, known, prefix=""):
  """Raises TypeError for what is of another kind than its default."""
  for key in config.keys() & known.keys():
    value, default = config[key], known[key]
    number, section = (isinstance(default, k) for k in (int | float, dict))
    kind = int | float if number else type(default)
    none = default is None or (value is None and not section)
    if not none and not isinstance(value, kind):
      raise TypeError(f"{prefix}{key} is {value!r}")
    if section and key not in NAMED:
      _require_kinds(value, default, f"{prefix}{key}.")


def _with_defaults(config, known):
  inner = {
    key: _with_defaults(config[key], value)
    for key, value in known.items()
    if key in config and isinstance(value, dict) and key not in NAMED
  }
  return {**known, **config, **inner}


def difference(old: dict, new: dict) -> list[str]:
  """The keys that differ, as 'a.b: old -> new'.

  A key that one of them lacks has the default of `base`: a run goes on after
  `base` got a new key, whose default has to be what was done before.
  """
  old, new = flat(old), flat(new)
  return [
    f"{key}: {old.get(key)} -> {new.get(key)}"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]


def flat(config: dict) -> dict:
  """As `flatten`, with what `base` has besides."""
  known = flatten(to_dict(base("text"))) | flatten(to_dict(base()))
  return known | flatten(config)


def flatten(config: dict, prefix: str = "") -> dict:
  """{"a.b": value} of {"a": {"b": value}}."""
  rows = {}
  for key, value in config.items():
    inner = isinstance(value, dict)
    path = prefix + key
    rows |= flatten(value, path + ".") if inner else {path: value}
  return rows
