"""Verdicts on configurations: differences on the same test tracks, one family a table.

A configuration's score is estimated with the variance that test tracks and seeds give it
(`tune.comparison.jackknife`); differences are paired track by track, and judged together
(`tune.comparison.verdicts`). The interval of a single score, which is not a difference, is that of
the bootstrap, as in result.json.
"""

from collections.abc import Sequence

import numpy as np

from tune.comparison.configurations import Configuration
from tune.comparison.jackknife import Estimate, estimates
from tune.comparison.verdicts import MARGIN, Verdict, verdicts
from tune.probing.intervals import bootstrap_curves, interval
from tune.runs.predictions import folds_text


class Scores:
    """Metrics of configurations, computed once for each set of tracks."""

    def __init__(self):
        self._curves: dict[tuple, dict[str, np.ndarray]] = {}
        self._estimates: dict[tuple, Estimate] = {}

    def curves(
        self, configuration: Configuration, ids: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Each metric on the whole split and on each resample, (1 + R,), for some of its tracks."""
        return _once(self._curves, configuration, ids, bootstrap_curves)

    def estimate(self, configuration: Configuration, ids: Sequence[str] | None = None) -> Estimate:
        """The main metric of the kind of label, the first: accuracy, mean R², ROC-AUC, ..."""
        return _once(self._estimates, configuration, ids, _main_estimate)

    def summary(self, configuration: Configuration) -> dict[str, tuple[float, float, float]]:
        """Each metric with its interval: (mean, low, high)."""
        return {
            name: (float(v[0]), *interval(v[1:])) for name, v in self.curves(configuration).items()
        }


def _once(known: dict, configuration: Configuration, ids: Sequence[str] | None, compute):
    """A function of a configuration's predictions of some tracks, kept in `known`."""
    ids = configuration.ids if ids is None else ids
    key = (id(configuration), tuple(ids))
    if key not in known:
        at, r, groups = positions(configuration, ids), configuration.result, configuration.groups
        known[key] = compute(
            r["kind"],
            configuration.labels[at],
            configuration.predictions[:, at],
            r["targets"],
            groups=None if groups is None else [groups[i] for i in at],
        )
    return known[key]


def _main_estimate(*args, **kwargs) -> Estimate:
    """The first metric's estimate."""
    return next(iter(estimates(*args, **kwargs).values()))


def positions(configuration: Configuration, ids: Sequence[str]) -> np.ndarray:
    """Positions of these track ids in a configuration."""
    at = {name: i for i, name in enumerate(configuration.ids)}
    return np.array([at[name] for name in ids], dtype=int)


def common_ids(configurations: Sequence[Configuration]) -> list[str]:
    """Test tracks that all configurations have.

    Raises
    ------
    ValueError
        When there is none, or when their labels or folds differ.
    """
    folds = sorted({folds_text(c.result) or "a single split" for c in configurations})
    if len(folds) > 1:
        raise ValueError(f"trained on other tracks: {' and '.join(folds)}")
    ids = sorted(set.intersection(*(set(configuration.ids) for configuration in configurations)))
    if not ids:
        raise ValueError("no test track in common")
    first = configurations[0].labels[positions(configurations[0], ids)]
    if any(not np.array_equal(first, c.labels[positions(c, ids)]) for c in configurations[1:]):
        raise ValueError("different labels for the same tracks")
    return ids


def compare_to_baseline(
    baseline: Configuration,
    configurations: Sequence[Configuration],
    scores: Scores,
    correction: str,
    margin: float = MARGIN,
) -> dict[Configuration, Verdict | str]:
    """Compare configurations with a baseline, as one family.

    Parameters
    ----------
    correction : "holm" or "none"
    margin : the greatest loss that is put up with

    Returns
    -------
    dict : configuration -> Verdict, or the reason (str) why the two can't be compared
    """
    found, differences = {}, []
    for configuration in configurations:
        try:
            ids = common_ids([baseline, configuration])
        except ValueError as error:
            found[configuration] = str(error)
            continue
        found[configuration] = None
        differences.append(scores.estimate(configuration, ids) - scores.estimate(baseline, ids))
    judged = iter(verdicts(differences, margin, correction=correction))
    return {
        configuration: next(judged) if text is None else text
        for configuration, text in found.items()
    }
