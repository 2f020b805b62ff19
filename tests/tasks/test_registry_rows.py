"""Every task of the table, on a tiny data set in its true layout, through train_probe.py."""

import json
import sys

import mir_eval
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, run_probe
from datasets import Dataset
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    r2_score,
    roc_auc_score,
)
from task_trees import SPLITS as FILES
from task_trees import TREES, _tagged, vocalset_archive, write_rows, write_trees

from tune.comparison import paired
from tune.demo import DEMO_TASKS
from tune.probing.bank import join_clips
from tune.tasks.load import SPLITS, load_task
from tune.tasks.musical_keys import KEYS
from tune.tasks.registry import TASKS, TaskRow, default_layer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with all data sets."""
    return write_trees(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def train_probe():
    """The script as a module."""
    sys.path.insert(0, str(ROOT))
    import train_probe

    return train_probe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for the runs of this file, with one store for all."""
    return tmp_path_factory.mktemp("runs")


def probe(train_probe, runs, data, task, *args, name=None):
    """Run a task with the mel baseline in this process: its result and predictions."""
    name = name or task
    given = [
        "--task",
        task,
        "--data_dir",
        data,
        "--encoder=mel",
        "--seg=full",
        "--epochs=4",
        "--seeds",
        1,
        2,
        "--report_to=none",
        "--store",
        runs / "store",
        "--output_dir",
        runs,
        "--name",
        name,
        *args,
    ]
    train_probe.main(train_probe.parse_args([str(word) for word in given]))
    result = json.loads((runs / name / "result.json").read_text())
    return result, pd.read_parquet(runs / name / "predictions.parquet")


def expected(result, table) -> dict[str, float]:
    """The metrics of one seed's predictions, by scikit-learn and mir_eval alone."""
    if result["kind"] == "classes":
        return {
            "accuracy": accuracy_score(table.label, table.prediction),
            "macro_f1": f1_score(table.label, table.prediction, average="macro"),
        }
    if result["kind"] == "keys":
        pairs = zip(table.label, table.prediction, strict=True)
        return {
            "weighted_score": np.mean([mir_eval.key.weighted_score(*pair) for pair in pairs]),
            "accuracy": accuracy_score(table.label, table.prediction),
        }
    if result["kind"] == "numbers":
        each = [r2_score(table[f"label_{t}"], table[f"prediction_{t}"]) for t in result["targets"]]
        named = {f"r2_{t}": v for t, v in zip(result["targets"], each, strict=True)}
        return {"r2": np.mean(each)} | named
    told = [t for t in result["classes"] if t not in result["tags_left_out"]]
    return {
        name: np.mean([metric(table[f"label_{t}"], table[f"score_{t}"]) for t in told])
        for name, metric in (
            ("roc_auc", roc_auc_score),
            ("average_precision", average_precision_score),
        )
    }


def test_every_row_of_the_table_has_a_data_set_here():
    assert set(TREES) == set(TASKS) - set(DEMO_TASKS)


@pytest.mark.parametrize("task", TREES)
def test_every_task_runs_and_is_scored_as_by_independent_code(train_probe, runs, data, task):
    result, table = probe(train_probe, runs, data, task)
    row = TASKS[task]
    assert (result["task"], result["kind"], result["layer_asked"]) == (task, row.kind, row.layer)
    assert result["skipped"] == []
    clips = 2 if task == "gs" else 1
    assert result["n_tracks"] == {split: n * clips for split, n in FILES.items()}
    assert result["n_test_scored"] == FILES["test"] == len(table) / 2
    found = result["metrics"]
    for i, (_, seed) in enumerate(table.groupby("seed")):
        want = expected(result, seed)
        assert list(found) == list(want)
        for name, value in want.items():
            assert found[name]["per_seed"][i] == pytest.approx(value), name
    for metric in found.values():
        assert metric["ci_low"] <= metric["mean"] + 1e-9
        assert metric["mean"] <= metric["ci_high"] + 1e-9
    history = pd.read_csv(runs / task / "history.csv")
    assert f"val/best_{next(iter(found))}" in history


