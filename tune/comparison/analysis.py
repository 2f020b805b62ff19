"""From cells to what is shown: a view of each task, with verdicts, fronts and effects.

Quality and cost are compared within a task. Verdicts are given within an encoder, against that
encoder's baseline, and corrected over its cells. A degenerate cell that repeats another one stays
in the table and out of everything else.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tune.comparison.cells import Cell, layer_of, task_key
from tune.comparison.main_effects import Effect, EncoderPair, encoder_pairs, main_effects
from tune.comparison.per_class import Breakdown, break_down
from tune.comparison.published_results import StudyLine, study_table
from tune.comparison.recommend import Advice, Limits, advise
from tune.comparison.significance import Difference, Scores, against, enough_resamples

# What a strategy costs: name -> (heading, what must be equal for two costs to be compared).
AXES = {
    "memory": ("peak memory while encoding", lambda c: (c.memory_kind, c.device)),
    "seconds": ("encoding, seconds a track", lambda c: c.device),
    "dim": ("values of the embedding", lambda c: None),
}


@dataclass(eq=False)
class Row:
    """A cell in its task's table.

    Attributes
    ----------
    metrics : name -> (mean, low, high), over seeds and resampled tracks; the first is the main one
    std : the main metric's sample deviation over seeds, None for one seed
    difference : to the encoder's baseline, a reason (str) why there is none, or None: no baseline
    fronts : axis -> whether it lies on the front, None where the cost isn't known
    """

    cell: Cell
    metrics: dict[str, tuple[float, float, float]]
    std: float | None
    is_baseline: bool = False
    difference: Difference | str | None = None
    fronts: dict[str, bool | None] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The main metric."""
        return next(iter(self.metrics.values()))[0]

    @property
    def verdict(self) -> str:
        """better, worse, tie, baseline, repeats ..., or - where nothing can be said."""
        if self.is_baseline:
            return "baseline"
        if self.cell.twin is not None:
            return f"= {self.cell.twin.label}"
        return self.difference.verdict if isinstance(self.difference, Difference) else "-"

    @property
    def dominated(self) -> bool:
        """Another cell is as good and as cheap by every cost that is known, and better by one."""
        known = [value for value in self.fronts.values() if value is not None]
        return bool(known) and not any(known)

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return self.cell.result["encoder"]


@dataclass(eq=False)
class EncoderView:
    """What is said about one encoder's strategies on a task."""

    name: str
    untrained: bool
    baseline: Cell | None
    note: str
    effects: list[Effect]
    advice: list[Advice]


@dataclass(eq=False)
class TaskView:
    """One task: its table and what follows from it."""

    task: str
    metric: str
    n_test: int
    chance: float | None
    rows: list[Row]
    encoders: list[EncoderView]
    breakdown: Breakdown
    study: list[StudyLine]
    encoder_pairs: list[EncoderPair]

    @property
    def notes(self) -> list[str]:
        """What must be known to read the table."""
        return [view.note for view in self.encoders if view.note]


def analyse(
    cells: Sequence[Cell],
    *,
    baseline: str | None = None,
    correction: str = "holm",
    limits: Limits | None = None,
) -> list[TaskView]:
    """Compare all cells, task by task.

    Parameters
    ----------
    baseline : "SEG", "SEG:AGG" or a run's name; None is the full track's mean, else that of 10 s
    correction : "holm" or "none"
    limits : memory and time that a strategy must stay within

    Raises
    ------
    ValueError
        When no task has the baseline asked for.
    """
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(task_key(cell), []).append(cell)
    views = [_view(group, baseline, correction, limits or Limits()) for group in groups.values()]
    if baseline is not None and not any(e.baseline for view in views for e in view.encoders):
        known = ", ".join(sorted({f"{c.result['seg']}:{c.result['agg']}" for c in cells}))
        raise ValueError(f"--baseline {baseline}: no such cell or run; there are {known}")
    return views


def choose_baseline(cells: Sequence[Cell], asked: str | None) -> Cell | None:
    """Find the baseline among an encoder's cells, the plainest of several.

    Parameters
    ----------
    asked : "SEG" (its mean), "SEG:AGG", the name of a run, or None: full, else 10
    """
    named = [cell for cell in cells if any(run.name == asked for run in cell.runs)]
    if named:
        return named[0]
    for text in ["full", "10"] if asked is None else [asked]:
        seg, _, agg = text.partition(":")
        found = [c for c in cells if (c.result["seg"], c.result["agg"]) == (seg, agg or "mean")]
        if found:
            return min(
                found,
                key=lambda c: (
                    c.result["tokens"] != "segment",
                    c.result.get("layer_asked") != "last",
                    layer_of(c.result),
                    len(c.label),
                ),
            )
    return None


