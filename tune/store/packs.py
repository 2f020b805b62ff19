"""Packs: many rows of a collection in one file, found by one index that is held in memory.

Layout::

    COLLECTION/packs/<name>.rows       rows one after another, each as its own file had held it
    COLLECTION/packs/<name>.index      where each row is: one record a row
    COLLECTION/packs/<name>.<content>-<cut>.gone      a row of that pack that counts as deleted

A pack never changes. Its rows are on disk before its index is, and its index before the rows' own
files are deleted, so that a row is always in one place at least. Each row keeps its checksum, and
the index has one of its own. A look-up is one step in a table in memory, whatever the number of
rows.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tune.store.stale_files import STALE_S
from tune.system.files import add_group_permissions, atomic_write, make_group_folder

log = logging.getLogger(__name__)

RECORD = np.dtype(
    [
        ("content", "V32"),
        ("cut", "V6"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("n_samples", "<u8"),
        ("used", "<f8"),
    ]
)
LOADED = np.dtype([*RECORD.descr, ("pack", "<u4")])
MAGIC = b"TUNEIDX1"
MAX_ROWS, MAX_BYTES = 4096, 256 << 20  # of one pack: prune deletes whole packs
MAX_OPEN = 256
TRANSIENT = (errno.EIO, getattr(errno, "ESTALE", errno.EIO))


def try_again(read: Callable, times: int = 3, wait_s: float = 0.1):
    """Call `read`; again after EIO or ESTALE, which network folders give in passing."""
    for left in reversed(range(times)):
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT or not left:
                raise
            time.sleep(wait_s)
    raise AssertionError("unreachable")


class Place(NamedTuple):
    """Where a packed row is.

    Attributes
    ----------
    pack : name of the pack
    content, cut : what the row is known by, in hexadecimal
    offset, size : in bytes
    n_samples : length of the track at the encoder's rate
    used : time of last use when it was packed, in seconds since the epoch
    """

    pack: str
    content: str
    cut: str
    offset: int
    size: int
    n_samples: int
    used: float

    @property
    def key(self) -> str:
        """The name of the row's own file, without its ending."""
        return f"{self.content}-{self.cut}"


class _Index:
    """The records of all packs, sorted by content, and a table of where each content's begin.

    The table is split by the first bits of the content, so that about one record is in each part:
    contents are digests, hence evenly spread.

    Parameters
    ----------
    names : the packs
    parts : the records of each
    """

    def __init__(self, names: list[str], parts: list[np.ndarray]):
        self.names = names
        records = np.empty(sum(map(len, parts)), LOADED)
        raw = records.view(np.uint8).reshape(len(records), LOADED.itemsize)
        if parts:
            raw[:, : RECORD.itemsize] = np.concatenate([_bytes_of(part) for part in parts])
        records["pack"] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        first = np.ascontiguousarray(raw[:, :8]).view(">u8").ravel().astype(np.uint64)
        order = np.argsort(first, kind="stable")
        self.records = records[order]
        bits = max(1, len(records).bit_length())
        self.shift = 64 - bits
        begins = (first[order] >> np.uint64(self.shift)).astype(np.int64)
        self.starts = memoryview(np.searchsorted(begins, np.arange((1 << bits) + 1)))

    def find(self, content: bytes) -> Iterator[Place]:
        """The places of a track's rows."""
        part = int.from_bytes(content[:8], "big") >> self.shift
        for at in range(self.starts[part], self.starts[part + 1]):
            record = self.records[at].item()
            if record[0] == content:
                yield self.place(record)

    def place(self, record: tuple) -> Place:
        """The place that a record says."""
        content, cut, *numbers, pack = record
        return Place(self.names[pack], content.hex(), cut.hex(), *numbers)