def values(task, split="train") -> dict:
    """Track id -> label, spelled out."""
    data = task.splits[split]
    if task.kind == "numbers":
        found = data["label"][:]
    elif task.kind == "tags":
        found = [
            [c for c, has in zip(task.classes, row, strict=True) if has] for row in data["label"]
        ]
    else:
        found = [task.classes[i] for i in data["label"]]
    return dict(zip(data["id"][:], found, strict=True))


def test_labels_by_value(data, tmp_path):
    def load(name):
        return load_task(name, data, cache_dir=tmp_path)

    gs = load("gs")
    assert gs.classes == list(KEYS)
    first = {k: v for k, v in values(gs).items() if "0000062" in k}
    assert first == {f"data/GS/giantsteps_clips/wav/0000062-{i}.wav": "Eb minor" for i in (0, 1)}
    assert gs.splits["train"]["track"][:4] == ["0000062", "0000062", "0000063", "0000063"]
    mtt = load("mtt")
    assert mtt.classes == ["female vocal", "guitar", "no vocals"]
    form = "data/MTT/mp3/{:x}/artist-album-{:02d}-title-0-29.mp3"
    names = [["guitar"], ["no vocals"], ["guitar", "no vocals"], ["female vocal"], ["guitar"], []]
    assert values(mtt) == {form.format(i, i): tags for i, tags in enumerate(names, start=1)}
    top = load("mtg-top50")
    assert values(top)["data/MTG/audio/23/2348.low.flac"] == ["genre---rock", "instrument---piano"]
    pitch, family = load("nsynth-pitch"), load("nsynth-instrument")
    note = "nsynth-train/audio/flute_acoustic_003-069-100.wav"
    assert (values(pitch)[note], values(family)[note]) == ("69", "flute")
    assert pitch.splits["val"]["path"][0] == str(
        data / "NSynth/nsynth-valid/audio/bass_acoustic_100-045-100.wav"
    )
    chunk = "vibrato/f2_scales_vibrato_testt_01.wav"
    assert values(load("vocalset-technique"), "test")[chunk] == "vibrato"
    assert values(load("vocalset-singer"))["belt/m1_scales_belt_trains_02.wav"] == "m1"


def test_vocalset_is_read_from_its_archive_as_well(tmp_path):
    vocalset_archive(tmp_path)
    technique = load_task("vocalset-technique", tmp_path, cache_dir=tmp_path)
    assert technique.classes == ["belt", "vibrato"]  # pp is none of the ten
    found = values(technique, "test")
    assert len(found) == 20  # two techniques and five vowels of the two singers held out
    assert found["FULL/male3/scales/belt/m3_scales_belt_e.wav"] == "belt"
    assert all("female1" in i or "male1" in i for i in values(technique))
    assert technique.split_made  # a val split was cut from train
    singer = load_task("vocalset-singer", tmp_path, cache_dir=tmp_path)
    assert singer.classes == ["f1", "f2", "m1", "m3"]
    assert sum(len(singer.splits[s]) for s in SPLITS) == 60
    (tmp_path / "VocalSet" / "FULL").rename(tmp_path / "VocalSet" / "other")
    with pytest.raises(ValueError, match=r"holds neither train_s\.txt .* nor FULL/"):
        load_task("vocalset-singer", tmp_path, cache_dir=tmp_path)


def test_a_tag_without_a_test_track_is_left_out_and_named(train_probe, runs, data, capsys):
    result, table = probe(train_probe, runs, data, "mtg-moodtheme", "--agg=max", name="left")
    assert result["tags_left_out"] == ["mood/theme---dark"]
    assert not table["label_mood/theme---dark"].any()
    assert "1 of 3 are not scored" in capsys.readouterr().out
    assert result["chance"] == {"roc_auc": 0.5, "average_precision": 0.5}


def test_adding_a_task_takes_one_row(train_probe, runs, tmp_path, monkeypatch):
    _tagged(tmp_path, "Birds", "Birds", ["owl", "tit", "wren"], "audio/{i:03d}.wav", 24_000, 0)
    row = TaskRow("tags", "birds of a garden", "Birds", hub="me/Birds", n_classes=3)
    monkeypatch.setitem(TASKS, "birds", row)
    result, table = probe(train_probe, runs, tmp_path, "birds")
    assert result["classes"] == ["owl", "tit", "wren"]
    seed = table[table.seed == 1]
    want = expected(result, seed)["roc_auc"]
    assert result["metrics"]["roc_auc"]["per_seed"][0] == pytest.approx(want)


