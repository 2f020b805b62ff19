"""Labels as they come (text, a number, a list), each brought into the form of its kind.

A reader returns None for what is no label of its kind. What read labels alone tell is here too.
"""

import math
import re
import unicodedata

import numpy as np

from tune.tasks.musical_keys import key_name
from tune.tasks.rows import INVISIBLE

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
TAG_SEPARATOR = ";"
MANY_NUMBERS = 20  # different whole numbers that may be classes as well as values


def values(label) -> list:
    """The parts of a label: a list's items, or a text's, separated by spaces or semicolons."""
    if isinstance(label, str):
        return label.replace(";", " ").split()
    return label if isinstance(label, list) else [label]


def numbers(label) -> list[float] | None:
    """A label as target values, None when it is none."""
    parts = [v.replace("\N{MINUS SIGN}", "-") if isinstance(v, str) else v for v in values(label)]
    # float() also takes True, "infinity" and "1970_1979".
    if any(isinstance(v, bool) or (isinstance(v, str) and not NUMBER.fullmatch(v)) for v in parts):
        return None
    try:
        found = [float(value) for value in parts]
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
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return (str(label).strip() or None) if isinstance(label, str | int) else None


def key(label) -> str | None:
    """A label as the name of a key, None when it is none."""
    return key_name(label) if isinstance(label, str) else None


def folded(name: str) -> str:
    """A class's name without what is easily overlooked.

    Case, composed or decomposed characters, zero-width ones, kinds of blanks, hyphens and
    underscores, and how a number is written (1, 01, 1.0).
    """
    name = re.sub(f"[{INVISIBLE}]", "", unicodedata.normalize("NFKC", name)).casefold().strip()
    if NUMBER.fullmatch(name):
        return str(float(name))
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name))


def difference(one: str, other: str) -> str:
    """What two names of the same `folded` form differ by."""
    for what, alike in DIFFERENCES.items():
        if alike(one) == alike(other):
            return what
    return "their spelling"


def mostly_numbers(labels: list) -> bool:
    """Whether most labels are numbers and not all of those are whole, which may be classes.

    A list is never a class, so a list of whole numbers counts as not whole.
    """
    numeric = [label for label in labels if numbers(label) is not None]
    whole = [
        label
        for label in numeric
        if not isinstance(label, list)
        and all(str(v).lstrip("+-").isdecimal() for v in values(label))
    ]
    return len(numeric) * 2 > len(labels) and len(whole) < len(numeric)


def many_numbers(labels: list) -> list[str]:
    """A line on whole numbers that are read as classes, where there are many of them."""
    different = {str(label).strip() for label in labels}
    if len(different) <= MANY_NUMBERS or not all(NUMBER.fullmatch(each) for each in different):
        return []
    return [
        f"the labels are {len(different)} whole numbers, read as so many classes (--kind numbers "
        f"for a regression)"
    ]


def mostly_lists(labels: list) -> bool:
    """Whether most labels are lists, not all of them empty."""
    lists = [label for label in labels if isinstance(label, list)]
    return any(lists) and len(lists) * 2 > len(labels)


DIFFERENCES = {
    "case": str.casefold,
    "composed or decomposed characters": lambda name: unicodedata.normalize("NFC", name),
    "characters without width": lambda name: re.sub(f"[{INVISIBLE}]", "", name),
    "kinds of blanks": lambda name: re.sub(r"\s+", " ", name),
    "blanks, hyphens or underscores": lambda name: re.sub(r"[\s_-]+", " ", name),
    "how a number is written": lambda name: float(name) if NUMBER.fullmatch(name) else name,
    "kinds of characters": lambda name: unicodedata.normalize("NFKC", name),
}


def defined_tags(labels: np.ndarray) -> np.ndarray:
    """Say of each tag whether some tracks (n, C) have it and some have not: (C,) bool."""
    return labels.any(0) & ~labels.all(0)
