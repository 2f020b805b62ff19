"""Splits: names brought into line, a split made where a task has none, and folds."""

import logging
import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np

from tune.tasks.label_kinds import LabelKind
from tune.tasks.rows import (
    EVALUATION,
    SPLIT_NAMES,
    TaskError,
    is_missing,
    number,
    plain_name,
    split_word,
    stripped,
)

log = logging.getLogger(__name__)

SPLIT_SHARES = {"val": 0.15, "test": 0.25}  # where a file has no split column
VAL_OF_TRAIN = {"val": 0.2}  # where only the val split is missing, and in folds
SPLIT_SEED = 1234
FOLDS = 5  # of one's own table without a split
FOLDS_FROM, FOLDS_BELOW = 10, 400  # tracks: two a fold; a test split of 100 is large enough
# Columns that group tracks, where none is named: the first that there is.
GROUP_COLUMNS = ("group", "artist", "album", "song", "track")


def check_split_names(name, rows, skipped) -> list[dict]:
    """Normalise split names, setting aside rows with an unknown one; all rows have one or none."""
    named = [r for r in rows if r["split"] is not None]
    if not named:
        return rows
    if len(named) < len(rows):
        first = next(r for r in rows if r["split"] is None)
        raise TaskError(f"{first['where']}: no split, while other rows of {name} have one")
    words = {split_word(r["split"]) for r in rows}
    names = SPLIT_NAMES | _evaluation(name, words)
    good = []
    for row in rows:
        split = names.get(split_word(row["split"]))
        if split is None:
            reason = f"unknown split {row['split']!r} (train, val or test)"
            skipped.append({"where": row["where"], "reason": reason})
        else:
            good.append({**row, "split": split})
    return good


def _evaluation(name, words: set[str]) -> dict[str, str]:
    """What a split called eval is: test where there is none, else val; neither beside both."""
    given = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    free = [split for split in ("test", "val") if split not in given]
    found = words & set(EVALUATION)
    if not found or not free:
        return {}
    log.info("task %s: the split %s is read as %s", name, " and ".join(sorted(found)), free[0])
    return dict.fromkeys(found, free[0])


def complete_splits(rows, given: set, kind: LabelKind) -> tuple[list[dict], list[dict] | None]:
    """Make a split where none was given, or a val split out of train where only that is missing.

    Returns the rows and, when something was made, the list of who went where.
    """
    if None in given:
        rows = _make_split(rows, kind, SPLIT_SHARES)
    elif "val" not in given:
        train = [r for r in rows if r["split"] == "train"]
        rows = _make_split(train, kind, VAL_OF_TRAIN) + [r for r in rows if r["split"] == "test"]
    else:
        return rows, None
    return rows, [{"id": r["id"], "path": r["path"], "split": r["split"]} for r in rows]


def _make_split(rows: list[dict], kind: LabelKind, shares: dict[str, float]) -> list[dict]:
    """Give every row a split, at random from a fixed seed, stratified as the kind of label says.

    Every class keeps a row in train, and clips of a track stay together. Depends
    on the rows, not on their order.
    """
    if not rows:
        return []
    rows = sorted(rows, key=lambda r: (r["id"], str(r["label"])))
    clips: dict[str, list[dict]] = {}
    for row in rows:
        if row["track"]:
            clips.setdefault(row["track"], []).append(row)
    rows = [r for r in rows if not r["track"] or r is clips[r["track"]][0]]
    groups = kind.strata([r["label"] for r in rows])
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
    rest = [
        {**clip, "split": r["split"]} for r in made if r["track"] for clip in clips[r["track"]][1:]
    ]
    return made + rest


@dataclass(frozen=True)
class Folds:
    """A task's rows in folds.

    Attributes
    ----------
    rows : with `splits`, what each is in each fold, and `group`
    column : whose values are the groups, None where there is none
    n_groups : how many there are; tracks are groups of their own where there is no column
    """

    rows: list[dict]
    column: str | None
    n_groups: int


def make_folds(name, rows: list[dict], kind: LabelKind, n: int, group_column: str | None) -> Folds:
    """Split rows into n folds: each is the test split once, its training part has a val split.

    Stratified as the kind of label says (scikit-learn's StratifiedKFold, StratifiedGroupKFold),
    from a fixed seed. All files of a group are in one split: rows with the same value in the
    column, clips of one track, and lines that name the same file.

    Parameters
    ----------
    group_column : "none" for no column; None takes the first of `GROUP_COLUMNS` that there is

    Raises
    ------
    TaskError
        When there is no such column, or fewer groups than folds.
    """
    rows = sorted(rows, key=lambda r: (r["id"], str(r["label"])))
    column, values = find_groups(name, rows, group_column)
    if column:
        _log_groups(name, column, values, "folds are grouped")
    blocks = _connected(rows, values)
    first = _group_names(rows, values, blocks)
    if len(first) < n:
        of = f"{column}: {len(first)} groups" if column else f"{len(first)} tracks"
        raise TaskError(
            f"task {name}: {of} can't be split into {n} folds: take fewer --folds"
            + ", or --group_column none" * bool(column)
        )
    _report_lonely_classes(name, rows, blocks, kind, column)
    test = _fold_numbers(rows, blocks, kind, n)
    splits = np.full((len(rows), n), "train", object)
    for k in range(n):
        splits[test == k, k] = "test"
        splits[_validation(rows, blocks, np.flatnonzero(test != k), kind), k] = "val"
    made = [
        {**row, "splits": list(each), "group": str(first[block])}
        for row, each, block in zip(rows, splits, blocks, strict=True)
    ]
    return Folds(made, column, len(first))


