"""Folders of files: their splits and classes."""

import os

from absl import logging

from ssljax import errors

_SPLITS = {"train", "training", "test", "testing"}
_SPLITS |= {"val", "valid", "validation", "dev", "unlabeled", "extra"}


class Folder:
  """Files in a folder and its subfolders, in the order of their paths.

  Attributes:
    paths: of the files.
    identity: their paths in the folder.
    num_classes: how many subfolders a split has; None without.
    class_names: of these subfolders, or None.
  """

  def __init__(self, path, split, suffixes, what):
    path = os.path.expanduser(path)
    if not os.path.isdir(path):
      raise errors.UserError(f"no folder {path}: give data.name=folder:PATH")
    if not split:
      raise errors.UserError(
        f"no split of {path} is given: name a subfolder, or 'all' of them "
        "(--train_split and --test_split of `evaluate`; of the config "
        "data.split, eval.train_split and eval.test_split)"
      )
    root = path if split == "all" else os.path.join(path, split)
    if not os.path.isdir(root):
      have = ", ".join(_subfolders(path)) or "none"
      raise errors.UserError(
        f"{path} has no subfolder {split!r} for the split: there is {have}; "
        "'all' takes them all (data.split, eval.train_split, eval.test_split)"
      )
    self.paths = sorted(
      file for file in _files(root) if file.lower().endswith(suffixes)
    )
    self.identity = "\n".join(os.path.relpath(p, root) for p in self.paths)
    if not self.paths:
      raise errors.UserError(
        f"no {what} in {root}: files end with {', '.join(suffixes)}"
      )
    # Classes are those of all splits together, so that they agree.
    splits = _subfolders(path)
    whole = split == "all" and not has_splits(path)
    above = [""] if whole else splits
    classes = sorted(
      {c for folder in above for c in _classes(os.path.join(path, folder))}
    )
    self._class_of = {name: i for i, name in enumerate(classes)}
    self._root = root
    self._level = 0 if whole or split != "all" else 1  # below its split
    self.num_classes = len(classes) or None
    self.class_names = classes or None

  def label(self, path):
    """The class of a file by its folder; -1 is unknown."""
    *folders, _ = os.path.relpath(path, self._root).split(os.sep)
    name = folders[self._level] if len(folders) > self._level else None
    return self._class_of.get(name, -1)


def has_splits(path: str) -> bool:
  """Whether the subfolders of a folder are its splits, and not its classes.

  A class may have the name of a split: then others beside it do not, and none
  of that name has subfolders.
  """
  names = set(_subfolders(path))
  splits = names & _SPLITS
  inside = lambda name: _classes(os.path.join(path, name))
  return bool(splits) and (splits == names or any(map(inside, splits)))


def _files(root):
  """The files below a folder that are not hidden, the same on every machine.

  What links lead to is taken once, by the first of its names.
  """
  seen = set()
  for folder, below, files in os.walk(root, onerror=_raise, followlinks=True):
    below[:] = sorted(name for name in below if not name.startswith("."))
    status = os.stat(folder)
    if (place := (status.st_dev, status.st_ino)) in seen:
      below.clear()
      continue
    seen.add(place)
    yield from (
      os.path.join(folder, file) for file in files if not file.startswith(".")
    )


def _raise(error):
  raise errors.UserError(
    f"{error.filename} cannot be read ({error.strerror}): all files must be "
    "there before training starts"
  ) from error


def _classes(path):
  """The subfolders of a split; none of one that may not be read, as lost+found
  of a disk."""
  try:
    return _subfolders(path)
  except PermissionError:
    logging.warning("%s may not be read: it has no classes here", path)
    return []


def _subfolders(path):
  return sorted(
    entry.name
    for entry in os.scandir(path)
    if entry.is_dir() and not entry.name.startswith(".")
  )
