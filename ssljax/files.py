"""Files that are on the disk whole: the old one, or the new one."""

import contextlib
import errno
import fcntl
import json
import math
import os

import numpy as np
from absl import logging

from ssljax import errors

# Of file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def write(path: str, text: str) -> None:
  """Writes beside `path` and moves it there, with the folders above.

  A file that holds the text already is left alone.

  Raises:
    OSError: it cannot be written; what was there is as it was.
  """
  with contextlib.suppress(OSError, ValueError):
    with open(path, encoding="utf-8") as f:
      if f.read() == text:
        return
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with whole(path) as f:
    f.write(text)


@contextlib.contextmanager
def whole(path: str, mode: str = "w", draft: str | None = None):
  """A file to write into, beside `path`; moved there where nothing is raised.

  Args:
    path: of the file.
    mode: "w", of text in UTF-8, or "wb".
    draft: its path until it is whole; None is `path` and ".part".

  Raises:
    OSError: it cannot be written; what was there is as it was.
  """
  draft = draft or f"{path}.part"
  try:
    with open(draft, mode, encoding=None if "b" in mode else "utf-8") as f:
      yield f
      f.flush()
      os.fsync(f.fileno())
    os.replace(draft, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(draft)
    raise


def require_npz(out: str) -> None:
  """Raises UserError where `write_npz` could not write it."""
  if not out.endswith(".npz"):
    raise errors.UserError(f"--out={out}: give a name that ends with .npz")
  folder = os.path.dirname(out) or "."
  if not os.access(folder, os.W_OK):
    raise errors.UserError(
      f"cannot write --out={out}: give a name in a folder that is there"
    )


def write_npz(out: str, arrays: dict) -> None:
  """Raises UserError where `--out` cannot be written; then it is as it was."""
  try:
    with whole(out, "wb") as f:
      np.savez(f, **arrays)
  except OSError as e:
    raise errors.UserError(f"cannot write --out={out}: {e.strerror}") from e


def plain(value):
  """A tree of dicts and lists as JSON holds it: null for what is not finite."""
  if isinstance(value, dict):
    return {key: plain(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [plain(inner) for inner in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _is_row(row):
  """Whether it has a step, and all are numbers, null being one not finite."""
  return (
    isinstance(row, dict)
    and isinstance(row.get("step"), int)
    and all(v is None or isinstance(v, int | float) for v in row.values())
  )


def rows(path: str) -> list[dict]:
  """The rows of a file of JSON lines, which have a step each; none without it.

  A line that a kill cut short has no end, and is left out; so is one that a
  disk has lost, with a warning.
  """
  if not os.path.exists(path):
    return []
  found = []
  with open(path, errors="replace") as f:
    for line in f:
      if line.endswith("\n"):
        row = None
        with contextlib.suppress(ValueError):
          row = json.loads(line)
        if _is_row(row):
          found.append(row)
        else:
          logging.warning("%s: a damaged line is left out", path)
  return found


@contextlib.contextmanager
def alone(folder: str):
  """Holds the folder's lock, which ends with the process at the latest.

  Raises:
    OSError: the lock cannot be written.
    UserError: another process holds it.
  """
  with open(os.path.join(folder, "lock"), "a") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise errors.UserError(
        f"another process trains in {folder}: wait for its end, or give "
        "another --workdir"
      ) from e
    except OSError as e:
      if e.errno not in _NO_LOCKS:
        raise
      logging.warning("no locks in %s: start one run there alone", folder)
    yield
