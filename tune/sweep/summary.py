"""What a sweep ends with: folders of cells that are others by definition, and one table of all."""

import contextlib
import csv
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tune.sweep.config import Cell, swept

DONE = {"train_probe.py": "result.json", "pretrain_aggregator.py": "pretrain.json"}
COPIED = ("predictions.parquet", "history.csv", "attention.parquet", "split.csv")


def is_done(folder: Path, program: str) -> bool:
    """Say whether a cell's folder is complete."""
    return (folder / DONE[program]).is_file()


def write_twin(folder: Path, twin: Path, values: Mapping) -> None:
    """Write the folder of a cell that is another one by definition: its figures, marked as such.

    Parameters
    ----------
    folder : of the cell, which has no result yet
    twin : the folder of the cell that was run
    values : the cell's flags
    """
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    result = json.loads((twin / "result.json").read_text(encoding="utf-8"))
    config = json.loads((twin / "config.json").read_text(encoding="utf-8"))
    mine = {k: str(values[k]).partition(":")[0] for k in ("seg", "agg") if k in values}
    marks = {"same_as": twin.name}
    if mine.get("seg", "full") != "full":
        marks["degenerate"] = "equals full"
    for name, content in (("result", result | mine | marks), ("config", config | mine | marks)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (aside / f"{name}.json").write_text(text, encoding="utf-8")
    for name in COPIED:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(twin / name, aside / name)
    aside.rename(folder)


def print_comparison(
    config: Mapping,
    cells: Sequence[Cell],
    folders: Mapping[str, Path],
    page: Path,
    console: Console | None = None,
) -> bool:
    """Compare a sweep's cells as compare.py does; print its tables, write its report.

    Parameters
    ----------
    folders : a cell's name -> its folder
    page : where the report goes

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
    console.print(f"{config.get('name') or 'sweep'}: {len(cells)} cells", highlight=False)
    for cell in cells:
        note = "" if cell.state == "same" else _note(cell)  # the table says what it equals
        if note:
            text = " ".join(f"{key} {_value(cell.config[key])}" for key in swept(config))
            console.print(f"  {text}: {note}", highlight=False, soft_wrap=True, markup=False)
    whole = [folders[c.name] for c in cells if is_done(folders[c.name], config["program"])]
    if not whole:
        return False
    merged, left = merge([read_run(folder) for folder in whole])
    views = analyse(merged)
    print_views(views, left, "holm", console)
    command = f"python -m tune.sweep ({config.get('name') or 'sweep'})"
    page.write_text(render(views, left, correction="holm", command=command), encoding="utf-8")
    return True


def print_table(
    config: Mapping,
    cells: Sequence[Cell],
    folders: Mapping[str, Path],
    console: Console | None = None,
) -> None:
    """Print the cells of a search for an aggregator, the best first.

    Parameters
    ----------
    folders : a cell's name -> its folder
    """
    rows = [_pretraining_row(cell, folders[cell.name], config) for cell in cells]
    rows.sort(key=lambda row: row[0])
    table = Table(
        title=f"{config.get('name') or 'sweep'}: {len(cells)} cells", title_justify="left"
    )
    keys = swept(config)
    for key in keys:
        table.add_column(key, overflow="fold")
    for head in ("best val loss", "epochs", "note"):
        table.add_column(
            head, justify="left" if head == "note" else "right", no_wrap=head != "note"
        )
    for _, cell, shown in rows:
        table.add_row(*(_value(cell.config[key]) for key in keys), *shown)
    (console or Console()).print(table)


def _pretraining_row(cell: Cell, folder: Path, config: Mapping) -> tuple:
    """Sort key, cell and columns of a run of pretrain_aggregator.py."""
    losses = list(cell.history)
    if is_done(folder, config["program"]):
        with open(folder / "history.csv", newline="", encoding="utf-8") as file:
            losses = [float(row["val/loss"]) for row in csv.DictReader(file)]
    if not losses:
        return (1, 0.0), cell, ["", "", _note(cell)]
    return (0, min(losses)), cell, [f"{min(losses):.4f}", str(len(losses)), _note(cell)]


def _note(cell: Cell) -> str:
    """What there is to say about a cell that has no result, or was ended."""
    if cell.state == "failed":
        return f"failed: {cell.error}"
    if cell.state == "undefined":
        return cell.error
    return {"stopped": "stopped early", "same": f"= {cell.twin}", "finished": ""}.get(
        cell.state, "not run"
    )


def _value(value) -> str:
    """A flag's value."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
