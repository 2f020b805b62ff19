"""Fixtures: a seeded generator, small audio files, a small task, and the reference data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hub_server import full_disk, hub  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))  # muq_nano
SHARED = ROOT.parent / "shared"

# Nothing here may reach the network, an account or the user's own store.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
# One thread a process: tests run side by side (pytest -n), and spinning threads of small products
# slow each other down many times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_SWEEP_ID"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items):
    """Skip the tests marked `gpu` where there is no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """Give every test its own default store, cache and W&B folder."""
    monkeypatch.setenv("TUNE_STORE", str(tmp_path / "default-store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))


@pytest.fixture
def rng():
    """A seeded NumPy generator."""
    return np.random.default_rng(1234)


@pytest.fixture
def reference():
    """The folder of the tiny MuQ and its golden hidden states."""
    folder = SHARED / "reference"
    if not folder.is_dir():
        pytest.skip("the reference model (../shared/reference) is not here")
    return folder


@pytest.fixture
def gamemusic():
    """The folder of the real-music task."""
    folder = SHARED / "data" / "gamemusic"
    if not folder.is_dir():
        pytest.skip("the real music (../shared/data/gamemusic) is not here")
    return folder


def tone(seconds: float, hz: float, rate: int = 24_000, *, noise: float = 0.01, seed: int = 0):
    """A decaying harmonic tone with a little noise: (n_samples,) float32."""
    t = np.arange(round(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 6)) * np.exp(-t % 0.5 * 4)
    wave = 0.2 * wave + noise * np.random.default_rng(seed).standard_normal(len(t))
    return wave.astype(np.float32)


def make_task(folder: Path, *, seconds=2.2, n=(8, 4, 6), numbers=False) -> Path:
    """Write a small task in MARBLE's layout: two classes of tones, low and high.

    Parameters
    ----------
    n : tracks of train, val and test
    numbers : labels are [pitch, loudness] instead of classes

    Returns
    -------
    Path of the folder, which holds audio/ and tones.{train,val,test}.jsonl
    """
    (folder / "audio").mkdir(parents=True)
    rng = np.random.default_rng(7)
    index = 0
    for split, size in zip(("train", "val", "test"), n, strict=True):
        rows = []
        for i in range(size):
            high, index = i % 2, index + 1
            hz = float(rng.uniform(900, 1600) if high else rng.uniform(80, 160))
            loudness = float(rng.uniform(0.2, 1.0))
            length = seconds + 0.37 * (index % 3)
            wave = tone(length, hz, seed=index) * loudness
            soundfile.write(folder / "audio" / f"{index:03d}.wav", wave, 24_000)
            label = [np.log(hz) - 5.5, loudness - 0.6] if numbers else ("low", "high")[high]
            rows.append(
                {
                    "audio_path": f"audio/{index:03d}.wav",
                    "label": label,
                    "duration": len(wave) / 24_000,
                    "sample_rate": 24_000,
                    "num_samples": len(wave),
                    "bit_depth": 16,
                    "channels": 1,
                }
            )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"tones.{split}.jsonl").write_text(text)
    return folder


@pytest.fixture
def task_folder(tmp_path):
    """A small two-class task."""
    return make_task(tmp_path / "tones")


def run(*args, cwd: Path, env: dict | None = None, timeout: float = 300):
    """Run a Python program from the repository in a folder of its own, with text output."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_probe(*args, cwd: Path, **kwargs):
    """Run train_probe.py."""
    return run(ROOT / "train_probe.py", *args, cwd=cwd, **kwargs)
