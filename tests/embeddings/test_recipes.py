"""Recipes of docs/finding.md: each is run, and finds what `similar` finds."""

import re

import numpy as np
import pytest
from conftest import ROOT

from tune.embeddings import file_formats as files
from tune.embeddings.columns import TRACKS
from tune.embeddings.similar import nearest

TEXT = (ROOT / "docs" / "finding.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
NEEDED = {  # module: how to install it, where the extra `test` doesn't
    "pandas": "",
    "polars": "",
    "duckdb": "",
    "faiss": "",
    "lancedb": "pip install lancedb",
    "qdrant_client": "pip install qdrant-client",
}


@pytest.fixture
def made(tmp_path, monkeypatch, rng):
    """A file as `embed.py --space ready --good_only` writes it, in the folder to work in."""
    monkeypatch.chdir(tmp_path)
    n, size = 60, 192
    columns = {
        "path": [f"music/{i:03d}.ogg" for i in range(n)],
        "content_hash": [f"{i:064x}" for i in range(n)],
        "duration_s": [60.0] * n,
        "embedding": [*(rng.normal(size=(n, size)) + 3).astype("f4")],
        "reason": [None] * n,
    }
    columns["embedding"][20], columns["reason"][20] = None, "can't be decoded"
    table = files.make_table(columns, TRACKS, size)
    made, _ = files.Embeddings(table, {"strategy": {}}, {}).in_space("ready").split()
    files.write(tmp_path / "embeddings.parquet", made)
    return made


def test_every_tool_has_its_recipe():
    assert len(RECIPES) == len(NEEDED)


@pytest.mark.parametrize("module", NEEDED)
def test_a_recipe_finds_what_similar_finds(made, module):
    if NEEDED[module]:
        pytest.importorskip(module, reason=f"not in the extra test: {NEEDED[module]}")
    (recipe,) = (
        r
        for r in RECIPES
        if re.search(rf"^(import|from) {module}\b", r, re.M)
        and (module != "pandas" or ("faiss" not in r and "qdrant" not in r))
    )
    names = {}
    exec(compile(recipe, f"docs/finding.md: {module}", "exec"), names)
    expected = nearest(made, "music/005.ogg", 10)
    assert names["found"] == [item["path"] for item in expected]
    assert np.isfinite([item["distance"] for item in expected]).all()
