"""`ssljax selftest` over the methods: `python -m benchmarks.selftests`.

`resume`, `devices` and `nan` on the `:quick` of every method; all others on one
of each family, or what `--tests` and `--methods` name. What was compiled is
kept in `runs/compiled`, for a test starts its run again and again; where it is
compiled again, for other devices and processes, it is optimised little. A row a
test goes to `selftests.csv` beside this file, with the git commit; what is
there is not run again, so that it can be made in parts: take the file away to
begin anew. `--jobs` of them run at once, three at first: most of what one does
takes one core of two, or waits. Prints each row as JSON, and ends with status 1
where one did not pass.
"""

import argparse
import concurrent.futures
import glob
import json
import os
import subprocess
import sys
import time

from benchmarks import rows as rows_lib
from ssljax import config as config_lib
from ssljax import selftest

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ROWS = os.path.join(_ROOT, "benchmarks", "selftests.csv")
_CACHE = {"JAX_COMPILATION_CACHE_DIR": os.path.join(_ROOT, "runs", "compiled")}
_QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
_XLA = dict.fromkeys(
  ("devices", "elastic", "multihost", "nan", "sigterm"), _QUICK
)
_FIELDS = ("test", "method", "passed", "seconds", "failures", "git")
_OF_ALL = ("resume", "devices", "nan")
_FAMILIES = ("moco", "dino", "vicreg", "deepcluster_v2", "mae", "bert", "gpt")


def configs():
  """{method: path}, those that were run here before the papers' own."""
  found = {}
  paths = glob.glob(os.path.join(_ROOT, "configs", "*.py"))
  papers = lambda p: "_fashion_mnist" not in p and "_mini_" not in p
  for path in sorted(paths, key=lambda p: (papers(p), p)):
    found.setdefault(config_lib.load(path, []).method.name, path)
  return found


def run(test, path):
  """(whether it passed, what did not, seconds)."""
  command = [sys.executable, "-m", "ssljax", "selftest", test]
  start = time.perf_counter()
  done = subprocess.run(
    [*command, f"--config={path}:quick"],
    capture_output=True,
    text=True,
    env={**_CACHE, **_XLA.get(test, {}), **os.environ},
  )
  seconds = round(time.perf_counter() - start, 1)
  lines = done.stdout.strip().splitlines()
  if not lines:  # it did not get as far as a result
    *_, last = [f"status {done.returncode}", *done.stderr.strip().splitlines()]
    return False, last, seconds
  figures = json.loads(lines[-1])
  return figures["passed"], "; ".join(figures["failures"]), seconds


def git():
  done = subprocess.run(
    ["git", "describe", "--always", "--exclude=*", "--dirty"],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.strip()


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--tests", default="", help="names between commas")
  parser.add_argument("--methods", default="", help="names between commas")
  parser.add_argument("--jobs", type=int, default=3, help="at once")
  args = parser.parse_args()
  known = configs()
  tests = [t for t in args.tests.split(",") if t] or list(selftest.TESTS)
  methods = [m for m in args.methods.split(",") if m] or list(known)
  there = {(row["test"], row["method"]) for row in rows_lib.read(_ROWS)}
  wanted = [
    (test, method)
    for test in tests
    for method in methods
    if (args.methods or test in _OF_ALL or method in _FAMILIES)
    and (test, method) not in there
  ]
  commit = git()
  with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
    runs = {pool.submit(run, t, known[m]): (t, m) for t, m in wanted}
    try:
      for done in concurrent.futures.as_completed(runs):
        passed, failures, seconds = done.result()
        row = (*runs[done], passed, seconds, failures, commit)
        row = dict(zip(_FIELDS, row))
        rows_lib.append(_ROWS, _FIELDS, row)
        print(json.dumps(row), flush=True)
    finally:  # Ctrl-C is not answered by the next
      pool.shutdown(cancel_futures=True)
  if any(row["passed"] != "True" for row in rows_lib.read(_ROWS)):
    raise SystemExit(1)


if __name__ == "__main__":
  main()
