"""Which tracks are there twice? `python -m tune.embeddings duplicates MUSIC_DIR`.

    python -m tune.embeddings duplicates music --out duplicates.csv
    python -m tune.embeddings duplicates a_folder another_folder list.m3u

By the audio alone, no embeddings are needed: files of the same samples (in any lossless container,
whatever their tags), copies in another codec, rate or loudness, and excerpts. Copies and excerpts
are found by landmarks, as `python -m tune.tasks check` finds them; another performance of a piece,
or one at another speed, is not. Files that can't be read are named and passed over.
"""

import csv
import io
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from tune.audio.find_files import find_music, shown
from tune.audio.fingerprint import MIN_COMMON, MIN_DIFFERENT, MIN_SHARE, find_alike
from tune.cli.parser import Parser, positive_int, set_up_logging
from tune.system.files import atomic_write_text
from tune.tasks.inspect_files import FileInfo, inspect_files, thinning

FILES_UNTHINNED = 2000  # beyond them comparing takes as long for each file, not longer
SAME_LENGTH_S = 2.0  # codecs add a little, players cut a little
THRESHOLDS = (
    f"same: equal to 16 bits at one rate. copy or excerpt: {MIN_COMMON} landmarks in common at one "
    f"shift, of {MIN_DIFFERENT} kinds, and {MIN_SHARE:.0%} of those where the two overlap; a copy "
    f"where lengths and beginnings differ by less than {SAME_LENGTH_S:g} s"
)


@dataclass(frozen=True)
class Duplicate:
    """A file that another one has, too.

    Attributes
    ----------
    kind : same (samples), copy (as long), excerpt (of the other), overlap (neither holds the other)
    file, of : paths; of an excerpt, the shorter one is `file`
    at_s : when `file` begins in `of`, in seconds; negative: before it
    share : of the landmarks of the time that both have, the share that both have
    seconds, of_seconds : their lengths
    """

    kind: str
    file: str
    of: str
    at_s: float
    share: float
    seconds: float
    of_seconds: float


def find_duplicates(files: Mapping[str, FileInfo], *, progress: bool = True) -> list[Duplicate]:
    """Find the duplicates among files.

    Parameters
    ----------
    files : path -> what `tune.tasks.inspect_files.inspect_files` found; silent and unusable files
        are left out

    Returns
    -------
    list of Duplicate, those of the same samples first; each pair once, and of files of the same
    samples only the first is compared with others
    """
    usable = {p: f for p, f in files.items() if f.reason is None and not f.silent}
    groups: dict[str, list[str]] = defaultdict(list)
    for path, info in usable.items():
        groups[info.hash].append(path)
    found = []
    for first, *others in groups.values():
        seconds = usable[first].seconds
        found += [Duplicate("same", p, first, 0.0, 1.0, seconds, seconds) for p in others]
    names = [group[0] for group in groups.values()]
    marks = {name: usable[name].marks for name in names}
    pairs = {}
    bar = tqdm(
        find_alike(marks, names, names),
        total=len(names),
        unit="file",
        desc="compare",
        disable=not progress,
    )
    for match in (match for matches in bar for match in matches):
        pair = frozenset((match.one, match.other))
        if pair not in pairs or match.share > pairs[pair].share:
            pairs[pair] = match
    alike = [_duplicate(match, usable) for match in pairs.values()]
    return found + sorted(alike, key=lambda d: (d.kind, -d.share, d.file, d.of))


def _duplicate(match, files: Mapping[str, FileInfo]) -> Duplicate:
    """Which of two is in the other."""
    one, other, at = match.one, match.other, match.at_s
    if files[one].seconds > files[other].seconds:
        one, other, at = other, one, -at
    length, whole = files[one].seconds, files[other].seconds
    if abs(at) < SAME_LENGTH_S and whole - length < SAME_LENGTH_S:
        kind = "copy"
    elif at > -SAME_LENGTH_S and at + length < whole + SAME_LENGTH_S:
        kind = "excerpt"
    else:
        kind = "overlap"
    return Duplicate(kind, one, other, at, match.share, length, whole)


