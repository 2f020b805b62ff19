"""What an aggregator was trained on, kept beside it, and test tracks that are among it.

    AGGREGATOR/trained_on.safetensors     contents, sounds and landmarks of its tracks

A test track is known again by its file's content, by its samples in another container, and by its
landmarks (`tune.audio.fingerprint`) as a lossy copy or an excerpt. The file holds no audio.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from tune.audio.fingerprint import Landmarks, find_alike
from tune.system.files import atomic_write, atomic_write_text, cache_folder, save_tensors
from tune.tasks.inspect_files import FILES_UNTHINNED, inspect_file, inspect_files, thinning

log = logging.getLogger(__name__)

FILE = "trained_on.safetensors"


@dataclass(frozen=True)
class TrainedOn:
    """The tracks that an aggregator learned from and was validated on.

    Attributes
    ----------
    contents : SHA-256 of their files
    sounds : hashes of their samples
    marks : content -> landmarks, of which one in `thin` was kept
    digest : of the file
    """

    contents: set[str]
    sounds: set[str]
    marks: dict[str, Landmarks]
    thin: int
    digest: str


def write(folder: Path, paths: Sequence[str], store) -> None:
    """Write what an aggregator is trained on; each file is decoded once.

    Parameters
    ----------
    paths : training and validation tracks
    store : tune.store.Store, which knows contents
    """
    found = inspect_files(paths, progress=False)
    usable = {store.content(path): info for path, info in found.items() if info.reason is None}
    marks = [info.marks for info in usable.values()]
    tensors = {
        "codes": np.concatenate([np.empty(0, np.uint32), *(m.codes for m in marks)]),
        "frames": np.concatenate([np.empty(0, np.int32), *(m.frames for m in marks)]),
        "counts": np.array([len(m.codes) for m in marks], np.int64),
    }
    about = {
        "contents": sorted({store.content(path) for path in paths}),
        "sounds": [info.hash for info in usable.values() if not info.silent],
        "names": list(usable),
        "thin": thinning(len(found), FILES_UNTHINNED),
    }
    meta = {"trained_on": json.dumps(about)}
    atomic_write(folder / FILE, lambda aside: save_tensors(tensors, aside, meta))


def read(checkpoint: str) -> TrainedOn | None:
    """Read what an aggregator was trained on; None for one that doesn't say.

    Parameters
    ----------
    checkpoint : a folder or hub id, as train_probe.py takes it

    Raises
    ------
    ValueError
        When the file is damaged.
    """
    path = Path(checkpoint) / FILE
    if not Path(checkpoint).is_dir():
        from transformers.utils import cached_file

        found = cached_file(
            checkpoint,
            FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        path = Path(found) if found else path
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()["trained_on"])
            codes, frames, counts = map(file.get_tensor, ("codes", "frames", "counts"))
        ends = np.cumsum(counts)[:-1]
        parts = zip(np.split(codes, ends), np.split(frames, ends), strict=True)
        marks = dict(zip(about["names"], (Landmarks(*part) for part in parts), strict=True))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return TrainedOn(set(about["contents"]), set(about["sounds"]), marks, about["thin"], digest)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it, or delete it to go on without knowing what "
            "the aggregator was trained on"
        ) from error


def find_seen(known: TrainedOn, paths: Sequence[str], store) -> dict[str, str]:
    """Find test tracks that an aggregator was trained on.

    What was found of a file is kept in the user's cache, so that a sweep decodes it once.

    Parameters
    ----------
    paths : test tracks; those that can't be read are left out

    Returns
    -------
    dict : path -> how it is known: the same file, the same audio, or a copy or excerpt
    """
    cache = cache_folder() / "seen" / f"{known.digest}.json"
    before = _read_cache(cache)
    kept, seen = dict(before), {}
    for path in dict.fromkeys(paths):
        info = None
        try:
            content = store.content(path)
        except ValueError:  # it is skipped later, with its reason
            continue
        if content not in kept:
            info = inspect_file(path, thin=known.thin)
            if info.reason is not None:
                continue
            kept[content] = "the same file" if content in known.contents else _how(known, info)
        if kept[content]:
            seen[path] = kept[content]
    if kept != before:
        cache.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(cache, json.dumps(kept))
    return seen


def check_unseen(checkpoint: str, paths: Sequence[str], store, allow: bool) -> dict | None:
    """Refuse test tracks that an aggregator was trained on, or mark them.

    Parameters
    ----------
    allow : only warn of them

    Returns
    -------
    dict of n_test (tracks looked at) and tracks, path -> how it is known; None for an aggregator
    that doesn't say what it was trained on, which is said in a line

    Raises
    ------
    ValueError
        When there are some and that isn't allowed.
    """
    known = read(checkpoint)
    if known is None:
        log.warning(
            "%s doesn't say what it was trained on (an older version made it): whether it has seen "
            "the test tracks isn't known",
            checkpoint,
        )
        return None
    seen = find_seen(known, paths, store)
    if seen:
        path, how = next(iter(seen.items()))
        text = (
            f"{checkpoint} was trained on {len(seen)} of {len(set(paths))} test tracks, such as "
            f"{path} ({how})"
        )
        if not allow:
            raise ValueError(
                f"{text}: their score would say nothing of other music. Take another aggregator or "
                "task, or --allow_seen to mark the result"
            )
        log.warning("%s: the result is marked", text)
    return {"n_test": len(set(paths)), "tracks": seen}


def _how(known: TrainedOn, info) -> str:
    """How a file is among those that were trained on; "" where it isn't."""
    if info.silent:
        return ""
    if info.hash in known.sounds:
        return "the same audio"
    asked = "?"  # no content's name
    matches = next(find_alike({**known.marks, asked: info.marks}, [asked], list(known.marks)))
    if not matches:
        return ""
    return f"a copy or excerpt: {matches[0].share:.0%} of its landmarks"


def _read_cache(path: Path) -> Mapping[str, str]:
    """What was found of files before; nothing of a damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
