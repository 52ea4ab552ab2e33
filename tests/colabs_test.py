"""The notebooks, executed as they stand."""

import glob
import os

import nbclient
import nbformat
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOTEBOOKS = sorted(glob.glob(os.path.join(ROOT, "colabs", "*.ipynb")))


def of_notebooks():
  """All; what the others call has tests of its own, so that they are slow."""
  for path in NOTEBOOKS:
    name = os.path.basename(path)
    marks = [] if name == "quickstart.ipynb" else [pytest.mark.slow]
    yield pytest.param(path, id=name, marks=marks)


@pytest.mark.parametrize("path", of_notebooks())
def test_notebook_runs(path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("XLA_FLAGS", os.environ["SSLJAX_TEST_LONGER"])
  monkeypatch.setenv(
    "IPYTHONDIR", os.path.join(ROOT, ".pytest_cache", "ipython")
  )
  notebook = nbformat.read(path, as_version=4)
  folder = {"metadata": {"path": os.path.dirname(path)}}
  nbclient.NotebookClient(notebook, timeout=600, resources=folder).execute()
  assert os.path.getsize(path) < 200_000


def test_notebooks_are_stored_with_their_pictures():
  assert len(NOTEBOOKS) >= 3
  for path in NOTEBOOKS:
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), path
    assert any(cell.outputs for cell in code), path
