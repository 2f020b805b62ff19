"""What every reader of a task's files shares: the names of splits, missing labels, errors.

A row is a dict of `where` (file:line), `id` (the path as written), `path` (the file found),
`label`, `split` (None where the file doesn't say) and `track` (what several files are clips of,
`ori_uid` in MARBLE's files; else None); rows of a jsonl or a table have their other `columns`, by
which folds may be grouped. Lines that are no rows are set aside with the reason.
"""

import re
import unicodedata
from collections import Counter

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
}
# Validation for some, the test split for others: `tune.tasks.splits` decides by what else is there.
EVALUATION = ("eval", "evaluation")
# What pandas reads as missing and writes for it (`na_values` of `pandas.read_csv`).
MISSING = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a"),
        *("nan", "null", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    )
)
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"  # zero width: in names copied from web pages


class TaskError(ValueError):
    """A task that can't be loaded; the message says what, where and how to mend it."""


def stripped(text: str) -> str:
    """Text without the blanks and zero-width characters around it."""
    if text.isascii():
        return text.strip()
    return re.sub(f"^[\\s{INVISIBLE}]+|[\\s{INVISIBLE}]+$", "", text)


def plain_name(name: str) -> str:
    """A column's name without quotes, case and whether its characters are composed."""
    return stripped(unicodedata.normalize("NFC", stripped(name).strip("\"'"))).casefold()


def split_word(split) -> str:
    """A split's name as it is looked up."""
    return stripped(str(split)).lower()


def is_missing(value) -> bool:
    """Say whether a label (or a path, or a split) stands for none: null, NaN, empty, N/A."""
    if isinstance(value, str):
        return value in MISSING or stripped(value) in MISSING
    return value is None or (isinstance(value, float) and value != value)


def number(n: int, noun: str) -> str:
    """A number of things: 1 row, 2 rows."""
    return f"{n:,} {noun}" + "s" * (n != 1)


def counted(values) -> str:
    """Values and how often each occurs: "nan (3), empty (1)"."""
    counts = Counter("empty" if value in ("", None) else str(value) for value in values)
    return ", ".join(f"{value} ({n})" for value, n in counts.most_common(5))


def why(skipped: list[dict], shown: int = 3) -> str:
    """What was skipped, as the end of a message: each kind of reason with its first row."""
    if not skipped:
        return ""
    groups: dict[str, list[dict]] = {}
    for item in skipped:
        # Reasons that differ in the value they quote are of one kind.
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|\[[^]]*\]|[\d.,+-]+", "", item["reason"])
        groups.setdefault(kind, []).append(item)
    if len(groups) == 1:
        first = skipped[0]
        return f" (skipped: {len(skipped)}, the first is {first['where']}: {first['reason']})"
    most = sorted(groups.values(), key=len, reverse=True)[:shown]
    parts = [f"{len(items)} as {items[0]['where']}: {items[0]['reason']}" for items in most]
    rest = len(groups) - len(most)
    parts += [f"and {rest} other reason{'s' * (rest > 1)}"] if rest else []
    return f" (skipped: {len(skipped)}: {'; '.join(parts)})"
