"""Any data set of `datasets` with a column of audio: `--task hub:NAME --label_column genre`.

NAME is a data set of the hub, NAME:CONFIG one of its configurations, or a local folder (of
parquet or audio files, or what `save_to_disk` wrote). Nothing is decoded by `datasets`, and no
code of the data set is run: `datasets` itself has no way to, any more. Audio that lies inside the
data set is written to files once, since everything after this reads files.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from pathlib import Path

from tune.system.files import slug
from tune.system.hub_errors import explain, is_about_fetching
from tune.system.progress import progress_bar
from tune.tasks.hub_download import hash_of
from tune.tasks.registry import TASKS
from tune.tasks.rows import SPLIT_NAMES, TaskError, number

log = logging.getLogger(__name__)

PREFIX = "hub:"
# What the first bytes of an audio file are, for those that come without a name.
MAGIC = (
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"RIFF", ".wav"),
    (b"ID3", ".mp3"),
    (b"FORM", ".aiff"),
    (b"\xff\xfb", ".mp3"),
)


def read_hub(
    name: str,
    data_dir: Path,
    *,
    label_column: str | None,
    audio_column: str | None,
    revision: str | None = None,
    progress: bool = True,
) -> tuple[list[dict], list[dict], str | None]:
    """Rows of a data set, as `tune.tasks.readers` has them; its audio goes below data_dir/hub.

    Parameters
    ----------
    name : what stands after `hub:`
    label_column : which column is the label, or what in it (json.genre); else "label"
    audio_column : which column is the audio; the only one of type Audio where it isn't said
    revision : branch, tag or commit; by default the main branch

    Returns
    -------
    Rows, skipped rows, and the hub's commit (None for a local folder).

    Raises
    ------
    TaskError
        When it can't be loaded or lacks a column.
    """
    from datasets import Audio

    splits, commit = _load(name, revision)
    rows, skipped = [], []
    folder = data_dir / "hub" / slug(name)
    for split, data in splits.items():
        audio = audio_column or _audio_column(name, data.features)
        label = label_column or "label"
        kinds = {c: _feature(data.features, c) for c in (audio, label)}
        for column, flag in ((audio, "audio_column"), (label, "label_column")):
            if kinds[column] is None:
                raise TaskError(
                    f"{PREFIX}{name} has no column {column!r}: name one by --{flag} (there are "
                    f"{', '.join(data.features)})"
                )
        if isinstance(kinds[audio], Audio):
            data = data.cast_column(audio, Audio(decode=False))
        names = _names(kinds[label])
        data = data.select_columns([audio, label if label in data.features else _head(label)])
        alone = len(splits) == 1
        for i, item in enumerate(progress_bar(data, desc=split, disable=not progress)):
            where = f"{PREFIX}{name}:{split}:{i}"
            try:
                path = _file(item[audio], folder / split, i)
            except TaskError as error:
                skipped.append({"where": where, "reason": str(error)})
                continue
            rows.append(
                {
                    "where": where,
                    "id": f"{split}/{i}",
                    "path": str(path),
                    "label": _named(_inside(item, label), names),
                    # A data set of one split has none: datasets calls it train.
                    "split": None if alone else split,
                    "track": None,
                }
            )
    return rows, skipped, commit


def hub_folders(name: str, data_dir: Path) -> list[Path]:
    """The folders that a data set's audio may lie in: its own, and those that `datasets` fills."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    own = [Path(name)] if os.path.isdir(name) else []
    caches = [
        HF_HUB_CACHE,
        config.HF_DATASETS_CACHE,
        config.DOWNLOADED_DATASETS_PATH,
        config.EXTRACTED_DATASETS_PATH,
    ]
    return [*own, *map(Path, caches), data_dir / "hub"]


@contextlib.contextmanager
def _audio_as_it_is():
    """Let `datasets` make folders and tars of audio files into data sets without torchcodec.

    Its Audio (version 5.2) imports torchcodec for whatever it is given, but uses it only for
    decoded samples; files come as paths or bytes.
    """
    from datasets import Audio

    own = Audio.encode_example

    def encode(self, value):
        if isinstance(value, str | os.PathLike):
            return {"bytes": None, "path": str(value)}
        if isinstance(value, bytes | bytearray):
            return {"bytes": bytes(value), "path": None}
        if isinstance(value, dict) and "array" not in value:
            return {"bytes": value.get("bytes"), "path": value.get("path")}
        return own(self, value)

    Audio.encode_example = encode
    try:
        yield
    finally:
        Audio.encode_example = own


