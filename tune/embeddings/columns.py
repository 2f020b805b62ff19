"""Columns of files of embeddings: a name, its Arrow type, and how it is found.

A column is added by one row here; every format writes and reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

if TYPE_CHECKING:
    import numpy as np

    from tune.segments.rules import Rule
    from tune.store.collection import Row


class Column(NamedTuple):
    """A column; the type of the embedding is None, since it depends on its size."""

    kind: pa.DataType | None
    value: Callable


@dataclass(frozen=True)
class EmbeddedTrack:
    """The values for a track's row; of an unusable file only shown, path and reason are known.

    Attributes
    ----------
    path, shown : the file, and its path as text
    reason : why there is no embedding, or None
    content : SHA-256 of the file
    duration_s : float
    n_segments : of all segment rules together
    embedding : (D,) float32
    tags : as `tune.embeddings.tags.read_tags` gives them
    """

    path: str
    shown: str
    reason: str | None = None
    content: str | None = None
    duration_s: float | None = None
    n_segments: int | None = None
    embedding: np.ndarray | None = None
    tags: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class EmbeddedSegment:
    """The values for the row of a segment (or pooled frame).

    Attributes
    ----------
    rule, row : the segment rule, and the track's row in the store
    token : number of the token in that row
    segment : number of its segment
    start_s, end_s : float
    """

    shown: str
    content: str
    rule: Rule
    row: Row
    token: int
    segment: int
    start_s: float
    end_s: float


def _native_rate(track: EmbeddedTrack) -> int | None:
    """A usable file's own sample rate in Hz."""
    if track.content is None:
        return None
    from tune.audio.decode import read_header  # a search reads no audio

    return read_header(track.path).sample_rate


TRACKS = {
    "path": Column(pa.string(), lambda t: t.shown),
    "content_hash": Column(pa.string(), lambda t: t.content),
    "duration_s": Column(pa.float64(), lambda t: t.duration_s),
    "sample_rate": Column(pa.int32(), _native_rate),
    "n_segments": Column(pa.int32(), lambda t: t.n_segments),
    "artist": Column(pa.string(), lambda t: t.tags.get("artist")),
    "title": Column(pa.string(), lambda t: t.tags.get("title")),
    "album": Column(pa.string(), lambda t: t.tags.get("album")),
    "year": Column(pa.int32(), lambda t: t.tags.get("year")),
    "genre": Column(pa.string(), lambda t: t.tags.get("genre")),
    "embedding": Column(None, lambda t: t.embedding),
    "reason": Column(pa.string(), lambda t: t.reason),
}
SEGMENTS = {
    "path": Column(pa.string(), lambda s: s.shown),
    "content_hash": Column(pa.string(), lambda s: s.content),
    "seg": Column(pa.string(), lambda s: s.rule.name),
    "segment": Column(pa.int32(), lambda s: s.segment),
    "start_s": Column(pa.float64(), lambda s: s.start_s),
    "end_s": Column(pa.float64(), lambda s: s.end_s),
    "embedding": Column(None, lambda s: s.row.tokens[s.token, 0]),  # one layer
}
