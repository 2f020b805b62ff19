"""Strategies over several tasks: what a difference to the baseline would be on yet another task.

An aggregator's worth depends on the task, so a claim about it is one about tasks: each task counts
as one draw of a random effect. The mean of the tasks' differences gets an interval by Student's t
from the spread between the tasks, which holds what each task's tracks and seeds add to it (summary
measures; Matthews et al. 1990, BMJ 300:230). Tasks weigh alike, whatever their tracks. Differences
are in points of each task's own metric.

Whoever looks at the tasks and takes the strategy that is highest there has chosen by looking. What
that is worth is shown by leaving out each task in turn: the strategy that is highest on the others
is scored on the one left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tune.comparison.jackknife import Estimate
from tune.comparison.verdicts import Verdict, family_text, verdicts

FEWEST = 3  # tasks; the spread between two says next to nothing


@dataclass(frozen=True, eq=False)
class TaskEffect:
    """A strategy's differences to the baseline, and the verdict over its tasks.

    Attributes
    ----------
    differences : task -> difference; 0 where its predictions are the baseline's
    verdict : None where it is the baseline on all tasks
    """

    strategy: str
    differences: dict[str, float]
    verdict: Verdict | None

    @property
    def mean(self) -> float:
        """The mean over its tasks."""
        return float(np.mean(list(self.differences.values())))

    def texts(self) -> list[str]:
        """A row of the table, in the order of `OverTasks.HEADS`."""
        v = self.verdict
        by_size = sorted(self.differences, key=self.differences.get)
        return [
            self.strategy,
            str(len(self.differences)),
            f"{self.mean:+.3f}",
            f"{v.low:+.3f} to {v.high:+.3f}" if v else "",
            v.word if v else "= baseline",
            *(f"{self.differences[task]:+.3f} {task}" for task in (by_size[0], by_size[-1])),
        ]


@dataclass(frozen=True, eq=False)
class OverTasks:
    """An encoder's strategies over the tasks that have its baseline.

    Attributes
    ----------
    tasks : names
    effects : by their mean, highest first
    picks : task -> the strategy that is highest on the other tasks
    chosen : what these picks gain on the tasks left out; None where nothing could be chosen
    """

    HEADS: ClassVar = (
        "strategy",
        "tasks",
        "mean difference",
        "95 % interval",
        "verdict",
        "lowest",
        "highest",
    )

    encoder: str
    baseline: str
    tasks: list[str]
    margin: float
    correction: str
    effects: list[TaskEffect]
    picks: dict[str, str]
    chosen: TaskEffect | None

    @property
    def title(self) -> str:
        """What the table shows."""
        return (
            f"over {len(self.tasks)} tasks, {self.encoder}: difference to {self.baseline}, tasks "
            "as a random effect"
        )

    def answers(self) -> list[str]:
        """What the verdicts rest on, and what choosing by the other tasks gains."""
        lines = [
            family_text(self.margin, len([e for e in self.effects if e.verdict]), self.correction)
            + "; points of each task's metric, tasks weigh alike"
        ]
        if self.chosen:
            counts = Counter(self.picks.values()).most_common()
            text = ", ".join(f"{name} ({n})" for name, n in counts)
            found = self.chosen.verdict
            gain = f"{self.chosen.mean:+.3f}"
            if found:
                gain += f" ({found.low:+.3f} to {found.high:+.3f}), {found.word}"
            lines.append(f"chosen for each task by the other tasks: {text}: {gain}")
        return lines


def over_tasks(views: Sequence, correction: str = "holm") -> list[OverTasks]:
    """Put the tasks' verdicts together, for each encoder with three tasks or more, and for all.

    Of several encoders, the last table has the means of their differences on each task.

    Parameters
    ----------
    views : of `tune.comparison.analysis.analyse`; tasks whose baseline is another strategy than
        most tasks' are left out
    correction : "holm" or "none", over an encoder's strategies
    """
    by_encoder: dict[str, list] = {}
    for view in views:
        for encoder in view.encoders:
            if encoder.baseline is not None and encoder.margin is not None:
                by_encoder.setdefault(encoder.name, []).append((view, encoder))
    out, each = [], []
    for name, found in by_encoder.items():
        usual = Counter(encoder.baseline.label for _, encoder in found).most_common(1)[0][0]
        same = [pair for pair in found if pair[1].baseline.label == usual]
        differences = _differences(name, [view for view, _ in same])
        tasks, margin = [view.task for view, _ in same], min(encoder.margin for _, encoder in same)
        if table := _table(name, usual, tasks, differences, margin, correction):
            out += table
            each.append((usual, tasks, differences, margin))
    if len(each) > 1 and len({baseline for baseline, *_ in each}) == 1:
        margin = min(margin for *_, margin in each)
        tasks = [task for task in each[0][1] if all(task in some for _, some, *_ in each)]
        differences = _means([found for _, _, found, _ in each])
        name = f"mean of {len(each)} encoders"
        out += _table(name, each[0][0], tasks, differences, margin, correction)
    return out


def _differences(encoder, views) -> dict[str, dict[str, float]]:
    """Strategy -> task -> difference to the baseline."""
    out: dict[str, dict[str, float]] = {}
    for view in views:
        rows = {row.configuration: row for row in view.rows if row.encoder == encoder}
        for row in rows.values():
            value = _difference(row, rows)
            if value is not None:
                out.setdefault(row.configuration.label, {})[view.task] = value
    return out


def _means(found) -> dict[str, dict[str, float]]:
    """Means over encoders, of the strategies and tasks that all of them have."""
    out: dict[str, dict[str, float]] = {}
    for strategy in set.intersection(*map(set, found)):
        for task in set.intersection(*(set(each[strategy]) for each in found)):
            value = float(np.mean([each[strategy][task] for each in found]))
            out.setdefault(strategy, {})[task] = value
    return {strategy: dict(sorted(out[strategy].items())) for strategy in sorted(out)}


def _table(name, baseline, tasks, differences, margin, correction) -> list[OverTasks]:
    """A table over tasks, or none where no strategy has enough of them."""
    differences = {s: each for s, each in differences.items() if len(each) >= FEWEST}
    if not differences:
        return []
    effects = _effects(differences, margin, correction)
    everywhere = {s: each for s, each in differences.items() if len(each) == len(tasks)}
    picks, chosen = {}, None
    if everywhere:
        everywhere[baseline] = dict.fromkeys(tasks, 0.0)  # it may be the highest
        for task in tasks:
            picks[task] = max(
                everywhere, key=lambda s: sum(v for t, v in everywhere[s].items() if t != task)
            )
        gained = {"chosen": {task: everywhere[picks[task]][task] for task in tasks}}
        chosen = _effects(gained, margin, correction)[0]
    return [OverTasks(name, baseline, tasks, margin, correction, effects, picks, chosen)]


def _difference(row, rows) -> float | None:
    """A row's difference to the baseline; None of the baseline itself, and where it isn't known."""
    if row.is_baseline:
        return None
    if row.configuration.duplicate_of is not None:
        original = rows.get(row.configuration.duplicate_of)
        if original is None:
            return None
        return 0.0 if original.is_baseline else _difference(original, rows)
    return row.difference.difference.value if isinstance(row.difference, Verdict) else None


def _effects(differences, margin, correction) -> list[TaskEffect]:
    """Judge strategies, one family; highest first."""
    values = {s: np.array(list(each.values())) for s, each in differences.items()}
    vary = [s for s in values if values[s].any()]
    estimates = [
        Estimate(v.mean(), v - v.mean(), (), len(v), len(v), 2, False)
        for v in (values[s] for s in vary)
    ]
    judged = dict(zip(vary, verdicts(estimates, margin, correction=correction), strict=True))
    effects = [TaskEffect(s, each, judged.get(s)) for s, each in differences.items()]
    return sorted(effects, key=lambda effect: -effect.mean)