class Packs:
    """The packs of one collection.

    Parameters
    ----------
    folder : the collection's folder
    """

    def __init__(self, folder: Path):
        self.folder = folder / "packs"
        self._lock = threading.Lock()
        self._gone: set[str] = set()
        self._gone_here: set[str] = set()  # also where the store is read only
        self._listed: set[str] | None = None
        self._refused: set[str] = set()
        self._index = _Index([], [])
        self._files: dict[str, _Open] = {}

    def __reduce__(self):
        return Packs, (self.folder.parent,)  # open files and the index stay in this process

    def refresh(self) -> "Packs":
        """Read what has been packed or deleted since, and return self."""
        with self._lock:
            self._refresh()
        return self

    def _refresh(self) -> None:
        try:
            listed = set(try_again(lambda: os.listdir(self.folder)))
        except (FileNotFoundError, NotADirectoryError):
            listed = set()
        if listed == self._listed:
            return
        self._gone = {n.removesuffix(".gone") for n in listed if n.endswith(".gone")}
        names = sorted(n.removesuffix(".index") for n in listed if n.endswith(".index"))
        names = [n for n in names if f"{n}.rows" in listed]
        if names != self._index.names or self._listed is None:
            self._load(names)
        self._listed = listed

    def _load(self, names: list[str]) -> None:
        """Read the indexes and sort them into one."""
        parts = []
        for name in names:
            records = self._read_index(self.folder / f"{name}.index")
            parts.append(np.empty(0, RECORD) if records is None else records)
        self._index = _Index(names, parts)
        for name in self._files.keys() - set(names):
            self._files.pop(name, None)

    def _read_index(self, path: Path) -> np.ndarray | None:
        """The records of an index; None, with a warning, when it is damaged."""
        try:
            data = try_again(path.read_bytes)
        except FileNotFoundError:  # pruned meanwhile
            return None
        body, check = data[len(MAGIC) : -16], data[-16:]
        sound = data.startswith(MAGIC) and hashlib.blake2b(body, digest_size=16).digest() == check
        if not sound or len(body) % RECORD.itemsize:
            if path.name not in self._refused:
                log.warning("damaged index %s: the rows of its pack are read one by one", path)
                self._refused.add(path.name)
            return _scan(path.with_suffix(".rows"))
        return np.frombuffer(body, RECORD)

    def find(self, content: str, cut: str | None = None) -> list[Place]:
        """Where a track's rows are (all of them, or those of one cut), by what is known by now."""
        if self._listed is None:
            self.refresh()
        try:
            key = bytes.fromhex(content)
        except ValueError:
            return []
        if len(key) != 32:
            return []
        return [
            place
            for place in self._index.find(key)
            if cut in (None, place.cut) and not self._is_gone(place)
        ]

    def places(self) -> Iterator[Place]:
        """All rows, sorted by content."""
        self.refresh()
        index = self._index  # another thread may load a new one meanwhile
        for record in index.records:
            place = index.place(record.item())
            if not self._is_gone(place):
                yield place

    def _is_gone(self, place: Place) -> bool:
        if not self._gone and not self._gone_here:
            return False
        name = f"{place.pack}.{place.key}"
        return name in self._gone or name in self._gone_here

    def read(self, place: Place) -> bytes:
        """The bytes of a row, as its own file had held them.

        Raises
        ------
        FileNotFoundError
            When the pack has been pruned.
        """
        return try_again(lambda: self._read(place))

    def _read(self, place: Place) -> bytes:
        file = self._files.get(place.pack)
        if file is None:
            if len(self._files) >= MAX_OPEN:
                self._files.clear()  # each is closed when the last thread is done with it
            file = self._files[place.pack] = _Open(self.rows_file(place.pack))
        try:
            return file.read(place.offset, place.size)
        except OSError:
            self._files.pop(place.pack, None)  # a stale handle: opened anew
            raise

    def rows_file(self, name: str) -> Path:
        """The file with a pack's rows."""
        return self.folder / f"{name}.rows"

    def delete(self, place: Place) -> None:
        """Count a row as deleted; where that can't be written it is only so in this process."""
        name = f"{place.pack}.{place.key}"
        self._gone_here.add(name)
        try:
            (self.folder / f"{name}.gone").touch()
            add_group_permissions(self.folder / f"{name}.gone")
        except OSError as error:
            log.warning("%s in %s can't be deleted: %s", place.key, self.folder, error.strerror)

    def add(self, rows: list[tuple[str, str, int, float, bytes]]) -> list[Place]:
        """Write one pack of (content, cut, n_samples, time of last use, bytes), durably.

        Returns
        -------
        list of Place
            When this returns, rows and index are on disk.
        """
        name, offset = uuid.uuid4().hex[:16], 0
        records = np.empty(len(rows), RECORD)
        for i, (content, cut, n_samples, used, data) in enumerate(rows):
            key = (bytes.fromhex(content), bytes.fromhex(cut))
            records[i] = (*key, offset, len(data), n_samples, used)
            offset += len(data)
        body = records.tobytes()
        index = MAGIC + body + hashlib.blake2b(body, digest_size=16).digest()
        make_group_folder(self.folder)
        atomic_write(
            self.rows_file(name),
            lambda aside: _write(aside, (row[-1] for row in rows)),
            share_with_group=True,
        )
        _flush_folder(self.folder)  # the rows are there before the index names them
        try:
            atomic_write(
                self.folder / f"{name}.index",
                lambda aside: aside.write_bytes(index),
                share_with_group=True,
            )
        except OSError:
            self.rows_file(name).unlink(missing_ok=True)
            raise
        _flush_folder(self.folder)
        self.refresh()
        return [
            Place(name, content, cut, *(int(r[k]) for k in ("offset", "size")), n_samples, used)
            for (content, cut, n_samples, used, _), r in zip(rows, records, strict=True)
        ]

    def remove_unfinished(self) -> None:
        """Remove the rows of packs that a killed process left without an index a day ago."""
        for path in self.folder.glob("*.rows"):
            with contextlib.suppress(FileNotFoundError):
                if not path.with_suffix(".index").exists() and _age_s(path) > STALE_S:
                    path.unlink()

    def remove(self, name: str) -> None:
        """Delete a pack: its index first, so that nobody looks for its rows."""
        (self.folder / f"{name}.index").unlink(missing_ok=True)
        self.rows_file(name).unlink(missing_ok=True)
        for path in self.folder.glob(f"{name}.*.gone"):
            path.unlink(missing_ok=True)


