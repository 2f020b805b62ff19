"""The tracks most similar to a song: `python -m tune.embeddings similar embeddings.parquet SONG`.

    python -m tune.embeddings similar embeddings.parquet music/song.ogg
    python -m tune.embeddings similar embeddings.parquet new.mp3 -k 20 --m3u like-new.m3u
    python -m tune.embeddings similar segments.parquet passage.wav --by segment
    python -m tune.embeddings similar segments.parquet mix.mp3 --by segment --at 83 --seconds 20
    python -m tune.embeddings similar embeddings.parquet --text "slow sad piano"

SONG is a track of the file (its path, or the end of it if that is unique), or any other audio file,
which is embedded in the same way. The distance is 1 minus the cosine similarity of the embeddings
in the space that is stored with them (`embed.py --space`), or after subtracting the collection's
mean (0 the same, 1 unrelated, 2 opposite): without that, all tracks look alike. `--whiten` also
equalises the variance of all directions. `--mutual_proximity` ranks hubs, which are near to
everything, lower. The search is exact. A playlist begins with the song itself.

In a file of segments (`embed.py --segments FILE`) each segment of the song, or of the passage that
begins `--at` a second, is compared with the most similar segment of a track (MaxSim), and the table
says where in the track they lie. With `--align` they have to come in the same order.

`--text` searches for words instead of a song, where the last layer of MuQ-MuLan made the file
(`embed.py --encoder muq-mulan`): its plain cosines with the text's vector rank.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tune.cli.parser import Parser, positive_float, positive_int, set_up_logging, to_bool
from tune.embeddings.file_formats import Embeddings, read
from tune.embeddings.nearest import COLUMNS as TRACK_COLUMNS
from tune.embeddings.nearest import nearest
from tune.embeddings.playlist import song_item, write_playlist
from tune.embeddings.segment_search import COLUMNS as SEGMENT_COLUMNS
from tune.embeddings.segment_search import PASSAGE_S, nearest_by_segment
from tune.embeddings.text_search import nearest_to_text

COLUMNS = (*TRACK_COLUMNS, *SEGMENT_COLUMNS)


def search(
    table: str | Path | Embeddings,
    song: str | Path | None = None,
    k: int = 10,
    *,
    text: str | None = None,
    **settings,
) -> list[dict]:
    """The k tracks of a file of embeddings most similar to a song or a text: `tune.search`.

    Parameters
    ----------
    table : what embed.py wrote, or it already read by `tune.embeddings.file_formats.read`
    song : one of its tracks (the end of its path is enough), or any audio file
    text : words, instead of a song, where MuQ-MuLan made the table
    settings : whiten, store, ...; of tracks also mutual_proximity: see `nearest`; of segments at,
        seconds, align: see `tune.embeddings.segment_search.nearest_by_segment`

    Returns
    -------
    list of dict
        distance, path, same_audio; of tracks duration_s, artist, title, and of segments start_s,
        end_s, query_start_s, query_end_s (not of a text); the nearest first

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from tune.embeddings.columns import TRACKS
    >>> from tune.embeddings.file_formats import make_table, write
    >>> vectors = [np.array(v, np.float32) for v in ([1, 0], [0.9, 0.3], [-1, 0])]
    >>> columns = {"path": ["a.ogg", "b.ogg", "c.ogg"], "embedding": vectors}
    >>> out = Path(tempfile.mkdtemp()) / "e.parquet"
    >>> write(out, Embeddings(make_table(columns, TRACKS, 2), {}, {}))
    >>> [(item["path"], round(item["distance"], 2)) for item in search(out, "a.ogg", 2)]
    [('b.ogg', 0.11), ('c.ogg', 1.98)]
    """
    if (song is None) == (text is None):
        raise ValueError("a song or a text is searched for: give one of them")
    made = table if isinstance(table, Embeddings) else read(table, COLUMNS)
    if text is not None:
        return nearest_to_text(made, text, k, **settings)
    found = nearest_by_segment if made.of_segments else nearest
    return found(made, str(song), k, **settings)


def print_nearest(song: str, found: Sequence[dict]) -> None:
    """Show the neighbours as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    of_segments = bool(found) and "start_s" in found[0]
    table = Table()
    table.add_column("", justify="right")
    table.add_column("distance", justify="right")
    table.add_column("track", overflow="fold")
    table.add_column("at" if of_segments else "length", justify="right")
    for i, item in enumerate(found, 1):
        times = [item["start_s"], item["end_s"]] if of_segments else [item["duration_s"]]
        same = "  (the same audio)" if item["same_audio"] else ""
        table.add_row(
            str(i),
            f"{item['distance']:.3f}",
            escape(item["path"]) + same,
            " to ".join(map(_minutes, times)),
        )
    console = Console(width=None if sys.stdout.isatty() else 200)
    if of_segments and "query_start_s" in found[0]:
        start, end = (_minutes(found[0][f"query_{name}"]) for name in ("start_s", "end_s"))
        song = f"{song}, {start} to {end}"
    console.print(
        f"\nmost similar to {song}", style="bold", highlight=False, soft_wrap=True, markup=False
    )
    console.print(table)


