"""Search by segments: in which track a passage occurs, and where; which tracks are versions.

The table holds a row for each segment (`embed.py --segments FILE`). The similarity of two tracks is
MaxSim (Khattab & Zaharia, SIGIR 2020): each segment of the query is compared with the most similar
segment of the other track, and the mean of these cosines is taken. By alignment (`align`) the
segments have to come in the same order, faster or slower: a subsequence DTW places the whole query
in a part of the track, and the mean is taken along its path.

Shapes: q segments of the query, n of all tracks, D values of an embedding. Times are in seconds.
"""

from dataclasses import dataclass, replace

import numpy as np

from tune.embeddings.file_formats import Embeddings
from tune.embeddings.nearest import find_song, load_alike, space_of, top
from tune.embeddings.space import Space, blocks

COLUMNS = ("path", "content_hash", "seg", "start_s", "end_s", "embedding")  # that a search needs
TEMPO_COST = 0.1  # of a step that is faster or slower than the query, in cosine
PASSAGE_S = 10.0  # length of a passage that begins at a given second


@dataclass(frozen=True, eq=False)
class Query:
    """The segments of a track, or of a passage of it, that are searched for.

    Attributes
    ----------
    matrix : (q, D) float32
    times : (q, 2) start and end in the query's track
    content : SHA-256 of a track of the table, or None
    own : number of that track among the table's, or None
    """

    matrix: np.ndarray
    times: np.ndarray
    content: str | None = None
    own: int | None = None

    def passage(self, song: str, at: float, seconds: float) -> "Query":
        """The segments of which half or more lies in a passage, or that hold half of it.

        Raises
        ------
        ValueError
            When there are none.
        """
        start, end = self.times.T
        common = np.minimum(end, at + seconds) - np.maximum(start, at)
        chosen = common >= np.minimum(end - start, seconds) / 2
        if at < 0 or not chosen.any():
            raise ValueError(
                f"--at {at:g}: {song} has no segment there, its segments lie between "
                f"{start.min():g} and {end.max():g} s"
            )
        return replace(self, matrix=self.matrix[chosen], times=self.times[chosen])


def nearest_by_segment(
    made: Embeddings,
    song: str,
    k: int,
    *,
    at: float | None = None,
    seconds: float = PASSAGE_S,
    align: bool = False,
    whiten: bool | None = None,
    mutual_proximity: bool = False,
    embedder=None,
    **settings,
) -> list[dict]:
    """The k tracks in which the segments of a song, or of a passage of it, occur most similarly.

    Parameters
    ----------
    made : tune.embeddings.file_formats.Embeddings of segments
    song : a path, the end of one, or a file
    at, seconds : the passage; None is the whole song
    align : rank by alignment instead of MaxSim
    mutual_proximity : is of tracks, and refused
    whiten, embedder, settings : see `tune.embeddings.nearest.nearest`

    Returns
    -------
    list of dict
        distance (1 minus the mean cosine), path, same_audio, start_s and end_s of the part of the
        track that the query is aligned with, query_start_s and query_end_s; the nearest first, the
        song itself left out

    Raises
    ------
    ValueError
        When the song isn't found, has no segment in the passage, or the table has segments of
        several lengths.
    """
    if mutual_proximity:
        raise ValueError("--mutual_proximity ranks tracks, and these are segments: leave it out")
    starts = track_starts(made)
    query = _query(made, starts, song, embedder, **settings)
    if at is not None:
        query = query.passage(song, at, seconds)
    return search_segments(made, starts, query, space_of(made, made.matrix(), whiten), k, align)


def search_segments(
    made: Embeddings, starts: np.ndarray, query: Query, space: Space, k: int, align: bool = False
) -> list[dict]:
    """The k tracks that are most similar to a query: see `nearest_by_segment`."""
    cosines = _cosines(made.matrix(), query.matrix, space)
    table, items = made.table, []
    for number, similarity in _ranked(cosines, starts, query.own, k, align):
        first = int(starts[number])
        path = first + alignment(cosines[first : starts[number + 1]])[[0, -1], 1]
        begin, end = path.tolist()
        items.append(
            {
                "distance": float(np.clip(1 - similarity, 0, 2)),
                "path": table["path"][first].as_py(),
                "same_audio": table["content_hash"][first].as_py() == query.content,
                "start_s": table["start_s"][begin].as_py(),
                "end_s": table["end_s"][end].as_py(),
                "query_start_s": float(query.times[0, 0]),
                "query_end_s": float(query.times[-1, 1]),
            }
        )
    return items


