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

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tune.audio.find_files import shown
from tune.cli.parser import Parser, positive_int, set_up_logging, to_bool
from tune.embeddings.file_formats import Embeddings, read
from tune.embeddings.space import REFERENCE, MutualProximity, Space, fit_space, together

log = logging.getLogger(__name__)

NEAR_NAMES = 3  # that are offered where a song isn't found
SHOWN = ("path", "duration_s", "content_hash", "artist", "title")
COLUMNS = (*SHOWN, "embedding", "reason")  # that a search needs


def find_song(made: Embeddings, song: str) -> int | None:
    """The row of a track that is in the collection, by path, ending of a path, or content.

    Raises
    ------
    ValueError
        When it is neither a track nor a file, with the nearest names, or one of several tracks.
    """
    names = made.table["path"].to_pylist()
    wanted = shown(os.path.normpath(song))
    if wanted in names:
        return names.index(wanted)
    if os.path.isfile(song):
        from tune.audio.hashing import content_hash

        contents, content = made.table["content_hash"].to_pylist(), content_hash(song)
        return contents.index(content) if content in contents else None
    ends = [i for i, name in enumerate(names) if name.endswith(f"/{wanted}")]
    if len(ends) > 1:
        raise ValueError(
            f"{song} may be {names[ends[0]]} or {names[ends[1]]}: give more of the path"
        )
    if not ends:
        near = near_names(names, wanted)
        meant = f"; did you mean {', or '.join(near)}?" if near else ""
        raise ValueError(f"{song} is neither a track of these embeddings nor a file{meant}")
    return ends[0]


def near_names(names: Sequence[str], wanted: str) -> list[str]:
    """Up to `NEAR_NAMES` paths whose file names hold the wanted name, or are spelt like it."""
    from difflib import get_close_matches

    stems: dict[str, str] = {}
    for name in names:
        stems.setdefault(Path(name).stem.casefold(), name)
    stem = Path(wanted).stem.casefold()
    near = [s for s in stems if stem in s][:NEAR_NAMES] or get_close_matches(
        stem, stems, NEAR_NAMES, 0.7
    )
    return [stems[s] for s in near]


def nearest(
    made: Embeddings,
    song: str,
    k: int,
    *,
    whiten: bool | None = None,
    mutual_proximity: bool = False,
    embedder=None,
    **settings,
) -> list[dict]:
    """The k tracks most similar to a song.

    Parameters
    ----------
    made : tune.embeddings.file_formats.Embeddings of tracks
    song : a path, the end of one, or a file
    whiten : None is the space that is stored with the embeddings
    mutual_proximity : rank by `tune.embeddings.space.MutualProximity`
    embedder : the `tune.embeddings.embedder.Embedder` that made them, for a song that isn't among
        them; None loads it
    settings : device, store: see `Embedder`

    Returns
    -------
    list of dict
        distance (with mutual proximity 1 minus it), path, duration_s, artist, title, same_audio;
        the nearest first, the song itself left out
    """
    if "reason" not in made.table.schema.names:
        raise ValueError("these are embeddings of segments: give the file of the tracks")
    usable = np.flatnonzero(made.usable)
    row = find_song(made, song)
    if row is not None and row not in usable:
        raise ValueError(f"{song} has no embedding: {made.table['reason'][row]}")
    if len(usable) < 2:
        raise ValueError("nothing to compare: at least two tracks with embeddings are needed")
    matrix = made.matrix()
    if row is not None:
        query, content = matrix[row], made.table["content_hash"][row].as_py()
    else:
        query, content = embed_alike(made, song, embedder, **settings), None
    if len(usable) < len(matrix):
        matrix = matrix[usable]
    space = space_of(made, matrix, whiten)
    cosines = space.cosines(matrix, query)
    if row is not None:
        cosines[np.searchsorted(usable, row)] = -np.inf  # itself
    k = min(k, len(usable) - (row is not None))
    if mutual_proximity:
        order, found = _mutually_nearest(space, matrix, query, cosines, k)
    else:
        order = top(cosines, k)
        found = np.clip(1 - cosines[order], 0, 2)
    rows = usable[order]
    items = [described(made, i) for i in rows.tolist()]
    return [
        {
            "distance": float(distance),
            **{name: value for name, value in item.items() if name != "content_hash"},
            "same_audio": item["content_hash"] == content,
        }
        for distance, item in zip(found, items, strict=True)
    ]


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


