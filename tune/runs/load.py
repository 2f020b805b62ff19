"""Read runs from folders.

A run is a folder that `train_probe.py` wrote. A run that can't be used is skipped and listed with
its reason; none is skipped silently.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tune.runs.predictions import Predictions, read_predictions

NEEDED = (
    "task",
    "kind",
    "encoder",
    "layer",
    "seg",
    "agg",
    "tokens",
    "seeds",
    "metrics",
    "cost",
    "n_tracks",
    "classes",
    "targets",
)


@dataclass(eq=False)
class Run:
    """One run.

    Attributes
    ----------
    name, where : its folder's name, and the folder (or W&B's path) as text
    made : when, in seconds since 1970: the newest of two runs of the same seeds counts
    folder : the folder, or None for a run that was read from W&B
    """

    name: str
    where: str
    made: float
    predictions: Predictions
    config: Mapping
    folder: Path | None = None

    @property
    def result(self) -> dict:
        """Its result.json."""
        return self.predictions.result


@dataclass(frozen=True)
class SkippedRun:
    """A run that isn't compared, and why."""

    where: str
    reason: str


def read_folders(roots: Sequence[Path]) -> tuple[list[Run], list[SkippedRun]]:
    """Read every run below some folders.

    Returns
    -------
    runs, and those that can't be used

    Raises
    ------
    ValueError
        When a folder is missing.
    """
    runs, left, seen = [], [], set()
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; train_probe.py writes runs to runs/")
        for folder in sorted(_run_folders(root)):
            # A folder with a dot is one that is being written.
            hidden = any(part.startswith(".") for part in folder.relative_to(root).parts)
            if hidden or folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                runs.append(read_run(folder))
            except ValueError as error:
                left.append(SkippedRun(str(folder), str(error)))
    return runs, left


def _run_folders(root: Path) -> set[Path]:
    """Folders with a run's files below a folder, links to folders followed, each folder once."""
    found, seen = set(), set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
        elif {"result.json", "predictions.parquet"} & set(files):
            found.add(Path(folder))
        seen.add(real)
    return found


def read_run(folder: Path) -> Run:
    """Read one run's folder; a ValueError says why it can't be used."""
    try:
        predictions = read_predictions(folder)
        check_run(predictions)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        made = (folder / "result.json").stat().st_mtime
    except KeyError as error:
        raise ValueError(f"lacks {error}, which train_probe.py writes") from error
    except (ValueError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(text.removeprefix(f"{folder}: ").removeprefix(f"{folder} ")) from error
    return Run(folder.name, str(folder), made, predictions, config, folder)


def check_run(predictions: Predictions) -> None:
    """Raise ValueError unless a run has everything that a comparison needs."""
    result, shape = predictions.result, predictions.predictions.shape
    missing = [name for name in NEEDED if name not in result]
    if missing:
        raise ValueError(f"its result.json lacks {', '.join(missing)}")
    if not result["metrics"]:
        raise ValueError("its result.json has no metrics")
    if len(result["seeds"]) != shape[0]:
        raise ValueError(f"{len(result['seeds'])} seeds in result.json, {shape[0]} in predictions")
    values = (predictions.predictions, predictions.labels)
    if not all(np.isfinite(v).all() for v in values):
        raise ValueError("predictions or labels are not finite")
