"""train_probe.py --protocol, --fusion and --probe as users run them."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, make_task, run, run_probe
from marble_loop import clips_of, marble
from safetensors.numpy import load_file
from task_trees import emo, gtzan

from tune.encoders.registry import load_encoder

SEEDS = [3, 4]
QUICK = ["--encoder=mel", "--report_to=none", "--store=store"]


def result_of(folder):
    """Read a run's result.json."""
    return json.loads((folder / "result.json").read_text())


def table_of(folder):
    """A run's predictions."""
    return pq.read_table(folder / "predictions.parquet").to_pandas()


def embedded(task, seconds, numbers):
    """A task's clips by the encoder: embeddings, labels and files of each split."""
    encoder = load_encoder("mel")
    x, y, files = {}, {"n_out": 2}, {}
    for split in ("train", "val", "test"):
        lines = (task / f"tones.{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        clips = [clips_of(task / row["audio_path"], seconds) for row in rows]
        x[split] = torch.from_numpy(encoder.embed(np.concatenate(clips), [0])[:, 0, 0]).double()
        labels = [row["label"] if numbers else ["high", "low"].index(row["label"]) for row in rows]
        spread = [label for label, k in zip(labels, clips, strict=True) for _ in k]
        y[split] = torch.tensor(spread, dtype=torch.float64 if numbers else torch.int64)
        files[split] = [row["audio_path"] for row, k in zip(rows, clips, strict=True) for _ in k]
    return x, y, files


@pytest.mark.parametrize("numbers", [False, True])
def test_marble_is_an_independent_marble_loop(tmp_path, numbers):
    task = make_task(tmp_path / "tones", n=(13, 6, 7), numbers=numbers)
    more = ["--seg=1", "--batch_size=12", "--accumulation=3", "--patience=4", "--epochs=30"]
    more += ["--plateau_patience=1", "--seeds", *map(str, SEEDS), "--name=run"]
    done = run_probe("--protocol=marble", "--task", task, *more, *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result, table = result_of(tmp_path / "runs/run"), table_of(tmp_path / "runs/run")
    x, y, files = embedded(task, 1, numbers)
    assert len(set(files["train"])) == 13 < len(files["train"])  # several clips a file
    for seed, ended in zip(SEEDS, result["tested_epochs"], strict=True):
        settings = dict(lr=1e-3 if numbers else 5e-3, wait=1, micro=4, accumulate=3)
        settings |= dict(epochs=30, patience=4, regression=numbers)
        expected, last = marble(x, y, files, seed, **settings)
        mine = table[table.seed == seed]
        columns = ["prediction_target_0", "prediction_target_1"] if numbers else ["p_high", "p_low"]
        np.testing.assert_allclose(mine[columns].to_numpy(), expected, rtol=1e-4, atol=1e-6)
        assert ended == last < 30


@pytest.fixture(scope="module")
def marble_runs(tmp_path_factory):
    """--protocol marble on EMO and GTZAN in their true layout."""
    folder = tmp_path_factory.mktemp("marble")
    for make in (emo, gtzan):
        make(folder / "data")
    for task in ("emo", "gtzan"):
        args = ["--task", task, "--layer=0", "--epochs=3", "--name", task, *QUICK]
        done = run_probe("--protocol=marble", *args, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("task", "clip"), [("emo", 15), ("gtzan", 30.2)])
def test_true_layouts_run_and_say_their_protocol(marble_runs, task, clip):
    result = result_of(marble_runs / "runs" / task)
    protocol, config = (
        result["protocol"],
        json.loads((marble_runs / "runs" / task / "config.json").read_text()),
    )
    assert protocol["name"] == config["protocol"] == "marble"
    assert set(protocol["changed"]) == {"layer", "epochs"}
    assert protocol["changed"] == {"layer": "6", "epochs": 50}
    assert protocol["settings"]["test_weights"] == config["test_weights"] == "last"
    assert protocol["settings"]["seg"] == [f"{clip:g}"] == [result["seg"]]
    assert (result["fusion"], result["channels"], result["pad_tail"]) == ("late", "first", True)
    assert result["tested_epochs"] == [3] * 5
    assert result["cost"]["audio_seconds"] == pytest.approx(14 * clip)  # a padded clip each
    assert any("bf16" in line for line in protocol["differs"])
    saved = load_file(marble_runs / "runs" / task / "probe.safetensors")
    assert (saved["standardise.scale"] == 1).all()


def test_compare_tells_protocols_apart(marble_runs):
    args = ["--task=gtzan", "--seg=30.2", "--epochs=3", "--name=ours", *QUICK]
    assert run_probe(*args, cwd=marble_runs).returncode == 0
    done = run(ROOT / "compare.py", "runs", "--csv=cells.csv", cwd=marble_runs)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(marble_runs / "cells.csv").query("task == 'gtzan'")
    ours, theirs = sorted(table["strategy"])
    assert ours == "30.2 s mean"
    assert theirs.startswith("30.2 s mean (marble")
    assert set(table["shared_settings"]) == {"epochs 3"}


@pytest.fixture(scope="module")
def late_run(tmp_path_factory):
    """Late fusion of a linear probe at two rates, three seeds."""
    folder = tmp_path_factory.mktemp("late")
    make_task(folder / "tones")
    args = ["--task=tones", "--seg=1", "--min_tail=0.5", "--fusion=late", "--probe=linear"]
    args += ["--lr", "1e-5", "1e-2", "--epochs=5", "--seeds", "1", "2", "3", *QUICK]
    done = run_probe(*args, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_late_fusion_is_scored_per_track(late_run):
    folder, done = late_run
    (made,) = (folder / "runs").iterdir()
    assert made.name == "tones-mel-layer-last-seg-1-mean-late-linear"
    result, table = result_of(made), table_of(made)
    assert (result["fusion"], result["probe"]) == ("late", "linear")
    assert len(table) == 3 * 6
    assert result["n_test_scored"] == 6
    assert result["chosen"]["lr"] == [0.01, 0.01, 0.01]
    assert "0.01, chosen on validation" in done.stdout
    assert {"seed1.w2", "seed1.b2"} <= load_file(made / "probe.safetensors").keys()


def test_late_fusion_has_no_embedding(late_run):
    folder, _ = late_run
    (made,) = (folder / "runs").iterdir()
    done = run(ROOT / "embed.py", "tones", "--from_run", made, "--out=x.npy", cwd=folder)
    assert done.returncode == 2
    assert "has no embedding of a track" in done.stderr


def test_ridge_is_the_same_for_every_seed(late_run):
    folder, _ = late_run
    args = ["--task=tones", "--seg=1", "--min_tail=0.5", "--probe=ridge", "--name=ridge"]
    done = run_probe(*args, "--seeds", "1", "2", "--output_dir=closed", *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    table = table_of(folder / "closed/ridge")
    one, two = (table[table.seed == seed].drop(columns="seed") for seed in (1, 2))
    assert (one.to_numpy() == two.to_numpy()).all()
    assert len(set(result_of(folder / "closed/ridge")["chosen"]["alpha"])) == 1
