"""The comparison of each task: its table with verdicts, Pareto fronts, effects and advice.

Quality and cost are compared within a task. Verdicts are given within an encoder, against that
encoder's baseline by a margin, and corrected over its configurations. A degenerate configuration
that repeats another one stays in the table and out of everything else.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from tune.comparison.configurations import Configuration, layer_of, task_key
from tune.comparison.fewest_seconds import SecondsCurve, seconds_curves
from tune.comparison.main_effects import Effect, EncoderPair, encoder_pairs, main_effects
from tune.comparison.per_class import Breakdown, break_down
from tune.comparison.published_results import Published, StudyLine, published_table, study_table
from tune.comparison.recommend import Advice, Limits, advise
from tune.comparison.significance import Scores, compare_to_baseline
from tune.comparison.stability import Stability
from tune.comparison.verdicts import MARGIN, Verdict, retained_margin
from tune.probing.intervals import FOLDS_NOTE

# Costs of a strategy: name -> (heading, what must be equal for two costs to be compared).
AXES = {
    "memory": ("peak memory while encoding", lambda c: (c.memory_kind, c.device)),
    "seconds": ("encoding, seconds a track", lambda c: c.device),
    "dim": ("values of the embedding", lambda c: None),
}


@dataclass(eq=False)
class TableRow:
    """A configuration in its task's table.

    Attributes
    ----------
    metrics : name -> (mean, low, high), over seeds and resampled tracks; the first is the main one
    std : the main metric's sample deviation over seeds, None for one seed
    difference : to the encoder's baseline, a reason (str) why there is none, or None: no baseline
    stability : how it takes changed tracks, where that was looked at
    fronts : axis -> whether it lies on the front, None where the cost isn't known
    """

    configuration: Configuration
    metrics: dict[str, tuple[float, float, float]]
    std: float | None
    is_baseline: bool = False
    difference: Verdict | str | None = None
    fronts: dict[str, bool | None] = field(default_factory=dict)
    stability: Stability | None = None

    @property
    def mean(self) -> float:
        """The main metric."""
        return next(iter(self.metrics.values()))[0]

    @property
    def verdict(self) -> str:
        """Word, baseline, = NAME for a duplicate, or - where there is no verdict."""
        if self.is_baseline:
            return "baseline"
        if self.configuration.duplicate_of is not None:
            return f"= {self.configuration.duplicate_of.label}"
        return self.difference.word if isinstance(self.difference, Verdict) else "-"

    @property
    def dominated(self) -> bool:
        """Whether another configuration is as good, costs no more, and is better in one of them."""
        known = [value for value in self.fronts.values() if value is not None]
        return bool(known) and not any(known)

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return self.configuration.result["encoder"]


@dataclass(eq=False)
class EncoderView:
    """One encoder's baseline, effects and advice on a task.

    Attributes
    ----------
    margin : the greatest loss to the baseline that is put up with; None where it isn't known,
        so that there are no verdicts
    """

    name: str
    untrained: bool
    baseline: Configuration | None
    margin: float | None
    note: str
    effects: list[Effect]
    advice: list[Advice]


@dataclass(eq=False)
class TaskView:
    """One task: its table, and the effects and advice derived from it."""

    task: str
    metric: str
    n_test: int
    chance: float | None
    rows: list[TableRow]
    encoders: list[EncoderView]
    breakdown: Breakdown
    study: list[StudyLine]
    encoder_pairs: list[EncoderPair]
    encoders_apart: list[tuple[str, str]]
    published: Published | None
    seconds: list[SecondsCurve] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Notes on how to read the table."""
        return [view.note for view in self.encoders if view.note]


