"""From the store to the rows of a file of embeddings: one a track, and one a segment."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from tune.aggregators.track_aggregator import TrackAggregator
from tune.aggregators.track_features import token_times
from tune.audio.decode import read_header
from tune.audio.find_files import shown
from tune.embeddings.embedder import Embedder
from tune.embeddings.file_formats import SEGMENTS, TRACKS, make_table
from tune.store.store import Row


def track_rows(
    embedder: Embedder,
    joiner: TrackAggregator,
    tracks: Mapping[str, Sequence[tuple]],
    bad: Mapping[str, str],
) -> tuple[pa.Table, int]:
    """One row a track, sorted by path; a bad file has its reason and no embedding.

    Parameters
    ----------
    tracks, bad : as `Embedder.encode` returns them

    Returns
    -------
    table : columns as `tune.embeddings.file_formats.TRACKS`
    truncated : tracks that had more tokens than the aggregator takes
    """
    columns: dict[str, list] = {name: [] for name in TRACKS}
    truncated = 0
    paths = sorted([*tracks, *bad], key=shown)
    for path in tqdm(paths, desc="join", unit="track", leave=False, disable=None):
        line = dict.fromkeys(TRACKS) | {"path": shown(path), "reason": bad.get(path)}
        if path in tracks:
            vector, cut = joiner(embedder.rows(path, tracks[path]))
            truncated += cut
            content = tracks[path][0][0]
            n_samples = embedder.collection.length(content)
            line |= {
                "content_hash": content,
                "duration_s": n_samples / embedder.encoder.sample_rate,
                "sample_rate": _native_rate(path),
                "embedding": vector,
                "n_segments": sum(len(spans) for _, spans in tracks[path]),
            }
        for name, value in line.items():
            columns[name].append(value)
    size = next((len(v) for v in columns["embedding"] if v is not None), None)
    return make_table(columns, TRACKS, size or _size(embedder, joiner)), truncated


def segment_rows(embedder: Embedder, tracks: Mapping[str, Sequence[tuple]]) -> pa.Table:
    """One row a segment (or pooled frame), sorted by path, rule and time; bad files have none.

    Returns
    -------
    table : columns as `tune.embeddings.file_formats.SEGMENTS`
    """
    columns: dict[str, list] = {name: [] for name in SEGMENTS}
    rate, window_s = embedder.encoder.sample_rate, embedder.collection.window_s
    for path in sorted(tracks, key=shown):
        rows = embedder.rows(path, tracks[path])
        for rule, row, (content, _) in zip(embedder.rules, rows, tracks[path], strict=True):
            times, n = token_times(row, rate, window_s), len(row.tokens)
            columns["path"] += [shown(path)] * n
            columns["content_hash"] += [content] * n
            columns["seg"] += [rule.name] * n
            columns["segment"] += np.repeat(np.arange(len(row.counts)), row.counts).tolist()
            columns["start_s"] += times[:, 0].tolist()
            columns["end_s"] += times[:, 1].tolist()
            columns["embedding"] += list(row.tokens[:, 0])  # one layer
    return make_table(columns, SEGMENTS, embedder.encoder.embedding_dim)


def _size(embedder: Embedder, joiner: TrackAggregator) -> int:
    """Values of an embedding, where no track has one: what joining nothing but zeros gives."""
    layers, size = len(embedder.collection.layers), embedder.encoder.embedding_dim
    zeros = Row(np.zeros((1, layers, size), np.float32), [(0, 1)], [1], True, 0.0)
    return len(joiner([zeros] * len(embedder.rules))[0])


def _native_rate(path: str) -> int:
    """A usable file's own sample rate in Hz."""
    return read_header(path).sample_rate
