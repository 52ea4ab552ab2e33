"""The two ways in which a command ends early, and their exit status."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """A user's mistake. The message is one line that names the mend.

  The command line prints the line and exits with status 2.
  """


class SafeStop(RuntimeError):
  """The run cannot go on; the last good checkpoint is kept. Exit status 3."""


def nearest(name: str, known: Iterable[str]) -> str:
  """The known name that is most like `name`."""
  return difflib.get_close_matches(name, list(known), 1, 0.0)[0]


def refuse_unknown(what: str, names: Iterable[str], known: Iterable[str]):
  """Raises UserError for the first of `names` that is not among `known`."""
  for name in names:
    if name in known:
      continue
    hint = (
      f": did you mean {nearest(name, known)!r}?"
      if known
      else (", nor other options")
    )
    raise UserError(f"{what} has no {name!r}{hint}")
