"""Verdicts: differences on the same test tracks, corrected for how many were looked at.

All cells are scored on the same resamples of the test tracks (`tune.metrics.bootstrap_curves`), so
that differences are paired, and so are differences of averages over cells. A p-value is twice the
smaller share of resamples on either side of zero, and at least 1 / resamples. Holm's correction
(Holm 1979) keeps the chance of any false "better" or "worse" in a family of comparisons below 5 %.
The seeds are taken as they are: what another set of seeds would give isn't part of an interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tune.comparison import Cell, details, layer_of, seg_text
from tune.metrics import N_RESAMPLES, bootstrap_curves, interval

ALPHA = 0.05
CORRECTIONS = ("holm", "none")
MOST_LEVELS = 12  # all subsets of as many levels are tried for a balanced grid


@dataclass(frozen=True)
class Difference:
    """A difference, its 95 % interval, p-value before and after correction, and the word for it."""

    value: float
    low: float
    high: float
    p: float
    p_corrected: float
    verdict: str
    n_tracks: int


@dataclass(frozen=True)
class Level:
    """One segment length or aggregator: its mean over the other factor, against the reference."""

    name: str
    mean: float
    low: float
    high: float
    difference: Difference | None


@dataclass(frozen=True)
class Effect:
    """A main effect: levels of one factor, averaged over `others`, on a full grid of cells."""

    factor: str
    levels: list[Level]
    reference: str
    others: list[str]
    context: str

    @property
    def n_cells(self) -> int:
        """Cells that the effect is made of."""
        return len(self.levels) * len(self.others)


class Scores:
    """Metrics of cells on the same resamples, computed once for each set of tracks.

    Parameters
    ----------
    n_resamples : at least `N_RESAMPLES`; more are needed for many comparisons
    """

    def __init__(self, n_resamples: int = N_RESAMPLES):
        self.n_resamples = n_resamples
        self._known: dict[tuple, dict[str, np.ndarray]] = {}

    def curves(self, cell: Cell, ids: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Each metric on the whole split and on each resample, (1 + R,), for some of its tracks."""
        ids = cell.ids if ids is None else ids
        key = (id(cell), tuple(ids))
        if key not in self._known:
            at = positions(cell, ids)
            r = cell.result
            self._known[key] = bootstrap_curves(
                r["kind"], cell.labels[at], cell.predictions[:, at], r["targets"],
                n_resamples=self.n_resamples,
            )  # fmt: skip
        return self._known[key]

    def main(self, cell: Cell, ids: Sequence[str] | None = None) -> np.ndarray:
        """The main metric: accuracy or mean R²."""
        return next(iter(self.curves(cell, ids).values()))

    def summary(self, cell: Cell) -> dict[str, tuple[float, float, float]]:
        """Each metric with its interval: (mean, low, high)."""
        return {name: (float(v[0]), *interval(v[1:])) for name, v in self.curves(cell).items()}


def enough_resamples(n_comparisons: int) -> int:
    """Resamples with which even the strictest of so many corrected p-values can fall below 5 %."""
    return max(N_RESAMPLES, 40 * n_comparisons)


def positions(cell: Cell, ids: Sequence[str]) -> np.ndarray:
    """Where a cell's tracks of these ids are."""
    at = {name: i for i, name in enumerate(cell.ids)}
    return np.array([at[name] for name in ids], dtype=int)


def common_ids(cells: Sequence[Cell]) -> list[str]:
    """Test tracks that all cells have.

    Raises
    ------
    ValueError
        When there is none, or when their labels differ.
    """
    ids = sorted(set.intersection(*(set(cell.ids) for cell in cells)))
    if not ids:
        raise ValueError("no test track in common")
    first = cells[0].labels[positions(cells[0], ids)]
    if any(not np.array_equal(first, c.labels[positions(c, ids)]) for c in cells[1:]):
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
    """Holm's correction: p-values to be held against the level as they are; NaN stay and don't count."""
    p = np.asarray(p, dtype=float)
    out = p.copy()
    order = np.argsort(p, kind="stable")  # NaN come last
    m, highest = int(np.isfinite(p).sum()), 0.0
    for rank, i in enumerate(order[:m]):
        highest = max(highest, min(1.0, (m - rank) * p[i]))
        out[i] = highest
    return out.tolist()


