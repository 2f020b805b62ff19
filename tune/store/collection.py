"""A collection: the rows of one encoder, precision, set of layers and kind of token.

A row is one track, cut one way. It has a file of its own, or lies with others in a pack. `Store`
says where a collection is and what it is named by.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from tune.segments.pick import PickedSpans, pick_row
from tune.store.packs import MAX_BYTES, MAX_ROWS, Packs, Place, cut_digest, parse, try_again
from tune.system.files import atomic_write, atomic_write_text, make_group_folder, save_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One track's tokens.

    Attributes
    ----------
    tokens : ndarray of float32, shape (N, L, D)
        N segments, or all segments' pooled frames in order.
    spans : list of (start, end)
        The segments' bounds, in samples at the encoder's rate.
    counts : list of int
        Tokens of each segment; all 1 for segment tokens.
    silent : bool
        Whether the track is digital silence.
    seconds : float
        Time that encoding it took when it was encoded.
    peak_bytes : int
        Peak memory of the process by then (allocated on a GPU, else resident); 0 when not known.
    notes : tuple of str
        What is odd about the file: see `tune.audio.decode.Sound`.
    """

    tokens: np.ndarray
    spans: list
    counts: list
    silent: bool
    seconds: float
    peak_bytes: int = 0
    notes: tuple[str, ...] = ()

    def times(self, sample_rate: int, window_s: float | None = None) -> np.ndarray:
        """Start and end of each token in seconds, (N, 2).

        Pooled frames are windows of `window_s`, of which the last in a segment may be shorter.

        Raises
        ------
        ValueError
            When a segment has several tokens and `window_s` isn't known.
        """
        if window_s is None and max(self.counts) > 1:
            raise ValueError(
                "the pooled frames' length isn't known: this collection was written by an older "
                "version; encode into a fresh --store"
            )
        times = []
        for (start, end), count in zip(self.spans, self.counts, strict=True):
            start_s, end_s = start / sample_rate, end / sample_rate
            starts = start_s + np.arange(count) * (window_s or 0.0)
            times.append(np.stack([starts, np.append(starts[1:], end_s)], 1))
        return np.concatenate(times)


