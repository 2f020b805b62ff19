"""Compare encoders on all tracks of a task, or on some, by cross-validation.

`train_probe.py --folds 5` does this in one run, which compare.py compares; the tool is for
`--only`, and for the folds that muq-nano's card reports.

    python tools/folds.py make MUSIC --out folds     # folds/NAME-0 ... folds/NAME-4
    python -m tune.sweep SWEEP.yaml                  # with task: {values: [folds/NAME-0, ...]}
    python tools/folds.py compare runs               # each track's prediction is of its own fold
    python tools/folds.py compare runs --only MUSIC/NAME.val.jsonl MUSIC/NAME.test.jsonl

MUSIC is a folder with NAME.train.jsonl, NAME.val.jsonl, NAME.test.jsonl and the audio (MARBLE's
layout, classes). The tracks of all three splits are split into stratified folds (scikit-learn's
StratifiedKFold, shuffled, by --seed); in NAME-K fold K is the test split, the next
one the val split, the others are the train split. Audio is hard-linked where possible, else copied.

`compare` puts the folds' test tracks together and compares each two encoders by their accuracy, as
the mean over the strategies (segments, aggregator, layer) that all encoders have in all folds:
paired by track, with the margin of 0.02 and corrected over the pairs, as in compare.py; with
--only over the tracks of these lists alone, such as those that an encoder wasn't pretrained on.
Folds share training tracks, which is ignored: as in any cross-validation intervals are somewhat too
narrow.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tune.cli.parser import Parser, positive_int, read_arguments, run_script


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="folds.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="split a task's tracks into folds")
    make.add_argument("task", type=Path, help="folder in MARBLE's layout")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the folds")
    make.add_argument("--folds", type=positive_int, default=5, metavar="N", help="how many")
    make.add_argument("--seed", type=int, default=0, help="of the shuffle")
    compare = commands.add_parser("compare", help="compare encoders over all folds")
    compare.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    compare.add_argument(
        "--only",
        type=Path,
        nargs="+",
        metavar="LIST",
        help="jsonl lists of tracks: only these count (default: all)",
    )
    args = parser.parse_args(argv)
    if args.command == "make" and args.folds < 3:
        parser.error("--folds must be at least 3, for training, validation and test")
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import json
import os
import re
import shutil
from itertools import combinations

import numpy as np

from tune.comparison.configurations import merge
from tune.comparison.jackknife import average, estimates
from tune.comparison.verdicts import verdicts
from tune.runs.load import read_folders

SPLITS = ("train", "val", "test")


def main(args) -> None:
    """Make folds, or compare."""
    if args.command == "make":
        make(args.task, args.out, args.folds, args.seed)
    else:
        for line in compare(args.runs, args.only):
            print(line)


def make(task: Path, out: Path, folds: int, seed: int) -> None:
    """Write the folds as tasks."""
    from sklearn.model_selection import StratifiedKFold

    lists = sorted(task.glob("*.test.jsonl"))
    if len(lists) != 1:
        raise ValueError(f"{task} holds {len(lists)} lists *.test.jsonl; it takes one task")
    name = lists[0].name.removesuffix(".test.jsonl")
    rows = []
    for split in SPLITS:
        file = task / f"{name}.{split}.jsonl"
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        rows += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    labels = [row["label"] for row in rows]
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{task} is no task of classes: its labels are no texts")
    fold_of = np.zeros(len(rows), int)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for k, (_, test) in enumerate(splitter.split(labels, labels)):
        fold_of[test] = k
    for k in range(folds):
        folder = out / f"{name}-{k}"
        for row in rows:
            to = folder / row["audio_path"]
            if ".." in to.parts or not to.is_relative_to(folder):
                raise ValueError(f"{row['audio_path']} lies outside {task}: its rows must not")
            to.parent.mkdir(parents=True, exist_ok=True)
            if not to.exists():
                try:
                    os.link(task / row["audio_path"], to)
                except OSError:
                    shutil.copyfile(task / row["audio_path"], to)
        role = {k: "test", (k + 1) % folds: "val"}
        for split in SPLITS:
            chosen = [
                r for r, f in zip(rows, fold_of, strict=True) if role.get(f, "train") == split
            ]
            text = "".join(json.dumps(row) + "\n" for row in chosen)
            (folder / f"{name}-{k}.{split}.jsonl").write_text(text, encoding="utf-8")
        print(f"{folder}: {int((fold_of == k).sum())} test tracks of {len(rows)}")


def read_lists(lists: list[Path], known: set[str]) -> list[str]:
    """Tracks of some jsonl lists, all of which must be known."""
    wanted = set()
    for file in lists:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            wanted |= {json.loads(line)["audio_path"] for line in lines if line}
        except OSError as error:
            raise ValueError(f"--only {file} can't be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--only {file} needs a JSON object a line, with audio_path"
            ) from error
    where = " ".join(map(str, lists))
    if not wanted:
        raise ValueError(f"--only {where}: no tracks are listed")
    unknown = sorted(wanted - known)
    if unknown:
        raise ValueError(
            f"--only {where}: {len(unknown)} of {len(wanted)} tracks, such as "
            f"{unknown[0]}, are in no fold"
        )
    return sorted(wanted)


def compare(folders: list[Path], lists: list[Path] | None = None) -> list[str]:
    """Lines on each two encoders: accuracies, difference, its interval, the verdict.

    Parameters
    ----------
    folders : of runs
    lists : jsonl lists of the task; only their tracks count

    Raises
    ------
    ValueError
        When no strategy is there with two encoders in all folds, the folds are of several tasks, or
        the lists are none of their tracks.
    """
    runs, _ = read_folders(folders)
    configurations, names = {}, set()
    for configuration in merge(runs)[0]:
        found = re.fullmatch(r"(.+?)-?(\d+)", configuration.result["task"])
        if (
            found
            and configuration.duplicate_of is None
            and not configuration.result.get("degenerate")
        ):
            strategy = tuple(str(configuration.result[k]) for k in ("seg", "agg", "layer_asked"))
            configurations[configuration.result["encoder"], strategy, int(found[2])] = configuration
            names.add(found[1])
    if len(names) > 1:
        raise ValueError(
            f"these are folds of several tasks ({', '.join(sorted(names))}): give one's"
        )
    encoders = sorted({key[0] for key in configurations})
    folds = sorted({key[2] for key in configurations})
    common = sorted(
        s
        for s in {key[1] for key in configurations}
        if all((e, s, k) in configurations for e in encoders for k in folds)
    )
    if len(encoders) < 2 or len(folds) < 2 or not common:
        raise ValueError(
            f"{', '.join(map(str, folders))}: {len(encoders)} encoders and {len(folds)} folds with "
            f"{len(common)} strategies that all of them have; it takes two of each, and a strategy"
        )
    ids = np.concatenate([configurations[encoders[0], common[0], k].ids for k in folds])
    counts = np.isin(ids, read_lists(lists, set(ids))) if lists else np.ones(len(ids), bool)
    means = {}
    for encoder in encoders:
        found = []
        for strategy in common:
            parts = [configurations[encoder, strategy, k] for k in folds]
            labels = np.concatenate([p.labels for p in parts])
            predictions = np.concatenate([p.predictions for p in parts], 1)
            scores = estimates("classes", labels[counts], predictions[:, counts])
            found.append(scores["accuracy"])
        means[encoder] = average(found)
    lines = [f"{counts.sum()} tracks in {len(folds)} folds, mean over {len(common)} strategies"]
    pairs = list(combinations(encoders, 2))
    judged = verdicts([means[one] - means[other] for one, other in pairs])
    for (one, other), verdict in zip(pairs, judged, strict=True):
        lines.append(
            f"{one} {means[one].value:.3f}, {other} {means[other].value:.3f}: "
            f"{verdict.difference.value:+.3f} ({verdict.low:+.3f} to {verdict.high:+.3f}), "
            f"{verdict.word}"
        )
    return lines


if __name__ == "__main__":
    run_script(lambda: main(args))