class _Open:
    """An open file, closed when nobody holds it any more."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.lock = threading.Lock()

    def __del__(self):
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """These bytes, or fewer where the file ends."""
        parts, end = [], offset + size
        while offset < end and (part := self._read(offset, end - offset)):
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self.descriptor, size, offset)
        with self.lock:  # Windows
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, size)


def parse(data: bytes) -> tuple[np.ndarray, dict]:
    """The tokens and metadata of one row's safetensors bytes; the checksum is the caller's.

    Raises
    ------
    ValueError, KeyError, TypeError
        When it is no such row.
    """
    n_header = int.from_bytes(data[:8], "little")
    if not 2 <= n_header <= len(data) - 8:
        raise ValueError("no header")
    header = json.loads(data[8 : 8 + n_header].decode())
    tensor = header["tokens"]
    start, end = tensor["data_offsets"]
    if tensor["dtype"] != "F32" or start != 0 or end != len(data) - 8 - n_header:
        raise ValueError("header and size differ")
    tokens = np.frombuffer(data, "<f4", offset=8 + n_header).reshape(tensor["shape"]).copy()
    return tokens, header["__metadata__"]


def _bytes_of(records: np.ndarray) -> np.ndarray:
    """Records as rows of bytes, (n, bytes of a record)."""
    return np.ascontiguousarray(records).view(np.uint8).reshape(len(records), RECORD.itemsize)


def _scan(path: Path) -> np.ndarray | None:
    """Find the rows of a pack without its index, up to the first that is damaged."""
    found, offset = [], 0
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    while offset < len(data):
        n_header = int.from_bytes(data[offset : offset + 8], "little")
        try:
            header = json.loads(data[offset + 8 : offset + 8 + n_header])
            size = 8 + n_header + header["tokens"]["data_offsets"][1]
            meta = header["__metadata__"]
            info = json.loads(meta["info"])
            content, n_samples = info["content"], int(meta["n_samples"])
            key = bytes.fromhex(content), bytes.fromhex(cut_digest(info["spans"]))
            check = hashlib.sha256(json.dumps([content, n_samples]).encode()).hexdigest()[:12]
            if meta["n_samples_checksum"] != check:
                raise ValueError("checksum of the length differs")
        except (ValueError, KeyError, TypeError):
            log.warning(
                "damaged row at byte %d of %s: it and those behind will be encoded again",
                offset,
                path,
            )
            break
        found.append((*key, offset, size, n_samples, 0.0))
        offset += size
    return np.array(found, RECORD)


def cut_digest(spans) -> str:
    """Digest of the segments' bounds."""
    return _cut_digest(tuple(tuple(map(int, span)) for span in spans))


@functools.lru_cache(maxsize=64)  # clips of one length are cut alike
def _cut_digest(spans: tuple) -> str:
    return hashlib.sha256(json.dumps(spans).encode()).hexdigest()[:12]


def _write(path: Path, parts) -> None:
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)


def _age_s(path: Path) -> float:
    """Age of a file by the file system's own clock, which may be another machine's."""
    probe = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
