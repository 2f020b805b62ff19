"""Download freely licensed music for pretraining: the soundtracks of free games in Debian.

    python tools/muq_nano/game_music.py --out game-music                # all packages of the list
    python tools/muq_nano/game_music.py --out game-music --packages naev-data asc-music
    accelerate launch tools/muq_nano/pretrain_nano.py --out nano --audio_dir game-music

The list (tools/muq_nano/game_music.tsv) names packages of Debian 12 with their sizes and SHA-256
sums; all are of its section main, so under free licences. They are downloaded one after the other,
verified and unpacked without apt or root; nothing in them is executed. Audio files of 30 s or more
are kept unchanged; shorter ones are sound effects.

    OUT/PACKAGE/001-NAME.ogg ...      tracks; a folder is a game
    OUT/PACKAGE/copyright             who made them, and their licences
    OUT/PACKAGE/source.json           package, sum, and where in it each track was

The six games of the task gamemusic aren't in the list, nor is flare-game, which plays a track of
one of them: that task's val and test tracks are never trained on. If interrupted, the same command
continues; a package that can't be downloaded is reported and skipped (--strict: ends).
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (2, 1)]  # tune, muq_nano

from tune.cli.parser import (
    Parser,
    positive_float,
    read_arguments,
    run_script,
    set_up_logging,
    to_bool,
)

LIST = Path(__file__).with_suffix(".tsv")


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="game_music.py", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the music; packages that are there aren't fetched again",
    )
    parser.add_argument("--packages", nargs="+", metavar="NAME", help="only these of the list")
    parser.add_argument(
        "--list",
        type=Path,
        default=LIST,
        metavar="FILE",
        help="lines of package, path below the mirror, bytes and SHA-256, separated by tabs",
    )
    parser.add_argument(
        "--mirror",
        default="https://deb.debian.org/debian",
        metavar="URL",
        help="of Debian's archive; when it no longer has Debian 12: "
        "https://snapshot.debian.org/archive/debian/20251101T000000Z",
    )
    parser.add_argument(
        "--min_seconds",
        type=positive_float,
        default=30.0,
        metavar="SECONDS",
        help="shorter files are left out",
    )
    parser.add_argument(
        "--strict",
        nargs="?",
        const=True,
        default=False,
        type=to_bool,
        metavar="BOOL",
        help="stop at the first package that can't be downloaded",
    )
    return parser.parse_args(argv)


args = read_arguments(parse_args) if __name__ == "__main__" else None

import hashlib
import json
import logging
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator

import requests

from tune.audio.decode import SUFFIXES, AudioError, read_header
from tune.tasks.download import fetch
from tune.tasks.readers import TaskError

ARCHIVES = {".pk3", ".pk4", ".zip"}  # in which some games keep their music
AR_HEADER = 60  # bytes before each member of a .deb

log = logging.getLogger("tune.game_music")


def main(args) -> None:
    """Fetch what is missing, and say what is there."""
    set_up_logging(True)
    rows = read_list(args.list, args.packages)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file; the music needs a folder")
    args.out.mkdir(parents=True, exist_ok=True)
    failed, tracks, seconds = [], 0, 0.0
    for package, place, size, digest in rows:
        folder = args.out / package
        if not (folder / "source.json").exists():
            try:
                get(folder, f"{args.mirror.rstrip('/')}/{place}", size, digest, args.min_seconds)
            except (TaskError, requests.RequestException) as error:
                if args.strict:
                    raise ValueError(f"{package}: {error}") from error
                log.warning("%s left out: %s", package, error)
                failed.append(package)
                continue
        found = json.loads((folder / "source.json").read_text(encoding="utf-8"))["tracks"]
        tracks, seconds = tracks + len(found), seconds + sum(t["seconds"] for t in found)
        print(
            f"{package:28s} {len(found):4d} tracks "
            f"{sum(t['seconds'] for t in found) / 60:7.1f} min",
            flush=True,
        )
    print(
        f"{tracks} tracks of {len(rows) - len(failed)} packages, {seconds / 3600:.1f} h, "
        f"in {args.out}; {len(failed)} packages left out"
    )
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(rows)} packages not downloaded ({', '.join(failed[:3])}): "
            f"run again, or try another --mirror"
        )


def read_list(file: Path, chosen: list[str] | None) -> list[tuple[str, str, int, str]]:
    """Rows of (package, place, bytes, SHA-256) of the list, or the chosen ones of them."""
    wanted = "it needs lines of package, path, bytes and SHA-256, separated by tabs"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(f"--list {file} can't be read ({reason}): {wanted}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        if len(columns) != 4 or not columns[2].isdigit():
            raise ValueError(f"--list {file}, line {number}, is no package: {wanted}")
        rows.append((columns[0], columns[1], int(columns[2]), columns[3]))
    unknown = sorted(set(chosen or ()) - {r[0] for r in rows})
    if unknown:
        raise ValueError(f"--packages {unknown[0]} is not in {file}")
    return [r for r in rows if chosen is None or r[0] in chosen]


def get(folder: Path, url: str, size: int, digest: str, min_seconds: float) -> None:
    """Download a package and keep its music; the folder appears whole or not at all.

    Raises
    ------
    TaskError
        When what came is not what the list says, or can't be unpacked.
    """
    file = fetch(url, folder.with_name(folder.name + ".deb"))
    try:
        with open(file, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if (file.stat().st_size, found) != (size, digest):
            raise TaskError(f"{url} is another file than the list says (SHA-256 {found})")
        part = folder.with_name(folder.name + ".partial")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            tracks = unpack(file, part, min_seconds)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise TaskError(f"{url} can't be unpacked ({error})") from error
    finally:
        file.unlink()
    source = {"package": folder.name, "url": url, "sha256": digest, "tracks": tracks}
    (part / "source.json").write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
    part.rename(folder)


def unpack(file: Path, folder: Path, min_seconds: float) -> list[dict]:
    """Write a package's music and its copyright file into the folder.

    Returns
    -------
    list of {"file", "place", "seconds"}, in the package's order
    """
    tracks = []
    with open(file, "rb") as opened, tarfile.open(fileobj=at_data(opened), mode="r|*") as archive:
        for place, content in audio_in(archive):
            if place.endswith("/copyright"):
                (folder / "copyright").write_bytes(content)
                continue
            part = folder / f"{len(tracks) + 1:03d}-{Path(place).name}"
            part.write_bytes(content)
            try:
                seconds = read_header(part).seconds
            except AudioError as error:
                log.warning("%s left out: %s", place, error)
                seconds = 0
            if seconds < min_seconds:
                part.unlink()
                continue
            tracks.append({"file": part.name, "place": place, "seconds": round(seconds, 2)})
    return tracks


def at_data(opened):
    """The opened .deb, an ar of a version, a control and a data archive, at the last of them.

    Raises
    ------
    TaskError
        When it isn't a .deb.
    """
    if opened.read(8) != b"!<arch>\n":
        raise TaskError(f"{opened.name} is not a .deb")
    while len(header := opened.read(AR_HEADER)) == AR_HEADER:
        if not header[48:58].strip().isdigit():
            break
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return opened
        opened.seek(size + size % 2, 1)
    raise TaskError(f"{opened.name} holds no data archive")


def audio_in(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """(place, bytes) of the audio files and the copyright file, also of archives within."""
    for member in archive:
        suffix = Path(member.name).suffix.lower()
        wanted = suffix in SUFFIXES | ARCHIVES or member.name.endswith("/copyright")
        if not member.isfile() or not wanted:
            continue
        content = archive.extractfile(member)
        if suffix not in ARCHIVES:
            yield member.name, content.read()
            continue
        with tempfile.TemporaryFile() as inner:
            shutil.copyfileobj(content, inner)
            with zipfile.ZipFile(inner) as opened:
                for name in opened.namelist():
                    if Path(name).suffix.lower() in SUFFIXES:
                        yield f"{member.name}!{name}", opened.read(name)


if __name__ == "__main__":
    run_script(lambda: main(args))
