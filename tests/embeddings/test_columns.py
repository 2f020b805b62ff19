"""A column of embed.py's files is one row of a table: every format writes and reads it."""

import numpy as np
import pyarrow as pa
import pytest

from tune.embeddings.columns import TRACKS, Column, EmbeddedTrack
from tune.embeddings.file_formats import Embeddings, make_table, merge, read, write


@pytest.mark.parametrize("name", ["e.parquet", "e.npy", "e"])
def test_a_new_column_is_written_read_and_merged(name, tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKS, "minutes", Column(pa.float64(), lambda t: t.duration_s / 60))
    tracks = [
        EmbeddedTrack("", path, None, "0" * 64, 90.0, 9, np.ones(3, np.float32)) for path in "ab"
    ]
    monkeypatch.setitem(TRACKS, "sample_rate", Column(pa.int32(), lambda t: 24_000))
    outs = []
    for i, track in enumerate(tracks):
        columns = {key: [column.value(track)] for key, column in TRACKS.items()}
        meta = {"shard": [i, 2], "n_tracks": 1, "n_failed": 0, "n_truncated": 0, "command": ""}
        outs.append(tmp_path / str(i) / name)
        write(outs[-1], Embeddings(make_table(columns, TRACKS, 3), meta, {}))
        assert read(outs[-1]).table["minutes"].to_pylist() == [1.5]
    whole = merge(list(map(str, outs))).table
    assert whole.schema.names == list(TRACKS)
    assert whole["minutes"].to_pylist() == [1.5, 1.5]
    assert whole["path"].to_pylist() == ["a", "b"]
