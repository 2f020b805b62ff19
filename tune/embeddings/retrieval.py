"""Retrieval as a measure: whether a track's neighbours are tracks like it, by any labels.

Every labelled track is a query, all others are ranked by their similarity to it, and those with the
same label are relevant. No training, no split. Tracks of the query's own group (its artist, album
or recording) can be left out of the ranking, since clips of one recording find each other by how it
was mixed. All measures are means over queries, so that strategies are compared track by track.

    nearest      share of queries whose nearest track is relevant
    of_k         share of relevant ones among the k nearest
    knn          share of queries whose label a vote of the k nearest gets right
    map          mean average precision of the whole ranking
    recall       share of the R relevant tracks that are among the R nearest
    r2           of number labels: R² of the mean of the k nearest

Shapes: n tracks, q queries, d values of a unit vector, C classes or targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune.comparison.jackknife import Estimate, estimates
from tune.embeddings.space import MutualProximity, similarities

K = 10


@dataclass(frozen=True, eq=False)
class Retrieved:
    """What each query found.

    Attributes
    ----------
    queries : (q,) rows
    first : (q,) row of the nearest track
    values : measure -> (q,) float64; NaN where a query has no relevant track
    predictions : (q,) class, or (q, C) means, of the k nearest
    """

    queries: np.ndarray
    first: np.ndarray
    values: dict[str, np.ndarray]
    predictions: np.ndarray


def retrieve(
    unit: np.ndarray,
    labels: np.ndarray,
    *,
    k: int = K,
    groups: np.ndarray | None = None,
    queries: np.ndarray | None = None,
    proximity: MutualProximity | None = None,
) -> Retrieved:
    """Rank all tracks for each query.

    Parameters
    ----------
    unit : (n, d) unit vectors (`tune.embeddings.space.Space`)
    labels : (n,) class numbers, or (n, C) values
    groups : (n,); tracks of the query's group are left out
    queries : rows; None is all
    proximity : rank by mutual proximity instead of the cosine

    Examples
    --------
    >>> unit = np.array([[1.0, 0], [0.96, 0.28], [0, 1], [-0.6, 0.8]])
    >>> found = retrieve(unit, np.array([0, 0, 1, 1]), k=1)
    >>> found.values["map"].mean()
    np.float64(1.0)
    """
    numbers = labels.ndim == 2
    queries = np.arange(len(unit)) if queries is None else queries
    names = () if numbers else ("nearest", "of_k", "knn", "map", "recall")
    values = {name: np.full(len(queries), np.nan) for name in names}
    first = np.empty(len(queries), int)
    predictions = np.empty((len(queries), *labels.shape[1:]), labels.dtype)
    done = 0
    for rows, similar in similarities(unit, queries, proximity):
        if groups is not None:
            similar[groups == groups[rows][:, None]] = -np.inf
        at = slice(done, done + len(rows))
        order = _ranking(similar, k if numbers else None)
        candidates = np.isfinite(np.take_along_axis(similar, order, 1))  # (b, n), in order
        first[at] = order[:, 0]
        near, there = labels[order[:, :k]], candidates[:, :k]
        if numbers:
            shares = there / np.maximum(there.sum(1, keepdims=True), 1)
            predictions[at] = (near * shares[:, :, None]).sum(1)
        else:
            predictions[at] = [_vote(line[ok]) for line, ok in zip(near, there, strict=True)]
            measured = _measures(labels[order] == labels[rows][:, None], candidates, k)
            measured["knn"] = (predictions[at] == labels[rows]).astype(float)
            for name in names:
                values[name][at] = measured[name]
        done += len(rows)
    return Retrieved(queries, first, values, predictions)


def _ranking(similar: np.ndarray, k: int | None) -> np.ndarray:
    """Columns by falling similarity (b, n), or the first k of them, ties in their order."""
    return np.argsort(-similar, axis=1, kind="stable")[:, :k]


def _vote(near: np.ndarray) -> int:
    """The label that most have; among equals the one whose first track is nearest."""
    if not len(near):
        return -1
    names, places, counts = np.unique(near, return_index=True, return_counts=True)
    return names[np.lexsort((places, -counts))[0]]


def _measures(relevant: np.ndarray, candidates: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Measures of rankings (b, n): whether each place is relevant, and whether it counts."""
    relevant = relevant & candidates
    total = relevant.sum(1)
    some = np.where(total > 0, total, np.nan)
    places = np.arange(1, relevant.shape[1] + 1)
    found = relevant.cumsum(1)
    among = np.take_along_axis(found, np.maximum(total - 1, 0)[:, None], 1)[:, 0]
    return {
        "nearest": relevant[:, 0].astype(float),
        "of_k": relevant[:, :k].sum(1) / np.maximum(candidates[:, :k].sum(1), 1),
        "map": (found / places * relevant).sum(1) / some,
        "recall": among / some,
    }


def expected_map(labels: np.ndarray) -> float:
    """Mean average precision of rankings at random, by the sizes of the classes.

    Of N others with R relevant ones it is (H + (N - H) (R - 1) / (N - 1)) / N with the N-th
    harmonic number H.

    Examples
    --------
    >>> round(expected_map(np.array([0, 0, 1, 1])), 4)  # (1 + 1/2 + 1/3) / 3
    0.6111
    """
    _, counts = np.unique(labels, return_counts=True)
    n = len(labels) - 1
    harmonic = (1 / np.arange(1, n + 1)).sum()
    relevant = counts[counts > 1] - 1
    expected = (harmonic + (n - harmonic) * (relevant - 1) / max(n - 1, 1)) / n
    return float(np.average(expected, weights=relevant + 1))


def estimate(
    found: Retrieved,
    measure: str,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    targets: Sequence[str] = (),
) -> Estimate:
    """A measure with the variance that the queries give it, for intervals and verdicts.

    Parameters
    ----------
    measure : of the module's docstring
    labels, groups : of all tracks; tracks of a group count as one
    """
    own = (np.arange(len(labels)) if groups is None else groups)[found.queries]
    if measure == "r2":
        scored = estimates(
            "numbers", labels[found.queries], found.predictions[None], targets, groups=own
        )
        return next(iter(scored.values()))
    values = found.values[measure]
    used = np.isfinite(values)
    _, which = np.unique(own[used], return_inverse=True)
    mean = float(values[used].mean())
    size = int(which.max(initial=-1)) + 1
    sums = np.bincount(which, values[used] - mean, minlength=size)
    parts = sums * size / used.sum()
    return Estimate(mean, parts, (), int(used.sum()), size, 1, measure in ("nearest", "knn"))
