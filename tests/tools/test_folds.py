"""tools/folds.py: every track is tested on once, and encoders are compared over all folds."""

import json

import numpy as np
import pytest
from compare_runs import write_run
from conftest import ROOT, make_task, run
from in_process import call

from tune.tasks.load import load_task

SCRIPT = ROOT / "tools" / "folds.py"


def test_every_track_is_in_one_test_split_and_in_no_other_of_its_fold(tmp_path):
    make_task(tmp_path / "tones", seconds=0.5)
    done = run(SCRIPT, "make", "tones", "--out", "folds", "--folds=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("6 test tracks of 18")
    tested = []
    for k in range(3):
        folder = tmp_path / "folds" / f"tones-{k}"
        splits = {
            s: [
                json.loads(line)
                for line in (folder / f"tones-{k}.{s}.jsonl").read_text().splitlines()
            ]
            for s in ("train", "val", "test")
        }
        names = [row["audio_path"] for rows in splits.values() for row in rows]
        assert len(names) == len(set(names)) == 18
        labels = [row["label"] for row in splits["test"]]
        assert labels.count("low") == labels.count("high") == 3
        tested += [row["audio_path"] for row in splits["test"]]
        task = load_task(str(folder), tmp_path, cache_dir=tmp_path)
        assert len(task.splits["test"]["path"]) == 6
        assert not task.skipped
    assert len(set(tested)) == 18
    again = run(SCRIPT, "make", "tones", "--out", "again", "--folds=3", cwd=tmp_path)
    assert again.stdout.replace("again", "folds") == done.stdout


def test_encoders_are_compared_over_all_folds(tmp_path, rng):
    """One is right on 16 of 20 tracks, the other on 8 of them, in two folds, by two strategies."""
    labels = rng.integers(0, 3, 20)
    for fold, part in ((0, slice(0, 8)), (1, slice(8, 20))):
        for encoder, right in (("mel", 8), ("muq-nano", 16)):
            said = np.where(np.arange(20) % 20 < right, labels, (labels + 1) % 3)
            for agg in ("mean", "max"):
                write_run(
                    tmp_path,
                    f"{encoder}-{agg}-{fold}",
                    labels[part],
                    said[None, part],
                    task=f"tones-{fold}",
                    encoder=encoder,
                    agg=agg,
                )
    done = run(SCRIPT, "compare", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "20 tracks in 2 folds, mean over 2 strategies"
    assert second.startswith("mel 0.400, muq-nano 0.800: -0.400 (-0.")
    assert second.endswith("worse")
    write_run(tmp_path, "other", labels[:8], labels[None, :8], task="drums-0")
    done = call("tools/folds.py", "compare", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "folds of several tasks (drums, tones)" in done.stderr


def test_only_the_tracks_of_some_lists_count(tmp_path, rng):
    """Of 20 tracks in two folds those of the list are 6: one encoder has 3 of them, one none."""
    labels = rng.integers(0, 3, 20)
    wrong = (labels + 1) % 3
    for fold, part in ((0, slice(0, 8)), (1, slice(8, 20))):
        ids = [f"audio/{i:02d}.ogg" for i in range(20)][part]
        for encoder, right in (("mel", []), ("muq-nano", [1, 3, 9, 15])):
            said = np.where(np.isin(np.arange(20), right), labels, wrong)
            write_run(
                tmp_path,
                f"runs/{encoder}-{fold}",
                labels[part],
                said[None, part],
                ids=ids,
                task=f"tones-{fold}",
                encoder=encoder,
            )
    listed = [f"audio/{i:02d}.ogg" for i in (1, 2, 3, 4, 9, 19)]
    for name, rows in (("val", listed[:2]), ("test", listed[2:]), ("odd", ["audio/no.ogg"])):
        text = "".join(json.dumps({"audio_path": row}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    done = run(SCRIPT, "compare", "runs", "--only", "val.jsonl", "test.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "6 tracks in 2 folds, mean over 1 strategies"
    assert second.startswith("mel 0.000, muq-nano 0.500: -0.500 (-")
    assert second.endswith("can't tell")  # six tracks, one seed
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "text.jsonl").write_text("audio/01.ogg\n")
    (tmp_path / "other.jsonl").write_text('{"path": "audio/01.ogg"}\n')
    for name, message in (
        ("odd", "1 of 1 tracks, such as audio/no.ogg, are in no fold"),
        ("empty", "no tracks are listed"),
        ("text", "needs a JSON object a line, with audio_path"),
        ("other", "needs a JSON object a line, with audio_path"),
        ("nowhere", "can't be read (No such file or directory)"),
    ):
        done = call("tools/folds.py", "compare", "runs", "--only", f"{name}.jsonl", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert message in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["make", "nowhere", "--out=x"], "nowhere holds 0 lists *.test.jsonl"),
        (["make", "numbers", "--out=x"], "numbers is no task of classes"),
        (["make", "numbers", "--out=x", "--folds=2"], "--folds must be at least 3"),
        (["compare", "empty"], "it takes two of each, and a strategy"),
    ],
)
def test_mistakes_are_one_line(tmp_path, flags, message):
    make_task(tmp_path / "numbers", seconds=0.5, n=(3, 3, 3), numbers=True)
    (tmp_path / "empty").mkdir()
    done = call("tools/folds.py", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
