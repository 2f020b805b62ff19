"""The end of a sweep: folders of duplicate runs, and the table of all runs."""

import contextlib
import csv
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tune.sweep.config import SweepRun, swept

DONE = {"train_probe.py": "result.json", "pretrain_aggregator.py": "pretrain.json"}
COPIED = ("predictions.parquet", "history.csv", "attention.parquet", "split.csv")


def is_done(folder: Path, program: str) -> bool:
    """Whether a run's folder is complete."""
    return (folder / DONE[program]).is_file()


def write_duplicate(folder: Path, original: Path, values: Mapping) -> None:
    """Write the folder of a run that duplicates another: its figures, marked as such.

    Parameters
    ----------
    folder : of the run, which has no result yet
    original : the folder of the run that was done
    values : the run's flags
    """
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    result = json.loads((original / "result.json").read_text(encoding="utf-8"))
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    mine = {k: str(values[k]).partition(":")[0] for k in ("seg", "agg") if k in values}
    marks = {"same_as": original.name}
    if mine.get("seg", "full") != "full":
        marks["degenerate"] = "equals full"
    for name, content in (("result", result | mine | marks), ("config", config | mine | marks)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (aside / f"{name}.json").write_text(text, encoding="utf-8")
    for name in COPIED:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(original / name, aside / name)
    aside.rename(folder)


def print_comparison(
    config: Mapping,
    runs: Sequence[SweepRun],
    folders: Mapping[str, Path],
    page: Path,
    console: Console | None = None,
    *,
    margin: float = 0.02,
    retain: float | None = None,
    correction: str = "holm",
) -> bool:
    """Compare a sweep's runs as compare.py does; print its tables, write its report.

    Parameters
    ----------
    folders : a run's name -> its folder
    page : where the report goes
    margin, retain, correction : as for `tune.comparison.analysis.analyse`

    Returns
    -------
    bool : whether there was anything to compare
    """
    from tune.comparison.analysis import analyse
    from tune.comparison.configurations import merge
    from tune.comparison.html_report import render
    from tune.comparison.tables import print_views
    from tune.runs.load import read_run

    console = console or Console(width=None if sys.stdout.isatty() else 170)
    console.print(f"{config.get('name') or 'sweep'}: {len(runs)} runs", highlight=False)
    for run in runs:
        note = "" if run.state == "same" else _note(run)  # the table says what it equals
        if note:
            text = " ".join(f"{key} {_value(run.config[key])}" for key in swept(config))
            console.print(f"  {text}: {note}", highlight=False, soft_wrap=True, markup=False)
    whole = [folders[c.name] for c in runs if is_done(folders[c.name], config["program"])]
    if not whole:
        return False
    merged, left = merge([read_run(folder) for folder in whole])
    views = analyse(merged, margin=margin, retain=retain, correction=correction)
    print_views(views, left, correction, console)
    command = f"python -m tune.sweep ({config.get('name') or 'sweep'})"
    page.write_text(render(views, left, correction=correction, command=command), encoding="utf-8")
    return True


def print_table(
    config: Mapping,
    runs: Sequence[SweepRun],
    folders: Mapping[str, Path],
    console: Console | None = None,
) -> None:
    """Print the runs of a search for an aggregator, the best first.

    Parameters
    ----------
    folders : a run's name -> its folder
    """
    rows = [_pretraining_row(run, folders[run.name], config) for run in runs]
    rows.sort(key=lambda row: row[0])
    table = Table(title=f"{config.get('name') or 'sweep'}: {len(runs)} runs", title_justify="left")
    keys = swept(config)
    for key in keys:
        table.add_column(key, overflow="fold")
    for head in ("best val loss", "epochs", "note"):
        table.add_column(
            head, justify="left" if head == "note" else "right", no_wrap=head != "note"
        )
    for _, run, shown in rows:
        table.add_row(*(_value(run.config[key]) for key in keys), *shown)
    (console or Console()).print(table)


def _pretraining_row(run: SweepRun, folder: Path, config: Mapping) -> tuple:
    """Sort key, run and columns of a run of pretrain_aggregator.py."""
    losses = list(run.history)
    if is_done(folder, config["program"]):
        with open(folder / "history.csv", newline="", encoding="utf-8") as file:
            losses = [float(row["val/loss"]) for row in csv.DictReader(file)]
    if not losses:
        return (1, 0.0), run, ["", "", _note(run)]
    return (0, min(losses)), run, [f"{min(losses):.4f}", str(len(losses)), _note(run)]


def _note(run: SweepRun) -> str:
    """Why a run has no result, or ended early."""
    if run.state == "failed":
        return f"failed: {run.error}"
    if run.state == "undefined":
        return run.error
    return {"stopped": "stopped early", "same": f"= {run.same_as}", "finished": ""}.get(
        run.state, "not run"
    )


def _value(value) -> str:
    """A flag's value."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
