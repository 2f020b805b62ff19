"""Advice on which strategy to use, derived from the given runs only.

The best strategy is the one with the highest mean. It is chosen and evaluated on the same test
tracks, so its lead is optimistic. Of the strategies that are not significantly worse by a paired
bootstrap, the cheapest is recommended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune.comparison.configurations import Configuration
from tune.comparison.significance import ALPHA, Difference, Scores, compare_to_baseline

SAME = 0.05  # costs that differ by less than this share are equal


@dataclass(frozen=True)
class Limits:
    """Upper limits of a strategy's costs; None is no limit."""

    bytes: int | None = None
    seconds: float | None = None

    def __bool__(self) -> bool:
        return self.bytes is not None or self.seconds is not None

    def __str__(self) -> str:
        parts = [f"{self.bytes / 1e9:g} GB"] if self.bytes is not None else []
        parts += [f"{self.seconds:g} s a track"] if self.seconds is not None else []
        return " and ".join(parts)


@dataclass(frozen=True)
class Advice:
    """A recommendation: the question, the strategy (None when there is none), the evidence."""

    question: str
    configuration: Configuration | None
    evidence: str

    @property
    def answer(self) -> str:
        """The strategy's name, or that there is none."""
        return self.configuration.label if self.configuration is not None else "none"


def advise(
    configurations: Sequence[Configuration], scores: Scores, correction: str, limits: Limits
) -> list[Advice]:
    """Derive guidelines for one encoder's configurations on one task.

    Parameters
    ----------
    configurations : without those that repeat another one
    correction : for the number of strategies that are worse than the best
    limits : adds the strategy to use within them
    """
    real = [c for c in configurations if np.isfinite(scores.main(c)[0])]
    if len(real) < 2:
        return []
    best, others = _best(real, scores, correction)
    apart = _told_apart(others, len(real))
    out = [Advice("best quality", best, f"{_quality(best, scores)}; {apart}")]
    pick = cheapest(_equals(best, others))
    why = _costs(pick)
    if pick is not best:
        why = f"{_versus(others[pick], best.label)}; {why}, instead of {_costs(best)}"
    out.append(Advice("best balance", pick, f"{_quality(pick, scores)}; {why}"))
    axes = (("fastest", lambda c: c.seconds_per_track), ("smallest", lambda c: c.dim))
    for question, cost in axes:
        known = [c for c in real if cost(c) is not None]
        if known:
            least = min(map(cost, known))
            # Of those as cheap, the best: aggregators share their encoding.
            group = [c for c in known if cost(c) <= least * (1 + SAME)]
            pick = max(group, key=lambda c: scores.main(c)[0])
            tail = "also the best" if pick is best else _versus(others[pick], "the best")
            out.append(Advice(question, pick, f"{_quality(pick, scores)}; {_costs(pick)}; {tail}"))
    return out + ([_within(real, best, others, scores, correction, limits)] if limits else [])


def cheapest(configurations: Sequence[Configuration]) -> Configuration:
    """The one with the smallest product of memory, seconds and embedding size, each relative.

    A cost that isn't known for all of them is left out; of those that cost about the same, the
    first counts.
    """
    total = np.zeros(len(configurations))
    for cost in ("memory_bytes", "seconds_per_track", "dim"):
        values = [getattr(configuration, cost) for configuration in configurations]
        if all(values):
            total += np.log(np.array(values, float) / min(values))
    return configurations[int(np.flatnonzero(total <= total.min() + np.log1p(SAME))[0])]


def fits(configuration: Configuration, limits: Limits) -> bool:
    """Whether a configuration is known to stay within limits."""
    pairs = (
        (configuration.memory_bytes, limits.bytes),
        (configuration.seconds_per_track, limits.seconds),
    )
    return all(most is None or (cost is not None and cost <= most) for cost, most in pairs)


def _best(configurations, scores, correction):
    """The configuration with the highest mean, and all others against it."""
    best = max(configurations, key=lambda c: scores.main(c)[0])
    others = [c for c in configurations if c is not best]
    return best, compare_to_baseline(best, others, scores, correction)


def _equals(best, others) -> list[Configuration]:
    """The best configuration and those whose difference to it may be none, by quality.

    Uncorrected: correction avoids false differences, but here a missing difference is the reason
    for a recommendation.
    """
    same = [(c, d) for c, d in others.items() if isinstance(d, Difference) and not d.p < ALPHA]
    return [best, *(c for c, _ in sorted(same, key=lambda pair: -pair[1].value))]


def _within(configurations, best, others, scores, correction, limits) -> Advice:
    """The strategy to use within limits, and why."""
    question = f"within {limits}"
    inside = [c for c in configurations if fits(c, limits)]
    unknown = sum(
        (limits.bytes is not None and c.memory_bytes is None)
        or (limits.seconds is not None and c.seconds_per_track is None)
        for c in configurations
    )
    hidden = f"; the cost of {unknown} of {len(configurations)} is unknown" if unknown else ""
    if limits.bytes is not None and any(c.memory_bytes is None for c in configurations):
        hidden += " (peak memory is known if a run encoded; profile.py measures it as well)"
    if not inside:
        return Advice(question, None, f"no strategy is known to fit{hidden}")
    equals = _equals(*_best(inside, scores, correction))
    pick = cheapest(equals)
    text = f"{_quality(pick, scores)}; {_costs(pick)}; {len(inside)} of {len(configurations)} fit"
    if len(equals) > 1:
        text += f", {len(equals)} of them without a significant difference; this is the cheapest"
    if pick is not best:
        text += f"; {_versus(others[pick], best.label)}, the best of all"
    return Advice(question, pick, text + hidden)


def _told_apart(others, n) -> str:
    """The number of strategies that differ significantly from the best, after correction."""
    same = sum(not isinstance(d, Difference) or d.verdict == "tie" for d in others.values())
    if same == n - 1:
        return (
            f"no significant difference between the {n} strategies on these tracks: choose by cost"
        )
    if same == 0:
        return f"significantly better than each of the other {n - 1}"
    return f"no significant difference to {same} of the other {n - 1}"


def _quality(configuration, scores) -> str:
    """The main metric with its interval."""
    name, (mean, low, high) = next(iter(scores.summary(configuration).items()))
    return f"{name} {mean:.3f} ({low:.3f} to {high:.3f})"


def _versus(difference, other: str) -> str:
    """A difference to another strategy in words, not corrected for other comparisons."""
    if isinstance(difference, str):
        return f"not comparable with {other} ({difference})"
    interval = f"{difference.low:+.3f} to {difference.high:+.3f}"
    same = not difference.p < ALPHA
    word = "better than" if difference.value > 0 else "worse than"
    word = "not significantly different from" if same else word
    return f"{word} {other} ({difference.value:+.3f}, {interval})"


def _costs(configuration) -> str:
    """A configuration's known costs as text."""
    parts = []
    if configuration.seconds_per_track is not None:
        parts.append(f"{configuration.seconds_per_track:.3g} s a track")
    if configuration.memory_bytes is not None:
        parts.append(f"{configuration.memory_bytes / 1e9:.2f} GB {configuration.memory_kind}")
    if configuration.dim is not None:
        parts.append(f"{configuration.dim:,} values")
    return ", ".join(parts) or "cost unknown"
