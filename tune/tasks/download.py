"""Fetching a task's data set: from the hub, or as archives from elsewhere.

Both go on where they were broken off, and show their progress. A folder that was fetched here is
marked when it is complete; one that was copied there is taken as it is.
"""

import hashlib
import logging
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import requests
from tqdm import tqdm

from tune.tasks.readers import SPLITS, TaskError, read_jsonl

log = logging.getLogger(__name__)

COMPLETE, FETCHING = ".tune-complete", ".tune-fetching"
TIMEOUT_S = 60
BLOCK_BYTES = 1 << 16


def hub_folder(row, data_dir: Path) -> Path:
    """The folder of a hub task, downloaded when it isn't there or was broken off."""
    folder = data_dir / row.place
    wanted = folder / f"{row.stem}.train.jsonl"
    # The hub's client leaves this folder; without our mark its download was broken off.
    broken_off = (folder / ".cache" / "huggingface").is_dir() and not (folder / COMPLETE).exists()
    there = wanted.exists()
    if there and not broken_off:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    problem = None
    try:
        snapshot_download(row.hub, repo_type="dataset", local_dir=folder)
        if wanted.exists() and _all_there(row, folder):
            (folder / COMPLETE).touch()
    except GatedRepoError as error:
        raise TaskError(gated(row.hub)) from error
    except Exception as error:  # the hub's client raises its own and its HTTP library's errors
        problem = error
        if there:
            log.warning("%s may be incomplete and could not be fetched again: going on", folder)
            return folder
    # Offline the client raises nothing when the folder is there, whatever is in it.
    if problem is not None or not wanted.exists():
        raise TaskError(
            f"{wanted} is missing and the data set {row.hub} could not be downloaded "
            f"({type(problem).__name__ if problem else 'unreachable, or without that file'}). "
            f"With a network, run again; without one, copy the data set's files into {folder} "
            f"(audio, {row.stem}.train.jsonl, .val.jsonl and .test.jsonl) or name another "
            f"--data_dir."
        ) from problem
    return folder


def _all_there(row, folder: Path) -> bool:
    """Say whether every file that the lists name came with the download, and warn if not."""
    rows, _ = read_jsonl({s: folder / f"{row.stem}.{s}.jsonl" for s in SPLITS})
    missing = [r["id"] for r in rows if not os.path.exists(r["path"])]
    if missing:
        log.warning(
            "%s: %d of %d audio files are missing after the download, such as %s: the next run "
            "fetches them",
            row.hub,
            len(missing),
            len(rows),
            missing[0],
        )
    return not missing


def gated(name: str) -> str:
    """What to do about a data set whose terms must be accepted."""
    return (
        f"the data set {name} is gated: accept its terms at https://huggingface.co/datasets/{name} "
        f"while logged in, then `hf auth login` (or set HF_TOKEN) and run again"
    )


def archive_folder(row, data_dir: Path, progress: bool = True) -> Path:
    """The folder of a task that comes as archives: fetched, checked and unpacked where missing."""
    folder = data_dir / row.place
    fetching = folder / FETCHING
    if folder.is_dir() and any(folder.iterdir()) and not fetching.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    fetching.touch()
    for url in row.archives:
        done = folder / f".{Path(url).name}.unpacked"
        if done.exists():
            continue
        try:
            file = fetch(url, folder / Path(url).name, progress=progress)
        except requests.RequestException as error:
            raise TaskError(
                f"{url} could not be downloaded ({type(error).__name__}). With a network, run "
                f"again, it goes on from where it was; without one, unpack it into {folder} and "
                f"remove {fetching}, or name another --data_dir."
            ) from error
        unpack(file, folder)
        file.unlink()
        done.touch()
    fetching.unlink()
    (folder / COMPLETE).touch()
    return folder


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
            bar = tqdm(
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
