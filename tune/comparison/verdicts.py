"""Verdicts: is a strategy better than another, as good, worse, or can't these tracks tell?

"As good" needs a margin: the loss that one would put up with. By a difference's interval it is

- **better** when the whole interval is above zero,
- **equivalent** when the whole interval is within the margin on either side of zero,
- **as good** when its lower end is above minus the margin (not inferior; it may be better),
- **worse** when the whole interval is below zero,
- **can't tell** otherwise: neither a loss beyond the margin nor its absence has been shown.

The first that is true is the verdict. Each is a one-sided test at `LEVEL`, 2.5 %; *equivalent* is
two of them (Schuirmann 1987). In a family of comparisons, Holm's correction (Holm 1979) is applied
to each word by itself: the chance that a table holds any false *better* is at most 2.5 %, and so
with any false *as good*, *equivalent* and *worse*. docs/verdicts.md says it without statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from tune.comparison.jackknife import LEVEL, Estimate

MARGIN = 0.02  # two points of accuracy, 0.02 of R², AUC or average precision
POWER = 0.8  # with which a difference counts as one that could be shown
BETTER, EQUIVALENT, AS_GOOD, WORSE = "better", "equivalent", "as good", "worse"
CANT_TELL = "can't tell"


@dataclass(frozen=True)
class Needed:
    """A test with which a verdict could be reached."""

    tracks: int
    seeds: int


@dataclass(frozen=True, eq=False)
class Verdict:
    """A difference in a word, and what the word rests on.

    Attributes
    ----------
    word : better, equivalent, as good, worse or can't tell
    alone : the word if this were the only comparison
    low, high : the 95 % interval of this difference alone
    p : word -> one-sided p, corrected over the family
    detectable : the smallest true difference that would be shown with a probability of `POWER`
    needed : tracks and seeds with which strategies that don't differ are shown to be as good
    """

    word: str
    alone: str
    difference: Estimate
    margin: float
    low: float
    high: float
    p: dict[str, float]
    detectable: float
    needed: Needed | None

    @property
    def as_good(self) -> bool:
        """Whether a loss beyond the margin is ruled out: also where it's better or equivalent."""
        return self.word in (BETTER, EQUIVALENT, AS_GOOD)

    def __str__(self) -> str:
        """The word, the difference, and where it can't be told what would help."""
        d = self.difference
        text = f"{self.word} ({d.value:+.3f}, {self.low:+.3f} to {self.high:+.3f})"
        if self.word != self.alone:
            text += f", alone it would be {self.alone}"
        if self.word == CANT_TELL and self.needed is not None:
            seeds = f" and {self.needed.seeds} seeds" if self.needed.seeds > d.n_seeds else ""
            groups = f" in {d.n_groups:,} groups" if d.n_groups < d.n_tracks else ""
            text += (
                f": {d.n_tracks:,} tracks{groups} show differences from {self.detectable:.3f} on; "
                f"a margin of {self.margin:.3g} needs about {self.needed.tracks:,} tracks{seeds}"
            )
        return text + ("; one seed: probe noise is not in it" if d.n_seeds == 1 else "")


