"""Do neighbours have the same labels? `python -m tune.embeddings agreement EMBEDDINGS ... TASK`.

    python -m tune.embeddings agreement e.parquet ../shared/data/gamemusic --disjoint_by source
    python -m tune.embeddings agreement mean.parquet whitened.parquet my_music.csv

TASK has the labels, in any layout that train_probe.py's --task reads: classes, or numbers. No
training: every track is a query, and the others are ranked by their similarity to it, as
`tune.embeddings similar` ranks them (tune/embeddings/retrieval.py says what the measures are).
The first row is the baseline: the others are compared with it track by track, by the mean average
precision (of numbers by R²), and judged by the margin as compare.py judges (docs/verdicts.md).
Of more than --queries tracks so many are drawn, and each is still ranked against all.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tune.cli.flags import add_groups
from tune.cli.parser import Parser, positive_int, set_up_logging
from tune.comparison.verdicts import CANT_TELL, Verdict, family_text, verdicts
from tune.embeddings.file_formats import Embeddings, read
from tune.embeddings.retrieval import K, Retrieved, estimate, expected_map, retrieve
from tune.embeddings.space import MutualProximity, fit_space
from tune.probing.intervals import bootstrap
from tune.tasks.label_kinds import guess_kind
from tune.tasks.label_readers import numbers
from tune.tasks.readers import read_path

SHUFFLES = 1000
QUERIES = 10_000
SPACES = {"centred": ("ready", False), "whiten": ("whitened", False)}
SPACES |= {f"{name}, mutual proximity": (space, True) for name, (space, _) in SPACES.items()}


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled tracks, and how a file of embeddings finds their neighbours.

    Attributes
    ----------
    rows : of the file
    labels : (n,) class numbers or (n, C) values
    groups : (n,) numbers, or None
    """

    rows: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None

    def retrieve(self, made: Embeddings, space: str, n_queries: int = QUERIES) -> Retrieved:
        """Rank with a space of `SPACES`."""
        matrix, (name, mutual) = made.matrix()[self.rows], SPACES[space]
        unit = fit_space(matrix, name).as_unit(matrix)
        queries = np.arange(len(unit))
        if len(queries) > n_queries:
            queries = np.sort(np.random.default_rng(0).choice(queries, n_queries, replace=False))
        proximity = MutualProximity.fit(unit.astype(float)) if mutual else None
        return retrieve(unit, self.labels, groups=self.groups, queries=queries, proximity=proximity)


def read_labels(task: Path) -> dict[str, str | tuple[float, ...]]:
    """Absolute path of each track -> its label: text, or the values of a number label."""
    rows, _ = read_path(task)
    labels = [row["label"] for row in rows]
    if guess_kind(labels).name == "numbers":
        values = [numbers(label) for label in labels]
    else:
        values = list(map(str, labels))
    paths = [os.path.abspath(row["path"]) for row in rows]
    found = zip(paths, values, strict=True)
    return {p: tuple(v) if isinstance(v, list) else v for p, v in found if v is not None}


def read_groups(task: Path, column: str) -> dict[str, str]:
    """Absolute path of each track -> its group: a column such as artist, where it has one.

    Raises
    ------
    ValueError
        When no row has such a column.
    """
    rows, _ = read_path(task)
    groups = {os.path.abspath(row["path"]): row["columns"].get(column) for row in rows}
    groups = {path: str(name) for path, name in groups.items() if name not in (None, "")}
    if not groups:
        there = sorted({name for row in rows for name in row["columns"]})
        raise ValueError(
            f"--disjoint_by {column}: {task} has no such column, but "
            f"{', '.join(there) or 'none beside path and label'}"
        )
    return groups


def paths_of(made: Embeddings, root: Path = Path()) -> dict[str, int]:
    """Absolute path -> row, of the tracks that have an embedding."""
    paths = made.table["path"].to_pylist()
    usable = np.flatnonzero(made.usable)
    return {os.path.abspath(root / os.path.expanduser(paths[i])): int(i) for i in usable}


