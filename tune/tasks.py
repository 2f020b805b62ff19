"""Tasks: tracks, labels and splits, read into `datasets`.

A task is a row of `TASKS` or a path. All layouts end in the same thing: a `DatasetDict` with the
splits train, val and test and the columns `id`, `path` and `label` (a class, or a list of target
values), beside the list of rows that couldn't be used and why.

The hub's layout (MARBLE v2): FOLDER/<Stem>.{train,val,test}.jsonl, one JSON object a line with
`audio_path` and `label`; the path is relative to the folder that holds `data/`, or to the jsonl.
"""

import csv
import json
import math
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
    for split in SPLITS:
        if not len(task.splits[split]):
            why = f" ({len(task.skipped)} rows were skipped)" if task.skipped else ""
            raise TaskError(f"task {task.name}: the {split} split has no usable track{why}")
    labels = np.asarray(task.splits["train"]["label"])
    if task.kind == "classes" and len(set(labels.tolist())) < 2:
        raise TaskError(
            f"task {task.name}: all training tracks have the label "
            f"{task.classes[labels[0]]!r}; a classifier needs two classes or more"
        )
    if task.kind == "numbers" and (labels.std(0) == 0).any():
        raise TaskError(f"task {task.name}: a target has the same value on all training tracks")


def _hub_folder(row: TaskRow, data_dir: Path) -> Path:
    """The folder of a hub task, downloaded when it isn't there."""
    folder = data_dir / row.hub.split("/")[1]
    wanted = folder / f"{row.stem}.train.jsonl"
    if wanted.exists():
        return folder
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(row.hub, repo_type="dataset", local_dir=folder)
    except Exception as error:  # the hub's client raises its own and its HTTP library's errors
        raise TaskError(
            f"{wanted} is missing and the data set {row.hub} could not be downloaded "
            f"({type(error).__name__}). With a network, run again; without one, copy the "
            f"data set's files into {folder} (audio, {row.stem}.train.jsonl, .val.jsonl and "
            f".test.jsonl) or name another --data_dir."
        ) from error
    if not wanted.exists():
        raise TaskError(f"{row.hub} was downloaded to {folder} but holds no {wanted.name}")
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
    if not path.exists():
        raise TaskError(
            f"unknown task {str(path)!r}: it is none of {', '.join(TASKS)}, and no such file or "
            f"folder exists"
        )
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
            except ValueError as error:
                skipped.append({"where": where, "reason": f"malformed JSON: {error}"})
                continue
            if not isinstance(item, dict) or not {"audio_path", "label"} <= item.keys():
                skipped.append({"where": where, "reason": "needs audio_path and label"})
                continue
            rows.append({
                "where": where, "id": str(item["audio_path"]),
                "path": str(_resolve(str(item["audio_path"]), file.parent)),
                "label": item["label"], "split": split or item.get("split"),
            })  # fmt: skip
    return rows, skipped


def _resolve(audio_path: str, folder: Path) -> Path:
    """Find a row's file: relative to the jsonl's folder or one above it, with or without `data/`.

    Nothing found: the path below the jsonl's folder, which the encoder will report as missing.
    """
    relative = Path(audio_path)
    if relative.is_absolute():
        return relative
    folder = folder.resolve()
    for base in (folder, *list(folder.parents)[:3]):
        if (base / relative).exists():
            return base / relative
        # Rows of the hub begin with data/, whatever the user's data folder is called.
        if relative.parts[0] == "data" and (base / Path(*relative.parts[1:])).exists():
            return base / Path(*relative.parts[1:])
    return folder / relative


def _read_table(file: Path) -> tuple[list[dict], list[dict]]:
    """Rows of a CSV or TSV with the columns path, label and perhaps split."""
    rows, skipped = [], []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{file} is not UTF-8 text: {error}") from error
    reader = csv.DictReader(
        text.splitlines(), delimiter="\t" if file.suffix == ".tsv" else ",", strict=False
    )
    missing = {"path", "label"} - set(reader.fieldnames or ())
    if missing:
        raise TaskError(
            f"{file} needs the columns path and label in its first line, "
            f"{' and '.join(sorted(missing))} missing (found: {reader.fieldnames})"
        )
    for item in reader:
        where = f"{file}:{reader.line_num}"
        if not item["path"] or item["label"] in (None, ""):
            skipped.append({"where": where, "reason": "needs path and label"})
            continue
        rows.append({
            "where": where, "id": item["path"],
            "path": str(_resolve(item["path"], file.parent)),
            "label": _read_label(item["label"]), "split": item.get("split") or None,
        })  # fmt: skip
    return rows, skipped


