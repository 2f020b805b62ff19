"""A report on a task's data, before hours are spent on it: what is in it, and what is wrong.

Every file is decoded once (or, without decoding, only its header is read). Files are the same when
they sound the same, to 16 bits, whatever they are called and whichever lossless container they are
in. Files of different splits are alike when one is a lossy copy or an excerpt of the other
(`tune.audio.fingerprint`); of less than some seconds, that can't be told.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np

from tune.audio.downmix import CANCELLED_DB, OPPOSITE_PHASE
from tune.audio.fingerprint import MIN_COMMON, MIN_SHARE, AudioMatch, find_alike
from tune.system.progress import progress_bar
from tune.tasks.inspect_files import BIT_RATE_SLACK, BIT_RATES, FileInfo, inspect_files
from tune.tasks.label_kinds import label_kind
from tune.tasks.label_readers import MANY_NUMBERS, difference, folded
from tune.tasks.load import Task
from tune.tasks.readers import SPLITS

MIN_TRACKS = 5


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes
    ----------
    kind : row, file, decoding, silent, antiphase, length, twice, duplicate, alike, label,
        class, target, clips or count
    text : one line
    where : the files or classes concerned
    """

    kind: str
    text: str
    where: tuple[str, ...] = ()


def check(
    task: Task,
    *,
    min_tracks: int = MIN_TRACKS,
    decode: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> dict:
    """Look at all of a task's files and labels.

    Parameters
    ----------
    task : as `load_task` gives it, with usable=False
    min_tracks : test tracks that a class or tag should have
    decode : whether files are decoded; without, only those that can't be opened are found, and
        only files of equal bytes are the same
    workers : threads (default: one a processor)

    Returns
    -------
    dict
        task, kind, files, tracks and hours of each split, durations, sample_rates, channels,
        formats, classes (tracks in each split) or targets, thresholds (lines) and problems, a list
        of `Problem` as dicts; all of it plain values
    """
    paths = list(chain(*(task.splits[s]["path"] for s in SPLITS)))
    files = inspect_files(paths, decode=decode, workers=workers, progress=progress)
    good = [h for h in files.values() if h.reason is None]
    of_targets = label_kind(task.kind).of_targets
    labels = {s: _labels(task, s) for s in SPLITS}
    problems = [
        *(Problem("row", f"{i['where']}: {i['reason']}") for i in task.skipped),
        *(Problem("file", f"{h.path}: {h.reason}", (h.path,)) for h in files.values() if h.reason),
        *chain(*map(_odd_sound, good)),
        *_same_audio(task, files),
        *_alike(task, files, progress),
        *_split_tracks(task),
        *_look_alike(task),
        *(_odd_targets(task) if of_targets else _few_tracks(task, labels, min_tracks)),
        *_counts(task, labels),
    ]
    seconds = np.array([h.seconds for h in good if np.isfinite(h.seconds)])
    return {
        "task": task.name,
        "kind": task.kind,
        "decoded": decode,
        "splits": {s: _split(task, s, files) for s in SPLITS},
        "split_made": task.split_made is not None,
        "seconds": _spread(seconds) | {"total": float(seconds.sum())},
        "sample_rates": _count(h.header.sample_rate for h in good),
        "channels": _count(h.header.channels for h in good),
        "formats": _count(h.header.format for h in good),
        "classes": {} if of_targets else _classes(task, labels),
        "targets": _targets(task) if of_targets else {},
        "thresholds": thresholds(min_tracks),
        "problems": [asdict(problem) for problem in problems],
    }


def thresholds(min_tracks: int = MIN_TRACKS) -> list[str]:
    """What counts as a problem, a line each."""
    rates = ", ".join(
        f"{name} " + (f"{least} to {most}" if least else f"up to {most}")
        for name, (least, most, _) in BIT_RATES.items()
    )
    return [
        f"a class or tag: at least {min_tracks} test tracks",
        f"alike: {MIN_COMMON} landmarks in common at one shift, {MIN_SHARE:.0%} of the overlap",
        f"opposite phase: a mono mix {CANCELLED_DB:g} dB below its channels",
        f"length: kbit/s of the file over the decoded time, {rates}, and {BIT_RATE_SLACK - 1:.0%}",
        f"classes as numbers: up to {MANY_NUMBERS} different values, all whole",
    ]


def _odd_sound(info: FileInfo) -> list[Problem]:
    """Silence, what decoding noted, and a length that doesn't go with the file's size."""
    path, problems = info.path, []
    for note in info.notes:
        kind = "antiphase" if note.startswith(OPPOSITE_PHASE) else "decoding"
        problems.append(Problem(kind, f"{path}: {note}", (path,)))
    if info.silent and not any(problem.kind == "antiphase" for problem in problems):
        problems.append(Problem("silent", f"{path}: digital silence", (path,)))
    if info.bit_rate is not None:
        text = (
            f"{path}: {info.seconds:.2f} s decoded would be {info.bit_rate:,.0f} kbit/s, which "
            f"{info.header.format} doesn't have: is its length right?"
        )
        problems.append(Problem("length", text, (path,)))
    return problems


def _labels(task: Task, split: str) -> np.ndarray:
    """A split's labels by track, not by clip: (n,) or (n, C)."""
    data = task.splits[split]
    labels = np.asarray(data["label"])
    if "track" not in data.column_names:
        return labels
    return labels[np.unique(data["track"][:], return_index=True)[1]]


def _split(task, split, files) -> dict:
    """Size of a split."""
    paths = task.splits[split]["path"][:]
    seconds = np.array([files[p].seconds for p in paths])
    return {
        "files": len(paths),
        "tracks": len(_labels(task, split)),
        "hours": float(np.nansum(seconds) / 3600),
    }


def _spread(values: np.ndarray) -> dict:
    """Smallest, median and largest value; None for none."""
    if not len(values):
        return dict.fromkeys(("min", "median", "max"))
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
    }


