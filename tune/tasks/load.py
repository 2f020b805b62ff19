"""Tasks: tracks, labels and splits, read into `datasets`; `python -m tune.tasks` lists them.

A task is a row of `TASKS` (`tune.tasks.registry`), a path, or `hub:` and the name of a data set.
All layouts end in the same thing: a `DatasetDict` with the splits train, val and test and the
columns `id`, `path` and `label` (a class, a list of target values, or a list with a truth value a
tag), beside the list of rows that couldn't be used and why.

The hub's layout (MARBLE v2): FOLDER/<Stem>.{train,val,test}.jsonl, one JSON object a line with
`audio_path` and `label`; the path is relative to the folder that holds `data/`, or to the jsonl.
Where a line has `ori_uid`, its file is a clip of that track (column `track`).
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value

from tune.audio.decode import AudioError, read_audio
from tune.demo import DEMO_TASKS
from tune.system.plugins import Own, slug_of
from tune.tasks.download import archive_folder
from tune.tasks.hub_dataset import PREFIX, hub_folders, read_hub
from tune.tasks.hub_download import commit_of, hub_folder
from tune.tasks.label_kinds import CLASSES, Recipe, check_labels, guess_kind, label_kind
from tune.tasks.label_readers import many_numbers
from tune.tasks.nsynth_vocalset import read_nsynth, read_vocalset
from tune.tasks.own_task import own_spec, read_own
from tune.tasks.path_safety import confine, data_folders
from tune.tasks.readers import SPLITS, TaskError, read_jsonl, read_path, why
from tune.tasks.registry import TASKS, TaskRow, describe_partial
from tune.tasks.splits import (
    FOLDS,
    FOLDS_BELOW,
    FOLDS_FROM,
    check_split_names,
    complete_splits,
    group_test_tracks,
    make_folds,
)
from tune.tasks.tables import is_table

__all__ = [
    "DEMO_TASKS",
    "LAYOUTS",
    "SPLITS",
    "TASKS",
    "Recipe",
    "Task",
    "TaskError",
    "TaskRow",
    "check_task",
    "check_usable",
    "check_whole",
    "load_task",
    "short_name",
]

log = logging.getLogger(__name__)


def _read_marble(folder: Path, row: TaskRow) -> tuple[list[dict], list[dict]]:
    """Rows of <stem>.{train,val,test}.jsonl."""
    return read_jsonl({split: folder / f"{row.stem}.{split}.jsonl" for split in SPLITS})


# How a data set lies below its folder -> (folder, row) to rows and skipped rows.
LAYOUTS: dict[str, Callable] = {
    "marble": _read_marble,
    "nsynth": read_nsynth,
    "vocalset": read_vocalset,
}


@dataclass
class Task:
    """A loaded task.

    Attributes
    ----------
    name : str
    kind : a name of `tune.tasks.label_kinds.KINDS`
    classes : list of str; names of the classes in the order of their numbers, or of the tags in
        the order of a label's values, else empty
    targets : list of str; names of the regression targets, else empty
    splits : DatasetDict of train, val and test with the columns id, path and label, and track where
        files are clips of tracks
    skipped : list of {"where", "reason"}; rows that couldn't be used
    split_made : list of {"id", "path", "split"} when the split was made here, else None
    unknown_tags : tag -> tracks of val and test that have it, of tags that no training track has;
        the tracks stay, without them
    row : its row of the table, if it has one
    own : where a task of one's own comes from, else None
    data_revision : the hub's commit that the data set is of; None where that isn't known
    expected : split -> rows that the benchmark has, of a task of the table
    partial : split -> {"found", "expected"}, of the splits that have fewer
    folds : the task with each fold's splits, where it is cross-validated; `splits` are then those
        of the first
    group_column, n_groups : the column that groups tracks, and how many groups there are; all
        splits then have a column group. None and 0 where each track is alone
    recipe : MARBLE's training recipe for this task, or this kind
    """

    name: str
    kind: str
    classes: list[str]
    targets: list[str]
    splits: DatasetDict
    skipped: list[dict] = field(default_factory=list)
    split_made: list[dict] | None = None
    unknown_tags: dict[str, int] = field(default_factory=dict)
    row: TaskRow | None = None
    own: Own | None = None
    data_revision: str | None = None
    expected: Mapping[str, int] = field(default_factory=dict)
    folds: list["Task"] = field(default_factory=list)
    group_column: str | None = None
    n_groups: int = 0

    @property
    def settings(self) -> dict:
        """What a run's configuration says beside the flags: folds, a task of one's own's file."""
        own = {"task": self.own.spec, "task_sha256": self.own.sha256} if self.own else {}
        return own | {"folds": len(self.folds) or 1, "group_column": self.group_column}

    @property
    def record(self) -> dict:
        """What results say of a task of one's own: its name and its source's digest."""
        return {"task_plugin": self.own.as_json()} if self.own else {}

    @property
    def partial(self) -> dict[str, dict[str, int]]:
        """Splits that have fewer rows than the benchmark whose name the task bears."""
        sizes = {split: len(self.splits[split]) for split in self.expected}
        return {
            split: {"found": sizes[split], "expected": n}
            for split, n in self.expected.items()
            if sizes[split] < n
        }

    @property
    def recipe(self) -> Recipe:
        """Learning rate, patience and metric: the row's own, or the kind's."""
        return self.row.training if self.row else label_kind(self.kind).recipe

    def without(self, paths: Collection[str]) -> "Task":
        """The same task without some tracks (unusable files); raises when a split runs empty.

        Where paths is a mapping, its values are the reasons, which the message then has.
        """
        splits = DatasetDict(
            {
                name: split.select([i for i, p in enumerate(split["path"]) if p not in paths])
                for name, split in self.splits.items()
            }
        )
        reasons = paths.items() if isinstance(paths, Mapping) else ()
        unusable = [{"where": path, "reason": reason} for path, reason in reasons]
        check_usable(replace(self, splits=splits, skipped=[*self.skipped, *unusable]))
        return replace(self, splits=splits, folds=[fold.without(paths) for fold in self.folds])


