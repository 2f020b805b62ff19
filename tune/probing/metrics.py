"""Metrics over a whole split, and bootstrap intervals over its tracks.

The point values come from scikit-learn through `evaluate.Metric` (ours, because `evaluate.load`
fetches a script from the hub). The intervals resample tracks, which is a weighting of them, so
they are computed for all resamples at once.
"""

import sys
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import datasets
import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    r2_score,
    roc_auc_score,
)

from tune.probing.tag_ranking import macro, roc_auc, weighted_ranking
from tune.tasks.musical_keys import KEYS, key_weights

# evaluate imports transformers' pipelines, seconds at each start, for evaluators that aren't used
# here; it goes on without them.
_PIPELINES = "transformers.pipelines"
_hidden = _PIPELINES not in sys.modules
if _hidden:
    sys.modules[_PIPELINES] = None
try:
    import evaluate
finally:
    if _hidden:
        del sys.modules[_PIPELINES]

N_RESAMPLES = 2000
BOOTSTRAP_SEED = 0


class Accuracy(evaluate.Metric):
    """Share of tracks whose predicted class is right, 0 to 1."""

    def _info(self):
        return _info("Accuracy over a whole split.", datasets.Value("int64"))

    def _compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(evaluate.Metric):
    """Mean over classes of F1, over the classes that occur in references or predictions."""

    def _info(self):
        return _info("Macro-averaged F1 over a whole split.", datasets.Value("int64"))

    def _compute(self, predictions, references):
        score = f1_score(references, predictions, average="macro", zero_division=0.0)
        return {"macro_f1": float(score)}


class R2(evaluate.Metric):
    """Coefficient of determination of each target and their mean; NaN for fewer than 2 tracks."""

    def _info(self):
        return _info("R² over a whole split.", datasets.Sequence(datasets.Value("float64")))

    def _compute(self, predictions, references, targets):
        references, predictions = np.asarray(references), np.asarray(predictions)
        if len(references) < 2:
            return dict.fromkeys(["r2", *(f"r2_{t}" for t in targets)], float("nan"))
        each = r2_score(references, predictions, multioutput="raw_values")
        each = np.where(np.ptp(references, axis=0) > 0, each, np.nan)  # a constant has no R²
        named = {f"r2_{t}": float(v) for t, v in zip(targets, each, strict=True)}
        return {"r2": float(each.mean())} | (named if len(targets) > 1 else {})


class KeyScore(evaluate.Metric):
    """Mean over tracks of mir_eval's weighted score of the predicted key (a number of `KEYS`)."""

    def _info(self):
        return _info("Weighted key score over a whole split.", datasets.Value("int64"))

    def _compute(self, predictions, references):
        pairs = zip(references, predictions, strict=True)
        import mir_eval  # a second to import, for keys alone

        scores = [mir_eval.key.weighted_score(KEYS[true], KEYS[guess]) for true, guess in pairs]
        return {"weighted_score": float(np.mean(scores))}


class TagRanking(evaluate.Metric):
    """ROC-AUC and average precision, each a mean over tags.

    A tag that all tracks of the split have, or none, says nothing about the scores: it is left out
    of both means. NaN when that is so of all tags.
    """

    def _info(self):
        feature = datasets.Sequence(datasets.Value("float64"))
        return _info("ROC-AUC and average precision, macro over tags.", feature)

    def _compute(self, predictions, references):
        labels, scores = np.asarray(references).astype(bool), np.asarray(predictions)
        names = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}
        told = [t for t in range(labels.shape[1]) if defined_tags(labels)[t]]
        if not told:
            return dict.fromkeys(names, float("nan"))
        return {
            name: float(np.mean([metric(labels[:, t], scores[:, t]) for t in told]))
            for name, metric in names.items()
        }


def defined_tags(labels: np.ndarray) -> np.ndarray:
    """Say of each tag whether some tracks (n, C) have it and some have not: (C,) bool."""
    return labels.any(0) & ~labels.all(0)


def _info(description: str, feature) -> evaluate.MetricInfo:
    """Boilerplate that `evaluate` asks for."""
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="predictions and references of a whole split",
        features=datasets.Features({"predictions": feature, "references": feature}),
    )


METRICS = {
    "classes": (Accuracy, MacroF1),
    "keys": (KeyScore, Accuracy),
    "numbers": (R2,),
    "tags": (TagRanking,),
}


def score(kind: str, labels: np.ndarray, predictions: np.ndarray, targets: Sequence[str]) -> dict:
    """Every metric of a kind of task, over a whole split.

    Parameters
    ----------
    kind : "classes", "keys", "numbers" or "tags"
    labels, predictions : ndarray (n,) of class numbers, or (n, n_targets) of values, or (n, C) of
        truth values and scores of tags
    targets : names of the targets ("numbers" only)

    Returns
    -------
    dict
        accuracy and macro_f1; weighted_score and accuracy; r2 and (for several targets)
        r2_<target>; or roc_auc and average_precision. The first is the main.
    """
    extra = {"targets": list(targets)} if kind == "numbers" else {}
    out = {}
    for metric in METRICS[kind]:
        metric = metric(keep_in_memory=True)
        metric.add_batch(predictions=predictions, references=labels)
        out |= metric.compute(**extra)
    return out


