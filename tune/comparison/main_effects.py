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
from tune.comparison.configurations import Configuration, details, layer_of, same_predictions
from tune.comparison.jackknife import average
from tune.comparison.significance import Scores, common_ids
from tune.comparison.verdicts import MARGIN, Verdict, verdicts
from tune.segments.rules import fixed_length, seg_text

MOST_LEVELS = 12  # all subsets of as many levels are tried for a full grid
# Which of several layers stands for an encoder against one that has a single layer.
LAYERS = ("all", "mix", "reduce", "last")
SEVERAL = [name for name, row in AGGREGATORS.items() if row.several_segs]  # have no one length


@dataclass(frozen=True)
class Level:
    """One segment length or aggregator: its mean over the other factor, against the reference.

    Attributes
    ----------
    difference : None for the reference, and for a level that equals it
    same_as : the reference, where all predictions are the same as its; else ""
    """

    name: str
    mean: float
    low: float
    high: float
    difference: Verdict | None
    same_as: str = ""

    @property
    def word(self) -> str:
        """The verdict, = NAME where the predictions are the reference's, else reference."""
        if self.same_as:
            return f"= {self.same_as}"
        return self.difference.word if self.difference else "reference"


@dataclass(frozen=True)
class Effect:
    """A main effect: levels of one factor, averaged over `others`, on a full grid.

    Attributes
    ----------
    left_out : strategies of this encoder that are no part of the grid
    """

    factor: str
    levels: list[Level]
    reference: str
    others: list[str]
    context: str
    left_out: list[str]

    @property
    def n_configurations(self) -> int:
        """Configurations that the effect is made of."""
        return len(self.levels) * len(self.others)


@dataclass(frozen=True)
class EncoderPair:
    """Two encoders, the better one first, averaged over the strategies that both have.

    Attributes
    ----------
    strategies : what the means are taken over
    left_out : encoder -> its strategies that are no part of the means
    """

    name: str
    other: str
    mean: float
    mean_of_other: float
    difference: Verdict
    strategies: list[str]
    left_out: dict[str, list[str]]


def encoder_pairs(
    by_encoder: Mapping[str, Sequence[Configuration]],
    scores: Scores,
    correction: str,
    margins: Mapping[str, float] | None = None,
) -> list[EncoderPair]:
    """Compare each pair of encoders, averaged over the strategies that both have.

    Both are taken with the same segments, aggregators, layers (a number, or how it's found) and
    tokens; where one of them has a single layer, that is compared with whichever layers the other
    was run with. Configurations that repeat the full track are left out; encoders without a
    strategy or test tracks in common, or with other labels for these, aren't compared.

    Parameters
    ----------
    by_encoder : encoder -> its configurations
    margins : encoder -> the greatest loss to it that is put up with; only those in it are compared.
        None: all, by `MARGIN`
    """
    if margins is None:
        margins = dict.fromkeys(by_encoder, MARGIN)
    own = {
        name: [c for c in found if c.duplicate_of is None and not c.result.get("degenerate")]
        for name, found in by_encoder.items()
        if name in margins
    }
    found = []
    for a, b in combinations(own, 2):
        both = _in_common(own[a], own[b])
        if not both:
            continue
        used = [c for pair in both for c in pair]
        try:
            ids = common_ids(used)
        except ValueError:
            continue
        means = [
            average([scores.estimate(c, ids) for c in side]) for side in zip(*both, strict=True)
        ]
        labels = [_pair_text(*pair) for pair in both]
        left = {x: [c.label for c in own[x] if c not in used] for x in (a, b)}
        sides = sorted(zip((a, b), means, strict=True), key=lambda side: -side[1].value)
        found.append((*sides, labels, left))
    found.sort(key=lambda f: (-f[0][1].value, f[1][1].value))  # the best encoder's first
    judged = verdicts(
        [x - y for (_, x), (_, y), *_ in found],
        [margins[b] for _, (b, _), *_ in found],
        correction=correction,
    )
    return [
        EncoderPair(a, b, x.value, y.value, verdict, labels, left)
        for ((a, x), (b, y), labels, left), verdict in zip(found, judged, strict=True)
    ]


