"""train_probe.py as its users run it: real subprocesses on small tasks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import ROOT, make_task, run, run_probe, tone
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, f1_score, r2_score
from wandb_file import read_run

from tune.runs import result as results
from tune.segments.rules import parse_rule
from tune.store.encode import EncodeReport


def result_of(folder):
    """Read a run's result.json."""
    return json.loads((folder / "result.json").read_text())


def rows_of(store):
    """Every row file of a store with its tokens."""
    return {str(p.relative_to(store)): load_file(p)["tokens"] for p in store.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def classes_run(tmp_path_factory):
    """One classification run with three seeds through `accelerate launch`, tracked offline."""
    folder = tmp_path_factory.mktemp("classes")
    task = make_task(folder / "tones")
    env = {"WANDB_DIR": str(folder)}
    done = run(
        "-m",
        "accelerate.commands.launch",
        ROOT / "train_probe.py",
        "--task",
        task,
        "--encoder=muq-nano",
        "--seg=1",
        "--min_tail=0.5",
        "--agg=mean",
        "--layer=all",
        "--seeds=[1234, 1235, 1236]",
        "--epochs=6",
        "--store",
        folder / "store",
        "--name=first",
        "--group=a-group",
        "--tags",
        "one",
        "two",
        cwd=folder,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_run_prints_a_table_and_where_to_look(classes_run):
    _, done = classes_run
    out = done.stdout
    assert "epoch   1/6" in out
    assert "muq-nano" in out
    assert "untrained" not in out
    assert "95 % interval over tracks" in out
    assert "8 train, 4 val, 6 test" in out
    assert "wandb leet wandb/offline-run-" in out
    assert "wandb sync wandb/offline-run-" in out
    widths = {len(line) for line in out.splitlines() if line.startswith("epoch ")}
    assert len(widths) == 1  # aligned


def test_result_json_holds_what_the_contract_promises(classes_run):
    folder, _ = classes_run
    result = result_of(folder / "runs" / "first")
    for key in (
        "task",
        "encoder",
        "layer",
        "seg",
        "agg",
        "tokens",
        "seeds",
        "precision",
        "device",
        "versions",
        "git_sha",
        "segments_per_track",
        "n_tracks",
        "skipped",
        "metrics",
        "cost",
    ):
        assert key in result
    for key in (
        "encode_seconds",
        "audio_seconds",
        "peak_memory_bytes",
        "store_bytes",
        "embedding_dim",
        "probe_seconds",
        "encoder_passes",
    ):
        assert result["cost"][key] > 0
    assert result["n_tracks"] == {"train": 8, "val": 4, "test": 6}
    assert result["segments_per_track"] == {"min": 2, "median": 3.0, "max": 3}
    assert result["cost"]["encoder_passes"] == 6 * 3 + 6 * 2 + 6 * 3  # 2.57, 2.94 and 2.2 s
    assert result["seeds"] == [1234, 1235, 1236]
    assert set(result["layer_scores"]) == {"0", "1", "2", "3", "4"}
    best = max(result["layer_scores"], key=result["layer_scores"].get)
    assert result["layer"] == int(best)
    assert result["degenerate"] is None
    assert result["encoder_untrained"] is False


def test_metrics_follow_from_the_predictions(classes_run):
    folder, _ = classes_run
    result = result_of(folder / "runs" / "first")
    table = pq.read_table(folder / "runs" / "first" / "predictions.parquet").to_pandas()
    assert len(table) == 3 * 6
    expected = [accuracy_score(t.label, t.prediction) for _, t in table.groupby("seed")]
    assert result["metrics"]["accuracy"]["per_seed"] == pytest.approx(expected)
    assert result["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(expected))
    assert result["metrics"]["accuracy"]["std"] == pytest.approx(np.std(expected, ddof=1))
    f1 = [f1_score(t.label, t.prediction, average="macro") for _, t in table.groupby("seed")]
    assert result["metrics"]["macro_f1"]["per_seed"] == pytest.approx(f1)
    assert (table[["p_high", "p_low"]].to_numpy().argmax(1) == (table.prediction == "low")).all()
    assert result["metrics"]["accuracy"]["mean"] == 1.0  # low and high tones are easily told apart


def test_the_saved_probe_gives_the_saved_predictions(classes_run):
    folder, _ = classes_run
    run_folder = folder / "runs" / "first"
    result = result_of(run_folder)
    probe = load_file(run_folder / "probe.safetensors")
    rows = rows_of(folder / "store")
    table = pq.read_table(run_folder / "predictions.parquet").to_pandas()
    table = table[table.seed == 1235].set_index("id")
    from tune.audio.hashing import content_hash

    for name, line in table.iterrows():
        content = content_hash(folder / "tones" / name)
        tokens = next(v for k, v in rows.items() if content in k)[:, result["layer"]]
        x = (tokens.astype(np.float64).mean(0) - probe["standardise.mean"]) * probe[
            "standardise.scale"
        ]
        hidden = np.maximum(x @ probe["seed1235.w1"] + probe["seed1235.b1"], 0)
        logits = (hidden @ probe["seed1235.w2"] + probe["seed1235.b2"])[0]
        assert logits.argmax() == ("high", "low").index(line.prediction)
        p = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(p, [line.p_high, line.p_low], atol=1e-9)


def test_the_offline_wandb_run_is_complete(classes_run):
    folder, _ = classes_run
    (run_folder,) = (folder / "wandb").glob("offline-run-*")
    record = read_run(run_folder)
    config, summary = record["config"], record["summary"]
    result = result_of(folder / "runs" / "first")
    assert config["seg"] == "1"
    assert config["agg"] == "mean"
    assert config["seeds"] == [1234, 1235, 1236]
    assert config["encoder"] == "muq-nano"
    assert config.get("git_sha") == result["git_sha"]  # nothing null is sent
    assert config["versions"]["torch"] == result["versions"]["torch"]
    assert record["run"].run_group == "a-group"
    assert record["run"].display_name == "first"
    assert record["run"].project == "tune"
    assert {"one", "two", "mean", "muq-nano"} <= set(record["run"].tags)
    epochs = [row for row in record["history"] if "train/loss" in row]
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4, 5, 6]
    assert all({"val/accuracy", "val/loss", "lr"} <= row.keys() for row in epochs)
    assert summary["test/accuracy"] == result["metrics"]["accuracy"]["mean"]
    assert summary["cost/encoder_passes"] == result["cost"]["encoder_passes"]
    assert summary["cost/peak_memory_bytes"] == result["cost"]["peak_memory_bytes"]
    assert summary["predictions/nrows"] == 18
    assert summary["n_tracks"] == {"train": 8, "val": 4, "test": 6}
    assert record["exit_code"] == 0


@pytest.mark.slow
def test_another_aggregator_encodes_nothing_and_a_long_segment_is_marked(classes_run):
    folder, _ = classes_run
    common = [
        "--task",
        folder / "tones",
        "--encoder=muq-nano",
        "--layer=2",
        "--report_to=none",
        "--epochs=3",
        "--store",
        folder / "store",
        "--min_tail=0.5",
    ]
    done = run_probe(*common, "--seg=1", "--agg=concat", "--name=second", cwd=folder)
    assert done.returncode == 0, done.stderr
    second = result_of(folder / "runs" / "second")
    assert second["cost"]["encoder_passes"] == 0
    assert second["cost"]["encode_seconds_stored"] > 0
    assert second["cost"]["embedding_dim"] == 3 * 192 + 3  # three tokens and their mask
    assert "0 passes: everything was in the store" in done.stdout
    done = run_probe(*common, "--seg=full", "--agg=max", "--name=third", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert result_of(folder / "runs" / "third")["cost"]["encoder_passes"] == 18
    done = run_probe(*common, "--seg=60", "--agg=max", "--name=fourth", cwd=folder)
    fourth = result_of(folder / "runs" / "fourth")
    assert fourth["cost"]["encoder_passes"] == 0
    assert fourth["degenerate"] == "equals full"
    assert "degenerate: equals full" in done.stdout
    assert fourth["metrics"] == result_of(folder / "runs" / "third")["metrics"]


@pytest.mark.slow
def test_frames_as_tokens_and_numbers_as_labels(tmp_path):
    task = make_task(tmp_path / "tones", numbers=True, n=(12, 5, 8))
    done = run_probe(
        "--task",
        task,
        "--encoder=muq-nano",
        "--seg=1",
        "--tokens=frame",
        "--frame_rate=5",
        "--agg=stats",
        "--seeds",
        "1",
        "2",
        "--epochs=30",
        "--report_to=none",
        "--name=r",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "runs" / "r")
    assert result["kind"] == "numbers"
    assert result["tokens"] == "frame at 5 Hz"
    assert result["targets"] == ["target_0", "target_1"]
    table = pq.read_table(tmp_path / "runs" / "r" / "predictions.parquet").to_pandas()
    for t, name in enumerate(result["targets"]):
        expected = [
            r2_score(rows[f"label_{name}"], rows[f"prediction_{name}"])
            for _, rows in table.groupby("seed")
        ]
        assert result["metrics"][f"r2_{name}"]["per_seed"] == pytest.approx(expected), t
    assert result["metrics"]["r2_target_0"]["mean"] > 0.5  # pitch is plain to hear
    # Guessing the training mean has an R² of at most 0.
    assert result["chance"]["r2"] <= 0


@pytest.mark.slow
def test_two_processes_give_the_rows_and_metrics_of_one(tmp_path):
    task = make_task(tmp_path / "tones", n=(9, 5, 7))
    flags = [
        "--task",
        task,
        "--encoder=muq-nano",
        "--seg=1",
        "--agg=concat",
        "--layer=all",
        "--seeds",
        "1",
        "2",
        "--epochs=5",
        "--batch_size=4",
        "--report_to=none",
    ]
    one = run_probe(*flags, "--name=one", "--store", tmp_path / "s1", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two = run(
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=0",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
        ROOT / "train_probe.py",
        *flags,
        "--name=two",
        "--store",
        tmp_path / "s2",
        cwd=tmp_path,
        env={"ACCELERATE_USE_CPU": "true"},
    )
    assert two.returncode == 0, two.stderr
    config = json.loads((tmp_path / "runs" / "two" / "config.json").read_text())
    assert config["n_processes"] == 2
    a, b = rows_of(tmp_path / "s1"), rows_of(tmp_path / "s2")
    assert a.keys() == b.keys()
    assert len(a) == 21
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-6, err_msg=name)
    first, second = (result_of(tmp_path / "runs" / n) for n in ("one", "two"))
    for key in ("layer", "layer_scores", "segments_per_track", "n_tracks", "best_epochs"):
        assert first[key] == second[key], key
    assert first["metrics"] == second["metrics"]
    assert first["cost"]["encoder_passes"] == second["cost"]["encoder_passes"]
    p, q = (
        pq.read_table(tmp_path / "runs" / n / "predictions.parquet").to_pandas()
        for n in ("one", "two")
    )
    np.testing.assert_allclose(p[["p_high", "p_low"]], q[["p_high", "p_low"]], atol=1e-6)


@pytest.fixture(scope="module")
def attention_run(tmp_path_factory):
    """One run with attention over segments and tails; its task, flags and folder."""
    folder = tmp_path_factory.mktemp("attention")
    task = make_task(folder / "tones", n=(9, 5, 7))
    flags = [
        "--task",
        task,
        "--encoder=mel",
        "--seg=1",
        "--min_tail=0.5",
        "--agg=attention",
        "--seeds",
        "1",
        "2",
        "--epochs=6",
        "--batch_size=4",
        "--report_to=none",
        "--store",
        folder / "store",
    ]
    done = run_probe(*flags, "--name=one", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, flags, done


def test_attention_leaves_its_weights(attention_run):
    folder, _, done = attention_run
    result = result_of(folder / "runs" / "one")
    learnt = 2 * 256 * 32 + 32 * 4
    assert result["aggregator"]["parameters_learned_with_probe"] == learnt
    assert f"{learnt:,} parameters in front of each probe" in done.stdout
    assert result["cost"]["embedding_dim"] == 256
    table = pq.read_table(folder / "runs" / "one" / "attention.parquet").to_pandas()
    predictions = pq.read_table(folder / "runs" / "one" / "predictions.parquet").to_pandas()
    assert sorted(set(table.id)) == sorted(set(predictions.id))
    assert table.groupby(["seed", "id"]).ngroups == 2 * 7
    for (_, name), rows in table.groupby(["seed", "id"]):
        for column in ("weight", "head_0", "head_1", "head_2", "head_3"):
            assert rows[column].sum() == pytest.approx(1)
        seconds = soundfile.info(folder / "tones" / name).duration
        dropped = seconds % 1 if seconds % 1 < 0.5 else 0
        assert rows.token.tolist() == list(range(len(rows)))
        assert rows.start_s.tolist() == [0, *rows.end_s[:-1]]
        assert rows.end_s.iloc[-1] == pytest.approx(seconds - dropped, abs=1e-4)
    assert table.weight.std() > 1e-4  # something was learned
    assert len(set(table[table.token == 0].weight.round(9))) > 7  # by each seed for itself


def test_two_machines_learn_the_attention_of_one(attention_run):
    """Two torchruns stand in for two machines: folders of their own, one store, one network."""
    folder, flags, _ = attention_run
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank in (0, 1):
        (folder / f"machine{rank}").mkdir()
        machines.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nnodes=2",
                    f"--node_rank={rank}",
                    "--nproc_per_node=1",
                    "--master_addr=127.0.0.1",
                    f"--master_port={port}",
                    ROOT / "train_probe.py",
                    *map(str, flags),
                    "--name=two",
                ],
                cwd=folder / f"machine{rank}",
                env={**os.environ, "ACCELERATE_USE_CPU": "true"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert not (folder / "machine1" / "runs").exists()  # the first one writes the result
    assert "two/result.json" in said[0][0]
    assert "result.json" not in said[1][0]
    (folder / "machine0" / "runs" / "two").rename(folder / "runs" / "two")
    config = json.loads((folder / "runs" / "two" / "config.json").read_text())
    assert config["n_processes"] == 2
    for name in ("attention", "predictions"):
        a, b = (
            pq.read_table(folder / "runs" / n / f"{name}.parquet").to_pandas()
            for n in ("one", "two")
        )
        assert a.columns.tolist() == b.columns.tolist()
        for column in a:
            if a[column].dtype == float:
                np.testing.assert_allclose(a[column], b[column], atol=1e-9, err_msg=column)
            else:
                assert a[column].tolist() == b[column].tolist()


@pytest.mark.slow
def test_hierarchical_mixes_all_scales_and_layers_and_costs_their_sum(tmp_path):
    task = make_task(tmp_path / "tones")
    done = run_probe(
        "--task",
        task,
        "--encoder=muq-nano",
        "--seg=[1,2,full]",
        "--agg=hierarchical",
        "--layer=mix",
        "--min_tail=0.5",
        "--seeds",
        "5",
        "6",
        "--epochs=6",
        "--report_to=none",
        "--store",
        tmp_path / "store",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "tones-muq-nano-layer-mix-seg-1+2+full-hierarchical"
    result = result_of(folder)
    assert (result["seg"], result["agg"], result["layer"]) == ("1+2+full", "hierarchical", "mix")
    assert result["degenerate"] is None
    # Six tracks each of 2.57, 2.94 and 2.2 s: 3, 3 and 2 pieces of 1 s, 2, 2 and 1 of 2 s.
    assert result["cost"]["encoder_passes"] == 6 * (3 + 3 + 2) + 6 * (2 + 2 + 1) + 6 * 3
    assert result["cost"]["audio_seconds"] == pytest.approx(
        3 * 6 * (2.57 + 2.94 + 2.2) - 2 * 6 * 0.2
    )
    assert result["segments_per_track"] == {"min": 4, "median": 6.0, "max": 6}
    files = list((tmp_path / "store").rglob("*.safetensors"))
    assert len(files) == 3 * 18
    assert result["cost"]["store_bytes"] == sum(file.stat().st_size for file in files)
    assert result["cost"]["embedding_dim"] == 192
    aggregator = result["aggregator"]
    assert aggregator["parameters_learned_with_probe"] == 15
    assert aggregator["views"] == [
        f"layer {k}, {scale}" for k in range(5) for scale in ("1 s", "2 s", "full")
    ]
    assert list(aggregator["view_weights"]) == ["5", "6"]
    for weights in aggregator["view_weights"].values():
        assert sum(weights) == pytest.approx(1)
        assert max(weights) > 1.05 / 15  # something was learned
    assert not (folder / "attention.parquet").exists()


@pytest.mark.parametrize(
    ("segs", "degenerate"),
    [
        (["20", "full"], "equals full"),
        (["20", "30"], "equals full"),
        (["1", "full"], None),
        (["20"], "equals full"),
        (["full"], None),
        (["1", "20", "full"], None),
    ],
)
def test_scales_that_are_all_the_full_track_are_marked(segs, degenerate):
    rules = [parse_rule(seg) for seg in segs]
    splits = {s: {"path": [f"{s}{i}" for i in range(2)]} for s in ("train", "val", "test")}
    paths = [path for split in splits.values() for path in split["path"]]
    reports = [
        EncodeReport(
            rows={path: (path, rule.spans(250, 100)) for path in paths},
            encoder_passes=i + 1,
            encoded_tracks=6,
            encode_seconds=0.5,
            audio_seconds=15.0,
            stored_seconds=2.0,
            silent=["val0"],
            skipped=[{"path": "gone", "reason": "empty"}],
        )
        for i, rule in enumerate(rules)
    ]
    config = dict.fromkeys(("precision", "device", "versions", "git_sha", "command"))
    outcome = dict.fromkeys(
        (
            "layer",
            "layer_scores",
            "aggregator",
            "best_epochs",
            "tested_epochs",
            "chosen",
            "metrics",
            "chance",
            "embedding_dim",
            "n_test_scored",
            "tags_left_out",
            "unknown_tags",
        )
    )
    config |= {"layer": "last", "agg": "hierarchical", "seeds": [1]}
    extractor = SimpleNamespace(
        encoder=SimpleNamespace(
            name="mel", untrained=False, device=torch.device("cpu"), revision=None, licence=None
        ),
        channels="mix",
        rules=rules,
        collection=SimpleNamespace(
            key={"tokens": "segment"}, bytes_of=lambda content, spans: len(spans)
        ),
    )
    got = results.assemble(
        SimpleNamespace(
            name="t",
            kind="classes",
            classes=[],
            targets=[],
            splits=splits,
            skipped=[],
            folds=[],
            record={},
            data_revision=None,
            partial={},
        ),
        extractor,
        reports,
        outcome,
        config,
        truncated=0,
        probe_seconds=0.1,
    )
    assert (got["seg"], got["degenerate"]) == ("+".join(segs), degenerate)
    pieces = sum(len(rule.spans(250, 100)) for rule in rules)
    assert got["segments_per_track"] == {"min": pieces, "median": pieces, "max": pieces}
    n, cost = len(segs), got["cost"]
    distinct = {tuple(rule.spans(250, 100)) for rule in rules}  # alike, they share a row
    assert cost["store_bytes"] == 6 * sum(map(len, distinct))
    assert cost["encoder_passes"] == sum(range(n + 1))
    assert (cost["audio_seconds"], cost["encode_seconds"]) == (15 * n, 0.5 * n)
    assert cost["encode_seconds_stored"] == 2 * n
    # A track that can't be used, or is silent, is one track at all scales.
    assert got["skipped"] == [{"where": "gone", "reason": "empty"}]
    assert got["silent"] == ["val0"]


@pytest.mark.slow
def test_the_saved_mix_and_probe_give_the_saved_predictions(classes_run):
    folder, _ = classes_run
    done = run_probe(
        "--task",
        folder / "tones",
        "--encoder=muq-nano",
        "--seg=1",
        "--min_tail=0.5",
        "--layer=mix",
        "--agg=duration_mean",
        "--seeds",
        "7",
        "8",
        "--epochs=6",
        "--report_to=none",
        "--store",
        folder / "store",
        "--name=mix",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    result = result_of(folder / "runs" / "mix")
    assert result["cost"]["encoder_passes"] == 0  # a mix needs what --layer all has stored
    assert result["layer"] == result["layer_asked"] == "mix"
    assert set(result["layer_scores"]) == {"mix"}
    assert "mix of all layers" in done.stdout
    probe = load_file(folder / "runs" / "mix" / "probe.safetensors")
    weights = np.exp(probe["seed8.joiner.scores"])
    weights /= weights.sum()
    np.testing.assert_allclose(weights, result["aggregator"]["view_weights"]["8"])
    assert weights.std() > 1e-3
    rows = {key: tokens for key, tokens in rows_of(folder / "store").items() if "layers-all" in key}
    table = pq.read_table(folder / "runs" / "mix" / "predictions.parquet").to_pandas()
    from tune.audio.hashing import content_hash

    for line in table[table.seed == 8].itertuples():
        content = content_hash(folder / "tones" / line.id)
        (tokens,) = (v for k, v in rows.items() if content in k)  # (N, L, D)
        seconds = np.ones(len(tokens))
        length = soundfile.info(folder / "tones" / line.id).duration
        seconds[-1] = min(1, length - len(tokens) + 1)
        layers = np.average(tokens.astype(np.float64), 0, seconds)  # (L, D)
        layers = (layers - probe["standardise.mean"]) * probe["standardise.scale"]
        hidden = np.maximum(weights @ layers @ probe["seed8.w1"] + probe["seed8.b1"], 0)
        logits = (hidden @ probe["seed8.w2"] + probe["seed8.b2"])[0]
        p = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(p, [line.p_high, line.p_low], atol=1e-9)


@pytest.mark.slow
def test_transformer_from_scratch_is_trained_with_the_probe(tmp_path):
    task = make_task(tmp_path / "tones")
    done = run_probe(
        "--task",
        task,
        "--encoder=muq-nano",
        "--seg=1",
        "--agg=transformer",
        "--tune_aggregator",
        "--readout=cls",
        "--epochs=2",
        "--seeds",
        "1",
        "2",
        "--report_to=none",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-transformer-tuned")
    result = result_of(folder)
    aggregator = result["aggregator"]
    assert aggregator["parameters_learned_with_probe"] > 100_000
    assert (aggregator["tuned"], aggregator["readout"]) == (True, "cls")
    assert aggregator["checkpoint"] is None
    assert result["cost"]["embedding_dim"] == 192
    saved = load_file(folder / "probe.safetensors")
    one, two = (saved[f"seed{seed}.joiner.model.cls"] for seed in (1, 2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--agg=hierarchical"], "--agg hierarchical needs several --seg, such as 10 30 full"),
        (["--agg=hierarchical", "--seg", "10", "10"], "--agg hierarchical needs several --seg"),
        (["--agg=mean", "--seg", "10", "full"], "several --seg need --agg hierarchical, got"),
        (["--agg=attention", "--seg=[10,full]"], "several --seg need --agg hierarchical, got"),
        (["--agg=hierarchical", "--seg", "10", "ten"], "a segment is a number of seconds"),
        (["--readout=cls"], "--readout belongs to --agg transformer, got --agg mean"),
        (
            ["--agg=attention", "--tune_aggregator"],
            "--tune_aggregator belongs to --agg transformer",
        ),
        (["--agg=max", "--aggregator_checkpoint=x"], "--aggregator_checkpoint belongs to --agg tr"),
        (["--agg=transformer"], "--agg transformer needs --aggregator_checkpoint (pretrain_aggreg"),
        (
            ["--agg=transformer", "--tune_aggregator", "--layer=mix"],
            "a Transformer joins one layer",
        ),
        (["--agg=attention", "--aggregator_lr=0"], "expected a number above 0"),
    ],
)
def test_flags_that_do_not_belong_together_end_in_one_line(tmp_path, flags, message):
    done = run_probe(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_while_encoding_it_goes_on_and_the_result_is_that_of_an_undisturbed_run(tmp_path):
    task = make_task(tmp_path / "tones", seconds=50, n=(8, 5, 6))
    flags = ["--task", task, "--encoder=muq-nano", "--seg=10", "--epochs=4", "--report_to=none"]
    store = tmp_path / "killed"
    victim = subprocess.Popen(
        [sys.executable, ROOT / "train_probe.py", *flags, "--store", store, "--name=killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(store.glob("muq-nano-*/*/*/*.safetensors"))) < 3:
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    saved = rows_of(store)
    assert 3 <= len(saved) < 19
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
    done = run_probe(*flags, "--store", store, "--name=resumed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    resumed = result_of(tmp_path / "runs" / "resumed")
    assert resumed["cost"]["encoded_tracks"] == 19 - len(saved)
    done = run_probe(*flags, "--store", tmp_path / "calm", "--name=calm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    calm = result_of(tmp_path / "runs" / "calm")
    assert calm["cost"]["encoded_tracks"] == 19
    assert resumed["metrics"] == calm["metrics"]
    a, b = rows_of(store), rows_of(tmp_path / "calm")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_two_agents_on_one_store_encode_each_segment_once(tmp_path):
    task = make_task(tmp_path / "tones", seconds=30, n=(8, 4, 5))
    agents = [
        subprocess.Popen(
            [
                sys.executable,
                ROOT / "train_probe.py",
                "--task",
                task,
                "--encoder=muq-nano",
                "--seg=10",
                f"--agg={agg}",
                "--epochs=2",
                "--report_to=none",
                f"--name={agg}",
                "--store",
                tmp_path / "store",
            ],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for agg in ("mean", "max")
    ]
    for agent in agents:
        _, stderr = agent.communicate(timeout=300)
        assert agent.returncode == 0, stderr
    passes = [result_of(tmp_path / "runs" / a)["cost"]["encoder_passes"] for a in ("mean", "max")]
    assert sum(passes) == 17 * 3  # tails below 1 s are dropped
    assert len(rows_of(tmp_path / "store")) == 17


@pytest.mark.slow
def test_real_music_is_told_apart_by_its_log_mel(gamemusic, tmp_path):
    rows = {}
    for split, n in (("train", 24), ("val", 8), ("test", 8)):
        lines = (gamemusic / f"gamemusic.{split}.jsonl").read_text().splitlines()
        rows[split] = [json.loads(line) for line in lines if '"label": "w' in line][:n]
        for row in rows[split]:
            row["audio_path"] = str(gamemusic / row["audio_path"])
        text = "".join(json.dumps(row) + "\n" for row in rows[split])
        (tmp_path / f"some.{split}.jsonl").write_text(text)
    done = run_probe(
        "--task",
        tmp_path,
        "--encoder=mel",
        "--seg=30",
        "--agg=stats",
        "--seeds",
        "1",
        "2",
        "3",
        "--report_to=none",
        "--name=r",
        "--allow_outside",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "runs" / "r")
    assert result["skipped"] == []
    assert result["segments_per_track"]["max"] == 2
    assert result["metrics"]["accuracy"]["mean"] > result["chance"]["accuracy"] + 0.1


def test_help_teaches_every_flag():
    done = run(ROOT / "train_probe.py", "--help", cwd=ROOT)
    assert done.returncode == 0
    for flag in (
        "--task",
        "--data_dir",
        "--encoder",
        "--layer",
        "--seg",
        "--hop",
        "--min_tail",
        "--agg",
        "--aggregator_checkpoint",
        "--readout",
        "--tune_aggregator",
        "--aggregator_lr",
        "--tokens",
        "--seeds",
        "--mixed_precision",
        "--batch_seconds",
        "--report_to",
        "--project",
        "--group",
        "--name",
        "--tags",
        "--output_dir",
        "--store",
        "--strict",
        "--trust_remote_code",
        "--revision",
    ):
        assert flag in done.stdout
    assert "accelerate launch train_probe.py --seg 10 --agg mean" in done.stdout


def test_emo_and_gtzan_run_from_the_hubs_layout(tmp_path):
    def rows(folder, names, labels):
        """Write wavs and one jsonl a split: (split, index) -> label."""
        for split, n in (("train", 6), ("val", 3), ("test", 4)):
            lines = []
            for i in range(n):
                path = names(split, i)
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                wave = tone(1.5, 200 + 300 * (i % 2), 44_100, seed=100 * len(split) + i)
                soundfile.write(tmp_path / path, wave, 44_100, subtype="PCM_16")
                lines.append(
                    {
                        "audio_path": path,
                        "label": labels(split, i),
                        "duration": 1.5,
                        "sample_rate": 44_100,
                        "num_samples": 66_150,
                        "bit_depth": 16,
                        "channels": 1,
                    }
                )
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / "data" / folder[0] / f"{folder[1]}.{split}.jsonl").write_text(text)

    (tmp_path / "data" / "EMO").mkdir(parents=True)
    (tmp_path / "data" / "GTZAN").mkdir()
    offset = {"train": 0, "val": 10, "test": 20}
    rows(
        ("EMO", "EMO"),
        lambda s, i: f"data/EMO/emomusic/wav/{offset[s] + i:04d}.wav",
        lambda s, i: [0.1 * i - 0.2, (-1.0) ** i],
    )
    rows(
        ("GTZAN", "GTZANGenre"),
        lambda s, i: f"data/GTZAN/genres/{('blues', 'rock')[i % 2]}/{s}.{i}.wav",
        lambda s, i: ("blues", "rock")[i % 2],
    )
    common = ["--data_dir=data", "--encoder=mel", "--seg=1", "--epochs=30", "--report_to=none"]
    common.append("--seeds=1234")
    done = run_probe("--task=emo", *common, "--name=emo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    emo = result_of(tmp_path / "runs" / "emo")
    assert emo["targets"] == ["arousal", "valence"]
    assert emo["n_tracks"] == {"train": 6, "val": 3, "test": 4}
    table = pq.read_table(tmp_path / "runs" / "emo" / "predictions.parquet").to_pandas()
    assert table.id.tolist() == [f"data/EMO/emomusic/wav/{20 + i:04d}.wav" for i in range(4)]
    np.testing.assert_allclose(table.label_arousal, [-0.2, -0.1, 0.0, 0.1], atol=1e-12)
    assert table.label_valence.tolist() == [1, -1, 1, -1]
    # Valence goes with the pitch, so it is the target that can be learnt.
    assert emo["metrics"]["r2_valence"]["mean"] > 0.5
    done = run_probe("--task=gtzan", *common, "--name=gtzan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    gtzan = result_of(tmp_path / "runs" / "gtzan")
    assert gtzan["classes"] == ["blues", "rock"]
    table = pq.read_table(tmp_path / "runs" / "gtzan" / "predictions.parquet").to_pandas()
    assert dict(zip(table.id, table.label, strict=True)) == {
        f"data/GTZAN/genres/{g}/test.{i}.wav": g for i, g in enumerate(["blues", "rock"] * 2)
    }
    assert gtzan["metrics"]["accuracy"]["mean"] == 1.0


def test_a_cell_that_is_the_full_tracks_ends_early_and_marked(tmp_path):
    task = make_task(tmp_path / "tones")
    flags = ["--task", task, "--encoder=mel", "--store", tmp_path / "store", "--skip_degenerate"]
    done = run_probe(*flags, "--seg=60", "--agg=max", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "skipped: equals full (full mean)" in done.stdout
    assert not list(tmp_path.glob("runs/*"))
    (record,) = [read_run(path) for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert record["exit_code"] == 0
    assert record["summary"]["degenerate"] == "equals full"
    assert record["summary"]["same_as"] == "full mean"
    assert not any("train/loss" in row for row in record["history"])


@pytest.mark.slow
def test_a_run_that_fails_tells_wandb_why_and_a_launchers_death_ends_it(tmp_path):
    task = make_task(tmp_path / "tones", n=(40, 4, 6))
    flags = [
        "--task",
        task,
        "--encoder=mel",
        "--store",
        tmp_path / "store",
        "--epochs=100000",
        "--patience=100000",
    ]
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--quiet",
            ROOT / "train_probe.py",
            *map(str, flags),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    while "epoch   1" not in launcher.stdout.readline():
        assert launcher.poll() is None
    (child,) = psutil.Process(launcher.pid).children()
    launcher.kill()  # as an agent does when it's told to stop the run
    gone, _ = psutil.wait_procs([child], timeout=60)
    assert gone
    (record,) = [read_run(path) for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert record["exit_code"] == 1
    assert record["summary"]["failed"] == "stopped"
    done = run_probe(*flags, "--lr=1e300", cwd=tmp_path)
    assert done.returncode == 2
    records = [read_run(path) for path in sorted((tmp_path / "wandb").glob("offline-run-*"))]
    failed = {record["summary"]["failed"] for record in records}
    assert failed == {"stopped", done.stderr.strip().splitlines()[-1].removeprefix("error: ")}
    assert any("not finite" in text for text in failed)
