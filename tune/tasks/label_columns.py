"""How a column of labels in a file is interpreted: as lists, decimal commas or whole numbers.

A table is text: `to_csv` writes a list as "['rock', 'loud']", a whole number beside a missing one
as 1.0; much of Europe writes 0,5. A single label can't tell which of these it is, so the whole
column decides. --kind takes precedence. Each interpretation is reported.
"""

import ast
import re
from collections.abc import Callable

from tune.tasks.label_kinds import label_kind
from tune.tasks.label_readers import NUMBER, TAG_SEPARATOR, mostly_numbers
from tune.tasks.rows import TaskError, is_missing, stripped

WHOLE = re.compile(r"[+-]?\d+(\.0+)?")
DECIMAL = re.compile(r"[+-]?(\d+(,\d+)?|\d{1,3}(\.\d{3})+,\d+)([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
ITEM = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,'"\[\](){}]+)\s*(,|(?=\s)|$)""")
NUMPY = re.compile(r"\bnp\.\w+\(([^()]*)\)")  # np.float64(0.5): an item of a list in NumPy 2
DTYPE = re.compile(r",\s*dtype=[^()]+\)$")  # array(['rock'], dtype=object)
BRACKETS = {"[": "]", "(": ")", "{": "}"}
MISSING_WORDS = {"none", "na", "n.a.", "empty", "missing", "undefined", "unknown", "-", "?"}


def read_labels(labels: list, kind: str, where) -> tuple[list, list[str]]:
    """Labels of one column as they were meant, and a line on each reading that isn't plain.

    Parameters
    ----------
    labels : as the file has them: text, or what JSON has; missing ones among them
    kind : auto, or the kind that the user names
    where : the file, for errors

    Returns
    -------
    The labels, None where one is missing, and the lines
    """
    present = [label for label in labels if not is_missing(label)]
    notes = []
    forms = AUTO if kind == "auto" else label_kind(kind).text_forms
    for form, reading in READINGS.items():
        if form in forms and present:
            present, said = reading(present, len(labels) - len(present), where)
            notes += said
    found = iter(present)
    return [None if is_missing(label) else next(found) for label in labels], notes


def _lists(labels, n_missing, where) -> tuple[list, list[str]]:
    """Text of lists, where most labels are that."""
    lists = [as_list(label) if isinstance(label, str) else None for label in labels]
    if 2 * sum(each is not None for each in lists) <= len(labels):
        if not all(
            isinstance(label, str) and re.fullmatch(r"\s*\[.*\]\s*", label) for label in labels
        ):
            return labels, []
        # All are in brackets, which no names are: lists without quotes.
        lists = [[item.strip() for item in label.strip()[1:-1].split(",")] for label in labels]
    i = next((i for i, each in enumerate(lists) if each), 0)
    out = [label if each is None else each for label, each in zip(labels, lists, strict=True)]
    what = "numbers" if _are_numbers(out[i]) else "tags"
    return out, [f"labels such as {labels[i]!r} are read as lists of {what}"]


def as_list(text: str) -> list | None:
    """A list as Python, JSON or NumPy writes it; None where a text is none.

    Its items are in quotes, or numbers; "[unknown]" is a name.
    """
    text = DTYPE.sub(")", NUMPY.sub(r"\1", stripped(text)))
    if text == "set()":
        return []
    for ending in ("array(", "list("):
        text = text.removeprefix(ending).removesuffix(")") if text.startswith(ending) else text
    if len(text) < 2 or BRACKETS.get(text[0]) != text[-1]:
        return None
    inner, at, items = text[1:-1].strip(), 0, []
    if not inner:
        return [] if text[0] == "[" else None
    while at < len(inner):
        match = ITEM.match(inner, at)
        if not match:
            return None
        item, at = match[1], match.end()
        if item[0] in "'\"":
            try:
                items.append(ast.literal_eval(item))
            except (SyntaxError, ValueError):
                return None
        elif NUMBER.fullmatch(item):
            items.append(float(item) if re.search("[.eE]", item) else int(item))
        elif is_missing(item):
            items.append(None)
        else:
            return None
    return items


def _are_numbers(items: list) -> bool:
    """Whether a list holds numbers."""
    return any(isinstance(item, int | float) for item in items)


def _decimal_commas(labels, n_missing, where) -> tuple[list, list[str]]:
    """Numbers with a comma where others have a point, where most labels are that.

    Raises
    ------
    TaskError
        When the comma may as well separate thousands.
    """

    def parts(label) -> list[str]:
        return label.replace(TAG_SEPARATOR, " ").split() if isinstance(label, str) else []

    def is_number(part: str) -> bool:
        return bool(NUMBER.fullmatch(part) or DECIMAL.fullmatch(part))

    numeric = [bool(parts(label)) and all(map(is_number, parts(label))) for label in labels]
    commas = [
        part for label, yes in zip(labels, numeric, strict=True) if yes for part in parts(label)
    ]
    commas = [part for part in commas if "," in part]
    if not commas or 2 * sum(numeric) <= len(labels):
        return labels, []
    if all(map(THOUSANDS.fullmatch, commas)):
        raise TaskError(
            f"{where}: is the label {commas[0]!r} a decimal comma or a thousand? Write "
            f"{commas[0].replace(',', '.')} or {commas[0].replace(',', '')}"
        )

    def pointed(part: str) -> str:
        return part.replace(".", "").replace(",", ".") if "," in part else part

    out = [
        " ".join(map(pointed, parts(label))) if yes else label
        for label, yes in zip(labels, numeric, strict=True)
    ]
    return out, [
        f"labels with a decimal comma are read as numbers: {commas[0]} as {pointed(commas[0])}"
    ]


def _whole_numbers(labels, n_missing, where) -> tuple[list, list[str]]:
    """Whole numbers that pandas wrote as 1.0 since others of their column are missing."""

    def is_whole(label) -> bool:
        if isinstance(label, str):
            return bool(WHOLE.fullmatch(stripped(label)))
        return isinstance(label, float) and label.is_integer()

    decimal = [label for label in labels if isinstance(label, float) or "." in str(label)]
    if not n_missing or not decimal or not all(map(is_whole, labels)):
        return labels, []
    out = [str(int(float(label))) if isinstance(label, str) else int(label) for label in labels]
    return out, [
        f"labels such as {decimal[0]} beside missing ones are whole numbers as pandas writes them: "
        f"read as {float(decimal[0]):.0f}, a class (--kind numbers for a regression)"
    ]


def _no_separator(labels, n_missing, where) -> tuple[list, list[str]]:
    """Say that tags without a semicolon are one tag each, where they look like several."""
    texts = [label for label in labels if isinstance(label, str)]
    several = [text for text in texts if "|" in text or "," in text]
    if not several or any(TAG_SEPARATOR in text for text in texts):
        return labels, []
    return labels, [f"{several[0]!r} is read as one tag: tags are separated by semicolons"]


def _several_in_one(labels, n_missing, where) -> tuple[list, list[str]]:
    """Say of classes that may be several tags that they are read as one class."""
    texts = [label for label in labels if isinstance(label, str)]
    several = [text for text in texts if re.search(r"[^\s;|]\s*[;|]\s*[^\s;|]", text)]
    if not several or mostly_numbers(labels):
        return labels, []
    return labels, [f"{several[0]!r} is read as one class (--kind tags reads a;b as two tags)"]


def _missing_words(labels, n_missing, where) -> tuple[list, list[str]]:
    """Say of classes that may stand for a missing label that they are read as classes."""
    words = {stripped(label) for label in labels if isinstance(label, str)}
    found = sorted(word for word in words if word.lower() in MISSING_WORDS)
    if not found or mostly_numbers(labels):
        return labels, []
    names = ", ".join(map(repr, found))
    return labels, [f"{names} is read as a label, not as a missing one (empty or NaN is)"]


# What a table may hold -> (labels that there are, how many are missing, file) -> labels and lines.
READINGS: dict[str, Callable] = {
    "lists": _lists,
    "decimal commas": _decimal_commas,
    "whole numbers": _whole_numbers,
    "no separator": _no_separator,
    "several in one": _several_in_one,
    "missing words": _missing_words,
}
AUTO = READINGS.keys() - {"no separator"}  # where --kind doesn't say
