"""Files that are on the disk whole: the old one, or the new one."""

import contextlib
import os


def write(path: str, text: str) -> None:
  """Writes beside `path` and moves it there, with the folders above.

  A file that holds the text already is left alone.

  Raises:
    OSError: it cannot be written; what was there is as it was.
  """
  with contextlib.suppress(OSError, ValueError):
    with open(path) as f:
      if f.read() == text:
        return
  os.makedirs(os.path.dirname(path), exist_ok=True)
  draft = f"{path}.part"
  try:
    with open(draft, "w") as f:
      f.write(text)
      f.flush()
      os.fsync(f.fileno())
    os.replace(draft, path)
  except OSError:
    with contextlib.suppress(OSError):
      os.remove(draft)
    raise
