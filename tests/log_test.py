import types

import numpy as np
import pytest

from ssljax import errors
from ssljax import log as log_lib


def test_what_is_not_finite_is_told_with_the_examples_that_it_saw(tmp_path):
  source = types.SimpleNamespace(unit="image")
  run = types.SimpleNamespace(total_steps=4, source=source)
  log = log_lib.Log(run, str(tmp_path), start=0, dim=None)
  # Drawn by weights: an example may come twice.
  log.add(0, {"loss": np.float32("nan"), "grad_norm": 1.0}, np.array([5, 5, 2]))
  with pytest.raises(errors.SafeStop, match=r"step 0: .* are \[5, 5, 2\]"):
    log.flush()
  log.close()