def main_score(kind: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """The metric that selects epochs, the first of `score`'s, without its overhead."""
    if kind == "classes":
        return float(np.mean(labels == predictions))  # thousands a run: no checks of input
    if kind == "keys":
        return float(key_weights()[labels, predictions].mean())
    if kind == "tags":
        return float(macro(roc_auc(labels, predictions)))
    if len(labels) < 2 or (np.ptp(labels, axis=0) == 0).any():
        return float("nan")  # as `R2` says
    return float(r2_score(labels, predictions))


def bootstrap(
    kind: str,
    labels: np.ndarray,
    predictions: np.ndarray,
    targets: Sequence[str],
    *,
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

    Returns
    -------
    dict : metric name -> (low, high); NaN where a metric is undefined
    """
    weights = _resamples(len(labels), n_resamples, seed)
    curves = _weighted(kind, labels, predictions, weights, targets)
    return {name: interval(values.mean(1)) for name, values in curves.items()}


def paired_bootstrap(
    kind: str,
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    targets: Sequence[str],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> dict[str, tuple[float, float, float]]:
    """Difference of two runs' metrics on the same test tracks, with 95 % percentile intervals.

    Both runs are scored on the same resamples of tracks, so that what is easy or hard for both
    cancels (Efron and Tibshirani 1993, ch. 10 and 16); what the seeds add is in the interval.

    Parameters
    ----------
    labels : ndarray (n,) or (n, n_targets)
    first, second : ndarray (n_seeds, n[, n_targets]); the numbers of seeds may differ

    Returns
    -------
    dict : metric name -> (second - first, low, high), each metric averaged over seeds
    """
    a, b = (bootstrap_curves(kind, labels, p, targets, n_resamples=n_resamples, seed=seed)
            for p in (first, second))  # fmt: skip
    out = {}
    for name in a:
        values = b[name] - a[name]
        out[name] = (float(values[0]), *interval(values[1:]))
    return out


def bootstrap_curves(
    kind: str,
    labels: np.ndarray,
    predictions: np.ndarray,
    targets: Sequence[str],
    *,
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

    Returns
    -------
    dict : metric name -> (1 + n_resamples,)
    """
    ones = np.ones((1, len(labels)))
    weights = np.concatenate([ones, _resamples(len(labels), n_resamples, seed)])
    curves = _weighted(kind, labels, predictions, weights, targets)
    return {name: _over_seeds(values, predictions) for name, values in curves.items()}


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


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of a bootstrap's values; NaN when half of them are undefined."""
    real = values[np.isfinite(values)]
    if len(real) <= len(values) / 2:
        return (float("nan"), float("nan"))
    low, high = np.percentile(real, [2.5, 97.5])
    return (float(low), float(high))


def _weighted(kind, labels, predictions, weights, targets) -> dict[str, np.ndarray]:
    """Each metric for each weighting of the tracks (R, n) and each seed: (R, n_seeds)."""
    if kind == "tags":
        return dict(zip(("roc_auc", "average_precision"),
                        weighted_ranking(labels, predictions, weights), strict=True))  # fmt: skip
    if kind == "keys":
        total = weights.sum(1, keepdims=True)
        return {
            "weighted_score": weights @ key_weights()[labels, predictions].T / total,
            "accuracy": weights @ (predictions == labels).T / total,
        }
    if kind == "classes":
        return {
            "accuracy": weights @ (predictions == labels).T / weights.sum(1, keepdims=True),
            "macro_f1": _per_seed(_weighted_f1, labels, predictions, weights),
        }
    each = np.stack(
        [
            _per_seed(_weighted_r2, labels[:, t], predictions[:, :, t], weights)
            for t in range(labels.shape[1])
        ]
    )  # (n_targets, R, n_seeds)
    named = {f"r2_{t}": v for t, v in zip(targets, each, strict=True)}
    return {"r2": each.mean(0)} | (named if len(targets) > 1 else {})


def _per_seed(function: Callable, labels, predictions, weights) -> np.ndarray:
    """Apply a weighted metric to each seed's predictions: (R, n_seeds)."""
    return np.stack([function(labels, p, weights) for p in predictions], axis=1)


def _weighted_f1(labels, predictions, weights) -> np.ndarray:
    """Macro F1 for each weighting, over classes that occur in it: (R,)."""
    scores = []
    for c in np.union1d(labels, predictions):
        true, predicted = labels == c, predictions == c
        both, either = weights @ (true & predicted), weights @ true + weights @ predicted
        scores.append(np.divide(2 * both, either, out=np.full(len(weights), np.nan),
                                where=either > 0))  # fmt: skip
    return np.nanmean(scores, axis=0)


def _weighted_r2(labels, predictions, weights) -> np.ndarray:
    """R² for each weighting: (R,)."""
    centred = labels - labels.mean()  # for precision; R² doesn't change
    error = weights @ (labels - predictions) ** 2
    total = weights @ centred**2 - (weights @ centred) ** 2 / weights.sum(1)
    varies = total > 1e-12 * (weights @ centred**2)  # else a resample of equal labels
    return 1 - np.divide(error, total, out=np.full(len(weights), np.nan), where=varies)
