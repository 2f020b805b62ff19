"""Charts and tables of a probe's test in W&B, by hand and in a run's log."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT, make_task, run_probe, tone
from wandb_file import records

from tune.runs.predictions import Predictions
from tune.runs.result import prediction_columns
from tune.runs.wandb_tables import MOST_CLASSES, MOST_POINTS, disputed, result_tables
from tune.tasks.label_kinds import label_kind


def made(kind, labels, predictions, parts, probabilities=None):
    """A result, its predictions and its columns, of S seeds and n tracks."""
    n_seeds, n = predictions.shape[:2]
    ids = [f"t{i}" for i in range(n)]
    classes, targets = ([], parts) if kind == "numbers" else (parts, [])
    result = {"task": "t", "kind": kind, "classes": classes, "targets": targets}
    metric = {f"r2_{name}": {"mean": 0.25 * i} for i, name in enumerate(parts)}
    result["metrics"] = metric if kind == "numbers" else {}
    shares = np.full((n_seeds, n, len(parts)), 0.5) if probabilities is None else probabilities
    columns = prediction_columns(
        kind, ids, range(n_seeds), labels, predictions, shares, classes, targets
    )
    return result, Predictions(result, ids, labels, predictions), columns


def test_classes_have_a_confusion_matrix_and_a_score_each():
    labels = np.array([0, 0, 1])
    predictions = np.array([[0, 1, 1], [0, 1, 0]])
    found = result_tables(*made("classes", labels, predictions, ["a", "b"]))
    assert found["details/confusion_matrix"].table.data == [
        ["a", "a", 2],
        ["a", "b", 2],
        ["b", "a", 1],
        ["b", "b", 1],
    ]
    assert found["details/by_class"].data == [["a", 0.5, 2], ["b", 0.5, 1]]
    assert found["details/by_class"].columns[0] == "class"
    assert "audio" not in found["details/disputed_tracks"].columns
    many = [f"c{i}" for i in range(MOST_CLASSES + 1)]
    assert "details/confusion_matrix" not in result_tables(
        *made("classes", labels, predictions, many)
    )


def test_every_seed_has_its_curve():
    labels = np.array([0, 0, 1])
    result, test, columns = made("classes", labels, np.array([[0, 1, 1], [0, 1, 0]]), ["a", "b"])
    result |= {"seeds": [7, 9], "metrics": {"accuracy": {"mean": 0.5}}}
    found = result_tables(result, test, columns, curves=[[0.5, 0.75], [0.25]])
    assert found["details/validation_by_seed"].table.data == [
        [1, "seed 7", 0.5],
        [2, "seed 7", 0.75],
        [1, "seed 9", 0.25],
    ]
    assert "details/validation_by_seed" not in result_tables(result, test, columns, curves=[[], []])


def test_the_most_disputed_track_is_wrong_most_often_and_then_least_probable():
    labels = np.array([0, 0, 0, 1])
    predictions = np.array([[0, 1, 0, 1], [0, 1, 1, 1]])
    own = np.array([[0.9, 0.2, 0.4, 0.6], [0.8, 0.1, 0.6, 0.7]])  # (S, n) of the track's own class
    shares = np.stack([np.where(labels == 0, own, 1 - own), np.where(labels == 1, own, 1 - own)], 2)
    table = result_tables(*made("classes", labels, predictions, ["a", "b"], shares))
    rows = table["details/disputed_tracks"].data
    assert [row[0] for row in rows] == ["t1", "t2", "t3", "t0"]
    assert rows[0] == ["t1", "a", "b", 1.0, pytest.approx(0.15)]
    assert [row[3] for row in rows] == [1.0, 0.5, 0.0, 0.0]


def test_numbers_have_a_scatter_of_each_target(rng):
    labels = rng.normal(0, 1, (MOST_POINTS + 5, 2))
    labels[3] = 9.0, 9.0
    predictions = np.stack([labels - 1, labels + 2])
    predictions[:, 3] = 0.0
    found = result_tables(*made("numbers", labels, predictions, ["x", "y"]))
    rows = found["details/predicted_y"].table.data
    assert MOST_POINTS / 2 <= len(rows) <= MOST_POINTS
    assert rows[1] == ["t2", pytest.approx(labels[2, 1]), pytest.approx(labels[2, 1] + 0.5)]
    assert found["details/by_target"].data == [["x", 0.0, len(labels)], ["y", 0.25, len(labels)]]
    worst = found["details/disputed_tracks"].data[0]
    assert worst[:3] == ["t3", "x 9.00, y 9.00", "x 0.00, y 0.00"]
    assert not any("confusion" in key for key in found)


def test_tags_have_a_score_each_and_no_matrix():
    labels = np.array([[True, False], [False, True], [False, False]])
    scores = np.array([[[0.9, 0.1], [0.2, 0.8], [0.4, 0.9]]])
    found = result_tables(*made("tags", labels, scores, ["a", "b"]))
    assert set(found) == {"details/by_tag", "details/disputed_tracks"}
    assert found["details/by_tag"].data == [["a", 1.0, 1], ["b", 0.5, 1]]
    assert found["details/disputed_tracks"].data[0][:3] == ["t2", "no tag", "b"]


def test_players_are_ten_seconds_of_the_middle_and_a_bad_file_is_named(tmp_path, caplog):
    wave = np.concatenate([np.zeros(30 * 8000), tone(30, 440, 8000), np.zeros(30 * 8000)])
    soundfile.write(tmp_path / "a.wav", wave, 8000)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    labels, predictions = np.array([0, 1, 1]), np.array([[1, 0, 1]])
    given = made("classes", labels, predictions, ["a", "b"])
    files = {"t0": str(tmp_path / "a.wav"), "t1": str(tmp_path / "b.wav"), "t2": "never read"}
    table = result_tables(*given, files, 2)["details/disputed_tracks"]
    assert table.columns[-1] == "audio"
    first, second, third = (row[-1] for row in table.data)
    heard, rate = soundfile.read(first._path)
    assert (len(heard) / rate, heard.ndim) == (10.0, 1)
    assert np.abs(heard).max() > 0.1  # of the middle, which isn't silent
    assert second is None
    assert third is None
    assert "W&B gets no audio of t1" in caplog.text


def test_order_needs_no_probabilities():
    _, test, _ = made("classes", np.array([0, 1]), np.array([[0, 0]]), ["a", "b"])
    assert disputed(label_kind("classes"), test, None).tolist() == [1, 0]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Records of W&B's log of a run with audio and code, and of one without."""
    root, out = tmp_path_factory.mktemp("tables"), []
    task = make_task(root / "tones")
    for name, flags in (("more", ["--log_audio=2", "--log_code"]), ("usual", [])):
        command = ["--task", task, "--encoder=mel", "--seg=1", "--epochs=1", f"--name={name}"]
        folder = root / name
        folder.mkdir()
        done = run_probe(*command, *flags, cwd=folder, env={"WANDB_DIR": str(folder)})
        assert done.returncode == 0, done.stderr
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        out.append(list(records(path)))
    return out


