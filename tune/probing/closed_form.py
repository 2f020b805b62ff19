"""Probes without gradients: ridge regression in closed form, and nearest neighbours.

Both learn the same targets: 1 for a track's class (or tag) and -1 for the others, or the values.
Ridge on those is scikit-learn's `RidgeClassifier`; the mean over neighbours is a vote. The
strength, or the number of neighbours, is the best on validation; at equal scores the stronger or
the larger. They draw nothing: every seed gives the same. scikit-learn is slow to import, so it is
imported where it is used.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tune.probing.bank import ProbeData
from tune.probing.intervals import main_score

STRENGTHS = tuple(10.0**k for k in range(6, -5, -1))  # strongest first
NEIGHBOURS = (100, 50, 30, 20, 10, 5, 3, 1)


@dataclass
class ClosedForm:
    """Fitted probes of every layer, as `tune.runs.outcome.score_test` takes a bank and selection.

    Attributes
    ----------
    outputs : (M, n, C) for the test split's samples; M counts seeds fastest, then layers
    probes : M modules; ridge's hold w2 (D, C) and b2 (1, C), neighbours' hold nothing
    score, best_score : (M,) on validation
    epoch, best_epoch : (M,) zeros
    curves : M empty ones
    chosen : name of what was chosen -> (M,) values
    """

    outputs: torch.Tensor
    probes: list[nn.Module]
    n_in: int
    score: np.ndarray
    chosen: dict[str, np.ndarray]

    @property
    def best_score(self) -> np.ndarray:
        """The validation scores; nothing else was kept."""
        return self.score

    @property
    def epoch(self) -> np.ndarray:
        """There are no epochs."""
        return np.zeros(len(self.score), int)

    best_epoch = epoch

    @property
    def curves(self) -> list[list[float]]:
        """There are none."""
        return [[] for _ in self.score]


def fit(probe: str, data: ProbeData, n_seeds: int, averaged: str = "outputs") -> ClosedForm:
    """Fit a probe for each layer.

    Parameters
    ----------
    probe : "ridge" or "knn"
    n_seeds : how often each layer's probe is repeated
    averaged : see `ProbeData.join`
    """
    found = [_fit_layer(probe, data, layer, averaged) for layer in range(data.n_layers)]
    repeated = [copy.deepcopy(each) for each in found for _ in range(n_seeds)]
    outputs, modules, scores, values = zip(*repeated, strict=True)
    name = "alpha" if probe == "ridge" else "neighbours"
    return ClosedForm(
        torch.stack(outputs), list(modules), data.n_in, np.array(scores), {name: np.array(values)}
    )


def _fit_layer(probe: str, data: ProbeData, layer: int, averaged: str) -> tuple:
    """The best of a layer: test outputs (n, C), module, validation score, strength or number."""
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    x = {s: values[layer].cpu().numpy() for s, values in data.inputs.items()}
    y = targets(data)
    best = None
    values = STRENGTHS if probe == "ridge" else [k for k in NEIGHBOURS if k <= len(y)] or [len(y)]
    for value in values:
        model = Ridge(alpha=value) if probe == "ridge" else KNeighborsRegressor(n_neighbors=value)
        model.fit(x["train"], y)
        out = data.join("val", _outputs(model, x["val"], data)[None], averaged)
        guesses = data.predict(out)[0]
        score = main_score(data.kind.name, data.truth["val"], guesses)
        if not np.isfinite(score):  # R² of a constant: minus the error stands in, as elsewhere
            score = -float(np.mean((guesses - data.truth["val"]) ** 2))
        if best is None or score > best[0]:
            best = (score, value, model)
    score, value, model = best
    return _outputs(model, x["test"], data), _module(model), score, value


def targets(data: ProbeData) -> np.ndarray:
    """Targets of the training samples, (n, C): 1 and -1, or values."""
    labels = data.labels["train"].cpu().numpy()
    if data.kind.of_targets:
        return labels
    if data.kind.several:
        return 2.0 * labels - 1
    return 2.0 * np.eye(data.n_out)[labels] - 1


def _outputs(model, x: np.ndarray, data: ProbeData) -> torch.Tensor:
    """A model's outputs (n, C) on the data's device."""
    out = np.asarray(model.predict(x)).reshape(len(x), data.n_out)
    return torch.from_numpy(out).to(data.labels["train"].device, data.dtype)


def _module(model) -> nn.Module:
    """What is saved of a model: a linear probe's weights, or nothing."""
    module = nn.Module()
    if hasattr(model, "coef_"):
        weights = torch.from_numpy(np.atleast_2d(model.coef_).T.copy())
        bias = torch.from_numpy(np.atleast_1d(model.intercept_)[None].copy())
        module.w2, module.b2 = nn.Parameter(weights), nn.Parameter(bias)
    return module
