"""Where the seconds of a run go: goodput and badput, which sum to the whole."""

import contextlib
import faulthandler
import sys
import time

# What seconds go to; "step" alone is what a run is for. "lost" is what was done
# after the checkpoint that a run resumes from.
KINDS = (
  *("start", "compile", "input", "step", "refresh"),
  *("save", "evaluate", "lost"),
)


class Clock:
  """Seconds by kind; every moment is of one kind.

  Args:
    watchdog_s: where nothing switches the clock for so long while it is of kind
      "step" or "input", all threads' stacks are written to stderr; None and 0
      are never.
  """

  def __init__(self, watchdog_s: float | None = None):
    self._seconds = dict.fromkeys(KINDS, 0.0)
    self._watchdog_s = watchdog_s
    self._kind, self._since = "start", time.perf_counter()

  def switch(self, kind: str) -> str:
    """What follows is of this kind; returns what the time before was of."""
    now = time.perf_counter()
    self._seconds[self._kind] += now - self._since
    before, self._kind, self._since = self._kind, kind, now
    if (self._watchdog_s or 0) > 0:
      if kind in ("step", "input"):
        # stderr itself may be a notebook's, which has no file.
        faulthandler.dump_traceback_later(
          self._watchdog_s, repeat=True, file=sys.__stderr__
        )
      else:
        faulthandler.cancel_dump_traceback_later()
    return before

  @contextlib.contextmanager
  def of(self, kind: str):
    before = self.switch(kind)
    try:
      yield
    finally:
      self.switch(before)

  def read(self) -> dict[str, float]:
    """Seconds by kind until now."""
    self.switch(self._kind)
    return dict(self._seconds)

  def stop(self) -> None:
    """Ends the watch."""
    faulthandler.cancel_dump_traceback_later()