def _load(name: str, revision: str | None) -> tuple[dict, str | None]:
    """The data set's splits, those whose names are splits', and the hub's commit."""
    from datasets import Dataset, DatasetDict, load_from_disk

    if os.path.exists(name):
        if revision:
            raise TaskError(f"--data_revision belongs to a data set of the hub, not to {name}")
        saved = any((Path(name) / f).is_file() for f in ("dataset_dict.json", "state.json"))
        with _explained(name), _audio_as_it_is():
            data = load_from_disk(name) if saved else _load_dataset(name)
        commit = None
    else:
        data, commit = _load_from_hub(name, revision)
    splits = {"train": data} if isinstance(data, Dataset) else dict(data)
    assert isinstance(data, Dataset | DatasetDict)
    if len(splits) == 1:
        return splits, commit
    known = {s: d for s, d in splits.items() if s.strip().lower() in SPLIT_NAMES}
    for other in splits.keys() - known.keys():
        log.warning(
            "%s%s: the split %s is none of train, val and test: left out", PREFIX, name, other
        )
    if not known:
        raise TaskError(f"{PREFIX}{name} has the splits {', '.join(splits)}: none is a train split")
    return known, commit


def _load_from_hub(name: str, revision: str | None):
    """A data set of the hub and its commit; files that arrive damaged are fetched once more."""
    from huggingface_hub import HfApi

    where, _, config = name.partition(":")
    tasks = [task for task, row in TASKS.items() if row.hub == where]
    if tasks:
        raise TaskError(
            f"{PREFIX}{where} is in a layout of its own: say --task {' or --task '.join(tasks)}"
        )
    began = time.time()
    with _explained(name, revision), _audio_as_it_is():
        if revision and not re.fullmatch("[0-9a-f]{40}", revision):
            revision = HfApi().dataset_info(where, revision=revision).sha
        for mode in (None, "reuse_cache_if_exists"):  # the second reads the files anew
            data = failure = None
            try:
                data = _load_dataset(where, config, revision, mode)
            except Exception as error:
                failure = error
            # A file's time may be of coarser steps than the clock.
            damaged = _remove_damaged(where, began - 2 if data is not None else 0.0)
            if not damaged:
                break
            for path in () if data is None else _arrow_files(data):
                shutil.rmtree(path.parent, ignore_errors=True)  # made of damaged ones
        if damaged:
            raise TaskError(
                f"{number(damaged, 'file')} of {where} arrived damaged twice (with another hash "
                f"than the hub's) and were removed: run again, by another network or without a "
                f"proxy if it comes back"
            )
        if failure is not None:
            raise failure
    found = {path.parent.name for path in _arrow_files(data)}
    commit = next((c for c in found if re.fullmatch("[0-9a-f]{40}", c)), None)
    if revision and commit != revision:  # datasets falls back on whatever it has
        raise TaskError(
            f"{PREFIX}{name} at {revision} is not in the local cache, which holds {commit}: with "
            f"a network, run again, or leave out --data_revision"
        )
    return data, commit


def _load_dataset(where: str, config: str = "", revision: str | None = None, mode=None):
    """`datasets.load_dataset`."""
    from datasets import load_dataset

    return load_dataset(where, config or None, revision=revision, download_mode=mode)


def _arrow_files(data) -> list[Path]:
    """The files that `datasets` made of a data set's own."""
    parts = data.values() if isinstance(data, dict) else [data]
    return [Path(file["filename"]) for part in parts for file in part.cache_files]


