"""A run read back from the server: its configuration, scores and the artifacts it made and used."""

import json
import os
import re

import pytest
from conftest import make_task, run_probe
from wandb_server import WandbServer

from tune.encoders.base import launched_precision
from tune.runs.lineage import aggregator_artifact, tracked_config


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of train_probe.py with the server that it told; (server, its run, folder, process)."""
    root = tmp_path_factory.mktemp("tracked")
    home = root / "home"
    task = make_task(home / "tones")
    with WandbServer() as server:
        env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        env |= {"HOME": str(home), "TUNE_STORE": str(root / "store"), "ACCELERATE_USE_CPU": "true"}
        env |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "k" * 40, "WANDB_MODE": "online"}
        command = ("--task", task, "--encoder=mel", "--seg=1", "--min_tail=0.5", "--epochs=2")
        done = run_probe(*command, "--agg=attention", "--name=run", cwd=root, env=env)
        assert done.returncode == 0, done.stderr
        (run,) = server.runs.values()
        yield server, run, root, done


def test_the_configuration_has_the_values_that_were_used(tracked):
    _, run, root, _ = tracked
    config = run.config
    assert (config["task"], config["seg_s"], config["min_tail_s"]) == ("tones", 1, 0.5)
    assert (config["layer"], config["layer_asked"], config["precision"]) == (0, "last", "no")
    assert config["lr"] == config["aggregator_lr"] == 0.005
    assert re.fullmatch("[0-9a-f]{12}", config["task_hash"])
    assert None not in config.values()
    assert str(root) not in json.dumps(config)
    # The run's own folder keeps what was asked for.
    assert json.loads((root / "runs/run/config.json").read_text())["lr"] is None


def test_scores_and_costs_are_numbers_of_the_summary_and_no_curves(tracked):
    _, run, root, _ = tracked
    result = json.loads((root / "runs/run/result.json").read_text())
    assert run.summary["test/accuracy"] == result["metrics"]["accuracy"]["mean"]
    assert run.summary["cost/encoder_passes"] == result["cost"]["encoder_passes"]
    assert not any(key.startswith(("test/", "cost/")) for row in run.rows for key in row)
    assert run.summary["val/best_accuracy"] == run.summary["val/best_score"]


def test_the_run_is_linked_to_its_data_and_encoder(tracked):
    server, run, root, done = tracked
    assert "no record" not in done.stderr
    assert server.unknown == []
    assert server.used == ["data-tones", "encoder-mel"]
    made = {artifact["artifactCollectionName"]: artifact for artifact in server.artifacts}
    facts = json.loads(made["data-tones"]["metadata"])
    assert facts == {"task": "tones", "hash": run.config["task_hash"], "n_tracks": 18}
    facts = json.loads(made["encoder-mel"]["metadata"])
    assert facts["fingerprint"] == run.config["encoder_fingerprint"]
    probe = made["probe-run"]
    assert {entry["alias"] for entry in probe["aliases"]} == {"latest", "tones", "mel"}
    assert json.loads(probe["metadata"])["accuracy"] == run.summary["test/accuracy"]
    assert str(root) not in json.dumps(server.artifacts)


def test_pretrainings_model_and_a_probes_checkpoint_are_one_version(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text('{"path": "/music"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    made, used = aggregator_artifact(folder), aggregator_artifact(folder)
    assert made.name.split(":")[0] == used.name.split(":")[0] == "aggregator-mine"
    assert made.digest == used.digest
    (folder / "model.safetensors").write_bytes(b"others")
    assert aggregator_artifact(folder).digest != made.digest


def test_a_configuration_without_one_layer_or_length_says_so():
    config = {"layer": "all", "layers": [0, 1], "seg": "10+full", "hop": None, "store": "/s"}
    assert tracked_config(config, {}) == {
        "layer": "all",
        "layer_asked": "all",
        "layers": [0, 1],
        "seg": "10+full",
    }


def test_the_precision_of_accelerate_launch_is_the_encoders(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # also where nobody asked
    assert launched_precision("auto") == "auto"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert (launched_precision("auto"), launched_precision("bf16")) == ("fp16", "bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="fp8, which encoders don't have: pass"):
        launched_precision("auto")