def pareto(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Say which points no other one beats: as cheap, as good, and better by one of both."""
    cost, quality = np.asarray(costs, float), np.asarray(qualities, float)
    weakly = (cost <= cost[:, None]) & (quality >= quality[:, None])  # (i, j): j against i
    strictly = (cost < cost[:, None]) | (quality > quality[:, None])
    return (~(weakly & strictly).any(1)).tolist()


def cost_of(cell: Cell, axis: str) -> float | None:
    """A cell's cost by an axis of `AXES`; None where it isn't known."""
    return {"memory": cell.memory_bytes, "seconds": cell.seconds_per_track, "dim": cell.dim}[axis]


def _view(cells, baseline, correction, limits) -> TaskView:
    """One task's view."""
    sizes = Counter(cell.result["encoder"] for cell in cells)
    cells = sorted(cells, key=lambda c: -sizes[c.result["encoder"]])  # stable: the rest stays
    by_encoder: dict[str, list[Cell]] = {}
    for cell in cells:
        by_encoder.setdefault(cell.result["encoder"], []).append(cell)
    scores = Scores(enough_resamples(max(map(len, by_encoder.values()))))
    rows = {cell: _row(cell, scores) for cell in cells}
    encoders = [
        _encoder_view(name, group, rows, scores, baseline, correction, limits)
        for name, group in by_encoder.items()
    ]
    compared = [row for row in rows.values() if row.cell.twin is None]
    for axis, (_, comparable) in AXES.items():
        alike: dict = {}
        for row in compared:
            if cost_of(row.cell, axis) is not None and np.isfinite(row.mean):
                alike.setdefault(comparable(row.cell), []).append(row)
        for group in alike.values():
            on_front = pareto([cost_of(r.cell, axis) for r in group], [r.mean for r in group])
            for row, value in zip(group, on_front, strict=True):
                row.fronts[axis] = value
    result = cells[0].result
    metric = next(iter(next(iter(rows.values())).metrics))
    chance = (result.get("chance") or {}).get(metric)
    baselines = [view.baseline for view in encoders if view.baseline]
    breakdown = break_down(
        [row.cell for row in sorted(compared, key=lambda r: -r.mean)], baselines, scores
    )
    return TaskView(
        result["task"],
        metric,
        max(len(c.ids) for c in cells),
        chance,
        list(rows.values()),
        encoders,
        breakdown,
        study_table(result["task"], cells, scores),
        encoder_pairs(by_encoder, scores, correction),
    )


def _row(cell, scores) -> Row:
    """A cell's numbers on its own tracks."""
    per_seed = [
        m
        for run in cell.runs
        for m in next(iter(run.result["metrics"].values()), {}).get("per_seed") or []
    ]
    std = float(np.std(per_seed, ddof=1)) if len(per_seed) == len(cell.seeds) > 1 else None
    return Row(cell, scores.summary(cell), std)


def _encoder_view(name, cells, rows, scores, asked, correction, limits) -> EncoderView:
    """Verdicts, effects and advice for an encoder's cells; verdicts go into the rows."""
    baseline = choose_baseline(cells, asked)
    alone = [cell for cell in cells if cell.twin is None]
    note = ""
    if baseline is None:
        want = asked or "full"
        note = f"{name}: no run of the baseline {want} with this encoder, so no verdicts"
    else:
        rows[baseline].is_baseline = True
        if asked is None and baseline.result["seg"] != "full":
            note = f"{name}: no run of the full track, so the baseline is {baseline.label}"
        family = [cell for cell in alone if cell is not baseline]
        for cell, found in against(baseline, family, scores, correction).items():
            rows[cell].difference = found
            if isinstance(found, str):
                note += f"{'; ' if note else ''}{cell.label}: {found}"
    effects = main_effects(cells, scores, correction)
    advice = advise(alone, scores, correction, limits)
    return EncoderView(
        name, bool(cells[0].result.get("encoder_untrained")), baseline, note, effects, advice
    )