@contextlib.contextmanager
def _explained(name: str, revision: str | None = None):
    """Turn an error of `datasets`, the hub or the network into one that says what to do."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import hf_hub_download

    try:
        yield
    except TaskError:
        raise
    except Exception as error:  # datasets raises its own, the hub's and its HTTP library's errors
        text = (str(error).splitlines() or [""])[0]
        where = name if os.path.exists(name) else name.partition(":")[0]
        if found := re.search(
            r"(?:Config name is missing|BuilderConfig).*?\[(.*?)\]", str(error), re.S
        ):
            names = re.findall(r"'([^']+)'", found[1])
            raise TaskError(
                f"{PREFIX}{name}: choose a configuration of {where}, such as "
                f"{PREFIX}{where}:{names[0]} (there are {', '.join(names)})"
            ) from error
        cause = error
        if isinstance(error, DatasetNotFoundError):  # it has lost its cause: the hub is asked again
            try:
                hf_hub_download(where, "README.md", repo_type="dataset", revision=revision)
            except Exception as again:
                cause = again
        if not os.path.exists(name) and is_about_fetching(cause):
            said = explain(cause, where, "dataset", revision, flag="--data_revision")
            raise TaskError(f"{PREFIX}{name} can't be loaded: {said}") from error
        raise TaskError(
            f"{PREFIX}{name} can't be loaded ({type(error).__name__}: {text}): it must be a hub "
            f"data set, or a local folder of parquet or audio files, without code of its own"
        ) from error


def _remove_damaged(where: str, since: float = 0.0) -> int:
    """Remove files of a data set from the hub's cache that don't have the hash in their name.

    Only those written since a time are read. Returns how many were removed.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    blobs = Path(HF_HUB_CACHE, repo_folder_name(repo_id=where, repo_type="dataset"), "blobs")
    damaged = [
        blob
        for blob in (blobs.iterdir() if blobs.is_dir() else ())
        if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name)
        and blob.stat().st_mtime >= since
        and hash_of(blob, blob.name) != blob.name
    ]
    for blob in damaged:
        log.warning("a file of %s arrived damaged and is fetched again", where)
        blob.unlink()
    return len(damaged)


def _audio_column(name: str, features) -> str:
    """The only column of audio."""
    from datasets import Audio

    found = [column for column, kind in features.items() if isinstance(kind, Audio)]
    if len(found) != 1:
        raise TaskError(
            f"{PREFIX}{name} has {len(found) or 'no'} columns of audio: name one by --audio_column "
            f"(there are {', '.join(features)})"
        )
    return found[0]


def _head(column: str) -> str:
    """The column that a value inside one (json.genre) is in."""
    return column.split(".")[0]


def _feature(features, column: str):
    """What a column is, or a value inside one (json.genre); None when there is none."""
    if column in features:
        return features[column]
    head, _, rest = column.partition(".")
    return _feature(features[head], rest) if rest and isinstance(features.get(head), dict) else None


def _inside(item: dict, column: str):
    """A value by its column's name; None where one on the way is missing."""
    if column in item:
        return item[column]
    head, _, rest = column.partition(".")
    return _inside(item[head], rest) if rest and isinstance(item.get(head), dict) else None


def _names(feature) -> list[str] | None:
    """Names of a column's classes, of a ClassLabel or a list of them."""
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "names", None)


def _named(value, names: list[str] | None):
    """A label with names in place of the numbers of classes; -1 is datasets' unknown."""
    if names is None:
        return value
    if isinstance(value, list):
        return [names[v] for v in value if v is not None and v >= 0]
    return None if value is None or value < 0 else names[value]


def _file(audio, folder: Path, index: int) -> Path:
    """Find or write the file of one item's audio, {"bytes", "path"} or a path."""
    if isinstance(audio, str):
        audio = {"bytes": None, "path": audio}
    if not isinstance(audio, dict):
        raise TaskError("no audio")
    data, path = audio.get("bytes"), audio.get("path")
    if data is None:
        if path is None:
            raise TaskError("no audio")
        return Path(path)
    ending = Path(path or "").suffix.lower() or next(
        (ending for magic, ending in MAGIC if data.startswith(magic)), ".audio"
    )
    # Named by content: another version of the data set doesn't find the old one's files.
    target = folder / f"{index:06d}-{hashlib.sha256(data).hexdigest()[:16]}{ending}"
    if not (target.is_file() and target.stat().st_size == len(data)):
        folder.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        part.write_bytes(data)
        part.rename(target)
    return target
