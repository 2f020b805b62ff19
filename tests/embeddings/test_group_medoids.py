"""Groups with their medoids, the map's page, hubness, and duplicates of a file of embeddings."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile
from conftest import tone
from sklearn.metrics import adjusted_rand_score

from tune.embeddings import duplicates, groups, hubness, map
from tune.embeddings import file_formats as files
from tune.embeddings.columns import TRACKS

N = 90


@pytest.fixture
def made(rng):
    """Embeddings of 90 tracks in three groups of 45, 30 and 15, and a row without."""
    true = np.repeat([2, 0, 1], [15, 45, 30])
    vectors = [*(np.eye(3, 12)[true] * 4 + rng.normal(size=(N, 12)) * 0.4).astype("f4"), None]
    columns = {
        "path": [f"music/</script> & {i:02d}.ogg" for i in range(N + 1)],
        "embedding": vectors,
        "reason": [None] * N + ["bad"],
    }
    return files.Embeddings(files.make_table(columns, TRACKS, 12), {"strategy": {}}, {}), true


def test_groups_are_found_and_each_has_its_medoid(made):
    made, true = made
    found = groups.find_groups(made)  # their number as well
    assert adjusted_rand_score(true, found.group) == 1
    assert np.bincount(found.group).tolist() == [45, 30, 15]
    for number, medoid in enumerate(found.medoids):
        members = found.unit[found.group == number]
        means = members @ members.T @ np.ones(len(members))
        assert found.rows[found.group == number][means.argmax()] == medoid
    assert len(groups.find_groups(made, 5).medoids) == 5
    with pytest.raises(ValueError, match="too few for 91 groups"):
        groups.find_groups(made, 91)


def test_the_command_writes_the_groups(made, tmp_path, capsys):
    files.write(tmp_path / "e.parquet", made[0])
    out = tmp_path / "g.csv"
    groups.main([str(tmp_path / "e.parquet"), "-n", "3", "--out", str(out)])
    assert "medoid" in capsys.readouterr().out
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert len(rows) == N
    assert {row["group"] for row in rows} == {"1", "2", "3"}
    assert len({row["medoid"] for row in rows}) == 3


@pytest.mark.parametrize("method", map.METHODS)
def test_on_the_map_groups_lie_apart(made, tmp_path, method, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write(tmp_path / "e.parquet", made[0])
    (tmp_path / "maps").mkdir()
    map.main(["e.parquet", "--out=maps/m.html", f"--method={method}", "-n=3"])
    text = (tmp_path / "maps" / "m.html").read_text()
    assert text.count("</script>") == 1  # names can't end it
    assert "http" not in text  # nothing is fetched
    tracks = json.loads(re.search(r"^const tracks = (.*);$", text, re.M)[1])
    assert len(tracks) == N
    assert tracks[0]["n"] == "music/</script> & 00.ogg"
    assert tracks[0]["u"] == "../music/%3C/script%3E%20%26%2000.ogg"
    places = np.array([[t["x"], t["y"]] for t in tracks])
    which = np.array([t["g"] for t in tracks])
    assert places.min() == 0
    assert places.max() == 1
    centres = np.stack([places[which == g].mean(0) for g in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(1)
    assert (nearest == which).mean() > 0.95


def test_hubness_is_told_for_each_way_of_comparing(made, tmp_path, capsys):
    files.write(tmp_path / "e.parquet", made[0])
    hubness.main([str(tmp_path / "e.parquet"), "-k", "5", "--rows", "60"])
    out = capsys.readouterr().out
    assert out.count("whitened") == 2
    assert "60 of 90 tracks" in out
    with pytest.raises(ValueError, match="needs more"):
        hubness.main([str(tmp_path / "e.parquet"), "-k", "90"])


def test_duplicates_of_the_tracks_of_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        soundfile.write(f"{name}.wav", tone(3, 440), 22_050)
    columns = {
        "path": ["a.wav", "b.wav"],
        "embedding": [np.ones(2, "f4")] * 2,
        "reason": [None] * 2,
    }
    files.write(
        tmp_path / "e.parquet", files.Embeddings(files.make_table(columns, TRACKS, 2), {}, {})
    )
    duplicates.main(["e.parquet", "--workers=1"])
    assert "1 same; 2 files" in capsys.readouterr().out
