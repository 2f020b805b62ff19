"""Data sets that come as archives; what is said and asked before any download.

A download goes on where it was broken off, within the file, and shows its progress. A folder that
was fetched here is marked when it is complete; one that was copied there is taken as it is.
(`tune.tasks.hub_download` fetches from the hub.)
"""

import hashlib
import logging
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import requests

from tune.system.progress import progress_bar
from tune.tasks.rows import TaskError, number

log = logging.getLogger(__name__)

COMPLETE, FETCHING = ".tune-complete", ".tune-fetching"
TIMEOUT_S = 60
BLOCK_BYTES = 1 << 16
ASK_ABOVE_BYTES = 20 * 10**9
UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("bytes", 1))


def announce(
    what: str,
    n_bytes: int,
    folder: Path,
    *,
    n_files: int = 1,
    licence: str = "",
    unpacked_bytes: int = 0,
    yes: bool = False,
) -> None:
    """Say how much is about to be fetched, before the first byte; above 20 GB, ask.

    Parameters
    ----------
    what : the data set or archive
    folder : where it goes
    licence : as far as it is known
    unpacked_bytes : room that its archives take when they are unpacked, at least
    yes : don't ask

    Raises
    ------
    TaskError
        When the disk has no room for it, the answer is no, or there's no terminal to ask in.
    """
    free = shutil.disk_usage(folder).free
    size = size_text(n_bytes) if n_bytes else "of unknown size"
    text = (
        f"{what}: {number(n_files, 'file')} to fetch, {size}, into {folder} (licence: "
        f"{licence or 'not stated'}; free on this disk: {size_text(free)})"
    )
    if n_bytes + unpacked_bytes > free:
        raise TaskError(
            f"{text}: there is no room for {'it' * (n_files == 1) or 'them'}: free some space, or "
            f"name a --data_dir on a larger disk"
        )
    log.info("%s", text)
    if n_bytes <= ASK_ABOVE_BYTES or yes:
        return
    if not (sys.stdin and sys.stdin.isatty()):
        raise TaskError(f"{text}: above {size_text(ASK_ABOVE_BYTES)} only with --yes")
    if input("Fetch this? [y/N] ").strip().lower() not in ("y", "yes"):
        raise TaskError(f"{what} was not fetched, as you said")


def size_text(n_bytes: int) -> str:
    """An amount of data.

    Examples
    --------
    >>> size_text(1_234_567), size_text(512_300_000_000)
    ('1.2 MB', '512.3 GB')
    """
    unit, factor = next((u, f) for u, f in UNITS if n_bytes >= f or f == 1)
    return f"{n_bytes / factor:.1f} {unit}" if factor > 1 else f"{n_bytes} {unit}"


