"""Layouts of a task's files: MARBLE's jsonl, CSV and TSV, read into rows.

A row is a dict of `where` (file:line), `id` (the path as written), `path` (the file found),
`label`, `split` (None where the file doesn't say) and `track` (what several files are clips of,
`ori_uid` in MARBLE's files; else None). Lines that are no rows are set aside with the reason.
"""

import csv
import io
import json
import os
from pathlib import Path

SPLITS = ("train", "val", "test")


class TaskError(ValueError):
    """A task that can't be loaded; the message says what, where and how to mend it."""


def read_path(
    path: Path, *, label_column: str | None = None, audio_column: str | None = None
) -> tuple[list[dict], list[dict]]:
    """Rows and skipped rows of a folder, jsonl, CSV or TSV; the columns are a table's."""
    if path.is_dir():
        stems = sorted({p.name.removesuffix(".train.jsonl") for p in path.glob("*.train.jsonl")})
        if not stems:
            raise TaskError(f"{path} holds no *.train.jsonl (MARBLE's layout)")
        if len(stems) > 1:
            raise TaskError(
                f"{path} holds several tasks ({', '.join(stems)}): "
                f"name one, for example {path / stems[0]}.train.jsonl"
            )
        return read_jsonl({s: path / f"{stems[0]}.{s}.jsonl" for s in SPLITS})
    if path.suffix == ".jsonl":
        for split in SPLITS:
            if path.name.endswith(f".{split}.jsonl"):
                stem = path.name.removesuffix(f".{split}.jsonl")
                return read_jsonl({s: path.with_name(f"{stem}.{s}.jsonl") for s in SPLITS})
        return read_jsonl({None: path})
    if path.suffix in (".csv", ".tsv"):
        return _read_table(path, audio_column or "path", label_column or "label")
    raise TaskError(f"{path}: a task is a folder, .jsonl, .csv or .tsv, not {path.suffix or path}")


def read_jsonl(files: dict[str | None, Path]) -> tuple[list[dict], list[dict]]:
    """Rows {where, path, label, split} of jsonl files by split, and the lines that are no rows."""
    rows, skipped = [], []
    for split, file in files.items():
        if not file.exists():
            raise TaskError(f"{file} is missing: a task needs train, val and test")
        lines = file.read_bytes().splitlines()
        for number, line in enumerate(lines, start=1):
            where = f"{file}:{number}"
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                skipped.append({"where": where, "reason": f"malformed JSON: {error}"})
                continue
            if not isinstance(item, dict) or not {"audio_path", "label"} <= item.keys():
                skipped.append({"where": where, "reason": "needs audio_path and label"})
                continue
            audio_path, label = str(item["audio_path"]), item["label"]
            if not _is_text(f"{audio_path}{label}{item.get('ori_uid')}"):
                skipped.append({"where": where, "reason": "a name that is not valid Unicode"})
                continue
            rows.append(
                {
                    "where": where,
                    "id": audio_path,
                    "path": str(_resolve(audio_path, file.parent)),
                    "label": label,
                    "split": split or item.get("split") or None,
                    "track": _track(item),
                }
            )
        # A given split that is empty is a mistake: nothing is made up in its place.
        if split and not any(row["split"] == split for row in rows):
            raise TaskError(f"{file} holds no usable row{why(skipped)}")
    return rows, skipped


def _track(item: dict) -> str | None:
    """What a row's file is a clip of, where it says so."""
    track = item.get("ori_uid")
    return None if track in (None, "") else str(track)


def _is_text(text: str) -> bool:
    """Say whether a string can be written as UTF-8 (JSON can hold halves of characters)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _resolve(audio_path: str, folder: Path) -> Path:
    """Find a row's file: below the jsonl's folder or one of the three above, with or without data/.

    Nothing found: the path below the jsonl's folder, which the encoder will report as missing.
    """
    relative = Path(audio_path)
    if relative.is_absolute():
        return relative
    # Links are not followed: data/EMO may be one to a folder of another name.
    folder = Path(os.path.abspath(folder))
    # Rows of the hub begin with data/, whatever the user's data folder is called.
    bare = Path(*relative.parts[1:]) if relative.parts[:1] == ("data",) else relative
    for base in (folder, *list(folder.parents)[:3]):
        for candidate in (base / relative, base / bare):
            if os.path.exists(candidate):  # unlike Path.exists, False for a name too long
                return candidate
    return folder / relative


def _read_table(file: Path, path: str, label: str) -> tuple[list[dict], list[dict]]:
    """Rows of a CSV or TSV with columns of paths and labels, and perhaps split."""
    rows, skipped = [], []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{file} is not UTF-8 text: {error}") from error
    delimiter = "\t" if file.suffix == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        missing = {path, label} - set(reader.fieldnames or ())
        if missing:
            found = reader.fieldnames or "nothing"
            raise TaskError(
                f"{file} needs the columns {path} and {label} in its first line, "
                f"{' and '.join(sorted(missing))} missing (found: {found})"
            )
        for item in reader:
            where = f"{file}:{reader.line_num}"
            if not item[path] or not item[label]:
                skipped.append({"where": where, "reason": f"needs {path} and {label}"})
                continue
            if None in item:
                reason = "more fields than the first line: is a comma not in quotes?"
                skipped.append({"where": where, "reason": reason})
                continue
            rows.append(
                {
                    "where": where,
                    "id": item[path],
                    "path": str(_resolve(item[path], file.parent)),
                    "label": item[label],
                    "split": item.get("split") or None,
                    "track": _track(item),
                }
            )
    except csv.Error as error:  # the rest of the file can't be told apart any more
        raise TaskError(f"{file}:{reader.line_num}: {error}: is a quote left open?") from error
    return rows, skipped


def why(skipped: list[dict]) -> str:
    """What was skipped, as the end of a message."""
    if not skipped:
        return ""
    return f" (skipped: {len(skipped)}, the first is {skipped[0]['where']}: {skipped[0]['reason']})"
