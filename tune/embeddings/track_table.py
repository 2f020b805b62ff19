"""From the store to tables of embeddings: a row for each track, or for each segment."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from tune.aggregators.track_aggregator import TrackAggregator
from tune.aggregators.track_features import token_times
from tune.audio.decode import AudioError
from tune.audio.find_files import shown
from tune.embeddings.columns import SEGMENTS, TRACKS, EmbeddedSegment, EmbeddedTrack
from tune.embeddings.embedder import Embedder
from tune.embeddings.file_formats import make_table, read
from tune.embeddings.tags import read_tags
from tune.runs.result import versions
from tune.store.collection import Row
from tune.system.progress import progress_bar


@dataclass(frozen=True)
class Kept:
    """Rows of the file that a command wrote before, of tracks that haven't changed since.

    So embedding a folder again, of which little has changed, opens only what is new.

    Attributes
    ----------
    rows : path -> its row in the table
    table : of the file
    gone : rows of the file whose tracks aren't there any more
    """

    rows: dict[str, int] = field(default_factory=dict)
    table: pa.Table | None = None
    gone: int = 0

    @classmethod
    def of(cls, out: Path, embedder: Embedder, paths: Sequence[str]) -> "Kept":
        """The rows that can be kept; none where the settings or the versions differ.

        Parameters
        ----------
        out : the file, which need not exist
        paths : the tracks that are to be embedded
        """
        row = embedder.aggregator_row
        # What is fitted on all tracks, or as long as the longest of them, depends on all.
        if not out.exists() or row.whitening or row.fixed_n or embedder.learned:
            return cls()
        made = read(out)
        same = json_of(embedder.describe(embedder.aggregator({}))) | {"versions": versions()}
        if made.meta.get("n_truncated") or any(made.meta.get(k) != v for k, v in same.items()):
            return cls()
        if not {*TRACKS} <= {*made.table.schema.names}:
            return cls()
        names = made.table["path"].to_pylist()
        contents = made.table["content_hash"].to_pylist()
        there = {names[i]: int(i) for i in np.flatnonzero(made.usable)}
        rows = {}
        for path in paths:
            i = there.get(shown(path))
            if i is not None and _content(embedder, path) == contents[i]:
                rows[path] = i
        gone = len({*names} - {shown(path) for path in paths})
        return cls(rows, made.table.select(list(TRACKS)), gone)


def json_of(record: Mapping) -> dict:
    """A record as a file holds it."""
    return json.loads(json.dumps(record))


def _content(embedder: Embedder, path: str) -> str | None:
    """The hash of a file's bytes, from the store where it hasn't changed; None of no file."""
    try:
        return embedder.extractor.store.content(path)
    except AudioError:
        return None


def track_rows(
    embedder: Embedder,
    aggregator: TrackAggregator,
    tracks: Mapping[str, Sequence[tuple]],
    bad: Mapping[str, str],
    kept: Kept | None = None,
) -> tuple[pa.Table, int]:
    """One row a track, sorted by path; a bad file has its reason and no embedding.

    Parameters
    ----------
    tracks, bad : as `Embedder.encode` returns them
    kept : rows of other tracks, taken as they are

    Returns
    -------
    table : columns as `tune.embeddings.columns.TRACKS`
    truncated : tracks that had more tokens than the aggregator takes
    """
    columns: dict[str, list] = {name: [] for name in TRACKS}
    truncated = 0
    paths = sorted([*tracks, *bad], key=shown)
    for path in progress_bar(paths, desc="join", unit="track", leave=False):
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
                tags=read_tags(path),
            )
        for name, column in TRACKS.items():
            columns[name].append(column.value(track))
    size = next((len(v) for v in columns["embedding"] if v is not None), None)
    table = make_table(columns, TRACKS, size or _size(embedder, aggregator))
    return _joined(table, kept) if kept and kept.rows else table, truncated


def _joined(new: pa.Table, kept: Kept) -> pa.Table:
    """New and kept rows, sorted by path."""
    old = kept.table.take(list(kept.rows.values())).cast(new.schema)
    both = pa.concat_tables([new, old])
    paths = both["path"].to_pylist()
    return both.take(sorted(range(len(paths)), key=paths.__getitem__)).combine_chunks()


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
