"""Read a run's predictions on the test split."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tune.tasks.label_kinds import label_kind


@dataclass
class Predictions:
    """A run's predictions on the test split.

    Attributes
    ----------
    result : its result.json
    ids : (n,) track ids, sorted
    labels : (n,) class numbers, (n, C) values, or (n, C) truth values of tags
    predictions : (n_seeds, n) or (n_seeds, n, C)
    groups : (n,) each track's group, where a column of the task groups tracks
    """

    result: dict
    ids: list[str]
    labels: np.ndarray
    predictions: np.ndarray
    groups: list[str] | None = None


def folds_text(result: Mapping) -> str:
    """Name the folds of a cross-validation by what changes them: 5 folds by artist; "" without."""
    folds = result.get("folds")
    if not folds:
        return ""
    return f"{folds['n']} folds" + (f" by {folds['group_column']}" if folds["group_column"] else "")


def read_predictions(run: Path) -> Predictions:
    """Read a run's folder.

    Raises
    ------
    ValueError
        When it isn't a run, or its predictions are incomplete.
    """
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        table = pq.read_table(run / "predictions.parquet").to_pydict()
    except FileNotFoundError as error:
        missing = error.filename or run / "predictions.parquet"  # Arrow doesn't say which
        raise ValueError(f"{run} is no run of train_probe.py: it holds no {missing}") from None
    order = np.lexsort((table["id"], table["seed"]))
    n_seeds = len(set(table["seed"]))
    if not n_seeds:
        raise ValueError(f"{run}: predictions.parquet has no rows")
    if len(order) % n_seeds:
        raise ValueError(f"{run}: the seeds have different numbers of tracks")
    ids = [table["id"][i] for i in order[: len(order) // n_seeds]]

    def column(name: str) -> np.ndarray:
        """A column, (n_seeds, n)."""
        return np.array([table[name][i] for i in order]).reshape(n_seeds, -1)

    if (column("id") != np.array(ids)).any():
        raise ValueError(f"{run}: the seeds have different tracks")
    kind = label_kind(result["kind"])
    labels, predictions = kind.from_columns(column, result[kind.parts])
    groups = column("group")[0].tolist() if "group" in table else None
    return Predictions(result, ids, labels[0], predictions, groups)
