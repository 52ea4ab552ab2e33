"""`ssljax report`: the static HTML page of a run, or of several side by side.

One file that loads nothing: curves, views, a map of embeddings, neighbours,
what the method shows, attention, speed, versions.
"""

import contextlib
import errno
import os
import time

from ssljax import errors
from ssljax import files


def report(workdirs, out: str | None = None) -> dict:
  """Writes the page of one run or more.

  Args:
    workdirs: of the runs, or one.
    out: the HTML file; None is `report/index.html` in the first workdir.

  Returns:
    `report`, the file; `bytes`, its size; `seconds`; `runs`, their number.

  Raises:
    UserError: there is no run, checkpoint or dataset, or `out` cannot be
      written.
  """
  from ssljax.report import page
  from ssljax.report import record

  start = time.perf_counter()
  records = record.read(workdirs)
  if out is None:
    out = os.path.join(records[0].workdir, "report", "index.html")
  out = os.path.abspath(out)
  if os.path.isdir(out):
    raise errors.UserError(f"--out={out} is a folder: give a file in it")
  with _writing(out):  # first, so that a wrong folder is told at once
    os.makedirs(os.path.dirname(out), exist_ok=True)
    if not os.access(os.path.dirname(out), os.W_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  html = page.page(records, [page.seen(r.workdir) for r in records])
  data = html.encode("utf-8", "replace")
  with _writing(out), files.whole(out, "wb") as f:
    f.write(data)
  return {
    "report": out,
    "bytes": len(data),
    "seconds": round(time.perf_counter() - start, 2),
    "runs": len(records),
  }


@contextlib.contextmanager
def _writing(out):
  try:
    yield
  except OSError as e:
    raise errors.UserError(
      f"cannot write the report to {out} ({e.strerror}): give another --out"
    ) from e
