"""`ssljax selftest NAME`: what a run survives, on the user's own machine.

Each test runs the real trainer in processes of its own, on the user's config,
tells on stderr what it does, and returns figures with `passed`.
"""

import os
import tempfile

from ssljax import config as config_lib
from ssljax import errors
from ssljax.selftest import faults
from ssljax.selftest import numbers
from ssljax.selftest import processes
from ssljax.selftest import records
from ssljax.selftest import trial as trial_lib

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_CONFIG = os.path.join(
  _ROOT, "configs", "simclr_resnet18_fashion_mnist.py:quick"
)
TESTS = {
  "resume": faults.resume,
  "corrupt": faults.corrupt,
  "sigterm": faults.sigterm,
  "diskfull": faults.diskfull,
  "devices": numbers.devices,
  "nan": numbers.nan,
  "stall": faults.stall,
  "multihost": processes.multihost,
  "elastic": processes.elastic,
  "badrecord": records.badrecord,
}


def selftest(
  name: str,
  *,
  config: str | None = None,
  workdir: str | None = None,
  overrides: list[str] = (),
  seed: int = 0,
  kills: int = 5,
  flips: int = 20,
) -> dict:
  """Runs one test.

  Args:
    name: of the test.
    config: FILE[:variant,...]; None is SimCLR's `:quick`.
    workdir: an empty folder for the runs, which then stay; None is a temporary
      one.
    overrides: `--config.key=value`, ...
    seed: of the moments and places of the faults.
    kills: of `resume`.
    flips: of `corrupt`.

  Returns:
    `test`, `passed`, `failures` (what did not come out) and what was done.

  Raises:
    UserError: no such test or config, or `workdir` is not empty.
  """
  config = config or _CONFIG
  if name not in TESTS:
    hint = errors.hint(name, TESTS)
    raise errors.UserError(f"unknown selftest {name!r}{hint}")
  if workdir is not None and os.path.isdir(workdir) and os.listdir(workdir):
    raise errors.UserError(f"--workdir={workdir} is not empty: give another")
  config_lib.load(config, overrides)  # before anything is started
  with tempfile.TemporaryDirectory(prefix="ssljax-selftest-") as temporary:
    folder = os.path.abspath(workdir or temporary)
    try:
      os.makedirs(folder, exist_ok=True)
    except OSError as e:
      raise errors.UserError(
        f"cannot write to --workdir={workdir} ({e.strerror}): give another"
      ) from e
    trial = trial_lib.Trial(config, folder, overrides, seed)
    try:
      done = TESTS[name](trial, kills=kills, flips=flips)
    except trial_lib.Failed as e:
      trial.expect(str(e), False)
      done = {}
  return {
    "test": name,
    "passed": not trial.failures,
    "failures": trial.failures,
    "config": config,
    **done,
  }