def _count(values) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return {str(value): n for value, n in Counter(values).most_common()}


def _of_class(task: Task, labels: np.ndarray) -> np.ndarray:
    """How many tracks have each class or tag, (C,)."""
    if label_kind(task.kind).several:
        return labels.sum(0)
    return np.bincount(labels, minlength=len(task.classes))


def _classes(task, labels) -> dict:
    """Class or tag -> tracks in each split."""
    counts = {s: _of_class(task, labels[s]) for s in SPLITS}
    return {name: {s: int(counts[s][c]) for s in SPLITS} for c, name in enumerate(task.classes)}


def _targets(task) -> dict:
    """Target -> split -> mean, deviation and range."""
    out = {}
    for t, name in enumerate(task.targets):
        out[name] = {}
        for split in SPLITS:
            values = np.asarray(task.splits[split]["label"])[:, t]
            out[name][split] = _spread(values) | {
                "mean": float(values.mean()),
                "std": float(values.std()),
            }
    return out


def _same_audio(task, files) -> list[Problem]:
    """Find the same audio in several splits, twice in one, and with several labels."""
    kind = label_kind(task.kind)
    names, groups = getattr(task, kind.parts), defaultdict(list)
    for split in SPLITS:
        data = task.splits[split]
        for path, label in zip(data["path"], data["label"], strict=True):
            known = None if files[path].silent else files[path].hash
            groups[known or path].append((split, path, kind.show(label, names)))
    problems = []
    for found in groups.values():
        splits = [s for s in SPLITS if any(split == s for split, _, _ in found)]
        times = Counter((split, path) for split, path, _ in found)
        where = tuple(f"{split}: {path}" for split, path in times)
        listed = ", ".join(
            f"{split}: {path}" + f" ({n} times)" * (n > 1) for (split, path), n in times.items()
        )
        labels = list(dict.fromkeys(label for _, _, label in found))
        if len(splits) > 1:
            text = f"the same audio is in {' and '.join(splits)}: {listed}"
            problems.append(Problem("duplicate", text, where))
        elif len(found) > 1 and len(labels) == 1:
            text = f"the same audio is {len(found)} times in {splits[0]}: {listed}"
            problems.append(Problem("twice", text, where))
        if len(labels) > 1:
            text = f"the same audio has different labels ({' | '.join(labels[:5])}): {listed}"
            problems.append(Problem("label", text, where))
    return problems


def _alike(task, files, progress) -> list[Problem]:
    """Find lossy copies and excerpts across splits."""
    known = {p: h.marks for p, h in files.items() if h.marks is not None and not h.silent}
    of_split = {s: [p for p in dict.fromkeys(task.splits[s]["path"]) if p in known] for s in SPLITS}
    problems = []
    for among, later in (("train", ("val", "test")), ("val", ("test",))):
        asked = [(split, path) for split in later for path in of_split[split]]
        found = find_alike(known, [path for _, path in asked], of_split[among])
        bar = progress_bar(
            found, total=len(asked), unit="file", desc=f"alike {among}", disable=not progress
        )
        for (split, _), alike in zip(asked, bar, strict=True):
            for a in alike:
                if files[a.one].hash != files[a.other].hash:
                    one, other = f"{split}: {a.one}", f"{among}: {a.other}"
                    problems.append(Problem("alike", describe_match(a, one, other), (one, other)))
    return problems


