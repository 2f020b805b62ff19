"""Differences between strategies by class or target, by track, and in attention weights."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune.comparison.attention_weights import Track, load_tracks
from tune.comparison.configurations import Configuration
from tune.comparison.significance import Scores, common_ids, positions
from tune.tasks.label_kinds import label_kind

log = logging.getLogger(__name__)

MOST_CONFIGURATIONS = 8  # columns of a table by class
MOST_TRACKS = 12
ATTENTION_TRACKS = 5


@dataclass(frozen=True)
class Disagreement:
    """A test track on which strategies disagree.

    Attributes
    ----------
    label : its class, or its targets' values, as text
    spread : standard deviation over configurations, of `Breakdown.spread_of`
    best, worst : the configurations nearest to and farthest from the label
    """

    id: str
    label: str
    spread: float
    best: str
    worst: str


@dataclass(frozen=True)
class Attention:
    """A configuration's most uneven tracks, with the mean evenness of all."""

    configuration: Configuration
    tracks: list[Track]
    evenness: float


@dataclass(frozen=True)
class Breakdown:
    """Details of one task.

    Attributes
    ----------
    parts : classes, targets or tags
    heading : of the table of `values`
    configurations : those in the table, the baselines first, then by quality
    n_configurations : how many there are in all
    values : (len(parts), len(configurations)), NaN where undefined
    noun : what a part is: class, target or tag
    spread_of : the quantity whose deviation is a disputed track's spread
    """

    parts: list[str]
    heading: str
    configurations: list[Configuration]
    n_configurations: int
    values: np.ndarray
    disputed: list[Disagreement]
    attention: list[Attention]
    noun: str
    spread_of: str


def break_down(
    configurations: Sequence[Configuration], baselines: Sequence[Configuration], scores: Scores
) -> Breakdown:
    """Break a task's configurations down.

    Parameters
    ----------
    configurations : by quality, the best first
    """
    shown = [*baselines, *(c for c in configurations if c not in baselines)][:MOST_CONFIGURATIONS]
    result = configurations[0].result
    kind = label_kind(result["kind"])
    parts = list(result[kind.parts]) if kind.by_part else []

    def by_part(configuration):
        """A configuration's score on each part, (P,)."""
        return kind.by_part(
            configuration.labels,
            configuration.predictions,
            parts,
            lambda name: scores.curves(configuration)[name][0],
        )

    values = np.stack([by_part(c) for c in shown], 1) if parts else np.empty((0, len(shown)))
    return Breakdown(
        parts,
        kind.heading,
        shown,
        len(configurations),
        values,
        disputed(configurations),
        _attention(configurations),
        kind.noun,
        kind.spread_of,
    )


def disputed(configurations: Sequence[Configuration]) -> list[Disagreement]:
    """Tracks on which configurations disagree most, of those that all configurations have."""
    if len(configurations) < 2:
        return []
    try:
        ids = common_ids(configurations)
    except ValueError:
        return []
    first, result = configurations[0], configurations[0].result
    labels = first.labels[positions(first, ids)]  # (n,) or (n, C)
    kind = label_kind(result["kind"])
    spread, error = kind.disagreement(
        labels, [c.predictions[:, positions(c, ids)] for c in configurations]
    )
    texts = [kind.show(label, result[kind.parts]) for label in labels]
    several = len({c.result["encoder"] for c in configurations}) > 1
    names = [f"{c.result['encoder']} {c.label}" if several else c.label for c in configurations]
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


def _attention(configurations) -> list[Attention]:
    """Attention weights of each configuration that has a run with them."""
    found = []
    for configuration in configurations:
        folders = [
            r.folder
            for r in configuration.runs
            if r.folder and (r.folder / "attention.parquet").is_file()
        ]
        if folders:
            try:
                tracks = load_tracks(folders[0])
            except ValueError as error:  # the run's scores are usable all the same
                log.warning("%s", error)
                continue
            evenness = float(np.mean([t.evenness for t in tracks]))
            found.append(Attention(configuration, tracks[:ATTENTION_TRACKS], evenness))
    return found