def _read_label(text: str):
    """A CSV label: a number with a decimal point, several of them, or else a class name."""
    parts = text.replace(";", " ").split()
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return text
    return text if all(part.lstrip("+-").isdecimal() for part in parts) else numbers


def _numbers(label) -> list[float] | None:
    """A label as target values, None when it is none."""
    values = label if isinstance(label, list) else [label]
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    return numbers if numbers and all(map(math.isfinite, numbers)) else None


def _guess_kind(rows: list[dict]) -> str:
    """Numbers when most labels are floats or lists of numbers, else classes."""
    numeric = [
        isinstance(r["label"], float)
        or (isinstance(r["label"], list) and _numbers(r["label"]) is not None)
        for r in rows
    ]
    return "numbers" if sum(numeric) * 2 > len(rows) else "classes"


def _finish(name, rows, skipped, *, kind="auto", targets: Sequence[str] = ()) -> Task:
    """Check labels and splits and build the task."""
    if not rows:
        raise TaskError(f"task {name}: no usable row (skipped: {len(skipped)})")
    if kind == "auto":
        kind = _guess_kind(rows)
    rows, skipped = _check_labels(rows, list(skipped), kind, len(targets) or None)
    rows, made = _check_splits(name, rows, skipped, kind)
    classes = []
    if kind == "classes":
        classes = sorted({r["label"] for r in rows if r["split"] == "train"})
        known = set(classes)
        for row in rows:
            if row["label"] not in known:
                reason = f"unknown label {row['label']!r}: no training track has it"
                skipped.append({"where": row["where"], "reason": reason})
        rows = [r for r in rows if r["label"] in known]
        label = ClassLabel(names=classes) if classes else Value("string")
    else:
        size = len(rows[0]["label"]) if rows else 0
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


def _check_labels(rows, skipped, kind, n_targets):
    """Normalise labels, setting aside rows whose label is not of the task's kind."""
    good = []
    for row in rows:
        label = row["label"]
        if kind == "classes":
            label = str(label) if isinstance(label, str | int) else None
            reason = f"label {row['label']!r} is not one class"
        else:
            label = _numbers(label)
            n_targets = n_targets or (label and len(label))
            reason = f"label {row['label']!r} is not a finite number"
            if label and len(label) != n_targets:
                label, reason = None, f"label {row['label']!r} has not {n_targets} values"
        if label is None:
            skipped.append({"where": row["where"], "reason": reason})
        else:
            good.append({**row, "label": label})
    return good, skipped


def _check_splits(name, rows, skipped, kind):
    """Normalise split names; make a split where there is none, or a val split where it's missing.

    Returns the rows and, when something was made, the list of who went where.
    """
    named = [r for r in rows if r["split"] is not None]
    if not named:
        made = _make_split(rows, kind, SPLIT_SHARES)
    elif len(named) < len(rows):
        first = next(r for r in rows if r["split"] is None)
        raise TaskError(f"{first['where']}: no split, while other rows of {name} have one")
    else:
        made, good = None, []
        for row in rows:
            split = SPLIT_NAMES.get(str(row["split"]).strip().lower())
            if split is None:
                reason = f"unknown split {row['split']!r} (train, val or test)"
                skipped.append({"where": row["where"], "reason": reason})
            else:
                good.append({**row, "split": split})
        rows = good
        if not any(r["split"] == "val" for r in rows):
            train = [r for r in rows if r["split"] == "train"]
            made = _make_split(train, kind, {"val": 0.2})
            rows = made + [r for r in rows if r["split"] == "test"]
    if made is None:
        return rows, None
    rows = made if not named else rows
    return rows, [{"id": r["id"], "path": r["path"], "split": r["split"]} for r in rows]


def _make_split(rows: list[dict], kind: str, shares: dict[str, float]) -> list[dict]:
    """Give every row a split, at random from a fixed seed, stratified by label.

    Numbers are stratified by fifths of the first target. Depends on the rows, not their order.
    """
    rows = sorted(rows, key=lambda r: (r["id"], r["where"]))
    if kind == "classes":
        groups = [r["label"] for r in rows]
    else:
        values = np.array([r["label"][0] for r in rows])
        groups = np.searchsorted(np.quantile(values, [0.2, 0.4, 0.6, 0.8]), values).tolist()
    rng = np.random.default_rng(SPLIT_SEED)
    made = []
    for group in sorted(set(groups)):
        members = [r for r, g in zip(rows, groups, strict=True) if g == group]
        order = rng.permutation(len(members))
        at = 0
        for split, share in shares.items():
            n = round(share * len(members))
            n = max(n, 1) if len(members) > len(shares) else n
            made += [{**members[i], "split": split} for i in order[at : at + n]]
            at += n
        made += [{**members[i], "split": "train"} for i in order[at:]]
    return made
