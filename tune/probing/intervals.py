"""Metrics over a whole split, and bootstrap intervals over its tracks.

Which metrics a kind of label has is in its row (`tune.tasks.label_kinds`), and how they are
computed in `tune.tasks.label_metrics`. The intervals resample tracks, which is a weighting of
them, so they are computed for all resamples at once.
"""

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tune.tasks.label_kinds import label_kind

N_RESAMPLES = 2000
BOOTSTRAP_SEED = 0
FOLDS_NOTE = "folds share training tracks, so the interval is slightly too narrow"


def score(kind: str, labels: np.ndarray, predictions: np.ndarray, targets: Sequence[str]) -> dict:
    """Every metric of a kind of task, over a whole split.

    Parameters
    ----------
    kind : a name of `tune.tasks.label_kinds.KINDS`
    labels, predictions : ndarray (n,) of class numbers, or (n, n_targets) of values, or (n, C) of
        truth values and scores of tags
    targets : names of the targets ("numbers" only)

    Returns
    -------
    dict
        accuracy and macro_f1; weighted_score and accuracy; r2 and (for several targets)
        r2_<target>; or roc_auc and average_precision. The first is the main.
    """
    return label_kind(kind).metrics().score(labels, predictions, targets)


def main_score(kind: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """The metric that selects epochs, the first of `score`'s, without its overhead."""
    return label_kind(kind).metrics().main(labels, predictions)


def bootstrap(
    kind: str,
    labels: np.ndarray,
    predictions: np.ndarray,
    targets: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of each metric over test tracks.

    A resample draws tracks with replacement; the metric is averaged over the probe's seeds in
    each, so that the interval is that of the mean over seeds (Efron 1979). The resamples depend
    on the number of tracks and the seed only, so two runs on the same test split are paired.

    Parameters
    ----------
    labels : ndarray (n,), (n, n_targets) or, of tags, (n, C)
    predictions : ndarray (n_seeds, n) or (n_seeds, n, n_targets or C)
    groups : each track's, such as its artist: groups are then drawn with all their tracks, since
        tracks of one are alike (the cluster bootstrap; Davison and Hinkley 1997, ch. 3.8)

    Returns
    -------
    dict : metric name -> (low, high); NaN where a metric is undefined, or all tracks are one group
    """
    weights = _weights(len(labels), groups, n_resamples, seed)
    curves = label_kind(kind).metrics().weighted(labels, predictions, weights, targets)
    if _is_single_group(groups):
        return dict.fromkeys(curves, (float("nan"), float("nan")))
    return {name: interval(values.mean(1)) for name, values in curves.items()}


def bootstrap_curves(
    kind: str,
    labels: np.ndarray,
    predictions: np.ndarray,
    targets: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> dict[str, np.ndarray]:
    """Each metric, averaged over seeds, on the whole split and then on each resample of it.

    The resamples are the same for all runs with as many tracks, so that the difference of two
    runs' curves is that of the paired bootstrap, and averages of runs can be compared as well.
    What other seeds would have given is part of the doubt about a difference (`_over_seeds`); a
    single seed tells nothing of that and is taken as it is.

    Parameters
    ----------
    labels : ndarray (n,), (n, n_targets) or, of tags, (n, C)
    predictions : ndarray (n_seeds, n) or (n_seeds, n, n_targets or C)
    groups : as in `bootstrap`

    Returns
    -------
    dict : metric name -> (1 + n_resamples,)
    """
    ones = np.ones((1, len(labels)))
    weights = np.concatenate([ones, _weights(len(labels), groups, n_resamples, seed)])
    curves = label_kind(kind).metrics().weighted(labels, predictions, weights, targets)
    curves = {name: _over_seeds(values, predictions) for name, values in curves.items()}
    if _is_single_group(groups):
        for values in curves.values():
            values[1:] = np.nan
    return curves


def _is_single_group(groups: Sequence[str] | None) -> bool:
    """Whether all tracks belong together, so that nothing is known of other ones."""
    return groups is not None and len(set(groups)) == 1


def _over_seeds(values: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Mean over seeds of a metric (1 + R, S), with the doubt that the seeds add: (1 + R,).

    Tracks and seeds are crossed, and resampling both counts what is left over up to three times
    (Owen 2007). So seeds are drawn only as far as they differ by more than the tracks explain: the
    variance between seeds, less what resampled tracks move one seed against the others. Of S seeds
    S - 1 are drawn, with which the variance of a mean is unbiased (Rao and Wu 1988). The draws
    come from the predictions, so that other runs have others and a copy of a run has the same.
    """
    mean, n = values.mean(1), values.shape[1]
    if n == 1 or not np.isfinite(values[0]).all():
        return mean
    between = values[0].var(ddof=1)
    by_tracks = np.nanvar(values[1:] - mean[1:, None], axis=0).mean() * n / (n - 1)
    if not between > by_tracks:
        return mean
    strength = np.sqrt((between - by_tracks) / (between + by_tracks))
    rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(predictions).tobytes()))
    drawn = rng.multinomial(n - 1, np.full(n, 1 / n), size=len(values) - 1) / (n - 1)
    moved = strength * ((drawn - 1 / n) * values[1:]).sum(1)
    return mean + np.concatenate([[0.0], moved])


@lru_cache(maxsize=4)
def _resamples(n: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each of n tracks is drawn, (R, n): the same for all runs with as many tracks."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)


def _weights(n: int, groups: Sequence[str] | None, n_resamples: int, seed: int) -> np.ndarray:
    """How often each of n tracks is drawn, (R, n), tracks of a group together."""
    if groups is None:
        return _resamples(n, n_resamples, seed)
    names, which = np.unique(np.asarray(groups, str), return_inverse=True)
    return _resamples(len(names), n_resamples, seed)[:, which]


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of a bootstrap's values; NaN when half of them are undefined."""
    real = values[np.isfinite(values)]
    if len(real) <= len(values) / 2:
        return (float("nan"), float("nan"))
    low, high = np.percentile(real, [2.5, 97.5])
    return (float(low), float(high))
