"""Remove temporary files that killed writers left in a store.

A file is stale when it is older than a day by the file system's own clock, and when its
track's lock is free: a writer that still lives holds it, however the clocks have jumped.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from tune.system.files import add_group_permissions

STALE_S = 24 * 3600
STAMP = "locks/swept"


def remove_stale_files(root: Path, claim: Callable) -> int:
    """Remove the files of dead writers; return their number.

    Parameters
    ----------
    root : the store's folder
    claim : `tune.store.Store.claim`

    Raises
    ------
    OSError
        When the store can't be written to.
    """
    stamp, n = Path(root) / STAMP, 0
    stamp.touch()
    add_group_permissions(stamp)
    now = stamp.stat().st_mtime
    for folder, _, names in os.walk(root):
        for name in names:
            if not (name.startswith(".") and name.endswith(".tmp")):
                continue
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):  # its writer has just renamed it
                if now - path.stat().st_mtime > STALE_S:
                    n += _remove(path, claim)
    return n


def remove_stale_files_daily(root: Path, claim: Callable) -> None:
    """Remove stale files once a day; a read-only store is left alone."""
    stamp = Path(root) / STAMP
    with contextlib.suppress(OSError):
        if stamp.exists():
            age = _clock(root) - stamp.stat().st_mtime
            if 0 <= age < STALE_S:
                return
        remove_stale_files(root, claim)


def _clock(root: Path) -> float:
    """The time by the file system's clock, which may be another machine's."""
    probe = Path(root) / f"{STAMP}-{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _remove(path: Path, claim: Callable) -> bool:
    """Remove a file unless its track's writer lives; say whether it's gone."""
    lock = claim(path.name[1:5])  # of a row and of boundaries the content's hash
    if lock is None:
        return False
    try:
        path.unlink()
    finally:
        lock.release()
    return True
