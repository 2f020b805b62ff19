"""Groups of tracks in a single split: which column, and where there are none."""

import pytest

from tune.tasks.load import load_task
from tune.tasks.rows import TaskError


def table(folder, column, values, splits=True):
    """A CSV of twelve files, four a split, with one more column."""
    lines = ["path,label" + ",split" * splits + f",{column}"]
    for i, value in enumerate(values):
        (folder / f"{i}.wav").write_bytes(b"audio%d" % i)
        split = f",{('train', 'val', 'test')[i // 4]}" * splits
        lines.append(f"{i}.wav,{'xy'[i % 2]}{split},{value}")
    (folder / "music.csv").write_text("\n".join(lines))
    return folder / "music.csv"


def load(path, **settings):
    return load_task(str(path), cache_dir=path.parent, **settings)


def test_tracks_of_a_song_are_a_group(tmp_path, caplog):
    with caplog.at_level("INFO", logger="tune"):
        task = load(table(tmp_path, "song", [f"song {i // 2}" for i in range(12)]), folds=1)
    assert (task.group_column, task.n_groups, task.folds) == ("song", 6, [])
    assert task.splits["test"]["group"] == ["song 4", "song 4", "song 5", "song 5"]
    assert "intervals resample groups by the column 'song' (6 groups)" in caplog.text


@pytest.mark.parametrize("column", ["song", "mood"])
def test_tracks_that_share_nothing_have_no_groups(tmp_path, column):
    values = range(12) if column == "song" else ["calm"] * 12
    task = load(table(tmp_path, column, values), folds=1)
    assert (task.group_column, task.n_groups) == (None, 0)
    assert "group" not in task.splits["test"].column_names


def test_a_column_is_chosen_or_left_out(tmp_path):
    path = table(tmp_path, "song", [f"song {i // 2}" for i in range(12)])
    assert load(path, folds=1, group_column="none").group_column is None
    with pytest.raises(TaskError, match=r"no such column .*found: song"):
        load(path, folds=1, group_column="band")
    path = table(tmp_path, "band", [f"band {i // 4}" for i in range(12)])
    assert load(path, folds=1, group_column="band").n_groups == 3


def test_a_split_that_is_made_is_not_grouped_by_a_named_column(tmp_path):
    path = table(tmp_path, "band", [f"band {i // 4}" for i in range(12)], splits=False)
    with pytest.raises(TaskError, match="groups the tracks of folds: give --folds"):
        load(path, folds=1, group_column="band")


def test_a_column_that_is_the_label_under_another_name_is_used_when_asked_for(tmp_path):
    path = table(tmp_path, "artist", [f"artist {i % 2}" for i in range(12)])
    assert load(path, folds=1).group_column is None
    assert load(path, folds=1, group_column="artist").group_column == "artist"
