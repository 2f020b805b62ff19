"""Tasks: tracks, labels and splits, read into `datasets`.

A task is a row of `TASKS` or a path. All layouts end in the same thing: a `DatasetDict` with the
splits train, val and test and the columns `id`, `path` and `label` (a class, or a list of target
values), beside the list of rows that couldn't be used and why.

The hub's layout (MARBLE v2): FOLDER/<Stem>.{train,val,test}.jsonl, one JSON object a line with
`audio_path` and `label`; the path is relative to the folder that holds `data/`, or to the jsonl.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import List as ListOf

from tune.demo import DEMO_TASKS, build
from tune.layouts import SPLITS, TaskError, check_labels, guess_kind, read_jsonl, read_path, why
from tune.splits import check_split_names, complete_splits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """MARBLE's training recipe for a kind of label: learning rate and plateau patience."""

    lr: float
    plateau_patience: int
    main_metric: str


RECIPES = {
    "classes": Recipe(lr=5e-3, plateau_patience=5, main_metric="accuracy"),
    "numbers": Recipe(lr=1e-3, plateau_patience=5, main_metric="r2"),
}


@dataclass(frozen=True)
class TaskRow:
    """A row of the table of tasks.

    Attributes
    ----------
    kind : "classes" (single label) or "numbers" (regression)
    about : one line for --help
    stem : beginning of the jsonl files' names
    targets : names of the regression targets, in the labels' order
    hub : hub data set that holds the audio, or None
    encoder : encoder that the task brings along
    """

    kind: str
    about: str
    stem: str
    targets: tuple[str, ...] = ()
    hub: str | None = None
    encoder: str = "muq"


TASKS = {
    "emo": TaskRow(
        "numbers", "EMO: 744 clips of 45 s, arousal and valence", "EMO",
        ("arousal", "valence"), hub="m-a-p/EMO",
    ),
    "gtzan": TaskRow(
        "classes", "GTZAN: 930 clips of 30 s, 10 genres, fault-filtered split", "GTZANGenre",
        hub="m-a-p/GTZAN",
    ),
    "demo": TaskRow(
        "classes", "composed music in 10 styles, nothing to download", "demo", encoder="muq-nano"
    ),
    "demo-mood": TaskRow(
        "numbers", "composed music, arousal and valence", "demo-mood",
        ("arousal", "valence"), encoder="muq-nano",
    ),
    "demo-form": TaskRow(
        "classes", "composed music, the order of its sections", "demo-form", encoder="muq-nano"
    ),
}  # fmt: skip


@dataclass
class Task:
    """A loaded task.

    Attributes
    ----------
    name : str
    kind : "classes" or "numbers"
    classes : list of str; names of the classes in the order of their numbers, else empty
    targets : list of str; names of the regression targets, else empty
    splits : DatasetDict of train, val and test with the columns id, path and label
    skipped : list of {"where", "reason"}; rows that couldn't be used
    split_made : list of {"id", "path", "split"} when the split was made here, else None
    recipe : MARBLE's training recipe for this kind
    """

    name: str
    kind: str
    classes: list[str]
    targets: list[str]
    splits: DatasetDict
    skipped: list[dict] = field(default_factory=list)
    split_made: list[dict] | None = None

    @property
    def recipe(self) -> Recipe:
        """Learning rate, patience and metric by kind."""
        return RECIPES[self.kind]

    def without(self, paths: set[str]) -> "Task":
        """The same task without some tracks (unusable files); raises when a split runs empty."""
        splits = DatasetDict({
            name: split.select([i for i, p in enumerate(split["path"]) if p not in paths])
            for name, split in self.splits.items()
        })  # fmt: skip
        task = replace(self, splits=splits)
        check_usable(task)
        return task


def short_name(name: str) -> str:
    """A task's name in results: as in `TASKS`, or the path's last part without its endings."""
    if name in TASKS:
        return name
    short = Path(name).resolve().name
    for ending in (".jsonl", ".csv", ".tsv", *(f".{split}" for split in SPLITS)):
        short = short.removesuffix(ending)
    return short


def check_task(name: str) -> None:
    """Raise TaskError when there is no such task, before anything is downloaded for it."""
    if name not in TASKS and not Path(name).exists():
        raise TaskError(
            f"unknown task {name!r}: it is none of {', '.join(TASKS)}, and no such file or "
            f"folder exists"
        )