def analyse(
    configurations: Sequence[Configuration],
    *,
    baseline: str | None = None,
    correction: str = "holm",
    margin: float = MARGIN,
    retain: float | None = None,
    limits: Limits | None = None,
) -> list[TaskView]:
    """Compare all configurations, task by task.

    Parameters
    ----------
    baseline : "SEG", "SEG:AGG" or a run's name; None is the full track's mean, else that of 10 s
    correction : "holm" or "none"
    margin : the greatest loss that is put up with, in the main metric's units
    retain : instead of a margin, the share of the baseline's score above chance to be kept, such as
        0.98; each encoder then has its own margin
    limits : memory and time that a strategy must stay within

    Raises
    ------
    ValueError
        When no task has the baseline asked for.
    """
    groups: dict[tuple, list[Configuration]] = {}
    for configuration in configurations:
        groups.setdefault(task_key(configuration), []).append(configuration)
    views = [
        _view(group, baseline, correction, margin, retain, limits or Limits())
        for group in groups.values()
    ]
    if baseline is not None and not any(e.baseline for view in views for e in view.encoders):
        known = ", ".join(sorted({f"{c.result['seg']}:{c.result['agg']}" for c in configurations}))
        raise ValueError(f"--baseline {baseline}: no such configuration or run; there are {known}")
    return views


def choose_baseline(
    configurations: Sequence[Configuration], asked: str | None
) -> Configuration | None:
    """Find the baseline among an encoder's configurations, the plainest of several.

    Parameters
    ----------
    asked : "SEG" (its mean), "SEG:AGG", the name of a run, or None: full, else 10
    """
    named = [
        configuration
        for configuration in configurations
        if any(run.name == asked for run in configuration.runs)
    ]
    if named:
        return named[0]
    for text in ["full", "10"] if asked is None else [asked]:
        seg, _, agg = text.partition(":")
        found = [
            c for c in configurations if (c.result["seg"], c.result["agg"]) == (seg, agg or "mean")
        ]
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
    """The Pareto front: True for points that no other point dominates.

    Examples
    --------
    >>> pareto(costs=[1.0, 2.0, 3.0], qualities=[0.5, 0.4, 0.7])
    [True, False, True]
    """
    cost, quality = np.asarray(costs, float), np.asarray(qualities, float)
    weakly = (cost <= cost[:, None]) & (quality >= quality[:, None])  # (i, j): j against i
    strictly = (cost < cost[:, None]) | (quality > quality[:, None])
    return (~(weakly & strictly).any(1)).tolist()


def cost_of(configuration: Configuration, axis: str) -> float | None:
    """A configuration's cost by an axis of `AXES`; None where it isn't known."""
    return {
        "memory": configuration.memory_bytes,
        "seconds": configuration.seconds_per_track,
        "dim": configuration.dim,
    }[axis]


def _view(configurations, baseline, correction, margin, retain, limits) -> TaskView:
    """One task's view."""
    sizes = Counter(configuration.result["encoder"] for configuration in configurations)
    configurations = sorted(
        configurations, key=lambda c: -sizes[c.result["encoder"]]
    )  # stable: the rest stays
    by_encoder: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        by_encoder.setdefault(configuration.result["encoder"], []).append(configuration)
    scores = Scores()
    rows = {configuration: _row(configuration, scores) for configuration in configurations}
    encoders = [
        _encoder_view(name, group, rows, scores, baseline, correction, margin, retain, limits)
        for name, group in by_encoder.items()
    ]
    compared = [row for row in rows.values() if row.configuration.duplicate_of is None]
    for axis, (_, comparable) in AXES.items():
        alike: dict = {}
        for row in compared:
            if cost_of(row.configuration, axis) is not None and np.isfinite(row.mean):
                alike.setdefault(comparable(row.configuration), []).append(row)
        for group in alike.values():
            on_front = pareto(
                [cost_of(r.configuration, axis) for r in group], [r.mean for r in group]
            )
            for row, value in zip(group, on_front, strict=True):
                row.fronts[axis] = value
    result = configurations[0].result
    metric = next(iter(next(iter(rows.values())).metrics))
    chance = (result.get("chance") or {}).get(metric)
    baselines = [view.baseline for view in encoders if view.baseline]
    # One of each encoder, not chosen by its score: the baseline, else the first.
    ours = [e.baseline or by_encoder[e.name][0] for e in encoders]
    breakdown = break_down(
        [row.configuration for row in sorted(compared, key=lambda r: -r.mean)], baselines, scores
    )
    judged = {view.name: view.margin for view in encoders if view.margin is not None}
    pairs = encoder_pairs(by_encoder, scores, correction, judged)
    compared_pairs = {frozenset((pair.name, pair.other)) for pair in pairs}
    return TaskView(
        result["task"],
        metric,
        max(len(c.ids) for c in configurations),
        chance,
        list(rows.values()),
        encoders,
        breakdown,
        study_table(result["task"], configurations, scores),
        pairs,
        [both for both in combinations(judged, 2) if frozenset(both) not in compared_pairs],
        published_table(result["task"], ours, scores),
        [
            curve
            for view in encoders
            if view.margin is not None
            for curve in seconds_curves(by_encoder[view.name], scores, correction, view.margin)
        ],
    )


