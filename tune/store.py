"""The embedding store: every segment is encoded once, then read by every experiment.

Layout::

    STORE/<encoder>-<digest>/<layers>/collection.json      what the numbers depend on
    STORE/<encoder>-<digest>/<layers>/ab/<content>-<spans>.safetensors      one track, cut one way
    STORE/locks/ab.lock                                    who is encoding what right now

The digest covers encoder weights and code, precision, resampler and the kind of token; `content`
is the SHA-256 of the audio file, `spans` a digest of the segments' bounds. Two rules that cut a
track alike (60 s segments of a 30 s track and the full track) therefore share its rows, and all
layers stored together serve a request for any of them.

A file appears whole or not at all (written aside, then renamed) and carries a checksum. Readers
need no lock. A lock only keeps two agents from encoding the same track twice; it dies with its
process. Nothing is ever unpickled.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tune.audio import RESAMPLER
from tune.cli import Parser
from tune.hashing import HashCache

log = logging.getLogger(__name__)

FORMAT = 1
STALE_S = 24 * 3600  # a temporary file older than this belongs to no living writer


def default_root() -> Path:
    """Folder of the store when none is named: TUNE_STORE, or tune/store in the user's cache."""
    if os.environ.get("TUNE_STORE"):
        return Path(os.environ["TUNE_STORE"])
    return cache_folder() / "store"


def cache_folder() -> Path:
    """The user's cache folder for TUNE: $XDG_CACHE_HOME/tune or ~/.cache/tune."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tune"


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
    """

    tokens: np.ndarray
    spans: list
    counts: list
    silent: bool
    seconds: float


