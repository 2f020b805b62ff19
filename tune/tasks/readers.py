"""Layouts of a task's files: MARBLE's jsonl, CSV and TSV, read into rows (`tune.tasks.rows`).

What a file of one's own leaves open (what separates fields, what a label is, how a path is written)
is guessed from all of its rows, and each guess is said in a line. Rows without a label are counted.
"""

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from tune.tasks.audio_paths import ADDRESS, AudioFiles
from tune.tasks.label_columns import read_labels
from tune.tasks.label_kinds import label_kind
from tune.tasks.rows import SPLITS, TaskError, counted, is_missing, number, why
from tune.tasks.tables import is_table, read_table
from tune.tasks.text_files import DamagedTextError, read_text

__all__ = ["SPLITS", "TaskError", "read_jsonl", "read_path", "why"]

log = logging.getLogger(__name__)


def read_path(
    path: Path,
    *,
    label_column: str | None = None,
    audio_column: str | None = None,
    kind: str = "auto",
) -> tuple[list[dict], list[dict]]:
    """Rows and skipped rows of a folder, jsonl, CSV or TSV.

    Parameters
    ----------
    label_column, audio_column : of a table
    kind : of the labels, where it isn't auto: what text may be read as depends on it
    """
    if path.is_dir():
        stems = sorted({p.name.removesuffix(".train.jsonl") for p in path.glob("*.train.jsonl")})
        if not stems:
            raise TaskError(f"{path} holds no *.train.jsonl (MARBLE's layout)")
        if len(stems) > 1:
            raise TaskError(
                f"{path} holds several tasks ({', '.join(stems)}): "
                f"name one, for example {path / stems[0]}.train.jsonl"
            )
        files = {s: path / f"{stems[0]}.{s}.jsonl" for s in SPLITS}
    elif path.suffix.lower() == ".jsonl":
        files = {None: path}
        for split in SPLITS:
            if path.name.endswith(f".{split}.jsonl"):
                stem = path.name.removesuffix(f".{split}.jsonl")
                files = {s: path.with_name(f"{stem}.{s}.jsonl") for s in SPLITS}
    elif is_table(path):
        return _read_table(path, audio_column, label_column, kind)
    else:
        ending = path.suffix or path
        raise TaskError(f"{path}: a task is a folder, .jsonl, .csv or .tsv, not {ending}")
    rows, skipped = read_jsonl(files)
    if kind != "auto" and label_kind(kind).several:  # an empty text isn't null: it is no tag
        rows = [{**row, "label": [] if row["label"] == "" else row["label"]} for row in rows]
    return _as_meant(rows, skipped, kind, path), skipped


def read_jsonl(files: dict[str | None, Path]) -> tuple[list[dict], list[dict]]:
    """Rows of jsonl files by split, and the lines that are no rows; labels as JSON has them."""
    rows, skipped = [], []
    for split, file in files.items():
        if not file.exists():
            raise TaskError(f"{file} is missing: a task needs train, val and test")
        items = []
        for n, line in enumerate(_lines(file), start=1):
            where = f"{file}:{n}"
            if not line.strip():
                continue
            try:
                item = json.loads(line.removeprefix("\ufeff") if isinstance(line, str) else line)
            except (ValueError, RecursionError) as error:
                skipped.append({"where": where, "reason": f"malformed JSON: {error}"})
                continue
            if not isinstance(item, dict) or not {"audio_path", "label"} <= item.keys():
                skipped.append({"where": where, "reason": "needs audio_path and label"})
                continue
            path = str(item["audio_path"])
            if not _is_text(f"{path}{item['label']}{item.get('ori_uid')}"):
                skipped.append({"where": where, "reason": "a name that is not valid Unicode"})
                continue
            others = {k: v for k, v in item.items() if k not in ("audio_path", "label", "split")}
            given = {"path": path, "split": split or item.get("split"), "columns": others}
            items.append((n, item | given))
        found = _rows(file, items, AudioFiles(file.parent), skipped)
        # A given split that is empty is a mistake: nothing is made up in its place.
        if split and not any(not is_missing(row["label"]) for row in found):
            raise TaskError(f"{file} holds no usable row{why([*skipped, *_unlabelled(found)])}")
        rows += found
    return rows, skipped


def _lines(file: Path) -> list[str | bytes]:
    """A jsonl's lines; those of a damaged file as bytes, so that one bad line is one bad row."""
    try:
        text, notes = read_text(file)
    except DamagedTextError:
        return file.read_bytes().splitlines()
    for note in notes:
        log.info("%s: %s", file, note)
    # Not str.splitlines: a JSON text may hold \u2028 as it is.
    return re.split(r"\r\n|\r|\n", text)


def _rows(file: Path, items: Iterable, files: AudioFiles, skipped: list[dict]) -> list[dict]:
    """Rows of (line, item) with path, label, split and ori_uid; those that name no file are out."""
    rows = []
    for line, item in items:
        where, path = f"{file}:{line}", item["path"]
        if ADDRESS.match(path):
            reason = f"{path} is an address, not a file: download it and name the copy"
            skipped.append({"where": where, "reason": reason})
            continue
        rows.append(
            {
                "where": where,
                "id": path,
                "path": files.find(path),
                "label": item["label"],
                "split": None if is_missing(item.get("split")) else item["split"],
                "track": None if is_missing(item.get("ori_uid")) else str(item["ori_uid"]),
                "columns": item["columns"],
            }
        )
    for note in files.notes():
        log.info("%s: %s", file, note)
    return rows


def _read_table(file: Path, path_column, label_column, kind) -> tuple[list[dict], list[dict]]:
    """Rows of a CSV or TSV with columns of paths and labels, and perhaps split."""
    files = AudioFiles(file.parent)
    table = read_table(file, path_column, label_column, files.is_there)
    for note in table.notes:
        log.info("%s: %s", file, note)
    skipped, items = table.skipped, []
    for line, item in table.items:
        if is_missing(item["path"]) and not (item["path"] and files.is_there(item["path"])):
            skipped.append({"where": f"{file}:{line}", "reason": "no path"})
        else:
            items.append((line, item))
    rows = _rows(file, items, files, skipped)
    return _as_meant(rows, skipped, kind, file), skipped


def _as_meant(rows: list[dict], skipped: list[dict], kind: str, file: Path) -> list[dict]:
    """Rows with their labels as they were meant; those without one are set aside and counted."""
    labels, notes = read_labels([row["label"] for row in rows], kind, file)
    missing = [row for row in rows if is_missing(row["label"])]
    for note in notes:
        log.info("%s: %s", file, note)
    if missing:
        skipped += _unlabelled(missing)
        words = counted(row["label"] for row in missing)
        rows_out = number(len(missing), "row")
        log.info("%s: %s without a label left out: %s", file, rows_out, words)
    return [
        {**row, "label": label}
        for row, label in zip(rows, labels, strict=True)
        if not is_missing(row["label"])
    ]


def _unlabelled(rows: list[dict]) -> list[dict]:
    """Rows without a label, as skipped ones."""
    return [
        {"where": row["where"], "reason": f"no label ({counted([row['label']]).split(' (')[0]})"}
        for row in rows
        if is_missing(row["label"])
    ]


def _is_text(text: str) -> bool:
    """Say whether a string can be written as UTF-8 (JSON can hold halves of characters)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
