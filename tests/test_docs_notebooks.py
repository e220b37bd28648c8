"""The notebooks: they run from start to end, and what is kept of them is fit to be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.documentation
@pytest.mark.simulation
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_start_to_end(path: Path, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    where = {"metadata": {"path": tmp_path}}
    NotebookClient(nbformat.read(path, 4), timeout=1200, resources=where).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_outputs_and_without_paths(path: Path) -> None:
    cells = [one for one in nbformat.read(path, 4).cells if one.cell_type == "code"]
    assert all(one.execution_count for one in cells)
    kinds = {output.output_type for one in cells for output in one.outputs}
    assert "display_data" in kinds or "execute_result" in kinds
    assert "error" not in kinds
    text = path.read_text()
    assert str(Path.home()) not in text and "/tmp" not in text
