"""Data sets that lie as their authors' archives unpack: NSynth and VocalSet, read into rows.

Rows are those of `tune.tasks.readers`. What makes a row of the task what it is stands in the names
of files and folders, or in one JSON per split.
"""

import json
from pathlib import Path

from tune.tasks.readers import TaskError

TECHNIQUES = (
    "belt",
    "breathy",
    "inhaled",
    "lip_trill",
    "spoken",
    "straight",
    "trill",
    "trillo",
    "vibrato",
    "vocal_fry",
)
# The split of the data set's authors, which MARBLE keeps.
TECHNIQUE_TEST_SINGERS = ("f2", "f8", "m3", "m5", "m10")
SINGERS = {
    f"{word}{i}": f"{word[0]}{i}"
    for word, n in (("female", 9), ("male", 11))
    for i in range(1, n + 1)
}
VOCALSET_LISTS = {"train": "train", "valid": "val", "test": "test"}


def read_nsynth(folder: Path, row) -> tuple[list[dict], list[dict]]:
    """Rows of nsynth-{train,valid,test}/examples.json, whose notes are audio/<note>.wav.

    Parameters
    ----------
    row : tune.tasks.registry.TaskRow; its stem is the field of a note that is the label
    """
    root = folder / "nsynth-data" if (folder / "nsynth-data").is_dir() else folder
    rows, skipped = [], []
    for part, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        file = root / f"nsynth-{part}" / "examples.json"
        if not file.exists():
            raise TaskError(f"{file} is missing: NSynth's three archives unpack to such folders")
        try:
            notes = json.loads(file.read_bytes())
        except ValueError as error:
            raise TaskError(f"{file}: malformed JSON: {error}") from error
        for name, note in notes.items():
            if not isinstance(note, dict) or row.stem not in note:
                skipped.append({"where": f"{file}:{name}", "reason": f"needs {row.stem}"})
                continue
            audio = f"nsynth-{part}/audio/{name}.wav"
            rows.append(_row(f"{file}:{name}", audio, root / audio, note[row.stem], split))
    return rows, skipped


def read_vocalset(folder: Path, row) -> tuple[list[dict], list[dict]]:
    """Rows of VocalSet: as MARBLE v1 prepares it, or as its archive unpacks.

    MARBLE: {train,valid,test}_{s,t}.txt list <technique>/<singer>_..._<chunk>.wav below audio/, in
    chunks of 3 s. The archive: FULL/<singer>/<exercise>/<technique>/*.wav, whole recordings; the
    techniques' test split is by singer, everything else is split by `tune.tasks.splits`.

    Parameters
    ----------
    row : tune.tasks.registry.TaskRow; its stem is singer or technique
    """
    if (folder / f"train_{row.stem[0]}.txt").exists():
        return _read_prepared(folder, row.stem)
    full = next((p for p in (folder / "FULL", *sorted(folder.glob("*/FULL"))) if p.is_dir()), None)
    if full is None:
        raise TaskError(
            f"{folder} holds neither train_{row.stem[0]}.txt (MARBLE's preparation) nor FULL/ (the "
            f"archive's folder)"
        )
    rows = []
    for path in sorted(full.glob("*/*/*/*.wav")):
        singer, _, technique = path.relative_to(full).parts[:3]
        singer = SINGERS.get(singer)
        if singer is None or (row.stem == "technique" and technique not in TECHNIQUES):
            continue  # the task is about the ten techniques
        split = None
        if row.stem == "technique":
            split = "test" if singer in TECHNIQUE_TEST_SINGERS else "train"
        label = singer if row.stem == "singer" else technique
        rows.append(_row(str(path), str(path.relative_to(full.parent)), path, label, split))
    return rows, []


def _read_prepared(folder: Path, what: str) -> tuple[list[dict], list[dict]]:
    """Rows of MARBLE's lists; the label is part of the path."""
    rows, skipped = [], []
    for part, split in VOCALSET_LISTS.items():
        file = folder / f"{part}_{what[0]}.txt"
        if not file.exists():
            raise TaskError(f"{file} is missing: a task needs train, val and test")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            name = line.strip()
            where = f"{file}:{number}"
            if not name:
                continue
            technique, _, recording = name.partition("/")
            if not recording:
                skipped.append({"where": where, "reason": "needs <technique>/<file>"})
                continue
            label = technique if what == "technique" else recording.split("_")[0]
            rows.append(_row(where, name, folder / "audio" / name, label, split))
    return rows, skipped


def _row(where: str, name: str, path: Path, label, split: str | None) -> dict:
    """A row of `tune.tasks.readers`."""
    return {
        "where": where,
        "id": name,
        "path": str(path),
        "label": label,
        "split": split,
        "track": None,
    }
