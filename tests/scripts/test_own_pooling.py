"""examples/own_pooling.py, an aggregator that learns, used from a folder outside the checkout."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, make_task, run
from in_process import call
from safetensors.torch import load_file

from tune.aggregators.registry import find_row

SPEC = "own_pooling.py:Gated"
COMMON = ("--encoder=mel", "--seg=1", "--store=store")
PROBE = ("--task=tones", *COMMON, "--epochs=2", "--report_to=none")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the example, a small task and a run of two seeds."""
    folder = tmp_path_factory.mktemp("pooling")
    shutil.copy(ROOT / "examples" / "own_pooling.py", folder)
    make_task(folder / "tones")
    flags = ("--agg", SPEC, "--seeds", "1", "2", "--name=run")
    done = call("train_probe.py", *PROBE, *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_one_a_seed_learns_and_is_saved(home):
    result, config = (
        json.loads((home / "runs" / "run" / f"{s}.json").read_text()) for s in ("result", "config")
    )
    sha256 = config["agg_sha256"]
    assert result["aggregator"]["plugin"] == {"name": SPEC, "sha256": sha256}
    assert result["aggregator"]["parameters_learned_with_probe"] == 257
    saved = load_file(home / "runs" / "run" / "probe.safetensors")
    one, two = (saved[f"seed{seed}.joiner.module.gate.weight"] for seed in (1, 2))
    assert one.shape == (1, 256)
    assert not torch.equal(one, two)
    text = (ROOT / "examples" / "own_pooling.py").read_text().split('"""', 2)[2]
    assert len(text.splitlines()) < 20


def test_a_seed_gives_the_same_alone(home):
    flags = ("--agg", SPEC, "--seeds", "2", "--name=alone")
    assert call("train_probe.py", *PROBE, *flags, cwd=home).returncode == 0
    both, alone = (load_file(home / "runs" / n / "probe.safetensors") for n in ("run", "alone"))
    for name, value in alone.items():
        assert torch.equal(value, both[name]), name


def test_embeddings_are_those_of_the_run(home):
    flags = ("--from_run=runs/run", "--encoder=mel", "--store=store", "--run_seed=2")
    done = call("embed.py", "tones/audio", *flags, "--out=e.parquet", cwd=home)
    assert done.returncode == 0, done.stderr
    got = np.array(pq.read_table(home / "e.parquet")["embedding"].to_pylist())
    flags = ("tones/audio", *COMMON, "--segments=s.parquet", "--out=m.parquet")
    assert call("embed.py", *flags, cwd=home).returncode == 0
    table = pq.read_table(home / "s.parquet")
    tokens, paths = np.array(table["embedding"].to_pylist()), np.array(table["path"])
    saved = load_file(home / "runs" / "run" / "probe.safetensors")
    gate = {k: saved[f"seed2.joiner.module.gate.{k}"].numpy() for k in ("weight", "bias")}
    mean, scale = (saved[f"standardise.{k}"].numpy() for k in ("mean", "scale"))
    for path, embedding in zip(pq.read_table(home / "e.parquet")["path"], got, strict=True):
        x = (tokens[paths == path.as_py()] - mean) * scale
        weight = 1 / (1 + np.exp(-(x @ gate["weight"].T + gate["bias"])))
        np.testing.assert_allclose(embedding, (x * weight).sum(0) / weight.sum(), atol=1e-5)
    done = call("embed.py", "tones/audio", *COMMON, "--agg", SPEC, "--out=x.parquet", cwd=home)
    assert "is learned with a probe: train one with train_probe.py" in done.stderr


def test_layers_are_mixed_in_front_of_it_and_costs_are_measured(home):
    flags = ("--agg", SPEC, "--layer=mix", "--encoder=muq-nano", "--name=mix")
    done = call("train_probe.py", *PROBE, *flags, cwd=home)
    assert done.returncode == 0, done.stderr
    views = json.loads((home / "runs" / "mix" / "result.json").read_text())["aggregator"]
    assert len(views["view_weights"]["1234"]) == len(views["views"]) > 1
    flags = ("--encoder=mel", "--seg=1", "--duration=2", "--repeats=1", "--out=costs.json")
    done = call("profile.py", "--agg", SPEC, *flags, cwd=home)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((home / "costs.json").read_text())["rows"]
    assert (row["agg"], row["embedding_dim"]) == ("own_pooling-Gated", 256)
    assert row["aggregator_parameters"] == 257


def test_a_sweep(home):
    (home / "s.yaml").write_text(
        "program: train_probe.py\nname: own\nmethod: grid\nparameters:\n"
        f'  agg: {{values: [mean, "{SPEC}"]}}\n'
    )
    done = run("-m", "tune.sweep", "s.yaml", *PROBE, cwd=home)
    assert done.returncode == 0, done.stderr
    results = [json.loads(p.read_text()) for p in (home / "runs").glob("own-*/result.json")]
    assert {r["agg"] for r in results} == {"mean", "own_pooling-Gated"}


HEAD = "import torch\n\n\nclass Mine(torch.nn.Module):\n"
INIT = "    def __init__(self, d):\n        super().__init__()\n"
FORWARD = "    def forward(self, x, mask):\n        return "


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (FORWARD + "x.sum(1)", "can't be made for tokens of 8"),
        (INIT + FORWARD + "x.mean(1)", "is changed by padding"),
        (INIT + FORWARD + "x", r"must make a tensor \(B, D'\) of tokens \(2, 5, 8\), got \(2, 5"),
        (INIT + FORWARD + "x.sum(1) / 0", "gives values that are not finite"),
        (INIT + "        self.drop = torch.nn.Dropout(0.1)", "holds a Dropout"),
        (INIT + "        self.norm = torch.nn.BatchNorm1d(d)", "holds a BatchNorm1d"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, body, message):
    (tmp_path / "own.py").write_text(HEAD + body + "\n")
    row = find_row(f"{tmp_path}/own.py:Mine")
    with pytest.raises(ValueError, match=f"own.py:Mine {message}"):
        row.pooling()(8, torch.float64, generator=torch.Generator())
