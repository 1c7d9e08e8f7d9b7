"""The notebook in docs/ runs from top to bottom."""

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's client warns of its own deprecations
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="requires the extra `notebook`")
    nbclient = pytest.importorskip("nbclient", reason="requires the extra `notebook`")
    pytest.importorskip("ipykernel", reason="requires the extra `notebook`")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [str(cell.outputs) for cell in code]
    assert "finished" in outputs[0] and "image/png" in outputs[2] and "(2, 128)" in outputs[4]
    assert "loss" in outputs[5]
    (run,) = (tmp_path / "runs").iterdir()
    assert len((run / "history.csv").read_text().splitlines()) == 3
