"""The embedding store from the command line: `python -m tune.store list | size | pack | prune`."""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tune.cli.parser import Parser
from tune.store.prune import boundaries, describe, evict_least_recently_used, pack, prune
from tune.store.store import default_root
from tune.system.memory import parse_budget


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
    """Command line: list, size, pack and prune."""
    parser = Parser(
        prog="python -m tune.store",
        description="List, size, pack and prune the embedding store. To fill it without training\n"
        "anything: python -m tune.store encode --help",
    )
    parser.add_argument(
        "verb",
        nargs="?",
        choices=["list", "size", "pack", "prune"],
        default="list",
        help="list: collections with their tracks, rows and sizes; size: bytes of "
        "the whole store, as one number; pack: move rows that have files of their own into "
        "packs, where finding one costs the same however many there are; prune: delete the "
        "collections that meet all given conditions, or with --max_size their least recently used "
        "rows",
    )
    parser.add_argument("--store", type=Path, default=default_root(), help="the store's folder")
    cut = parser.add_argument_group("conditions of prune")
    cut.add_argument("--encoder", help="only this encoder's")
    cut.add_argument(
        "--older_than", type=float, metavar="DAYS", help="only if unused for this many days"
    )
    cut.add_argument(
        "--old",
        action="store_true",
        help="only collections of an older version of TUNE (list says old). Their rows are "
        "reused where files are decoded as before; other files are encoded again",
    )
    cut.add_argument(
        "--max_size",
        metavar="SIZE",
        help="only until the store is no larger than this, such as 50GB",
    )
    cut.add_argument(
        "--dry_run", action="store_true", help="list what would be deleted, delete nothing"
    )
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
        print(f"no store at {args.store}: the first run creates it", file=sys.stderr)
        return 2
    if args.verb == "size":
        rows = sum(item["bytes"] for item in describe(args.store))
        print(rows + boundaries(args.store)["bytes"])
    elif args.verb == "pack":
        print(f"{pack(args.store):,} rows moved into packs")
    elif args.verb == "prune":
        which = {
            "encoder": args.encoder,
            "older_than_days": args.older_than,
            "dry_run": args.dry_run,
        }
        if max_bytes is None:
            gone = prune(args.store, **which, old=args.old)
        else:
            gone = evict_least_recently_used(args.store, max_bytes, **which)
        if all(c is None for c in conditions):
            print(
                "nothing to prune: give --encoder, --older_than, --old or --max_size",
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