def describe_match(match: AudioMatch, one: str, other: str) -> str:
    """Say how much of which is in which, and from when on."""
    before = f" from {-match.at_s:.1f} s on" if match.at_s <= -0.1 else ""
    after = f" from {match.at_s:.1f} s on" if match.at_s >= 0.1 else ""
    share = f"{match.share:.0%} of the landmarks in common"
    return f"{one}{before} sounds like {other}{after} ({share}): a copy or an excerpt?"


def _look_alike(task) -> list[Problem]:
    """Find classes and tags whose names differ by what is easily overlooked."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in [*task.classes, *task.unknown_tags]:
        groups[folded(name)].append(name)
    noun, problems = label_kind(task.kind).noun, []
    for names in groups.values():
        if len(names) > 1:
            by = difference(*names[:2])
            shown = " and ".join(map(repr if by == "case" else ascii, names))
            text = f"the names {shown} differ by {by}: one {noun}?"
            problems.append(Problem("class", text, tuple(names)))
    return problems


def _split_tracks(task) -> list[Problem]:
    """Find tracks whose clips are in several splits."""
    if "track" not in task.splits["train"].column_names:
        return []
    found: dict[str, set] = {}
    for split in SPLITS:
        for track in task.splits[split]["track"]:
            found.setdefault(track, set()).add(split)
    return [
        Problem("clips", f"clips of the track {track} are in several splits", (track,))
        for track, splits in found.items()
        if len(splits) > 1
    ]


def _few_tracks(task, labels, min_tracks) -> list[Problem]:
    """Find classes that a test split can say little or nothing about."""
    kind = label_kind(task.kind)
    what = kind.noun
    counts = {s: _of_class(task, labels[s]) for s in SPLITS}
    problems = []
    for c, name in enumerate(task.classes):
        n = int(counts["test"][c])
        if n == 0:
            text = f"the {what} {name!r} is missing from the test split"
        elif n < min_tracks:
            text = f"the {what} {name!r} has {n} of {len(labels['test'])} test tracks"
        elif kind.several and n == len(labels["test"]):
            text = f"all test tracks have the {what} {name!r}"
        else:
            text = None
        if text:
            problems.append(Problem("class", text, (name,)))
        if not counts["train"][c]:
            text = f"the {what} {name!r} is missing from the train split"
            problems.append(Problem("class", text, (name,)))
    problems += [
        Problem("class", f"the {what} {tag!r} of {n} tracks is on no training track", (tag,))
        for tag, n in task.unknown_tags.items()
    ]
    if not kind.several and (counts["train"] > 0).sum() < 2:
        problems.append(Problem("class", "all training tracks are of one class"))
    return problems


def _odd_targets(task) -> list[Problem]:
    """Find targets that don't vary, and such as may be classes."""
    problems = []
    for t, name in enumerate(task.targets):
        of_split = {s: np.asarray(task.splits[s]["label"])[:, t] for s in SPLITS}
        for split, values in of_split.items():
            if np.ptp(values) == 0:
                text = f"the target {name!r} is {values[0]:g} on all {split} tracks"
                problems.append(Problem("target", text, (name,)))
        different = np.unique(np.concatenate(list(of_split.values())))
        whole = (different == np.round(different)).all()
        if task.row is None and whole and 1 < len(different) <= MANY_NUMBERS:
            text = (
                f"the target {name!r} has {len(different)} different values, all whole "
                f"({different[0]:g} to {different[-1]:g}): classes"
                + ("? --kind classes reads them so" if len(task.targets) == 1 else "?")
            )
            problems.append(Problem("target", text, (name,)))
    return problems


def _counts(task, labels) -> list[Problem]:
    """Compare with what the table of tasks says there should be."""
    if task.row is None:
        return []
    problems = []
    found = sum(
        any(_of_class(task, labels[s])[c] for s in SPLITS) for c in range(len(task.classes))
    )
    if task.row.n_classes and found != task.row.n_classes:
        text = f"{found} classes or tags, where there should be {task.row.n_classes}"
        problems.append(Problem("count", text))
    for split, n in (task.row.n_rows | task.expected).items():
        if len(task.splits[split]) != n:
            text = f"{len(task.splits[split])} {split} files, where there should be {n}"
            problems.append(Problem("count", text))
    return problems


def summary(problems: Sequence[dict]) -> dict[str, int]:
    """How many problems there are of each kind."""
    return dict(Counter(problem["kind"] for problem in problems))
