"""Metrics of each kind of label, over a whole split and for weightings of its tracks.

The point values come from scikit-learn and mir_eval through `evaluate.Metric` (ours, because
`evaluate.load` fetches a script from the hub). Intervals resample tracks, which is a weighting of
them: each metric has a form for many weightings at once. `tune.tasks.label_kinds` says which kind
has which of them; `tune.probing.intervals` draws the resamples.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    r2_score,
    roc_auc_score,
)

from tune.tasks.label_readers import defined_tags
from tune.tasks.musical_keys import KEYS, key_weights
from tune.tasks.tag_ranking import macro, roc_auc, weighted_ranking

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


class Accuracy(evaluate.Metric):
    """Share of tracks whose predicted class is right, 0 to 1."""

    def _info(self):
        return _info("Accuracy over a whole split.", datasets.Value("int64"))

    def _compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(evaluate.Metric):
    """Mean over classes of F1, over the classes that occur in the references.

    A class that no track of the split has counts for no strategy, whoever predicts it: the
    prediction is a miss of the track's own class.
    """

    def _info(self):
        return _info("Macro-averaged F1 over a whole split.", datasets.Value("int64"))

    def _compute(self, predictions, references):
        score = f1_score(
            references,
            predictions,
            labels=np.unique(references),
            average="macro",
            zero_division=0.0,
        )
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


def _info(description: str, feature) -> evaluate.MetricInfo:
    """Boilerplate that `evaluate` asks for."""
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="predictions and references of a whole split",
        features=datasets.Features({"predictions": feature, "references": feature}),
    )


@dataclass(frozen=True)
class Metrics:
    """The metrics of a kind of label; of each a higher value is better.

    Attributes
    ----------
    points : classes of `evaluate.Metric`; the first value of the first is the main metric
    main : (labels, predictions) -> the main metric alone, which selects epochs: thousands a run, so
        without `evaluate`'s overhead
    weighted : (labels, predictions (S, n[, C]), weights (R, n), names) -> metric's name to (R, S),
        in the order of `points`
    name_each : whether `points` are told the names, to name a value for each
    """

    points: tuple[type[evaluate.Metric], ...]
    main: Callable
    weighted: Callable
    name_each: bool = False

    def score(self, labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> dict:
        """Every metric over a whole split, the main one first."""
        extra = {"targets": list(names)} if self.name_each else {}
        out = {}
        for metric in self.points:
            metric = metric(keep_in_memory=True)
            metric.add_batch(predictions=predictions, references=labels)
            out |= metric.compute(**extra)
        return out


def _main_r2(labels, predictions) -> float:
    """Mean R² over targets, NaN where `R2` says so."""
    if len(labels) < 2 or (np.ptp(labels, axis=0) == 0).any():
        return float("nan")
    return float(r2_score(labels, predictions))


def _weighted_classes(labels, predictions, weights, names) -> dict[str, np.ndarray]:
    """Accuracy and macro F1."""
    return {
        "accuracy": weights @ (predictions == labels).T / weights.sum(1, keepdims=True),
        "macro_f1": _weighted_f1(labels, predictions, weights),
    }


def _weighted_keys(labels, predictions, weights, names) -> dict[str, np.ndarray]:
    """Weighted score and accuracy."""
    total = weights.sum(1, keepdims=True)
    return {
        "weighted_score": weights @ key_weights()[labels, predictions].T / total,
        "accuracy": weights @ (predictions == labels).T / total,
    }


def _weighted_numbers(labels, predictions, weights, names) -> dict[str, np.ndarray]:
    """R², the mean and, of several targets, each."""
    each = np.stack(
        [
            _per_seed(_weighted_r2, labels[:, t], predictions[:, :, t], weights)
            for t in range(labels.shape[1])
        ]
    )  # (n_targets, R, S)
    named = {f"r2_{t}": v for t, v in zip(names, each, strict=True)}
    return {"r2": each.mean(0)} | (named if len(names) > 1 else {})


def _weighted_tags(labels, predictions, weights, names) -> dict[str, np.ndarray]:
    """ROC-AUC and average precision."""
    return dict(
        zip(
            ("roc_auc", "average_precision"),
            weighted_ranking(labels, predictions, weights),
            strict=True,
        )
    )


def _per_seed(function: Callable, labels, predictions, weights) -> np.ndarray:
    """Apply a weighted metric to each seed's predictions: (R, n_seeds)."""
    return np.stack([function(labels, p, weights) for p in predictions], axis=1)


def _weighted_f1(labels, predictions, weights) -> np.ndarray:
    """Macro F1 for each weighting, over the classes that its tracks have: (R, n_seeds)."""
    total, n_classes = 0.0, 0
    for c in np.unique(labels):
        true, predicted = labels == c, predictions == c  # (n,), (S, n)
        of_class = (weights @ true)[:, None]  # (R, 1)
        both, either = weights @ (true & predicted).T, of_class + weights @ predicted.T
        total = total + np.where(of_class > 0, 2 * both / np.maximum(either, 1e-300), 0.0)
        n_classes = n_classes + (of_class > 0)
    return total / n_classes


def _weighted_r2(labels, predictions, weights) -> np.ndarray:
    """R² for each weighting: (R,)."""
    centred = labels - labels.mean()  # for precision; R² doesn't change
    error = weights @ (labels - predictions) ** 2
    total = weights @ centred**2 - (weights @ centred) ** 2 / weights.sum(1)
    varies = total > 1e-12 * (weights @ centred**2)  # else a resample of equal labels
    return 1 - np.divide(error, total, out=np.full(len(weights), np.nan), where=varies)


CLASS_METRICS = Metrics(
    points=(Accuracy, MacroF1),
    main=lambda labels, predictions: float(np.mean(labels == predictions)),
    weighted=_weighted_classes,
)
KEY_METRICS = Metrics(
    points=(KeyScore, Accuracy),
    main=lambda labels, predictions: float(key_weights()[labels, predictions].mean()),
    weighted=_weighted_keys,
)
NUMBER_METRICS = Metrics(points=(R2,), main=_main_r2, weighted=_weighted_numbers, name_each=True)
TAG_METRICS = Metrics(
    points=(TagRanking,),
    main=lambda labels, predictions: float(macro(roc_auc(labels, predictions))),
    weighted=_weighted_tags,
)
