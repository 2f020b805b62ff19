"""train_probe.py --folds: each track tested once, by what a single split would have given."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import tone
from in_process import call
from sklearn.metrics import accuracy_score

from tune.embeddings.strategy import from_run

SETTINGS = ["--encoder", "mel", "--seg", "1", "--agg", "whitened", "--epochs", "4"]
SETTINGS += ["--seeds", "1", "2", "--report_to", "none", "--store", "store"]


def write_table(path, rows) -> None:
    """Write rows, dicts, as a CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tracks of two classes that are hard to tell apart, two artists of each in three folds."""
    root = tmp_path_factory.mktemp("folds")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(30):
        kind = i % 2
        hz = 440 + 60 * kind + rng.normal(0, 60)
        soundfile.write(root / f"{i}.wav", tone(2.1, hz, noise=0.1, seed=i), 24_000)
        rows.append({"path": f"{i}.wav", "label": "lh"[kind], "artist": f"{kind}{i // 2 % 5}"})
    write_table(root / "music.csv", rows)
    found = call(
        "train_probe.py", "--task", "music.csv", "--folds", "3", "--name", "a", *SETTINGS, cwd=root
    )
    assert found.returncode == 0, found.stderr
    run = root / "runs" / "a"
    return SimpleNamespace(
        root=root,
        rows=rows,
        said=found,
        result=json.loads((run / "result.json").read_text()),
        predictions=pd.read_parquet(run / "predictions.parquet"),
        splits=pd.read_csv(run / "split.csv", dtype=str),
        history=pd.read_csv(run / "history.csv"),
    )


def test_every_track_is_tested_once_and_all_are_scored_together(folder):
    table, result = folder.predictions, folder.result
    for _, mine in table.groupby("seed"):
        assert sorted(mine.id) == sorted(row["path"] for row in folder.rows)
    artist = {row["path"]: row["artist"] for row in folder.rows}
    assert list(table.group) == [artist[i] for i in table.id]
    assert (table.groupby("group").fold.nunique() == 1).all()
    accuracy = result["metrics"]["accuracy"]
    assert accuracy["per_seed"] == pytest.approx(
        [accuracy_score(t.label, t.prediction) for _, t in table.groupby("seed")]
    )
    assert 0.4 < accuracy["mean"] < 1  # so that the tests below can fail
    for number, fold in enumerate(result["folds"]["each"], 1):
        mine = table[table.fold == number]
        assert fold["n_tracks"]["test"] == mine.id.nunique()
        assert fold["metrics"]["accuracy"]["mean"] == pytest.approx(
            accuracy_score(mine.label, mine.prediction)
        )
    assert result["n_tracks"] == {"train": 0, "val": 0, "test": 30}
    assert (result["folds"]["group_column"], result["folds"]["n_groups"]) == ("artist", 10)


def test_the_interval_resamples_groups(folder):
    table = folder.predictions.assign(right=lambda t: t.label == t.prediction)
    each = table.groupby("group").right.agg(["sum", "count"]).to_numpy(float)  # (10, 2)
    drawn = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=2000) @ each
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    accuracy = folder.result["metrics"]["accuracy"]
    assert (accuracy["ci_low"], accuracy["ci_high"]) == pytest.approx((low, high))


def test_it_is_said(folder):
    out = " ".join(folder.said.stdout.split())
    assert "30, each tested once" in out
    assert "3, 10 groups by artist kept together" in out
    assert "folds share training tracks, so the interval is slightly too narrow" in out
    assert folder.history.fold.tolist() == [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize("fold", [1, 3])
def test_a_fold_is_the_run_on_its_split(folder, fold):
    """Whitening, standardisation and the choice of epochs see the fold's training tracks only."""
    split = dict(zip(folder.splits.id, folder.splits[f"fold_{fold}"], strict=True))
    rows = [row | {"split": split[row["path"]]} for row in folder.rows]
    rows.sort(key=lambda row: list(split).index(row["path"]))  # probes draw their order from it
    write_table(folder.root / "one.csv", rows)
    name = f"fold-{fold}"
    found = call("train_probe.py", "--task", "one.csv", "--name", name, *SETTINGS, cwd=folder.root)
    assert found.returncode == 0, found.stderr
    assert "0 passes" in found.stdout  # everything was encoded once
    alone = pd.read_parquet(folder.root / "runs" / name / "predictions.parquet")
    mine = folder.predictions[folder.predictions.fold == fold].drop(columns="fold")
    order = ["seed", "id"]
    pd.testing.assert_frame_equal(
        *(t.sort_values(order).reset_index(drop=True) for t in (mine, alone)), check_exact=True
    )


