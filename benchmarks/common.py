"""Shared by the benchmarks: synthetic audio, the study's encoding loop, timing and reports.

Audio is mono float32, lengths are in seconds, memory in bytes. Layers are counted as in
`tune.encoders.base`: 0 is the front end's output, k the output of layer k.
"""

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from tune.encoders import muq
from tune.encoders.hub import fetch
from tune.encoders.registry import load_encoder
from tune.profiling.arithmetic import matrix_rate
from tune.runs.result import device_name, git_sha, versions

RESULTS = Path(__file__).resolve().parent / "results"


def compose(duration_s: float, sample_rate: int, seed: int, channels: int = 1) -> np.ndarray:
    """Make test music: a harmonic tone every half second with a little noise.

    Parameters
    ----------
    duration_s : seconds
    sample_rate : Hz
    seed : of pitches and noise

    Returns
    -------
    ndarray of float32, shape (n_samples,), or (n_samples, channels) for several
    """
    rng = np.random.default_rng(seed)
    n_samples = max(1, round(duration_s * sample_rate))
    note_s = 0.5
    pitches = 110 * 2 ** (rng.integers(0, 36, int(duration_s / note_s) + 1) / 12)  # Hz
    out = 0.02 * rng.standard_normal((n_samples, channels), np.float32)
    for i, pitch in enumerate(pitches):
        start, end = round(i * note_s * sample_rate), round((i + 1) * note_s * sample_rate)
        t = np.arange(min(end, n_samples) - start) / sample_rate
        wave = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 5))
        out[start:end] += (0.2 * wave * np.exp(-4 * t)).astype(np.float32)[:, None]
    return out[:, 0] if channels == 1 else out


def choose_device(args) -> torch.device:
    """Choose the device for --device, and record the machine's load.

    Asking for a GPU where there is none ends with one line.
    """
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: there is no CUDA device")
    args.load_at_start = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if args.load_at_start and args.load_at_start > os.cpu_count() / 2:
        print(
            f"warning: the machine is busy (load {args.load_at_start:.1f} on {os.cpu_count()} "
            "cores), which affects the times",
            file=sys.stderr,
        )
    return torch.device(name)


def fail(message: str) -> NoReturn:
    """End with one line and code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def load_ours(name: str, weights: str, device: torch.device, precision: str = "no"):
    """Our encoder, as train_probe.py loads it."""
    return load_encoder(name, weights=weights, device=device, precision=precision)


def muq_config(name: str, weights: str) -> tuple[dict, dict | None]:
    """MuQ's configuration, and its weights (None: random, from the fixed seed)."""
    if name == "muq-nano":
        return muq._read_muq(muq.NANO_FOLDER)
    if weights == "pretrained":
        return muq._read_muq(fetch(muq.HUB_ID))
    config = muq.nano_config() | muq.LARGE
    config["w2v2_config"] |= muq.LARGE_W2V2
    return config, None


def load_original(name: str, weights: str, device: torch.device) -> nn.Module:
    """muq's own MuQModel in float32 with eager attention and the same weights as `load_ours`.

    Its batch normalisations are not folded and its codebook projection is there.
    """
    config, state = muq_config(name, weights)
    model, _ = muq._build(config, state)
    for layer in model.conformer.layers:
        layer.self_attn.config["_attn_implementation"] = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model.modules():  # weights that we don't load: any values cost the same
            for key, value in module.named_parameters(recurse=False):
                if value.is_meta:
                    made = torch.randn(value.shape, dtype=value.dtype) * 0.02
                    setattr(module, key, nn.Parameter(made, requires_grad=False))
    return model.to(device)


@torch.no_grad()
def study_states(model: nn.Module, audio: torch.Tensor) -> Iterator[torch.Tensor]:
    """Run muq's own modules, as its get_predictions does: yield every hidden state (B, T, D).

    muq's forward itself fails with transformers from 5.16 on.
    """
    x = model.preprocessing(audio, features=["melspec_2048"])
    x = model.conv(model.normalize(x)["melspec_2048"])  # (B, T, D)
    yield x
    conformer = model.conformer
    positions = conformer.embed_positions(x)
    for k, layer in enumerate(conformer.layers, start=1):
        x = layer(x, relative_position_embeddings=positions)
        x = x[0] if isinstance(x, tuple) else x  # a tuple before transformers 5
        if k == len(conformer.layers):
            x = conformer.layer_norm(x)
        yield x


