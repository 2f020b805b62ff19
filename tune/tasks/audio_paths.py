"""The files that a task's rows name, however the name is written.

A path is looked for as it is written; then without blanks and quotes around it, as a file:// URL,
with slashes for a Windows table's backslashes, and in another Unicode normal form (macOS writes
names decomposed, others composed: the same text, other bytes).
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from urllib.request import url2pathname

from tune.tasks.rows import number, stripped

ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf)://", re.I)
DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\\w")
SAID = {
    "slashes": "with backslashes read with slashes",
    "form": "found whose characters are composed otherwise on disk (Unicode NFC and NFD)",
    "drive": "of a Windows machine (a drive or a share) not found here",
}


class AudioFiles:
    """Finds the files that one list names, relative to the list's folder.

    Attributes
    ----------
    folder : of the list; a file is below it or one of the three above, with or without data/
    spelled : how many paths were not found as they are written, by a name of `SAID`
    """

    def __init__(self, folder: Path):
        # Links are not followed: data/EMO may be one to a folder of another name.
        self.folder = Path(os.path.abspath(folder))
        self._bases = (self.folder, *list(self.folder.parents)[:3])
        self.spelled: Counter[str] = Counter()
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, written: str) -> str:
        """The file of a path as it is written.

        Nothing found: the path below the list's folder, which the encoder will report as missing.
        """
        for how, text in _readings(written):
            for candidate in self._candidates(text):
                if os.path.exists(candidate):  # unlike Path.exists, False for a name too long
                    return self._found(candidate, how)
        readings = list(_readings(written))
        for _, text in readings:
            for candidate in () if text.isascii() else self._candidates(text):
                if same := self._in_other_form(candidate):
                    return self._found(same, "form")
        missing = readings[-1][1] if _is_url(written) else written
        elsewhere = DRIVE.match(missing.lstrip("/"))
        return self._found(self.folder / missing, "drive" if elsewhere else "")

    def is_there(self, written: str) -> bool:
        """Say whether there is a file of exactly this name."""
        return any(os.path.exists(candidate) for candidate in self._candidates(written))

    def notes(self) -> list[str]:
        """A line on each way in which paths had to be read."""
        return [f"{number(n, 'path')} {SAID[how]}" for how, n in self.spelled.items()]

    def _found(self, path: Path, how: str) -> str:
        """Count how a path was read."""
        if how:
            self.spelled[how] += 1
        return str(path)

    def _candidates(self, text: str) -> Iterator[Path]:
        """Where a path may lead, the nearest first."""
        relative = Path(text)
        if relative.is_absolute():
            yield relative
            return
        # Rows of the hub begin with data/, whatever the user's data folder is called.
        bare = Path(*relative.parts[1:]) if relative.parts[:1] == ("data",) else relative
        for base in self._bases:
            yield base / relative
            if bare is not relative:
                yield base / bare

    def _in_other_form(self, path: Path) -> Path | None:
        """The path with its parts as the disk spells them; None where there is no such file."""
        here = Path(path.anchor)
        for part in path.parts[1:]:
            if not os.path.exists(here / part):
                if here not in self._names:
                    self._names[here] = _names_by_form(here)
                part = self._names[here].get(unicodedata.normalize("NFC", part))
                if part is None:
                    return None
            here /= part
        return here


def _names_by_form(folder: Path) -> dict[str, str]:
    """Composed name -> name, of what is in a folder."""
    try:
        return {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)}
    except OSError:
        return {}


def _is_url(text: str) -> bool:
    """Whether a path is written as a file:// URL."""
    return stripped(text).lower().startswith("file:/")


def _readings(written: str) -> Iterator[tuple[str, str]]:
    """A path as it is written, then the others that may be meant: (name of `SAID` or "", path)."""
    yield "", written
    text = stripped(written)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if _is_url(text):
        # Not urlsplit: names with # or ? that nobody escaped would be cut.
        rest = text[len("file:") :]
        rest = re.sub(r"^//(localhost(?=/))?", "", rest, flags=re.I)
        text = url2pathname(rest) if os.name == "nt" else unquote(rest)
    elif text.startswith("~/"):
        text = os.path.expanduser(text)
    if text != written:
        yield "", text
    if os.sep == "/" and "\\" in text:
        yield "slashes", text.replace("\\", "/")
