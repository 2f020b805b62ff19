"""Upkeep of the embedding store: `python -m tune.store list | size | prune`.

Nothing is deleted unless `prune` is asked for it.
"""

import contextlib
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tune.cli.parser import Parser
from tune.store.stale_files import sweep
from tune.store.store import Store, default_root, is_old
from tune.system.memory import parse_budget

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
        for row in rows:
            with contextlib.suppress(FileNotFoundError):  # replaced or deleted meanwhile
                stats.append(row.stat())
        found.append(
            {
                "path": file.parent,
                **shown,
                "layers": file.parent.name.removeprefix("layers-"),
                "tracks": len({row.name[:64] for row in rows}),
                "rows": len(rows),
                "bytes": sum(s.st_size for s in stats),
                "used": max((max(s.st_atime, s.st_mtime) for s in stats), default=0.0),
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
        sweep(root, Store(root).claim)
    return gone


def shrink(
    root: Path,
    max_bytes: int,
    *,
    encoder: str | None = None,
    older_than_days: float | None = None,
    dry_run: bool = False,
) -> list[dict]:
    """Delete the rows that were unused longest until the store has at most `max_bytes`.

    When a row was used last is what the file system knows: the later of its times of access (to
    a day, where it is mounted `relatime`; never, `noatime`) and of writing.

    Parameters
    ----------
    max_bytes : of all rows and boundaries together; boundaries are never deleted
    encoder, older_than_days : touch only this encoder's rows, and only those unused so long
    dry_run : delete nothing

    Returns
    -------
    list of dict
        As `describe`, the collections that rows went (or would go) from; rows and bytes are what
        went, tracks those that have no row left in the collection, used the latest use of a row
        that went.
    """
    now, items = time.time(), describe(root)
    excess = sum(item["bytes"] for item in items) + boundaries(root)["bytes"] - max_bytes
    found = []
    for i, item in enumerate(items):
        for path in item["path"].glob("??/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((max(stat.st_atime, stat.st_mtime), i, path, stat.st_size))
    left: dict = {}
    for _, i, path, _ in found:
        left[i, path.name[:64]] = left.get((i, path.name[:64]), 0) + 1
    gone: dict[int, dict] = {}
    for used, i, path, size in sorted(found):
        if excess <= 0 or (older_than_days is not None and now - used <= older_than_days * 86400):
            break
        if encoder is not None and items[i]["encoder"] != encoder:
            continue
        if not dry_run:
            path.unlink(missing_ok=True)
        excess -= size
        part = gone.setdefault(i, items[i] | {"rows": 0, "bytes": 0, "tracks": 0})
        left[i, path.name[:64]] -= 1
        part["tracks"] += left[i, path.name[:64]] == 0
        part |= {"rows": part["rows"] + 1, "bytes": part["bytes"] + size, "used": used}
    if not dry_run:
        sweep(root, Store(root).claim)
    return list(gone.values())


def _human(n_bytes: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _size(text: str) -> int:
    """Read a size such as 50GB; 0 empties the store."""
    if text.strip() in ("0", "0B"):
        return 0
    if re.fullmatch(r"[\d.\s]*", text):
        raise ValueError(f"expected a size with its unit such as 50GB, got {text!r}")
    return parse_budget(text, 0)


def _print_collections(items: list[dict], title: str) -> None:
    """Show collections as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for head in ("encoder", "layers", "tokens", "channels", "precision"):
        table.add_column(head, overflow="fold")
    for head in ("tracks", "rows", "size", "last used"):
        table.add_column(head, justify="right", overflow="fold")
    for item in items:
        table.add_row(
            item["encoder"],
            item["layers"],
            item["tokens"],
            item["channels"],
            item["precision"] + (", old" if item["old"] else ""),
            f"{item['tracks']:,}",
            f"{item['rows']:,}",
            _human(item["bytes"]),
            time.strftime("%Y-%m-%d", time.localtime(item["used"])),
        )
    # In a pipe nothing is folded: names can be searched and copied.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: list, size and prune."""
    parser = Parser(
        prog="python -m tune.store", description="List, size and prune the embedding store."
    )
    parser.add_argument(
        "verb",
        nargs="?",
        choices=["list", "size", "prune"],
        default="list",
        help="list: collections with their tracks, rows and sizes; size: bytes of "
        "the whole store, as one number; prune: delete the collections that fit "
        "every condition given, or with --max_size their rows, those unused "
        "longest first",
    )
    parser.add_argument("--store", type=Path, default=default_root(), help="the store's folder")
    cut = parser.add_argument_group("conditions of prune")
    cut.add_argument("--encoder", help="only this encoder's")
    cut.add_argument("--older_than", type=float, metavar="DAYS", help="only if unused this long")
    cut.add_argument(
        "--old",
        action="store_true",
        help="only what an older version of TUNE made (list says old): rows of files that are "
        "decoded as they were are taken over when they are met, others are encoded again",
    )
    cut.add_argument(
        "--max_size",
        metavar="SIZE",
        help="only until the store is no larger than this, such as 50GB",
    )
    cut.add_argument("--dry_run", action="store_true", help="say what would go, delete nothing")
    args = parser.parse_args(argv)
    conditions = (args.encoder, args.older_than, args.max_size, args.old or None)
    if args.verb != "prune" and (args.dry_run or any(c is not None for c in conditions)):
        parser.error("--encoder, --older_than, --old, --max_size and --dry_run belong to prune")
    if args.old and args.max_size is not None:
        parser.error("--old deletes whole collections, --max_size single rows: give one of them")
    try:
        max_bytes = None if args.max_size is None else _size(args.max_size)
    except ValueError as error:
        parser.error(f"--max_size: {error}")
    if not args.store.is_dir():
        print(f"no store at {args.store}: it is made by the first run", file=sys.stderr)
        return 2
    if args.verb == "size":
        rows = sum(item["bytes"] for item in describe(args.store))
        print(rows + boundaries(args.store)["bytes"])
    elif args.verb == "prune":
        which = {
            "encoder": args.encoder,
            "older_than_days": args.older_than,
            "dry_run": args.dry_run,
        }
        if max_bytes is None:
            gone = prune(args.store, **which, old=args.old)
        else:
            gone = shrink(args.store, max_bytes, **which)
        if all(c is None for c in conditions):
            print(
                "nothing to prune: name --encoder, --older_than, --old and/or --max_size",
                file=sys.stderr,
            )
            return 2
        _print_collections(gone, "would be deleted" if args.dry_run else "deleted")
    else:
        items, cuts = describe(args.store), boundaries(args.store)
        total = _human(sum(item["bytes"] for item in items))
        _print_collections(items, f"{args.store}: {len(items)} collections, {total}")
        if cuts["tracks"]:
            print(
                f"boundaries (--seg structure) of {cuts['tracks']:,} tracks: "
                f"{_human(cuts['bytes'])}"
            )
    return 0
