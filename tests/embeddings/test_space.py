"""The space that embeddings are compared in: blocks, whitening, mutual proximity, hubs."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import run
from safetensors.numpy import save
from scipy.stats import norm

from tune.embeddings import file_formats as files
from tune.embeddings import similar, space
from tune.embeddings.columns import TRACKS


@pytest.fixture
def collection(rng):
    """Embeddings of 400 tracks around 12 centres, far from zero, of which one has none."""
    n, size = 400, 24
    centres = rng.normal(size=(12, size)) * np.linspace(0.5, 3, size)
    vectors = list((centres[np.arange(n) % 12] + rng.normal(size=(n, size)) + 5).astype("f4"))
    vectors[7] = None
    columns = {
        "path": [f"music/{i % 12}/song {i}.ogg" for i in range(n)],
        "content_hash": [f"{i:064x}" for i in range(n)],
        "duration_s": [60.0 + i for i in range(n)],
        "embedding": vectors,
        "reason": ["bad" if v is None else None for v in vectors],
    }
    return files.Embeddings(files.make_table(columns, TRACKS, size), {"strategy": {}}, {})


def usable(made):
    """The embeddings that are there, float64."""
    return made.matrix()[made.usable].astype(float)


def test_blocks_change_nothing(collection, monkeypatch):
    matrix = usable(collection)
    whole = [space.distances(matrix, matrix[3], whiten=w) for w in (False, True)]
    monkeypatch.setattr(space, "BLOCK", 37)
    monkeypatch.setattr(space.blocks, "__defaults__", (37,))
    for w in (False, True):
        np.testing.assert_allclose(space.distances(matrix, matrix[3], whiten=w), whole[w])


def test_a_whitened_space_has_even_variances_as_far_as_shrinkage_lets_it(collection, monkeypatch):
    monkeypatch.setattr(space, "SHRINKAGE", 0.0)
    matrix = usable(collection)
    fitted = space.fit_space(matrix, "whitened")
    values = np.linalg.eigvalsh(np.cov(((matrix - fitted.centre) @ fitted.axes).T, bias=True))
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_a_cut_space_keeps_the_directions_that_vary_most(collection):
    matrix = usable(collection)
    fitted = space.fit_space(matrix, "pca:5")
    _, _, rows = np.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.diag(fitted.axes.T @ rows[:5].T)), 1, atol=1e-6)
    with pytest.raises(ValueError, match="have 24 dimensions only"):
        space.fit_space(matrix, "pca:25")
    with pytest.raises(ValueError, match="--space is ready"):
        space.fit_space(matrix, "white")


@pytest.mark.parametrize("name", ["ready", "pca:8", "whitened", "whitened:8"])
def test_cosines_of_the_column_rank_as_similar_does(collection, tmp_path, name):
    made = collection.in_space(name)
    files.write(tmp_path / "e.parquet", made)
    table = pq.read_table(tmp_path / "e.parquet")
    unit = np.array([v for v in table["embedding_unit"].to_pylist() if v is not None])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    paths = [p for p, ok in zip(table["path"].to_pylist(), made.usable, strict=True) if ok]
    order = np.argsort(-unit @ unit[20], kind="stable")[1:11]
    read = files.read(tmp_path / "e.parquet")
    found = similar.nearest(read, paths[20], 10)
    assert [paths[i] for i in order] == [item["path"] for item in found]


@pytest.mark.parametrize("ending", [".parquet", ".npy", ""])
def test_the_space_is_stored_with_the_table(collection, tmp_path, ending):
    made = collection.in_space(None if ending == ".npy" else "whitened:8")
    made.meta["command"] = ""
    out = tmp_path / f"e{ending}"
    files.write(out, made)
    read = files.read(out)
    assert read.space.name == made.space.name
    np.testing.assert_array_equal(read.space.centre, made.space.centre)
    if ending != ".npy":
        np.testing.assert_array_equal(read.space.axes, made.space.axes)
    plain = similar.nearest(read, "song 20.ogg", 5, whiten=False)
    expected = similar.nearest(collection, "song 20.ogg", 5)
    assert [p["path"] for p in plain] == [e["path"] for e in expected]


def test_a_stored_centre_is_used_when_rows_are_gone(collection):
    made = collection.in_space(None)
    part = files.Embeddings(made.table.slice(0, 50), made.meta, {}, made.space)
    matrix = usable(part)
    assert similar.space_of(part, matrix) is made.space
    assert similar.space_of(part, matrix, whiten=True).name == "whitened"


def test_mutual_proximity_by_its_definition(collection):
    unit = space.fit_space(usable(collection)).as_unit(usable(collection)).astype(float)
    proximity = space.MutualProximity.fit(unit)
    away = 1 - unit @ unit.T
    mean, std = away.mean(1), away.std(1)
    own, spread = proximity.of(unit)
    np.testing.assert_allclose(1 - own, mean, atol=1e-9)
    np.testing.assert_allclose(spread, std, rtol=1e-6)
    by_hand = norm.sf(away[3], mean[3], std[3]) * norm.sf(away[3], mean, std)
    spreads = own, spread
    found = space.together(1 - away[3], [s[3] for s in spreads], spreads)
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


def test_the_search_by_mutual_proximity_is_exact(collection):
    matrix = usable(collection)
    fitted = space.fit_space(matrix)
    cosines = fitted.cosines(matrix, matrix[9])
    cosines[9] = -np.inf
    order, away = similar._mutually_nearest(fitted, matrix, matrix[9], cosines, 12)
    unit = fitted.as_unit(matrix)
    spreads = space.MutualProximity.fit(unit).of(fitted(matrix))
    every = space.together(cosines, [s[9] for s in spreads], spreads)
    np.testing.assert_array_equal(order, np.argsort(-every, kind="stable")[:12])
    np.testing.assert_allclose(away, 1 - every[order], atol=1e-5)


def test_mutual_proximity_makes_hubs_rarer(rng):
    matrix = rng.normal(size=(600, 64)) * rng.lognormal(0, 0.8, size=(600, 1)) + 0.3
    unit = space.fit_space(matrix).as_unit(matrix)
    plain = space.occurrences(unit, 10)
    better = space.occurrences(unit, 10, space.MutualProximity.fit(unit))
    assert plain.sum() == better.sum() == 6000
    assert space.skewness(better) < 0.7 * space.skewness(plain)


def test_occurrences_by_hand():
    unit = np.array([[1.0, 0], [0.8, 0.6], [0.6, -0.8]])  # the first is nearest to both others
    np.testing.assert_array_equal(space.occurrences(unit, 1), [2, 1, 0])
    assert space.skewness(np.array([0, 0, 0, 4])) == pytest.approx(1.1547, abs=1e-4)
    assert space.skewness(np.ones(4)) == 0


def test_a_song_that_is_not_found_has_near_names(collection):
    with pytest.raises(ValueError, match=r"did you mean music/5/song 5\.ogg"):
        similar.find_song(collection, "songs 5")
    with pytest.raises(ValueError, match=r"neither .* nor a file$"):
        similar.find_song(collection, "zzzz")
    moved = collection.table.set_column(0, "path", [["a/x.ogg", "b/x.ogg"] * 200])
    with pytest.raises(ValueError, match=r"may be .*give more of the path"):
        similar.find_song(files.Embeddings(moved, {}, {}), "x.ogg")


def test_a_search_imports_neither_torch_nor_pandas(collection, tmp_path):
    files.write(tmp_path / "e.parquet", collection.in_space(None))
    code = (
        "import sys, tune.embeddings.similar as s\n"
        "s.main(['e.parquet', 'song 3.ogg', '-k', '2'])\n"
        "print([m for m in ('torch', 'pandas', 'scipy', 'soundfile') if m in sys.modules])"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_failures_are_split_off(collection, tmp_path):
    good, failed = collection.split()
    assert good.usable.all()
    assert failed.to_pylist() == [{"path": "music/7/song 7.ogg", "reason": "bad"}]
    files.write_failed(tmp_path / "f.csv", failed)
    assert "song 7.ogg" in (tmp_path / "f.csv").read_text()


def test_metadata_is_text_and_that_of_older_versions_is_read(collection, tmp_path):
    made = collection.in_space("whitened:8")
    made.constants["whitening.matrix"] = np.eye(3, dtype=np.float32)
    files.write(tmp_path / "e.parquet", made)
    found = pq.read_schema(tmp_path / "e.parquet").metadata
    assert all(value.isascii() and b"\0" not in value for value in found.values())
    np.testing.assert_array_equal(
        files.read(tmp_path / "e.parquet").constants["whitening.matrix"], np.eye(3)
    )
    raw = save({"whitening.matrix": np.eye(3)})
    table = made.table.replace_schema_metadata({"tune": "{}", "tune_constants": raw})
    pq.write_table(table, tmp_path / "old.parquet")
    np.testing.assert_array_equal(
        files.read(tmp_path / "old.parquet").constants["whitening.matrix"], np.eye(3)
    )