def short_name(name: str) -> str:
    """A task's name in results: as in `TASKS`, or the path's last part without its endings."""
    if name in TASKS:
        return name
    if spec := own_spec(name):
        return slug_of(spec)
    short = Path(name.removeprefix(PREFIX)).resolve().name
    for ending in (".jsonl", ".csv", ".tsv", *(f".{split}" for split in SPLITS)):
        if short.lower().endswith(ending):
            short = short[: -len(ending)]
    return short


def check_whole(task: Task, strict: bool = False) -> None:
    """Warn of a benchmark with fewer files than it has; raise TaskError where that is `strict`."""
    if not task.partial:
        return
    text = (
        f"task {task.name} is not whole ({describe_partial(task.partial)}): its figures can't be "
        f"compared with published ones"
    )
    if strict:
        raise TaskError(f"{text}. Without --strict a run goes on and marks its result")
    log.warning("%s", text)


def check_task(name: str) -> None:
    """Raise TaskError when there is no such task, before anything is downloaded for it."""
    if name in TASKS or name.startswith(PREFIX) or own_spec(name) or Path(name).exists():
        return
    raise TaskError(
        f"unknown task {name!r}: it is none of {', '.join(TASKS)}, and no such file or folder "
        f"exists (a data set of the hub is {PREFIX}NAME, a function of your own FILE.py:NAME)"
    )


