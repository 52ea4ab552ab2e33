"""Data that Debian ships, in packages installed where that may be done."""

import os
import shutil
import subprocess

from absl import logging

from ssljax import errors


def install(*packages: str) -> str:
  """Runs apt-get as root, or by sudo without a password; says how it went."""
  sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
  if not shutil.which("apt-get") or (sudo and not shutil.which("sudo")):
    return "apt-get (not there, or neither root nor sudo)"
  wanted = " ".join(packages)
  logging.warning("installing Debian's %s", wanted)
  said = "done"
  for command in ("update", f"install -y {wanted}"):
    try:
      done = subprocess.run(
        # Another process may be installing the same.
        [*sudo, "apt-get", "-o", "DPkg::Lock::Timeout=60", *command.split()],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
      )
      said = (done.stderr.strip().splitlines() or ["done"])[-1]
    except subprocess.TimeoutExpired:
      said = "no end after 120 s"
  return f"apt-get install {wanted} ({said[:200]})"


def require(name: str, packages: tuple[str, ...], paths) -> None:
  """Installs the packages of a dataset where one of their files is missing.

  Raises:
    UserError: a file is still missing; the line says what was tried.
  """
  if all(map(os.path.exists, paths)):
    return
  tried = install(*packages)
  missing = [path for path in paths if not os.path.exists(path)]
  if missing:
    raise errors.UserError(
      f"{name} could not be prepared; tried {tried}, and {missing[0]} is not "
      f"there. Run: sudo apt-get install -y {' '.join(packages)}"
    )
