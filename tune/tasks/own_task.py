"""A task of one's own, without an edit of the source: FILE.py:NAME or PACKAGE.MODULE:NAME.

NAME is a function without arguments that gives rows, dicts of

- `path`, an audio file, below the function's file unless it is absolute; or `audio`, a pair of
  samples (n,) or (n, channels) in [-1, 1] and their rate in Hz, which is kept as a file,
- `label`: a class, a number or a list of them, or a list of tags, as in a .jsonl,
- and, if wanted, `split` (train, val or test), `id`, and `track`, where several files are clips of
  one.

Packages register theirs by the entry points `tune.tasks`.
"""

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tune.system.plugins import Own, PluginError, is_plugin, load_object, registered
from tune.tasks.hub_dataset import PREFIX
from tune.tasks.readers import TaskError
from tune.tasks.registry import TASKS

ENTRY_POINTS = "tune.tasks"
KNOWN = {"path", "audio", "label", "split", "id", "track"}


def own_spec(name: str) -> str | None:
    """FILE.py:NAME or PACKAGE.MODULE:NAME that a --task stands for; None where it is no plug-in.

    Examples
    --------
    >>> own_spec("mine.py:rows"), own_spec("demo"), own_spec("hub:name")
    ('mine.py:rows', None, None)
    """
    if name in TASKS or name.startswith(PREFIX) or Path(name).exists():
        return None
    return name if is_plugin(name) else registered(ENTRY_POINTS).get(name)


def identify(spec: str) -> tuple[object, Own]:
    """Load what a spec names; the function, and where it comes from.

    Raises
    ------
    TaskError
        When there is no such file or name, or it is no function without arguments.
    """
    try:
        function = load_object(spec)
    except PluginError as error:
        raise TaskError(f"--task {spec}: {error}") from error
    if not callable(function):
        raise TaskError(f"--task {spec} must be a function, got a {type(function).__name__}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise TaskError(f"--task {spec} must be a function without arguments: {error}") from None
    return function, Own.of(spec, function)


def read_own(spec: str, folder: Path) -> tuple[list[dict], list[dict], Own]:
    """Rows of a task of one's own, rows that can't be used, and where it comes from.

    Parameters
    ----------
    folder : where `audio` of rows is kept as files

    Raises
    ------
    TaskError
        When there is no such function, or it fails or gives no rows.
    """
    function, own = identify(spec)
    where, _, attribute = own.spec.rpartition(":")
    base = Path(where).parent if where.endswith(".py") else Path()
    rows, skipped = [], []
    try:
        given = list(function())
    except Exception as error:
        said = " ".join(str(error).split())
        raise TaskError(f"--task {spec} failed: {type(error).__name__}: {said}") from error
    for number, item in enumerate(given, start=1):
        place = f"{Path(where).name}:{attribute}, row {number}"
        try:
            rows.append(_row(item, place, base, folder / own.slug))
        except TaskError as error:
            skipped.append({"where": place, "reason": str(error)})
    return rows, skipped, own


def _row(item, place: str, base: Path, folder: Path) -> dict:
    """One row as the readers give it (`tune.tasks.readers`)."""
    if not isinstance(item, Mapping):
        raise TaskError(f"a row is a dict with path or audio, and label, got {item!r:.60}")
    if unknown := sorted(map(str, item.keys() - KNOWN)):
        raise TaskError(f"unknown key {unknown[0]!r}: there are {', '.join(sorted(KNOWN))}")
    if item.get("label") is None or (item.get("path") is None) == (item.get("audio") is None):
        raise TaskError("needs label, and path or audio")
    label = item["label"]
    if isinstance(label, np.ndarray | np.generic):
        label = label.tolist()
    label = list(label) if isinstance(label, tuple | set | frozenset) else label
    path = item.get("path")
    path = _keep(item["audio"], folder) if path is None else base / Path(path).expanduser()
    return {
        "where": place,
        "id": str(item.get("id") or item.get("path") or path.stem),
        "path": str(path),
        "label": label,
        "split": item.get("split"),
        "track": None if item.get("track") in (None, "") else str(item["track"]),
    }


def _keep(audio, folder: Path) -> Path:
    """The file of (samples, rate), named by its content; written when it isn't there."""
    import soundfile

    try:
        samples, rate = audio
        samples, rate = np.asarray(samples, np.float32), int(rate)
    except (TypeError, ValueError):
        raise TaskError("audio must be (samples, sample rate)") from None
    if samples.ndim not in (1, 2) or not samples.size or rate <= 0:
        raise TaskError(f"audio of the shape {samples.shape} at {rate} Hz: (n,) or (n, channels)")
    content = f"{samples.shape} {rate}".encode() + samples.tobytes()
    path = folder / f"{hashlib.sha256(content).hexdigest()[:24]}.wav"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        soundfile.write(part, samples, rate, subtype="FLOAT", format="WAV")
        part.replace(path)
    return path
