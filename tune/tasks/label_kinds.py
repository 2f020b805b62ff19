"""Labels: what kind they are, and each brought into its kind's form.

"classes" are names; "keys" names of `tune.tasks.musical_keys.KEYS`; "numbers" lists of target
values; "tags" lists of names, which may be empty.
"""

import math
import re
from collections import Counter

from tune.tasks.musical_keys import key_name

KINDS = ("classes", "keys", "numbers", "tags")
ONE_OF_MANY = ("classes", "keys")  # kinds of which a track has exactly one class
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
TAG_SEPARATOR = ";"


def _values(label) -> list:
    """The parts of a label: a list's items, or a text's, separated by spaces or semicolons."""
    if isinstance(label, str):
        return label.replace(";", " ").split()
    return label if isinstance(label, list) else [label]


def numbers(label) -> list[float] | None:
    """A label as target values, None when it is none."""
    values = _values(label)
    # float() also takes True, "infinity" and "1970_1979".
    if any(isinstance(v, bool) or (isinstance(v, str) and not NUMBER.fullmatch(v)) for v in values):
        return None
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found and all(map(math.isfinite, found)) else None


def tags(label) -> list[str] | None:
    """A label as tags, sorted and each once; None when it is none. A text is cut at semicolons."""
    parts = label.split(TAG_SEPARATOR) if isinstance(label, str) else label
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return None
    return sorted({part.strip() for part in parts} - {""})


def one_class(label) -> str | None:
    """A label as the name of a class, None when it is none."""
    return (str(label).strip() or None) if isinstance(label, str | int) else None


def key(label) -> str | None:
    """A label as the name of a key, None when it is none."""
    return key_name(label) if isinstance(label, str) else None


READERS = {"classes": one_class, "keys": key, "numbers": numbers, "tags": tags}
WANTED = {"classes": "one class", "keys": "a key such as 'Eb minor'", "numbers": "a finite number",
          "tags": "a list of tags"}  # fmt: skip


def guess_kind(rows: list[dict]) -> str:
    """Read the kind off the labels.

    Numbers when most labels are numbers and not all of those are whole; tags when most are lists
    of names; else classes. A list is never a class, so a list of whole numbers counts as not whole.
    """
    found = [r["label"] for r in rows]
    numeric = [label for label in found if numbers(label) is not None]
    whole = [
        label for label in numeric
        if not isinstance(label, list)
        and all(str(v).lstrip("+-").isdecimal() for v in _values(label))
    ]  # fmt: skip
    if len(numeric) * 2 > len(rows) and len(whole) < len(numeric):
        return "numbers"
    lists = [label for label in found if isinstance(label, list)]
    return "tags" if any(lists) and len(lists) * 2 > len(rows) else "classes"


def check_labels(rows, skipped, kind, n_targets) -> list[dict]:
    """Normalise labels, setting aside rows whose label is not of the task's kind.

    Where the number of targets isn't given it is what most rows have.
    """
    labels = [READERS[kind](r["label"]) for r in rows]
    if kind == "numbers":
        sizes = Counter(len(label) for label in labels if label)
        n_targets = n_targets or (max(sizes, key=sizes.get) if sizes else None)
    good = []
    for row, label in zip(rows, labels, strict=True):
        if label is None:
            reason = f"label {row['label']!r} is not {WANTED[kind]}"
        elif kind == "numbers" and len(label) != n_targets:
            reason = f"label {row['label']!r} has not {n_targets} values"
        else:
            good.append({**row, "label": label})
            continue
        skipped.append({"where": row["where"], "reason": reason})
    return good