def group_test_tracks(name, rows, group_column: str | None) -> tuple[list[dict], str | None, int]:
    """Rows of a single split with their `group`, the column of the groups, and how many there are.

    Tracks of one song or artist are alike, so that intervals over test tracks resample whole
    groups. Without a column, or where no two tracks share a group, each track is alone: column None
    and no `group`. Nor is a column used, unless it is asked for, whose groups are the labels: those
    are no sample of others.
    """
    column, values = find_groups(name, rows, group_column)
    if column is None:
        return rows, None, 0
    blocks = _connected(rows, values)
    n_groups = len(set(blocks))
    labels = {str(row["label"]) for row in rows}
    of_one_group = len({(str(row["label"]), b) for row, b in zip(rows, blocks, strict=True)})
    if n_groups == len({row["track"] or row["id"] for row in rows}) or (
        group_column is None and of_one_group == len(labels)
    ):
        return rows, None, 0
    _log_groups(name, column, values, "intervals resample groups")
    first = _group_names(rows, values, blocks)
    rows = [{**row, "group": str(first[block])} for row, block in zip(rows, blocks, strict=True)]
    return rows, column, n_groups


def _group_names(rows, values, blocks) -> dict[int, str]:
    """Each block's name: the first value of the column in it, else the track or the row's id."""
    first: dict[int, str] = {}
    for row, value, block in zip(rows, values, blocks, strict=True):
        first.setdefault(block, value or row["track"] or row["id"])
    return first


def find_groups(name, rows, group_column: str | None) -> tuple[str | None, list[str | None]]:
    """The column that groups rows, and each row's value (None where it has none)."""
    columns = [
        {plain_name(key): value for key, value in row.get("columns", {}).items()} for row in rows
    ]
    known = set().union(*columns)
    if group_column not in (None, "none"):
        if plain_name(group_column) not in known:
            raise TaskError(
                f"--group_column {group_column}: {name} has no such column beside path, label and "
                f"split (found: {', '.join(sorted(known)) or 'nothing'})"
            )
        column = group_column
    else:
        wanted = GROUP_COLUMNS if group_column is None else ()
        column = next((each for each in wanted if each in known), None)
    if column is None:
        return None, [None] * len(rows)
    values = [each.get(plain_name(column)) for each in columns]
    values = [None if is_missing(value) else stripped(str(value)) for value in values]
    return column if any(values) else None, values


def _log_groups(name, column: str, values: list[str | None], use: str) -> None:
    """Say which column groups the tracks, and what for."""
    alone = values.count(None)
    log.info(
        "task %s: %s by the column %r (%s%s)",
        name,
        use,
        column,
        number(len(set(values) - {None}), "group"),
        f"; {number(alone, 'row')} without a value: each is a group" if alone else "",
    )


def _connected(rows, values) -> np.ndarray:
    """Number rows such that those of a group, a track or a file share a number: (n,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    keys: dict[tuple, int] = {}
    pairs = [
        (i, len(rows) + keys.setdefault(key, len(keys)))
        for i, (row, value) in enumerate(zip(rows, values, strict=True))
        for key in (("file", row["path"]), ("track", row["track"]), ("group", value))
        if key[1] is not None
    ]
    size = len(rows) + len(keys)
    graph = coo_matrix((np.ones(len(pairs)), np.transpose(pairs)), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(rows)]


def _fold_numbers(rows, blocks: np.ndarray, kind: LabelKind, n: int) -> np.ndarray:
    """The fold of each row, stratified, blocks kept together: (n_rows,)."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    strata = np.array([str(s) for s in kind.strata([r["label"] for r in rows])])
    counts = Counter(strata)
    strata[[counts[s] < n for s in strata]] = "rare"  # too few for each fold to have one
    alone = len(set(blocks)) == len(rows)
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(
        n, shuffle=True, random_state=SPLIT_SEED
    )
    out = np.zeros(len(rows), int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        for k, (_, test) in enumerate(splitter.split(strata, strata, None if alone else blocks)):
            out[test] = k
    return out


def _validation(rows, blocks: np.ndarray, train: np.ndarray, kind: LabelKind) -> np.ndarray:
    """Which of the rows `train` validate: as where only a val split is missing, blocks together."""
    if len(set(blocks[train])) == len(train):
        made = _make_split([{**rows[i], "at": i} for i in train], kind, VAL_OF_TRAIN)
        return np.array([row["at"] for row in made if row["split"] == "val"], int)
    n = min(round(1 / VAL_OF_TRAIN["val"]), len(set(blocks[train])))
    part = _fold_numbers([rows[i] for i in train], blocks[train], kind, n) if n > 1 else train
    return train[part == 0]


def _report_lonely_classes(name, rows, blocks, kind: LabelKind, column: str | None) -> None:
    """Warn of classes whose tracks are all in one fold: no probe that tests them has seen any."""
    if kind.of_targets or kind.several:
        return
    found: dict[str, set] = {}
    for row, block in zip(rows, blocks, strict=True):
        found.setdefault(row["label"], set()).add(block)
    lonely = sorted(label for label, its in found.items() if len(its) == 1)
    if not lonely:
        return
    some = ", ".join(map(str, lonely[:3])) + (", ..." if len(lonely) > 3 else "")
    what = f"a single {column}" if column else "a single track"
    if len(lonely) == len(found):
        raise TaskError(
            f"task {name}: every class has {what}, so that no fold could learn what it tests: "
            "take another --group_column, or none"
        )
    log.warning(
        "task %s: %d of %d classes (%s) have %s: they are tested by probes not trained on them",
        name,
        len(lonely),
        len(found),
        some,
        what,
    )
