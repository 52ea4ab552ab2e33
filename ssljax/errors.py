"""The two ways in which a command ends early, and their exit status."""

import difflib
from collections.abc import Iterable


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