def load_task(name: str, data_dir: str | Path = "data", *, cache_dir: str | Path,
              kind: str = "auto", progress: bool = True) -> Task:  # fmt: skip
    """Load a task by name or path.

    Parameters
    ----------
    name : str
        A name of `TASKS`; or a folder in MARBLE's layout, one of its jsonl files, a single jsonl,
        or a CSV/TSV with the columns path, label and, if wanted, split.
    data_dir : folder of the hub's data sets (data_dir/EMO, data_dir/GTZAN)
    cache_dir : folder where the composed demo tasks are kept
    kind : "auto" reads the kind off the labels; "classes" or "numbers" sets it (paths only)

    Raises
    ------
    TaskError
        When there is no such task or file, a split is empty or there's only one class.
    """
    check_task(name)
    if name in DEMO_TASKS:
        folder = build(name, cache_dir, progress=progress)
    elif name in TASKS:
        folder = _hub_folder(TASKS[name], Path(data_dir))
    else:
        return _finish(short_name(name), *read_path(Path(name)), kind=kind)
    row = TASKS[name]
    files = {split: folder / f"{row.stem}.{split}.jsonl" for split in SPLITS}
    return _finish(name, *read_jsonl(files), kind=row.kind, targets=row.targets)


def check_usable(task: Task) -> None:
    """Raise TaskError when a split is empty, there's one class only, or targets don't vary."""
    _need_every_split(task.name, {s for s in SPLITS if len(task.splits[s])}, task.skipped)
    labels = np.asarray(task.splits["train"]["label"])
    if task.kind == "classes" and len(set(labels.tolist())) < 2:
        raise TaskError(
            f"task {task.name}: all training tracks have the label "
            f"{task.classes[labels[0]]!r}; a classifier needs two classes or more"
        )
    if task.kind == "numbers" and (labels.std(0) == 0).any():
        raise TaskError(f"task {task.name}: a target has the same value on all training tracks")


def _need_every_split(name, present: set[str], skipped: list[dict]) -> None:
    """Raise TaskError when a split is empty, with the first of the rows that were skipped."""
    for split in SPLITS:
        if split not in present:
            raise TaskError(f"task {name}: the {split} split has no usable track{why(skipped)}")


def _hub_folder(row: TaskRow, data_dir: Path) -> Path:
    """The folder of a hub task, downloaded when it isn't there."""
    folder = data_dir / row.hub.split("/")[1]
    wanted = folder / f"{row.stem}.train.jsonl"
    complete = folder / ".tune-complete"
    # The hub's client leaves this folder; without our mark its download was broken off.
    broken_off = (folder / ".cache" / "huggingface").is_dir() and not complete.exists()
    there = wanted.exists()
    if there and not broken_off:
        return folder
    from huggingface_hub import snapshot_download

    problem = None
    try:
        snapshot_download(row.hub, repo_type="dataset", local_dir=folder)
        if wanted.exists():
            complete.touch()
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


def _finish(name, rows, skipped, *, kind="auto", targets: Sequence[str] = ()) -> Task:
    """Check labels and splits and build the task."""
    skipped = list(skipped)
    rows = check_split_names(name, rows, skipped)
    given = {r["split"] for r in rows}
    if kind == "auto":
        kind = guess_kind(rows)
    rows = check_labels(rows, skipped, kind, len(targets) or None)
    if not rows:
        raise TaskError(f"task {name}: no usable row{why(skipped)}")
    rows, made = complete_splits(rows, given, kind)
    if made:
        what = "no split: one was made" if None in given else "no val split: one was cut from train"
        log.info("task %s has %s, stratified, from a fixed seed (see split.csv)", name, what)
    _need_every_split(name, {r["split"] for r in rows}, skipped)
    classes = []
    if kind == "classes":
        classes = sorted({r["label"] for r in rows if r["split"] == "train"})
        known = set(classes)
        for row in rows:
            if row["label"] not in known:
                reason = f"unknown label {row['label']!r}: no training track has it"
                skipped.append({"where": row["where"], "reason": reason})
        rows = [r for r in rows if r["label"] in known]
        _need_every_split(name, {r["split"] for r in rows}, skipped)
        label = ClassLabel(names=classes)
    else:
        size = len(rows[0]["label"])
        targets = list(targets) or (
            ["value"] if size == 1 else [f"target_{i}" for i in range(size)]
        )
        label = ListOf(Value("float64"), length=size)
    features = Features({"id": Value("string"), "path": Value("string"), "label": label})
    splits = DatasetDict({
        split: Dataset.from_list(
            [{k: r[k] for k in features} for r in rows if r["split"] == split], features=features
        )
        for split in SPLITS
    })  # fmt: skip
    task = Task(str(name), kind, classes, list(targets), splits, skipped, made)
    check_usable(task)
    return task
