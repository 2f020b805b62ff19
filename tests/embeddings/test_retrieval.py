"""Retrieval by labels: measures by hand and by scikit-learn, groups, verdicts, the command."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, r2_score
from sklearn.neighbors import KNeighborsRegressor

from tune.embeddings import agreement
from tune.embeddings import file_formats as files
from tune.embeddings.columns import TRACKS
from tune.embeddings.retrieval import estimate, expected_map, retrieve
from tune.embeddings.space import fit_space


def units(rng, n, size=6, spread=1.0, classes=4):
    """Unit vectors around a centre for each of some classes, and the classes."""
    y = np.arange(n) % classes
    matrix = rng.normal(size=(classes, size))[y] + spread * rng.normal(size=(n, size))
    return fit_space(matrix).as_unit(matrix), y


def test_measures_are_those_of_scikit_learn(rng):
    unit, y = units(rng, 60)
    found = retrieve(unit, y, k=5)
    cosines = (unit @ unit.T).astype(float)
    np.fill_diagonal(cosines, -np.inf)
    for i in range(60):
        others = np.arange(60) != i
        relevant = (y == y[i])[others]
        expected = average_precision_score(relevant, cosines[i][others])
        assert found.values["map"][i] == pytest.approx(expected)
        order = np.argsort(-cosines[i])
        n = relevant.sum()
        assert found.values["recall"][i] == pytest.approx((y[order[:n]] == y[i]).mean())
        assert found.values["nearest"][i] == (y[order[0]] == y[i])
        assert found.values["of_k"][i] == pytest.approx((y[order[:5]] == y[i]).mean())


def test_numbers_are_the_mean_of_the_nearest(rng):
    unit, _ = units(rng, 50)
    values = rng.normal(size=(50, 2)) + unit[:, :2]
    found = retrieve(unit, values, k=4)
    nearest = KNeighborsRegressor(4, metric="cosine").fit(unit, values).kneighbors()[1]
    np.testing.assert_allclose(found.predictions, values[nearest].mean(1))
    scored = estimate(found, "r2", values, targets=["a", "b"])
    assert scored.value == pytest.approx(r2_score(values, values[nearest].mean(1)))


def test_a_vote_that_is_even_goes_to_the_nearer(rng):
    unit = np.array([[1, 0], [0.99, 0.14], [0.98, 0.2], [0.9, 0.44]])
    assert retrieve(unit, np.array([0, 1, 2, 2]), k=2).predictions[0] == 1
    assert retrieve(unit, np.array([0, 1, 2, 2]), k=3).predictions[0] == 2


def test_tracks_of_the_own_group_are_no_neighbours(rng):
    unit, y = units(rng, 40)
    unit[1::2] = unit[::2]  # each recording twice, in the same class
    y[1::2] = y[::2]
    groups = np.arange(40) // 2
    assert retrieve(unit, y).values["nearest"].mean() == 1
    found = retrieve(unit, y, groups=groups)
    half = retrieve(unit[::2], y[::2])
    np.testing.assert_allclose(found.values["nearest"][::2], half.values["nearest"])
    assert (groups[found.first] != groups).all()
    # Its variance is that of recordings, not of the clips, of which there are twice as many.
    clips, whole = (estimate(f, "map", y[: len(f.queries)]) for f in (found, half))
    grouped = estimate(found, "map", y, groups)
    assert grouped.n_groups == 20
    assert grouped.standard_error > 1.3 * clips.standard_error
    assert whole.n_groups == 20


def test_a_class_of_one_has_no_precision():
    found = retrieve(np.eye(4) + 0.1, np.array([0, 0, 0, 1]))
    assert np.isnan(found.values["map"]).tolist() == [False, False, False, True]
    assert estimate(found, "map", np.zeros(4)).n_tracks == 3


def test_chance_of_average_precision_is_that_of_random_rankings(rng):
    y = np.array([0] * 5 + [1] * 15)
    drawn = [retrieve(units(rng, 20)[0], y).values["map"].mean() for _ in range(400)]
    assert expected_map(y) == pytest.approx(np.mean(drawn), abs=0.02)


def write(path, matrix, labels):
    """A file of embeddings and its labels as a csv."""
    n = len(matrix)
    columns = {
        "path": [f"{i:03d}.ogg" for i in range(n)],
        "embedding": list(matrix.astype("f4")),
        "reason": [None] * n,
    }
    files.write(path, files.Embeddings(files.make_table(columns, TRACKS, matrix.shape[1]), {}, {}))
    for name in columns["path"]:
        (path.parent / name).touch()
    lines = [
        f"{name},{label},{i // 2}"
        for i, (name, label) in enumerate(zip(columns["path"], labels, strict=True))
    ]
    (path.parent / "labels.csv").write_text("path,label,artist\n" + "\n".join(lines))


def test_files_are_compared_with_the_first(rng, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    y = np.arange(120) % 4
    centres = np.eye(4, 8)[y] * 3
    write(tmp_path / "bad.parquet", rng.normal(size=(120, 8)), list(map("c{}".format, y)))
    write(
        tmp_path / "good.parquet", centres + rng.normal(size=(120, 8)), list(map("c{}".format, y))
    )
    argv = ["bad.parquet", "good.parquet", "labels.csv", "--disjoint_by=artist", "--out=a.json"]
    agreement.main(argv)
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["space"] for row in rows[:4]] == list(agreement.SPACES)
    assert rows[4]["embeddings"] == "good.parquet"
    assert rows[4]["verdict"] == "better"
    assert rows[4]["map"] > rows[0]["map"] + 0.2
    assert abs(rows[0]["map"] - rows[0]["chance_map"]) < 0.05
    assert "120 tracks" in out
    agreement.main([*argv, "--queries=30"])
    assert "30 of them as queries" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no such column, but artist"):
        agreement.main([*argv[:3], "--disjoint_by=album"])


def test_numbers_as_labels(rng, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matrix = rng.normal(size=(90, 3))
    write(tmp_path / "e.parquet", matrix, [f"{v:.3f}" for v in matrix[:, 0]])
    agreement.main(["e.parquet", "labels.csv", "--out=a.json"])
    assert "R² of 10 nearest" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())[0]["r2"] > 0.4
