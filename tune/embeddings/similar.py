"""The tracks most similar to a song: `python -m tune.embeddings similar embeddings.parquet SONG`.

    python -m tune.embeddings similar embeddings.parquet music/song.ogg
    python -m tune.embeddings similar embeddings.parquet new.mp3 -k 20 --m3u like-new.m3u

SONG is a track of the file (its path, or the end of it if that is unique), or any other audio file,
which is embedded in the same way. The distance is 1 minus the cosine similarity of the embeddings
in the space that is stored with them (`embed.py --space`), or after subtracting the collection's
mean (0 the same, 1 unrelated, 2 opposite): without that, all tracks look alike. `--whiten` also
equalises the variance of all directions. `--mutual_proximity` ranks hubs, which are near to
everything, lower. The search is exact. A playlist begins with the song itself.
"""

from collections.abc import Sequence
from pathlib import Path

from tune.cli.parser import Parser, positive_int, set_up_logging, to_bool
from tune.embeddings.file_formats import Embeddings, read
from tune.embeddings.nearest import COLUMNS, nearest
from tune.embeddings.playlist import song_item, write_playlist


def search(table: str | Path | Embeddings, song: str | Path, k: int = 10, **settings) -> list[dict]:
    """The k tracks of a file of embeddings most similar to a song: `tune.search`.

    Parameters
    ----------
    table : what embed.py wrote, or it already read by `tune.embeddings.file_formats.read`
    song : one of its tracks (the end of its path is enough), or any audio file
    settings : whiten, mutual_proximity, store, ...: see `nearest`

    Returns
    -------
    list of dict
        distance, path, duration_s, artist, title, same_audio; the nearest first

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
    made = table if isinstance(table, Embeddings) else read(table, COLUMNS)
    return nearest(made, str(song), k, **settings)


def print_nearest(song: str, found: Sequence[dict]) -> None:
    """Show the neighbours as a table."""
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("", justify="right")
    table.add_column("distance", justify="right")
    table.add_column("track", overflow="fold")
    table.add_column("length", justify="right")
    for i, item in enumerate(found, 1):
        seconds = round(item["duration_s"])
        same = "  (the same audio)" if item["same_audio"] else ""
        table.add_row(
            str(i),
            f"{item['distance']:.3f}",
            escape(item["path"]) + same,
            f"{seconds // 60}:{seconds % 60:02d}",
        )
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(
        f"\nmost similar to {song}", style="bold", highlight=False, soft_wrap=True, markup=False
    )
    console.print(table)


def show(
    made: Embeddings,
    song: str,
    k: int,
    *,
    whiten: bool | None,
    mutual_proximity: bool = False,
    m3u: Path | None,
    folders: Sequence[Path],
    **settings,
) -> None:
    """Find, print, and write the playlist."""
    found = nearest(made, song, k, whiten=whiten, mutual_proximity=mutual_proximity, **settings)
    print_nearest(song, found)
    if m3u is not None:
        write_playlist(m3u, song_item(made, song), found, folders)
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
    parser.add_argument("song", metavar="SONG", help="one of its tracks, or an audio file")
    add_flags(parser)
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
    return parser.parse_args(argv)


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
    folders = [args.root] if args.root else [Path(), args.embeddings.parent]
    show(
        read(args.embeddings, COLUMNS),
        args.song,
        args.k,
        whiten=args.whiten,
        mutual_proximity=args.mutual_proximity,
        m3u=args.m3u,
        folders=folders,
        store=args.store,
        trust_remote_code=args.trust_remote_code,
    )
