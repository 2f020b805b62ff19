"""The embedding store: every segment is encoded once, then read by every experiment.

Layout::

    STORE/<encoder>-<digest>/<layers>/collection.json      what the numbers depend on
    STORE/<encoder>-<digest>/<layers>/ab/<content>-<spans>.safetensors      one track, cut one way
    STORE/<encoder>-<digest>/<layers>/packs/       many such files in one: see `tune.store.packs`
    STORE/boundaries/<digest>/ab/<content>.json            boundaries found by --seg structure
    STORE/locks/ab/cd.lock                                 locks of tracks being encoded

The digest covers encoder weights and code, precision, decoder, resampler, channels and the kind of
token; `content` is the SHA-256 of the audio file, `spans` a digest of the segments' bounds. Two
rules that cut a track alike (60 s segments of a 30 s track and the full track) therefore share its
rows, and all layers stored together serve a request for any of them. Boundaries found by
`--seg structure` are stored apart from the rows: all encoders of one sample rate share them, and a
row is found by its spans without decoding.

Files are written atomically and have a checksum. Readers need no lock. A lock only keeps two agents
from encoding the same track twice; it ends with its process. Temporary files of killed writers are
removed a day later. Nothing is ever unpickled. Files and folders have the group permissions of the
store's own folder.
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

from tune.audio.decode import DECODER, RESAMPLER
from tune.audio.hashing import HashCache
from tune.segments.pick import PickedSpans, pick_row
from tune.store.packs import MAX_BYTES, MAX_ROWS, Packs, Place, cut_digest, parse, try_again
from tune.store.stale_files import remove_stale_files_daily
from tune.system.files import (
    atomic_write,
    atomic_write_text,
    cache_folder,
    make_group_folder,
    save_tensors,
    slug,
)

log = logging.getLogger(__name__)

FORMAT = 1


def default_root() -> Path:
    """Folder of the store when none is named: TUNE_STORE, or tune/store in the user's cache."""
    if os.environ.get("TUNE_STORE"):
        return Path(os.environ["TUNE_STORE"])
    return cache_folder() / "store"


def open(root: str | Path | None = None, **wanted) -> "Collection":
    """Open one collection of a store that is on disk, without its encoder, to read its rows.

    Parameters
    ----------
    root : the store's folder (None: the default store), or a collection's own folder
    wanted : encoder, precision, tokens ("segment", or such as "frame at 1 Hz"), channels ("mix"),
        layers ("all", or such as "4"), as `python -m tune.store list` shows them; as many
        as identify one

    Raises
    ------
    ValueError
        When no collection fits, or several do, with the list of those.
    """
    if unknown := wanted.keys() - {"encoder", "precision", "tokens", "channels", "layers"}:
        raise ValueError(
            f"a collection is named by encoder, precision, tokens, channels and layers, not by "
            f"{min(unknown)}"
        )
    root = Path(root or default_root())
    found, others = [], []
    for file in sorted([*root.glob("collection.json"), *root.glob("*/layers-*/collection.json")]):
        try:
            key = json.loads(file.read_text(encoding="utf-8"))
            layers, window_s = key.pop("layers"), key.pop("window_s", None)
            shown = {k: str(key[k]) for k in ("encoder", "precision", "tokens")}
            shown["channels"] = key.get("channels", "mix")
            ours = not is_old(key)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} can't be read: {error!r}; delete it or restore it") from error
        shown["layers"] = file.parent.name.removeprefix("layers-")
        fits = ours and all(shown[k] == str(v) for k, v in wanted.items() if v is not None)
        text = ", ".join(f"{k}={v!r}" for k, v in shown.items())
        text += "" if ours else f", of another version of TUNE ({version(key)})"
        (found if fits else others).append((text, file.parent, key, layers, window_s))
    if len(found) != 1:
        listed = "; ".join(item[0] for item in found or others) or "the first run creates it"
        many = f"{len(found)} collections match, choose one" if found else "no such collection"
        raise ValueError(f"the store {root}: {many} ({listed})")
    _, folder, key, layers, window_s = found[0]
    return Collection(folder.parent.parent, folder, None, key, layers, window_s)


