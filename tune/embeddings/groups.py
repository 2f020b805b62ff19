"""Group a collection: `python -m tune.embeddings groups embeddings.parquet -n 12 --out groups.csv`.

k-means on the unit vectors of the stored space (so by the distances of `tune.embeddings similar`).
Each group is named by its medoid, the track with the greatest mean cosine to all of its group.
Without -n the number is the one of 2 to 20 with the best silhouette. The same file gives the same
groups.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tune.cli.parser import Parser, positive_int, set_up_logging
from tune.embeddings.file_formats import Embeddings, read
from tune.embeddings.similar import space_of
from tune.system.files import atomic_write_text

MOST = 20  # groups, where the number isn't given
SILHOUETTE_ROWS = 2000  # that a silhouette is computed on


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of the usable tracks of a file, the largest first.

    Attributes
    ----------
    rows : (n,) of the file
    group : (n,) number of each track's group, from 0
    medoids : (G,) rows of the file
    cosine : (n,) of each track with its group's medoid
    unit : (n, d)
    """

    rows: np.ndarray
    group: np.ndarray
    medoids: np.ndarray
    cosine: np.ndarray
    unit: np.ndarray


def find_groups(made: Embeddings, n_groups: int | None = None) -> Groups:
    """Cluster the tracks of a file.

    Parameters
    ----------
    n_groups : None is the number of 2 to `MOST` with the best silhouette

    Raises
    ------
    ValueError
        When there are fewer tracks than groups, or fewer than three.
    """
    rows = np.flatnonzero(made.usable)
    if len(rows) < max(3, n_groups or 0):
        raise ValueError(
            f"{len(rows)} tracks have an embedding: too few for {n_groups or 2} groups"
        )
    matrix = made.matrix()[rows]
    unit = space_of(made, matrix).as_unit(matrix)
    labels = _cluster(unit, n_groups)
    _, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))  # the largest first
    group = np.argsort(order)[labels]
    medoids, cosine = [], np.empty(len(rows))
    for number in range(len(order)):
        members = np.flatnonzero(group == number)
        medoid = members[np.argmax(unit[members] @ unit[members].sum(0))]
        cosine[members] = unit[members] @ unit[medoid]
        medoids.append(rows[medoid])
    return Groups(rows, group, np.array(medoids), cosine, unit)


def _cluster(unit: np.ndarray, n_groups: int | None) -> np.ndarray:
    """The number of each row's cluster."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    def clustered(n: int) -> np.ndarray:
        labels = KMeans(n, n_init=4, random_state=0).fit_predict(unit)
        return np.unique(labels, return_inverse=True)[1]

    if n_groups is not None:
        return clustered(n_groups)
    best, best_score = np.zeros(len(unit), int), -1.0
    for n in range(2, min(MOST, len(unit) - 1) + 1):
        labels = clustered(n)
        if not 1 < labels.max() + 1 < len(unit):
            continue
        size = min(SILHOUETTE_ROWS, len(unit))
        score = silhouette_score(unit, labels, metric="cosine", sample_size=size, random_state=0)
        if score > best_score:
            best, best_score = labels, score
    return best


def parse_args(argv: Sequence[str] | None = None):
    """Read the command line."""
    parser = Parser(prog="python -m tune.embeddings groups", description=__doc__)
    parser.add_argument("embeddings", type=Path, metavar="EMBEDDINGS", help="what embed.py wrote")
    parser.add_argument(
        "-n", "--number", type=positive_int, metavar="N", help="number of groups (default: by data)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.csv", help="write path, group, medoid and cosine to it"
    )
    args = parser.parse_args(argv)
    if args.out and args.out.suffix.lower() != ".csv":
        parser.error(f"--out must end in .csv, got {args.out}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Print the groups, and write them."""
    args = parse_args(argv)
    set_up_logging(True)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    made = read(args.embeddings)
    found, paths = find_groups(made, args.number), made.table["path"].to_pylist()
    table = Table("group", "tracks", "medoid", "nearest to it")
    for number, medoid in enumerate(found.medoids):
        members = np.flatnonzero(found.group == number)
        near = members[np.argsort(-found.cosine[members], kind="stable")][1:3]
        others = "\n".join(escape(paths[found.rows[i]]) for i in near)
        table.add_row(str(number + 1), str(len(members)), escape(paths[medoid]), others)
    Console(width=160).print(table)
    if args.out:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["path", "group", "medoid", "cosine"])
        for row, number, cosine in zip(found.rows, found.group, found.cosine, strict=True):
            medoid = paths[found.medoids[number]]
            writer.writerow([paths[row], number + 1, medoid, f"{cosine:.4f}"])
        atomic_write_text(args.out, text.getvalue())
        print(f"written to {args.out}")
