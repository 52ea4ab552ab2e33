"""What a checkpoint must hold, to the bit: sha256 of its arrays and its files.

The arrays' digests are of what was in memory, the files' of what is on the
disk. A checkpoint counts as saved once both are written beside it.
"""

import errno
import hashlib
import json
import os
from typing import Any

import jax
import numpy as np

_NAME = "digests.{}.json"  # by process
# Of file systems that cannot wait for a disk.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def copies(tree) -> dict[str, list]:
  """This process's part of all arrays, on the host.

  Returns:
    {"params/encoder/...": [(((start, stop), ...), array), ...]}: for each part
    its place in the whole array. Of replicas one alone is copied.
  """
  parts = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if isinstance(leaf, jax.Array):
      shards = [s for s in leaf.addressable_shards if s.replica_id == 0]
      places = [(_place(s.index, leaf.shape), s.data) for s in shards]
    else:
      places = [(_place((slice(None),) * np.ndim(leaf), np.shape(leaf)), leaf)]
    # A view would change under us once its memory is given up.
    parts[name] = [(place, np.array(data)) for place, data in places]
  return parts


def of_arrays(parts: dict[str, list]) -> dict[str, list]:
  """{name: [(place, sha256), ...]} of what `copies` gave."""
  return {
    name: [(place, _of_array(data)) for place, data in rows]
    for name, rows in parts.items()
  }


def wrong_array(tree, expected: dict[str, list]) -> str | None:
  """The name of the first array of `tree` that is not what it was, if any.

  Parts that this process does not hold whole are left to others, or to the
  digests of the files.
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name not in expected:
      return name
    parts = _parts(leaf)
    for place, digest in expected[name]:
      part = _at(place, parts)
      if part is not None and _of_array(part) != digest:
        return name
  return None


def wrong_part(read, expected: dict[str, list]) -> str | None:
  """The name of the first array whose parts are not what they were, if any.

  Args:
    read: `(name, place) -> array`; one part is held at a time.
    expected: what `of_arrays` gave.
  """
  for name, rows in expected.items():
    if any(_of_array(read(name, place)) != digest for place, digest in rows):
      return name
  return None


def _parts(leaf):
  """[(place, array), ...]: the whole, or what this process has of it."""
  shared = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
  if shared and not leaf.is_fully_replicated:
    shards = leaf.addressable_shards
    return [(_place(s.index, leaf.shape), np.asarray(s.data)) for s in shards]
  whole = np.asarray(leaf)
  return [([(0, n) for n in whole.shape], whole)]


def _at(place, parts):
  """What lies at a place in the whole array; None where no part holds it."""
  for ends, part in parts:
    both = list(zip(place, ends))
    if all(a <= start and stop <= b for (start, stop), (a, b) in both):
      inside = (slice(start - a, stop - a) for (start, stop), (a, _) in both)
      return part[tuple(inside)]
  return None


def write(folder: str, arrays: dict[str, list]) -> None:
  """Declares the checkpoint in `folder` whole; its files are read for that.

  Files and folders are on the disk then: an older checkpoint may go.

  Args:
    folder: of one step.
    arrays: what `of_arrays` gave before it was saved.
  """
  process = jax.process_index()
  content = {"arrays": arrays, "processes": jax.process_count()}
  content["files"] = _of_files(folder) if process == 0 else {}
  body = json.dumps(content)
  path = os.path.join(folder, _NAME.format(process))
  with open(path + ".part", "w") as f:
    f.write(f"{body}\n{_of_text(body)}\n")
    f.flush()
    os.fsync(f.fileno())
  os.replace(path + ".part", path)
  for place in (folder, os.path.dirname(os.path.abspath(folder))):
    _sync(place)


def _sync(path):
  """Waits until a file, or the names in a folder, are on the disk."""
  opened = os.open(path, os.O_RDONLY)
  try:
    os.fsync(opened)
  except OSError as e:
    if e.errno not in _NO_SYNC:
      raise
  finally:
    os.close(opened)


def exist(folder: str) -> bool:
  """Whether the checkpoint in `folder` was declared whole, by all processes."""
  first = os.path.join(folder, _NAME.format(0))
  if not os.path.exists(first):
    return False
  try:
    processes = _read(first)["processes"]
  except ValueError:  # it was, and is damaged
    return True
  except FileNotFoundError:  # it has just been removed
    return False
  names = map(_NAME.format, range(processes))
  return all(os.path.exists(os.path.join(folder, name)) for name in names)


def read(folder: str) -> dict[str, list]:
  """The arrays' digests, of all processes. Raises ValueError where damaged."""
  arrays, process, processes = {}, 0, 1
  while process < processes:
    content = _read(os.path.join(folder, _NAME.format(process)))
    processes = content["processes"]
    for name, rows in content["arrays"].items():
      arrays.setdefault(name, []).extend(rows)
    process += 1
  return arrays


def shapes(folder: str) -> dict[str, tuple[int, ...]]:
  """The arrays' shapes, of all processes. Raises ValueError where damaged."""
  stops = lambda place: [stop for _, stop in place]
  return {
    name: tuple(map(max, zip(*(stops(place) for place, _ in rows))))
    for name, rows in read(folder).items()
  }


def wrong_file(folder: str) -> str | None:
  """What is wrong with the first file that is not what it was, if any."""
  try:
    read(folder)  # all are there and undamaged
    files = _read(os.path.join(folder, _NAME.format(0)))["files"]
    for name, (size, digest) in files.items():
      path = os.path.join(folder, name)
      if not os.path.exists(path):
        return f"{name} is missing"
      if (now := os.path.getsize(path)) != size:
        return f"{name} has {now} bytes, not {size}"
      if _of_file(path) != digest:
        return f"{name} is not what was written"
  except (OSError, ValueError) as e:
    return str(e)
  return None


def _read(path) -> dict[str, Any]:
  """Raises ValueError where the file is damaged, OSError where it is not."""
  with open(path, encoding="utf-8", errors="replace") as f:
    body, _, digest = f.read().partition("\n")
  if digest != _of_text(body) + "\n":
    raise ValueError(f"{os.path.basename(path)} is damaged")
  return json.loads(body)


def _place(index, shape):
  return tuple(s.indices(n)[:2] for s, n in zip(index, shape))


def _of_text(text):
  return hashlib.sha256(text.encode()).hexdigest()


def _of_array(array):
  array = np.ascontiguousarray(array)
  digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
  digest.update(array.reshape(-1).view(np.uint8))  # releases the GIL
  return digest.hexdigest()


def _of_file(path):
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def _of_files(folder):
  """{path in `folder`: (bytes, sha256)}, digests left out."""
  files = {}
  for base, _, names in os.walk(folder):
    for name in sorted(names):
      path = os.path.join(base, name)
      if base == folder and name.startswith("digests."):
        continue
      size = os.path.getsize(path)
      files[os.path.relpath(path, folder)] = (size, _of_file(path))
      _sync(path)
    _sync(base)
  return files