def judge(curves: Sequence[tuple[np.ndarray, int]], correction: str) -> list[Difference]:
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


def against(baseline: Cell, cells: Sequence[Cell], scores: Scores, correction: str) -> dict:
    """Compare cells with a baseline, as one family.

    Returns
    -------
    dict : cell -> Difference, or the reason (str) why the two can't be compared
    """
    found, curves = {}, []
    for cell in cells:
        try:
            ids = common_ids([baseline, cell])
        except ValueError as error:
            found[cell] = str(error)
            continue
        found[cell] = None
        curves.append((scores.main(cell, ids) - scores.main(baseline, ids), len(ids)))
    judged = iter(judge(curves, correction))
    return {cell: next(judged) if text is None else text for cell, text in found.items()}


def main_effects(cells: Sequence[Cell], scores: Scores, correction: str) -> list[Effect]:
    """Effect of the segments and of the aggregator, each on the largest full grid there is.

    A cell is part of a grid with cells that share everything but segments and aggregator. Cells
    that repeat the full track are left out.
    """
    contexts: dict[tuple, dict[tuple[str, str], Cell]] = {}
    for cell in cells:
        r = cell.result
        if not r.get("degenerate") and r["agg"] != "hierarchical":
            context = (layer_of(r), r["tokens"], r.get("precision"), *details(cell.runs[0]))
            contexts.setdefault(context, {})[r["seg"], r["agg"]] = cell
    effects = []
    for factor in ("segments", "aggregator"):
        grids = [(context, grid, *balanced(grid, factor)) for context, grid in contexts.items()]
        grids = [g for g in grids if g[2]]
        if grids:
            context, grid, levels, others = max(grids, key=lambda g: len(g[2]) * len(g[3]))
            made = _effect(factor, grid, levels, others, context, scores, correction)
            effects += [made] if made else []
    return effects


def balanced(grid: dict[tuple[str, str], Cell], factor: str) -> tuple[list[str], list[str]]:
    """Find the largest full sub-grid with two or more levels of a factor.

    Parameters
    ----------
    grid : (seg, agg) -> cell
    factor : "segments" or "aggregator"

    Returns
    -------
    levels, others : names of the factor's levels and of the other factor's; empty when there is none
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


def _effect(factor, grid, levels, others, context, scores, correction) -> Effect | None:
    """Average curves over the other factor, and compare levels with the reference."""

    def cell(level, other):
        return grid[(level, other) if factor == "segments" else (other, level)]

    try:
        ids = common_ids([cell(level, other) for level in levels for other in others])
    except ValueError:
        return None
    curves = {x: np.mean([scores.main(cell(x, o), ids) for o in others], axis=0) for x in levels}
    usual = "full" if factor == "segments" else "mean"
    reference = usual if usual in levels else levels[0]
    rest = [level for level in levels if level != reference]
    differences = [(curves[level] - curves[reference], len(ids)) for level in rest]
    judged = dict(zip(rest, judge(differences, correction), strict=True))
    made = [Level(_level_text(factor, x), float(curves[x][0]), *interval(curves[x][1:]),
                  judged.get(x)) for x in levels]  # fmt: skip
    names = [_level_text("aggregator" if factor == "segments" else "segments", o) for o in others]
    layer, tokens, _, *rest = context
    text = ", ".join([f"layer {layer}", "one vector a segment" if tokens == "segment" else tokens,
                      *rest])  # fmt: skip
    return Effect(factor, made, _level_text(factor, reference), names, text)


def _level_text(factor: str, name: str) -> str:
    """A level as people read it."""
    return seg_text(name) if factor == "segments" else name


def _sorted(names) -> list[str]:
    """Segments by length, then the rest by name."""
    def order(name):
        return (0, float(name), "") if name.replace(".", "", 1).isdigit() else (1, 0.0, name)

    return sorted(names, key=order)
