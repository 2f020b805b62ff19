"""What a sweep ends with: folders of cells that are others by definition, and one table of all."""

import contextlib
import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tune.sweep_files import Cell, swept

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
    mine = {k: str(values[k]) for k in ("seg", "agg") if k in values}
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


def print_table(config: Mapping, cells: Sequence[Cell], folders: Mapping[str, Path],
                console: Console | None = None) -> None:  # fmt: skip
    """Print all cells, the best first within each task.

    Parameters
    ----------
    folders : a cell's name -> its folder
    """
    probing = config["program"] == "train_probe.py"
    named = {cell.name: cell for cell in cells}
    rows = [_probe_row(cell, folders[cell.name], config, named) if probing
            else _pretraining_row(cell, folders[cell.name], config) for cell in cells]  # fmt: skip
    rows.sort(key=lambda row: row[0])
    table = Table(title=f"{config.get('name') or 'sweep'}: {len(cells)} cells",
                  title_justify="left")  # fmt: skip
    keys = swept(config)
    for key in keys:
        table.add_column(key, overflow="fold")
    heads = (["test metric", "mean", "± seeds", "95 % interval", "note"] if probing
             else ["best val loss", "epochs", "note"])  # fmt: skip
    for head in heads:
        left = head in ("test metric", "note")
        table.add_column(head, justify="left" if left else "right", no_wrap=head != "note")
    for _, cell, shown in rows:
        table.add_row(*(_value(cell.config[key]) for key in keys), *shown)
    (console or Console()).print(table)


def _probe_row(cell: Cell, folder: Path, config: Mapping, named: Mapping[str, Cell]) -> tuple:
    """Sort key, cell and columns of a run of train_probe.py."""
    task = str(cell.config.get("task", ""))
    if not is_done(folder, config["program"]):
        return (task, 1, 0.0), cell, [""] * 4 + [_note(cell)]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    name, metric = next(iter(result["metrics"].items()))
    seeds, twin = len(result["seeds"]), named.get(result.get("same_as"))
    figures = [f"{metric[k]:.3f}" if metric[k] is not None else "undefined"
               for k in ("mean", "std", "ci_low", "ci_high")]  # fmt: skip
    note = [f"= {_value(twin.config['seg'])} {twin.config.get('agg', '')}"] if twin else []
    note += [result["degenerate"]] if result["degenerate"] and not note else []
    note += [f"{len(result['skipped'])} files skipped"] if result["skipped"] else []
    mean = metric["mean"] if metric["mean"] is not None else -1e9
    return (task, 0, -mean), cell, [
        name, figures[0], figures[1] if seeds > 1 else "-", f"{figures[2]} to {figures[3]}",
        "; ".join(note),
    ]  # fmt: skip


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
        return f"failed: {cell.error:.60}"
    return {"stopped": "stopped early", "same": f"= {cell.twin}", "finished": ""}.get(
        cell.state, "not run"
    )


def _value(value) -> str:
    """A flag's value."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
