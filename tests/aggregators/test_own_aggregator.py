"""Aggregators of one's own: FILE.py:NAME wherever an aggregator's name is taken."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT, make_task, run
from in_process import call
from safetensors.torch import load_file

import tune
from tune.aggregators.registry import aggregate_track, find_row, readable_name, split_name

TOKENS = torch.arange(12.0, dtype=torch.float64).view(4, 3) ** 2


def write(folder, body):
    """A file with an aggregator `mine`; its name as --agg takes it."""
    (folder / "own.py").write_text(f"import torch\n\n\ndef mine(tokens, mask):\n    {body}\n")
    return f"{folder / 'own.py'}:mine"


@pytest.mark.parametrize(
    "body", ["return tokens.sum(1)", "return tokens.sum(1), torch.ones(1, 3, dtype=torch.bool)"]
)
def test_a_tensor_or_a_pair_is_taken(tmp_path, body):
    out, valid, truncated = aggregate_track(write(tmp_path, body), TOKENS)
    assert torch.equal(out, TOKENS.sum(0))
    assert valid.tolist() == [True] * 3
    assert not truncated


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return tokens", r"--agg own-mine must make a tensor \(B, D'\) .*\(1, 4, 3\), got \(1, 4"),
        ("return 1.0", "got float"),
        ("return tokens.sum(1), mask", "its second value must be a mask"),
        ("return tokens.sum(1) / 0", r"values that are not finite for tokens \(1, 4, 3\)"),
    ],
)
def test_a_wrong_result_is_refused(tmp_path, body, message):
    with pytest.raises(ValueError, match=message):
        aggregate_track(write(tmp_path, body), TOKENS)


def test_what_is_no_function_is_refused(tmp_path):
    (tmp_path / "own.py").write_text("class Pool:\n    pass\n\n\nnumber = 3\n")
    with pytest.raises(ValueError, match=r"must be a function .* got the class Pool"):
        find_row(f"{tmp_path}/own.py:Pool")
    with pytest.raises(ValueError, match=r"must be a function .* got a int"):
        find_row(f"{tmp_path}/own.py:number")
    with pytest.raises(ValueError, match=r"--agg x/y.py:f: x/y.py can't be read: No such file"):
        find_row("x/y.py:f")


def test_an_installed_package_registers_one_by_name(tmp_path, monkeypatch):
    (tmp_path / "their_pooling.py").write_text(
        "def first(tokens, mask):\n    return tokens[:, 0]\n"
    )
    info = tmp_path / "their-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tune.aggregators]\nfirst = their_pooling:first\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert torch.equal(aggregate_track("first", TOKENS)[0], TOKENS[0])
    assert find_row("first").own.slug == "their_pooling-first"
    assert torch.equal(aggregate_track("their_pooling:first", TOKENS)[0], TOKENS[0])


def test_names_are_read():
    assert split_name("transformer:a/b") == ("transformer", "a/b")
    assert split_name("mine.py:f") == ("mine.py:f", None)
    assert readable_name("~/a folder/my pool.py:f") == "my-pool-f"
    with pytest.raises(ValueError, match="must be one of mean"):
        split_name("mean:x")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder outside the checkout with a task, the example as mine.py, and a run with it."""
    folder = tmp_path_factory.mktemp("study")
    make_task(folder / "tones")
    shutil.copy(ROOT / "examples" / "own_aggregator.py", folder / "mine.py")
    done = run(
        ROOT / "train_probe.py",
        "--task=tones",
        "--encoder=mel",
        "--seg=1",
        "--epochs=2",
        "--agg=mine.py:median_range",
        "--report_to=none",
        "--store=store",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


NAME = "tones-mel-layer-last-seg-1-mine-median_range"


def test_the_example_trains_a_probe_and_is_named_with_its_digest(study):
    result, config = (
        json.loads((study / "runs" / NAME / f"{stem}.json").read_text())
        for stem in ("result", "config")
    )
    digest = hashlib.sha256((study / "mine.py").read_bytes()).hexdigest()
    assert result["agg"] == "mine-median_range"
    assert result["aggregator"]["plugin"] == {"name": "mine.py:median_range", "sha256": digest}
    assert config["agg"] == f"{study / 'mine.py'}:median_range"
    assert config["agg_sha256"] == digest
    assert result["cost"]["embedding_dim"] == 2 * 256
    assert load_file(study / "runs" / NAME / "probe.safetensors")["seed1234.w1"].shape[0] == 512
    assert len((ROOT / "examples" / "own_aggregator.py").read_text().splitlines()) <= 15


def test_the_example_makes_embeddings_and_a_changed_file_is_refused(study, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    config = folder / "runs" / NAME / "config.json"
    config.write_text(config.read_text().replace(str(study), str(folder)))
    flags = ("--encoder=mel", "--seg=1", "--agg=mine.py:median_range")
    from_run = ("--from_run", f"runs/{NAME}")

    def embed(*flags, out="e.parquet"):
        return call("embed.py", "tones/audio", "--store=store", f"--out={out}", *flags, cwd=folder)

    assert embed(*flags).returncode == 0
    strategy = json.loads(pq.read_schema(folder / "e.parquet").metadata[b"tune"])["strategy"]
    assert strategy["agg"].endswith("/copy/mine.py:median_range")
    assert strategy["agg_sha256"] == hashlib.sha256((folder / "mine.py").read_bytes()).hexdigest()
    assert embed(*from_run, out="r.parquet").returncode == 0
    plain, like_run = (
        pq.read_table(folder / n)["embedding"].to_pylist() for n in ("e.parquet", "r.parquet")
    )
    assert plain == like_run
    first = sorted((folder / "tones" / "audio").glob("*.wav"))[0]
    alone = tune.embed(
        first,
        encoder="mel",
        seg=1,
        agg=f"{folder / 'mine.py'}:median_range",
        store=folder / "store",
    )
    np.testing.assert_array_equal(alone, np.float32(plain[0]))

    with open(folder / "mine.py", "a") as file:
        file.write("\n# changed\n")
    for done, message in (
        (embed(*from_run, out="again.parquet"), "has changed since"),
        (embed(*flags), "e.parquet was made with another version of"),
    ):
        assert message in done.stderr
        assert done.returncode == 2
    assert embed(*flags, "--overwrite").returncode == 0


def test_the_example_runs_in_a_sweep(study):
    sweep = {
        "program": "train_probe.py",
        "name": "own",
        "method": "grid",
        "parameters": {
            "task": {"value": "tones"},
            "encoder": {"value": "mel"},
            "epochs": {"value": 2},
            "seg": {"value": "1"},
            "agg": {"values": ["mean", "mine.py:median_range"]},
        },
    }
    (study / "s.yaml").write_text(yaml.safe_dump(sweep))
    done = run("-m", "tune.sweep", "s.yaml", "--report_to=none", "--store=store", cwd=study)
    assert done.returncode == 0, done.stderr
    names = sorted(p.parent.name for p in (study / "runs").glob("own-*/result.json"))
    assert [name.rpartition("-")[0] for name in names] == [
        "own-agg-mean",
        "own-agg-mine-median_range",
    ]


def test_costs_are_measured_of_it(study):
    done = call(
        "profile.py",
        "--agg",
        "mine.py:median_range",
        "--encoder=mel",
        "--seg=1",
        "--duration=2",
        "--repeats=1",
        "--out=costs.json",
        cwd=study,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((study / "costs.json").read_text())["rows"]
    assert (row["agg"], row["embedding_dim"]) == ("mine-median_range", 512)
    assert row["plugin"]["name"] == "mine.py:median_range"
