"""The tracks nearest to a song, in the space that is stored with the table.

Nothing heavy is imported before a song has to be embedded: a search in 100,000 rows takes a second.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tune.audio.find_files import shown
from tune.embeddings.file_formats import Embeddings
from tune.embeddings.space import REFERENCE, MutualProximity, Space, fit_space, together

NEAR_NAMES = 3  # that are offered where a song isn't found
SHOWN = ("path", "duration_s", "content_hash", "artist", "title")
COLUMNS = (*SHOWN, "embedding", "reason")  # that a search needs


def find_song(made: Embeddings, song: str) -> int | None:
    """The (first) row of a track in the collection, by path, ending of a path, or content.

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
    ends = list(dict.fromkeys(name for name in names if name.endswith(f"/{wanted}")))
    if len(ends) > 1:
        raise ValueError(f"{song} may be {ends[0]} or {ends[1]}: give more of the path")
    if not ends:
        near = near_names(names, wanted)
        meant = f"; did you mean {', or '.join(near)}?" if near else ""
        raise ValueError(f"{song} is neither a track of these embeddings nor a file{meant}")
    return names.index(ends[0])


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
    if made.of_segments:
        raise ValueError("these are embeddings of segments: search them by segment")
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
    return [
        {"distance": float(distance), **track_item(made, i, content)}
        for distance, i in zip(found, rows.tolist(), strict=True)
    ]


def track_item(made: Embeddings, row: int, content: str | None = None) -> dict:
    """A track found: path, duration_s, artist, title, and same_audio, as that content."""
    item = described(made, row)
    own = item.pop("content_hash")
    return {**item, "same_audio": own is not None and own == content}


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
    loaded = load_alike(made, embedder, **settings)
    tracks, _, _ = loaded.encode([song], strict=True)
    aggregator = loaded.aggregator({}, made.constants, n_tokens=made.meta["strategy"]["n_tokens"])
    return aggregator(loaded.rows(song, tracks[song]))[0]


def load_alike(made: Embeddings, embedder=None, **settings):
    """The `tune.embeddings.embedder.Embedder` that made these embeddings, unless it is given."""
    from tune.embeddings.embedder import embedder_like

    return embedder or embedder_like(made.meta, made.constants, **settings)
