"""examples/segments.ipynb: it is committed without outputs, and runs from top to bottom."""

import os

import nbformat
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "examples" / "segments.ipynb"


def texts(book):
    """What the cells print, of both streams."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    streams = [output for output in outputs if output.output_type == "stream"]
    return {
        name: "".join(output.text for output in streams if output.name == name)
        for name in ("stdout", "stderr")
    }


def test_outputs_are_stripped():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert NOTEBOOK.stat().st_size < 20_000


def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=240, kernel_name="python3").execute()
    said = texts(book)
    assert "12 pieces of 24 s" in said["stdout"]
    lines = said["stdout"].splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("segment "))
    qualities = [float(line.split()[2]) for line in lines[head + 1 : head + 5]]
    assert min(qualities) > 2 / 11  # chance
    found = [int(line.split()[4]) for line in lines if line.startswith("segments of")]
    assert found[1] >= 10  # of 12, by segments of 2 s
    kinds = [
        key for cell in book.cells for out in cell.get("outputs", ()) for key in out.get("data", {})
    ]
    assert kinds.count("image/png") == 2
    assert sum("Audio" in str(out) for cell in book.cells for out in cell.get("outputs", ())) >= 3
    # Bars stay on one line each and are gone at the end.
    assert said["stderr"].count("\n") < 4, said["stderr"]
