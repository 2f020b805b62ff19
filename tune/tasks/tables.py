"""Tables of a task (CSV, TSV) as spreadsheets, pandas and people write them.

Fields are separated by comma, semicolon, tab or bar: whichever gives the columns asked for. Names
of columns are found whatever their case and the blanks around them; lines that begin with # are
comments, unless there is a file of that name.
"""

import csv
import difflib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tune.tasks.rows import (
    EVALUATION,
    SPLIT_NAMES,
    TaskError,
    number,
    plain_name,
    split_word,
    stripped,
)
from tune.tasks.text_files import read_text

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SUFFIXES = {".csv": ",", ".tsv": "\t"}  # what separates the fields of most such files
ALIASES = {  # what others call the columns, for a hint
    "path": (
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "audio",
        "audio_path",
        "song",
    ),
    "label": ("class", "genre", "tag", "tags", "category", "target", "mood", "key", "labels", "y"),
}
FLAGS = {"path": "--audio_column", "label": "--label_column"}
FILE_NAME = re.compile(r".*\.\w{2,5}", re.S)


@dataclass
class Table:
    """A table's fields.

    Attributes
    ----------
    items : (line, item) of each row; an item has path, label, split and ori_uid, as far as the
        table has such columns, and `columns`, a dict of the others by name
    skipped : lines that are no rows
    notes : a line on each thing that had to be guessed
    """

    items: list[tuple[int, dict]]
    skipped: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_table(path: str | Path) -> bool:
    """Say whether a path is a table's, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES


def read_table(
    file: Path, path_column: str | None, label_column: str | None, is_file: Callable[[str], bool]
) -> Table:
    """Read a table.

    Parameters
    ----------
    path_column, label_column : the names of these columns; None: path and label
    is_file : says of a path as it is written whether there is such a file

    Raises
    ------
    TaskError
        When it is no text, lacks a column or has it twice, or a quote is left open.
    """
    wanted = {"path": path_column or "path", "label": label_column or "label"}
    text, notes = read_text(file)
    usual = SUFFIXES[file.suffix.lower()]
    order = [usual, *(d for d in DELIMITERS if d != usual)]
    if stated := re.match(r"\s*\"?sep=(.)\"?(?=[\r\n])", text):  # Excel's first line
        order, text = [stated[1]], text[stated.end() :]
    heads = [_find_header(file, text, delimiter, wanted, order[0]) for delimiter in order]
    head = max(heads, key=lambda head: len(head.found))  # the first of equals
    if not head.found and len(heads) > 1:
        head = max(heads, key=lambda head: len(head.names))
    if len(head.found) < 2:
        raise TaskError(_no_columns(file, head, wanted))
    if head.delimiter != usual:
        notes.append(
            f"its fields are separated by {DELIMITERS.get(head.delimiter, head.delimiter)}"
        )
    columns = head.found | {
        name: at
        for name in ("split", "ori_uid")
        if (at := _column(file, head.names, name)) is not None
    }
    table = Table([], notes=notes)
    passed = _read_rows(file, text, head, columns, is_file, table)
    if passed:
        lines = number(passed, "line")
        notes.append(f"{lines} passed over: comments (#), or the first line again")
    if "split" not in columns:
        notes += _other_split(text, head)
    return table


@dataclass(frozen=True)
class _Header:
    """A first line under one delimiter.

    Its names, the columns found, the lines before it, and whether blanks follow delimiters.
    """

    delimiter: str
    names: list[str]
    found: dict[str, int]
    before: int = 0
    spaced: bool = False


def _reader(text: str, delimiter: str, spaced: bool = False):
    """Fields of each line; a line ends at \\n, \\r\\n or \\r alone."""
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)


def _find_header(file, text, delimiter, wanted, usual, spaced=False) -> _Header:
    """The first line that is neither empty nor a comment, under one delimiter."""
    try:
        for number, names in enumerate(_reader(text, delimiter, spaced)):
            if not any(map(stripped, names)):
                continue
            if names[0].lstrip().startswith("#"):
                names = [names[0].lstrip().removeprefix("#"), *names[1:]]
                if len(_find(file, names, wanted)) < len(wanted):
                    continue
            if len(names) > 1 and all(name.startswith(" ") for name in names[1:]):
                return _find_header(file, text, delimiter, wanted, usual, spaced=True)
            return _Header(delimiter, names, _find(file, names, wanted), number, spaced)
    except csv.Error as error:
        if delimiter == usual:
            raise TaskError(f"{file}:1: {error}: is a quote left open?") from error
    return _Header(delimiter, [], {})


def _find(file, names, wanted) -> dict[str, int]:
    """Which columns there are of those that are asked for."""
    found = {key: _column(file, names, name) for key, name in wanted.items()}
    return {key: at for key, at in found.items() if at is not None}


def _column(file, names: list[str], name: str) -> int | None:
    """The number of a column; None where there is none of that name."""
    for same in (str, stripped, plain_name):
        found = [i for i, each in enumerate(names) if same(each) == same(name)]
        if len(found) > 1:
            raise TaskError(
                f"{file} has the column {stripped(names[found[0]])!r} {len(found)} times, as "
                f"columns {' and '.join(str(i + 1) for i in found)}: rename or remove one"
            )
        if found:
            return found[0]
    return None


def _no_columns(file, head: _Header, wanted) -> str:
    """Why a table has not the columns that are asked for, and what may be done."""
    names = [stripped(name) for name in head.names]
    missing = {key: name for key, name in wanted.items() if key not in head.found}
    if len(missing) == 2 and any(map(FILE_NAME.fullmatch, names)):
        return (
            f"{file} has no line of column names: its first line {names} looks like a row; put "
            f"{wanted['path']},{wanted['label']} in front"
        )
    text = (
        f"{file} needs the columns {wanted['path']} and {wanted['label']} in its first line, "
        f"{' and '.join(sorted(missing.values()))} missing (found: {names or 'nothing'})"
    )
    hints = [
        f"{FLAGS[key]} {shlex.quote(near)}"
        for key, name in missing.items()
        if (near := _near(name, names)) and near.isprintable()
    ]
    return f"{text}; is it {' '.join(hints)}?" if hints else text


def _near(name: str, names: list[str]) -> str | None:
    """A column that may be meant by a name."""
    lower = {each.lower(): each for each in names if each}
    known = [each for each in ALIASES.get(name.lower(), ()) if each in lower]
    near = known or difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[near[0]] if near else None


def _read_rows(file, text, head, columns, is_file, table) -> int:
    """Read what follows the first line into a table; return how many lines were passed over."""
    reader, passed = _reader(text, head.delimiter, head.spaced), 0
    others = [at for at in range(len(head.names)) if at not in columns.values()]
    try:
        for number, fields in enumerate(reader):
            if number <= head.before or not any(map(stripped, fields)):
                continue
            line = reader.line_num
            comment = fields[0].lstrip().startswith("#") and not is_file(fields[0])
            if comment or fields == head.names:
                passed += 1
                continue
            if any(map(stripped, fields[len(head.names) :])):
                reason = (
                    "more fields than the first line: is a comma not in quotes?"
                    if head.delimiter == ","
                    else "more fields than the first line"
                )
                table.skipped.append({"where": f"{file}:{line}", "reason": reason})
                continue
            item = {name: fields[at] if at < len(fields) else None for name, at in columns.items()}
            item["columns"] = {
                stripped(head.names[at]): fields[at] for at in others if at < len(fields)
            }
            table.items.append((line, item))
    except csv.Error as error:  # the rest of the file can't be told apart any more
        raise TaskError(f"{file}:{reader.line_num}: {error}: is a quote left open?") from error
    return passed


def _other_split(text, head) -> Iterator[str]:
    """Say of a column that holds names of splits that only one called split is read."""
    known = {*SPLIT_NAMES, *EVALUATION}
    rows = list(_reader(text, head.delimiter, head.spaced))[head.before + 1 :]
    for at, name in enumerate(head.names):
        words = {split_word(fields[at]) for fields in rows if len(fields) > at} - {""}
        if len(words) > 1 and words <= known and at not in head.found.values():
            yield f"the column {name!r} holds names of splits, but only one called split is read"
