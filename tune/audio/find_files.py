"""Which files are meant: folders, lists, globs and single files to one sorted list of paths.

A folder is searched by endings (`ENDINGS`); a film is only read where it is named, and so is
anything else: what a file is says its content, not its ending.

A path is kept as it was written (a folder's files below the folder as it was written), so that it
leads to the file from where the command was given. A list (.txt, .m3u, .m3u8) has one file a line,
relative to the list's own folder; lines that begin with # say something else.
"""

import glob
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tune.audio.file_types import ENDINGS

log = logging.getLogger(__name__)

LISTS = {".txt", ".m3u", ".m3u8"}
FILMS = {".mp4", ".mkv", ".mov", ".avi", ".mpg", ".flv", ".m4v", ".wmv"}


def find_music(sources: Sequence[str | Path]) -> list[str]:
    """Paths of the tracks that are meant, sorted, each once.

    Parameters
    ----------
    sources : folders (with their subfolders, by audio endings), lists, globs, or files

    Returns
    -------
    list of str
        Also files that don't exist, where they were named one by one: those are reported later.

    Raises
    ------
    ValueError
        When a source finds nothing.
    """
    found: set[str] = set()
    for source in map(str, sources):
        if os.path.isdir(source):
            paths, others = _in_folder(source)
            reason = "no audio file by its ending" + (f", but {others}" if others else "")
        elif Path(source).suffix.lower() in LISTS:
            paths, reason = _in_list(Path(source)), "no line that names a file"
        elif glob.has_magic(source) and not os.path.exists(source):
            paths = [p for p in glob.glob(source, recursive=True) if os.path.isfile(p)]
            reason = "no file of that pattern"
        else:
            paths, reason = [source], ""
        if not paths:
            raise ValueError(f"{source} holds nothing to embed: {reason}")
        found.update(map(os.path.normpath, paths))
    return sorted(found, key=shown)


def shown(path: str) -> str:
    """A path as text that any file format holds: bytes that aren't UTF-8 are written \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_shard(paths: Sequence[str], shard: tuple[int, int] | None) -> list[str]:
    """Every n-th path from the i-th on: the share of machine i of n (counted from 0)."""
    return list(paths) if shard is None else list(paths[shard[0] :: shard[1]])


def _in_folder(folder: str) -> tuple[list[str], str]:
    """Audio files of a folder and its subfolders, by their endings, and the others, counted."""
    found, others = [], Counter()
    for root, _, names in os.walk(folder):
        for name in names:
            ending = Path(name).suffix.lower()
            if ending in ENDINGS:
                found.append(os.path.join(root, name))
            else:
                others[ending or "without an ending"] += 1
    counts = ", ".join(f"{n} {ending}" for ending, n in others.most_common())
    if FILMS & set(others):
        counts += " (films are read where they are named, one by one or as a pattern)"
    if found and others:
        log.info("%s: passed over, by their endings: %s", folder, shown(counts))
    return found, counts


def _in_list(path: Path) -> list[str]:
    """Files that a list names; its bytes are names as the file system has them."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise ValueError(f"the list {path} can't be read: {error.strerror or error}") from error
    named = [os.fsdecode(line.strip()) for line in lines]
    return [_located(name, path.parent) for name in named if name and not name.startswith("#")]


def _located(name: str, folder: Path) -> str:
    """A list's entry as a path."""
    if name.startswith("file://"):
        from urllib.request import url2pathname  # brings http.client, which a search doesn't need

        return url2pathname(urlsplit(name).path)
    return os.path.join(folder, os.path.expanduser(name))