class Store:
    """A folder of collections.

    Parameters
    ----------
    root : path; created when missing
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"the store {self.root} can't be made: {error.strerror}") from error
        self._hashes = HashCache(self.root / "hashes.sqlite")

    def content(self, path: str | Path) -> str:
        """SHA-256 of a file, remembered by path, size and modification time.

        Raises
        ------
        tune.audio.AudioError
            When the file is missing, empty, not a regular file or unreadable.
        """
        return self._hashes.get(Path(path))

    def collection(self, encoder, layers: Sequence[int], frame_rate: float | None) -> "Collection":
        """Open (or begin) the rows of one encoder, precision, set of layers and kind of token."""
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
        named = {k: v for k, v in key.items() if k != "encoder"}
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]
        existing = sorted(self.root.glob(f"*-{digest}"))
        folder = existing[0] if existing else self.root / f"{_safe(encoder.name)}-{digest}"
        every = list(range(encoder.n_layers + 1))
        fallback = folder / "layers-all" if list(layers) != every else None
        name = "layers-all" if list(layers) == every else "layers-" + "-".join(map(str, layers))
        return Collection(self.root, folder / name, fallback, key, list(layers))

    def claim(self, content: str, timeout_s: float = 0.0) -> FileLock | None:
        """Try to become the one process that encodes a track.

        Returns
        -------
        FileLock or None
            A lock to `release()`, or None when another process holds it. The lock is the
            system's: it goes with its process, however that ends. Tracks whose hashes begin
            alike share a lock, so that there are 256 of them.
        """
        lock = FileLock(self.root / "locks" / f"{content[:2]}.lock")
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout:
            return None
        return lock


class Collection:
    """The rows of one encoder, precision, set of layers and kind of token. See `Store`."""

    def __init__(self, root: Path, folder: Path, fallback: Path | None, key: dict, layers: list):
        self.root, self.folder, self.fallback = root, folder, fallback
        self.key, self.layers = key, layers
        self.damaged: list[str] = []

    def length(self, content: str) -> int | None:
        """Samples of a track that has any row here, at the encoder's rate; None if unknown."""
        for folder in filter(None, (self.folder, self.fallback)):
            for path in sorted((folder / content[:2]).glob(f"{content}-*.safetensors")):
                try:
                    with safe_open(path, "numpy") as file:
                        return int(file.metadata()["n_samples"])
                except (SafetensorError, OSError, KeyError, TypeError, ValueError):
                    continue  # a damaged row is found, named and replaced by read()
        return None

    def has(self, content: str, spans: Sequence) -> bool:
        """Say whether a track's row for these segments is there (without checking it)."""
        return any(
            self._path(folder, content, spans).exists()
            for folder in filter(None, (self.folder, self.fallback))
        )

    def read(self, content: str, spans: Sequence) -> Row | None:
        """Read a track's tokens for the given segments, or None when they aren't stored.

        A row whose checksum is wrong is named in the log, deleted and counted as not stored.
        """
        for folder in filter(None, (self.folder, self.fallback)):
            path = self._path(folder, content, spans)
            try:
                with safe_open(path, "numpy") as file:
                    tokens, meta = file.get_tensor("tokens"), file.metadata()
                if _checksum(tokens, meta["info"]) != meta["checksum"]:
                    raise ValueError("checksum differs")
                info = json.loads(meta["info"])
            except FileNotFoundError:
                continue
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                log.warning("damaged row %s (%s): it will be encoded again", path, error)
                self.damaged.append(str(path))
                path.unlink(missing_ok=True)
                continue
            if folder == self.fallback:
                tokens = tokens[:, self.layers]
            return Row(tokens, info["spans"], info["counts"], info["silent"], info["seconds"])
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
        path.parent.mkdir(parents=True, exist_ok=True)
        description = self.folder / "collection.json"
        if not description.exists():
            text = json.dumps({**self.key, "layers": self.layers}, indent=2)
            _write_whole(description, lambda aside: aside.write_text(text, encoding="utf-8"))
        tokens = np.ascontiguousarray(row.tokens, np.float32)
        info = {
            "spans": [list(map(int, span)) for span in row.spans],
            "counts": list(map(int, row.counts)),
            "silent": bool(row.silent),
            "seconds": round(float(row.seconds), 6),
        }
        text = json.dumps(info)
        meta = {"n_samples": str(n_samples), "checksum": _checksum(tokens, text), "info": text}
        _write_whole(path, lambda aside: save_file({"tokens": tokens}, aside, meta))

    def bytes_of(self, content: str, spans: Sequence) -> int:
        """Size of a track's row on disk (0 when it isn't stored)."""
        for folder in filter(None, (self.folder, self.fallback)):
            with contextlib.suppress(FileNotFoundError):
                return self._path(folder, content, spans).stat().st_size
        return 0

    @staticmethod
    def _path(folder: Path, content: str, spans: Sequence) -> Path:
        """Where a track's row for these segments lies."""
        text = json.dumps([list(map(int, span)) for span in spans])
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return folder / content[:2] / f"{content}-{digest}.safetensors"


