"""List the collections of a store, and delete rows from it on request.

The command line is `tune.store.command`.
"""

import contextlib
import json
import logging
import shutil
import time
from pathlib import Path

from tune.store.collection import Collection
from tune.store.packs import Packs
from tune.store.stale_files import remove_stale_files
from tune.store.store import Store, is_old

log = logging.getLogger(__name__)


def describe(root: Path) -> list[dict]:
    """List the collections of a store with tracks, rows, size and time of last use.

    Returns
    -------
    list of dict
        path, encoder, precision, tokens, channels, layers, tracks, rows, bytes, used (seconds since
        epoch), old (whether another version of TUNE made it, which this one reads no rows from but
        those it can take over).
    """
    found = []
    for file in sorted(Path(root).glob("*/layers-*/collection.json")):
        try:
            key = json.loads(file.read_text(encoding="utf-8"))
            shown = {k: str(key[k]) for k in ("encoder", "precision", "tokens")}
            shown |= {"channels": key.get("channels", "mix"), "old": is_old(key)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("unreadable %s: %r", file, error)
            continue
        rows, stats = list(file.parent.glob("??/*.safetensors")), []
        keys = {row.stem for row in rows}
        for row in rows:
            with contextlib.suppress(FileNotFoundError):  # replaced or deleted meanwhile
                stats.append(row.stat())
        packs = _packs_of(file.parent)
        keys.update(*(names for *_, names in packs))
        found.append(
            {
                "path": file.parent,
                **shown,
                "layers": file.parent.name.removeprefix("layers-"),
                "tracks": len({key[:64] for key in keys}),
                "rows": len(keys),
                "bytes": sum(s.st_size for s in stats) + sum(size for _, _, size, _ in packs),
                "used": max(
                    [0.0, *(max(s.st_atime, s.st_mtime) for s in stats), *(u for u, *_ in packs)]
                ),
            }
        )
    return found


def boundaries(root: Path) -> dict:
    """Count the tracks whose boundaries `--seg structure` found, and the bytes of all of these."""
    files, n_bytes = list(Path(root).glob("boundaries/*/??/*.json")), 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # replaced or deleted meanwhile
            n_bytes += file.stat().st_size
    return {"tracks": len({file.stem for file in files}), "bytes": n_bytes}


def prune(
    root: Path,
    *,
    encoder: str | None = None,
    older_than_days: float | None = None,
    old: bool = False,
    dry_run: bool = False,
) -> list[dict]:
    """Delete collections by encoder name, days since last use and version, and temporary files.

    Returns the collections that were (or, with `dry_run`, would be) deleted. With no condition none
    is: only temporary files of dead writers go.
    """
    now, gone = time.time(), []
    if encoder is not None or older_than_days is not None or old:
        for item in describe(root):
            unused = older_than_days is None or now - item["used"] > older_than_days * 86400
            mine = encoder is None or item["encoder"] == encoder
            if mine and unused and (item["old"] or not old):
                gone.append(item)
                if not dry_run:
                    shutil.rmtree(item["path"])
                    with contextlib.suppress(OSError):  # other layers are still there
                        item["path"].parent.rmdir()
    if not dry_run:
        remove_stale_files(root, Store(root).claim)
    return gone


def evict_least_recently_used(
    root: Path,
    max_bytes: int,
    *,
    encoder: str | None = None,
    older_than_days: float | None = None,
    dry_run: bool = False,
) -> list[dict]:
    """Delete the least recently used rows until the store has at most `max_bytes`.

    The time of last use is the later of the file's times of access (to a day if mounted `relatime`,
    none with `noatime`) and of writing. A pack is deleted as a whole, by its own
    times, so that up to one pack more than asked for goes.

    Parameters
    ----------
    max_bytes : of all rows and boundaries together; boundaries are never deleted
    encoder, older_than_days : touch only this encoder's rows, and only those unused so long
    dry_run : delete nothing

    Returns
    -------
    list of dict
        As `describe`, for the collections that lose rows: rows and bytes deleted (or to be
        deleted), tracks without any row left, and the latest use of a deleted row.
    """
    now, items = time.time(), describe(root)
    excess = sum(item["bytes"] for item in items) + boundaries(root)["bytes"] - max_bytes
    found = []  # time of last use, collection, its file or pack, bytes, rows
    for i, item in enumerate(items):
        for path in item["path"].glob("??/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append(
                    (max(stat.st_atime, stat.st_mtime), i, path, stat.st_size, [path.stem])
                )
        found += [(used, i, *rest) for used, *rest in _packs_of(item["path"])]
    left: dict = {}
    for _, i, *_, keys in found:
        for key in keys:
            left[i, key[:64]] = left.get((i, key[:64]), 0) + 1
    gone: dict[int, dict] = {}
    for used, i, path, size, keys in sorted(found):
        if excess <= 0 or (older_than_days is not None and now - used <= older_than_days * 86400):
            break
        if encoder is not None and items[i]["encoder"] != encoder:
            continue
        if not dry_run and path.suffix == ".rows":
            Packs(items[i]["path"]).remove(path.stem)
        elif not dry_run:
            path.unlink(missing_ok=True)
        excess -= size
        part = gone.setdefault(i, items[i] | {"rows": 0, "bytes": 0, "tracks": 0})
        for key in keys:
            left[i, key[:64]] -= 1
            part["tracks"] += left[i, key[:64]] == 0
        part |= {"rows": part["rows"] + len(keys), "bytes": part["bytes"] + size, "used": used}
    if not dry_run:
        remove_stale_files(root, Store(root).claim)
    return list(gone.values())


def _packs_of(folder: Path) -> list[tuple[float, Path, int, list[str]]]:
    """Each pack of a collection: time of last use, its file, bytes with its index, rows' names."""
    packs, keys = Packs(folder), {}
    for place in packs.places():
        keys.setdefault(place.pack, []).append(place.key)
    found = []
    for path in folder.glob("packs/*.rows"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            size = stat.st_size + sum(
                p.stat().st_size for p in path.parent.glob(f"{path.stem}.[ig]*")
            )
            found.append((max(stat.st_atime, stat.st_mtime), path, size, keys.get(path.stem, [])))
    return found


def pack(root: Path) -> int:
    """Move the rows of all collections into packs (see `tune.store.packs`); return their number."""
    n_moved = 0
    for file in sorted(Path(root).glob("*/layers-*/collection.json")):
        try:
            key = json.loads(file.read_text(encoding="utf-8"))
            layers, window_s = key.pop("layers"), key.pop("window_s", None)
            collection = Collection(Path(root), file.parent, None, key, layers, window_s)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("unreadable %s: %r", file, error)
            continue
        n_moved += collection.pack()
    return n_moved