def is_old(key: dict) -> bool:
    """Say whether a collection's key is another version's: of the rows' format or the decoder."""
    return (key["format"], key.get("decoder", 1)) != (FORMAT, DECODER)


def version(key: dict) -> str:
    """A collection's versions in words."""
    return f"format {key['format']}, decoder {key.get('decoder', 1)}"


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


class Store:
    """A folder of collections.

    Parameters
    ----------
    root : path; created when missing
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        try:
            if not self.root.exists():  # as a file it is none, which its folder says below
                self.root.mkdir(parents=True, exist_ok=True)
            make_group_folder(self.root / "locks")
        except OSError as error:
            raise ValueError(f"the store {self.root} can't be created: {error.strerror}") from error
        self._hashes = HashCache(self.root / "hashes.txt")
        remove_stale_files_daily(self.root, self.claim)

    def content(self, path: str | Path) -> str:
        """SHA-256 of a file, remembered by path, size and modification time.

        Raises
        ------
        tune.audio.AudioError
            When the file is missing, empty, not a regular file or unreadable.
        """
        return self._hashes.get(path)

    def collection(
        self, encoder, layers: Sequence[int], frame_rate: float | None, channels: str = "mix"
    ) -> "Collection":
        """Open (or begin) the rows of one encoder, precision, set of layers and kind of token.

        Parameters
        ----------
        channels : what becomes of a file's channels: see `tune.audio.read_audio`
        """
        key = {
            "format": FORMAT,
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "precision": encoder.precision,
            "sample_rate": encoder.sample_rate,
            "resampler": f"soxr {RESAMPLER}",
            "tokens": "segment" if frame_rate is None else f"frame at {frame_rate:g} Hz",
        }
        # The name is for people; the same weights under another name are the same rows.
        nameless = {k: v for k, v in key.items() if k != "encoder"}
        older = sorted(self.root.glob(f"*-{_digest(nameless)}")) if channels == "mix" else []
        newer = {"decoder": DECODER, "channels": channels}
        key, digest = {**key, **newer}, _digest({**nameless, **newer})
        existing = sorted(self.root.glob(f"*-{digest}"))
        folder = existing[0] if existing else self.root / f"{slug(encoder.name)}-{digest}"
        every = list(range(encoder.n_layers + 1))
        fallback = folder / "layers-all" if list(layers) != every else None
        name = "layers-all" if list(layers) == every else "layers-" + "-".join(map(str, layers))
        window_s = None
        if frame_rate is not None:
            window_s = encoder.pool_width(frame_rate) / encoder.frame_rate
        before = older[0] if older else None
        return Collection(self.root, folder / name, fallback, key, list(layers), window_s, before)

    def read_boundaries(self, content: str, rule: dict, sample_rate: int) -> list | None:
        """Read a track's boundaries by structure, or None if they aren't stored.

        Parameters
        ----------
        content : as `content()` returns
        rule : dict of JSON values
            Everything that the boundaries depend on besides audio and sample rate.
        sample_rate : in Hz

        Returns
        -------
        list of (start, end) in samples, or None
            A damaged file is named in the log, deleted and counted as not stored.
        """
        path, key = self._boundaries(content, rule, sample_rate)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if _digest([content, key, kept["spans"]]) != kept["checksum"]:
                raise ValueError("checksum differs")
            return [(start, end) for start, end in kept["spans"]]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            log.warning("damaged boundaries %s (%s): they will be computed again", path, error)
            _remove(path)
            return None

    def write_boundaries(
        self, content: str, rule: dict, sample_rate: int, spans: Sequence[tuple[int, int]]
    ) -> None:
        """Store a track's boundaries by structure, atomically."""
        path, key = self._boundaries(content, rule, sample_rate)
        make_group_folder(path.parent)
        spans = [list(map(int, span)) for span in spans]
        text = json.dumps({**key, "spans": spans, "checksum": _digest([content, key, spans])})
        atomic_write_text(path, text, share_with_group=True)

    def _boundaries(self, content, rule, sample_rate) -> tuple[Path, dict]:
        """The file of a track's boundaries, and their key."""
        key = {**rule, "sample_rate": sample_rate, "resampler": f"soxr {RESAMPLER}"}
        folder = self.root / "boundaries" / f"{slug(rule['rule'])}-{_digest(key)}"
        return folder / content[:2] / f"{content}.json", key

    def claim(self, content: str, timeout_s: float = 0.0) -> FileLock | None:
        """Try to become the one process that encodes a track.

        Returns
        -------
        FileLock or None
            A lock to `release()`, or None when another process holds it. The lock is the
            system's: it goes with its process, however that ends. Tracks whose hashes begin
            alike share a lock, so that there are 65,536 of them: with 16 workers that hold 8
            tracks each, one track in 500 is put off.
        """
        folder = self.root / "locks" / content[:2]
        make_group_folder(folder)
        lock = _lock(folder / f"{content[2:4]}.lock")
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout:
            return None
        return lock


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

        try:
            return _checked(*try_again(read), content, spans)
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("damaged row %s (%s): it will be encoded again", path, error)
            self.damaged.append(str(path))
            _remove(path)
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
        path = self._path(self.folder, content, row.spans)
        make_group_folder(path.parent)
        self._describe(self.folder, self.layers)
        tokens = np.ascontiguousarray(row.tokens, np.float32)
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
            "checksum": _checksum(tokens, text),
            "info": text,
            "n_samples_checksum": _digest([content, int(n_samples)]),
        }
        atomic_write(
            path, lambda aside: save_tensors({"tokens": tokens}, aside, meta), share_with_group=True
        )
        for place in self.packs.find(content, cut_digest(row.spans)):  # replaced by the new one
            self.packs.delete(place)

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
        name = f"pack-{_digest(str(self.folder.relative_to(self.root)))}.lock"
        lock = _lock(self.root / "locks" / name)
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
                    _remove(path)
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
            _remove(self.folder / place.content[:2] / f"{place.key}.safetensors")
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
            check = _digest([content, n_samples])
            if meta.get("n_samples_checksum", check) == check:  # older rows have none
                return n_samples
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            continue  # a damaged row is found, named and replaced by read()
    return None


