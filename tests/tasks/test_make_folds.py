"""Folds: every track is tested once, no group is on both sides, classes are spread evenly."""

import json
from collections import Counter

import pytest

from tune.tasks.load import SPLITS, TaskError, load_task


def table(folder, rows, head="path,label,artist") -> str:
    """Write a table; loading a task never opens the audio."""
    file = folder / "music.csv"
    file.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(file)


def load(name, **kwargs):
    """Load a task; folds as train_probe.py asks for them where it isn't said."""
    return load_task(name, cache_dir="unused", **({"folds": None} | kwargs))


def songs(n, n_artists=7):
    """Rows of n tracks, two classes, the artists each of one class."""
    return [(f"{i}.wav", "xy"[i % 2], f"{'xy'[i % 2]}{i % n_artists}") for i in range(n)]


def ids(fold, split) -> list[str]:
    """The ids of a fold's split."""
    return fold.splits[split]["id"][:]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_each_track_is_tested_once_and_no_artist_is_on_both_sides(tmp_path, n):
    rows = songs(60)
    task = load(table(tmp_path, rows), folds=n)
    artist = {row[0]: row[2] for row in rows}
    assert (len(task.folds), task.group_column, task.n_groups) == (n, "artist", 14)
    assert Counter(i for fold in task.folds for i in ids(fold, "test")) == Counter(list(artist))
    for fold in task.folds:
        assert Counter(i for s in SPLITS for i in ids(fold, s)) == Counter(list(artist))
        sides = [{artist[i] for i in ids(fold, s)} for s in SPLITS]
        assert sum(map(len, sides)) == len(set().union(*sides)) == 14
        assert fold.splits["test"]["group"][:] == [artist[i] for i in ids(fold, "test")]


def test_folds_are_stratified_and_depend_on_the_rows_not_on_their_order(tmp_path):
    rows = [(f"{i}.wav", "x" if i % 4 else "y") for i in range(40)]
    folds = [load(table(tmp_path, r, "path,label"), folds=5).folds for r in (rows, rows[::-1])]
    for one, other in zip(*folds, strict=True):
        assert Counter(one.splits["test"]["label"][:]) == {0: 6, 1: 2}
        assert len(ids(one, "val")) == round(0.2 * 32)
        assert all(ids(one, s) == ids(other, s) for s in SPLITS)


def test_a_small_table_without_a_split_gets_five_folds_others_their_split(tmp_path, caplog):
    caplog.set_level("INFO", "tune")
    rows = songs(44)
    assert len(load(table(tmp_path, rows)).folds) == 5
    assert "cross-validated in 5 folds" in caplog.text
    assert "grouped by the column 'artist' (14 groups)" in caplog.text
    single = load(table(tmp_path, rows), folds=1)
    assert (single.folds, len(single.splits["test"])) == ([], 11)
    assert load(table(tmp_path, songs(400))).folds == []
    split = [(*row, SPLITS[i % 3]) for i, row in enumerate(rows)]
    given = table(tmp_path, split, "path,label,artist,split")
    assert load(given).folds == []
    assert len(load(given, folds=4).folds) == 4  # asked for: over the tracks of all its splits


def test_columns_that_group(tmp_path, caplog):
    caplog.set_level("INFO", "tune")
    rows = [(f"{i}.wav", "xy"[i % 2], f"band {i % 9}", i % 6) for i in range(36)]
    file = table(tmp_path, rows, "path,label,Artist,Session")
    assert load(file).group_column == "artist"
    assert load(file, group_column="session").n_groups == 6
    assert load(file, group_column="none").group_column is None
    holes = [(p, x, "" if i < 4 else a) for i, (p, x, a, _) in enumerate(rows)]
    assert load(table(tmp_path, holes)).n_groups == 9 + 4
    assert "4 rows without a value: each is a group" in caplog.text
    # A column of labels is no group: all tracks of a class would be tested by what never saw it.
    assert load(table(tmp_path, rows, "path,artist,x,y"), label_column="artist").n_groups == 36


def test_clips_of_a_track_and_lines_of_a_file_stay_together(tmp_path):
    rows = [(f"{i // 2}-{i % 2}.wav", "xy"[i // 2 % 2], f"t{i // 2}") for i in range(40)]
    task = load(table(tmp_path, rows, "path,label,ori_uid"), folds=4)
    for fold in task.folds:
        assert set(Counter(fold.splits["test"]["track"][:]).values()) == {2}
    assert task.group_column is None
    assert "group" not in task.splits["test"].column_names


def test_regressions_and_tags_are_stratified_too(tmp_path):
    numbers = [(f"{i}.wav", i / 10) for i in range(40)]
    task = load(table(tmp_path, numbers, "path,label"), folds=5)
    means = [sum(x for (x,) in fold.splits["test"]["label"]) / 8 for fold in task.folds]
    assert max(means) - min(means) < 1  # of 0 to 3.9
    tags = [(f"{i}.wav", f"loud;{'fast' if i % 4 else 'slow'}") for i in range(40)]
    task = load(table(tmp_path, tags, "path,label"), folds=5, kind="tags")
    assert task.classes == ["fast", "loud", "slow"]
    assert {sum(slow for *_, slow in f.splits["test"]["label"]) for f in task.folds} == {2}


def test_a_class_with_one_artist_is_reported(tmp_path, caplog):
    rows = [*songs(40), *((f"z{i}.wav", "z", "solo") for i in range(5))]
    task = load(table(tmp_path, rows), folds=4)
    assert task.classes == ["x", "y", "z"]  # in every fold, though one doesn't train on z
    assert "1 of 3 classes (z) have a single artist" in caplog.text


def test_gtzan_is_artist_disjoint_where_its_rows_have_artists(tmp_path):
    folder = tmp_path / "GTZAN"
    audio = folder / "data" / "GTZAN" / "genres"
    audio.mkdir(parents=True)
    artist = {}
    for at, split in enumerate(SPLITS):
        lines = []
        for i in range(at, 48, 3):
            name = f"data/GTZAN/genres/{i}.wav"
            (folder / name).write_bytes(b"audio")
            artist[name] = f"band {i % 2}{i // 6 % 6}"
            row = {"audio_path": name, "label": ("blues", "jazz")[i % 2], "artist": artist[name]}
            lines.append(json.dumps(row))
        (folder / f"GTZANGenre.{split}.jsonl").write_text("\n".join(lines))
    task = load("gtzan", data_dir=tmp_path, folds=4, group_column="artist")
    assert sorted(i for fold in task.folds for i in ids(fold, "test")) == sorted(artist)
    for fold in task.folds:
        tested = {artist[i] for i in ids(fold, "test")}
        assert not tested & {artist[i] for s in ("train", "val") for i in ids(fold, s)}
    assert load("gtzan", data_dir=tmp_path).folds == []  # its own split


@pytest.mark.parametrize(
    ("rows", "kwargs", "message"),
    [
        (songs(40), {"group_column": "band"}, "no such column .*found: artist"),
        (songs(40), {"folds": 20}, "artist: 14 groups can't be split into 20 folds"),
        (songs(40), {"folds": 1, "group_column": "artist"}, "groups the tracks of folds"),
        ([(f"{i}.wav", i % 5, i % 5) for i in range(40)], {}, "every class has a single artist"),
    ],
)
def test_errors(tmp_path, rows, kwargs, message):
    with pytest.raises(TaskError, match=message):
        load(table(tmp_path, rows), **kwargs)
