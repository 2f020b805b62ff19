"""Tracks to pretrain on: training splits of tasks, or a folder of audio, and no test track.

A track is known by its content (SHA-256), not by its name: the same file under another name, or in
another task, is still a test track.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tune.audio.decode import SUFFIXES, AudioError
from tune.demo import DEMO_TASKS
from tune.tasks.download import FETCHING
from tune.tasks.load import TASKS, Task, load_task
from tune.tasks.readers import TaskError

log = logging.getLogger(__name__)


@dataclass
class Corpus:
    """Tracks to learn from and to validate on.

    Attributes
    ----------
    train, val : paths, each audio content once
    refused : list of {"path", "reason"}: tracks that are in a task's test split
    skipped : list of {"path", "reason"}: files that can't be read, rows that can't be used
    checked : names of the tasks whose test splits were looked at
    sources : source -> its digest, of tasks of one's own
    """

    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    refused: list[dict] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


def gather(
    tasks: Sequence[Task],
    audio_dir: Path | None,
    others: Sequence[Task],
    store,
    *,
    val_share: float = 0.1,
    seed: int = 1234,
) -> Corpus:
    """Collect the tracks.

    Parameters
    ----------
    tasks : their train splits are learnt from, their val splits validated on
    audio_dir : a folder of audio files (with its subfolders), of which `val_share` are kept for
        validation, drawn by content and seed
    others : tasks whose test splits must not be touched either
    store : tune.store.Store, which knows contents

    Raises
    ------
    ValueError
        When nothing is left to learn from or to validate on, with the reason.
    """
    corpus, contents = Corpus(), {}

    def content(path: str) -> str | None:
        try:
            return store.content(path)
        except AudioError as error:
            corpus.skipped.append({"path": path, "reason": str(error)})
            return None

    tested: dict[str, str] = {}
    for task in (*tasks, *others):
        corpus.checked.append(task.name)
        for path in task.splits["test"]["path"]:
            with contextlib.suppress(AudioError):  # no such file, or none that can be read
                tested[store.content(path)] = task.name
    for task in tasks:
        corpus.skipped += [{"path": i["where"], "reason": i["reason"]} for i in task.skipped]

    def add(path: str, where: list) -> None:
        key = content(path)
        if key in tested:
            reason = f"it is in the test split of {tested[key]}"
            corpus.refused.append({"path": path, "reason": reason})
        elif key is not None and key not in contents:
            contents[key] = path
            where.append(path)

    # Validation first: a track that a task validates on isn't learnt from through another.
    for split, where in (("val", corpus.val), ("train", corpus.train)):
        for task in tasks:
            for path in task.splits[split]["path"]:
                add(path, where)
    if audio_dir is not None:
        found: list[str] = []
        for path in audio_files(audio_dir):
            add(str(path), found)
        order = np.random.default_rng(seed).permutation(len(found))
        found = sorted(found, key=store.content)
        n_val = max(1, round(val_share * len(found))) if len(found) > 1 else 0
        held = {found[i] for i in order[:n_val]}
        corpus.val += [path for path in found if path in held]
        corpus.train += [path for path in found if path not in held]
    for name, paths in (("learn from", corpus.train), ("validate on", corpus.val)):
        if not paths:
            raise ValueError(
                f"no track to {name}: {len(corpus.refused)} are test tracks, "
                f"{len(corpus.skipped)} can't be read"
            )
    return corpus


def audio_files(folder: Path) -> list[Path]:
    """Audio files of a folder and its subfolders, by their endings, in order of their names.

    Raises
    ------
    ValueError
        When it isn't a folder or holds none.
    """
    if not folder.is_dir():
        raise ValueError(f"--audio_dir {folder} is not a folder")
    found = [
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    ]
    if not found:
        raise ValueError(
            f"--audio_dir {folder} holds no audio file by its ending (.mp3, .wav, ...)"
        )
    return sorted(found)


def local_tasks(data_dir: Path, cache_dir: Path, named: Iterable[str]) -> list[Task]:
    """The known tasks that are on this machine already, beside those named: nothing is fetched."""
    found = []
    for name, row in TASKS.items():
        if name in named:
            continue
        if name in DEMO_TASKS:
            there = any(cache_dir.glob(f"**/{row.stem}.test.jsonl"))
        elif row.layout == "marble":
            there = (data_dir / row.place / f"{row.stem}.test.jsonl").exists()
        else:
            folder = data_dir / row.place
            there = folder.is_dir() and any(folder.iterdir()) and not (folder / FETCHING).exists()
        if there:
            try:
                found.append(load_task(name, data_dir, cache_dir=cache_dir, progress=False))
            except TaskError as error:
                log.warning("test tracks of %s are not known, so not held back: %s", name, error)
    return found
