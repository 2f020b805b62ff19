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

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from tune.audio.decode import DECODER, RESAMPLER
from tune.audio.hashing import HashCache
from tune.store.collection import Collection, digest_of, file_lock, remove_damaged
from tune.store.stale_files import remove_stale_files_daily
from tune.system.files import atomic_write_text, cache_folder, make_group_folder, slug

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
        older = sorted(self.root.glob(f"*-{digest_of(nameless)}")) if channels == "mix" else []
        newer = {"decoder": DECODER, "channels": channels}
        key, digest = {**key, **newer}, digest_of({**nameless, **newer})
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
            if digest_of([content, key, kept["spans"]]) != kept["checksum"]:
                raise ValueError("checksum differs")
            return [(start, end) for start, end in kept["spans"]]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            log.warning("damaged boundaries %s (%s): they will be computed again", path, error)
            remove_damaged(path)
            return None

    def write_boundaries(
        self, content: str, rule: dict, sample_rate: int, spans: Sequence[tuple[int, int]]
    ) -> None:
        """Store a track's boundaries by structure, atomically."""
        path, key = self._boundaries(content, rule, sample_rate)
        make_group_folder(path.parent)
        spans = [list(map(int, span)) for span in spans]
        text = json.dumps({**key, "spans": spans, "checksum": digest_of([content, key, spans])})
        atomic_write_text(path, text, share_with_group=True)

    def _boundaries(self, content, rule, sample_rate) -> tuple[Path, dict]:
        """The file of a track's boundaries, and their key."""
        key = {**rule, "sample_rate": sample_rate, "resampler": f"soxr {RESAMPLER}"}
        folder = self.root / "boundaries" / f"{slug(rule['rule'])}-{digest_of(key)}"
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
        lock = file_lock(folder / f"{content[2:4]}.lock")
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout:
            return None
        return lock
