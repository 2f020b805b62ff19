"""Scores and differences, with the variance that test tracks and the probe's seeds give them.

A strategy is scored on n test tracks by S seeds. Other tracks and other seeds would have given
another score. How much another is estimated by leaving out each track in turn, or each group of
tracks that belong together, such as clips of a song (the delete-a-group jackknife; Tukey 1958, Shao
and Tu 1995). Leaving track i out gives each seed's *contribution* of that track; of an accuracy it
is whether the seed is right about it. Contributions are those of a crossed design, tracks x seeds:

- their variance over tracks, averaged over seeds, is that of the test tracks,
- the variance between seeds, beyond what is left over in the cells of the table, is that of the
  probe's seeds (the analysis of variance of a two-way table; Searle et al. 1992, ch. 4).

Of a difference of two strategies, contributions are subtracted track by track, so that what is easy
or hard for both cancels. Seeds of different strategies are independent. Everything is a sum of
contributions, so that differences of averages over strategies work the same way. Intervals are by
Student's t with Satterthwaite's degrees of freedom: no random numbers, the same result each time.

Shapes: S seeds, n tracks, G groups of tracks (or blocks of groups), C classes, tags or targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

from tune.tasks.label_kinds import label_kind

MAX_GROUPS = 200  # more are left out in as many random blocks, for time
LEVEL = 0.025  # one-sided: the interval of both ends is the one of 95 %

# Metrics that are shares of right answers. Where hardly any track tells two strategies apart, the
# variance over tracks is next to nothing by luck: one track more in favour of either side is added
# (Bonett and Price 2012).
SHARES = ("accuracy", "weighted_score", "macro_f1")


@dataclass(frozen=True, eq=False)
class Estimate:
    """A score, or a difference of scores, with what moves it.

    Attributes
    ----------
    value : the mean over seeds, on all test tracks
    contributions : (G,) of each group of tracks, or block of groups, mean over seeds, around zero
    seed_terms : (variance, degrees of freedom) of the parts that sum to the variance by seeds
    n_tracks, n_groups : test tracks, and groups of them
    n_seeds : the fewest seeds of any strategy in it; with 1 the seeds' variance is not known
    share : whether it is a share of right answers, of `SHARES`
    """

    value: float
    contributions: np.ndarray
    seed_terms: tuple[tuple[float, float], ...]
    n_tracks: int
    n_groups: int
    n_seeds: int
    share: bool

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The paired difference of two strategies on the same tracks."""
        return replace(
            self,
            value=self.value - other.value,
            contributions=self.contributions - other.contributions,
            seed_terms=self.seed_terms + other.seed_terms,
            n_seeds=min(self.n_seeds, other.n_seeds),
        )

    @property
    def track_variance(self) -> float:
        """Variance of the value by which test tracks were drawn."""
        return self.group_variance / self.n_groups + self.added / self.n_groups**2

    @property
    def group_variance(self) -> float:
        """Variance of a single group's contribution; NaN of one group."""
        blocks = len(self.contributions)
        if blocks < 2:
            return float("nan")
        return float(self.contributions.var(ddof=1)) * self.n_groups / blocks

    @property
    def added(self) -> float:
        """Squares of the contributions that are added: one group in favour of either side."""
        return 2.0 if self.share else 0.0

    @property
    def seed_variance(self) -> float:
        """Variance of the value by which seeds were drawn; 0 where a single one hides it."""
        return max(0.0, sum(variance for variance, _ in self.seed_terms))

    @property
    def standard_error(self) -> float:
        """Standard deviation of the value over other test tracks and seeds."""
        return float(np.sqrt(self.track_variance + self.seed_variance))

    @property
    def degrees_of_freedom(self) -> float:
        """Satterthwaite's, of the variance (Satterthwaite 1946); at least 1.

        Terms of opposite signs that cancel would leave next to none, and an interval without end.
        """
        terms = [(self.track_variance, len(self.contributions) - 1)]
        terms += self.seed_terms if self.seed_variance else ()
        spread = sum(variance**2 / df for variance, df in terms)
        return max(1.0, float(self.standard_error**4 / spread)) if spread > 0 else float("nan")

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Both ends, each missed with the probability `level`; NaN where nothing varies."""
        half = stdtrit(self.degrees_of_freedom, 1 - level) * self.standard_error
        return float(self.value - half), float(self.value + half)

    def p_above(self, bound: float) -> float:
        """One-sided p of the claim that the true value is above a bound; NaN as `interval`'s."""
        return self._p(self.value - bound)

    def p_below(self, bound: float) -> float:
        """One-sided p of the claim that the true value is below a bound."""
        return self._p(bound - self.value)

    def _p(self, distance: float) -> float:
        """How probable such a distance, or a greater one, is where there is none."""
        error = self.standard_error
        return float(stdtr(self.degrees_of_freedom, -distance / error)) if error else np.nan


