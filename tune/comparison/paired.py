"""Compare runs on the same test tracks: `python -m tune.comparison paired runs/A runs/B ...`.

The first run is the baseline. Each other one is compared with it track by track, and judged by the
margin: better, equivalent, as good, worse, or can't tell (docs/verdicts.md). The other runs are one
family, over which verdicts are corrected.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tune.comparison.jackknife import Estimate, paired_difference
from tune.comparison.verdicts import CANT_TELL, family_text, retained_margin, verdicts
from tune.runs.predictions import Predictions, folds_text, read_predictions


def compare(baseline: Predictions, other: Predictions) -> dict[str, Estimate]:
    """Differences (other - baseline) by each metric, on the test tracks of both.

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
    # A run of an older version may not have its tracks' groups.
    groups = next(
        ([r.groups[i] for i in where] for r, where in zip((a, b), at, strict=True) if r.groups),
        None,
    )
    return paired_difference(
        a.result["kind"],
        a.labels[at[0]],
        a.predictions[:, at[0]],
        b.predictions[:, at[1]],
        a.result["targets"],
        groups=groups,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of differences."""
    from rich.console import Console
    from rich.table import Table

    from tune.cli.flags import add_groups
    from tune.cli.parser import Parser

    parser = Parser(prog="python -m tune.comparison paired", description=__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs; the first is the baseline",
    )
    add_groups(parser, {"comparison": "margin retain correction"}, {})
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        parser.error("a baseline and at least one other run are needed")
    runs = [read_predictions(path) for path in args.runs]
    name = next(iter(runs[0].result["metrics"]))
    score = runs[0].result["metrics"][name]["mean"]
    margin = args.margin
    if args.retain is not None:
        chance = (runs[0].result.get("chance") or {}).get(name)
        if chance is None:
            raise ValueError(f"{args.runs[0]} doesn't say the chance of {name}; give --margin")
        margin = retained_margin(score, chance, args.retain)
    judged = verdicts(
        [compare(runs[0], run)[name] for run in runs[1:]], margin, correction=args.correction
    )
    table = Table(
        title=f"{runs[0].result['task']}: {name}, against {args.runs[0].name}", title_justify="left"
    )
    table.add_column("run", overflow="fold")
    for head in (name, "difference", "95 % interval", "verdict"):
        table.add_column(head, justify="right")
    table.add_row(args.runs[0].name, f"{score:.3f}", "", "", "")
    for path, run, verdict in zip(args.runs[1:], runs[1:], judged, strict=True):
        table.add_row(
            path.name,
            f"{run.result['metrics'][name]['mean']:.3f}",
            f"{verdict.difference.value:+.3f}",
            f"{verdict.low:+.3f} to {verdict.high:+.3f}",
            verdict.word,
        )
    console = Console()
    console.print(table)
    lines = [family_text(margin, len(judged), args.correction)]
    lines += [
        f"{path.name}: {verdict}"
        for path, verdict in zip(args.runs[1:], judged, strict=True)
        if verdict.word == CANT_TELL or verdict.difference.n_seeds == 1
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
