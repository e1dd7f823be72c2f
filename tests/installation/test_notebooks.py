"""The notebooks run from top to bottom, as a reader runs them."""

import os
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.launching import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
MOST_S = 60.0


def test_they_are_stored_without_what_they_printed() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["budget_and_fitting", "train_and_track"]
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.outputs or cell.execution_count for cell in cells if cell.cell_type == "code"), path


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    started_s = time.monotonic()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    seconds = time.monotonic() - started_s
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    )
    assert "error: " not in printed, printed
    assert "Traceback" not in printed, printed
    if os.getloadavg()[0] < (os.cpu_count() or 1) + 1:  # on a machine that does nothing else
        assert seconds < MOST_S, f"{path.name} took {seconds:.0f} s"
