"""Verdicts: differences on the same test tracks, corrected for the number of comparisons.

All configurations are scored on the same resamples of the test tracks
(`tune.probing.intervals.bootstrap_curves`), so that differences are paired, and so are differences
of averages over configurations. A p-value is twice the smaller share of resamples on either side of
zero, and at least 1 / resamples. Holm's correction (Holm 1979) keeps the chance of any false
"better" or "worse" in a family of comparisons below 5 %. A configuration's seeds are resampled as
well, so that what other seeds would have given is part of an interval; a configuration with a
single seed hides that part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune.comparison.configurations import Configuration
from tune.probing.intervals import N_RESAMPLES, bootstrap_curves, interval
from tune.runs.predictions import folds_text

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """A difference, its 95 % interval, its p-value before and after correction, and the verdict."""

    value: float
    low: float
    high: float
    p: float
    p_corrected: float
    verdict: str
    n_tracks: int


class Scores:
    """Metrics of configurations on the same resamples, computed once for each set of tracks.

    Parameters
    ----------
    n_resamples : at least `N_RESAMPLES`; more are needed for many comparisons
    """

    def __init__(self, n_resamples: int = N_RESAMPLES):
        self.n_resamples = n_resamples
        self._known: dict[tuple, dict[str, np.ndarray]] = {}

    def curves(
        self, configuration: Configuration, ids: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Each metric on the whole split and on each resample, (1 + R,), for some of its tracks."""
        ids = configuration.ids if ids is None else ids
        key = (id(configuration), tuple(ids))
        if key not in self._known:
            at = positions(configuration, ids)
            r, groups = configuration.result, configuration.groups
            self._known[key] = bootstrap_curves(
                r["kind"],
                configuration.labels[at],
                configuration.predictions[:, at],
                r["targets"],
                groups=None if groups is None else [groups[i] for i in at],
                n_resamples=self.n_resamples,
            )
        return self._known[key]

    def main(self, configuration: Configuration, ids: Sequence[str] | None = None) -> np.ndarray:
        """The main metric of the kind of label, the first: accuracy, mean R², ROC-AUC, ..."""
        return next(iter(self.curves(configuration, ids).values()))

    def summary(self, configuration: Configuration) -> dict[str, tuple[float, float, float]]:
        """Each metric with its interval: (mean, low, high)."""
        return {
            name: (float(v[0]), *interval(v[1:])) for name, v in self.curves(configuration).items()
        }


def enough_resamples(n_comparisons: int) -> int:
    """Number of resamples with which the smallest corrected p-value can fall below 5 %."""
    return max(N_RESAMPLES, 40 * n_comparisons)


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


def p_value(differences: np.ndarray) -> float:
    """Two-sided p of resampled differences against zero; NaN when half of them are undefined."""
    real = differences[np.isfinite(differences)]
    if len(real) <= len(differences) / 2:
        return float("nan")
    real = np.round(real, 12)  # the rounding error of equal scores has a sign too
    share = min((real <= 0).mean(), (real >= 0).mean())
    return float(min(1.0, max(2 * share, 1 / len(real))))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of p-values; NaN stay and don't count.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, dtype=float)
    out = p.copy()
    order = np.argsort(p, kind="stable")  # NaN come last
    m, highest = int(np.isfinite(p).sum()), 0.0
    for rank, i in enumerate(order[:m]):
        highest = max(highest, min(1.0, (m - rank) * p[i]))
        out[i] = highest
    return out.tolist()


def compare_differences(
    curves: Sequence[tuple[np.ndarray, int]], correction: str
) -> list[Difference]:
    """Differences on resamples, each with its number of tracks, to corrected verdicts.

    Parameters
    ----------
    curves : (1 + R,) differences, the first on the whole split, and how many tracks they're over
    correction : "holm" over all of them, or "none"
    """
    p = [p_value(curve[1:]) for curve, _ in curves]
    corrected = holm(p) if correction == "holm" else p
    out = []
    for (curve, n), raw, final in zip(curves, p, corrected, strict=True):
        value = float(curve[0])
        word = "tie" if not final < ALPHA else "better" if value > 0 else "worse"
        out.append(Difference(value, *interval(curve[1:]), raw, final, word, n))
    return out


def compare_to_baseline(
    baseline: Configuration,
    configurations: Sequence[Configuration],
    scores: Scores,
    correction: str,
) -> dict:
    """Compare configurations with a baseline, as one family.

    Returns
    -------
    dict : configuration -> Difference, or the reason (str) why the two can't be compared
    """
    found, curves = {}, []
    for configuration in configurations:
        try:
            ids = common_ids([baseline, configuration])
        except ValueError as error:
            found[configuration] = str(error)
            continue
        found[configuration] = None
        curves.append((scores.main(configuration, ids) - scores.main(baseline, ids), len(ids)))
    judged = iter(compare_differences(curves, correction))
    return {
        configuration: next(judged) if text is None else text
        for configuration, text in found.items()
    }
