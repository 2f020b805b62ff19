"""Files that a task may read: those below its data folder.

What a downloaded jsonl, list or data set names is another's word: `../../.ssh/id_rsa`, an absolute
path or a link must not make a run read, hash and report files from elsewhere. A user's own CSV or
TSV may name any file. Links are followed: a data folder may itself be one.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

LEVELS = 3  # above a jsonl's folder, as `tune.tasks.readers` looks for its files


def data_folders(folder: Path) -> list[Path]:
    """The folders that a jsonl in a folder may read below.

    Its own and up to three above it: to the one called data where there is one, and never the
    root, the user's home or what is above that.
    """
    folder = Path(os.path.abspath(folder))
    chain = [folder, *list(folder.parents)[:LEVELS]]
    for i, each in enumerate(chain):
        if each.name == "data":
            return chain[: i + 1]
    home = Path.home()
    return [p for p in chain if p == folder or not (p == p.parent or home.is_relative_to(p))]


def confine(
    rows: Sequence[dict], skipped: Sequence[dict], folders: Sequence[Path]
) -> tuple[list[dict], list[dict]]:
    """Set aside the rows (of `tune.tasks.readers`) whose file is not below one of some folders."""
    roots = [Path(os.path.realpath(folder)) for folder in folders]
    kept, skipped = [], list(skipped)
    for row in rows:
        real = _real(row["path"])
        if real is not None and any(real.is_relative_to(root) for root in roots):
            kept.append(row)
        else:
            reason = (
                f"{row['id']} is outside its data folder {folders[-1]}: --allow_outside reads it"
            )
            skipped.append({"where": row["where"], "reason": reason})
    return kept, skipped


def _real(path: str) -> Path | None:
    """Where a path leads; None where that can't be said. Folders are looked at once."""
    folder, name = os.path.split(path)
    try:
        if name in ("", ".", "..") or os.path.islink(path):
            return Path(os.path.realpath(path))
        return Path(_real_folder(folder), name)
    except (OSError, ValueError):  # ValueError: a zero byte
        return None


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    """Where a folder leads."""
    return os.path.realpath(folder)
