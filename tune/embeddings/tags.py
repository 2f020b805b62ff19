"""The tags of music files: artist, title, album, year and genre.

mutagen reads ID3 (1, 2.2 to 2.4), APEv2, Vorbis comments, MP4 and ASF, with all values where a tag
has several. Where it finds none FFmpeg looks, which keeps the first value only: in WAV's INFO,
Matroska, CAF.
"""

import re
import struct
from contextlib import suppress

TAGS = {  # the names of each, as the formats have them, the first that is there counts
    "artist": ("artist", "author", "tpe1", "albumartist", "album artist", "wm/albumartist", "tpe2"),
    "title": ("title", "tit2"),
    "album": ("album", "wm/albumtitle", "talb"),
    "year": ("date", "year", "wm/year", "tdrc"),
    "genre": ("genre", "wm/genre", "tcon"),
}
NAMES = {name for names in TAGS.values() for name in names}
BETWEEN = "; "  # several values


def read_tags(path: str) -> dict[str, str | int]:
    """The tags that a file has; none of a file that can't be opened.

    Parameters
    ----------
    path : an audio file

    Returns
    -------
    dict : name of `TAGS` -> text (several values joined by "; "), or the year as int. The artist of
        a file that names none is that of the album.
    """
    found = _by_mutagen(path) or _by_ffmpeg(path)
    tags: dict[str, str | int] = {}
    for tag, names in TAGS.items():
        texts = (BETWEEN.join(filter(None, map(str.strip, found.get(n, [])))) for n in names)
        text = next(filter(None, texts), "")
        year = re.search(r"\d{4}", text)
        if tag != "year" and text:
            tags[tag] = text
        elif tag == "year" and year:
            tags[tag] = int(year[0])
    return tags


def _by_mutagen(path: str) -> dict[str, list[str]]:
    """Lower-case names and values."""
    import mutagen
    from mutagen.apev2 import APEv2
    from mutagen.mp3 import MP3

    # Of damaged files mutagen raises other errors than its own.
    with suppress(mutagen.MutagenError, OSError, ValueError, LookupError, EOFError, struct.error):
        file = mutagen.File(path, easy=True)
        tags = (file and file.tags) or (APEv2(path) if isinstance(file, MP3) else {})
        names = [name for name in tags.keys() if name.lower() in NAMES]  # noqa: SIM118
        return {name.lower(): _texts(tags[name]) for name in names}
    return {}


def _texts(value) -> list[str]:
    """The values of a tag of any of mutagen's formats."""
    genres = getattr(value, "genres", None)  # of ID3: numbers as names
    values = genres or getattr(value, "text", value)
    return [values] if isinstance(values, str) else [str(each) for each in values]


def _by_ffmpeg(path: str) -> dict[str, list[str]]:
    """Lower-case names and values."""
    import av

    found: dict[str, list[str]] = {}
    with (
        suppress(OSError, ValueError, av.error.FFmpegError),
        av.open(path, metadata_errors="replace") as container,
    ):
        for holder in (*container.streams.audio[:1], container):
            found |= {name.lower(): [text] for name, text in holder.metadata.items()}
    return found
