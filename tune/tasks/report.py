"""List, describe, check tasks: python -m tune.tasks list | show NAME | check NAME|PATH|hub:NAME.

list: the table of tasks. show: one task's layout, recipe, source and how to get it. check: a
report on its data before hours are spent on it (durations, rates, classes, the same audio in
several splits or twice in one, lossy copies and excerpts, files that can't be read, channels of
opposite phase, lengths that don't go with a file's size, classes that the test split lacks or whose
names look alike, regressions that may be classes), with the thresholds; exit code 1 when there is
something wrong. What isn't there yet is fetched first, as a run would do.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tune.cli.flags import add
from tune.cli.parser import Parser, one_line, positive_int, set_up_logging, to_bool
from tune.system.files import cache_folder
from tune.tasks.check import MIN_TRACKS, check, summary
from tune.tasks.label_kinds import KINDS, label_kind
from tune.tasks.load import DEMO_TASKS, load_task
from tune.tasks.readers import SPLITS
from tune.tasks.registry import HEAD, TASKS

SHOWN = 8  # problems of a kind
SHOWN_CLASSES = 30
FILES = {
    "marble": "{place}/{stem}.{{train,val,test}}.jsonl, a line a file: audio_path (from the folder "
    "that holds data/) and label",
    "nsynth": "{place}/nsynth-{{train,valid,test}}/examples.json and audio/NOTE.wav; the label is "
    "the note's {stem}",
    "vocalset": "{place}/FULL/SINGER/EXERCISE/TECHNIQUE/*.wav, as the archive unpacks; or "
    "{place}/{{train,valid,test}}_{stem[0]}.txt and audio/, as MARBLE v1 prepares it",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = _parse(argv)
    set_up_logging(True)
    # In a pipe nothing is folded: names can be searched and copied.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    if args.verb == "list":
        console.print(table_of_tasks())
        return
    if args.verb == "show":
        if args.task not in TASKS:
            raise ValueError(f"unknown task {args.task!r}: it is none of {', '.join(TASKS)}")
        for name, text in describe(args.task, args.data_dir):
            console.print(f"{name:<10} {text}", markup=False, soft_wrap=True)
        return
    task = load_task(
        args.task,
        args.data_dir,
        cache_dir=args.cache_dir or cache_folder() / "demo",
        kind=args.kind,
        label_column=args.label_column,
        audio_column=args.audio_column,
        usable=False,
        allow_outside=args.allow_outside,
        data_revision=args.data_revision,
        yes=args.yes,
    )
    report = check(task, min_tracks=args.min_tracks, decode=args.decode)
    print_report(report, console)
    if args.json:
        text = json.dumps(report, indent=2, ensure_ascii=False)
        args.json.write_text(text + "\n", encoding="utf-8")
        print(f"written to {args.json}")
    sys.exit(1 if report["problems"] else 0)


def table_of_tasks() -> Table:
    """The table of tasks."""
    table = Table(title="train_probe.py --task NAME", title_justify="left")
    for head in ("name", "what", "kind", "metric", "layer", "rate", "from"):
        table.add_column(head, overflow="fold")
    for name, row in TASKS.items():
        origin = row.hub or ("archives" if row.archives else "composed here")
        table.add_row(
            name,
            row.about,
            row.kind,
            label_kind(row.kind).about_metrics,
            row.layer,
            f"{row.training.lr:g}",
            origin,
        )
    return table


def describe(name: str, data_dir: Path) -> list[tuple[str, str]]:
    """Lines on one task: (heading, text)."""
    row = TASKS[name]
    kind, recipe = label_kind(row.kind), row.training
    folder = data_dir / row.place
    lines = [
        ("task", f"{name}: {row.about}"),
        ("kind", f"{row.kind}; label: {kind.about.format(targets=', '.join(row.targets))}"),
        ("metric", f"{kind.about_metrics}; epochs are chosen by {recipe.main_metric}"),
        (
            "recipe",
            f"{HEAD}; Adam at {recipe.lr:g}, times {recipe.plateau_factor:g} after "
            f"{recipe.plateau_patience} epochs without a better validation score",
        ),
        ("layer", f"{row.layer} (--layer overrules it)"),
        ("encoder", row.encoder),
    ]
    if name in DEMO_TASKS:
        return [*lines, ("get it", "composed when first needed, within a minute or so")]
    there = "it is there" if folder.is_dir() else "it isn't there yet"
    how = f"from the hub, {row.hub}" if row.hub else f"{', '.join(row.archives)}"
    return [
        *lines,
        ("files", FILES[row.layout].format(place=folder, stem=row.stem)),
        ("source", row.source),
        ("licence", row.licence or "not known: see the source"),
        ("get it", f"a run fetches it, and goes on where it was broken off: {how} ({there})"),
    ]


def print_report(report: dict, console: Console) -> None:
    """Print what `tune.tasks.check.check` found."""
    seconds = report["seconds"]
    console.print(f"{report['task']} ({report['kind']})", style="bold", markup=False)
    table = Table()
    table.add_column("split")
    for head in ("files", "tracks", "hours"):
        table.add_column(head, justify="right")
    for split, size in report["splits"].items():
        made = " (made here)" if report["split_made"] else ""
        table.add_row(
            split + made, f"{size['files']:,}", f"{size['tracks']:,}", f"{size['hours']:.2f}"
        )
    console.print(table)
    if seconds["median"] is not None:
        spread = f"{seconds['min']:.2f} to {seconds['max']:.2f} s (median {seconds['median']:.2f})"
        console.print(f"durations  {spread}, {seconds['total'] / 3600:.2f} hours in all")
    for name, key in (("rates", "sample_rates"), ("channels", "channels"), ("formats", "formats")):
        counts = ", ".join(f"{value} ({n:,})" for value, n in report[key].items())
        console.print(f"{name:<10} {counts or 'none'}", markup=False)
    if not report["decoded"]:
        console.print(
            "files were not decoded: truncated and silent ones, opposite phase, and copies in "
            "another format, aren't found"
        )
    _print_labels(report, console)
    kinds = summary(report["problems"])
    for kind, n in kinds.items():
        found = [p for p in report["problems"] if p["kind"] == kind]
        for problem in found[:SHOWN]:
            text = one_line(problem["text"])
            console.print(f"problem    {text}", markup=False, soft_wrap=True)
        if n > SHOWN:
            console.print(f"           and {n - SHOWN} more of this kind (--json has them all)")
    for line in report["thresholds"]:
        console.print(f"threshold  {line}", markup=False, soft_wrap=True)
    total = len(report["problems"])
    text = f"{total} problem{'s' * (total > 1)}" if total else "no problem found"
    console.print(text, style="bold red" if total else "bold green")


def _print_labels(report, console) -> None:
    """Print how many tracks each class has, or what values targets have."""
    if report["classes"]:
        table = Table()
        table.add_column(label_kind(report["kind"]).noun, overflow="fold")
        for split in SPLITS:
            table.add_column(split, justify="right")
        ordered = sorted(report["classes"].items(), key=lambda item: item[1]["test"])
        for name, counts in ordered[:SHOWN_CLASSES]:
            table.add_row(name, *(f"{counts[s]:,}" for s in SPLITS))
        console.print(table)
        if len(ordered) > SHOWN_CLASSES:
            console.print(f"the {SHOWN_CLASSES} rarest of {len(ordered)} (--json has them all)")
    if report["targets"]:
        table = Table()
        table.add_column("target", overflow="fold")
        for split in SPLITS:
            table.add_column(f"{split}: mean ± deviation (range)", justify="right")
        for name, values in report["targets"].items():
            table.add_row(
                name,
                *(
                    f"{v['mean']:.2f} ± {v['std']:.2f} ({v['min']:.2f} to {v['max']:.2f})"
                    for v in (values[s] for s in SPLITS)
                ),
            )
        console.print(table)


def _parse(argv):
    """Read the command line."""
    parser = Parser(prog="python -m tune.tasks", description=__doc__)
    parser.add_argument("verb", choices=["list", "show", "check"])
    parser.add_argument(
        "task",
        nargs="?",
        help="a task's name; for check also a folder, .jsonl, .csv or .tsv, or hub:NAME",
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder that holds (or gets) the data sets",
    )
    parser.add_argument("--cache_dir", type=Path, metavar="DIR", help="where composed music is")
    parser.add_argument(
        "--kind", choices=["auto", *KINDS], default="auto", help="what the labels are"
    )
    parser.add_argument("--label_column", metavar="NAME", help="the labels' column")
    parser.add_argument("--audio_column", metavar="NAME", help="the audio's column")
    parser.add_argument(
        "--allow_outside",
        nargs="?",
        const=True,
        default=False,
        type=to_bool,
        metavar="BOOL",
        help="let a jsonl or a data set name files outside its "
        "data folder (a .csv or .tsv always may)",
    )
    add(parser, "data_revision", "yes")
    parser.add_argument(
        "--min_tracks",
        type=positive_int,
        default=MIN_TRACKS,
        metavar="N",
        help="a class or tag with fewer test tracks is a problem",
    )
    parser.add_argument(
        "--decode",
        nargs="?",
        const=True,
        default=True,
        type=to_bool,
        metavar="BOOL",
        help="decode every file; false reads headers only, which "
        "is quick but finds no truncated or silent file",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report")
    args = parser.parse_args(argv)
    if args.verb != "list" and args.task is None:
        parser.error(f"{args.verb} needs a task")
    if args.json and not args.json.resolve().parent.is_dir():
        parser.error(f"--json {args.json}: its folder doesn't exist")
    return args