def test_compare_says_what_folds_share_and_compares_them_with_folds_only(folder):
    for agg, folds in (("mean", "3"), ("max", "1")):
        settings = [*SETTINGS, "--agg", agg, "--folds", folds, "--task", "music.csv"]
        assert call("train_probe.py", *settings, cwd=folder.root).returncode == 0
    found = call("compare.py", "runs", "--baseline", "1:mean", cwd=folder.root)
    out = " ".join(found.stdout.split())
    assert "3 folds by artist" in out
    assert "folds share training tracks, so the interval is slightly too narrow" in out
    assert "trained on other tracks: 3 folds by artist and a single split" in out


def test_a_single_split_resamples_groups_as_well(folder):
    """The same bootstrap as of folds, from the parquet; the default seeds are five."""
    splits = ["train"] * 10 + ["val"] * 5 + ["test"] * 15
    rows = [{**row, "split": split} for row, split in zip(folder.rows, splits, strict=True)]
    write_table(folder.root / "split.csv", rows)
    at = SETTINGS.index("--seeds")
    settings = [*SETTINGS[:at], *SETTINGS[at + 3 :], "--name", "split"]
    found = call("train_probe.py", "--task", "split.csv", *settings, cwd=folder.root)
    assert found.returncode == 0, found.stderr
    assert "10 in the test split, by artist: the interval resamples groups" in found.stdout
    run = folder.root / "runs" / "split"
    result = json.loads((run / "result.json").read_text())
    assert result["seeds"] == [1234, 1235, 1236, 1237, 1238]
    assert result["groups"] == {"column": "artist", "n_test": 10}
    table = pd.read_parquet(run / "predictions.parquet")
    artist = {row["path"]: row["artist"] for row in rows}
    assert list(table.group) == [artist[i] for i in table.id]
    table["right"] = (table.prediction == table.label).astype(float)
    each = table.groupby("group").right.agg(["sum", "count"]).to_numpy(float)  # (10, 2)
    drawn = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=2000) @ each
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    metric = result["metrics"]["accuracy"]
    assert (metric["ci_low"], metric["ci_high"]) == pytest.approx((low, high), abs=1e-9)


def test_embeddings_of_folds_are_made_where_the_folds_agree(folder):
    """Each fold has a whitening of its own; a mean is the same for all."""
    found = call("embed.py", "0.wav", "--from_run", "runs/a", "--out", "a.npy", cwd=folder.root)
    assert found.returncode != 0
    assert "in 3 folds, each of which learned its own whitened" in found.stderr
    settings = [*SETTINGS, "--agg", "mean", "--folds", "3", "--task", "music.csv", "--name", "m"]
    assert call("train_probe.py", *settings, cwd=folder.root).returncode == 0
    given = ["--from_run", "runs/m", "--out", "m.npy", "--store", "store"]
    found = call("embed.py", "0.wav", *given, cwd=folder.root)
    assert found.returncode == 0, found.stderr
    result = json.loads((folder.root / "runs" / "m" / "result.json").read_text())
    result["folds"]["each"][1]["layer"] = 7
    (folder.root / "runs" / "m" / "result.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"which chose different layers \(0, 7\)"):
        from_run(folder.root / "runs" / "m")
