"""Fetching a task's data set from the hub: its lists first, then exactly the files they name.

FOLDER/.tune-hub.json records the commit and, of every file a task needs, its size, its hash and the
time at which it was last compared with that. A run whose files are all there asks the hub nothing.
What is missing, of another size, or changed since and no longer of that hash, is fetched again; a
download that was killed goes on with the files that are still missing. A folder without a record
was copied there: it is taken as it is.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from filelock import FileLock
from tqdm import tqdm

from tune.system.files import atomic_write_text
from tune.system.hub_errors import explain
from tune.system.progress import progress_bar
from tune.tasks.download import COMPLETE, announce
from tune.tasks.rows import SPLITS, TaskError, number

log = logging.getLogger(__name__)

RECORD, LOCK = ".tune-hub.json", ".tune-hub.lock"
WORKERS = 8  # files fetched at a time, as the hub's client does
SAVE_EVERY_S = 30.0
BLOCK_BYTES = 1 << 20
SHOWN = 12  # digits of a commit


@dataclass
class Record:
    """The data set that a folder holds, or is getting.

    Attributes
    ----------
    repo, commit : which data set, in which state
    revision : branch or tag that was asked for, if any
    licence : as its card names it, if it does
    files : by name in the repository, or of a file inside a zip: size in bytes; hash (SHA-256, or
        git's SHA-1 of a small text); checked, the file's time in ns when it had that hash, None
        before; zip, the name of the zip that it comes from, or None
    absent : files that the lists name, as they are written there, but the data set does not hold
    """

    repo: str
    commit: str
    revision: str | None = None
    licence: str | None = None
    files: dict[str, dict] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """A folder's record; None where it has none."""
        try:
            return cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise TaskError(
                f"{folder / RECORD} is damaged ({error}): remove it and {folder}, and run again"
            ) from error

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        atomic_write_text(folder / RECORD, json.dumps(asdict(self)))

    def is_of(self, revision: str | None) -> bool:
        """Say whether it is of the revision asked for; of any where none is."""
        long_enough = revision and len(revision) >= 7 and self.commit.startswith(revision)
        return revision in (None, self.revision) or bool(long_enough)

    def lacking(self, folder: Path, names: Iterable[str]) -> list[str]:
        """Files that are not there as the hub has them; those changed since are hashed."""
        return [name for name in names if not self._is_whole(folder / name, self.files[name])]

    @staticmethod
    def _is_whole(path: Path, entry: dict) -> bool:
        try:
            stat = path.stat()
        except OSError:
            return False
        if stat.st_size != entry["size"]:
            return False
        if stat.st_mtime_ns != entry["checked"]:
            if hash_of(path, entry["hash"]) != entry["hash"]:
                return False
            entry["checked"] = stat.st_mtime_ns
        return True


def hash_of(path: Path, like: str) -> str:
    """SHA-256 of a file, or git's SHA-1 where `like` is one."""
    with path.open("rb") as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha1(b"blob %d\0" % path.stat().st_size + file.read()).hexdigest()


def hub_folder(
    row,
    data_dir: Path,
    *,
    revision: str | None = None,
    yes: bool = False,
    progress: bool = True,
    download: bool = True,
) -> Path:
    """The folder of a task of the hub, with the files that its lists name.

    Parameters
    ----------
    row : tune.tasks.registry.TaskRow
    revision : branch, tag or commit; by default the one that is there, else the main branch
    yes : fetch also more than 20 GB without asking
    download : whether what is missing is fetched; if not, the lists must be there

    Raises
    ------
    TaskError
        When the files are not there and can't be fetched.
    """
    folder = data_dir / row.place
    lists = [f"{row.stem}.{split}.jsonl" for split in SPLITS]
    there = all((folder / name).is_file() for name in lists)
    # An older version's download without its mark was broken off.
    broken_off = (folder / ".cache" / "huggingface").is_dir() and not (folder / COMPLETE).exists()
    if there and not broken_off and not (folder / RECORD).exists():
        if revision:
            raise TaskError(
                f"{folder} was copied there, not fetched by a run, so its revision isn't known: "
                f"leave out --data_revision, or name another --data_dir"
            )
        return folder
    if (there and not download) or _is_complete(folder, row, lists, revision):
        return folder
    if not download:
        raise TaskError(f"{folder} does not hold {' and '.join(lists)}")
    made = [path for path in (folder, data_dir) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):  # of several processes one fetches
            if not _is_complete(folder, row, lists, revision):
                _Download(row, folder, revision, progress).run(lists, yes)
    except TaskError:
        raise
    except Exception as error:  # the hub's client raises its own and its HTTP library's errors
        if folder in made and set(os.listdir(folder)) <= {LOCK}:  # nothing came
            (folder / LOCK).unlink(missing_ok=True)
            for path in made:
                path.rmdir()
        reason = explain(
            error, row.hub, "dataset", revision, disk="name a --data_dir on", flag="--data_revision"
        )
        if all((folder / name).is_file() for name in lists):
            advice = "The next run goes on with the files that are still missing"
        else:
            advice = (
                f"Without a network, copy the data set's files into {folder} (audio, "
                f"{row.stem}.train.jsonl, .val.jsonl and .test.jsonl) or name another --data_dir"
            )
        raise TaskError(f"{folder} is not whole: {reason}. {advice}.") from error
    return folder


def commit_of(folder: Path) -> str | None:
    """The hub's commit of a folder that a run fetched."""
    record = Record.read(folder)
    return record and record.commit


def _is_complete(folder: Path, row, lists: list[str], revision: str | None) -> bool:
    """Say, without a request, whether everything is there."""
    record = Record.read(folder)
    if record is None or not record.is_of(revision) or not record.files.keys() >= set(lists):
        return False
    if record.lacking(folder, lists):
        return False
    named = {w: _known(w, row, record.files) for w in named_files(folder, lists)}
    if any(name is None and written not in record.absent for written, name in named.items()):
        return False
    before = [entry["checked"] for entry in record.files.values()]
    lacking = record.lacking(folder, [name for name in named.values() if name])
    if before != [entry["checked"] for entry in record.files.values()] and os.access(
        folder, os.W_OK
    ):
        record.save(folder)  # so that they are hashed once
    return not lacking


def named_files(folder: Path, lists: Iterable[str]) -> list[str]:
    """The audio files that lists name, as they are written there; lines that are no rows are out.

    Paths that lead elsewhere (`..`, absolute) are out, too.
    """
    found = {}
    for name in lists:
        for line in (folder / name).read_bytes().splitlines():
            try:
                written = str(json.loads(line)["audio_path"]).strip()
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            path = PurePosixPath(written)
            if written and not path.is_absolute() and ".." not in path.parts:
                found[path.as_posix()] = None
    return list(found)


def _spellings(written: str, place: str) -> list[str]:
    """Names that a written path may have in the repository: data/GTZAN/a.wav is a.wav there."""
    bare = written.removeprefix("data/").removeprefix(f"{place}/")
    return [bare, written]


def _known(written: str, row, files) -> str | None:
    """Which of some files a written path names, or None."""
    return next((name for name in _spellings(written, row.place) if name in files), None)


class _Download:
    """One task's download into its folder."""

    def __init__(self, row, folder: Path, revision: str | None, progress: bool):
        self.row, self.folder, self.revision, self.progress = row, folder, revision, progress
        self.had = Record.read(folder)

    def run(self, lists: list[str], yes: bool) -> None:
        """Fetch the lists, then what they name."""
        for orphan in (self.folder / ".cache" / "huggingface").rglob("*.incomplete"):
            orphan.unlink(missing_ok=True)  # of a client that was killed
        self.record = self._begin()
        tree = self._tree() if not self.record.files.keys() >= set(lists) else None
        if tree is not None:
            self._enter(tree, lists)
        lacking = self.record.lacking(self.folder, lists)
        self._refuse_foreign(lacking)
        self._fetch(lacking, quiet=True)
        wanted = named_files(self.folder, lists)
        unknown = [w for w in self._unknown(wanted) if w not in self.record.absent]
        if unknown and tree is None:
            tree = self._tree()
        zips = self._enter_files(tree, unknown) if unknown else []
        names = [_known(written, self.row, self.record.files) for written in wanted]
        lacking = self.record.lacking(self.folder, [name for name in names if name])
        zips += [
            self.record.files[name]["zip"] for name in lacking if self.record.files[name]["zip"]
        ]
        lacking = [name for name in lacking if not self.record.files[name]["zip"]]
        zips = list(dict.fromkeys(zips))
        lacking += self.record.lacking(self.folder, zips)
        self.record.save(self.folder)
        n_bytes = sum(self.record.files[name]["size"] for name in lacking)
        if lacking:
            self._refuse_foreign(lacking)
            announce(
                f"{self.row.hub} at {self.record.commit[:SHOWN]}",
                n_bytes,
                self.folder,
                n_files=len(lacking),
                licence=self.record.licence or self.row.licence,
                unpacked_bytes=sum(self.record.files[name]["size"] for name in zips),
                yes=yes,
            )
            self._fetch(lacking)
        for name in zips:
            self._unpack(name, wanted)
        if missing := self._unknown(wanted):
            log.warning(
                "%s lacks %d of the %d files that its lists name, such as %s",
                *(self.row.hub, len(missing), len(wanted), missing[0]),
            )
            self.record.absent = sorted({*self.record.absent, *missing})
        self.record.save(self.folder)

    def _unknown(self, wanted: list[str]) -> list[str]:
        """Files that are not in the record."""
        return [w for w in wanted if not _known(w, self.row, self.record.files)]

    def _begin(self) -> Record:
        """The record to fill: the folder's own, or of the commit that is asked for."""
        from huggingface_hub import HfApi

        if self.had is not None and self.had.is_of(self.revision):
            return self.had
        info = HfApi().dataset_info(self.row.hub, revision=self.revision)
        card = info.card_data or {}
        record = Record(self.row.hub, info.sha, self.revision, card.get("license"))
        if self.had is not None and self.had.commit == record.commit:
            record.files, record.absent = self.had.files, self.had.absent
        elif self.had is not None:
            log.warning(
                "%s is changed from commit %s to %s",
                *(self.folder, self.had.commit[:SHOWN], record.commit[:SHOWN]),
            )
        return record

    def _tree(self) -> dict:
        """The repository's files, by name."""
        from huggingface_hub import HfApi

        found = HfApi().list_repo_tree(
            self.row.hub, recursive=True, revision=self.record.commit, repo_type="dataset"
        )
        return {item.path: item for item in found if hasattr(item, "blob_id")}

    def _enter(self, tree: dict, names: Iterable[str]) -> None:
        """Enter files of the repository in the record."""
        for name in names:
            if name not in tree:
                raise TaskError(
                    f"the data set {self.row.hub} holds no {name} at "
                    f"{self.record.commit[:SHOWN]}: name another --data_revision"
                )
            item = tree[name]
            entry = {"size": item.size, "hash": item.lfs.sha256 if item.lfs else item.blob_id}
            before = self.had.files.get(name, {}) if self.had is not None else {}
            checked = before.get("checked") if before.get("hash") == entry["hash"] else None
            self.record.files[name] = entry | {"checked": checked, "zip": None}
        self.record.save(self.folder)

    def _enter_files(self, tree: dict, wanted: list[str]) -> list[str]:
        """Enter the files that are in the repository, and the zips that may hold the others."""
        found = {written: _known(written, self.row, tree) for written in wanted}
        self._enter(tree, [name for name in found.values() if name])
        folders = {part for w, name in found.items() if not name for part in w.split("/")[:-1]}
        zips = [name for name in tree if name.endswith(".zip")] if folders else []
        zips = [name for name in zips if PurePosixPath(name).stem in folders] or zips
        self._enter(tree, zips)
        return zips

    def _refuse_foreign(self, names: list[str]) -> None:
        """Raise when a file that no run fetched lies where one is to be written."""
        if self.had is None:
            foreign = [name for name in names if (self.folder / name).exists()]
            if foreign:
                (self.folder / RECORD).unlink()
                raise TaskError(
                    f"{number(len(foreign), 'file')} in {self.folder}, such as {foreign[0]}, "
                    f"which no run fetched, are not those of {self.row.hub}: move them away, or "
                    f"name another --data_dir"
                )

    def _fetch(self, names: list[str], quiet: bool = False) -> None:
        """Fetch files, several at a time, and compare each with its hash."""
        files, damaged, saved = self.record.files, [], time.monotonic()
        bar = progress_bar(
            total=sum(files[name]["size"] for name in names),
            unit="B",
            unit_scale=True,
            desc=self.row.hub,
            disable=quiet or not self.progress,
        )
        pool = concurrent.futures.ThreadPoolExecutor(WORKERS)
        try:
            futures = {pool.submit(self._fetch_one, name): name for name in names}
            for future in concurrent.futures.as_completed(futures):
                name = futures[future]
                files[name]["checked"] = future.result()
                damaged += [name] * (files[name]["checked"] is None)
                bar.update(files[name]["size"])
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self.record.save(self.folder)
                    saved = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()
            self.record.save(self.folder)
        if damaged:
            raise TaskError(
                f"{number(len(damaged), 'file')} of {self.row.hub} arrived damaged twice, the "
                f"first is {damaged[0]} (of the right size, but with another hash than the "
                f"hub's), and can't be used: run again, by another network or without a proxy if "
                f"it comes back"
            )

    def _fetch_one(self, name: str) -> int | None:
        """Fetch a file; its time, or None where it arrived damaged twice and was removed."""
        from huggingface_hub import hf_hub_download

        path, entry = self.folder / name, self.record.files[name]
        for again in (False, True):
            path.unlink(missing_ok=True)
            hf_hub_download(
                self.row.hub,
                name,
                repo_type="dataset",
                revision=self.record.commit,
                local_dir=self.folder,
                force_download=again,  # not from the client's cache, which may be damaged itself
                tqdm_class=_Silent,
            )
            if hash_of(path, entry["hash"]) == entry["hash"]:
                return path.stat().st_mtime_ns
        path.unlink()
        return None

    def _unpack(self, name: str, wanted: list[str]) -> None:
        """Unpack from a zip the files that the lists name, and remove it."""
        place, files = self.row.place, self.record.files
        names = [_known(w, self.row, files) or _spellings(w, place)[0] for w in wanted]
        lacking = {n for n in names if n not in files or self.record.lacking(self.folder, [n])}
        where, path = PurePosixPath(name), self.folder / name
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir()]
                for member in progress_bar(members, desc=name, disable=not self.progress):
                    inside = _spellings(member.filename, place)[0]
                    spelled = (inside, where.parent / inside, where.with_suffix("") / inside)
                    for to in lacking & {str(each) for each in spelled}:
                        files[to] = self._unpack_one(archive, member, to) | {"zip": name}
        # NotImplementedError is zipfile's, of a compression that it doesn't know.
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise TaskError(
                f"{path} can't be unpacked ({error}), though it is as {self.row.hub} has it"
            ) from error
        self.record.save(self.folder)
        path.unlink()

    def _unpack_one(self, archive: zipfile.ZipFile, member, name: str) -> dict:
        """Write a member of a zip under its name; its entry in the record."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        digest = hashlib.sha256()
        with archive.open(member) as source, part.open("wb") as file:
            while block := source.read(BLOCK_BYTES):  # its CRC is compared at the end
                digest.update(block)
                file.write(block)
        part.replace(path)
        stat = path.stat()
        return {"size": stat.st_size, "hash": digest.hexdigest(), "checked": stat.st_mtime_ns}


class _Silent(tqdm):
    """No bar for each file: there is one for all."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "disable": True})
