"""Show attention weights: `python -m tune.comparison attention runs/NAME`.

Reads the weights that a run of `train_probe.py --agg attention` wrote, one for each token, seed and
test track. Weights are averaged over heads and seeds. Prints the tracks, the most uneven first, and
for one of them (`--track`, or the first) every token's weight with its spread over seeds; `--plot`
draws all of them over time.

A track's evenness is the entropy of its weights relative to that of equal weights: 1 when all
tokens weigh the same (which is the mean), 0 when one token has all the weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tune.cli.parser import Parser, positive_int
from tune.segments.plot import clock
from tune.system.files import check_plot_file

COLUMNS = ("seed", "id", "token", "start_s", "end_s", "weight")
BARS = 48  # a track with more tokens is shown in this many groups of neighbours, at most
BAR_WIDTH = 40  # characters
PLOT_TRACKS = 60
PLOT_COLUMNS = 1200


@dataclass
class Track:
    """One track's weights.

    Attributes
    ----------
    times : (N, 2), where tokens begin and end, in seconds
    weights : (S, N), each seed's; they add up to 1 over tokens
    """

    id: str
    times: np.ndarray
    weights: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Weights averaged over seeds (N,)."""
        return self.weights.mean(0)

    @property
    def evenness(self) -> float:
        """Entropy relative to that of equal weights, from 0 to 1; 1 for a single token."""
        p = self.mean[self.mean > 0]
        n = len(self.mean)
        return 1.0 if n == 1 else float(-(p * np.log(p)).sum() / np.log(n))

    def grouped(self, most: int) -> "Track":
        """The track with neighbouring tokens grouped, into at most `most` groups."""
        starts = np.arange(0, len(self.times), -(-len(self.times) // most))
        ends = np.append(starts[1:], len(self.times)) - 1
        times = np.stack([self.times[starts, 0], self.times[ends, 1]], 1)
        return Track(self.id, times, np.add.reduceat(self.weights, starts, 1))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: a table of tracks, one track's tokens, and a picture if asked for."""
    args = _parse(argv)
    tracks = load_tracks(args.run)
    shown = find_track(tracks, args.track) if args.track else tracks[0]
    console = Console()
    console.print(tracks_table(tracks[: args.top], len(tracks)))
    console.print(tokens_table(shown))
    if args.plot:
        drawn = tracks[:PLOT_TRACKS]
        draw(drawn, args.run.resolve().name, args.plot)
        print(f"drawn to {args.plot} ({len(drawn)} of {len(tracks)} tracks)")


def load_tracks(run: Path) -> list[Track]:
    """Read a run's weights; the most uneven tracks come first.

    Raises
    ------
    ValueError
        When the folder is missing, the run had no attention, or the file is damaged.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder; RUN is one that train_probe.py wrote, runs/NAME")
    path = run / "attention.parquet"
    if not path.is_file():
        raise ValueError(f"{run} holds no attention.parquet: only --agg attention writes one")
    try:
        table = pq.read_table(path, columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} can't be read: {str(error).splitlines()[0]}") from error
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    names, first = np.unique(columns["id"], return_index=True)
    tracks = []
    for name in names[np.argsort(first)]:
        rows = np.flatnonzero(columns["id"] == name)
        rows = rows[np.lexsort((columns["token"][rows], columns["seed"][rows]))]
        weights = columns["weight"][rows].reshape(len(np.unique(columns["seed"][rows])), -1)
        own = rows[: weights.shape[1]]
        times = np.stack([columns["start_s"][own], columns["end_s"][own]], 1)
        tracks.append(Track(str(name), times, weights))
    return sorted(tracks, key=lambda track: track.evenness)


def find_track(tracks: Sequence[Track], name: str) -> Track:
    """The track of an id, or the only one whose id holds the text."""
    found = [t for t in tracks if t.id == name] or [t for t in tracks if name in t.id]
    if len(found) != 1:
        some = ", ".join(sorted(t.id for t in (found or tracks))[:5])
        raise ValueError(f"--track {name}: {len(found) or 'no'} tracks fit; ids are such as {some}")
    return found[0]


def tracks_table(tracks: Sequence[Track], n: int) -> Table:
    """Lay out tracks, one a row."""
    table = Table(title=f"the {len(tracks)} most uneven of {n} test tracks", title_justify="left")
    table.add_column("track", overflow="fold")
    for head in ("tokens", "top token", "share", "x even", "evenness"):
        table.add_column(head, justify="right", no_wrap=True)
    for track in tracks:
        top, size = int(track.mean.argmax()), len(track.mean)
        share = track.mean[top]
        table.add_row(
            track.id,
            str(size),
            span(track.times, top),
            f"{share:.3f}",
            f"{share * size:.2f}",
            f"{track.evenness:.3f}",
        )
    return table


def tokens_table(track: Track) -> Table:
    """Lay out one track's tokens with a bar each; a track with many is shown in groups."""
    grouped = track.grouped(BARS)
    seeds, n = grouped.weights.shape
    size = -(-len(track.times) // BARS)
    each = "tokens" if size == 1 else f"groups of {size} tokens"
    table = Table(
        title=f"{track.id}: {n} {each}, {seeds} seed{'s' * (seeds > 1)}",
        title_justify="left",
        box=None,
    )
    for head in ("start - end", "weight", "± over seeds"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for i, weight in enumerate(grouped.mean):
        spread = f"{grouped.weights[:, i].std(ddof=1):.3f}" if seeds > 1 else "-"
        bar = "█" * round(BAR_WIDTH * weight / grouped.mean.max())
        table.add_row(span(grouped.times, i), f"{weight:.3f}", spread, bar)
    return table


def span(times: np.ndarray, i: int) -> str:
    """Write a token's time as m:ss - m:ss, with fractions where tokens are short."""
    usual = np.median(times[:, 1] - times[:, 0])  # whatever the tail
    digits = 0 if usual >= 2 else 1 if usual >= 0.2 else 2
    return " - ".join(clock(at, digits) for at in times[i])


def draw(tracks: Sequence[Track], name: str, path: Path) -> None:
    """Draw tracks as rows of a heat map over time, each token against an even share."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    end = max(track.times.max() for track in tracks)
    at = (np.arange(PLOT_COLUMNS) + 0.5) / PLOT_COLUMNS * end
    picture = np.full((len(tracks), PLOT_COLUMNS), np.nan)
    for row, track in zip(picture, tracks, strict=True):
        inside = (track.times[:, :1] <= at) & (at < track.times[:, 1:])  # (N, columns)
        heard = inside.any(0)
        # Where segments overlap, a moment gets their average.
        row[heard] = (track.mean * len(track.mean) @ inside)[heard] / inside.sum(0)[heard]
    most = max(1.1, np.nanmax(np.exp(np.abs(np.log(np.maximum(picture, 0.1))))))
    figure = Figure(figsize=(9, 1.6 + 0.2 * len(tracks)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.75")  # where a track has no token
    image = axes.imshow(
        picture,
        cmap="PuOr_r",
        norm=LogNorm(1 / most, most),
        aspect="auto",
        extent=(0, end, len(tracks), 0),
        interpolation="nearest",
    )
    labels = [track.id if len(track.id) <= 32 else "…" + track.id[-31:] for track in tracks]
    labels = [label.replace("$", r"\$") for label in labels]  # a dollar would begin a formula
    axes.set_yticks(np.arange(len(tracks)) + 0.5, labels, fontsize=7)
    axes.hlines(np.arange(1, len(tracks)), 0, end, color="white", linewidth=0.8)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda s, _: clock(max(s, 0), 0 if end > 10 else 1))
    )
    axes.set(xlabel="time", title=f"{name}: attention, the most uneven tracks first")
    bar = figure.colorbar(
        image,
        ax=axes,
        location="bottom",
        shrink=0.6,
        aspect=40,
        pad=0.02,
        label="a token's weight, times an even share",
    )
    ticks = [1 / most, most**-0.5, 1, most**0.5, most]
    bar.set_ticks(ticks, labels=[f"{t:.2f}" for t in ticks])
    bar.minorticks_off()
    figure.savefig(path, dpi=130)


def _parse(argv):
    """Read the command line; say what is missing before anything is read."""
    parser = Parser(prog="python -m tune.comparison attention", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, runs/NAME")
    parser.add_argument(
        "--track",
        metavar="ID",
        help="the track to show, or a part of its id that is unique (default: the most uneven)",
    )
    parser.add_argument("--top", type=positive_int, default=5, help="tracks in the table")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help=f"picture to write, .png, .svg or .pdf, with at most {PLOT_TRACKS} tracks",
    )
    args = parser.parse_args(argv)
    if args.plot:
        try:
            check_plot_file(args.plot, "--plot")
        except ValueError as error:
            parser.error(str(error))
    return args
