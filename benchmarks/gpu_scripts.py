"""The scripts as users run them: files to rows, probes, pretraining, costs."""

import json
import tempfile
from pathlib import Path

import soundfile
from gpu_bench import ROOT, Bench, at_most, music, run_benchmark, run_for_json, run_script

from tune.encoders.base import SAMPLE_RATE

LAUNCH = (
    "-m",
    "accelerate.commands.launch",
    "--num_processes",
    "1",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
)
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def pipeline(bench: Bench, record) -> None:
    """Files of 30 s from disk to rows, against the encoder alone on the same segments.

    In half precision in batches within a track and in batches that tracks share, then in float32,
    which a large card computes about as fast as a small one computes half precision.
    """
    duration = bench.seconds(30, 3)
    for name, precision, batches, n in (
        ("half", bench.halves[-1], "both", 300),
        ("float32", "no", "auto", 100),
    ):
        n = 4 if bench.rehearse else n
        given = ["--encoder", bench.large, "--device", bench.device.type, "--rounds", 2]
        given += ["--tracks", n, "--duration", duration, "--batches", batches]
        record(**{name: run_benchmark("pipeline", *given, "--precision", precision)})


def probe(bench: Bench, record) -> None:
    """train_probe.py with 5 seeds: one layer, then all; and the same probes without the GPU.

    The second run reads the rows that the first one stored: only the probes' device differs. The
    labels mean nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, checks = Path(name), []
        precision = "no" if bench.rehearse else bench.halves[-1]
        task, encoder = made_up_task(folder, *((24, 4) if bench.rehearse else (100, 30)))
        seeds = [1, 2] if bench.rehearse else [1, 2, 3, 4, 5]
        for run, more, env in (
            ("gpu", [], {}),
            ("cpu, same rows", [], WITHOUT_GPU),
            ("gpu, all layers", ["--layer", "all"], {}),
        )[: 2 if bench.rehearse else 3]:
            out = folder / run.replace(",", "").replace(" ", "-")
            done = run_script(
                *LAUNCH,
                ROOT / "train_probe.py",
                "--task",
                task,
                *encoder,
                "--seg",
                "10",
                "--agg",
                "mean",
                "--seeds",
                *seeds,
                "--mixed_precision",
                precision,
                "--report_to",
                "none",
                "--output_dir",
                out,
                "--store",
                folder / "store",
                *more,
                env=env,
            )
            results = list(out.glob("*/result.json"))
            if not results:
                raise RuntimeError(f"train_probe.py ended with code {done.returncode}, see above")
            result = json.loads(results[0].read_text(encoding="utf-8"))
            keys = ("metrics", "cost", "device", "precision", "n_tracks")
            record(**{run: {key: result[key] for key in keys}})
            checks.append(at_most(f"exit code, {run}", done.returncode, 0))
            record(checks=checks)


def made_up_task(folder: Path, n: int, seconds: float) -> tuple[Path, list]:
    """Write a task of n files, half of them to train on; return it and the flags of its encoder."""
    path, track = folder / "task.csv", music(2 * seconds)
    n_samples = round(seconds * SAMPLE_RATE)
    lines = ["path,label,split"]
    for i in range(n):
        start = i * (len(track) - n_samples) // n
        soundfile.write(folder / f"{i:03d}.flac", track[start : start + n_samples], SAMPLE_RATE)
        lines.append(f"{i:03d}.flac,{'ab'[i % 2]},{('train', 'train', 'val', 'test')[i // 2 % 4]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path, ["--encoder", "muq-nano"]


def pretraining(bench: Bench, record) -> None:
    """20 steps of the Transformer aggregator's pretraining."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "aggregator"
        task, encoder = made_up_task(Path(name), *((24, 4) if bench.rehearse else (100, 10)))
        done = run_script(
            *LAUNCH,
            ROOT / "pretrain_aggregator.py",
            "--tasks",
            task,
            *encoder,
            "--seg",
            1,
            "--epochs",
            1 if bench.rehearse else 5,
            "--batch_size",
            12,
            "--out",
            out,
            "--store",
            Path(name) / "store",
            "--report_to",
            "none",
        )
        history = out / "history.csv"
        record(
            checks=[at_most("exit code", done.returncode, 0)],
            history=history.read_text(encoding="utf-8") if history.exists() else None,
        )


def costs(bench: Bench, record) -> None:
    """profile.py: MuQ-large at 10, 30 and 60 s and full, a track of 45 s; each in its process."""
    given = ["--seg", "10", "30", "60", "full", "--encoder", bench.large, "--duration", 45]
    if bench.rehearse:
        given = ["--seg", "1", "full", "--encoder", bench.large, "--duration", 2, "--repeats", 1]
    found = run_for_json("profile.py", *given)
    record(machine=found["machine"], rows=found["rows"])