def labelled(
    made: Embeddings,
    labels: Mapping,
    *,
    root: Path = Path(),
    groups: Mapping | None = None,
    only: set[str] | None = None,
) -> Labelled:
    """The tracks that have an embedding and a label, sorted by path.

    Parameters
    ----------
    labels, groups : as `read_labels` and `read_groups` give them
    root : folder that the paths in the embeddings are relative to
    only : absolute paths to which they are confined

    Raises
    ------
    ValueError
        When there are fewer than three.
    """
    found = paths_of(made, root)
    paths = sorted(found.keys() & labels.keys() & (found.keys() if only is None else only))
    if len(paths) < 3:
        raise ValueError(
            f"{len(paths)} tracks have an embedding and a label: run from the folder where "
            f"embed.py ran, or name it by --root"
        )
    values = [labels[path] for path in paths]
    if all(isinstance(value, tuple) for value in values):
        y = np.array(values, np.float64)
    else:
        _, y = np.unique(list(map(str, values)), return_inverse=True)
    codes = None
    if groups is not None:  # a track without a group is a group of its own
        names = [f"group {groups[p]}" if p in groups else f"path {p}" for p in paths]
        _, codes = np.unique(names, return_inverse=True)
    return Labelled(np.array([found[path] for path in paths]), y, codes)


def score(
    made: Embeddings,
    labels: Mapping,
    *,
    whiten: bool = False,
    root: Path = Path(),
    groups: Mapping | None = None,
) -> dict:
    """Measures of retrieval by labels.

    Parameters
    ----------
    labels : as `read_labels` gives them
    root : folder that the paths in the embeddings are relative to
    groups : as `read_groups` gives them; neighbours of the query's group are left out

    Returns
    -------
    dict
        Of classes n, nearest (share whose nearest neighbour has the same label), low and high
        (95 %), top (the share among the ten nearest), knn, map, recall, chance (for a random
        neighbour), chance_map, and shuffled (the largest share in a thousand permutations of the
        labels); of numbers n and r2

    Raises
    ------
    ValueError
        When fewer than three tracks have both an embedding and a label.
    """
    tracks = labelled(made, labels, root=root, groups=groups)
    return summary(tracks, tracks.retrieve(made, "whiten" if whiten else "centred"))


def summary(tracks: Labelled, found: Retrieved) -> dict:
    """The values of `score`."""
    y = tracks.labels
    if y.ndim == 2:
        value = estimate(found, "r2", y, tracks.groups, [str(i) for i in range(y.shape[1])])
        low, high = value.interval()
        return {"n": len(y), "r2": value.value, "low": low, "high": high, "chance": 0.0}
    asked, nearest = y[found.queries], y[found.first]
    groups = None if tracks.groups is None else tracks.groups[found.queries].astype(str)
    low, high = bootstrap("classes", asked, nearest[None], [], groups=groups)["accuracy"]
    rng = np.random.default_rng(0)
    draws = (rng.permutation(y) for _ in range(SHUFFLES))
    n, counts = len(y), np.bincount(y)
    return {
        "n": n,
        "nearest": float((nearest == asked).mean()),
        "low": low,
        "high": high,
        "top": float(np.mean(found.values["of_k"])),
        "knn": float(np.mean(found.values["knn"])),
        "map": float(np.nanmean(found.values["map"])),
        "recall": float(np.nanmean(found.values["recall"])),
        "chance": float(((counts - 1) * counts).sum() / (n * (n - 1))),
        "chance_map": expected_map(y),
        "shuffled": float(max((d[found.first] == d[found.queries]).mean() for d in draws)),
    }


def compare(
    strategies: Sequence[tuple[Labelled, Retrieved]], margin: float, correction: str = "holm"
) -> list[Verdict]:
    """Judge every strategy but the first against it, by MAP or R², as one family.

    Parameters
    ----------
    strategies : on the same tracks, in the same order
    """
    y = strategies[0][0].labels
    measure, targets = ("r2", [str(i) for i in range(y.shape[1])]) if y.ndim == 2 else ("map", ())
    values = [estimate(found, measure, y, t.groups, targets) for t, found in strategies]
    return verdicts([value - values[0] for value in values[1:]], margin, correction=correction)


