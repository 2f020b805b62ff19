"""Tags of files in several formats, and where they go: the playlist."""

import io

import av
import numpy as np
import pytest

from tune.embeddings import file_formats as files
from tune.embeddings.columns import TRACKS
from tune.embeddings.similar import nearest, song_item, write_playlist
from tune.embeddings.tags import read_tags

TAGS = {
    "artist": "Ása & 이상",
    "title": "One\nTwo",
    "album": "LP",
    "date": "1999-05-01",
    "genre": "Folk",
}


def write(path, codec, container, tags=TAGS):
    """A second of a tone with tags."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        out.metadata.update(tags)
        stream = out.add_stream(codec, rate=48_000, layout="mono")
        wave = (0.2 * np.sin(np.arange(48_000) / 20)).astype("f4")[None]
        for start in range(0, 48_000, 960):
            part = np.ascontiguousarray(wave[:, start : start + 960])
            frame = av.AudioFrame.from_ndarray(part, "fltp", "mono")
            frame.sample_rate, frame.pts = 48_000, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    path.write_bytes(file.getvalue())


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libmp3lame", "mp3"), ("flac", "flac"), ("libopus", "ogg"), ("aac", "ipod")],
)
def test_tags_of_a_format(tmp_path, codec, container):
    write(tmp_path / "a", codec, container)
    found = read_tags(str(tmp_path / "a"))
    assert found == {
        "artist": "Ása & 이상",
        "title": "One\nTwo",
        "album": "LP",
        "year": 1999,
        "genre": "Folk",
    }


def test_a_file_without_tags_or_without_sound_has_none(tmp_path):
    write(tmp_path / "a.flac", "flac", "flac", {"date": "unknown"})
    (tmp_path / "b.mp3").write_text("no music")
    for name in ("a.flac", "b.mp3", "nothing.mp3"):
        assert read_tags(str(tmp_path / name)) == {}


def test_the_playlist_has_names_and_true_lengths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.flac", "flac", "flac")
    columns = {
        "path": ["a.flac", "b.flac", "c.flac"],
        "content_hash": ["1", "2", "3"],
        "duration_s": [61.6, 200.0, 5.0],
        "artist": ["A", None, "C"],
        "title": ["One\nTwo", None, "Three"],
        "embedding": list(np.array([[1, 0], [1, 0.1], [-1, 0]], "f4")),
        "reason": [None] * 3,
    }
    made = files.Embeddings(files.make_table(columns, TRACKS, 2), {}, {})
    found = nearest(made, "a.flac", 2)
    write_playlist(tmp_path / "l.m3u", song_item(made, "a.flac"), found, [tmp_path])
    assert (tmp_path / "l.m3u").read_text().splitlines() == [
        "#EXTM3U",
        "#EXTINF:62,A - One Two",
        "a.flac",
        "#EXTINF:200,b",
        "b.flac",
        "#EXTINF:5,C - Three",
        "c.flac",
    ]
    write(tmp_path / "d.flac", "flac", "flac")
    item = song_item(made, "d.flac")  # of a file that isn't in the table
    assert (item["artist"], round(item["duration_s"])) == ("Ása & 이상", 1)
