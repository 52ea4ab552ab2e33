"""What a config names, found and called, where a mistake is a UserError.

Names resolve by import: `method.name = "simclr"` is `ssljax.methods.simclr`, a
dotted name is a module of the user's own. Of each, `make` takes the options.
"""

import importlib
import inspect
import pkgutil

from ssljax import errors

# What names a module of which package.
_KEYS = {
  "ssljax.models": "config.encoder.name",
  "ssljax.methods": "config.method.name",
}


def options(config) -> dict:
  """A config's keys that are given; lists, as JSON has them, as tuples."""
  tupled = lambda v: tuple(v) if isinstance(v, list) else v
  return {k: tupled(v) for k, v in config.items() if v is not None}


def make(package: str, config, *args, **known):
  """What `make` of the module that `config.name` names gives."""
  given = options(config)
  found = module(package, given.pop("name"))
  return call(found.make, config, *args, given=given, **known)


def call(function, config, *args, given, others=(), **known):
  """Calls it for a section of a config; wrong options are a UserError.

  Args:
    function: what is called.
    config: the section.
    *args: of the function.
    given: its options in the section.
    others: options of the section that were taken out, for the hint.
    **known: what the run itself tells, and no section may.
  """
  what = config.get("name")
  parameters = inspect.signature(function).parameters.values()
  kinds = {p.name: p.annotation for p in parameters}
  for name in given:
    if name in known:
      raise errors.UserError(
        f"{what}: {name} is told by the run itself: leave it out"
      )
  if not any(p.kind == p.VAR_KEYWORD for p in parameters):
    own = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    own = [name for name in own if name not in known]
    errors.refuse_unknown(what, given, [*own, *others])
  errors.refuse_kinds(what, given, kinds)
  given = {**given, **known}
  try:
    inspect.signature(function).bind(*args, **given)
  except TypeError as e:
    raise errors.UserError(f"{what}: {e}") from e
  return function(*args, **given)


def module(package: str, name: str):
  """The module of a name in a config.

  Raises:
    UserError: there is none, or it has no `make`; what is near is named.
  """
  if not all(part.isidentifier() for part in name.split(".")):
    raise errors.UserError(
      f"{_KEYS.get(package, 'name')}={name!r} is no name of a module: choose "
      f"among {', '.join(names(package))}"
    )
  path = name if "." in name else f"{package}.{name}"
  try:
    found = importlib.import_module(path)
  except ModuleNotFoundError as e:
    if e.name and f"{path}.".startswith(f"{e.name}."):
      hint = ": Python does not find it from here"
      if path != name:
        hint = errors.hint(name, names(package))
      raise errors.UserError(
        f"no module {path} for the name {name!r}{hint}"
      ) from e
    raise
  if not hasattr(found, "make"):
    mend = "give it one"
    if path != name:
      mend = f"choose among {', '.join(names(package))}"
    raise errors.UserError(f"{path} has no `make`: {mend}")
  return found


def names(package: str) -> list[str]:
  """The modules of a package whose `make` needs no more than an encoder."""
  folder = importlib.import_module(package).__path__
  found = []
  for part in pkgutil.iter_modules(folder):
    made = importlib.import_module(f"{package}.{part.name}")
    if hasattr(made, "make") and _needs(made.make) <= 1:
      found.append(part.name)
  return found


def _needs(function):
  """How many positional arguments it has without a default."""
  parameters = inspect.signature(function).parameters.values()
  kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
  return sum((p.kind, p.default) == kinds for p in parameters)
