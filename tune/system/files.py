"""Atomic writes with ordinary permissions; the cache folder; names and paths as shown."""

import contextlib
import csv
import errno
import importlib.util
import os
import re
import stat
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors.numpy import save

PICTURES = (".png", ".svg", ".pdf")


def cache_folder() -> Path:
    """The user's cache folder for TUNE: $XDG_CACHE_HOME/tune or ~/.cache/tune."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tune"


def atomic_write(
    path: Path, write: Callable[[Path], object], *, share_with_group: bool = False
) -> None:
    """Write a file aside, flush it to disk and rename it, so that no reader sees half of it.

    Parameters
    ----------
    write : writes the file that it is given
    share_with_group : whether the group may read and write it as it may the folder
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(aside)
        if share_with_group:
            add_group_permissions(aside)
        flush(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str, *, share_with_group: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    atomic_write(
        path,
        lambda aside: aside.write_text(text, encoding="utf-8"),
        share_with_group=share_with_group,
    )


def flush(path: Path) -> None:
    """Flush a file to disk before it is renamed, so that a power cut can't leave it empty."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def save_tensors(tensors: dict, path: Path, metadata: dict, save: Callable = save) -> None:
    """Write a safetensors file with ordinary permissions; the library's own files are private.

    `save` is the library's function for the tensors' kind, to bytes; NumPy's by default.
    """
    path.write_bytes(save(tensors, metadata))


def add_group_permissions(path: Path) -> None:
    """Let the group do with a file or folder what it may do with the folder around it.

    Nothing is taken away, and a file or folder of somebody else stays as it is.
    """
    around, mode = path.parent.stat().st_mode, path.stat().st_mode
    wanted = around & (stat.S_ISGID | 0o070 if stat.S_ISDIR(mode) else 0o060)
    if wanted & ~mode:
        with contextlib.suppress(OSError):
            path.chmod(stat.S_IMODE(mode) | wanted)


def make_group_folder(folder: Path) -> None:
    """Create a folder and those above it, each with the group permissions of the one around it."""
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:
        make_group_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    except FileExistsError:  # as a file
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    add_group_permissions(folder)  # also those of a folder whose maker was killed before this


def write_csv(path: Path, rows: Sequence[Mapping]) -> None:
    """Write rows with the same keys as CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def check_plot_file(path: Path, flag: str) -> None:
    """Raise ValueError, before anything is computed, when no picture can be written to a path."""
    if path.suffix not in PICTURES:
        raise ValueError(f"{flag} must end in .png, .svg or .pdf, got {path.name!r}")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: a file in a folder that exists is needed")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{flag} needs matplotlib: pip install matplotlib")


def hide_home(value):
    """A value with the user's home written as ~, also inside lists, dicts and longer texts.

    Examples
    --------
    >>> hide_home({"path": Path.home() / "music"})
    {'path': '~/music'}
    """
    home = str(Path.home())
    if isinstance(value, Path | str) and home != "/":
        return re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", str(value))
    if isinstance(value, Mapping):
        return {k: hide_home(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [hide_home(v) for v in value]
    return value


def slug(text: str, also: str = "") -> str:
    """A text as part of a file name: letters, digits, "-", "_", "." and what `also` allows.

    Examples
    --------
    >>> slug("m-a-p/MERT v1")
    'm-a-p-MERT-v1'
    """
    return "".join(c if c.isalnum() or c in "-_." + also else "-" for c in text)
