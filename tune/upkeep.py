"""Upkeep of the embedding store: `python -m tune.store list | size | prune`."""

import contextlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tune.cli import Parser
from tune.store import default_root

log = logging.getLogger(__name__)

STALE_S = 24 * 3600  # a temporary file older than this belongs to no living writer


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


def boundaries(root: Path) -> dict:
    """Count the tracks whose boundaries `--seg structure` found, and the bytes of all of these."""
    files, n_bytes = list(Path(root).glob("boundaries/*/??/*.json")), 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # replaced or deleted meanwhile
            n_bytes += file.stat().st_size
    return {"tracks": len({file.stem for file in files}), "bytes": n_bytes}


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
    for pattern in ("*/layers-*/**/.*.tmp", "boundaries/**/.*.tmp"):
        for aside in Path(root).glob(pattern):
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
        rows = sum(item["bytes"] for item in describe(args.store))
        print(rows + boundaries(args.store)["bytes"])
    elif args.verb == "prune":
        gone = prune(
            args.store, encoder=args.encoder, older_than_days=args.older_than, dry_run=args.dry_run
        )
        if args.encoder is None and args.older_than is None:
            print("nothing to prune: name --encoder and/or --older_than", file=sys.stderr)
            return 2
        _print_collections(gone, "would be deleted" if args.dry_run else "deleted")
    else:
        items, cuts = describe(args.store), boundaries(args.store)
        total = _human(sum(item["bytes"] for item in items))
        _print_collections(items, f"{args.store}: {len(items)} collections, {total}")
        if cuts["tracks"]:
            print(f"boundaries (--seg structure) of {cuts['tracks']:,} tracks: "
                  f"{_human(cuts['bytes'])}")  # fmt: skip
    return 0