def _row(configuration, scores) -> TableRow:
    """A configuration's numbers on its own tracks."""
    per_seed = [
        m
        for run in configuration.runs
        for m in next(iter(run.result["metrics"].values()), {}).get("per_seed") or []
    ]
    std = float(np.std(per_seed, ddof=1)) if len(per_seed) == len(configuration.seeds) > 1 else None
    return TableRow(configuration, scores.summary(configuration), std)


def _encoder_view(
    name, configurations, rows, scores, asked, correction, margin, retain, limits
) -> EncoderView:
    """Verdicts, effects and advice for an encoder's configurations; verdicts go into the rows."""
    baseline = choose_baseline(configurations, asked)
    alone = [
        configuration for configuration in configurations if configuration.duplicate_of is None
    ]
    notes = []
    if configurations[0].shared:
        notes.append(f"{name}, all: {', '.join(configurations[0].shared)}")
    if baseline is None:
        want = asked or "full"
        notes.append(
            f"{name}: no verdicts, because the baseline {want} was not run with this encoder"
        )
    else:
        rows[baseline].is_baseline = True
        if asked is None and baseline.result["seg"] != "full":
            notes.append(f"{name}: the full track was not run, so the baseline is {baseline.label}")
    if retain is not None:
        margin, why = _retained(baseline, rows, retain)
        if why:
            notes.append(f"{name}: no verdicts: {why}")
    if baseline is not None and margin is not None:
        family = [configuration for configuration in alone if configuration is not baseline]
        for configuration, found in compare_to_baseline(
            baseline, family, scores, correction, margin
        ).items():
            rows[configuration].difference = found
            if isinstance(found, str):
                notes.append(f"{configuration.label}: {found}")
    if any(c.result.get("folds") for c in configurations):
        notes.append(f"{name}: {FOLDS_NOTE}, and verdicts slightly too sure")
    effects, advice = [], []
    if margin is not None:
        effects = main_effects(configurations, scores, correction, margin)
        advice = advise(alone, scores, correction, limits, margin, baseline)
    return EncoderView(
        name,
        bool(configurations[0].result.get("encoder_untrained")),
        baseline,
        margin,
        "; ".join(notes),
        effects,
        advice,
    )


def _retained(baseline, rows, share) -> tuple[float | None, str]:
    """The margin that keeps a share of the baseline's score, or None and the reason."""
    if baseline is None:
        return None, ""  # which is said already
    metric = next(iter(rows[baseline].metrics))
    chance = (baseline.result.get("chance") or {}).get(metric)
    if chance is None:
        return None, f"the chance of {metric} isn't known; give --margin instead of --retain"
    try:
        return retained_margin(rows[baseline].mean, chance, share), ""
    except ValueError as error:
        return None, str(error)
