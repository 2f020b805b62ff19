"""What a track is known by: the hash of its file's bytes, and a cache of such hashes.

Beside it the hash of what is heard, which is the same in every lossless container.
"""

import hashlib
import logging
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np

from tune.audio.decode import AudioError, check_file
from tune.system.files import add_group_permissions

log = logging.getLogger(__name__)

LINE_BYTES = 32 + 1 + 64 + 1 + 16  # of the cache: stamp, hash and check, in hexadecimal


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
    modification time onto other bytes (`cp -p`, `rsync -t`, a clock set back) changes it.

    The file has a line for each known state of a file: a digest of path, size and times, the hash,
    and a digest of both. Lines are only appended, so that several processes and machines may do so
    at once; one that is torn or damaged isn't used. Threads may share a cache.
    """

    def __init__(self, path: Path):
        self.path = path
        self._known: dict[bytes, bytes] | None = None
        self._lock = threading.Lock()  # of what is known, and of appending
        self._folders: dict[str, str] = {}

    def get(self, path: str | Path) -> str:
        """Hash of a file, from the cache when the file hasn't changed since."""
        try:
            before = os.lstat(path)
            if stat.S_ISREG(before.st_mode):
                real = self._real(path)
            else:
                before, real = os.stat(path), os.path.realpath(path)
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            return content_hash(path)  # raises with the reason
        times = f"{before.st_size} {before.st_mtime_ns} {before.st_ctime_ns} "
        stamp = _hex_digest(times.encode() + os.fsencode(real), 16)
        with self._lock:
            if self._known is None:
                self._known = self._load()
            known = self._known.get(stamp)
        if known and known[65:] == _hex_digest(stamp + known[:64], 8):
            return known[:64].decode()
        digest = content_hash(path)
        # A file written within the clock's grain could change again without a new time stamp.
        if time.time_ns() - before.st_mtime_ns > 2_000_000_000:
            with self._lock:
                self._remember(stamp, digest.encode())
        return digest

    def _real(self, path: str | Path) -> str:
        """The path without links, of a file that is none; each folder is resolved once."""
        folder, name = os.path.split(path if os.path.isabs(path) else os.path.abspath(path))
        if (real := self._folders.get(folder)) is None:
            real = self._folders[folder] = os.path.realpath(folder)
        return os.path.join(real, name)

    def _load(self) -> dict[bytes, bytes]:
        """All lines: what they are found by, and the rest."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            log.debug("hash cache %s: %s", self.path, error)
            return {}
        return {line[:32]: line[33:] for line in lines if len(line) == LINE_BYTES}

    def _remember(self, stamp: bytes, digest: bytes) -> None:
        """Append a line; a cache that can't be written to is only kept in memory."""
        rest = digest + b" " + _hex_digest(stamp + digest, 8)
        self._known[stamp] = rest
        try:
            # A line break first: what a killed writer has torn ends there.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, b"\n" + stamp + b" " + rest + b"\n")
            finally:
                os.close(descriptor)
            add_group_permissions(self.path)
        except OSError as error:
            log.debug("hash cache %s: %s", self.path, error)


def _hex_digest(data: bytes, size: int) -> bytes:
    """A digest of `size` bytes, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=size).hexdigest().encode()
