"""From the store to tables of embeddings: a row for each track, or for each segment."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from tune.aggregators.track_aggregator import TrackAggregator
from tune.aggregators.track_features import token_times
from tune.audio.find_files import shown
from tune.embeddings.columns import SEGMENTS, TRACKS, EmbeddedSegment, EmbeddedTrack
from tune.embeddings.embedder import Embedder
from tune.embeddings.file_formats import make_table
from tune.store.store import Row


def track_rows(
    embedder: Embedder,
    aggregator: TrackAggregator,
    tracks: Mapping[str, Sequence[tuple]],
    bad: Mapping[str, str],
) -> tuple[pa.Table, int]:
    """One row a track, sorted by path; a bad file has its reason and no embedding.

    Parameters
    ----------
    tracks, bad : as `Embedder.encode` returns them

    Returns
    -------
    table : columns as `tune.embeddings.columns.TRACKS`
    truncated : tracks that had more tokens than the aggregator takes
    """
    columns: dict[str, list] = {name: [] for name in TRACKS}
    truncated = 0
    paths = sorted([*tracks, *bad], key=shown)
    for path in tqdm(paths, desc="join", unit="track", leave=False, disable=None):
        track = EmbeddedTrack(path, shown(path), bad.get(path))
        if path in tracks:
            vector, cut = aggregator(embedder.rows(path, tracks[path]))
            truncated += cut
            content = tracks[path][0][0]
            track = dataclasses.replace(
                track,
                content=content,
                duration_s=embedder.collection.length(content) / embedder.encoder.sample_rate,
                n_segments=sum(len(spans) for _, spans in tracks[path]),
                embedding=vector,
            )
        for name, column in TRACKS.items():
            columns[name].append(column.value(track))
    size = next((len(v) for v in columns["embedding"] if v is not None), None)
    return make_table(columns, TRACKS, size or _size(embedder, aggregator)), truncated


def segment_rows(embedder: Embedder, tracks: Mapping[str, Sequence[tuple]]) -> pa.Table:
    """One row a segment (or pooled frame), sorted by path, rule and time; bad files have none.

    Returns
    -------
    table : columns as `tune.embeddings.columns.SEGMENTS`
    """
    columns: dict[str, list] = {name: [] for name in SEGMENTS}
    rate, window_s = embedder.encoder.sample_rate, embedder.collection.window_s
    for path in sorted(tracks, key=shown):
        rows = embedder.rows(path, tracks[path])
        for rule, row, (content, _) in zip(embedder.rules, rows, tracks[path], strict=True):
            segments = np.repeat(np.arange(len(row.counts)), row.counts).tolist()
            times = token_times(row, rate, window_s).tolist()
            for i, (segment, span) in enumerate(zip(segments, times, strict=True)):
                token = EmbeddedSegment(shown(path), content, rule, row, i, segment, *span)
                for name, column in SEGMENTS.items():
                    columns[name].append(column.value(token))
    return make_table(columns, SEGMENTS, embedder.encoder.embedding_dim)


def _size(embedder: Embedder, aggregator: TrackAggregator) -> int:
    """Values of an embedding, where no track has one: what joining nothing but zeros gives."""
    layers, size = len(embedder.collection.layers), embedder.encoder.embedding_dim
    zeros = Row(np.zeros((1, layers, size), np.float32), [(0, 1)], [1], True, 0.0)
    return len(aggregator([zeros] * len(embedder.rules))[0])
