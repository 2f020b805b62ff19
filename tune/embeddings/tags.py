"""The tags of music files: artist, title, album, year and genre, of any format, by FFmpeg."""

import re
from contextlib import suppress

TAGS = ("artist", "title", "album", "year", "genre")


def read_tags(path: str) -> dict[str, str | int]:
    """The tags that a file has; none of a file that can't be opened.

    Parameters
    ----------
    path : an audio file

    Returns
    -------
    dict : name of `TAGS` -> text, or the year as int
    """
    import av

    found: dict[str, str] = {}
    with (
        suppress(OSError, ValueError, av.error.FFmpegError),
        av.open(path, metadata_errors="replace") as container,
    ):
        for stream in container.streams.audio[:1]:  # Ogg keeps them there
            found |= {name.lower(): text.strip() for name, text in stream.metadata.items()}
        found |= {name.lower(): text.strip() for name, text in container.metadata.items()}
    tags: dict[str, str | int] = {name: found[name] for name in TAGS if found.get(name)}
    date = re.search(r"\d{4}", found.get("date") or found.get("year") or "")
    tags.pop("year", None)
    return tags | ({"year": int(date[0])} if date else {})