def load_task(
    name: str,
    data_dir: str | Path = "data",
    *,
    cache_dir: str | Path,
    kind: str = "auto",
    label_column: str | None = None,
    audio_column: str | None = None,
    progress: bool = True,
    usable: bool = True,
    allow_outside: bool = False,
    data_revision: str | None = None,
    yes: bool = False,
    download: bool = True,
    folds: int | None = 1,
    group_column: str | None = None,
) -> Task:
    """Load a task by name or path.

    Parameters
    ----------
    name : str
        A name of `TASKS`; or a folder in MARBLE's layout, one of its jsonl files, a single jsonl,
        or a CSV/TSV with the columns path, label and, if wanted, split; or hub: and a data set;
        or FILE.py:NAME, PACKAGE.MODULE:NAME (`tune.tasks.own_task`).
    data_dir : folder of the hub's data sets (data_dir/EMO, data_dir/GTZAN)
    cache_dir : folder where the composed demo tasks are kept
    kind : "auto" reads the kind off the labels; another sets it (not for names of `TASKS`)
    label_column, audio_column : of a table or a data set of the hub
    usable : whether a task that nothing can be learnt from is an error
    allow_outside : whether what is no CSV or TSV may name files outside its data folder
    data_revision : branch, tag or commit of a data set of the hub
    yes : fetch also more than 20 GB without asking
    download : whether missing files of a task of the table are fetched
    folds : into how many all tracks are split, whatever splits they have; 1 keeps these, or makes
        a single split. None is `FOLDS` for a path without a split that has `FOLDS_FROM` tracks or
        more and less than `FOLDS_BELOW`, else 1
    group_column : of which no value is on both sides of a fold (`tune.tasks.splits.make_folds`)

    Raises
    ------
    TaskError
        When there is no such task or file, a split is empty or there's only one class.
    """
    check_task(name)
    data_dir = Path(data_dir)
    columns = {"label_column": label_column, "audio_column": audio_column}
    row = TASKS.get(name)
    cut = {"folds": folds or 1, "group_column": group_column}
    given = [f"--{flag}" for flag, value in columns.items() if value]
    if given and not (name.startswith(PREFIX) or is_table(name)):
        raise TaskError(f"{given[0]} belongs to a .csv, a .tsv or {PREFIX}NAME, not to {name}")
    if data_revision and not name.startswith(PREFIX) and not (row and row.hub):
        raise TaskError(f"--data_revision belongs to a data set of the hub, not to {name}")
    if spec := own_spec(name):
        rows, skipped, own = read_own(spec, data_dir / "own")
        task = _finish(own.slug, rows, skipped, kind=kind, usable=usable, **cut)
        return replace(task, own=own)
    if name.startswith(PREFIX):
        where = name.removeprefix(PREFIX)
        *found, commit = read_hub(
            where, data_dir, revision=data_revision, progress=progress, **columns
        )
        if not allow_outside:
            found = confine(*found, hub_folders(where, data_dir))
        task = _finish(short_name(name), *found, kind=kind, usable=usable, **cut)
        return replace(task, data_revision=commit)
    if row is None:
        path = Path(name)
        found = read_path(path, **columns, kind=kind)
        if not allow_outside and not (is_table(path) and not path.is_dir()):
            found = confine(*found, data_folders(path if path.is_dir() else path.parent))
        cut["folds"] = folds
        return _finish(short_name(name), *found, kind=kind, usable=usable, **cut)
    if name in DEMO_TASKS:
        from tune.demo import build  # SciPy's signal processing takes two seconds to import

        folder = build(name, cache_dir, progress=progress)
    elif row.hub:
        folder = hub_folder(
            row, data_dir, revision=data_revision, yes=yes, progress=progress, download=download
        )
    else:
        folder = archive_folder(row, data_dir, progress, yes=yes, download=download)
    rows, skipped = LAYOUTS[row.layout](folder, row)
    of_row = {"kind": row.kind, "targets": row.targets, "row": row, **cut}
    if name in DEMO_TASKS:
        return _finish(name, rows, skipped, **of_row)
    rows, expected = _without_known_bad(rows, row)
    if not allow_outside:
        rows, skipped = confine(rows, skipped, [folder, data_dir])
    task = _finish(name, rows, skipped, **of_row, usable=usable)
    made = task.split_made or task.folds  # the benchmark's own split isn't used
    return replace(task, data_revision=commit_of(folder), expected={} if made else expected)


def _without_known_bad(rows: list[dict], row: TaskRow) -> tuple[list[dict], dict[str, int]]:
    """Leave out files that are known to be undecodable, where they are; the rows expected then."""
    expected = Counter(r["split"] for r in rows if r["split"] in SPLITS)
    for split, n in row.n_rows.items():
        expected[split] = max(expected[split], n)
    kept = []
    for r in rows:
        if row.known_bad and Path(r["path"]).name.startswith(row.known_bad):
            try:
                read_audio(r["path"], 24_000)
            except AudioError as error:
                if Path(r["path"]).exists():
                    log.info("left out %s, as is usual with this data set: %s", r["id"], error)
                    expected[r["split"]] -= 1
                    continue
        kept.append(r)
    return kept, dict(expected)


def check_usable(task: Task) -> None:
    """Raise TaskError when a split is empty, or there is nothing to learn.

    That is where the training tracks have one class only, a target that doesn't vary, or no tag
    that some have and some have not.
    """
    _need_every_split(task.name, {s: len(task.splits[s]) for s in SPLITS}, task.skipped)
    kind, labels = label_kind(task.kind), np.asarray(task.splits["train"]["label"])
    if reason := kind.why_unusable(labels, getattr(task, kind.parts)):
        raise TaskError(f"task {task.name}: {reason}")


