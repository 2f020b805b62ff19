"""Choosing a strategy, apart from scoring it.

The highest of several scores is too high: it was chosen for being so. Two ways around it:

- to choose on the validation split and report the test score of the chosen, which is what it is;
- to choose on the test tracks and take off the `optimism` of that.

A cheap strategy may be advised as being as good as the best one when it is *as good* as each of the
others (Hsu 1996, multiple comparisons with the best): whichever of them is the best in truth, the
cheap one then loses less than the margin to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune.comparison.jackknife import LEVEL, Estimate
from tune.comparison.verdicts import MARGIN, holm

N_RESAMPLES = 2000


@dataclass(frozen=True)
class Choice:
    """The cheapest strategy that is as good as the best, or the reference, if one is shown to be.

    Attributes
    ----------
    chosen : its position, or None where none can be shown as good
    nearest : the position of the one with the smallest `loss`, the reference apart
    loss : (K,) what each loses at most, as far as these tracks and seeds tell: the margin with
        which it would be as good
    p : (K,) one-sided p that each is as good, corrected over the strategies
    """

    chosen: int | None
    nearest: int
    loss: np.ndarray
    p: np.ndarray


def choose(
    strategies: Sequence[Estimate],
    costs: Sequence[float],
    margin: float = MARGIN,
    *,
    reference: int | None = None,
    level: float = LEVEL,
    correction: str = "holm",
) -> Choice:
    """Choose the cheapest strategy that is shown to be as good as the others, or as a reference.

    Parameters
    ----------
    strategies : two or more, scored on the same tracks
    costs : (K,) a lower one is preferred; of equal costs the better score
    margin : the greatest loss that is put up with
    reference : position of the one to be as good as, chosen without these tracks: the baseline, or
        the best on the validation split. None: the best, whichever of them that is
    correction : "holm" over the strategies, or "none"

    Returns
    -------
    Choice : the chance that the chosen loses the margin or more is at most `level`. With a
        reference there is always one, which may be the reference

    Raises
    ------
    ValueError
        When there are fewer than two strategies.
    """
    k = len(strategies)
    if k < 2:
        raise ValueError(f"two strategies or more are needed to choose among, got {k}")
    candidates = [i for i in range(k) if i != reference]
    share = level / (len(candidates) if correction == "holm" else 1)
    p, loss = np.full(k, np.nan), np.full(k, np.inf)
    for i in candidates:
        others = [j for j in range(k) if j != i] if reference is None else [reference]
        versus = [strategies[i] - strategies[j] for j in others]
        p[i] = max(d.p_above(-margin) for d in versus)
        loss[i] = max(0.0, *(-d.interval(share)[0] for d in versus))
    nearest = int(np.argmin(loss))
    p = np.array(holm(p) if correction == "holm" else p)
    if reference is not None:
        p[reference] = loss[reference] = 0.0
    order = sorted(range(k), key=lambda i: (costs[i], -strategies[i].value))
    return Choice(next((i for i in order if p[i] <= level), None), nearest, loss, p)


def optimism(
    strategies: Sequence[Estimate], *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> float:
    """By how much the highest of several scores is too high, on average.

    The selection is repeated on resampled tracks and seeds (Efron and Tibshirani 1993, ch. 17).
    Scores differ more than the strategies do, because chance differs as well; so they are drawn
    together first, by the share of their variance that is chance (James and Stein 1961).

    Parameters
    ----------
    strategies : scored on the same tracks

    Returns
    -------
    float : to be taken off the highest score
    """
    value = np.array([s.value for s in strategies])
    contributions = np.stack([s.contributions for s in strategies], axis=1)  # (G, K)
    k, g = len(value), len(contributions)
    if k < 2:
        return 0.0
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(g, np.full(g, 1 / g), size=n_resamples) - 1.0
    noise = drawn @ contributions / g  # (R, K)
    noise += rng.standard_normal((n_resamples, k)) * [np.sqrt(s.seed_variance) for s in strategies]
    apart = noise - noise.mean(1, keepdims=True)
    by_chance = apart.var(0).sum() / (k - 1)
    real = max(0.0, 1 - by_chance / max(value.var(ddof=1), 1e-300))
    true = value.mean() + np.sqrt(real) * (value - value.mean())
    chosen = (true + noise).argmax(1)
    return float(noise[np.arange(n_resamples), chosen].mean())
