"""k-NN label agreement: `python -m tune.embeddings agreement embeddings.parquet TASK`.

    python -m tune.embeddings agreement e.parquet ../shared/data/gamemusic
    python -m tune.embeddings agreement mean.parquet whitened.parquet my_music.csv

TASK has the labels, in any layout that train_probe.py's --task reads. No training: the share of
tracks whose nearest neighbour (`tune.embeddings.similar`) has the same label, its 95 % interval
over tracks, and the share by chance.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tune.cli.parser import Parser, set_up_logging
from tune.embeddings.file_formats import Embeddings, read
from tune.embeddings.similar import distances
from tune.probing.intervals import bootstrap
from tune.tasks.readers import read_path

SHUFFLES = 1000
K = 10


def read_labels(task: Path) -> dict[str, str]:
    """Absolute path of each track -> its label as text."""
    rows, _ = read_path(task)
    return {os.path.abspath(row["path"]): str(row["label"]) for row in rows}


def score(
    made: Embeddings, labels: dict[str, str], *, whiten: bool = False, root: Path = Path()
) -> dict:
    """The share of neighbours with the same label.

    Parameters
    ----------
    labels : as `read_labels` gives them
    root : folder that the paths in the embeddings are relative to

    Returns
    -------
    dict
        n, nearest (share whose nearest neighbour has the same label), low and high (95 %), top (the
        share among the ten nearest), chance (for a random neighbour), and shuffled (the largest
        share in a thousand permutations of the labels)

    Raises
    ------
    ValueError
        When fewer than three tracks have both an embedding and a label.
    """
    paths = [os.path.abspath(root / os.path.expanduser(p)) for p in made.table["path"].to_pylist()]
    kept = [i for i in np.flatnonzero(made.usable) if paths[i] in labels]
    if len(kept) < 3:
        raise ValueError(
            f"{len(kept)} tracks have an embedding and a label: run from the folder where embed.py "
            f"ran, or name it by --root"
        )
    names, y = np.unique([labels[paths[i]] for i in kept], return_inverse=True)
    matrix = made.matrix()[kept]
    away = np.stack([distances(matrix, query, whiten=whiten) for query in matrix])
    np.fill_diagonal(away, np.inf)
    order = away.argsort(1, kind="stable")
    nearest = order[:, 0]
    rng = np.random.default_rng(0)
    draws = [rng.permutation(y) for _ in range(SHUFFLES)]
    low, high = bootstrap("classes", y, y[nearest][None], [])["accuracy"]
    n, counts = len(y), np.bincount(y, minlength=len(names))
    return {
        "n": n,
        "nearest": float((y[nearest] == y).mean()),
        "low": low,
        "high": high,
        "top": float((y[order[:, : min(K, n - 1)]] == y[:, None]).mean()),
        "chance": float(((counts - 1) * counts).sum() / (n * (n - 1))),
        "shuffled": float(max((draw[nearest] == draw).mean() for draw in draws)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
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
        "--root",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder that the tracks' paths are relative to (default: here)",
    )
    args = parser.parse_args(argv)
    set_up_logging(True)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    labels, console, table = read_labels(args.task), Console(width=120), Table()
    for head in (
        "embeddings",
        "",
        "nearest",
        "95 % interval",
        f"of {K} nearest",
        "chance",
        "largest, shuffled",
    ):
        table.add_column(head, justify="left" if head in ("embeddings", "") else "right")
    for path in args.embeddings:
        made = read(path)
        for whiten in (False, True):
            s = score(made, labels, whiten=whiten, root=args.root)
            table.add_row(
                escape(path.name),
                "whiten" * whiten,
                f"{s['nearest']:.3f}",
                f"{s['low']:.3f} to {s['high']:.3f}",
                f"{s['top']:.3f}",
                f"{s['chance']:.3f}",
                f"{s['shuffled']:.3f}",
            )
    console.print(table)
    print(f"  {s['n']} tracks")
