"""The README's library example is run as it stands there."""

import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_the_plain_optax_loop_runs():
  with open(os.path.join(ROOT, "README.md")) as f:
    blocks = re.findall(r"```python\n(.*?)```", f.read(), re.DOTALL)
  assert len(blocks) == 1
  assert len(blocks[0].strip().splitlines()) <= 28
  flags = os.environ["SSLJAX_TEST_LONGER"]
  done = subprocess.run(
    [sys.executable, "-c", blocks[0]],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  losses = [float(x) for x in done.stdout.split()]
  assert losses[-1] < losses[0]
