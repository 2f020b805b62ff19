"""Where strategies differ: by class or target, by track, and in what attention listens to."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune.comparison.attention_weights import Track, load_tracks
from tune.comparison.cells import Cell
from tune.comparison.significance import Scores, common_ids, positions
from tune.probing.tag_ranking import roc_auc
from tune.tasks.label_kinds import ONE_OF_MANY

log = logging.getLogger(__name__)

MOST_CELLS = 8  # columns of a table by class
MOST_TRACKS = 12
ATTENTION_TRACKS = 5


@dataclass(frozen=True)
class Disputed:
    """A test track on which strategies disagree.

    Attributes
    ----------
    label : its class, or its targets' values, as text
    spread : deviation over cells of how often a cell is right (classes), or of the predicted
        values relative to the labels' deviation (numbers), or of the scores over tags (tags)
    best, worst : the cells nearest to and farthest from the label
    """

    id: str
    label: str
    spread: float
    best: str
    worst: str


@dataclass(frozen=True)
class Attention:
    """A cell's most uneven tracks, with the mean evenness of all."""

    cell: Cell
    tracks: list[Track]
    evenness: float


@dataclass(frozen=True)
class Breakdown:
    """Details of one task.

    Attributes
    ----------
    parts : classes, targets or tags
    heading : what `values` are
    cells : those shown, the baselines first, then by quality
    n_cells : how many there are in all
    values : (len(parts), len(cells)), NaN where undefined
    noun : what a part is: class, target or tag
    spread_of : what the spread of a disputed track is the deviation of
    """

    parts: list[str]
    heading: str
    cells: list[Cell]
    n_cells: int
    values: np.ndarray
    disputed: list[Disputed]
    attention: list[Attention]
    noun: str
    spread_of: str


NOUNS = {
    "classes": ("class", "how often a strategy's seeds are right"),
    "keys": ("class", "how often a strategy's seeds are right"),
    "numbers": ("target", "the predicted values, relative to that of the labels"),
    "tags": ("tag", "the scores, mean over tags"),
}


def break_down(cells: Sequence[Cell], baselines: Sequence[Cell], scores: Scores) -> Breakdown:
    """Break a task's cells down.

    Parameters
    ----------
    cells : by quality, the best first
    """
    shown = [*baselines, *(c for c in cells if c not in baselines)][:MOST_CELLS]
    result = cells[0].result
    if result["kind"] == "tags":
        parts, heading = list(result["classes"]), "ROC-AUC of each tag"
        values = np.stack([tag_auc(c) for c in shown], 1)
    elif result["kind"] in ONE_OF_MANY:
        parts, heading = list(result["classes"]), "share of a class's tracks named rightly"
        values = np.stack([class_accuracy(c, len(parts)) for c in shown], 1)
    else:
        parts, heading = list(result["targets"]), "R² of each target"
        names = [f"r2_{t}" for t in parts] if len(parts) > 1 else ["r2"]
        values = np.array([[scores.curves(c)[name][0] for c in shown] for name in names])
    return Breakdown(
        parts, heading, shown, len(cells), values, disputed(cells), _attention(cells),
        *NOUNS[result["kind"]],
    )  # fmt: skip


def class_accuracy(cell: Cell, n_classes: int) -> np.ndarray:
    """Share of each class's tracks that is named rightly, over seeds: (C,); NaN without a track."""
    right = (cell.predictions == cell.labels).mean(0)  # (n,)
    counts = np.bincount(cell.labels, minlength=n_classes)
    sums = np.bincount(cell.labels, right, minlength=n_classes)
    return np.divide(sums, counts, out=np.full(n_classes, np.nan), where=counts > 0)


def tag_auc(cell: Cell) -> np.ndarray:
    """ROC-AUC of each tag, mean over seeds: (C,); NaN where all or no tracks have it."""
    return np.mean([roc_auc(cell.labels, scores) for scores in cell.predictions], axis=0)


def disputed(cells: Sequence[Cell]) -> list[Disputed]:
    """Tracks on which cells disagree most, of those that all cells have."""
    if len(cells) < 2:
        return []
    try:
        ids = common_ids(cells)
    except ValueError:
        return []
    first, result = cells[0], cells[0].result
    labels = first.labels[positions(first, ids)]  # (n,) or (n, C)
    if result["kind"] in ONE_OF_MANY:
        right = np.stack([(c.predictions[:, positions(c, ids)] == labels).mean(0) for c in cells])
        spread, error = right.std(0), 1 - right  # (n,), (cells, n)
        texts = [result["classes"][i] for i in labels]
    elif result["kind"] == "tags":
        values = np.stack([c.predictions[:, positions(c, ids)].mean(0) for c in cells])
        spread, error = values.std(0).mean(1), np.abs(values - labels).mean(2)
        tags = np.array(result["classes"])
        texts = [", ".join(tags[row]) or "no tag" for row in labels]
    else:
        values = np.stack([c.predictions[:, positions(c, ids)].mean(0) for c in cells])
        scale = np.where(labels.std(0) > 0, labels.std(0), 1.0)
        spread = (values.std(0) / scale).mean(1)
        error = (np.abs(values - labels) / scale).mean(2)
        texts = [", ".join(f"{t} {v:.2f}" for t, v in zip(result["targets"], row, strict=True))
                 for row in labels]  # fmt: skip
    names = [c.label for c in cells]
    several = len({c.result["encoder"] for c in cells}) > 1
    names = [f"{c.result['encoder']} {c.label}" if several else c.label for c in cells]
    order = np.argsort(-spread, kind="stable")[:MOST_TRACKS]
    return [Disputed(ids[i], texts[i], float(spread[i]), names[error[:, i].argmin()],
                     names[error[:, i].argmax()]) for i in order if spread[i] > 1e-9]  # fmt: skip


def _attention(cells) -> list[Attention]:
    """What attention listens to, of each cell that has a run with weights."""
    found = []
    for cell in cells:
        folders = [r.folder for r in cell.runs if r.folder and
                   (r.folder / "attention.parquet").is_file()]  # fmt: skip
        if folders:
            try:
                tracks = load_tracks(folders[0])
            except ValueError as error:  # the run's scores are whole all the same
                log.warning("%s", error)
                continue
            evenness = float(np.mean([t.evenness for t in tracks]))
            found.append(Attention(cell, tracks[:ATTENTION_TRACKS], evenness))
    return found
