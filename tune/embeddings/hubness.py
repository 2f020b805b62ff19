"""Are some tracks near to everything? `python -m tune.embeddings hubness embeddings.parquet`.

A track's k-occurrence is how often it is among the k nearest of another track: k on average. In
many dimensions a few tracks, hubs, have hundreds, and many, orphans, have none, so that they are
never found. The skewness of k-occurrences says how bad it is (above about 1: hubs; Radovanović et
al., JMLR 11:2487, 2010), for each way of comparing that `tune.embeddings similar` knows.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tune.cli.parser import Parser, positive_int, set_up_logging
from tune.embeddings.file_formats import read
from tune.embeddings.space import MutualProximity, fit_space, occurrences, skewness

ROWS = 10_000


def hubness(matrix: np.ndarray, k: int = 10) -> list[dict]:
    """Measure the hubness of embeddings in each space.

    Parameters
    ----------
    matrix : (n, D), n above k

    Returns
    -------
    list of dict
        space, mutual_proximity, skewness, orphans (share of tracks that are never found), most
        (k-occurrence of the greatest hub)
    """
    found = []
    for name in ("ready", "whitened"):
        unit = fit_space(matrix, name).as_unit(matrix)
        for proximity in (None, MutualProximity.fit(unit.astype(np.float64))):
            counts = occurrences(unit, k, proximity)
            found.append(
                {
                    "space": name,
                    "mutual_proximity": proximity is not None,
                    "skewness": skewness(counts),
                    "orphans": float((counts == 0).mean()),
                    "most": int(counts.max()),
                }
            )
    return found


def parse_args(argv: Sequence[str] | None = None):
    """Read the command line."""
    parser = Parser(prog="python -m tune.embeddings hubness", description=__doc__)
    parser.add_argument("embeddings", type=Path, metavar="EMBEDDINGS", help="what embed.py wrote")
    parser.add_argument("-k", type=positive_int, default=10, metavar="N", help="of the k nearest")
    parser.add_argument(
        "--rows",
        type=positive_int,
        default=ROWS,
        metavar="N",
        help=f"of more tracks so many are drawn (default: {ROWS})",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    args = parse_args(argv)
    set_up_logging(True)
    from rich.console import Console
    from rich.table import Table

    made = read(args.embeddings, ("embedding",))
    rows = np.flatnonzero(made.usable)
    if len(rows) <= args.k:
        raise ValueError(f"{len(rows)} tracks have an embedding: -k {args.k} needs more")
    if len(rows) > args.rows:
        rows = np.sort(np.random.default_rng(0).choice(rows, args.rows, replace=False))
    table = Table("space", "mutual proximity")
    for head in (f"skewness of {args.k}-occurrence", "never found", "found most often"):
        table.add_column(head, justify="right")
    for item in hubness(made.matrix()[rows], args.k):
        table.add_row(
            item["space"],
            "yes" if item["mutual_proximity"] else "no",
            f"{item['skewness']:.2f}",
            f"{item['orphans']:.1%}",
            str(item["most"]),
        )
    Console(width=100).print(table)
    print(f"  {len(rows)} of {made.usable.sum()} tracks")