def described(made: Embeddings, row: int) -> dict:
    """The columns `SHOWN` of a row; None where the file has no such column."""
    names = made.table.schema.names
    return {n: made.table[n][row].as_py() if n in names else None for n in SHOWN}


def space_of(made: Embeddings, matrix: np.ndarray, whiten: bool | None = None) -> Space:
    """The space that is stored with embeddings, or one that is fitted on them.

    Parameters
    ----------
    matrix : (n, D), the usable embeddings
    whiten : whether it is to be whitened; None: as the stored one
    """
    stored = made.space
    if stored is not None and whiten in (None, stored.name.startswith("whitened")):
        return stored
    return fit_space(matrix, "whitened" if whiten else "ready")


def top(values: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k greatest values, the greatest first, ties in their order."""
    least = np.partition(values, -k)[-k]
    candidates = np.flatnonzero(values >= least)
    return candidates[np.argsort(-values[candidates], kind="stable")][:k]


def _mutually_nearest(space, matrix, query, cosines, k) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of greatest mutual proximity with a query: positions, and 1 minus it.

    Exact: mutual proximity is at most the query's own factor, which falls with the cosine, so the
    rows that come later by cosine are looked at only as long as one of them can be among the k.
    """
    proximity = MutualProximity.fit(space.as_unit(matrix[:: -(-len(matrix) // REFERENCE)]))
    own = [s[0] for s in proximity.of(space(query[None]))]
    n = min(len(cosines), max(1000, 2 * k))
    while True:
        order = top(cosines, n)
        near = cosines[order]
        values = together(near, own, proximity.of(space(matrix[order])))
        best = top(values, k)
        if n == len(cosines) or together(near[-1:], own, (-np.inf, 1.0))[0] < values[best[-1]]:
            return order[best], 1 - values[best]
        n = min(len(cosines), 4 * n)


def embed_alike(made: Embeddings, song: str, embedder=None, **settings) -> np.ndarray:
    """Embed a file as these embeddings were made: (D,) float32."""
    from tune.embeddings.embedder import embedder_like

    loaded = embedder or embedder_like(made.meta, made.constants, **settings)
    tracks, _, _ = loaded.encode([song], strict=True)
    aggregator = loaded.aggregator({}, made.constants, n_tokens=made.meta["strategy"]["n_tokens"])
    return aggregator(loaded.rows(song, tracks[song]))[0]


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


def write_playlist(path: Path, song: dict, found: Sequence[dict], folders: Sequence[Path]) -> None:
    """Write the song and its neighbours as an M3U, relative to the playlist's own folder.

    Parameters
    ----------
    song, found : path, duration_s, artist and title of each, the last two may be None
    folders : that the tracks' paths may be relative to; the first with such a file is used

    Raises
    ------
    ValueError
        When a track isn't found: the paths are relative to the folder where embed.py ran.
    """
    lines = ["#EXTM3U"]
    for item in (song, *found):
        name, seconds = item["path"], item["duration_s"]
        place = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if place is None:
            raise ValueError(f"{name} not found: give the folder where embed.py ran by --root")
        relative = os.path.relpath(place.resolve(), path.resolve().parent)
        named = " - ".join(filter(None, (item["artist"], item["title"]))) or place.stem
        named = " ".join(named.split())  # a line break in a tag would end the line
        lines += [f"#EXTINF:{round(seconds)},{named}", relative]
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def song_item(made: Embeddings, song: str) -> dict:
    """Path, length, artist and title of the song, as they are in the table, or in the file."""
    row = find_song(made, song)
    if row is not None:
        return described(made, row) | ({"path": song} if os.path.isfile(song) else {})
    from tune.audio.decode import read_header
    from tune.embeddings.tags import read_tags

    empty = dict.fromkeys(("artist", "title"))
    return empty | read_tags(song) | {"path": song, "duration_s": read_header(song).seconds}


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
