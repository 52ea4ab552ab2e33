"""What the files of a workdir say about its run; nothing is computed."""

import glob
import json
import math
import os
import struct
from typing import Any
from typing import NamedTuple

from google.protobuf import message
from tensorboardX.proto import event_pb2

from ssljax import errors
from ssljax import files


class Record(NamedTuple):
  """The files of a run.

  Attributes:
    name: of the run, unique on a page.
    workdir: where it is.
    config: config.json.
    rows: of metrics.jsonl, by step; may be empty.
    evaluation: of eval/*.json that of the last step on the config's data, or
      where there is none on others; None without.
    environment: environment.json; empty without.
    starts: of the run's process, by the TensorBoard files.
    wall_s: seconds from the first start to the last event; None without.
  """

  name: str
  workdir: str
  config: dict[str, Any]
  rows: list[dict[str, Any]]
  evaluation: dict[str, Any] | None
  environment: dict[str, Any]
  starts: int
  wall_s: float | None


def read(workdirs) -> list[Record]:
  """The records of a workdir or several, in their order, each once.

  Raises:
    UserError: there is no run, or it has no checkpoint.
  """
  if isinstance(workdirs, str | os.PathLike):
    workdirs = [workdirs]
  workdirs = list(dict.fromkeys(map(os.path.abspath, workdirs)))
  return [_read(w, n) for w, n in zip(workdirs, _names(workdirs))]


def _read(workdir, name):
  config = _json(os.path.join(workdir, "config.json"))
  if config is None:
    raise errors.UserError(f"no run in {workdir}: give a --workdir of `train`")
  pattern = os.path.join(glob.escape(workdir), "checkpoints", "[0-9]*")
  if not any(os.path.basename(path).isdigit() for path in glob.glob(pattern)):
    raise errors.UserError(
      f"no checkpoint in {workdir}: run `train` with this --workdir until it "
      "has saved one"
    )
  starts, wall_s = _wall(os.path.join(workdir, "tb"))
  return Record(
    name=name,
    workdir=workdir,
    config=config,
    rows=files.rows(os.path.join(workdir, "metrics.jsonl")),
    evaluation=_last_evaluation(os.path.join(workdir, "eval")),
    environment=_environment(workdir),
    starts=starts,
    wall_s=wall_s,
  )


def series(rows) -> dict[str, tuple[list[int], list[float]]]:
  """The finite values of each scalar: {name: (steps, values)}."""
  found = {}
  for row in rows:
    for name, value in row.items():
      if name == "step" or not is_number(value):
        continue
      steps, values = found.setdefault(name, ([], []))
      steps.append(row["step"])
      values.append(value)
  return found


def last(rows, name):
  """The last value of a scalar, or None."""
  return next((r[name] for r in reversed(rows) if is_number(r.get(name))), None)


def is_number(value) -> bool:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return False
  return math.isfinite(value)


def _names(workdirs):
  """The ends of the paths, as long as it takes for them to differ."""
  parts = [w.split(os.sep) for w in workdirs]
  for n in range(1, max(map(len, parts))):
    names = ["/".join(p[-n:]) for p in parts]
    if len(set(names)) == len(names):
      return names
  return workdirs


def _json(path):
  try:
    with open(path) as f:
      return json.load(f)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError as e:
    raise errors.UserError(
      f"{path} is not JSON ({e}): it was cut short or edited; remove it"
    ) from e


def _environment(workdir):
  found = _json(os.path.join(workdir, "environment.json"))
  return found if isinstance(found, dict) else {}


def _last_evaluation(folder):
  """Of the last step, on the config's own data: others have longer names."""
  found = []
  for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.json"))):
    figures = _json(path)
    if isinstance(figures, dict) and is_number(figures.get("step")):
      own = "-" not in os.path.basename(path)
      found.append((own, figures["step"], figures))
  return max(found, key=lambda row: row[:2])[2] if found else None


def _wall(folder):
  """(files, seconds from the first event to the last or None)."""
  paths = glob.glob(os.path.join(glob.escape(folder), "*tfevents*"))
  times = [t for path in paths for t in _first_and_last(path)]
  return len(paths), max(times) - min(times) if times else None


def _first_and_last(path):
  """The wall times of the first and the last event in a TensorBoard file.

  A record is its length (uint64), 4 bytes of checksum, itself, and 4 more. What
  follows one that a disk has lost, or a kill has cut short, is left out.
  """
  with open(path, "rb") as f:
    data = f.read()
  times, place = [], 0
  while place + 12 <= len(data):
    (length,) = struct.unpack_from("<Q", data, place)
    record = data[place + 12 : place + 12 + length]
    place += 16 + length
    if not record or place > len(data):
      break
    try:
      times.append(event_pb2.Event.FromString(record).wall_time)
    except message.DecodeError:
      break
  return times[:1] + times[-1:]
