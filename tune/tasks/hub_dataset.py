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
from pathlib import Path

from tqdm import tqdm

from tune.system.files import slug
from tune.tasks.download import gated
from tune.tasks.readers import TaskError
from tune.tasks.rows import SPLIT_NAMES

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
    progress: bool = True,
) -> tuple[list[dict], list[dict]]:
    """Rows of a data set, as `tune.tasks.readers` has them; its audio goes below data_dir/hub.

    Parameters
    ----------
    name : what stands after `hub:`
    label_column : which column is the label, or what in it (json.genre); else "label"
    audio_column : which column is the audio; the only one of type Audio where it isn't said

    Raises
    ------
    TaskError
        When it can't be loaded or lacks a column.
    """
    from datasets import Audio

    splits = _load(name)
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
        for i, item in enumerate(tqdm(data, desc=split, disable=not progress)):
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
    return rows, skipped


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


def _load(name: str) -> dict:
    """The data set's splits, those whose names are splits'."""
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    where, _, config = (name, "", "") if os.path.exists(name) else name.partition(":")
    try:
        saved = any((Path(where) / f).is_file() for f in ("dataset_dict.json", "state.json"))
        with _audio_as_it_is():
            data = load_from_disk(where) if saved else load_dataset(where, config or None)
    except Exception as error:  # datasets raises its own, the hub's and its HTTP library's errors
        text = (str(error).splitlines() or [""])[0]
        if "gated" in text:
            raise TaskError(gated(where)) from error
        raise TaskError(
            f"{PREFIX}{name} can't be loaded ({type(error).__name__}: {text}): it must be a hub "
            f"data set, or a local folder of parquet or audio files, without code of its own"
        ) from error
    splits = {"train": data} if isinstance(data, Dataset) else dict(data)
    assert isinstance(data, Dataset | DatasetDict)
    if len(splits) == 1:
        return splits
    known = {s: d for s, d in splits.items() if s.strip().lower() in SPLIT_NAMES}
    for other in splits.keys() - known.keys():
        log.warning(
            "%s%s: the split %s is none of train, val and test: left out", PREFIX, name, other
        )
    if not known:
        raise TaskError(f"{PREFIX}{name} has the splits {', '.join(splits)}: none is a train split")
    return known


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