def _minutes(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def show(
    made: Embeddings,
    song: str | None,
    k: int,
    *,
    text: str | None = None,
    m3u: Path | None,
    folders: Sequence[Path],
    **settings,
) -> None:
    """Find, print, and write the playlist.

    Parameters
    ----------
    folders : that the tracks' paths may be relative to
    settings : as `search` takes them
    """
    found = search(made, song, k, text=text, **settings)
    print_nearest(song or f'"{text}"', found)
    if m3u is not None:
        write_playlist(m3u, song_item(made, song) if song else None, found, folders)
        print(f"  playlist   {m3u}")


def parse_args(argv: Sequence[str] | None = None):
    """Read the command line."""
    parser = Parser(prog="python -m tune.embeddings similar", description=__doc__)
    parser.add_argument(
        "embeddings",
        type=Path,
        metavar="EMBEDDINGS",
        help="what embed.py wrote: .parquet, .npy or a folder",
    )
    parser.add_argument(
        "song", nargs="?", metavar="SONG", help="one of its tracks, or an audio file"
    )
    parser.add_argument(
        "--text", metavar="WORDS", help="words instead of SONG, where MuQ-MuLan made EMBEDDINGS"
    )
    add_flags(parser)
    parser.add_argument(
        "--by",
        choices=("track", "segment"),
        help="compare tracks' embeddings, or segments (default: what EMBEDDINGS holds)",
    )
    parser.add_argument(
        "--at",
        type=float,
        metavar="SECONDS",
        help="by segment: search for the passage of SONG that begins here (default: all of it)",
    )
    parser.add_argument(
        "--seconds",
        type=positive_float,
        metavar="SECONDS",
        help=f"length of that passage (default: {PASSAGE_S:g})",
    )
    parser.add_argument(
        "--align",
        nargs="?",
        const=True,
        default=False,
        type=to_bool,
        metavar="BOOL",
        help="by segment: they have to come in the same order, faster or slower",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder that the tracks' paths are relative to, for --m3u (default: here, then "
        "the embeddings' folder)",
    )
    parser.add_argument("--store", type=Path, metavar="DIR", help="embedding store")
    parser.add_argument(
        "--trust_remote_code",
        nargs="?",
        const=True,
        default=False,
        type=to_bool,
        metavar="BOOL",
        help="let an encoder run Python code of its own, for a song that isn't in EMBEDDINGS",
    )
    args = parser.parse_args(argv)
    if (args.song is None) == (args.text is None):
        parser.error("name a SONG, or words by --text")
    return args


def add_flags(parser) -> None:
    """Add the flags that embed.py shares."""
    parser.add_argument("-k", type=positive_int, default=10, metavar="N", help="number of tracks")
    parser.add_argument(
        "--whiten",
        nargs="?",
        const=True,
        default=None,
        type=to_bool,
        metavar="BOOL",
        help="equalise the variance of all directions before comparing (default: as the space that "
        "is stored with the embeddings)",
    )
    parser.add_argument(
        "--mutual_proximity",
        nargs="?",
        const=True,
        default=False,
        type=to_bool,
        metavar="BOOL",
        help="rank tracks that are near to everything lower",
    )
    parser.add_argument(
        "--m3u", type=Path, metavar="FILE", help="write the song and the tracks found as a playlist"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Find the nearest tracks and print them."""
    args = parse_args(argv)
    set_up_logging(True)
    made = read(args.embeddings, COLUMNS)
    folders = [args.root] if args.root else [Path(), args.embeddings.parent]
    show(made, args.song, args.k, m3u=args.m3u, folders=folders, **settings_of(args, made))


def settings_of(args, made: Embeddings) -> dict:
    """The settings of a search by tracks, by segments or by text.

    Raises
    ------
    ValueError
        When the file holds the other ones, or a flag belongs to the other search.
    """
    if args.by not in (None, "segment" if made.of_segments else "track"):
        if made.of_segments:
            raise ValueError(
                f"--by track: {args.embeddings} holds segments; the tracks are in --out of embed.py"
            )
        raise ValueError(
            f"--by segment: {args.embeddings} holds a row for each track; embed.py with the same "
            f"settings and --segments FILE writes the segments, from the store"
        )
    by_segment = {"at": args.at, "seconds": args.seconds, "align": args.align or None}
    by_segment = {name: value for name, value in by_segment.items() if value is not None}
    of_songs = {"whiten": args.whiten, "mutual_proximity": args.mutual_proximity}
    if args.text is not None:
        for name in [*by_segment, *(n for n, value in of_songs.items() if value)]:
            raise ValueError(f"--{name} compares songs: leave it out with --text")
        return {"text": args.text}
    if by_segment and not made.of_segments:
        raise ValueError(f"--{min(by_segment)} needs a file of segments (embed.py --segments)")
    if "seconds" in by_segment and "at" not in by_segment:
        raise ValueError("--seconds is the length of a passage: say where it begins by --at")
    loading = {"store": args.store, "trust_remote_code": args.trust_remote_code}
    return by_segment | of_songs | loading
