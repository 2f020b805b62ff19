"""compare.py --stability: against the definition, from real runs on tones."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import tone
from in_process import call
from safetensors.torch import load_file

from tune.audio.decode import read_audio
from tune.comparison.configurations import merge
from tune.comparison.stability import CHANGES
from tune.embeddings.embedder import embed
from tune.embeddings.stability import _changed, stabilities
from tune.runs.load import read_folders

FLAGS = ["--task", "music.csv", "--encoder", "mel", "--seg", "1", "--epochs", "4"]
FLAGS += ["--seeds", "1", "2", "--report_to", "none", "--store", "store"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tones of two classes, a run of the mean and one of whitened embeddings."""
    root = tmp_path_factory.mktemp("stability")
    rng = np.random.default_rng(0)
    lines = ["path,label,split"]
    for i in range(18):
        hz = 440 + 60 * (i % 2) + rng.normal(0, 60)
        soundfile.write(root / f"{i}.wav", tone(2.1, hz, noise=0.1, seed=i), 24_000)
        lines.append(f"{root / f'{i}.wav'},{'lh'[i % 2]},{('train', 'val', 'test')[i // 6]}")
    (root / "music.csv").write_text("\n".join(lines))
    for agg in ("mean", "whitened"):
        found = call("train_probe.py", *FLAGS, "--agg", agg, "--name", agg, cwd=root)
        assert found.returncode == 0, found.stderr
    return root


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def configurations(folder):
    return {c.result["agg"]: c for c in merge(read_folders([folder / "runs"])[0])[0]}


def test_it_is_what_it_says(folder, tmp_path):
    """Embeddings by `embed`, probes by hand, for the mean."""
    found, reasons = stabilities([configurations(folder)["mean"]], 3)
    (got,) = found.values()
    assert reasons == []
    assert got.n_tracks == 3
    chosen = np.random.default_rng(0).permutation(6)[:3]
    every = sorted(str(folder / f"{i}.wav") for i in range(12, 18))
    paths = [every[i] for i in sorted(chosen)]
    made: dict = {}
    changed = {path: _changed(path, "mix", tmp_path, made) for path in paths}
    settings = {"seg": 1, "encoder": "mel", "store": tmp_path / "store"}
    before = embed(paths, **settings).astype(float)
    saved = load_file(folder / "runs" / "mean" / "probe.safetensors")

    def decide(x):
        x = (torch.from_numpy(x) - saved["standardise.mean"]) * saved["standardise.scale"]
        outputs = []
        for seed in (1, 2):
            w1, b1, w2, b2 = (saved[f"seed{seed}.{k}"].double() for k in ("w1", "b1", "w2", "b2"))
            outputs.append(((x @ w1 + b1).clamp(min=0) @ w2 + b2).argmax(-1))
        return torch.stack(outputs, 1).numpy()

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    spread = np.mean([1 - cosine(before[i], before[j]) for i in range(3) for j in range(i)])
    for change in CHANGES:
        after = embed([changed[path][change] for path in paths], **settings).astype(float)
        way = np.mean([1 - cosine(a, b) for a, b in zip(before, after, strict=True)])
        assert got.moved[change] == pytest.approx(way / spread, rel=1e-4)
        assert got.flips[change] == pytest.approx((decide(before) != decide(after)).mean())


def test_changes_are_what_their_names_say(folder, tmp_path):
    path = str(folder / "12.wav")
    samples = read_audio(path, 24_000)
    files = _changed(path, "mix", tmp_path, {})
    read = {change: read_audio(file, 24_000) for change, file in files.items()}
    assert set(read) == set(CHANGES)
    for change, seconds in (("0.15 s lead-in", 0.15), ("0.7 s lead-in", 0.7), ("2 s lead-in", 2.0)):
        n = round(seconds * 24_000)
        assert not read[change][:n].any()
        np.testing.assert_allclose(read[change][n:], samples, atol=1e-4)
    np.testing.assert_allclose(read["-6 dB"], samples * 10 ** (-6 / 20), atol=1e-4)
    noise = (read["noise 20 dB below"] - samples)[abs(samples) < 0.5]  # where nothing is clipped
    assert 10 * np.log10((samples**2).mean() / (noise**2).mean()) == pytest.approx(20, abs=0.2)
    assert files["mp3 at 128 kbit/s"].endswith(".mp3")
    assert abs(len(read["mp3 at 128 kbit/s"]) - len(samples)) < 3000


def test_it_is_a_column_and_reasons_are_said(folder, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(folder / "runs", runs)
    late = runs / "late"
    shutil.copytree(runs / "mean", late)
    result = json.loads((late / "result.json").read_text()) | {"fusion": "late"}
    (late / "result.json").write_text(json.dumps(result))
    flags = ["--stability", "2", "--csv", tmp_path / "cells.csv", "--html", tmp_path / "r.html"]
    found = call("compare.py", runs, *flags, "--baseline", "1:mean", cwd=folder)
    assert found.returncode == 0, found.stderr
    assert "moved, flips" in found.stdout
    assert "mel, all: epochs 4" in found.stdout  # once, instead of in every name
    assert "stability: how far the embedding moves" in " ".join(found.stdout.split())
    assert "no stability of mel 1 s mean (late fusion): " in found.stderr
    table = pd.read_csv(tmp_path / "cells.csv").set_index("strategy")
    assert set(table["shared_settings"]) == {"epochs 4"}
    moved = table[[f"moved, {change}" for change in CHANGES]]
    assert moved.loc[["1 s mean", "1 s whitened"]].notna().all(axis=None)
    assert moved.loc["1 s mean (late fusion)"].isna().all()
    assert "moved, flips" in (tmp_path / "r.html").read_text()


def test_code_of_ones_own_is_not_run(folder):
    configuration = configurations(folder)["mean"]
    configuration.runs[0].config["agg"] = "mine.py:own"
    found, (reason,) = stabilities([configuration], 2)
    assert found == {}
    assert "mine.py:own is code of one's own" in reason