def _in_common(
    ours: Sequence[Configuration], theirs: Sequence[Configuration]
) -> list[tuple[Configuration, Configuration]]:
    """Pairs of the same strategy, of one encoder and of another."""
    grouped = [_by_strategy(ours), _by_strategy(theirs)]
    pairs = []
    for strategy in grouped[0]:
        if strategy not in grouped[1]:
            continue
        one, other = (side[strategy] for side in grouped)  # layer -> configuration
        both = [layer for layer in one if layer in other]
        if both:
            pairs += [(one[layer], other[layer]) for layer in both]
        elif any(_single_layer(c) for side in (one, other) for c in side.values()):
            pairs.append((one[min(one, key=_preferred)], other[min(other, key=_preferred)]))
    return pairs


def _by_strategy(configurations) -> dict[tuple, dict[str, Configuration]]:
    """Strategy without its layer -> layer -> configuration."""
    out: dict[tuple, dict[str, Configuration]] = {}
    for configuration in configurations:
        r = configuration.result
        asked = r.get("layer_asked")
        layer = asked if asked in LAYERS else str(r["layer"])
        strategy = (r["seg"], r["agg"], r["tokens"], *details(configuration.runs[0]))
        out.setdefault(strategy, {})[layer] = configuration
    return out


def _single_layer(configuration: Configuration) -> bool:
    """Whether its encoder has one layer: the last is number 0, or all of them are one."""
    asked = configuration.result.get("layer_asked")
    if asked == "last":
        return configuration.result["layer"] == 0
    layers = configuration.runs[0].config.get("layers") or []
    return asked in LAYERS and len(layers) == 1


def _preferred(layer: str) -> tuple:
    """The order in which an encoder's layers are taken: all, ..., then the deepest."""
    return (LAYERS.index(layer), 0) if layer in LAYERS else (len(LAYERS), -int(layer))


def _pair_text(one: Configuration, other: Configuration) -> str:
    """A strategy that two encoders share, with both labels where they differ by the layer."""
    return one.label if one.label == other.label else f"{one.label} and {other.label}"


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
            made = _effect(
                factor, grid, levels, others, context, scores, correction, margin, configurations
            )
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


def _effect(
    factor, grid, levels, others, context, scores, correction, margin, every
) -> Effect | None:
    """Average over the other factor, and compare levels with the reference.

    Parameters
    ----------
    every : all of the encoder's configurations, of which those outside the grid are named
    """

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
    equal = {
        level
        for level in rest
        if all(
            same_predictions(configuration(level, o), configuration(reference, o)) for o in others
        )
    }
    rest = [level for level in rest if level not in equal]
    differences = [means[level] - means[reference] for level in rest]
    judged = dict(zip(rest, verdicts(differences, margin, correction=correction), strict=True))
    shown = _level_text(factor, reference)
    made = [
        Level(
            _level_text(factor, x),
            means[x].value,
            *means[x].interval(),
            judged.get(x),
            shown if x in equal else "",
        )
        for x in levels
    ]
    names = [_level_text("aggregator" if factor == "segments" else "segments", o) for o in others]
    layer, tokens, _, *rest = context
    text = ", ".join(
        [f"layer {layer}", "one vector a segment" if tokens == "segment" else tokens, *rest]
    )
    used = {configuration(level, o) for level in levels for o in others}
    left = [c.label for c in every if c not in used and c.duplicate_of is None]
    return Effect(factor, made, shown, names, text, left)


def _level_text(factor: str, name: str) -> str:
    """A level as tables show it."""
    return seg_text(name) if factor == "segments" else name


def _sorted(names) -> list[str]:
    """Segments by length, then the rest by name."""

    def order(name):
        length = fixed_length(name)
        return (1, 0.0, name) if length is None else (0, length, "")

    return sorted(names, key=order)
