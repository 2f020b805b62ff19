"""Shared by the steps of gpu.py: the device, encoders, audio, and results of checks."""

import contextlib
import functools
import gc
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import torch

from tune.encoders.base import SAMPLE_RATE
from tune.encoders.registry import load_encoder

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Bench:
    """Where the steps run.

    Attributes
    ----------
    device : the GPU; the CPU in a rehearsal
    rehearse : everything in small
    """

    device: torch.device
    rehearse: bool

    @classmethod
    def make(cls, rehearse: bool) -> "Bench":
        """The bench of this machine."""
        logging.basicConfig(format="%(message)s")
        return cls(torch.device("cpu" if rehearse else "cuda"), rehearse)

    @property
    def large(self) -> str:
        """The encoder that is measured: MuQ-large with random weights; muq-nano in a rehearsal."""
        return "muq-nano" if self.rehearse else "muq"

    @property
    def halves(self) -> list[str]:
        """The half precisions that the device has."""
        return ["bf16"] if self.device.type == "cpu" else ["fp16", "bf16"]

    def seconds(self, full: float, small: float) -> float:
        """A length of audio, or its small stand-in in a rehearsal."""
        return small if self.rehearse else full

    def encoder(self, name: str, precision: str, device=None, **kwargs):
        """An encoder, loaded once a process when nothing but name and precision is asked."""
        if kwargs:
            return self._load(name, precision, str(device or self.device), **kwargs)
        return _cached(name, precision, str(device or self.device))

    @staticmethod
    def _load(name, precision, device, **kwargs):
        weights = "random" if name == "muq" else "pretrained"
        return load_encoder(name, weights=weights, precision=precision, device=device, **kwargs)


@functools.cache
def _cached(name, precision, device):
    """The encoders of this process."""
    return Bench._load(name, precision, device)


@contextlib.contextmanager
def graphs(encoder, used):
    """Context in which an encoder uses these CUDA graphs, or none (None)."""
    kept, encoder.graphs = encoder.graphs, used
    try:
        yield
    finally:
        encoder.graphs = kept


def forget_encoders() -> None:
    """Drop the loaded encoders and their memory."""
    _cached.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@functools.cache
def music(duration_s: float, seed: int = 1) -> np.ndarray:
    """Composed audio at the encoder's rate, (n_samples,) float32."""
    return common.compose(duration_s, SAMPLE_RATE, seed)


def segments(n: int, duration_s: float) -> np.ndarray:
    """Different composed segments, (n, n_samples) float32: a minute's music, begun elsewhere."""
    n_samples = round(duration_s * SAMPLE_RATE)
    track = music(max(60.0, 2 * duration_s))
    starts = np.linspace(0, len(track) - n_samples, n).astype(int)
    return np.stack([track[start : start + n_samples] for start in starts])


def at_most(what: str, value: float, limit: float, **more) -> dict:
    """A check's finding: a value that may not exceed a limit."""
    return {
        "what": what,
        "value": float(value),
        "at_most": limit,
        "ok": bool(value <= limit),
        **more,
    }


def at_least(what: str, value: float, limit: float, **more) -> dict:
    """A check's finding: a value that may not fall below a limit."""
    return {
        "what": what,
        "value": float(value),
        "at_least": limit,
        "ok": bool(value >= limit),
        **more,
    }


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the largest expected value."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def cosines(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The lowest cosine of each layer: (B, L, D) twice to (L,)."""
    norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(expected, axis=-1)
    return ((got * expected).sum(-1) / norms).min(0)


def run_script(*command, env: dict | None = None) -> subprocess.CompletedProcess:
    """Run a Python program from the repository; what it prints goes to stderr as well."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, file=sys.stderr)
    return done


def run_for_json(script: str, *args) -> dict:
    """Run a program of the repository that writes its results to --out; return them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        done = run_script(ROOT / script, *args, "--out", out)
        if not out.exists():
            raise RuntimeError(f"{script} ended with code {done.returncode}, see above")
        return json.loads(out.read_text(encoding="utf-8"))


SAID_ONCE = ("machine", "versions", "git_sha", "date")  # in the JSON of the whole


def run_benchmark(name: str, *args) -> dict:
    """Run another benchmark in this process, which has its imports done; return its results."""
    module, argv = importlib.import_module(name), sys.argv
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        sys.argv = [f"{name}.py", *map(str, args)]
        try:
            module.main(module.parse_args([*sys.argv[1:], "--out", str(out)]))
        finally:
            sys.argv = argv
        report = json.loads(out.read_text(encoding="utf-8"))
    return {key: value for key, value in report.items() if key not in SAID_ONCE}