@torch.no_grad()
def study_encode(
    model: nn.Module,
    samples: np.ndarray,
    spans: Sequence[tuple[int, int]],
    layers: Sequence[int],
    device: torch.device,
    tf32: bool = False,
) -> np.ndarray:
    """Encode a track as the study's released code does.

    One segment at a time, float32, all layers computed and kept, codebook logits too, and the CUDA
    cache emptied after each segment.

    Parameters
    ----------
    samples : ndarray of float32, shape (n_samples,)
    spans : the segments' bounds in samples
    tf32 : let cuDNN round convolutions to TF32

    Returns
    -------
    ndarray of float32, shape (N, L, D)
        Time means of the layers asked for.
    """
    out = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        for start, end in spans:
            audio = torch.from_numpy(samples[None, start:end]).to(device)
            states = list(study_states(model, audio))
            logits = model.linear(states[-1])  # computed and not used, as in muq's forward
            out.append(torch.stack([states[k].mean(1)[0] for k in layers]).cpu())  # (L, D)
            del audio, states, logits
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return torch.stack(out).numpy()


def clock(device: torch.device, work: Callable):
    """Run `work`; return its result and the seconds it took, the device's included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def time_statistics(seconds: Sequence[float]) -> dict:
    """Median and spread of the rounds' seconds."""
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "rounds_s": list(seconds),
    }


def show_spread(times: dict) -> str:
    """Median and spread for a table."""
    return f"{times['median_s']:.3g} ({times['min_s']:.3g} to {times['max_s']:.3g})"


def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of PyTorch's own matrix product on this machine."""
    return matrix_rate(device, dtype, [torch.mm])


@torch.inference_mode()
def convolution_rate(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> float:
    """Measure the rate of the convolution that is most of MuQ's work: 3 x 3, 512 channels.

    On a CPU it can be well above that of matrix products, which come from another library.

    Returns
    -------
    FLOP/s, in true float32 when that is the type
    """
    n, channels, bands, frames = 8 if device.type == "cuda" else 1, 512, 64, 64
    x = torch.randn(n, channels, bands, frames, device=device, dtype=dtype)
    x = x.to(memory_format=memory_format)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    kernel = kernel.to(memory_format=memory_format)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        seconds = _quickest(device, lambda: nn.functional.conv2d(x, kernel, padding=1))
    return 2 * 9 * channels**2 * n * bands * frames / seconds


def _quickest(device, work, tries: int = 3) -> float:
    """Seconds of the quickest of a few tries, after one to warm up."""
    work()
    return min(clock(device, work)[1] for _ in range(tries))


def run_child(script: str, cell: dict) -> dict:
    """Run one cell of a benchmark in a process of its own: SCRIPT --cell JSON.

    The child prints its result as JSON on its last line. A child that dies gives {"failed": why}.
    """
    done = subprocess.run(
        [sys.executable, script, "--cell", json.dumps(cell)], capture_output=True, text=True
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        return {"failed": f"ended by signal {-done.returncode} (9: out of memory)"}
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return {"failed": lines[-1]}


def write_report(
    name: str, args, device: torch.device, results: dict, *, variant: str = ""
) -> Path:
    """Write a benchmark's JSON with machine, versions, commit and command; return its path.

    Where a benchmark has a `variant`, its file's name says so.
    """
    slug = "cpu" if device.type == "cpu" else device_name(device).lower().replace(" ", "-")
    nano = "-nano" if args.encoder == "muq-nano" else ""
    path = args.out or RESULTS / f"{name}{variant}-{slug}{nano}.json"
    report = {
        "benchmark": name,
        "command": _command(name),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(device) | {"load_at_start": args.load_at_start},
        "versions": versions(),
        "git_sha": git_sha(),
        "encoder": args.encoder,
        "weights": "pretrained" if args.encoder == "muq-nano" else args.weights,
        **results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def describe_machine(device: torch.device) -> dict:
    """The machine that the numbers were measured on."""
    return {
        "device": device_name(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    left: int = 1,
) -> None:
    """Print a table, its first columns to the left, and notes below it."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right")
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}", style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    for note in notes:
        console.print(f"  {note}", highlight=False, markup=False, soft_wrap=True)


def _command(name: str) -> str:
    """The command line, without --out, which changes no number."""
    kept, skip = [], False
    for arg in sys.argv[1:]:
        if not (skip or arg == "--out" or arg.startswith("--out=")):
            kept.append(arg)
        skip = arg == "--out"
    return shlex.join(["python", f"benchmarks/{name}.py", *kept])


def _processor() -> str:
    """The processor's name, if the system reports it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
