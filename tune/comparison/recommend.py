"""Advice on which strategy to use, derived from the given runs only.

Choosing is apart from scoring (`tune.comparison.selection`): the best strategy is chosen on the
validation split, and reported with its test score. Where runs don't say their validation score, it
is the highest test score, less what such a choice adds on average. A cheaper strategy is advised
only where it is shown to be as good, by the margin; where none is, the nearest is named.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tune.comparison.configurations import Configuration
from tune.comparison.jackknife import Estimate
from tune.comparison.selection import choose, optimism
from tune.comparison.significance import Scores, common_ids, compare_to_baseline
from tune.comparison.verdicts import MARGIN, Verdict

SAME = 0.05  # costs that differ by less than this share are equal
VERSUS = {
    "better": "better than",
    "equivalent": "equivalent to",
    "as good": "as good as",
    "worse": "worse than",
    "can't tell": "can't tell from",
}


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


@dataclass(frozen=True)
class _Candidates:
    """Strategies with the same test tracks, their scores on these, and how to judge them."""

    configurations: list[Configuration]
    estimates: list[Estimate]
    scores: Scores
    correction: str
    margin: float

    def only(self, keep: Sequence[int]) -> "_Candidates":
        """Some of them."""
        configurations = [self.configurations[i] for i in keep]
        estimates = [self.estimates[i] for i in keep]
        return _Candidates(configurations, estimates, self.scores, self.correction, self.margin)


def advise(
    configurations: Sequence[Configuration],
    scores: Scores,
    correction: str,
    limits: Limits,
    margin: float = MARGIN,
    baseline: Configuration | None = None,
) -> list[Advice]:
    """Derive guidelines for one encoder's configurations on one task.

    Parameters
    ----------
    configurations : without those that repeat another one
    correction : "holm" over the strategies, or "none"
    limits : adds the strategy to use within them
    margin : the greatest loss that is put up with
    baseline : adds the cheapest strategy that is as good as this one
    """
    real = [c for c in configurations if np.isfinite(scores.estimate(c).value)]
    real, ids = _comparable(real, baseline if baseline in real else None)
    if len(real) < 2:
        return []
    found = _Candidates(real, [scores.estimate(c, ids) for c in real], scores, correction, margin)
    best, how = _best(found)
    others = compare_to_baseline(
        best, [c for c in real if c is not best], scores, correction, margin
    )
    words = Counter(v.word for v in others.values())
    against = ", ".join(f"{n} {word}" for word, n in words.most_common())
    text = f"{_quality(best, scores)}; {how}; of the other {len(others)}: {against}"
    out = [Advice("best quality", best, text), _balance(found)]
    if baseline in real:
        out.append(_as_good_as(found, baseline))
    axes = (
        ("fastest", lambda c: c.seconds_per_track, "{:.3g} s a track"),
        ("smallest", lambda c: c.dim, "{:,} values"),
    )
    for question, cost, amount in axes:
        known = [c for c in real if cost(c) is not None]
        if len(known) < 2:
            continue
        least = min(map(cost, known))
        # Of those as cheap, the best: aggregators share their encoding.
        group = [c for c in known if cost(c) <= least * (1 + SAME)]
        if len(group) == len(known):
            alike = f"{len(known)} strategies cost about the same: {amount.format(least)}"
            out.append(Advice(question, None, alike))
            continue
        pick = max(group, key=lambda c: scores.estimate(c, ids).value)
        tail = "also the best" if pick is best else _versus(others[pick], best.label)
        out.append(Advice(question, pick, f"{_quality(pick, scores)}; {_costs(pick)}; {tail}"))
    return _merged(out + ([_within(found, limits)] if limits else []))


def _merged(advice: Sequence[Advice]) -> list[Advice]:
    """Advice with the same answer for the same reason becomes one, under both questions."""
    out: dict[tuple, Advice] = {}
    for each in advice:
        key = (each.answer, each.evidence)
        known = out.get(key)
        out[key] = replace(known, question=f"{known.question}, {each.question}") if known else each
    return list(out.values())


def validation_score(configuration: Configuration) -> float | None:
    """The score on the validation split, mean over seeds; None where a run doesn't say it.

    Cross-validated runs have none: a fold's validation tracks are another fold's test tracks.
    """
    scores, seeds = [], []
    for run in configuration.runs:
        found = (run.result.get("layer_scores") or {}).get(str(run.result["layer"]))
        if found is None or run.result.get("folds"):
            return None
        scores.append(found)
        seeds.append(len(run.result["seeds"]))
    return float(np.average(scores, weights=seeds))


def relative_costs(configurations: Sequence[Configuration]) -> np.ndarray:
    """Product of memory, seconds and embedding size, each relative to the smallest, as logarithms.

    A cost that isn't known for all of them is left out; those that cost about the same are equal.
    """
    total = np.zeros(len(configurations))
    for cost in ("memory_bytes", "seconds_per_track", "dim"):
        values = [getattr(configuration, cost) for configuration in configurations]
        if all(values):
            total += np.log(np.array(values, float) / min(values))
    return np.round(total / np.log1p(SAME))


def fits(configuration: Configuration, limits: Limits) -> bool:
    """Whether a configuration is known to stay within limits."""
    return all(
        cost is not None and cost <= most for cost, most, _ in _limited(configuration, limits)
    )


def _limited(configuration, limits) -> list[tuple]:
    """(cost or None, limit, cost's name) of each limit that there is."""
    pairs = (
        (configuration.memory_bytes, limits.bytes, "memory"),
        (configuration.seconds_per_track, limits.seconds, "seconds"),
    )
    return [pair for pair in pairs if pair[1] is not None]


def _comparable(configurations, baseline) -> tuple[list[Configuration], list[str]]:
    """Those that have test tracks in common with the baseline, or the first, and these tracks."""
    try:
        return list(configurations), common_ids(configurations) if configurations else []
    except ValueError:
        kept = [baseline or configurations[0]]
    for configuration in configurations:
        if configuration not in kept:
            try:
                common_ids([*kept, configuration])
            except ValueError:
                continue
            kept.append(configuration)
    return [c for c in configurations if c in kept], common_ids(kept)


def _best(found: _Candidates) -> tuple[Configuration, str]:
    """The best strategy, by validation where it is known, and how it was chosen."""
    real = found.configurations
    validation = [validation_score(c) for c in real]
    if None not in validation:
        costs = relative_costs(real)
        best = max(range(len(real)), key=lambda i: (validation[i], -costs[i]))
        return real[best], f"chosen on validation ({validation[best]:.3f})"
    best = max(range(len(real)), key=lambda i: found.estimates[i].value)
    value, off = found.estimates[best].value, optimism(found.estimates)
    return real[best], (
        f"chosen on the test tracks, as the highest of {len(real)}, which adds about {off:.3f}: "
        f"expect {value - off:.3f}"
    )


def _balance(found: _Candidates, question: str = "best balance", tail: str = "") -> Advice:
    """The cheapest strategy that is shown to be as good as each of the others."""
    real = found.configurations
    made = choose(found.estimates, relative_costs(real), found.margin, correction=found.correction)
    if made.chosen is None:
        text = (
            f"none of {len(real)} is shown to be as good as each of the others within "
            f"{found.margin:.3g}; {_nearest(real, made, found.scores)}"
        )
        return Advice(question, None, text + tail)
    pick = real[made.chosen]
    text = (
        f"{_quality(pick, found.scores)}; {_costs(pick)}; the cheapest that is as good as each of "
        f"the other {len(real) - 1}: loses at most {made.loss[made.chosen]:.3f}"
    )
    return Advice(question, pick, text + tail)


def _as_good_as(found: _Candidates, baseline: Configuration) -> Advice:
    """The cheapest strategy that is shown to be as good as the baseline."""
    real = found.configurations
    reference, costs = real.index(baseline), relative_costs(real)
    made = choose(
        found.estimates, costs, found.margin, reference=reference, correction=found.correction
    )
    pick, question = real[made.chosen], f"as good as {baseline.label}"
    text = f"{_quality(pick, found.scores)}; {_costs(pick)}; "
    if pick is not baseline:
        text += f"loses at most {made.loss[made.chosen]:.3f}; instead of {_costs(baseline)}"
    elif costs[reference] > costs.min():
        text += f"no cheaper one is shown to be as good within {found.margin:.3g}"
        cheaper = [i for i in range(len(real)) if costs[i] < costs[reference]]
        nearest = min(cheaper, key=lambda i: made.loss[i])
        text += f"; nearest: {real[nearest].label}, {_would_need(made.loss[nearest])}"
    else:
        text += "the cheapest anyway"
    return Advice(question, pick, text)


def _within(found: _Candidates, limits: Limits) -> Advice:
    """The strategy to use within limits, and why."""
    real, question = found.configurations, f"within {limits}"
    inside = [i for i, c in enumerate(real) if fits(c, limits)]
    unknown = sum(any(cost is None for cost, *_ in _limited(c, limits)) for c in real)
    hidden = f"; the cost of {unknown} of {len(real)} is unknown" if unknown else ""
    if limits.bytes is not None and any(c.memory_bytes is None for c in real):
        hidden += " (peak memory is known if a run encoded; profile.py measures it as well)"
    if not inside:
        text = "no strategy is known to fit"
        known = [c for c in real if all(cost is not None for cost, *_ in _limited(c, limits))]
        if known:
            text += f"; nearest: {_over(known, limits)}"
        return Advice(question, None, text + hidden)
    count = f"; {len(inside)} of {len(real)} fit"
    if len(inside) == 1:
        pick = real[inside[0]]
        text = f"{_quality(pick, found.scores)}; {_costs(pick)}{count}"
        return Advice(question, pick, text + hidden)
    return _balance(found.only(inside), question, count + hidden)


def _over(configurations, limits) -> str:
    """The one that is the least above the limits, and by how much: 30 s mean, 0.401 s, is ..."""
    nearest = min(
        configurations, key=lambda c: max(cost / most for cost, most, _ in _limited(c, limits))
    )
    over = [
        (cost, cost - most, name) for cost, most, name in _limited(nearest, limits) if cost > most
    ]
    own = " and ".join(_amount(cost, name, large=True) for cost, _, name in over)
    above = " and ".join(_amount(excess, name) for _, excess, name in over)
    return f"{nearest.label}, {own}, is {above} above your budget"


def _amount(value: float, name: str, large: bool = False) -> str:
    """A cost with its unit; a small one in a thousandth of it, unless `large`."""
    size, small, unit = (1.0, "ms", "s") if name == "seconds" else (1e9, "MB", "GB")
    if large or value >= size / 10:
        return f"{value / size:.3g} {unit}"
    return f"{1000 * value / size:.3g} {small}"


def _nearest(real, made, scores) -> str:
    """The strategy that is the nearest to being as good, and the margin that it would take."""
    pick = real[made.nearest]
    return (
        f"nearest: {pick.label}, {_quality(pick, scores)}, {_would_need(made.loss[made.nearest])}"
    )


def _would_need(loss: float) -> str:
    """The margin with which it would be as good, rounded up."""
    return f"would need --margin {np.ceil(loss * 1000) / 1000:.3f}"


def _quality(configuration, scores) -> str:
    """The main metric with its interval."""
    name, (mean, low, high) = next(iter(scores.summary(configuration).items()))
    return f"{name} {mean:.3f} ({low:.3f} to {high:.3f})"


def _versus(verdict: Verdict, other: str) -> str:
    """A verdict on two strategies as text."""
    interval = f"{verdict.low:+.3f} to {verdict.high:+.3f}"
    return f"{VERSUS[verdict.word]} {other} ({verdict.difference.value:+.3f}, {interval})"


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
