"""Tasks: tracks, labels and splits, read into `datasets`.

A task is a row of `TASKS` or a path. All layouts end in the same thing: a `DatasetDict` with the
splits train, val and test and the columns `id`, `path` and `label` (a class, or a list of target
values), beside the list of rows that couldn't be used and why.

The hub's layout (MARBLE v2): FOLDER/<Stem>.{train,val,test}.jsonl, one JSON object a line with
`audio_path` and `label`; the path is relative to the folder that holds `data/`, or to the jsonl.
"""

import csv
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import List as ListOf

from tune.demo import DEMO_TASKS, build

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val",
               "validation": "val", "dev": "val", "test": "test", "testing": "test"}  # fmt: skip
SPLIT_SHARES = {"val": 0.15, "test": 0.25}  # where a file has no split column
SPLIT_SEED = 1234
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


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


class TaskError(ValueError):
    """A task that can't be loaded; the message says what, where and how to mend it."""


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
        task = Task(self.name, self.kind, self.classes, self.targets, splits, self.skipped,
                    self.split_made)  # fmt: skip
        check_usable(task)
        return task


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
        return _finish(name, *_read_path(Path(name)), kind=kind)
    row = TASKS[name]
    files = {split: folder / f"{row.stem}.{split}.jsonl" for split in SPLITS}
    rows, skipped = _read_jsonl(files)
    task = _finish(name, rows, skipped, kind=row.kind, targets=row.targets)
    return task


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
            raise TaskError(f"task {name}: the {split} split has no usable track{_why(skipped)}")


def _why(skipped: list[dict]) -> str:
    """What was skipped, as the end of a message."""
    if not skipped:
        return ""
    return f" (skipped: {len(skipped)}, the first is {skipped[0]['where']}: {skipped[0]['reason']})"


def _hub_folder(row: TaskRow, data_dir: Path) -> Path:
    """The folder of a hub task, downloaded when it isn't there."""
    folder = data_dir / row.hub.split("/")[1]
    wanted = folder / f"{row.stem}.train.jsonl"
    if wanted.exists():
        return folder
    from huggingface_hub import snapshot_download

    problem = None
    try:
        snapshot_download(row.hub, repo_type="dataset", local_dir=folder)
    except Exception as error:  # the hub's client raises its own and its HTTP library's errors
        problem = error
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


def _read_path(path: Path) -> tuple[list[dict], list[dict]]:
    """Rows and skipped rows of a folder, jsonl, CSV or TSV."""
    if path.is_dir():
        stems = sorted({p.name.removesuffix(".train.jsonl") for p in path.glob("*.train.jsonl")})
        if not stems:
            raise TaskError(f"{path} holds no *.train.jsonl (MARBLE's layout)")
        if len(stems) > 1:
            raise TaskError(
                f"{path} holds several tasks ({', '.join(stems)}): "
                f"name one, for example {path / stems[0]}.train.jsonl"
            )
        return _read_jsonl({s: path / f"{stems[0]}.{s}.jsonl" for s in SPLITS})
    if path.suffix == ".jsonl":
        for split in SPLITS:
            if path.name.endswith(f".{split}.jsonl"):
                stem = path.name.removesuffix(f".{split}.jsonl")
                return _read_jsonl({s: path.with_name(f"{stem}.{s}.jsonl") for s in SPLITS})
        return _read_jsonl({None: path})
    if path.suffix in (".csv", ".tsv"):
        return _read_table(path)
    raise TaskError(f"{path}: a task is a folder, .jsonl, .csv or .tsv, not {path.suffix or path}")


