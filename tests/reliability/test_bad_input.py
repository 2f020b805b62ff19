"""Bad input: a run names what it can't use and goes on; a mistake is answered in one line."""

import csv
import importlib.util
import json
import logging
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import wandb
from accelerate.state import AcceleratorState
from conftest import ROOT, make_task, run_probe
from safetensors import safe_open

from tune.cli import parser
from tune.runs.tracking import Tracker
from tune.tasks.load import SPLITS

RATE = 24_000
QUICK = ("--encoder", "mel", "--report_to", "none", "--epochs", "2")


def append(file: Path, *lines) -> int:
    """Add rows or lines to a jsonl; return the number of the first one."""
    text = file.read_text()
    file.write_text(
        text
        + "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return len(text.splitlines()) + 1


def plant(folder: Path) -> dict[str, str]:
    """Add every kind of bad input to a task of tones; return where -> reason (a pattern)."""
    audio = folder / "audio"
    (audio / "zero.wav").touch()
    whole = (audio / "001.wav").read_bytes()
    (audio / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (audio / "text.wav").write_text("This is no audio.\n" * 50)
    wave = np.full(2 * RATE, 0.1, np.float32)
    wave[RATE] = np.nan
    soundfile.write(audio / "nan.wav", wave, RATE, "FLOAT")
    soundfile.write(audio / "one.wav", [0.5], RATE)
    soundfile.write(audio / "silent.wav", np.zeros(2 * RATE, np.float32), RATE)
    (audio / "folder.wav").mkdir()
    (audio / "bare.raw").write_bytes(whole[44:])
    names = {
        "train": ["zero.wav", "cut.wav", "folder.wav", "silent.wav"],
        "val": ["text.wav", "nan.wav", "bare.raw"],
        "test": ["one.wav", "missing.wav"],
    }
    for split, files in names.items():
        rows = [{"audio_path": f"audio/{name}", "label": "low"} for name in files]
        append(folder / f"tones.{split}.jsonl", *rows)
    polka = {"audio_path": "audio/001.wav", "label": "polka"}
    line = append(folder / "tones.test.jsonl", polka, '{"audio_path": "audio/002.wav", "lab')
    line_train = append(folder / "tones.train.jsonl", {"audio_path": "audio/003.wav"})
    return {
        str(audio / "zero.wav"): r"empty file \(0 bytes\)",
        str(audio / "cut.wav"): r"truncated: .*",
        str(audio / "text.wav"): r"can't be decoded: .*",
        str(audio / "nan.wav"): r"holds 1 NaN or infinite samples \(the first at 1\.000 s\)",
        str(audio / "one.wav"): r"too short: 1 samples .*the encoder needs 0\.1 s",
        str(audio / "missing.wav"): r"no such file",
        str(audio / "folder.wav"): r"not a regular file",
        str(audio / "bare.raw"): r"can't be decoded: a \.raw file has no header .*",
        f"{folder / 'tones.test.jsonl'}:{line}": r"unknown label 'polka': .*",
        f"{folder / 'tones.test.jsonl'}:{line + 1}": r"malformed JSON: .*",
        f"{folder / 'tones.train.jsonl'}:{line_train}": r"needs audio_path and label",
    }


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A run over a folder with a specimen of every kind of bad input."""
    root = tmp_path_factory.mktemp("bad")
    folder = make_task(root / "tones")
    planted = plant(folder)
    done = run_probe("--task", folder, *QUICK, "--store", root / "store", "--name", "bad", cwd=root)
    result = root / "runs/bad/result.json"
    return SimpleNamespace(
        root=root,
        folder=folder,
        planted=planted,
        done=done,
        result=json.loads(result.read_text()) if result.exists() else {},
    )


@pytest.fixture(scope="module")
def good(bad, tmp_path_factory):
    """A run over the good files alone: under other names, as a CSV, in another order."""
    root = tmp_path_factory.mktemp("good")
    lines = []
    for i in reversed(range(1, 19)):
        shutil.copy(bad.folder / f"audio/{i:03d}.wav", root / f"Lied, Nr. {i}.wav")
        lines.append(f'"Lied, Nr. {i}.wav",{"high" if _is_high(bad.folder, i) else "low"}\n')
    shutil.copy(bad.folder / "audio/silent.wav", root / "Stille [b].wav")
    lines.insert(5, "Stille [b].wav,low\n")
    (root / "lieder.csv").write_text("path,label\n" + "".join(lines), encoding="utf-8")
    done = run_probe(
        "--task",
        "lieder.csv",
        *QUICK,
        "--store",
        root / "store",
        "--seeds=[1, 2]",
        "--strict",
        "--name=good",
        "--folds=1",
        cwd=root,
    )
    return SimpleNamespace(root=root, done=done, run=root / "runs/good")


def _is_high(folder: Path, i: int) -> bool:
    """Whether a track of the task is of the class "high"."""
    text = "".join((folder / f"tones.{split}.jsonl").read_text() for split in SPLITS)
    return f'"audio_path": "audio/{i:03d}.wav", "label": "high"' in text


def test_a_run_over_bad_files_finishes(bad):
    assert bad.done.returncode == 0, bad.done.stderr
    assert "Traceback" not in bad.done.stderr
    names = {p.name for p in (bad.root / "runs/bad").iterdir()}
    assert {"result.json", "config.json", "predictions.parquet", "probe.safetensors"} <= names


def test_every_bad_file_and_line_is_listed_once_with_its_reason(bad):
    skipped = bad.result["skipped"]
    assert len(skipped) == len(bad.planted)
    reasons = {item["where"]: item["reason"] for item in skipped}
    assert reasons.keys() == bad.planted.keys()
    for where, pattern in bad.planted.items():
        assert re.fullmatch(pattern, reasons[where]), (where, reasons[where])


def test_every_bad_file_is_named_in_the_log(bad):
    for where, pattern in bad.planted.items():
        if ".jsonl:" not in where:
            assert re.search(rf"WARNING: skipped {re.escape(where)}: {pattern}", bad.done.stderr)
    assert f"{len(bad.planted)} skipped" in bad.done.stdout


def test_a_silent_track_is_used_and_warned_about(bad):
    silent = str(bad.folder / "audio/silent.wav")
    assert bad.result["silent"] == [silent]
    assert f"WARNING: {silent} is digital silence" in bad.done.stderr
    assert silent not in [item["where"] for item in bad.result["skipped"]]


def test_the_counts_of_a_run_with_bad_files_add_up(bad):
    result = bad.result
    assert result["n_tracks"] == {"train": 8 + 1, "val": 4, "test": 6}
    lines = sum(
        len((bad.folder / f"tones.{split}.jsonl").read_text().splitlines()) for split in SPLITS
    )
    assert lines == sum(result["n_tracks"].values()) + len(result["skipped"])
    assert result["cost"]["encoded_tracks"] == result["cost"]["encoder_passes"] == 19
    ids = pq.read_table(bad.root / "runs/bad/predictions.parquet")["id"].unique().to_pylist()
    assert ids == [f"audio/{i:03d}.wav" for i in range(13, 19)]


def stored(root: Path) -> dict:
    """File in the store -> what it holds, but for the time that encoding took."""
    rows = {}
    for path in sorted((root / "store").rglob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            tokens, meta = file.get_tensor("tokens"), file.metadata()
        info = json.loads(meta["info"])
        info = {k: v for k, v in info.items() if k not in ("seconds", "peak_bytes")}
        name = path.relative_to(root / "store").as_posix()
        rows[name] = (tokens.dtype, tokens.shape, tokens.tobytes(), meta["n_samples"], info)
    return rows


def test_the_rows_of_the_good_files_do_not_depend_on_the_bad_ones(bad, good):
    assert good.done.returncode == 0, good.done.stderr
    rows = stored(bad.root)
    assert len(rows) == 19
    assert rows == stored(good.root)


def test_a_run_over_good_files_skips_nothing_even_when_strict(good):
    result = json.loads((good.run / "result.json").read_text())
    assert result["skipped"] == []
    assert result["seeds"] == [1, 2]
    warnings = [line for line in good.done.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "Stille [b].wav is digital silence" in warnings[0]


def test_a_split_made_for_a_run_is_written_beside_its_result(good):
    with open(good.run / "split.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    n_tracks = json.loads((good.run / "result.json").read_text())["n_tracks"]
    assert {s: sum(row["split"] == s for row in rows) for s in SPLITS} == n_tracks
    names = {f"Lied, Nr. {i}.wav" for i in range(1, 19)} | {"Stille [b].wav"}
    assert {row["id"] for row in rows} == names
    assert all(Path(row["path"]).is_file() for row in rows)
    ids = pq.read_table(good.run / "predictions.parquet")["id"].to_pylist()
    assert set(ids) == {row["id"] for row in rows if row["split"] == "test"}


def test_a_bad_file_ends_a_strict_run_in_one_line(bad, tmp_path):
    done = run_probe(
        "--task", bad.folder, *QUICK, "--strict=true", "--store", tmp_path / "store", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    errors = [line for line in lines if not line.startswith("encode:")]  # the progress bar
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {bad.folder / 'tones.train.jsonl'}:")
    assert not list(tmp_path.glob("runs/*"))
    assert not list(tmp_path.glob("runs/.*"))


def test_an_unknown_flag_is_answered_before_the_heavy_imports(tmp_path):
    done = run_probe("--epochz", "3", cwd=tmp_path, timeout=5)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "train_probe.py: error: unrecognized arguments: --epochz 3 (--help lists the flags)\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def train_probe():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("train_probe", ROOT / "train_probe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A small task that no test changes."""
    return make_task(tmp_path_factory.mktemp("task") / "tones", n=(2, 2, 2))


@pytest.fixture
def door(train_probe, tones, tmp_path, monkeypatch):
    """Call the script's main as its last line does, on a CPU, and undo what it set up."""
    logger = logging.getLogger("tune")
    before = (logger.handlers, logger.level, logger.propagate, dict(os.environ))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def call(*argv):
        args = train_probe.parse_args(["--task", str(tones), *QUICK, *argv])
        parser.run_script(lambda: train_probe.main(args))

    yield call
    AcceleratorState._reset_state(reset_partial_state=True)
    logger.handlers, level, logger.propagate, environment = before
    logger.setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


def show(value) -> str:
    """A parametrised test's name: the arguments."""
    return " ".join(value) if isinstance(value, list) else ""


REFUSED = [
    (["--seg", "0"], r"the segment length must be a number of seconds above 0, got 0"),
    (["--seg", "-5"], r"the segment length must be a number of seconds above 0, got -5"),
    (["--seg=nan"], r"the segment length must be a number of seconds above 0, got nan"),
    (["--seg=inf"], r"the segment length must be a number of seconds above 0, got inf"),
    (["--seg", "abc"], r"a segment is a number of seconds, 'full' or 'structure', got 'abc'"),
    (["--seg", "0.05"], r"--seg 0\.05: mel needs at least 0\.1 s"),
    (["--seg", "full", "--hop", "5"], r"a hop needs a segment length: .*"),
    (["--min_tail", "-1"], r"the shortest tail must be 0 s or more, got -1"),
    (["--min_tail", "nan"], r"the shortest tail must be 0 s or more, got nan"),
    (["--min_tail", "0.05"], r"--min_tail 0\.05: mel needs at least 0\.1 s"),
    (["--mixed_precision", "fp16"], r"fp16 needs a GPU: on a CPU use --mixed_precision no .*"),
    (["--layer", "99"], r"--layer must be last, all, mix or a number from 0 to 0, got 99"),
    (["--layer", "-1"], r"--layer must be last, all, mix or a number from 0 to 0, got -1"),
    (["--layer", "first"], r"--layer must be last, all, mix or a number from 0 to 0, got first"),
    (
        ["--tokens", "frame", "--frame_rate", "101"],
        r"--frame_rate must be above 0 and at most 100"
        r" Hz \(the rate of mel\), got 101",
    ),
    (["--report_to", "nonsense"], r"--report_to must be none, all or some of wandb, .*'nonsense'"),
    (["--name", "a/b"], r"--name must be a plain folder name, got 'a/b'"),
    (["--name", ".."], r"--name must be a plain folder name, got '\.\.'"),
    (["--name="], r"--name must be a plain folder name, got ''"),
    (["--task", "nonsense"], r"unknown task 'nonsense': it is none of emo, gtzan, gs.*"),
    (["--task", "emo"], r"data/EMO is not whole: the data set m-a-p/EMO .*EMO\.train\.jsonl.*"),
    (["--encoder", "nonsense"], r"unknown encoder 'nonsense': it is none of muq, .*"),
]


@pytest.mark.parametrize(("argv", "message"), REFUSED, ids=show)
def test_a_mistake_is_one_line_and_code_2_and_leaves_nothing(door, tmp_path, capsys, argv, message):
    with pytest.raises(SystemExit) as left:
        door(*argv)
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    assert re.fullmatch(rf"(train_probe\.py: )?error: {message}( \(--help lists .*\))?\n", err), err
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "runs").exists()


def test_a_name_that_exists_is_refused_and_untouched(door, tmp_path, capsys):
    there = tmp_path / "runs/mine/result.json"
    there.parent.mkdir(parents=True)
    there.write_text("{}")
    with pytest.raises(SystemExit) as left:
        door("--name", "mine", "--overwrite=false")
    err = capsys.readouterr().err
    assert left.value.code == 2
    assert err == "error: runs/mine exists: choose another --name or pass --overwrite\n"
    assert [p.name for p in (tmp_path / "runs").rglob("*")] == ["mine", "result.json"]
    assert there.read_text() == "{}"


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(door, capsys, monkeypatch):
    monkeypatch.setattr("tune.runs.tracking.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        door("--report_to", "trackio")
    assert capsys.readouterr().err == (
        "error: --report_to trackio needs its package: pip install trackio\n"
    )


UNREADABLE = [
    (["--agg", "foo"], r"--agg must be one of mean, .*, got 'foo'"),
    (["--frobnicate"], r"unrecognized arguments: --frobnicate"),
    (["--seed", "1"], r"unrecognized arguments: --seed 1"),  # no abbreviations
    (["--hop", "0"], r"argument --hop: expected a number above 0, got '0'"),
    (["--hop=-1"], r"argument --hop: expected a number above 0, got '-1'"),
    (["--lr", "nan"], r"argument --lr: expected a number above 0, got 'nan'"),
    (["--lr", "inf"], r"argument --lr: expected a number above 0, got 'inf'"),
    (["--batch_seconds", "much"], r"argument --batch_seconds: expected a number above 0, .*'much'"),
    (["--epochs", "0"], r"argument --epochs: expected a whole number above 0, got '0'"),
    (["--epochs", "1.5"], r"argument --epochs: expected a whole number above 0, got '1\.5'"),
    (["--patience=-1"], r"argument --patience: expected a whole number above 0, got '-1'"),
    (["--seeds=one"], r"argument --seeds: expected whole numbers, got 'one'"),
    (["--seeds=1.5"], r"argument --seeds: expected whole numbers, got '1\.5'"),
    (["--seeds=[]"], r"--seeds needs one or more numbers of 0 or above"),
    (["--seeds="], r"--seeds needs one or more numbers of 0 or above"),
    (["--seeds=-3"], r"--seeds needs one or more numbers of 0 or above"),
    (["--strict=maybe"], r"argument --strict: expected true or false, got 'maybe'"),
    (["--overwrite", "2"], r"argument --overwrite: expected true or false, got '2'"),
    (["--mixed_precision", "fp64"], r"argument --mixed_precision: invalid choice: 'fp64' .*"),
    (["--kind", "words"], r"argument --kind: invalid choice: 'words' .*"),
    (["--tokens", "word"], r"argument --tokens: invalid choice: 'word' .*"),
]


@pytest.mark.parametrize(("argv", "message"), UNREADABLE, ids=show)
def test_a_flag_that_can_not_be_read_is_one_line_and_code_2(train_probe, capsys, argv, message):
    with pytest.raises(SystemExit) as left:
        train_probe.parse_args(argv)
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    assert re.fullmatch(rf"train_probe\.py: error: {message} \(--help lists the flags\)\n", err), (
        err
    )


@pytest.mark.parametrize(
    ("argv", "seeds"),
    [
        ([], [1234, 1235, 1236, 1237, 1238]),
        (["--probe=ridge"], [1234]),
        (["--probe=knn", "--seeds=3"], [3]),
        (["--seeds=1234"], [1234]),
        (["--seeds=[1, 2]"], [1, 2]),
        (["--seeds=[1,2]"], [1, 2]),
        (["--seeds=1,2"], [1, 2]),
        (["--seeds=1 2"], [1, 2]),
        (["--seeds", "1", "2"], [1, 2]),
        (["--seeds", "2", "[1,", "0]"], [2, 1, 0]),
        (["--seeds", "3", "1", "3"], [3, 1]),
        (["--seeds=0"], [0]),
    ],
)
def test_seeds_are_read_in_every_form_that_a_sweep_writes(train_probe, argv, seeds):
    assert train_probe.parse_args(argv).seeds == seeds


@pytest.mark.parametrize("flag", ["strict", "overwrite"])
def test_booleans_take_a_value_or_none(train_probe, flag):
    def read(*argv):
        return getattr(train_probe.parse_args([*argv]), flag)

    assert read() is False
    assert read(f"--{flag}") is True
    assert read(f"--{flag}", "--seg=10") is True
    for text in ("true", "True", "1", "yes"):
        assert read(f"--{flag}={text}") is read(f"--{flag}", text) is True
    for text in ("false", "False", "0", "no"):
        assert read(f"--{flag}={text}") is read(f"--{flag}", text) is False


def test_flags_take_their_values_after_an_equals_sign(train_probe):
    given = {
        "task": "emo",
        "encoder": "mel",
        "layer": "all",
        "folds": 4,
        "group_column": "artist",
        "channels": "left",
        "seg": ["30"],
        "hop": 5.5,
        "min_tail": 0.5,
        "agg": "concat",
        "tokens": "frame",
        "frame_rate": 2.5,
        "epochs": 7,
        "patience": 3,
        "batch_size": 16,
        "lr": 0.001,
        "mixed_precision": "bf16",
        "batch_seconds": 90.0,
        "report_to": "none",
        "project": "p",
        "group": "g",
        "name": "n",
        "kind": "numbers",
        "data_dir": Path("d"),
        "store": Path("s"),
        "cache_dir": Path("c"),
        "output_dir": Path("o"),
        "tags": ["a"],
        "strict": True,
        "overwrite": True,
        "memory_budget": "1GB",
        "compile": True,
        "min_seg": None,
        "max_seg": None,
        "aggregator_checkpoint": None,
        "readout": None,
        "tune_aggregator": False,
        "aggregator_lr": None,
        "skip_degenerate": True,
        "trust_remote_code": True,
        "revision": "v1",
        "label_column": "genre",
        "audio_column": "song",
        "data_revision": None,
        "yes": False,
        "allow_outside": True,
    }
    argv = [
        f"--{flag}={value[0] if isinstance(value, list) else value}"
        for flag, value in given.items()
        if value not in (None, False)
    ]
    args = vars(train_probe.parse_args(argv))
    assert {name: args[name] for name in given} == given
    left = vars(train_probe.parse_args(["--task=emo"]))  # what isn't given is as without flags
    assert {name: left[name] for name in args.keys() - given.keys()} == {
        name: args[name] for name in args.keys() - given.keys()
    }


def test_a_task_with_a_long_path_can_be_tracked():
    started = {}
    accelerator = SimpleNamespace(
        is_main_process=False,
        trackers=[],
        log_with=["wandb"],
        init_trackers=lambda project, config, init_kwargs: started.update(init_kwargs["wandb"]),
    )
    Tracker(accelerator, "wandb").start(
        {}, given={"name": "n"}, default={"project": "tune"}, tags=["mel", "/music/" * 20]
    )
    assert wandb.Settings(run_tags=started["tags"]).run_tags == ("mel", ("/music/" * 20)[:64])


def test_an_error_out_of_a_library_keeps_its_traceback(monkeypatch):
    for root in (ROOT, Path(json.__file__).parent.parent):  # as if the library lay below ROOT
        monkeypatch.setattr(parser, "ROOT", root)
        with pytest.raises(json.JSONDecodeError, match="Expecting"):
            parser.run_script(lambda: json.loads("{"))


def test_an_interrupted_run_says_how_to_go_on(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        parser.run_script(main)
    assert "the same command goes on from there" in capsys.readouterr().err