def archive_folder(
    row, data_dir: Path, progress: bool = True, *, yes: bool = False, download: bool = True
) -> Path:
    """The folder of a task that comes as archives: fetched, checked and unpacked where missing.

    Parameters
    ----------
    yes : fetch also more than 20 GB without asking
    download : whether what is missing is fetched

    Raises
    ------
    TaskError
        When it isn't there and can't be fetched.
    """
    folder = data_dir / row.place
    fetching = folder / FETCHING
    if folder.is_dir() and any(folder.iterdir()) and not fetching.exists():
        return folder
    if not download:
        raise TaskError(f"{folder} isn't there, or its download was broken off")
    url = row.archives[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetching.touch()
        marks = {url: folder / f".{Path(url).name}.unpacked" for url in row.archives}
        left = [url for url, mark in marks.items() if not mark.exists()]
        sizes = [_bytes_left(url, folder) for url in left]
        announce(
            f"{row.place} from {row.source or row.archives[0]}",
            sum(sizes),
            folder,
            n_files=len(left),
            licence=row.licence,
            unpacked_bytes=max(sizes, default=0),
            yes=yes,
        )
        for url in left:
            file = fetch(url, folder / Path(url).name, progress=progress)
            unpack(file, folder)
            file.unlink()
            marks[url].touch()
    except requests.RequestException as error:
        raise TaskError(
            f"{url} could not be downloaded ({_reason(error)}). With a network, run again, it goes "
            f"on from where it was; without one, unpack it into {folder} and remove {fetching}, or "
            f"name another --data_dir."
        ) from error
    except OSError as error:  # the disk is full, or so
        raise TaskError(
            f"{url} could not be written to {folder} ({error.strerror or error}): free some space, "
            f"or name a --data_dir on another disk, and run again, it goes on from where it was"
        ) from error
    fetching.unlink()
    (folder / COMPLETE).touch()
    return folder


def _bytes_left(url: str, folder: Path) -> int:
    """How much of an archive is still to be fetched; 0 where the server doesn't say."""
    part = folder / (Path(url).name + ".part")
    answer = requests.head(url, allow_redirects=True, timeout=TIMEOUT_S)
    size = int(answer.headers.get("Content-Length") or 0) if answer.ok else 0
    return max(0, size - (part.stat().st_size if part.exists() else 0))


def _reason(error: requests.RequestException) -> str:
    """Why a request failed, in a few words."""
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    cause = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {cause}" if cause else type(error).__name__


def fetch(url: str, to: Path, *, progress: bool = True) -> Path:
    """Download a file, going on with what is there of it.

    Its size is checked against what the server says, and its MD5 where the server is Zenodo.

    Raises
    ------
    TaskError
        When what came is not what the server announced; it is fetched anew the next time.
    """
    part = to.with_name(to.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 416:  # all of it is there, or more than there is
            size = int(answer.headers.get("Content-Range", f"*/{have}").split("/")[-1])
        else:
            answer.raise_for_status()
            if have and answer.status_code != 206:  # this server starts from the beginning
                have = 0
            size = have + int(answer.headers.get("Content-Length") or 0)
            bar = progress_bar(
                total=size or None,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=to.name,
                disable=not progress,
            )
            with open(part, "ab" if have else "wb") as file, bar:
                for block in answer.iter_content(BLOCK_BYTES):
                    file.write(block)
                    bar.update(len(block))
    found = part.stat().st_size
    expected = _zenodo_md5(url)
    wrong = f"{found} bytes of {size}" if size and found != size else None
    if wrong is None and expected and _md5(part) != expected:
        wrong = f"MD5 {_md5(part)}, not {expected}"
    if wrong:
        if not size or found >= size:
            part.unlink()
        raise TaskError(f"{url} did not arrive whole ({wrong}): run again")
    part.rename(to)
    return to


def unpack(file: Path, folder: Path) -> None:
    """Unpack a tar or zip; nothing is written outside the folder.

    Raises
    ------
    TaskError
        When it can't be unpacked.
    """
    try:
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:  # it strips .. and leading slashes itself
                archive.extractall(folder)
        else:
            with tarfile.open(file) as archive:
                archive.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk is full, or so
            raise
        raise TaskError(f"{file} can't be unpacked ({error}): remove it and run again") from error
    shutil.rmtree(folder / "__MACOSX", ignore_errors=True)


def _zenodo_md5(url: str) -> str | None:
    """The MD5 that Zenodo gives for a file of a record; None for other servers."""
    found = re.match(r"https://zenodo\.org/records?/(\d+)/files/([^?/]+)", url)
    if not found:
        return None
    answer = requests.get(f"https://zenodo.org/api/records/{found[1]}", timeout=TIMEOUT_S)
    answer.raise_for_status()
    sums = {f.get("key"): str(f.get("checksum", "")) for f in answer.json().get("files", [])}
    text = sums.get(found[2], "")
    return text.removeprefix("md5:") if text.startswith("md5:") else None


def _md5(path: Path) -> str:
    """MD5 of a file, as Zenodo has it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