def parse_args(argv: Sequence[str] | None = None):
    """Read the command line."""
    parser = Parser(
        prog="python -m tune.embeddings duplicates", description=f"{__doc__}\n{THRESHOLDS}."
    )
    parser.add_argument(
        "music",
        nargs="+",
        metavar="MUSIC",
        help="folders, files, globs, lists (.txt, .m3u), or what embed.py wrote (.parquet)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write them all as a table")
    parser.add_argument(
        "--workers", type=positive_int, metavar="N", help="threads (default: one a processor)"
    )
    parser.add_argument(
        "--top", type=positive_int, default=50, metavar="N", help="rows shown (default: 50)"
    )
    args = parser.parse_args(argv)
    if args.out and args.out.suffix.lower() != ".csv":
        parser.error(f"--out must end in .csv, got {args.out}")
    if args.out and not args.out.resolve().parent.is_dir():
        parser.error(f"--out {args.out}: its folder doesn't exist")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Look at all files, print a table, write the file."""
    args = parse_args(argv)
    set_up_logging(True)
    from rich.console import Console
    from rich.table import Table

    paths = find_music(_sources(args.music))
    files = inspect_files(paths, workers=args.workers, title="listen", unthinned=FILES_UNTHINNED)
    unusable = [f for f in files.values() if f.reason]
    if len(unusable) == len(files):
        first = unusable[0]
        raise ValueError(
            f"none of {len(files)} files can be read: {shown(first.path)}: {first.reason}"
        )
    duplicates = find_duplicates(files)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    root = os.path.commonpath([os.path.dirname(p) or "." for p in files]) if len(files) > 1 else "."
    if duplicates:
        table = Table()
        for head in ("", "file", "seconds", "of", "seconds", "from", "in common"):
            right = head in ("seconds", "from", "in common")
            table.add_column(head, justify="right" if right else "left", overflow="fold")
        for d in duplicates[: args.top]:
            table.add_row(*_cells(d, root))
        console.print(table)
        if len(duplicates) > args.top:
            console.print(f"and {len(duplicates) - args.top:,} more (--top, or --out has them all)")
    for info in unusable:
        line = f"unusable   {shown(info.path)}: {info.reason}"
        console.print(line, markup=False, soft_wrap=True)
    silent = sum(f.silent for f in files.values())
    kinds = Counter(d.kind for d in duplicates)
    text = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items()) or "no duplicate found"
    console.print(f"{text}; {len(files):,} files, {len(unusable)} unusable, {silent} silent")
    console.print(f"thresholds  {THRESHOLDS}", markup=False, soft_wrap=True)
    if (thin := thinning(len(paths), FILES_UNTHINNED)) > 1:
        print(
            f"of {len(paths):,} files one landmark in {thin} was kept: excerpts of less than about "
            f"{thin} s are not found"
        )
    if args.out:
        _write_csv(duplicates, args.out)
        print(f"written to {args.out}")


def _sources(music: Sequence[str]) -> list[str]:
    """MUSIC, with the tracks that it names for each file of embeddings."""
    sources = []
    for source in music:
        if Path(source).suffix == ".parquet":
            from tune.embeddings.file_formats import read

            sources += map(os.path.expanduser, read(source, ("path",)).table["path"].to_pylist())
        else:
            sources.append(source)
    return sources


def _write_csv(duplicates: Sequence[Duplicate], path: Path) -> None:
    """Write duplicates as a table, which may have no rows."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Duplicate)])
    writer.writeheader()
    for d in duplicates:
        writer.writerow(asdict(d) | {"file": shown(d.file), "of": shown(d.of)})
    atomic_write_text(path, text.getvalue())


def _cells(d: Duplicate, root: str) -> list[str]:
    """A duplicate as a row; paths from the folder that all have in common."""
    from rich.markup import escape

    names = [escape(shown(os.path.relpath(p, root))) for p in (d.file, d.of)]
    at = "" if d.kind == "same" else f"{d.at_s:.1f} s"
    share = "" if d.kind == "same" else f"{d.share:.0%}"
    return [d.kind, names[0], f"{d.seconds:.1f}", names[1], f"{d.of_seconds:.1f}", at, share]
