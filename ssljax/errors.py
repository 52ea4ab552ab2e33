"""The two ways in which a command ends early, and their exit status."""

import difflib
import inspect
import typing
from collections.abc import Iterable
from collections.abc import Mapping


class UserError(ValueError):
  """A user's mistake. The message is one line that names the mend.

  The command line prints the line and exits with status 2.
  """


class SafeStop(RuntimeError):
  """The run cannot go on; the last good checkpoint is kept. Exit status 3."""


def nearest(name: str, known: Iterable[str]) -> str | None:
  """The known name that is like `name`, upper or lower case; None without."""
  lower = {k.lower(): k for k in known}
  found = difflib.get_close_matches(name.lower(), lower, 1, 0.6)
  return lower[found[0]] if found else None


def hint(name: str, known: Iterable[str]) -> str:
  """Ends a message: with the name that is near, or what there is, if short."""
  known = list(known)
  if near := nearest(name, known):
    return f": did you mean {near!r}?"
  listed = ", ".join(known)
  return f": choose among {listed}" if 0 < len(listed) < 400 else ""


def refuse_unknown(what: str, names: Iterable[str], known: Iterable[str]):
  """Raises UserError for the first of `names` that is not among `known`."""
  for name in names:
    if name not in known:
      more = hint(name, known) if known else ", nor other options"
      raise UserError(f"{what} has no {name!r}{more}")


def refuse_words(what: str, given: Mapping, kinds: Mapping):
  """Raises UserError for the first word where a number has to be.

  Args:
    what: they are options of.
    given: {name: value}.
    kinds: {name: annotation}.
  """
  for name, kind in kinds.items():
    if isinstance(given.get(name), str) and _is_of_numbers(kind):
      kind = inspect.formatannotation(kind)
      raise UserError(f"{what}: {name}={given[name]!r} is not {kind}")


def refuse_options(what: str, given: Mapping, kinds: Mapping):
  """`refuse_unknown` and `refuse_words`."""
  refuse_unknown(what, given, kinds)
  refuse_words(what, given, kinds)


def refuse_fields(what: str, given: Mapping, of: type):
  """`refuse_options`, for the fields of a dataclass."""
  fields = of.__dataclass_fields__.items()
  refuse_options(what, given, {k: field.type for k, field in fields})


def _is_of_numbers(annotation):
  """Whether it says int, float or bool, alone or in a union or a tuple."""
  kinds = typing.get_args(annotation) or (annotation,)
  return str not in kinds and any(k in (int, float, bool) for k in kinds)