def contents(log, kind):
    """The files of a log's artifacts of a type."""
    found = [r.artifact for r in log if r.WhichOneof("record_type") == "artifact"]
    return {entry.path for a in found if a.type == kind for entry in a.manifest.contents}


def test_audio_is_uploaded_only_where_it_is_asked_for(logs):
    more, usual = (contents(log, "run_table") for log in logs)
    tables = {"details/confusion_matrix_table.table.json", "details/by_class.table.json"}
    assert tables | {"details/disputed_tracks.table.json"} <= more & usual
    assert len([path for path in more if path.startswith("media/audio/")]) == 2
    assert not [path for path in usual if path.endswith(".wav")]


def test_code_and_git_are_uploaded_only_where_they_are_asked_for(logs):
    more, usual = (contents(log, "code") for log in logs)
    assert {"train_probe.py", "tune/runs/tracking.py", "setup.cfg"} <= more
    assert all(path.startswith("tune/") or "/" not in path for path in more)
    assert usual == set()
    sha = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    commits = [
        [r.run.git.commit for r in log if r.WhichOneof("record_type") == "run"] for log in logs
    ]
    assert set(commits[0]) == {sha}
    assert set(commits[1]) == {""}


def test_a_number_of_players_is_a_whole_number():
    done = subprocess.run(
        [sys.executable, ROOT / "train_probe.py", "--log_audio=-1"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "expected a whole number from 0 on, got '-1'" in done.stderr
