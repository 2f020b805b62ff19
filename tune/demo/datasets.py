"""Build a demo data set on disk, in MARBLE's layout.

FLAC, 24 kHz, mono, 16 bit, and one row a track in ``<task>.<split>.jsonl``. What is built does not
depend on the number of workers, and a limited build makes the same tracks as the full one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from tune.demo.synth import SAMPLE_RATE
from tune.demo.tasks import SPLITS, TASKS, check_task
from tune.system.progress import progress_bar
from tune.system.signals import block_signals, unblock_signals


def _write_unit(task: str, index: int, keep: int, folder: str) -> list[dict]:
    """Make unit `index`, write its first `keep` tracks, return their rows. Runs in a worker."""
    rows = []
    for name, description, audio in TASKS[task].make(index)[:keep]:
        path = f"audio/{name}.flac"
        assert np.isfinite(audio).all(), name
        samples = np.round(audio * 32767).astype(np.int16)
        soundfile.write(Path(folder, path), samples, SAMPLE_RATE, compression_level=0.0)
        rows.append(
            {
                "audio_path": path,
                "label": description["label"],
                "duration": len(samples) / SAMPLE_RATE,
                "sample_rate": SAMPLE_RATE,
                "num_samples": len(samples),
                "bit_depth": 16,
                "channels": 1,
                **description,
            }
        )
    return rows


@contextmanager
def _blank_main() -> Iterator[None]:
    """Hide the running script while workers start.

    A spawned worker imports its parent's ``__main__`` again. Ours needs nothing from it, and a
    training script would cost each worker the import of torch (and, unguarded, run twice).
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _make_all(jobs: list[tuple], workers: int, bar: tqdm) -> list[list[dict]]:
    """Rows of every job, in the order of the jobs."""
    results: list[list[dict]] = [[] for _ in jobs]
    workers = min(workers, len(jobs))
    if workers <= 1:
        for i, job in enumerate(jobs):
            results[i] = _write_unit(*job)
            bar.update(len(results[i]))
        return results
    # Spawned, not forked: the parent may hold threads (torch), and a fork of those can hang.
    spawn = multiprocessing.get_context("spawn")
    # The parent answers Ctrl+C; workers would only print their traces over its message.
    pool = ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=unblock_signals, initargs=(signal.SIG_IGN,)
    )
    try:
        with _blank_main(), block_signals():
            futures = {pool.submit(_write_unit, *job): i for i, job in enumerate(jobs)}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            bar.update(len(future.result()))
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def build(
    task: str,
    cache_dir: str | Path,
    *,
    workers: int = 2,
    progress: bool = True,
    limit: int | None = None,
) -> Path:
    """Build a demo data set, unless it exists.

    The folder is built under another name and renamed when it is complete. If two processes build
    at once, the first to finish wins, and the other uses its folder. (A
    killed build leaves a hidden ``.partial`` folder, which is never read and safe to delete.)

    Parameters
    ----------
    task
        One of `DEMO_TASKS`.
    cache_dir
        Where data sets are kept; made if missing.
    workers
        Processes; 1 or less works in this one.
    progress
        Draw a bar on stderr.
    limit
        Make only the first `limit` tracks of each split, in a folder of another name.

    Returns
    -------
    Path
        ``<cache_dir>/<task>-v<version>``, which holds ``audio/`` and ``<task>.<split>.jsonl``.

    Raises
    ------
    ValueError
        If the task is unknown or `limit` is below 1.
    """
    row = check_task(task)
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit of at least 1 track, got {limit}")
    folder = Path(cache_dir) / f"{task}-v{row.version}{'' if limit is None else f'-limit{limit}'}"
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"expected a folder or nothing at {folder}, found a file")

    partial = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    (partial / "audio").mkdir(parents=True)
    try:
        jobs, splits, first = [], [], 0
        for split, units in zip(SPLITS, row.units, strict=True):
            left = units * row.tracks_per_unit if limit is None else limit
            for index in range(first, first + units):
                if left > 0:
                    jobs.append((task, index, min(left, row.tracks_per_unit), str(partial)))
                    splits.append(split)
                    left -= row.tracks_per_unit
            first += units
        total = sum(job[2] for job in jobs)
        with progress_bar(
            total=total, desc=f"composing {task}", unit="track", disable=not progress
        ) as bar:
            rows = _make_all(jobs, workers, bar)
        for split in SPLITS:
            lines = [
                json.dumps(r)
                for s, unit in zip(splits, rows, strict=True)
                if s == split
                for r in unit
            ]
            (partial / f"{task}.{split}.jsonl").write_text(
                "\n".join(lines) + "\n", encoding="utf-8"
            )
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # not a lost race but a real failure
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