def _write_whole(path: Path, write) -> None:
    """Write a file aside, flush it to disk and rename it, so that no reader sees half of it."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(aside)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _checksum(tokens: np.ndarray, info: str) -> str:
    """Digest of an array's shape and bytes, and of what is written about it."""
    digest = hashlib.blake2b(f"{tokens.shape} {info}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(tokens).tobytes())
    return digest.hexdigest()


def _safe(name: str) -> str:
    """A name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def describe(root: Path) -> list[dict]:
    """List the collections of a store with tracks, rows, size and time of last use.

    Returns
    -------
    list of dict
        path, encoder, precision, tokens, layers, tracks, rows, bytes, used (seconds since epoch).
    """
    found = []
    for file in sorted(Path(root).glob("*/layers-*/collection.json")):
        try:
            key = json.loads(file.read_text(encoding="utf-8"))
            shown = {k: str(key[k]) for k in ("encoder", "precision", "tokens")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("unreadable %s: %r", file, error)
            continue
        rows, stats = list(file.parent.glob("??/*.safetensors")), []
        for row in rows:
            with contextlib.suppress(FileNotFoundError):  # replaced or deleted meanwhile
                stats.append(row.stat())
        found.append({
            "path": file.parent, **shown, "layers": file.parent.name.removeprefix("layers-"),
            "tracks": len({row.name[:64] for row in rows}), "rows": len(rows),
            "bytes": sum(s.st_size for s in stats),
            "used": max((max(s.st_atime, s.st_mtime) for s in stats), default=0.0),
        })  # fmt: skip
    return found


def prune(root: Path, *, encoder: str | None = None, older_than_days: float | None = None,
          dry_run: bool = False) -> list[dict]:  # fmt: skip
    """Delete collections by encoder name and by days since last use, and stale temporary files.

    Returns the collections that were (or, with `dry_run`, would be) deleted. With neither
    condition none is: only temporary files of dead writers go.
    """
    now, gone = time.time(), []
    if encoder is not None or older_than_days is not None:
        for item in describe(root):
            old = older_than_days is None or now - item["used"] > older_than_days * 86400
            if (encoder is None or item["encoder"] == encoder) and old:
                gone.append(item)
                if not dry_run:
                    shutil.rmtree(item["path"])
                    with contextlib.suppress(OSError):  # other layers are still there
                        item["path"].parent.rmdir()
    for aside in Path(root).glob("*/layers-*/**/.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if not dry_run and now - aside.stat().st_mtime > STALE_S:
                aside.unlink()
    return gone


def _human(n_bytes: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _print_collections(items: list[dict], title: str) -> None:
    """Show collections as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for head in ("encoder", "layers", "tokens", "precision"):
        table.add_column(head, overflow="fold")
    for head in ("tracks", "rows", "size", "last used"):
        table.add_column(head, justify="right", overflow="fold")
    for item in items:
        table.add_row(
            item["encoder"], item["layers"], item["tokens"], item["precision"],
            f"{item['tracks']:,}", f"{item['rows']:,}", _human(item["bytes"]),
            time.strftime("%Y-%m-%d", time.localtime(item["used"])),
        )  # fmt: skip
    # In a pipe nothing is folded: names can be searched and copied.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: list, size and prune."""
    parser = Parser(
        prog="python -m tune.store", description="List, size and prune the embedding store."
    )
    parser.add_argument("verb", nargs="?", choices=["list", "size", "prune"], default="list",
                        help="list: collections with their tracks, rows and sizes; size: bytes of "
                        "the whole store, as one number; prune: delete the collections that fit "
                        "every condition given")  # fmt: skip
    parser.add_argument("--store", type=Path, default=default_root(), help="the store's folder")
    cut = parser.add_argument_group("conditions of prune")
    cut.add_argument("--encoder", help="only this encoder's")
    cut.add_argument("--older_than", type=float, metavar="DAYS", help="only if unused this long")
    cut.add_argument("--dry_run", action="store_true", help="say what would go, delete nothing")
    args = parser.parse_args(argv)
    if args.verb != "prune" and (args.encoder or args.older_than is not None or args.dry_run):
        parser.error("--encoder, --older_than and --dry_run belong to prune")
    if not args.store.is_dir():
        print(f"no store at {args.store}: it is made by the first run", file=sys.stderr)
        return 2
    if args.verb == "size":
        print(sum(item["bytes"] for item in describe(args.store)))
    elif args.verb == "prune":
        gone = prune(
            args.store, encoder=args.encoder, older_than_days=args.older_than, dry_run=args.dry_run
        )
        if args.encoder is None and args.older_than is None:
            print("nothing to prune: name --encoder and/or --older_than", file=sys.stderr)
            return 2
        _print_collections(gone, "would be deleted" if args.dry_run else "deleted")
    else:
        items = describe(args.store)
        total = _human(sum(item["bytes"] for item in items))
        _print_collections(items, f"{args.store}: {len(items)} collections, {total}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
