"""Compare runs on the same test tracks: `python -m tune.comparison paired runs/A runs/B ...`.

The first run is the baseline. Each other one is compared with it track by track, by a paired
bootstrap (`tune.probing.intervals.paired_bootstrap`); if the interval of the difference contains
zero, there is no significant difference.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tune.probing.intervals import paired_bootstrap
from tune.runs.predictions import Predictions, folds_text, read_predictions


def compare(baseline: Predictions, other: Predictions) -> dict[str, tuple[float, float, float]]:
    """Differences (other - baseline) with their intervals, on the test tracks of both.

    Raises
    ------
    ValueError
        When the runs have different tasks or folds, or no test track in common.
    """
    a, b = baseline, other
    if (a.result["task"], a.result["kind"]) != (b.result["task"], b.result["kind"]):
        raise ValueError(f"different tasks: {a.result['task']} and {b.result['task']}")
    folds = [folds_text(r.result) or "a single split" for r in (a, b)]
    if folds[0] != folds[1]:
        raise ValueError(f"the runs were trained on other tracks: {folds[0]} and {folds[1]}")
    both = sorted(set(a.ids) & set(b.ids))
    if not both:
        raise ValueError("the runs have no test track in common")
    at = [
        np.array([{name: i for i, name in enumerate(r.ids)}[name] for name in both]) for r in (a, b)
    ]
    if not np.array_equal(a.labels[at[0]], b.labels[at[1]]):
        raise ValueError("the runs have different labels for the same tracks")
    return paired_bootstrap(
        a.result["kind"],
        a.labels[at[0]],
        a.predictions[:, at[0]],
        b.predictions[:, at[1]],
        a.result["targets"],
        groups=None if a.groups is None else [a.groups[i] for i in at[0]],
    )


def verdict(low: float, high: float) -> str:
    """The verdict on an interval of a difference: better, worse or tie.

    Examples
    --------
    >>> verdict(0.01, 0.2), verdict(-0.1, 0.1)
    ('better', 'tie')
    """
    return "better" if low > 0 else "worse" if high < 0 else "tie"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of differences."""
    from rich.console import Console
    from rich.table import Table

    from tune.cli.parser import Parser

    parser = Parser(prog="python -m tune.comparison paired", description=__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs; the first is the baseline",
    )
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        parser.error("a baseline and at least one other run are needed")
    runs = [read_predictions(path) for path in args.runs]
    name = next(iter(runs[0].result["metrics"]))
    table = Table(
        title=f"{runs[0].result['task']}: {name}, against {args.runs[0].name}", title_justify="left"
    )
    table.add_column("run", overflow="fold")
    for head in (name, "difference", "95 % interval", "verdict"):
        table.add_column(head, justify="right")
    table.add_row(args.runs[0].name, f"{runs[0].result['metrics'][name]['mean']:.3f}", "", "", "")
    for path, run in zip(args.runs[1:], runs[1:], strict=True):
        difference, low, high = compare(runs[0], run)[name]
        table.add_row(
            path.name,
            f"{run.result['metrics'][name]['mean']:.3f}",
            f"{difference:+.3f}",
            f"{low:+.3f} to {high:+.3f}",
            verdict(low, high),
        )
    Console().print(table)
