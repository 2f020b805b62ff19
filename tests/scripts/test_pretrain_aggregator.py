"""pretrain_aggregator.py as its users run it, and its main() where a process each would be slow."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, make_task, run, run_probe, tone
from safetensors.torch import load_file
from wandb_file import read_run, records

import pretrain_aggregator as script
import train_probe
from tune.aggregators.transformer import pretraining_state
from tune.aggregators.transformer.checkpoint import load_aggregator
from tune.cli.parser import ENVIRONMENT

SCRIPT = ROOT / "pretrain_aggregator.py"
SMALL = [
    "--encoder=mel",
    "--seg=0.5",
    "--min_tail=0.2",
    "--hidden_size=32",
    "--num_layers=1",
    "--num_heads=2",
    "--intermediate_size=32",
    "--batch_size=4",
    "--lr=1e-2",
]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # the same bits whichever process computes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small task, and the store and cache that all runs here share."""
    folder = tmp_path_factory.mktemp("pretraining")
    make_task(folder / "tones", seconds=3, n=(16, 6, 4))
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    """Compute as the processes here do; on busy cores tiny products wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def main(folder, monkeypatch):
    """A function that runs main() in this process and returns --out."""
    monkeypatch.setattr(script, "set_up_logging", lambda is_main: None)  # it's for processes
    monkeypatch.setenv("TUNE_STORE", str(folder / "store"))

    def call(out, *flags, small=SMALL):
        argv = ["--tasks", str(folder / "tones"), *small, "--report_to=none", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *argv, *flags])
        script.main(script.parse_args([*argv, *flags]))
        return out

    return call


def flags_of(folder, out, *more):
    """The command line of a run with dropout."""
    return [
        "--tasks",
        folder / "tones",
        *SMALL,
        "--epochs=16",
        "--store",
        folder / "store",
        "--out",
        folder / out,
        *more,
    ]


def history_of(out):
    """A run's curve, every digit of it."""
    with open(out / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(out, name):
    """A column of the curve."""
    return [float(row[name]) for row in history_of(out)]


@pytest.fixture(scope="module")
def calm(folder):
    """An undisturbed run, tracked offline: --out, and the process."""
    env = {"WANDB_DIR": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), **ONE_THREAD}
    done = run(SCRIPT, *flags_of(folder, "calm"), cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    return folder / "calm", done


def test_a_run_prints_what_to_beat_and_a_falling_loss(calm):
    out, done = calm
    assert "16 train tracks (112 tokens), 6 val tracks (42)" in done.stdout
    to_beat = next(line for line in done.stdout.splitlines() if "to beat" in line)
    baselines = json.loads((out / "pretrain.json").read_text())["baselines"]
    assert {"predicting the mean", "copying the nearest visible token"} <= set(baselines)
    assert baselines["copying the nearest visible token"] < baselines["predicting the mean"]
    assert all(f"{name} {value:.4f}" in to_beat for name, value in baselines.items())
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 16
    assert len({line.index("val loss") for line in lines}) == 1  # aligned
    assert "(finds its track: " in lines[0]
    losses = column(out, "val/loss")
    assert min(losses) < 0.9 * losses[0]
    facts = json.loads((out / "pretrain.json").read_text())
    assert min(losses) < facts["baselines"]["predicting the mean"]
    assert f"--aggregator_checkpoint {out}" in done.stdout


def test_a_run_leaves_an_aggregator_and_what_it_is(calm):
    out, _ = calm
    assert {p.name for p in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "trained_on.safetensors",
        "README.md",
        "history.csv",
        "pretrain.json",
    }
    history = history_of(out)
    assert [int(row["epoch"]) for row in history] == list(range(1, 17))
    facts = json.loads((out / "pretrain.json").read_text())
    both = np.add(column(out, "val/loss"), column(out, "val/track_loss"))
    assert facts["best_epoch"] == both.argmin() + 1
    assert facts["n_tracks"] == {"train": 16, "val": 6}
    assert facts["n_tokens"] == {"train": 112, "val": 42}
    assert facts["refused"] == facts["skipped"] == []
    assert facts["test_splits_checked"] == ["tones"]
    assert facts["config"]["command"].startswith("pretrain_aggregator.py --tasks ")
    config = load_aggregator(out).config
    assert (config.encoder, config.layer, config.tokens) == ("mel", 0, "segment")
    assert (config.seg, config.min_tail, config.input_size) == ("0.5", 0.2, 256)
    assert config.recipe["lr"] == 0.01
    card = (out / "README.md").read_text()
    assert f"best epoch {facts['best_epoch']} of 16" in card
    assert f"validation loss {column(out, 'val/loss')[facts['best_epoch'] - 1]:.4f}" in card
    assert "no track of the test splits of tones" in card
    assert "CC-BY-NC" in card


def test_the_offline_wandb_run_holds_the_curve_and_the_model(calm, folder):
    out, done = calm
    assert "wandb sync wandb/offline-run-" in done.stdout
    (run_folder,) = (folder / "wandb").glob("offline-run-*")
    record = read_run(run_folder)
    epochs = [row for row in record["history"] if "epoch" in row]
    assert [row["val/loss"] for row in epochs] == column(out, "val/loss")
    assert record["run"].job_type == "pretraining"
    assert record["run"].run_group == "pretraining"
    assert {"pretraining", "mel", "tune"} <= set(record["run"].tags)
    facts = json.loads((out / "pretrain.json").read_text())
    assert record["summary"]["best_epoch"] == facts["best_epoch"]
    assert (
        record["summary"]["baseline/predicting_the_mean"]
        == facts["baselines"]["predicting the mean"]
    )
    assert record["config"]["recipe"]["objective"] == "mse"
    assert record["exit_code"] == 0
    artifacts = [r for r in artifact_records(run_folder) if r.type == "model"]
    assert [r.name for r in artifacts] == ["aggregator-calm"]
    names = {entry.path for entry in artifacts[0].manifest.contents}
    assert names == {"config.json", "model.safetensors", "README.md", "history.csv"}


def artifact_records(run_folder):
    """The artifacts that an offline run would upload."""
    (path,) = run_folder.glob("*.wandb")
    for record in records(path):
        if record.WhichOneof("record_type") == "artifact":
            yield record.artifact


def test_killed_and_resumed_its_curve_and_weights_are_those_of_the_calm_run(calm, folder, main):
    flags = flags_of(folder, "killed", "--report_to=none")
    victim = subprocess.Popen(
        [sys.executable, *map(str, [SCRIPT, *flags])],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
    )
    for line in victim.stdout:
        if line.startswith("epoch   5/"):
            os.kill(victim.pid, signal.SIGKILL)
            break
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    out = folder / "killed"
    assert (out / "state" / "progress.json").is_file()
    assert not (out / "history.csv").exists()
    # What asks for something else doesn't go on from it, and leaves it as it is.
    with pytest.raises(ValueError, match=r"unfinished run with other settings: --lr 0\.01 \(now "):
        main(out, "--epochs=16", "--lr=0.02")
    with pytest.raises(ValueError, match=r"other settings: --epochs 16 \(now 17\), --seed 1234 "):
        main(out, "--epochs=17", "--seed=5")
    done = run(SCRIPT, *flags, cwd=folder, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "going on after epoch " in done.stdout
    assert "epoch   5/" not in done.stdout
    assert (out / "history.csv").read_bytes() == (calm[0] / "history.csv").read_bytes()
    a, b = load_file(out / "model.safetensors"), load_file(calm[0] / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    facts = [json.loads((o / "pretrain.json").read_text()) for o in (out, calm[0])]
    for key in ("baselines", "best_epoch", "best_loss", "n_tokens", "data"):
        assert facts[0][key] == facts[1][key], key
    assert not (out / "state").exists()


def test_a_finished_aggregator_is_not_overwritten_unasked(main, tmp_path):
    out = main(tmp_path / "a", "--epochs=1")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a finished aggregator: choose another --out or"):
        main(out, "--epochs=2")
    assert (out / "model.safetensors").read_bytes() == before
    main(out, "--epochs=2", "--overwrite")
    assert len(history_of(out)) == 2


def test_a_folder_with_other_files_is_left_alone(main, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ValueError, match=r"holds other files \(chapter\.tex\)"):
        main(tmp_path / "thesis")
    with pytest.raises(ValueError, match=r"\(chapter\.tex\), which --overwrite would delete"):
        main(tmp_path / "thesis", "--overwrite")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "model.safetensors").write_text("precious")
    with pytest.raises(ValueError, match=r"holds other files \(model\.safetensors\)"):
        main(tmp_path / "encoder")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; an aggregator needs a folder"):
        main(tmp_path / "file")


class CutOffError(Exception):
    """Stands for the moment at which a process dies."""


@pytest.mark.parametrize("where", ["model", "state", "rename", "finish"])
def test_cut_off_anywhere_it_goes_on_to_the_same_end(where, main, tmp_path, monkeypatch):
    expected = main(tmp_path / "calm", "--epochs=3", "--dropout=0.1")

    def cut(*args, **kwargs):
        raise CutOffError

    with monkeypatch.context() as patch:
        rename = pretraining_state.Path.rename
        if where == "model":  # in the first epoch, between weights and configuration
            patch.setattr("tune.aggregators.transformer.model.AggregatorConfig.to_json_string", cut)
        elif where == "state":  # in the first epoch, after the model and part of the state
            patch.setattr(
                "tune.aggregators.transformer.pretraining_state.json",
                SimpleNamespace(**vars(json) | {"dumps": cut}),
            )
            patch.setattr(
                "tune.aggregators.transformer.pretraining_state.check_same_data", lambda *args: None
            )
            patch.setattr(
                "tune.aggregators.transformer.pretraining_state.asked_for", lambda *args: {"x": 1}
            )
        elif where == "rename":  # the old state is aside, the new one not in place

            def second(self, target):
                if self.name == "state.tmp" and (self.parent / "state.before").exists():
                    raise CutOffError
                return rename(self, target)

            patch.setattr(pretraining_state.Path, "rename", second)
        else:
            patch.setattr("tune.aggregators.transformer.pretraining_state._card", cut)
        with pytest.raises(CutOffError):
            main(tmp_path / "cut", "--epochs=3", "--dropout=0.1")
    out = main(tmp_path / "cut", "--epochs=3", "--dropout=0.1")
    assert (out / "history.csv").read_bytes() == (expected / "history.csv").read_bytes()
    a, b = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert {p.name for p in out.iterdir()} == {p.name for p in expected.iterdir()}


@pytest.mark.parametrize("share", [0.5, 1.2])
def test_a_state_that_the_disk_does_not_take_is_one_error(share, main, tmp_path):
    """Of the state's files the model is too large, or the optimizer's, which is larger."""
    resource = pytest.importorskip("resource")
    flags = ["--epochs=1", "--num_layers=4", "--intermediate_size=256"]
    whole = main(tmp_path / "whole", *flags)
    size = (whole / "model.safetensors").stat().st_size
    out, before = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large|can't be written") as caught:
            main(out, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno in ENVIRONMENT  # run_script makes one line of it
    assert not (out / "state").exists()
    again = main(out, *flags)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, again))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_other_data_is_not_gone_on_with(main, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    for i in range(5):
        soundfile.write(mine / f"{i}.wav", tone(2, 100 * (i + 1), seed=i), 24_000)
    flags = ["--audio_dir", str(mine), "--epochs=2"]
    with monkeypatch.context() as patch:
        patch.setattr("tune.aggregators.transformer.pretraining_state._card", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(tmp_path / "a", *flags)
    (mine / "4.wav").unlink()
    with pytest.raises(ValueError, match="an unfinished run on other data: the tracks or the enc"):
        main(tmp_path / "a", *flags)


def test_an_early_stop_stays_where_it_was_when_resumed(main, tmp_path, monkeypatch):
    flags = ["--epochs=12", "--lr=1", "--patience=2"]  # such a rate only makes things worse
    expected = main(tmp_path / "calm", *flags)
    assert len(history_of(expected)) < 12
    with monkeypatch.context() as patch:
        patch.setattr("tune.aggregators.transformer.pretraining_state._card", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(tmp_path / "cut", *flags)
    out = main(tmp_path / "cut", *flags)
    assert history_of(out) == history_of(expected)


EXACT = ["--dropout=0", "--objective=mse", "--track_weight=0", "--epochs=6", "--batch_size=5"]


def assert_same_curve(a, b):
    """Two runs' losses are the same but for rounding."""
    for name in ("train/loss", "val/loss", "train/track_loss", "val/track_loss", "lr"):
        np.testing.assert_allclose(column(a, name), column(b, name), rtol=1e-5, err_msg=name)
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    for name in x:
        torch.testing.assert_close(x[name], y[name], rtol=1e-3, atol=2e-4, msg=name)


def test_accumulated_gradients_give_the_same_curve(main, tmp_path):
    whole = main(tmp_path / "whole", *EXACT)
    parts = main(tmp_path / "parts", *EXACT, "--micro_tokens=8")
    assert column(whole, "val/loss")[-1] < column(whole, "val/loss")[0]
    assert_same_curve(parts, whole)
    checked = main(tmp_path / "checked", *EXACT, "--gradient_checkpointing")
    assert_same_curve(checked, whole)


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(main, folder, tmp_path):
    # Micro-batches of one or two tracks, at times an odd number of them; a lone track has no
    # others to be told from, and its process must keep in step all the same.
    flags = [*EXACT, "--micro_tokens=16", "--track_weight=1"]
    whole = main(tmp_path / "whole", *flags)
    two = run(
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=0",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
        SCRIPT,
        "--tasks",
        folder / "tones",
        *SMALL,
        *flags,
        "--report_to=none",
        "--store",
        folder / "store",
        "--out",
        tmp_path / "two",
        cwd=tmp_path,
        env={"ACCELERATE_USE_CPU": "true", **ONE_THREAD},
    )
    assert two.returncode == 0, two.stderr
    facts = json.loads((tmp_path / "two" / "pretrain.json").read_text())
    assert facts["config"]["n_processes"] == 2
    assert_same_curve(tmp_path / "two", whole)
    for name, loss in json.loads((whole / "pretrain.json").read_text())["baselines"].items():
        assert facts["baselines"][name] == pytest.approx(loss, rel=1e-5)


def test_a_lone_track_uses_every_weight():
    # Processes in step need the same gradients, also where one has a track without neighbours.
    recipe = script.RECIPES["tune"]
    model = script.make_model(script.make_config(recipe, 16), 0, None)
    tokens = torch.randn(1, 5, 16)
    batch = {
        "tokens": tokens,
        "attention_mask": torch.ones(1, 5, dtype=torch.bool),
        "masked": torch.arange(5)[None] == 3,
        "weight": 0.0,
    }
    each, _, _ = script.step_losses(model, batch, recipe, torch.device("cpu"))
    each.sum().backward()
    assert each.item() == 0
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def probe(folder, monkeypatch, out, *flags):
    """Run train_probe.py's main() in this process; return the result."""
    monkeypatch.setattr(train_probe, "set_up_logging", lambda is_main: None)
    argv = [
        "--task",
        str(folder / "tones"),
        "--seg=0.5",
        "--min_tail=0.2",
        "--agg=transformer",
        "--report_to=none",
        "--epochs=5",
        "--store",
        str(folder / "store"),
        "--name=r",
        "--output_dir",
        str(out),
        *map(str, flags),
    ]
    monkeypatch.setattr(sys, "argv", ["train_probe.py", *argv])
    train_probe.main(train_probe.parse_args(argv))
    return json.loads((out / "r" / "result.json").read_text())


def test_train_probe_uses_it(calm, folder, tmp_path, monkeypatch):
    flags = ["--encoder=mel", "--aggregator_checkpoint", calm[0]]
    result = probe(folder, monkeypatch, tmp_path / "runs", *flags)
    assert result["agg"] == "transformer"
    assert result["aggregator"]["readout"] == "gated"  # the recipe's: views of 256 values
    assert result["aggregator"]["view_weights"]["1234"][0] == 1
    assert result["cost"]["embedding_dim"] % 256 == 0
    assert result["aggregator"]["checkpoint"] == str(calm[0])
    assert result["metrics"]["accuracy"]["mean"] == 1.0
    # The training and validation tracks' tokens are those of the pretraining.
    assert result["cost"]["encoded_tracks"] in (0, 4)
    for readout, size in (("cls", 32), ("residual", 256 + 32), ("order", 8 * 32)):
        other = probe(folder, monkeypatch, tmp_path / readout, *flags, f"--readout={readout}")
        assert other["cost"]["embedding_dim"] == size


def test_train_probe_refuses_what_the_aggregator_has_seen(calm, folder, tmp_path, monkeypatch):
    """A task whose test tracks are the aggregator's training tracks."""
    source = folder / "tones"
    leaky = tmp_path / "leaky"
    shutil.copytree(source, leaky)
    (train,), (test,) = (list(leaky.glob(f"*.{split}.jsonl")) for split in ("train", "test"))
    test.write_text("".join(train.read_text().splitlines(keepends=True)[:4]))
    flags = ["--encoder=mel", "--aggregator_checkpoint", calm[0], "--task", leaky]
    with pytest.raises(ValueError, match="was trained on 4 of 4 test tracks"):
        probe(folder, monkeypatch, tmp_path / "runs", *flags)
    assert not (tmp_path / "runs").exists()
    result = probe(folder, monkeypatch, tmp_path / "runs", *flags, "--allow_seen")
    assert len(result["seen_by_aggregator"]["tracks"]) == 4


def test_train_probe_refuses_what_does_not_fit(calm, folder, tmp_path, monkeypatch):
    flags = ["--encoder=muq-nano", "--tokens=frame", "--aggregator_checkpoint", calm[0]]
    message = (
        r"doesn't fit: it was trained on mel, encoder weights \w+ \(here \w+\), layer 0 "
        r"\(here 4\), tokens segment \(here frame at 1 Hz\), token size 256 \(here "
    )
    with pytest.raises(ValueError, match=message):
        probe(folder, monkeypatch, tmp_path / "runs", *flags)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--agg=transformer"], "needs --aggregator_checkpoint .* or --tune_aggregator"),
        (["--agg=mean", "--aggregator_checkpoint=x"], "belongs to --agg transformer"),
        (["--agg=transformer", "--tune_aggregator", "--layer=all"], "one layer's tokens"),
    ],
)
def test_train_probe_never_takes_chance_weights_in_silence(flags, message, tmp_path):
    done = run_probe(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer=all"], "joins one layer's tokens: --layer last or K, not all"),
        (["--layer=mix"], "not mix"),
        (["--seed=-1"], "--seed must be 0 or above"),
        (["--epochs=0"], "expected a whole number above 0"),
        (["--mask_prob=1"], "expected a number from 0 to below 1"),
        (["--objective=mae"], "invalid choice: 'mae'"),
        (["--seg=-3"], "seg"),
    ],
)
def test_wrong_flags_are_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        script.parse_args(flags)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_track_objective_needs_a_cls_token(main, tmp_path):
    with pytest.raises(ValueError, match=r"--track_weight 1 needs a \[CLS\] token, which --recipe"):
        main(tmp_path / "a", "--recipe=study", "--track_weight=1")


def test_heads_that_do_not_divide_are_named(main, tmp_path):
    with pytest.raises(ValueError, match="5 heads don't divide the width 32"):
        main(tmp_path / "a", "--num_heads=5")
    assert not (tmp_path / "a").exists()


def test_tracks_of_one_token_are_named(main, tmp_path):
    with pytest.raises(ValueError, match="all 16 train tracks have one token only"):
        main(tmp_path / "a", "--seg=full", "--min_tail=1")


def test_the_studys_recipe_with_an_override(main, tmp_path):
    small = [f for f in SMALL if not f.startswith(("--lr", "--batch"))]
    small += ["--recipe=study", "--frame_rate=5"]
    out = main(tmp_path / "study", small=small)
    config = load_aggregator(out).config
    assert config.tokens == "frame at 5 Hz"
    assert config.positions == "learned"
    assert (config.cls_token, config.mask_token, config.standardise) == (False, "zero", "none")
    assert config.readout == "mean"
    history = history_of(out)
    assert len(history) == 1
    assert float(history[0]["lr"]) == 5e-5
    assert float(history[0]["val/track_loss"]) == 0
    facts = json.loads((out / "pretrain.json").read_text())
    assert facts["config"]["recipe_name"] == "study"
    assert facts["config"]["recipe"]["frame_rate"] == 5
    assert facts["config"]["recipe"]["hidden_size"] == 32


@pytest.mark.parametrize("objective", ["cosine", "infonce"])
def test_other_objectives_learn_too(objective, main, tmp_path):
    out = main(tmp_path / "a", "--epochs=8", f"--objective={objective}", "--span=2")
    losses = column(out, "val/loss")
    assert losses[-1] < losses[0]
    baselines = json.loads((out / "pretrain.json").read_text())["baselines"]
    assert losses[-1] < baselines["predicting the mean"]


def test_a_folder_of_audio_leaves_test_tracks_out(folder, main, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    for i in range(6):
        soundfile.write(mine / f"{i}.wav", tone(2, 100 * (i + 1), seed=i), 24_000)
    test = (folder / "tones" / "tones.test.jsonl").read_text().splitlines()
    leaked = json.loads(test[0])["audio_path"]
    shutil.copy(folder / "tones" / leaked, mine / "hit single.wav")
    (mine / "broken.wav").write_bytes(b"RIFF")
    (mine / "empty.wav").write_bytes(b"")
    out = main(tmp_path / "a", "--audio_dir", str(mine), "--val_share=0.3", "--epochs=1")
    facts = json.loads((out / "pretrain.json").read_text())
    assert facts["n_tracks"]["train"] + facts["n_tracks"]["val"] == 16 + 6 + 6
    assert [item["path"] for item in facts["refused"]] == [str(mine / "hit single.wav")]
    assert {item["path"] for item in facts["skipped"]} == {
        str(mine / "broken.wav"),
        str(mine / "empty.wav"),
    }
    with pytest.raises(ValueError, match=r"hit single\.wav: it is in the test split of tones"):
        main(tmp_path / "b", "--audio_dir", str(mine), "--strict")


def test_help_teaches_every_flag():
    done = run(SCRIPT, "--help", cwd=ROOT)
    assert done.returncode == 0
    for flag in (
        "--tasks",
        "--audio_dir",
        "--encoder",
        "--layer",
        "--seg",
        "--tokens",
        "--frame_rate",
        "--recipe",
        "--mask_prob",
        "--span",
        "--objective",
        "--epochs",
        "--patience",
        "--seed",
        "--mixed_precision",
        "--micro_tokens",
        "--gradient_checkpointing",
        "--out",
        "--overwrite",
        "--report_to",
    ):
        assert flag in done.stdout
    assert "accelerate launch pretrain_aggregator.py --seg 10 --epochs 20" in done.stdout