def test_clips_of_a_track_are_averaged():
    outputs = torch.tensor([[[1.0, 0], [5, 2], [3, 4]], [[0, 0], [2, 2], [4, 8]]])
    split = Dataset.from_dict({"id": ["b-0", "a-0", "b-1"], "track": ["b", "a", "b"]})
    joined, truth, names = join_clips(outputs, np.array([7, 8, 7]), split)
    assert names == ["b", "a"]
    assert joined.tolist() == [[[2, 2], [5, 2]], [[2, 4], [2, 2]]]
    assert truth.tolist() == [7, 8]
    with pytest.raises(ValueError, match="clips of the test track b have different labels"):
        join_clips(outputs, np.array([7, 8, 9]), split)


def test_a_made_split_keeps_clips_together_and_spreads_tags(tmp_path):
    tags = [["rare"] if i < 6 else ["usual", "other"][: 1 + i % 2] for i in range(40)]
    rows = [
        {"audio_path": f"{i}-{clip}.wav", "ori_uid": i, "label": own}
        for i, own in enumerate(tags)
        for clip in range(3)
    ]
    write_rows(tmp_path / "all.jsonl", rows)
    task = load_task(str(tmp_path / "all.jsonl"), cache_dir=tmp_path)
    assert (task.kind, task.classes) == ("tags", ["other", "rare", "usual"])
    tracks = {s: set(task.splits[s]["track"]) for s in SPLITS}
    assert sum(map(len, tracks.values())) == len(set.union(*tracks.values())) == 40
    assert [len(task.splits[s]) for s in SPLITS] == [3 * len(tracks[s]) for s in SPLITS]
    assert all(np.any(task.splits[s]["label"], axis=0).all() for s in SPLITS)


@pytest.mark.parametrize(
    ("given", "layer"),
    [
        ([], "last"),
        (["--task", "gtzan"], "last"),
        (["--task", "gs"], "mix"),
        (["--task=mtg-genre"], "mix"),
        (["--task", "gs", "--layer", "3"], "3"),
        (["--task", "gs", "--agg", "transformer", "--tune_aggregator"], "last"),
        (["--task", "gs", "--agg", "transformer:some/folder"], "last"),
    ],
)
def test_the_layer_is_the_rows_where_none_is_given(train_probe, given, layer):
    assert train_probe.parse_args(given).layer == layer
    assert default_layer("my.csv") == "last"


def test_recipes_are_marbles(data, tmp_path):
    def recipe(name):
        r = load_task(name, data, cache_dir=tmp_path).recipe
        return r.lr, r.plateau_patience, r.plateau_factor, r.main_metric

    assert recipe("gs") == (1e-3, 5, 0.1, "weighted_score")
    for name in ("mtt", "mtg-genre", "mtg-instrument", "mtg-moodtheme", "mtg-top50"):
        assert recipe(name) == (1e-3, 3, 0.5, "roc_auc")
    assert recipe("nsynth-pitch") == (1e-3, 3, 0.5, "accuracy")
    assert recipe("vocalset-singer") == (1e-3, 5, 0.5, "accuracy")
    assert recipe("gtzan") == (5e-3, 5, 0.5, "accuracy")


def test_the_script_and_comparisons_as_users_run_them(train_probe, data, tmp_path, capsys):
    probe(train_probe, tmp_path, data, "mtt", name="full")
    done = run_probe(
        "--task=mtt",
        "--data_dir",
        data,
        "--encoder=mel",
        "--seg=0.4",
        "--min_tail=0.2",
        "--epochs=4",
        "--seeds=[1, 2]",
        "--report_to=none",
        "--store",
        tmp_path / "store",
        "--output_dir",
        tmp_path,
        "--name",
        "short",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "roc_auc" in done.stdout
    assert "chance     roc_auc 0.500" in done.stdout
    capsys.readouterr()
    paired.main([str(tmp_path / "full"), str(tmp_path / "short")])
    assert "mtt: roc_auc, against full" in capsys.readouterr().out
    import compare

    compare.main(compare.parse_args([str(tmp_path), "--html", str(tmp_path / "a.html")]))
    page = (tmp_path / "a.html").read_text()
    assert "ROC-AUC of each tag" in page
    assert "no vocals" in page
