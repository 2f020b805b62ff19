"""What a track is known by: the hash of its file's bytes, and a cache of such hashes.

Beside it the hash of what is heard, which is the same in every lossless container.
"""

import hashlib
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np

from tune.audio.decode import AudioError, check_file

log = logging.getLogger(__name__)


def content_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal: what a track is known by in the store.

    Raises
    ------
    AudioError
        When the file is missing, not a regular file, empty or unreadable.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AudioError(f"unreadable: {error.strerror or error}") from error


def sound_hash(samples: np.ndarray, sample_rate: int) -> str:
    """Hash of decoded mono samples (n,) in [-1, 1] and their rate, to 16 bits.

    Two lossless files of the same recording share it, whatever their container; a lossy copy has
    another one.
    """
    digest = hashlib.sha256(str(sample_rate).encode())
    for start in range(0, len(samples), 1 << 20):
        block = np.rint(samples[start : start + (1 << 20)] * 32768.0)
        digest.update(np.clip(block, -32768, 32767).astype("<i2").tobytes())
    return digest.hexdigest()


class HashCache:
    """Remembers file hashes by path, size and times; losing it costs only time.

    The time of the last change of any kind (ctime) is the system's: copying a file's old
    modification time onto other bytes (`cp -p`, `rsync -t`, a clock set back) changes it. Threads
    may share it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._db: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def get(self, path: Path) -> str:
        """Hash of a file, from the cache when the file hasn't changed since."""
        try:
            before = path.stat()
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            return content_hash(path)  # raises with the reason
        times = (before.st_mtime_ns, before.st_ctime_ns)
        stamp = (os.fsencode(path.resolve()), before.st_size, *times)
        known = self._run(
            "SELECT hash FROM files WHERE path=? AND size=? AND mtime=? AND ctime=?", stamp
        )
        if known:
            return known[0][0]
        digest = content_hash(path)
        # A file written within the clock's grain could change again without a new time stamp.
        if time.time_ns() - before.st_mtime_ns > 2_000_000_000:
            self._run("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (*stamp, digest))
        return digest

    def _run(self, query: str, values: tuple) -> list:
        """Run one statement; a cache that is locked, read-only or damaged is as good as empty."""
        try:
            with self._lock:
                if self._db is None:
                    self._db = sqlite3.connect(
                        self.path, timeout=10, isolation_level=None, check_same_thread=False
                    )
                    self._db.execute("PRAGMA synchronous=OFF")  # losing it costs only time
                    self._db.execute(
                        "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, "
                        "mtime INTEGER, ctime INTEGER, hash TEXT)"
                    )
                return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, OverflowError) as error:  # overflow: a time stamp beyond 2262
            log.debug("hash cache %s: %s", self.path, error)
            return []
