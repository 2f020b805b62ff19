"""Playlists: a song and what was found to be like it, as M3U."""

import os
from collections.abc import Sequence
from pathlib import Path

from tune.embeddings.file_formats import Embeddings
from tune.embeddings.nearest import described, find_song


def write_playlist(
    path: Path, song: dict | None, found: Sequence[dict], folders: Sequence[Path]
) -> None:
    """Write the song and its neighbours as an M3U, relative to the playlist's own folder.

    Parameters
    ----------
    song : its path, duration_s, artist and title, the last two may be None; None: left out
    found : those of each; what isn't known (of segments) is read from the files
    folders : that the tracks' paths may be relative to; the first with such a file is used

    Raises
    ------
    ValueError
        When a track isn't found: the paths are relative to the folder where embed.py ran.
    """
    lines = ["#EXTM3U"]
    for item in filter(None, (song, *found)):
        name = item["path"]
        place = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if place is None:
            raise ValueError(f"{name} not found: give the folder where embed.py ran by --root")
        if item.get("duration_s") is None:  # a table of segments doesn't say
            item = file_item(str(place))
        relative = os.path.relpath(place.resolve(), path.resolve().parent)
        named = " - ".join(filter(None, (item["artist"], item["title"]))) or place.stem
        named = " ".join(named.split())  # a line break in a tag would end the line
        lines += [f"#EXTINF:{round(item['duration_s'])},{named}", relative]
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def song_item(made: Embeddings, song: str) -> dict:
    """Path, length, artist and title of the song, as they are in the table, or in the file."""
    row = find_song(made, song)
    if row is not None:
        return described(made, row) | ({"path": song} if os.path.isfile(song) else {})
    return file_item(song)


def file_item(path: str) -> dict:
    """Path, length, artist and title of a file."""
    from tune.audio.decode import read_header
    from tune.embeddings.tags import read_tags

    empty = dict.fromkeys(("artist", "title"))
    return empty | read_tags(path) | {"path": path, "duration_s": read_header(path).seconds}