def _need_every_split(name, sizes: Mapping[str, int], skipped: list[dict]) -> None:
    """Raise TaskError when a split is empty: why rows were skipped, what the others have."""
    for split in SPLITS:
        if not sizes.get(split):
            others = " and ".join(f"{s} has {sizes[s]}" for s in SPLITS if sizes.get(s))
            raise TaskError(
                f"task {name}: the {split} split has no usable track{why(skipped)}"
                + f"; {others}" * bool(others)
            )


def _finish(
    name,
    rows,
    skipped,
    *,
    kind="auto",
    targets: Sequence[str] = (),
    row: TaskRow | None = None,
    usable: bool = True,
    folds: int | None = 1,
    group_column: str | None = None,
) -> Task:
    """Check labels and splits and build the task."""
    skipped = list(skipped)
    rows = check_split_names(name, rows, skipped)
    given = {r["split"] for r in rows}
    labels = [r["label"] for r in rows]
    guessed = kind == "auto"
    kind = guess_kind(labels) if guessed else label_kind(kind)
    notes = kind.notes(labels) + (many_numbers(labels) if guessed and kind is CLASSES else [])
    for note in notes:
        log.info("task %s: %s", name, note)
    rows = check_labels(rows, skipped, kind, len(targets) or None)
    if not rows:
        raise TaskError(
            f"task {name}: no usable row{why(skipped)}: each needs the path of a file and a label"
        )
    if folds is None:
        folds = _default_folds(name, rows, given)
    if folds == 1 and None in given and group_column not in (None, "none"):
        raise TaskError(f"--group_column {group_column} groups the tracks of folds: give --folds")
    cut, made = None, None
    column_of_groups, n_groups = None, 0
    if folds > 1:
        cut = make_folds(name, rows, kind, folds, group_column)
        made = [_splits_of(r, cut.column) for r in cut.rows]
        rows = [{**r, "split": "train"} for r in cut.rows]  # every class is known in every fold
        column_of_groups, n_groups = cut.column, cut.n_groups
    else:
        rows, column_of_groups, n_groups = group_test_tracks(name, rows, group_column)
        rows, made = complete_splits(rows, given, kind)
    if made and not cut:
        what = "no split: one was made" if None in given else "no val split: one was cut from train"
        log.info("task %s has %s, stratified, from a fixed seed (see split.csv)", name, what)
    if not cut:
        _need_every_split(name, Counter(r["split"] for r in rows), skipped)
    column = kind.column(name, rows, skipped, targets)
    rows = column.rows
    if not cut:
        rows = [{**r, "splits": [r["split"]]} for r in rows]
        _need_every_split(name, Counter(r["split"] for r in rows), skipped)
    if column.unknown:
        some = ", ".join(sorted(column.unknown)[:3])
        log.warning(
            "task %s: %d %ss that no training track has are left out (%s)",
            name,
            len(column.unknown),
            kind.noun,
            some,
        )
    features = {"id": Value("string"), "path": Value("string"), "label": column.feature}
    if any(r["track"] for r in rows):
        features["track"] = Value("string")
        rows = [{**r, "track": r["track"] or r["id"]} for r in rows]
    if column_of_groups:
        features["group"] = Value("string")
    features = Features(features)
    tasks = []
    for fold in range(folds):
        splits = DatasetDict(
            {
                split: Dataset.from_list(
                    [{k: r[k] for k in features} for r in rows if r["splits"][fold] == split],
                    features=features,
                )
                for split in SPLITS
            }
        )
        task = Task(
            str(name),
            kind.name,
            column.classes,
            column.targets,
            splits,
            skipped,
            made,
            column.unknown,
            row,
            group_column=column_of_groups,
            n_groups=n_groups,
        )
        if usable:
            check_usable(task)
        tasks.append(task)
    if not cut:
        return tasks[0]
    return replace(tasks[0], folds=tasks)


def _default_folds(name, rows, given: set) -> int:
    """How many folds a path is split into where that isn't said."""
    tracks = len({r["track"] or r["path"] for r in rows})
    if None not in given or not FOLDS_FROM <= tracks < FOLDS_BELOW:
        return 1
    log.info(
        "task %s has no split and %d tracks: cross-validated in %d folds, each track tested once "
        "(--folds 1: a single split)",
        name,
        tracks,
        FOLDS,
    )
    return FOLDS


def _splits_of(row, column: str | None) -> dict:
    """A row of split.csv: its split in each fold."""
    group = {"group": row["group"]} if column else {}
    folds = {f"fold_{k}": split for k, split in enumerate(row["splits"], 1)}
    return {"id": row["id"], "path": row["path"], **group, **folds}
