"""The two ways in which a command ends early, and their exit status."""

import difflib
import inspect
import numbers
import re
import types
import typing
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping


class UserError(ValueError):
  """A user's mistake. The message is one line that names the mend.

  The command line prints the line and exits with status 2.
  """


class SafeStop(RuntimeError):
  """The run cannot go on; the last good checkpoint is kept. Exit status 3."""


def nearest(name: str, known: Iterable[str]) -> str | None:
  """The known name that is like `name`, upper or lower case, or that has its
  words in another order; None without."""
  known = list(known)
  words = lambda name: sorted(re.findall("[a-z0-9]+", name.lower()))
  if same := [k for k in known if words(k) == words(name)]:
    return same[0]
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
      _refuse(what, name, given[name], kind)


def refuse_kinds(what: str, given: Mapping, kinds: Mapping):
  """Raises UserError for the first value that its annotation does not allow.

  Annotations of numbers, words, tuples, functions and None are looked at, and
  unions of them; others allow everything.

  Args:
    what: they are options of.
    given: {name: value}.
    kinds: {name: annotation}.
  """
  for name, kind in kinds.items():
    if name in given and not _allows(kind, given[name]):
      _refuse(what, name, given[name], kind)


def refuse_options(what: str, given: Mapping, kinds: Mapping):
  """`refuse_unknown` and `refuse_words`."""
  refuse_unknown(what, given, kinds)
  refuse_words(what, given, kinds)


def refuse_fields(what: str, given: Mapping, of: type):
  """`refuse_unknown` and `refuse_kinds`, for the fields of a Flax module."""
  fields = of.__dataclass_fields__.items()
  own = {k: f.type for k, f in fields if k not in ("parent", "name")}
  refuse_unknown(what, given, own)
  refuse_kinds(what, given, own)


def _refuse(what, name, value, kind):
  inner = typing.get_args(kind)
  several = typing.get_origin(kind) is tuple and inner[-1] is Ellipsis
  text = " ".join(repr(value).split())  # that of a ConfigDict has lines
  mend = f": give ({text},)" if several and _allows(inner[0], value) else ""
  kind = inspect.formatannotation(kind)
  raise UserError(f"{what}: {name}={text} is not {kind}{mend}")


def _is_of_numbers(annotation):
  """Whether it says int, float or bool, alone or in a union or a tuple."""
  kinds = typing.get_args(annotation) or (annotation,)
  return str not in kinds and any(k in (int, float, bool) for k in kinds)


# What counts as which; True and False are numbers nowhere.
_NUMBERS = {int: numbers.Integral, float: numbers.Real}


def _allows(kind, value):
  inner = typing.get_args(kind)
  if kind in _NUMBERS:
    return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
  if kind in (bool, str):
    return isinstance(value, kind)
  if kind is type(None):
    return value is None
  if kind is Callable:
    return callable(value)
  if typing.get_origin(kind) is not tuple:
    # A union, or what is not looked at.
    union = isinstance(kind, types.UnionType)
    return not union or any(_allows(k, value) for k in inner)
  if not isinstance(value, tuple | list):
    return False
  if inner[-1] is Ellipsis:
    inner = inner[:1] * len(value)
  return len(value) == len(inner) and all(map(_allows, inner, value))