def track_starts(made: Embeddings) -> np.ndarray:
    """First row of each track, and the number of rows: (tracks + 1,) int.

    Raises
    ------
    ValueError
        When there are segments of several lengths, or fewer than two tracks.
    """
    rules = made.table["seg"].unique().to_pylist()
    if len(rules) > 1:
        raise ValueError(
            f"these are segments of several lengths ({', '.join(rules)}): write those of one by "
            f"embed.py --seg {rules[0]} --segments FILE"
        )
    names = made.table["path"].to_pylist()  # sorted
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    if len(starts) < 2:
        raise ValueError("nothing to compare: at least two tracks with segments are needed")
    return np.array([*starts, len(names)])


def _query(made: Embeddings, starts: np.ndarray, song: str, embedder, **settings) -> Query:
    """All segments of a song, of the table or embedded as it was."""
    first = find_song(made, song)
    if first is not None:
        own = int(np.searchsorted(starts, first))
        rows = slice(first, int(starts[own + 1]))
        times = [made.table[name][rows].to_pylist() for name in ("start_s", "end_s")]
        content = made.table["content_hash"][first].as_py()
        return Query(made.matrix()[rows], np.array(times).T, content, own)
    loaded = load_alike(made, embedder, **settings)
    found, _, _ = loaded.encode([song], strict=True)
    (row,) = loaded.rows(song, found[song])
    times = row.times(loaded.encoder.sample_rate, loaded.collection.window_s)
    return Query(row.tokens[:, 0], times)


def _cosines(matrix: np.ndarray, query: np.ndarray, space: Space) -> np.ndarray:
    """Cosines of all segments with those of the query: (n, q) float32, by blocks."""
    unit = space(query).astype(np.float32)
    out = np.empty((len(matrix), len(unit)), np.float32)
    for rows in blocks(len(matrix)):
        out[rows] = space(matrix[rows]).astype(np.float32) @ unit.T
    return out


def _ranked(cosines, starts, own, k, align) -> list[tuple[int, float]]:
    """The k most similar tracks, (number, similarity), the most similar first.

    With `align` the search is exact, too: an alignment is at most MaxSim, so tracks are aligned in
    the order of MaxSim only as long as one of them can be among the k.
    """
    max_sim = np.maximum.reduceat(cosines, starts[:-1]).mean(1)  # (tracks,)
    if own is not None:
        max_sim[own] = -np.inf
    k = min(k, len(max_sim) - (own is not None))
    if not align:
        return [(int(i), float(max_sim[i])) for i in top(max_sim, k)]
    best: list[tuple[int, float]] = []
    for i in np.argsort(-max_sim, kind="stable")[: len(max_sim) - (own is not None)]:
        if len(best) == k and max_sim[i] <= best[-1][1]:
            break
        part = cosines[starts[i] : starts[i + 1]]
        best.append((int(i), mean_along(part, alignment(part))))
        best = sorted(best, key=lambda item: -item[1])[:k]
    return best


def alignment(cosines: np.ndarray) -> np.ndarray:
    """Where a query lies in a track.

    Parameters
    ----------
    cosines : (n, q), of a track's segments with a query's

    Returns
    -------
    (steps, 2) int: segments of the query, all of them in order, and of the track

    Examples
    --------
    >>> alignment(np.array([[0.1, 0.0], [0.9, 0.2], [0.1, 0.8], [0.3, 0.1]])).tolist()
    [[0, 1], [1, 2]]
    """
    if cosines.shape[1] == 1:
        return np.array([[0, cosines[:, 0].argmax()]])
    import librosa  # seconds to import

    weights = np.array([0, TEMPO_COST, TEMPO_COST])  # the first step is the diagonal
    _, path = librosa.sequence.dtw(C=1.0 - cosines.T, subseq=True, weights_add=weights)
    if cosines.shape[1] > len(cosines):  # librosa 0.11 swaps the columns then
        path = path[:, ::-1]
    return path[::-1]


def mean_along(cosines: np.ndarray, path: np.ndarray) -> float:
    """Mean cosine along a path, each segment of the query weighing the same."""
    values = cosines[path[:, 1], path[:, 0]].astype(np.float64)
    counts = np.bincount(path[:, 0])
    return float((np.bincount(path[:, 0], values) / counts).mean())