def verdicts(
    differences: Sequence[Estimate],
    margin: float | Sequence[float] = MARGIN,
    *,
    level: float = LEVEL,
    correction: str = "holm",
) -> list[Verdict]:
    """Judge a family of differences: all that is looked at together.

    Parameters
    ----------
    differences : candidate - baseline, higher is better
    margin : the greatest loss that is put up with, above 0; of all, or of each
    level : one-sided
    correction : "holm" or "none"

    Raises
    ------
    ValueError
        When a margin isn't above 0, or `correction` is neither.

    Examples
    --------
    >>> even = Estimate(0.001, np.tile([0.2, -0.2], 500), ((0.0, 4),), 1000, 1000, 5, True)
    >>> [v.word for v in verdicts([even, even], 0.02)]
    ['equivalent', 'equivalent']
    >>> verdicts([even], 0.01)[0].needed
    Needed(tracks=3192, seeds=5)
    """
    margins = np.broadcast_to(np.asarray(margin, float), len(differences))
    if not (margins > 0).all():
        raise ValueError(f"a margin must be above 0, got {margins[~(margins > 0)][0]:g}")
    if correction not in ("holm", "none"):
        raise ValueError(f'correction must be "holm" or "none", got {correction!r}')
    p = {
        BETTER: [d.p_above(0) for d in differences],
        EQUIVALENT: [
            max(d.p_above(-m), d.p_below(m)) for d, m in zip(differences, margins, strict=True)
        ],
        AS_GOOD: [d.p_above(-m) for d, m in zip(differences, margins, strict=True)],
        WORSE: [d.p_below(0) for d in differences],
    }
    alone = p
    if correction == "holm":
        p = {word: holm(values) for word, values in p.items()}
    strictest = level / max(1, len(differences) if correction == "holm" else 1)
    out = []
    for i, (d, m) in enumerate(zip(differences, margins, strict=True)):
        out.append(
            Verdict(
                _word(p, i, level),
                _word(alone, i, level),
                d,
                float(m),
                *d.interval(level),
                {word: values[i] for word, values in p.items()},
                smallest_detectable(d, strictest),
                needed(d, m, strictest),
            )
        )
    return out


def family_text(margin: float, n: int, correction: str, level: float = LEVEL) -> str:
    """What the verdicts of a family rest on, in a line.

    Examples
    --------
    >>> family_text(0.02, 8, "holm")
    'margin 0.02; 8 comparisons, corrected over all (Holm); each word is one-sided at 2.5 %'
    """
    corrected = "corrected over all (Holm)" if correction == "holm" else "not corrected"
    return (
        f"margin {margin:.3g}; {n} comparison{'s' * (n != 1)}, {corrected}; each word is one-sided "
        f"at {100 * level:g} %"
    )


def _word(p: dict[str, list[float]], i: int, level: float) -> str:
    """The first word that is shown of comparison i."""
    return next((word for word, values in p.items() if values[i] <= level), CANT_TELL)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: p-values to be held against the level; NaN stay and don't count.

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


def retained_margin(baseline: float, chance: float, share: float) -> float:
    """The margin that keeps a share of what a baseline scores above chance.

    Raises
    ------
    ValueError
        When the share isn't between 0 and 1, or the baseline isn't above chance.

    Examples
    --------
    >>> round(retained_margin(0.85, 0.10, 0.98), 4)
    0.015
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to retain must be between 0 and 1, got {share:g}")
    if not baseline > chance:
        raise ValueError(
            f"the baseline's {baseline:.3f} is not above chance, {chance:.3f}: there is nothing to "
            "retain a share of; give a margin instead"
        )
    return (1 - share) * (baseline - chance)


def smallest_detectable(difference: Estimate, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true difference that these tracks and seeds show with a probability.

    It is also the smallest margin within which strategies that don't differ are shown as good.
    """
    df = difference.degrees_of_freedom
    return float((stdtrit(df, 1 - level) + stdtrit(df, power)) * difference.standard_error)


def needed(
    difference: Estimate, margin: float, level: float = LEVEL, power: float = POWER
) -> Needed | None:
    """Test tracks, and seeds, for which `smallest_detectable` is the margin.

    Seeds are added where their variance alone takes up more than half of what is allowed. None
    where nothing varies, so that nothing can be said.
    """
    tracks, seeds = difference.group_variance, difference.seed_variance
    if not difference.standard_error > 0:
        return None
    allowed = (margin / (ndtri(1 - level) + ndtri(power))) ** 2
    n_seeds = difference.n_seeds
    if seeds > allowed / 2:
        n_seeds = int(np.ceil(n_seeds * seeds / (allowed / 2)))
        seeds *= difference.n_seeds / n_seeds
    left = allowed - seeds
    groups = (tracks + np.sqrt(tracks**2 + 4 * left * difference.added)) / (2 * left)
    per_group = difference.n_tracks / difference.n_groups
    return Needed(int(np.ceil(groups * per_group)), n_seeds)