class Collection:
    """The rows of one encoder, precision, set of layers and kind of token. See `Store`.

    `window_s` is the length of a pooled frame in seconds, or None where a token is a segment;
    `older` the folder of the same rows by an older decoder.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        fallback: Path | None,
        key: dict,
        layers: list,
        window_s: float | None = None,
        older: Path | None = None,
    ):
        self.root, self.folder, self.fallback, self.window_s = root, folder, fallback, window_s
        self.key, self.layers, self.older = key, layers, older
        self.damaged: list[str] = []
        self.packs = Packs(folder)
        self._older_packs: dict[str, Packs] = {}
        self._places = [(folder, self.packs)]
        if fallback:
            self._places.append((fallback, Packs(fallback)))

    @property
    def decoding(self) -> dict:
        """What a track's samples depend on besides its content, rate and resampler."""
        return {"decoder": self.key["decoder"], "channels": self.key["channels"]}

    def adopt(self, content: str) -> None:
        """Take over a track's rows by an older decoder, which must have given the same samples."""
        for folder in filter(None, (self.folder, self.fallback)) if self.older else ():
            for path in (self.older / folder.name / content[:2]).glob(f"{content}-*.safetensors"):
                mine = folder / content[:2] / path.name
                if not mine.exists():
                    make_group_folder(mine.parent)
                    layers = self.layers if folder == self.folder else None
                    self._describe(folder, layers, self.older / folder.name)
                    with contextlib.suppress(FileExistsError, FileNotFoundError):
                        _link(path, mine)
            packs = self._older_packs.setdefault(folder.name, Packs(self.older / folder.name))
            for place in packs.find(content):
                mine = folder / content[:2] / f"{place.key}.safetensors"
                if not mine.exists() and not self._of(folder).find(content, place.cut):
                    data = packs.read(place)
                    make_group_folder(mine.parent)
                    layers = self.layers if folder == self.folder else None
                    self._describe(folder, layers, self.older / folder.name)
                    atomic_write(
                        mine,
                        lambda aside, data=data: aside.write_bytes(data),
                        share_with_group=True,
                    )

    def _of(self, folder: Path) -> Packs:
        """The packs of this folder."""
        return next(packs for mine, packs in self._places if mine == folder)

    def _describe(self, folder: Path, layers: list | None, older: Path | None = None) -> None:
        """Write beside the rows what they depend on, unless it is there."""
        description = folder / "collection.json"
        if description.exists():
            return
        if layers is None:  # the layers are those of the folder that is taken over
            layers = json.loads((older / "collection.json").read_text(encoding="utf-8"))["layers"]
        window = {} if self.window_s is None else {"window_s": self.window_s}
        text = json.dumps({**self.key, "layers": layers, **window}, indent=2)
        atomic_write_text(description, text, share_with_group=True)

    def length(self, content: str) -> int | None:
        """Samples of a track that has any row here, at the encoder's rate; None if unknown."""
        for folder, packs in self._places:
            for place in packs.find(content):
                return place.n_samples
            if (n_samples := _length_in(folder, content)) is not None:
                return n_samples
            for place in packs.refresh().find(content):  # packed since, by another process
                return place.n_samples
        return None

    def has(self, content: str, spans: Sequence) -> bool:
        """Whether a track's row for these segments is there (without checking it)."""
        cut = cut_digest(spans)
        return any(
            packs.find(content, cut)
            or self._path(folder, content, spans).exists()
            or packs.refresh().find(content, cut)
            for folder, packs in self._places
        )

    def read(self, content: str, spans: Sequence) -> Row | None:
        """Read a track's tokens for the given segments, or None when they aren't stored.

        A row whose checksum is wrong is named in the log, deleted and counted as not stored.
        """
        cut = cut_digest(spans)
        for folder, packs in self._places:
            row = self._read_packed(packs, content, cut, spans)
            row = row or self._read_file(
                folder / content[:2] / f"{content}-{cut}.safetensors", content, spans
            )
            if row is None:  # packed since, by another process
                row = self._read_packed(packs.refresh(), content, cut, spans)
            if row is None:
                continue
            tokens, info = row
            if folder == self.fallback:
                tokens = tokens[:, self.layers]
            return Row(
                tokens,
                info["spans"],
                info["counts"],
                info["silent"],
                info["seconds"],
                info.get("peak_bytes", 0),
                tuple(info.get("notes", ())),
            )
        whole = self.read(content, spans.whole) if isinstance(spans, PickedSpans) else None
        return None if whole is None else pick_row(whole, spans)

    def _read_packed(self, packs: Packs, content: str, cut: str, spans) -> tuple | None:
        """Tokens and description of a packed row; a damaged one is named and counts as deleted."""
        for place in packs.find(content, cut):
            try:
                tokens, meta = parse(packs.read(place))
                return _checked(tokens, meta, content, spans, place.n_samples)
            except FileNotFoundError:  # pruned meanwhile
                continue
            except (ValueError, KeyError, TypeError) as error:
                name = f"{packs.rows_file(place.pack)}:{place.key}"
                log.warning("damaged row %s (%s): it will be encoded again", name, error)
                self.damaged.append(name)
                packs.delete(place)
        return None

    def _read_file(self, path: Path, content: str, spans) -> tuple | None:
        """Tokens and description of a row in a file of its own; a damaged one is deleted."""

        def read():
            with safe_open(path, "numpy") as file:
                return file.get_tensor("tokens"), file.metadata()

        for last in (False, True):  # twice: another thread or process may just have replaced it
            try:
                return _checked(*try_again(read), content, spans)
            except FileNotFoundError:
                return None
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                if last:
                    log.warning("damaged row %s (%s): it will be encoded again", path, error)
                    self.damaged.append(str(path))
                    remove_damaged(path)
        return None

    def write(self, content: str, n_samples: int, row: Row) -> None:
        """Store a track's row, whole or not at all; a second writer changes nothing.

        Raises
        ------
        ValueError
            When a value is NaN or infinite: such rows are never stored.
        """
        if not np.isfinite(row.tokens).all():
            raise ValueError(f"non-finite embeddings for {content}")
        tokens = np.ascontiguousarray(row.tokens, np.float32)
        # Looked up before the file is there: what is packed from then on may be this row itself.
        packed = self.packs.find(content, cut_digest(row.spans))
        if any(self._holds(place, content, row.spans, tokens) for place in packed):
            return
        path = self._path(self.folder, content, row.spans)
        make_group_folder(path.parent)
        self._describe(self.folder, self.layers)
        info = {
            "content": content,
            "spans": [list(map(int, span)) for span in row.spans],
            "counts": list(map(int, row.counts)),
            "silent": bool(row.silent),
            "seconds": round(float(row.seconds), 6),
            "peak_bytes": int(row.peak_bytes),
            **({"notes": list(row.notes)} if row.notes else {}),
        }
        text = json.dumps(info)
        meta = {
            "n_samples": str(n_samples),
            "checksum": checksum_of(tokens, text),
            "info": text,
            "n_samples_checksum": digest_of([content, int(n_samples)]),
        }
        atomic_write(
            path, lambda aside: save_tensors({"tokens": tokens}, aside, meta), share_with_group=True
        )
        for place in packed:  # replaced by the new one
            self.packs.delete(place)

    def _holds(self, place: Place, content: str, spans: Sequence, tokens: np.ndarray) -> bool:
        """Whether a pack has a track's sound row with these tokens."""
        try:
            found, meta = parse(self.packs.read(place))
            return np.array_equal(_checked(found, meta, content, spans, place.n_samples)[0], tokens)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def pack(self) -> int:
        """Move the rows that have files of their own into packs.

        Another process that packs this collection at the moment is left alone. A row is deleted as
        a file only after it has been read back from its pack.

        Returns
        -------
        int
            Rows moved. Damaged rows, and those by versions without a checksum of the length, stay.
        """
        files = list(self.folder.glob("??/*.safetensors"))
        if not files:
            return 0
        name = f"pack-{digest_of(str(self.folder.relative_to(self.root)))}.lock"
        lock = file_lock(self.root / "locks" / name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return 0
        try:
            self.packs.remove_unfinished()
            self.packs.refresh()
            dated = []
            for path in files:
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    dated.append((max(stat.st_atime, stat.st_mtime), path))
            n_moved, rows, n_bytes = 0, [], 0
            for used, path in sorted(dated):  # rows of an age share a pack: prune deletes packs
                if (row := self._for_pack(path, used)) is None:
                    continue
                if self._is_packed(*row[:2], row[-1]):  # by a process that was then killed
                    remove_damaged(path)
                    continue
                rows.append(row)
                n_bytes += len(row[-1])
                if len(rows) >= MAX_ROWS or n_bytes >= MAX_BYTES:
                    n_moved += self._move(rows)
                    rows, n_bytes = [], 0
            return n_moved + (self._move(rows) if rows else 0)
        finally:
            lock.release()

    def _is_packed(self, content: str, cut: str, data: bytes) -> bool:
        """Whether a pack has this row, with the same bytes."""
        with contextlib.suppress(FileNotFoundError):
            return any(self.packs.read(place) == data for place in self.packs.find(content, cut))
        return False

    def _for_pack(self, path: Path, used: float) -> tuple | None:
        """One row as `Packs.add` takes it; None when it has to stay where it is."""
        try:
            data = try_again(path.read_bytes)
            tokens, meta = parse(data)
            info = json.loads(meta["info"])
            content, cut = info["content"], cut_digest(info["spans"])
            _checked(tokens, meta, content, info["spans"])
            if path.stem != f"{content}-{cut}" or len(bytes.fromhex(content)) != 32:
                return None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # read() names it
        return content, cut, int(meta["n_samples"]), used, data

    def _move(self, rows: list[tuple]) -> int:
        """Pack rows, and delete the files of those that can be read from their pack."""
        places, n_moved = self.packs.add(rows), 0
        for place, row in zip(places, rows, strict=True):
            if self.packs.read(place) != row[-1]:
                self.packs.delete(place)
                continue
            for other in self.packs.find(place.content, place.cut):
                if other.pack != place.pack:  # written again since it was packed
                    self.packs.delete(other)
            remove_damaged(self.folder / place.content[:2] / f"{place.key}.safetensors")
            n_moved += 1
        if places:
            with contextlib.suppress(OSError):  # the rows' time of last use, for prune
                os.utime(self.packs.rows_file(places[0].pack), (max(row[3] for row in rows),) * 2)
        return n_moved

    def bytes_of(self, content: str, spans: Sequence) -> int:
        """Size of a track's row on disk (0 when it isn't stored)."""
        cut = cut_digest(spans)
        for folder, packs in self._places:
            for place in packs.find(content, cut):
                return place.size
            with contextlib.suppress(FileNotFoundError):
                return self._path(folder, content, spans).stat().st_size
            for place in packs.refresh().find(content, cut):
                return place.size
        if isinstance(spans, PickedSpans):
            return round(self.bytes_of(content, spans.whole) * spans.share)
        return 0

    def rows(self) -> Iterator[tuple[str, str, Row]]:
        """All rows as (content, digest of the cut, row), in this order; damaged ones left out."""
        found: dict[str, Path | Place] = {p.stem: p for p in self.folder.glob("??/*.safetensors")}
        found |= {place.key: place for place in self.packs.places()}
        for key, where in sorted(found.items()):
            name = where
            try:
                if isinstance(where, Place):
                    name = f"{self.packs.rows_file(where.pack)}:{key}"
                    _, meta = parse(self.packs.read(where))
                else:
                    with safe_open(where, "numpy") as file:
                        meta = file.metadata()
                spans = json.loads(meta["info"])["spans"]
                if key != f"{key[:64]}-{cut_digest(spans)}":
                    raise ValueError("its name says another cut")
            except FileNotFoundError:  # deleted meanwhile
                continue
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                log.warning("damaged row %s (%s): left out", name, error)
                self.damaged.append(str(name))
                continue
            row = self.read(key[:64], spans)
            if row is not None:
                content, _, cut = key.partition("-")
                yield content, cut, row

    def to_dataset(self, *, contents: Sequence[str] | None = None, streaming: bool = False):
        """The rows as a `datasets.Dataset`: one row a token and layer.

        Parameters
        ----------
        contents : only these tracks (see `Store.content`)
        streaming : return an IterableDataset that reads as it goes, for stores beyond the memory

        Returns
        -------
        datasets.Dataset or IterableDataset
            content (SHA-256 of the file), cut (a digest of how the track is cut),
            segment (number within the track), start_s, end_s, layer, embedding (D, float32),
            silent. A track cut in several ways (--seg 10 and --seg 30) has its rows for each.
            With pooled frames a token is a frame, and several share a segment.
        """
        from tune.store.to_dataset import to_dataset

        return to_dataset(self, contents, streaming)

    @staticmethod
    def _path(folder: Path, content: str, spans: Sequence) -> Path:
        """The file of a track's row for these segments."""
        return folder / content[:2] / f"{content}-{cut_digest(spans)}.safetensors"


def _length_in(folder: Path, content: str) -> int | None:
    """A track's length by its rows that have files of their own."""
    around = folder / content[:2]
    try:
        names = os.listdir(around)  # a pattern's regular expression would cost more than the rest
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    start = f"{content}-"
    for name in sorted(name for name in names if name.startswith(start)):
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(around / name, "numpy") as file:
                meta = file.metadata()
            n_samples = int(meta["n_samples"])
            check = digest_of([content, n_samples])
            if meta.get("n_samples_checksum", check) == check:  # older rows have none
                return n_samples
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            continue  # a damaged row is found, named and replaced by read()
    return None


def _checked(
    tokens: np.ndarray, meta: dict, content: str, spans, n_samples: int | None = None
) -> tuple[np.ndarray, dict]:
    """The tokens and the description of a row; ValueError when it isn't this one, or damaged."""
    if checksum_of(tokens, meta["info"]) != meta["checksum"]:
        raise ValueError("checksum differs")
    info = json.loads(meta["info"])
    if info.get("content", content) != content or not _equal(info["spans"], spans):
        raise ValueError("it is another track's, or cut otherwise")
    if n_samples is not None:  # by the index, which has a checksum of its own
        sound = int(meta["n_samples"]) == n_samples
    else:
        check = digest_of([content, int(meta["n_samples"])])
        sound = "content" not in info or meta["n_samples_checksum"] == check
    if not sound:
        raise ValueError("checksum of the length differs")
    return tokens, info


def file_lock(path: Path) -> FileLock:
    """A lock of this process, whose file the group may open where it may write to the folder."""
    shared = path.parent.stat().st_mode & stat.S_IWGRP
    mode = {"mode": 0o664} if shared else {}
    return FileLock(path, thread_local=False, **mode)  # one thread takes it, another releases it


def _link(path: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no such thing."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:
        atomic_write(target, lambda aside: shutil.copyfile(path, aside), share_with_group=True)


def remove_damaged(path: Path) -> None:
    """Delete a damaged file; where that isn't allowed it stays, and is found again."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s can't be removed: %s", path, error.strerror)


def _equal(kept: Sequence, wanted: Sequence) -> bool:
    """Whether two lists of spans are the same."""
    return [tuple(map(int, span)) for span in kept] == [tuple(map(int, span)) for span in wanted]


def digest_of(value) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def checksum_of(tokens: np.ndarray, info: str) -> str:
    """Digest of an array's shape and bytes, and of what is written about it."""
    digest = hashlib.blake2b(f"{tokens.shape} {info}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(tokens).tobytes())
    return digest.hexdigest()
