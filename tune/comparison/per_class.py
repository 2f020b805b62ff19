"""Where strategies differ: by class or target, by track, and in what attention listens to."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune.comparison.attention_weights import Track, load_tracks
from tune.comparison.cells import Cell
from tune.comparison.significance import Scores, common_ids, positions
from tune.tasks.label_kinds import label_kind

log = logging.getLogger(__name__)

MOST_CELLS = 8  # columns of a table by class
MOST_TRACKS = 12
ATTENTION_TRACKS = 5


@dataclass(frozen=True)
class Disagreement:
    """A test track on which strategies disagree.

    Attributes
    ----------
    label : its class, or its targets' values, as text
    spread : over cells, of what `Breakdown.spread_of` says
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
    disputed: list[Disagreement]
    attention: list[Attention]
    noun: str
    spread_of: str


def break_down(cells: Sequence[Cell], baselines: Sequence[Cell], scores: Scores) -> Breakdown:
    """Break a task's cells down.

    Parameters
    ----------
    cells : by quality, the best first
    """
    shown = [*baselines, *(c for c in cells if c not in baselines)][:MOST_CELLS]
    result = cells[0].result
    kind = label_kind(result["kind"])
    parts = list(result[kind.parts]) if kind.by_part else []

    def by_part(cell):
        """What a cell scores on each part, (P,)."""
        return kind.by_part(
            cell.labels, cell.predictions, parts, lambda name: scores.curves(cell)[name][0]
        )

    values = np.stack([by_part(c) for c in shown], 1) if parts else np.empty((0, len(shown)))
    return Breakdown(
        parts,
        kind.heading,
        shown,
        len(cells),
        values,
        disputed(cells),
        _attention(cells),
        kind.noun,
        kind.spread_of,
    )


def disputed(cells: Sequence[Cell]) -> list[Disagreement]:
    """Tracks on which cells disagree most, of those that all cells have."""
    if len(cells) < 2:
        return []
    try:
        ids = common_ids(cells)
    except ValueError:
        return []
    first, result = cells[0], cells[0].result
    labels = first.labels[positions(first, ids)]  # (n,) or (n, C)
    kind = label_kind(result["kind"])
    spread, error = kind.disagreement(labels, [c.predictions[:, positions(c, ids)] for c in cells])
    texts = [kind.show(label, result[kind.parts]) for label in labels]
    several = len({c.result["encoder"] for c in cells}) > 1
    names = [f"{c.result['encoder']} {c.label}" if several else c.label for c in cells]
    order = np.argsort(-spread, kind="stable")[:MOST_TRACKS]
    return [
        Disagreement(
            ids[i],
            texts[i],
            float(spread[i]),
            names[error[:, i].argmin()],
            names[error[:, i].argmax()],
        )
        for i in order
        if spread[i] > 1e-9
    ]


def _attention(cells) -> list[Attention]:
    """What attention listens to, of each cell that has a run with weights."""
    found = []
    for cell in cells:
        folders = [
            r.folder for r in cell.runs if r.folder and (r.folder / "attention.parquet").is_file()
        ]
        if folders:
            try:
                tracks = load_tracks(folders[0])
            except ValueError as error:  # the run's scores are whole all the same
                log.warning("%s", error)
                continue
            evenness = float(np.mean([t.evenness for t in tracks]))
            found.append(Attention(cell, tracks[:ATTENTION_TRACKS], evenness))
    return found
