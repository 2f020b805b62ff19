"""ROC-AUC and average precision of tags, for many weightings of the tracks at once.

Both depend on the order of the scores only: between two neighbouring positive tracks all negative
ones are alike. So a weighting is reduced to sums over such bins, which is a product with a sparse
matrix of as many entries as there are tracks, and the metrics to cumulative sums over the bins.
Equal scores share a bin. A tag without a positive or without a negative track has neither metric
(NaN), and is left out of the macro mean.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import rankdata

BLOCK = 128  # weightings that are worked on at once: few enough for a processor's cache


def macro(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis (tags), without those that are undefined; NaN where all are."""
    real = np.isfinite(values)
    count = real.sum(0)
    total = np.where(real, values, 0.0).sum(0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """ROC-AUC of each tag, by ranks (Mann and Whitney 1947).

    Parameters
    ----------
    labels : (n, C) bool
    scores : (n, C)

    Returns
    -------
    (C,), NaN for a tag without a positive or without a negative track
    """
    positive = labels.sum(0).astype(float)
    negative = len(labels) - positive
    ranks = rankdata(scores, axis=0) if len(scores) else np.zeros(scores.shape)
    above = np.where(labels, ranks, 0.0).sum(0) - positive * (positive + 1) / 2
    both = (positive > 0) & (negative > 0)
    return np.divide(above, positive * negative, out=np.full(len(both), np.nan), where=both)


def weighted_ranking(
    labels: np.ndarray, scores: Sequence[np.ndarray], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Macro ROC-AUC and average precision for each weighting of the tracks and each seed.

    Parameters
    ----------
    labels : (n, C) bool
    scores : S seeds, each (n, C)
    weights : (R, n), how often each track is drawn: whole numbers, whose sums float32 holds exactly

    Returns
    -------
    roc_auc, average_precision : (R, S)
    """
    blocks = [slice(i, i + BLOCK) for i in range(0, len(weights), BLOCK)]
    parts = [np.ascontiguousarray(weights[rows].T, np.float32) for rows in blocks]  # (n, r)
    sums = np.zeros((2, len(weights), len(scores)))
    counts = np.zeros((len(weights), len(scores)), int)
    for t in np.flatnonzero(labels.any(0) & ~labels.all(0)):
        for s, each in enumerate(scores):
            matrix, *kind = _bins(labels[:, t], each[:, t])
            for rows, part in zip(blocks, parts, strict=True):
                auc, precision, defined = _from_bins(matrix @ part, *kind)
                sums[:, rows, s] += np.where(defined, [auc, precision], 0.0)
                counts[rows, s] += defined
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means[0], means[1]


def _bins(labels: np.ndarray, scores: np.ndarray) -> tuple[csr_array, int, bool]:
    """The matrix that sums tracks (n,) up in bins; K, how many scores positive tracks have; ties.

    The first K bins hold positive tracks, one a score, in ascending order; the next K + 1 negative
    tracks: the i-th those from the score before up to the i-th, without it. Where a negative track
    has the score of a positive one there are ties, and K more bins of these negative tracks alone.
    """
    levels = np.unique(scores[labels])  # ascending
    k, n = len(levels), len(labels)
    below, upto = (np.searchsorted(levels, scores, side) for side in ("left", "right"))
    bins, tracks = np.where(labels, below, k + upto), np.arange(n)
    tied = np.flatnonzero(~labels & (upto > below))
    bins, tracks = np.append(bins, 2 * k + 1 + below[tied]), np.append(tracks, tied)
    order = np.argsort(bins, kind="stable")
    n_bins = 3 * k + 1 if len(tied) else 2 * k + 1
    ends = np.searchsorted(bins[order], np.arange(n_bins + 1))
    ones = np.ones(len(bins), np.float32)
    return csr_array((ones, tracks[order], ends), shape=(n_bins, n)), k, len(tied) > 0


def _from_bins(sums: np.ndarray, k: int, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ROC-AUC and average precision of one tag, and where both are defined: three of (r,).

    Parameters
    ----------
    sums : (2 K + 1 or 3 K + 1, r) float32, the weight in each of `_bins`
    """
    positive, upto = sums[:k], np.cumsum(sums[k : 2 * k + 1], axis=0)
    lower, n_negative = upto[:-1], upto[-1]  # negatives below each score, and all
    # From the top down: what is found when everything from this score on is called positive.
    hits = np.cumsum(positive[::-1], axis=0)[::-1]
    n_positive = hits[0].astype(float)
    precision = hits / np.maximum(hits + n_negative - lower, 1.0).astype(float)
    defined = (n_negative > 0) & (n_positive > 0)
    average = np.einsum("kr,kr->r", positive, precision) / np.where(defined, n_positive, 1.0)
    right = np.einsum("kr,kr->r", positive.astype(float), lower)
    if ties:
        right += 0.5 * np.einsum("kr,kr->r", positive.astype(float), sums[2 * k + 1 :])
    auc = right / np.where(defined, n_positive * n_negative, 1.0)
    return auc, average, defined