def _checked(
    tokens: np.ndarray, meta: dict, content: str, spans, n_samples: int | None = None
) -> tuple[np.ndarray, dict]:
    """The tokens and the description of a row; ValueError when it isn't this one, or damaged."""
    if _checksum(tokens, meta["info"]) != meta["checksum"]:
        raise ValueError("checksum differs")
    info = json.loads(meta["info"])
    if info.get("content", content) != content or not _equal(info["spans"], spans):
        raise ValueError("it is another track's, or cut otherwise")
    if n_samples is not None:  # by the index, which has a checksum of its own
        sound = int(meta["n_samples"]) == n_samples
    else:
        check = _digest([content, int(meta["n_samples"])])
        sound = "content" not in info or meta["n_samples_checksum"] == check
    if not sound:
        raise ValueError("checksum of the length differs")
    return tokens, info


def _lock(path: Path) -> FileLock:
    """A lock, whose file the group may open where it may write to the folder."""
    shared = path.parent.stat().st_mode & stat.S_IWGRP
    return FileLock(path, mode=0o664) if shared else FileLock(path)


def _link(path: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no such thing."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:
        atomic_write(target, lambda aside: shutil.copyfile(path, aside), share_with_group=True)


def _remove(path: Path) -> None:
    """Delete a damaged file; where that isn't allowed it stays, and is found again."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s can't be removed: %s", path, error.strerror)


def _equal(kept: Sequence, wanted: Sequence) -> bool:
    """Whether two lists of spans are the same."""
    return [tuple(map(int, span)) for span in kept] == [tuple(map(int, span)) for span in wanted]


def _digest(value) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _checksum(tokens: np.ndarray, info: str) -> str:
    """Digest of an array's shape and bytes, and of what is written about it."""
    digest = hashlib.blake2b(f"{tokens.shape} {info}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(tokens).tobytes())
    return digest.hexdigest()
