"""Main effects of segments (averaged over aggregators), aggregators (over segments) and encoders
(over both).

An average over configurations says something about one factor only where every level of it has the
same levels of the other, so effects are taken on the largest full grid of configurations that there
is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tune.aggregators.registry import AGGREGATORS
from tune.comparison.configurations import Configuration, details, layer_of
from tune.comparison.jackknife import average
from tune.comparison.significance import Scores, common_ids
from tune.comparison.verdicts import MARGIN, Verdict, verdicts
from tune.segments.rules import fixed_length, seg_text

MOST_LEVELS = 12  # all subsets of as many levels are tried for a full grid
SEVERAL = [name for name, row in AGGREGATORS.items() if row.several_segs]  # have no one length


@dataclass(frozen=True)
class Level:
    """One segment length or aggregator: its mean over the other factor, against the reference."""

    name: str
    mean: float
    low: float
    high: float
    difference: Verdict | None


@dataclass(frozen=True)
class Effect:
    """A main effect: levels of one factor, averaged over `others`, on a full grid."""

    factor: str
    levels: list[Level]
    reference: str
    others: list[str]
    context: str

    @property
    def n_configurations(self) -> int:
        """Configurations that the effect is made of."""
        return len(self.levels) * len(self.others)


@dataclass(frozen=True)
class EncoderPair:
    """Two encoders, the better one first, averaged over the strategies that both have."""

    name: str
    other: str
    mean: float
    mean_of_other: float
    difference: Verdict
    strategies: list[str]


def encoder_pairs(
    by_encoder: Mapping[str, Sequence[Configuration]],
    scores: Scores,
    correction: str,
    margins: Mapping[str, float] | None = None,
) -> list[EncoderPair]:
    """Compare each pair of encoders, averaged over the strategies that both have.

    Both are taken with the same segments, aggregators, layers (a number, or how it's found) and
    tokens. Configurations that repeat the full track are left out; encoders without a
    strategy or test tracks in common, or with other labels for these, aren't compared.

    Parameters
    ----------
    by_encoder : encoder -> its configurations
    margins : encoder -> the greatest loss to it that is put up with; only those in it are compared.
        None: all, by `MARGIN`
    """
    if margins is None:
        margins = dict.fromkeys(by_encoder, MARGIN)
    tables = {
        name: {
            _strategy(configuration): configuration
            for configuration in configurations
            if configuration.duplicate_of is None and not configuration.result.get("degenerate")
        }
        for name, configurations in by_encoder.items()
        if name in margins
    }
    found = []
    for a, b in combinations(tables, 2):
        both = [key for key in tables[a] if key in tables[b]]
        if not both:
            continue
        try:
            ids = common_ids([tables[name][key] for key in both for name in (a, b)])
        except ValueError:
            continue
        means = {x: average([scores.estimate(tables[x][key], ids) for key in both]) for x in (a, b)}
        a, b = sorted((a, b), key=lambda x: -means[x].value)
        labels = [tables[a][key].label for key in both]
        found.append((a, b, means[a], means[b], labels))
    found.sort(key=lambda f: (-f[2].value, f[3].value))  # the best encoder's first
    judged = verdicts(
        [x - y for _, _, x, y, _ in found],
        [margins[b] for _, b, *_ in found],
        correction=correction,
    )
    return [
        EncoderPair(a, b, x.value, y.value, verdict, labels)
        for (a, b, x, y, labels), verdict in zip(found, judged, strict=True)
    ]


def _strategy(configuration: Configuration) -> tuple:
    """The strategy, which configurations of two encoders have to share."""
    r = configuration.result
    asked = r.get("layer_asked")
    layer = asked if asked in ("all", "mix", "reduce", "last") else str(r["layer"])
    return (r["seg"], r["agg"], layer, r["tokens"], *details(configuration.runs[0]))


def main_effects(
    configurations: Sequence[Configuration], scores: Scores, correction: str, margin: float = MARGIN
) -> list[Effect]:
    """Effect of the segments and of the aggregator, each on the largest full grid there is.

    A configuration is part of a grid with configurations that share everything but segments and
    aggregator. Configurations that repeat the full track are left out.
    """
    contexts: dict[tuple, dict[tuple[str, str], Configuration]] = {}
    for configuration in configurations:
        r = configuration.result
        if not r.get("degenerate") and r["agg"] not in SEVERAL:
            context = (
                layer_of(r),
                r["tokens"],
                r.get("precision"),
                *details(configuration.runs[0]),
            )
            contexts.setdefault(context, {})[r["seg"], r["agg"]] = configuration
    effects = []
    for factor in ("segments", "aggregator"):
        grids = [(context, grid, *balanced(grid, factor)) for context, grid in contexts.items()]
        grids = [g for g in grids if g[2]]
        if grids:
            context, grid, levels, others = max(grids, key=lambda g: len(g[2]) * len(g[3]))
            made = _effect(factor, grid, levels, others, context, scores, correction, margin)
            effects += [made] if made else []
    return effects


def balanced(
    grid: dict[tuple[str, str], Configuration], factor: str
) -> tuple[list[str], list[str]]:
    """Find the largest full sub-grid with two or more levels of a factor.

    Parameters
    ----------
    grid : (seg, agg) -> configuration
    factor : "segments" or "aggregator"

    Returns
    -------
    levels, others : names of the factor's levels and of the other's; empty when there is none
    """
    side = 0 if factor == "segments" else 1
    have: dict[str, set] = {}
    for key in grid:
        have.setdefault(key[1 - side], set()).add(key[side])
    # The fullest ones, should there be more than can be tried.
    others = sorted(have, key=lambda name: (-len(have[name]), name))[:MOST_LEVELS]
    best: tuple[int, int, list, list] = (0, 0, [], [])
    for size in range(1, len(others) + 1):
        for chosen in combinations(others, size):
            levels = set.intersection(*(have[name] for name in chosen))
            worth = (len(levels) * size, len(levels))
            if len(levels) >= 2 and worth > best[:2]:
                best = (*worth, _sorted(levels), _sorted(chosen))
    return best[2], best[3]


def _effect(factor, grid, levels, others, context, scores, correction, margin) -> Effect | None:
    """Average over the other factor, and compare levels with the reference."""

    def configuration(level, other):
        return grid[(level, other) if factor == "segments" else (other, level)]

    try:
        ids = common_ids([configuration(level, other) for level in levels for other in others])
    except ValueError:
        return None
    means = {
        x: average([scores.estimate(configuration(x, o), ids) for o in others]) for x in levels
    }
    usual = "full" if factor == "segments" else "mean"
    reference = usual if usual in levels else levels[0]
    rest = [level for level in levels if level != reference]
    differences = [means[level] - means[reference] for level in rest]
    judged = dict(zip(rest, verdicts(differences, margin, correction=correction), strict=True))
    made = [
        Level(_level_text(factor, x), means[x].value, *means[x].interval(), judged.get(x))
        for x in levels
    ]
    names = [_level_text("aggregator" if factor == "segments" else "segments", o) for o in others]
    layer, tokens, _, *rest = context
    text = ", ".join(
        [f"layer {layer}", "one vector a segment" if tokens == "segment" else tokens, *rest]
    )
    return Effect(factor, made, _level_text(factor, reference), names, text)


def _level_text(factor: str, name: str) -> str:
    """A level as tables show it."""
    return seg_text(name) if factor == "segments" else name


def _sorted(names) -> list[str]:
    """Segments by length, then the rest by name."""

    def order(name):
        length = fixed_length(name)
        return (1, 0.0, name) if length is None else (0, length, "")

    return sorted(names, key=order)