def estimates(
    kind: str,
    labels: np.ndarray,
    predictions: np.ndarray,
    targets: Sequence[str] = (),
    groups: Sequence | None = None,
) -> dict[str, Estimate]:
    """Score a strategy by each metric of a kind of label.

    Parameters
    ----------
    kind : a name of `tune.tasks.label_kinds.KINDS`
    labels : ndarray (n,) of class numbers, (n, C) values, or (n, C) truth values of tags
    predictions : ndarray (S, n) or (S, n, C)
    targets : names of the targets ("numbers" only)
    groups : (n,) which tracks belong together, by any name; None: each is alone

    Returns
    -------
    dict : metric name -> Estimate, the main metric first

    Raises
    ------
    ValueError
        When `groups` has another length than the labels.

    Examples
    --------
    >>> labels = np.array([0, 0, 1, 1])
    >>> right = estimates("classes", labels, np.array([[0, 0, 1, 0]]))["accuracy"]
    >>> right.value, right.contributions + right.value
    (0.75, array([1., 1., 1., 0.]))
    """
    left_out = leave_out(kind, labels, predictions, targets, groups)
    sizes = len(labels), int(group_codes(len(labels), groups).max()) + 1
    return {name: estimate(name, values, *sizes) for name, values in left_out.items()}


def leave_out(
    kind: str,
    labels: np.ndarray,
    predictions: np.ndarray,
    targets: Sequence[str] = (),
    groups: Sequence | None = None,
) -> dict[str, np.ndarray]:
    """Each metric on all tracks and then without each group of them, for each seed: (1 + G, S).

    Parameters
    ----------
    as for `estimates`
    """
    codes = group_codes(len(labels), groups)
    n_groups = int(codes.max()) + 1
    if n_groups > MAX_GROUPS:  # always the same blocks, so that strategies stay paired
        codes = (np.random.default_rng(0).permutation(n_groups) % MAX_GROUPS)[codes]
    weights = np.ones((2 + int(codes.max()), len(labels)))
    weights[1 + codes, np.arange(len(labels))] = 0.0
    weights = weights[: len(weights) if n_groups > 1 else 1]  # without a single group is nothing
    return label_kind(kind).metrics().weighted(labels, predictions, weights, targets)


def estimate(name: str, values: np.ndarray, n_tracks: int, n_groups: int) -> Estimate:
    """Estimate a metric from what `leave_out` gave, of all seeds or some: (1 + G, S).

    Parameters
    ----------
    name : the metric's
    values : ndarray (1 + G, S)
    n_tracks, n_groups : test tracks, and groups of them
    """
    g, s = len(values) - 1, values.shape[1]
    each = g * values[0] - (g - 1) * values[1:]  # (G, S), Tukey's pseudo-values
    by_group = each.mean(1)
    terms = ()
    if s > 1 and g:
        rest = each - each.mean(0) - by_group[:, None] + each.mean()
        left_over = float((rest**2).sum() / ((s - 1) * (g - 1)) / g)
        between = float(values[0].var(ddof=1))
        terms = ((between / s, s - 1.0), (-left_over / s, (s - 1.0) * (g - 1.0)))
    return Estimate(
        float(values[0].mean()),
        by_group - by_group.sum() / max(1, g),
        terms,
        n_tracks,
        n_groups,
        s,
        name in SHARES,
    )


def group_codes(n: int, groups: Sequence | None = None) -> np.ndarray:
    """Number groups of tracks from 0: (n,)."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"groups of {len(groups)} tracks, but there are labels of {n}")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def paired_difference(
    kind: str,
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    targets: Sequence[str] = (),
    groups: Sequence | None = None,
) -> dict[str, Estimate]:
    """Differences (second - first) of two strategies on the same test tracks, by each metric.

    Parameters
    ----------
    first, second : ndarray (S, n[, C]); the numbers of seeds may differ
    others : as for `estimates`

    Returns
    -------
    dict : metric name -> Estimate of the difference
    """
    a, b = (estimates(kind, labels, p, targets, groups) for p in (first, second))
    return {name: b[name] - a[name] for name in a}


def average(parts: Sequence[Estimate]) -> Estimate:
    """The mean of several strategies on the same tracks.

    Examples
    --------
    >>> one = Estimate(0.5, np.array([0.5, -0.5]), ((0.01, 4),), 2, 2, 5, True)
    >>> both = average([one, one])
    >>> both.value, both.seed_variance
    (0.5, 0.005)
    """
    k = len(parts)
    return replace(
        parts[0],
        value=float(np.mean([p.value for p in parts])),
        contributions=np.mean([p.contributions for p in parts], axis=0),
        seed_terms=tuple((v / k**2, df) for p in parts for v, df in p.seed_terms),
        n_seeds=min(p.n_seeds for p in parts),
    )
