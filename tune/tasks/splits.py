"""Splits: names brought into line, and a split made where a task has none."""

import logging

import numpy as np

from tune.tasks.label_kinds import LabelKind
from tune.tasks.rows import EVALUATION, SPLIT_NAMES, TaskError, split_word

log = logging.getLogger(__name__)

SPLIT_SHARES = {"val": 0.15, "test": 0.25}  # where a file has no split column
SPLIT_SEED = 1234


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
        rows = _make_split(train, kind, {"val": 0.2}) + [r for r in rows if r["split"] == "test"]
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
