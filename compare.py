"""Which strategy? Runs merged into cells, compared on the same test tracks, with a report.

    python compare.py runs/
    python compare.py runs/ --html report.html --budget 4GB --max_seconds 0.1
    python compare.py runs/ more_runs/ --baseline 10:mean --csv cells.csv --figures figures/
    python compare.py runs/ --stability 20
    python compare.py --wandb ENTITY/PROJECT --html report.html --log_to ENTITY/PROJECT

Reads every run of train_probe.py below the folders, and merges them by task x encoder x layer x
segments x aggregator x tokens; runs that differ only in their seeds are merged, and of several with
the same seeds the newest is used. Each
strategy is compared with the baseline on the same test tracks, by a margin and corrected for the
number of comparisons: better, equivalent, as good, worse, or can't tell (docs/verdicts.md). Prints
tables, effects and guidelines, and names every run that it had to leave out.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from pathlib import Path

from tune.cli.flags import add_groups, to_bytes
from tune.cli.parser import Parser, read_arguments, run_script, set_up_logging

GROUPS = {
    "": "wandb costs stability",
    "comparison": "baseline margin retain correction budget max_seconds",
    "output (beside the terminal's tables)": "html csv parquet markdown latex figures log_to",
}
CHANGES = {
    "budget": dict(type=to_bytes, help="peak memory that a strategy must stay within, such as 4GB")
}


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="compare.py", description=__doc__)
    parser.add_argument(
        "dirs", type=Path, nargs="*", metavar="RUNS_DIR", help="folders with runs at any depth"
    )
    add_groups(parser, GROUPS, CHANGES)
    parser.with_config()
    args = parser.parse_args(argv)
    if not args.dirs and not args.wandb:
        parser.error("nothing to compare: give a folder with runs, or --wandb ENTITY/PROJECT")
    for path in args.dirs:
        if not path.is_dir():
            parser.error(f"{path}: no such folder; train_probe.py writes its runs to runs/")
    if args.stability is not None and args.stability < 2:
        parser.error(f"--stability needs 2 tracks or more, got {args.stability}")
    if args.log_to and (args.log_to.count("/") > 1 or not all(args.log_to.split("/"))):
        parser.error(f"--log_to takes PROJECT or ENTITY/PROJECT, got {args.log_to!r}")
    if args.wandb and args.wandb.count("/") != 1:
        parser.error(f"--wandb takes ENTITY/PROJECT, got {args.wandb!r}")
    for flag in ("html", "csv", "parquet", "markdown", "latex"):
        path = getattr(args, flag)
        if path and (path.is_dir() or not path.parent.is_dir()):
            parser.error(f"--{flag} {path}: a file in a folder that exists is needed")
    if args.csv and args.csv.suffix == ".parquet":
        parser.error("--csv writes CSV; --parquet writes Parquet")
    if args.parquet and args.parquet.suffix != ".parquet":
        parser.error(f"--parquet must end in .parquet, got {args.parquet.name!r}")
    if args.figures and args.figures.exists() and not args.figures.is_dir():
        parser.error(f"--figures {args.figures} is a file; a folder is needed")
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import logging
import sys

from rich.console import Console

from tune.comparison import tables
from tune.comparison.analysis import analyse
from tune.comparison.configurations import merge
from tune.comparison.measured_costs import apply_costs
from tune.comparison.recommend import Limits
from tune.embeddings.stability import stabilities
from tune.runs.load import read_folders

log = logging.getLogger("tune.compare")


def main(args):
    """Read, merge, compare, and write what was asked for."""
    set_up_logging(True)
    configurations, left = load(args)
    views = analyse(
        configurations,
        baseline=args.baseline,
        correction=args.correction,
        margin=args.margin,
        retain=args.retain,
        limits=Limits(args.budget, args.max_seconds),
    )
    if args.stability:
        rows = {row.configuration: row for view in views for row in view.rows}
        alone = [c for c in rows if c.duplicate_of is None]
        found, reasons = stabilities(alone, args.stability)
        for configuration, stability in found.items():
            rows[configuration].stability = stability
        for reason in reasons:
            log.warning("%s", reason)
    console = Console(width=None if sys.stdout.isatty() else 170)
    tables.print_views(views, left, args.correction, console)
    for path in write(args, views, left):
        print(f"written to {path}")


def load(args):
    """Read runs from folders and W&B into cells; also what was left out."""
    runs, left = read_folders(args.dirs)
    if args.wandb:
        from tune.comparison.wandb_runs import read_project

        found, unread = read_project(args.wandb)
        runs, left = runs + found, left + unread
    if not runs:
        where = ", ".join([*map(str, args.dirs), *filter(None, [args.wandb])])
        why = ""
        if left:
            why = f"; {len(left)} can't be used, such as {left[0].where}: {left[0].reason}"
        raise ValueError(f"{where}: no run of train_probe.py to compare{why}")
    configurations, replaced = merge(runs)
    for path in args.costs:
        apply_costs(configurations, path)
    return configurations, left + replaced


def write(args, views, left):
    """Write the files asked for; yields their paths."""
    for path in filter(None, (args.csv, args.parquet)):
        tables.write_frame(views, path)
        yield path
    if args.markdown:
        tables.write_markdown(views, args.correction, args.markdown)
        yield args.markdown
    if args.latex:
        tables.write_latex(views, args.correction, args.latex)
        yield args.latex
    if args.figures:
        from tune.comparison.figures import save_figures

        yield f"{args.figures} ({len(save_figures(views, args.figures))} files)"
    if args.html or args.log_to:
        from tune.comparison.html_report import render
        from tune.system.files import atomic_write_text, hide_home

        command = hide_home(" ".join(["compare.py", *sys.argv[1:]]))
        page = render(views, left, correction=args.correction, command=command)
    if args.html:
        atomic_write_text(args.html, page)
        yield args.html
    if args.log_to:
        from tune.comparison.wandb_runs import log_report

        print(*log_report(args.log_to, page, tables.frame(views)), sep="\n")


if __name__ == "__main__":
    run_script(lambda: main(args))