def _read_jsonl(files: dict[str | None, Path]) -> tuple[list[dict], list[dict]]:
    """Rows {where, path, label, split} of jsonl files by split, and the lines that are no rows."""
    rows, skipped = [], []
    for split, file in files.items():
        if not file.exists():
            raise TaskError(f"{file} is missing: a task needs train, val and test")
        lines = file.read_bytes().splitlines()
        for number, line in enumerate(lines, start=1):
            where = f"{file}:{number}"
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                skipped.append({"where": where, "reason": f"malformed JSON: {error}"})
                continue
            if not isinstance(item, dict) or not {"audio_path", "label"} <= item.keys():
                skipped.append({"where": where, "reason": "needs audio_path and label"})
                continue
            audio_path, label = str(item["audio_path"]), item["label"]
            if not _is_text(f"{audio_path}{label}"):
                skipped.append({"where": where, "reason": "a name that is not valid Unicode"})
                continue
            rows.append({
                "where": where, "id": audio_path, "path": str(_resolve(audio_path, file.parent)),
                "label": label, "split": split or item.get("split") or None,
            })  # fmt: skip
        # A given split that is empty is a mistake: nothing is made up in its place.
        if split and not any(row["split"] == split for row in rows):
            raise TaskError(f"{file} holds no usable row{_why(skipped)}")
    return rows, skipped