def parse_args(argv: Sequence[str] | None = None):
    """Read the command line."""
    parser = Parser(prog="python -m tune.embeddings agreement", description=__doc__)
    parser.add_argument(
        "embeddings", nargs="+", type=Path, metavar="EMBEDDINGS", help="what embed.py wrote"
    )
    parser.add_argument(
        "task",
        type=Path,
        metavar="TASK",
        help="a folder or .jsonl in MARBLE's layout, or a .csv/.tsv with the columns path,label",
    )
    parser.add_argument(
        "--disjoint_by",
        metavar="COLUMN",
        help="column of TASK, such as artist, album or ori_uid: tracks that share it with the "
        "query are left out of its ranking",
    )
    parser.add_argument(
        "--spaces",
        nargs="+",
        choices=SPACES,
        default=list(SPACES),
        metavar="SPACE",
        help=f"ways of comparing: {'; '.join(SPACES)} (default: all)",
    )
    parser.add_argument(
        "--queries",
        type=positive_int,
        default=QUERIES,
        metavar="N",
        help="tracks that are looked up (default: 10000)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write all values")
    add_groups(parser, {"": "root", "comparison": "margin correction"})
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, and the verdicts."""
    args = parse_args(argv)
    set_up_logging(True)
    labels = read_labels(args.task)
    groups = read_groups(args.task, args.disjoint_by) if args.disjoint_by else None
    files = {path: read(path) for path in args.embeddings}
    shared = set.intersection(*(set(paths_of(made, args.root)) for made in files.values()))
    strategies, rows = [], []
    for path, made in files.items():
        tracks = labelled(made, labels, root=args.root, groups=groups, only=shared)
        for space in args.spaces:
            found = tracks.retrieve(made, space, args.queries)
            strategies.append((tracks, found))
            rows.append({"embeddings": path.name, "space": space, **summary(tracks, found)})
    judged = compare(strategies, args.margin, args.correction)
    for row, verdict in zip(rows[1:], judged, strict=True):
        row["verdict"] = verdict.word
    _print(rows, labelled=strategies[0][0], queries=len(strategies[0][1].queries))
    if judged:
        print(family_text(args.margin, len(judged), args.correction))
    for row, verdict in zip(rows[1:], judged, strict=True):
        if verdict.word == CANT_TELL:
            print(f"{row['embeddings']}, {row['space']}: {verdict}")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _print(rows: Sequence[Mapping], labelled: Labelled, queries: int) -> None:
    """Show the table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    numbers = labelled.labels.ndim == 2
    heads = {"embeddings": "embeddings", "space": "space"}
    if numbers:
        heads |= {"r2": f"R² of {K} nearest", "interval": "95 % interval", "chance": "chance"}
    else:
        heads |= {"nearest": "nearest", "interval": "95 % interval", "top": f"of {K}"}
        heads |= {"knn": f"{K}-NN", "map": "MAP", "recall": "recall", "chance": "chance"}
        heads |= {"chance_map": "MAP by chance", "shuffled": "largest, shuffled"}
    heads |= {"verdict": "verdict"}
    table = Table()
    for name, head in heads.items():
        left = name in ("embeddings", "space", "verdict")
        table.add_column(head, justify="left" if left else "right")
    for row in rows:
        cells = {"verdict": "baseline"} | row
        cells["interval"] = f"{row['low']:.3f} to {row['high']:.3f}"
        shown = [cells[name] for name in heads]
        table.add_row(*(escape(c) if isinstance(c, str) else f"{c:.3f}" for c in shown))
    Console(width=160).print(table)
    text = f"  {len(labelled.labels)} tracks"
    print(text if queries == len(labelled.labels) else f"{text}, {queries} of them as queries")