def _is_text(text: str) -> bool:
    """Say whether a string can be written as UTF-8 (JSON can hold halves of characters)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _resolve(audio_path: str, folder: Path) -> Path:
    """Find a row's file: below the jsonl's folder or one of the three above, with or without data/.

    Nothing found: the path below the jsonl's folder, which the encoder will report as missing.
    """
    relative = Path(audio_path)
    if relative.is_absolute():
        return relative
    # Links are not followed: data/EMO may be one to a folder of another name.
    folder = Path(os.path.abspath(folder))
    # Rows of the hub begin with data/, whatever the user's data folder is called.
    bare = Path(*relative.parts[1:]) if relative.parts[:1] == ("data",) else relative
    for base in (folder, *list(folder.parents)[:3]):
        for candidate in (base / relative, base / bare):
            if os.path.exists(candidate):  # unlike Path.exists, False for a name too long
                return candidate
    return folder / relative


def _read_table(file: Path) -> tuple[list[dict], list[dict]]:
    """Rows of a CSV or TSV with the columns path, label and perhaps split."""
    rows, skipped = [], []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{file} is not UTF-8 text: {error}") from error
    delimiter = "\t" if file.suffix == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        missing = {"path", "label"} - set(reader.fieldnames or ())
        if missing:
            raise TaskError(
                f"{file} needs the columns path and label in its first line, "
                f"{' and '.join(sorted(missing))} missing (found: {reader.fieldnames})"
            )
        for item in reader:
            where = f"{file}:{reader.line_num}"
            if not item["path"] or not item["label"]:
                skipped.append({"where": where, "reason": "needs path and label"})
                continue
            if None in item:
                reason = "more fields than the first line: is a comma not in quotes?"
                skipped.append({"where": where, "reason": reason})
                continue
            rows.append({
                "where": where, "id": item["path"],
                "path": str(_resolve(item["path"], file.parent)),
                "label": item["label"], "split": item.get("split") or None,
            })  # fmt: skip
    except csv.Error as error:  # the rest of the file can't be told apart any more
        raise TaskError(f"{file}:{reader.line_num}: {error}: is a quote left open?") from error
    return rows, skipped


def _values(label) -> list:
    """The parts of a label: a list's items, or a text's, separated by spaces or semicolons."""
    if isinstance(label, str):
        return label.replace(";", " ").split()
    return label if isinstance(label, list) else [label]


def _numbers(label) -> list[float] | None:
    """A label as target values, None when it is none."""
    values = _values(label)
    # float() also takes True, "infinity" and "1970_1979".
    if any(isinstance(v, bool) or (isinstance(v, str) and not NUMBER.fullmatch(v)) for v in values):
        return None
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if numbers and all(map(math.isfinite, numbers)) else None


def _guess_kind(rows: list[dict]) -> str:
    """Numbers when most labels are numbers and not all of those are whole, else classes.

    A list is never a class, so a list of whole numbers counts as not whole.
    """
    numbers = [r["label"] for r in rows if _numbers(r["label"]) is not None]
    whole = [
        label for label in numbers
        if not isinstance(label, list)
        and all(str(v).lstrip("+-").isdecimal() for v in _values(label))
    ]  # fmt: skip
    return "numbers" if len(numbers) * 2 > len(rows) and len(whole) < len(numbers) else "classes"


def _finish(name, rows, skipped, *, kind="auto", targets: Sequence[str] = ()) -> Task:
    """Check labels and splits and build the task."""
    skipped = list(skipped)
    rows = _check_split_names(name, rows, skipped)
    given = {r["split"] for r in rows}
    if kind == "auto":
        kind = _guess_kind(rows)
    rows = _check_labels(rows, skipped, kind, len(targets) or None)
    if not rows:
        raise TaskError(f"task {name}: no usable row{_why(skipped)}")
    rows, made = _complete_splits(rows, given, kind)
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


def _check_split_names(name, rows, skipped) -> list[dict]:
    """Normalise split names, setting aside rows with an unknown one; all rows have one or none."""
    named = [r for r in rows if r["split"] is not None]
    if not named:
        return rows
    if len(named) < len(rows):
        first = next(r for r in rows if r["split"] is None)
        raise TaskError(f"{first['where']}: no split, while other rows of {name} have one")
    good = []
    for row in rows:
        split = SPLIT_NAMES.get(str(row["split"]).strip().lower())
        if split is None:
            reason = f"unknown split {row['split']!r} (train, val or test)"
            skipped.append({"where": row["where"], "reason": reason})
        else:
            good.append({**row, "split": split})
    return good


def _check_labels(rows, skipped, kind, n_targets) -> list[dict]:
    """Normalise labels, setting aside rows whose label is not of the task's kind.

    Where the number of targets isn't given it is what most rows have.
    """
    if kind == "classes":
        labels = [
            (str(r["label"]).strip() or None) if isinstance(r["label"], str | int) else None
            for r in rows
        ]
    else:
        labels = [_numbers(r["label"]) for r in rows]
        sizes = Counter(len(label) for label in labels if label)
        n_targets = n_targets or (max(sizes, key=sizes.get) if sizes else None)
    good = []
    for row, label in zip(rows, labels, strict=True):
        if label is None:
            what = "one class" if kind == "classes" else "a finite number"
            reason = f"label {row['label']!r} is not {what}"
        elif kind == "numbers" and len(label) != n_targets:
            reason = f"label {row['label']!r} has not {n_targets} values"
        else:
            good.append({**row, "label": label})
            continue
        skipped.append({"where": row["where"], "reason": reason})
    return good


def _complete_splits(rows, given: set, kind) -> tuple[list[dict], list[dict] | None]:
    """Make a split where none was given, or a val split out of train where only that is missing.

    Returns the rows and, when something was made, the list of who went where.
    """
    if None in given:
        rows = _make_split(rows, kind, SPLIT_SHARES)
    elif "val" not in given:
        train = [r for r in rows if r["split"] == "train"]
        rows = _make_split(train, kind, {"val": 0.2}) + [r for r in rows if r["split"] == "test"]
    else:
        return rows, None
    return rows, [{"id": r["id"], "path": r["path"], "split": r["split"]} for r in rows]


def _make_split(rows: list[dict], kind: str, shares: dict[str, float]) -> list[dict]:
    """Give every row a split, at random from a fixed seed, stratified by label.

    Numbers are stratified by fifths of the first target (fewer parts below 20 rows). Every class
    keeps a row in train. Depends on the rows, not on their order.
    """
    if not rows:
        return []
    rows = sorted(rows, key=lambda r: (r["id"], str(r["label"])))
    if kind == "classes":
        groups = [r["label"] for r in rows]
    else:
        values = np.array([r["label"][0] for r in rows])
        n_parts = min(5, max(1, len(rows) // 4))
        bounds = np.quantile(values, np.linspace(0, 1, n_parts + 1)[1:-1])
        groups = np.searchsorted(bounds, values).tolist()
    rng = np.random.default_rng(SPLIT_SEED)
    made, carry = [], dict.fromkeys(shares, 0.0)
    for group in sorted(set(groups)):
        members = [r for r, g in zip(rows, groups, strict=True) if g == group]
        order = rng.permutation(len(members))
        at = 0
        for split, share in shares.items():
            # What rounding took from one group is given to the next, so that the shares come out.
            exact = share * len(members) + carry[split]
            n = max(round(exact), 1 if len(members) > len(shares) else 0)
            n = max(0, min(n, len(members) - at - 1))
            carry[split] = min(0.5, max(-0.5, exact - n))
            made += [{**members[i], "split": split} for i in order[at : at + n]]
            at += n
        made += [{**members[i], "split": "train"} for i in order[at:]]
    return made
