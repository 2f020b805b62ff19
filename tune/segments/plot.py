"""Plot where a track is cut: `python -m tune.segments plot FILE`.

Prints the segments that `--seg structure` makes of a file and draws them over the track's
self-similarity matrix (Foote, "Visualizing music and audio using self-similarity", ACM Multimedia
1999): homogeneous sections are bright squares on the diagonal, repetitions are bright
squares beside it.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from tune.audio.decode import AudioError, read_audio
from tune.cli.parser import Parser
from tune.segments.structure import MAX_S, MIN_S, StructureRule, describe, frame_length, novelty
from tune.system.files import check_plot_file

SAMPLE_RATE = 24_000  # MuQ's, so the picture shows what a run with it cuts
MAX_ROWS = 900  # rows of the matrix: a longer track's frames are averaged
WAVE_POINTS = 1500
BOUND, INK = "#e4572e", "#4c6a92"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the segments of one file and draw them."""
    args = _parse(argv)
    rule = StructureRule(args.min_seg, args.max_seg)
    try:
        samples = read_audio(args.file, SAMPLE_RATE)
    except AudioError as error:
        raise ValueError(f"{args.file}: {error}") from error
    spans = rule.cut(samples, SAMPLE_RATE)
    for line in table(spans, SAMPLE_RATE):
        print(line)
    draw(samples, SAMPLE_RATE, spans, args.file.name, args.out)
    print(f"drawn to {args.out}")


def table(spans: Sequence[tuple[int, int]], sample_rate: int) -> list[str]:
    """Start, end and length of every segment, one a line, under a heading."""
    lines = ["  #      start        end    length"]
    for i, (start, end) in enumerate(spans, start=1):
        bounds = "".join(f"{clock(at / sample_rate, 2):>11}" for at in (start, end))
        lines.append(f"{i:3d}{bounds}{(end - start) / sample_rate:8.2f} s")
    return lines


def clock(seconds: float, digits: int = 0) -> str:
    """Write a time as min:sec.

    Examples
    --------
    >>> clock(75.5), clock(75.5, digits=1)
    ('1:16', '1:15.5')
    """
    minutes, rest = divmod(round(seconds, digits), 60)
    return f"{minutes:.0f}:{rest:0{digits + 3 if digits else 2}.{digits}f}"


def draw(samples, sample_rate: int, spans, name: str, path: Path) -> None:
    """Draw waveform, novelty and self-similarity of a track with the segments' boundaries.

    Parameters
    ----------
    samples : ndarray of float32, shape (n_samples,)
    spans : list of (start, end) in samples
    name : for the title
    path : where to; the suffix is the format
    """
    from matplotlib.figure import Figure

    features, duration_s = describe(samples, sample_rate), len(samples) / sample_rate
    frame_s = frame_length(sample_rate) / sample_rate
    edges = [start / sample_rate for start, _ in spans] + [duration_s]
    figure = Figure(figsize=(8, 10), layout="constrained")
    wave, curve, matrix = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1, 6])
    _draw_wave(wave, samples, duration_s)
    curve.fill_between(np.arange(len(features)) * frame_s, novelty(features), color=INK)
    curve.set(ylabel="novelty", ylim=(0, None), yticks=[])
    # The track's last, broken frame looks like the one before it.
    rows = np.pad(similarity(features), (0, 1), mode="edge")
    end_s = len(rows) * -(-len(features) // MAX_ROWS) * frame_s
    image = matrix.imshow(
        rows,
        cmap="magma",
        origin="lower",
        aspect="auto",
        vmin=0,
        vmax=1,
        extent=(0, end_s, 0, end_s),
        interpolation="nearest",
    )
    width = 1.4 if len(spans) <= 24 else 0.5  # many boundaries would hide the picture
    for axes in (wave, curve):
        for edge in edges[1:-1]:
            axes.axvline(edge, color=BOUND, linewidth=width)
    for start, end in pairwise(edges):
        x, y = [start, end, end, start, start], [start, start, end, end, start]
        matrix.plot(x, y, color="white", linewidth=width)
    _time_axes(matrix, duration_s)
    figure.colorbar(
        image,
        ax=matrix,
        location="bottom",
        shrink=0.5,
        pad=0.02,
        aspect=40,
        label="similarity of two moments",
    )
    count = f"{len(spans)} segment" + ("s" if len(spans) > 1 else "")
    # A dollar sign would begin a formula.
    length = clock(duration_s, 0 if duration_s >= 10 else 2)
    figure.suptitle(f"{name}: {count} in {length}".replace("$", r"\$"))
    figure.savefig(path, dpi=130)


def similarity(features: np.ndarray) -> np.ndarray:
    """Similarity of every two moments of a track.

    Parameters
    ----------
    features : ndarray, shape (F, D)

    Returns
    -------
    ndarray of float64, shape (M, M), in (0, 1]
        exp(-d² / median d²) of the frames' distances d; M is F, or at most `MAX_ROWS` averages.
    """
    step = -(-len(features) // MAX_ROWS)
    starts = np.arange(0, len(features), step)
    counts = np.diff([*starts, len(features)])
    rows = np.add.reduceat(features, starts) / counts[:, None]
    squares = (rows**2).sum(1)
    distance = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)
    return np.exp(-distance / (np.median(distance) or 1.0))


def _draw_wave(axes, samples, duration_s) -> None:
    """Draw the waveform's envelope."""
    step = max(1, len(samples) // WAVE_POINTS)
    starts = np.arange(0, len(samples), step)
    low, high = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
    axes.fill_between(starts / len(samples) * duration_s, low, high, color=INK, linewidth=0.3)
    axes.set(ylabel="waveform", yticks=[])


def _time_axes(axes, duration_s) -> None:
    """Label both axes of the matrix in min:sec."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    steps = [0.02, 0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600]
    step = next((s for s in steps if duration_s / s <= 12), steps[-1])
    digits = 0 if step >= 1 else 2
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(step))
        axis.set_major_formatter(FuncFormatter(lambda value, _: clock(max(value, 0), digits)))
    axes.set(xlim=(0, duration_s), ylim=(0, duration_s), xlabel="time", ylabel="time")


def _parse(argv):
    """Read the command line and check it before anything is computed."""
    parser = Parser(prog="python -m tune.segments", description=__doc__)
    parser.add_argument("verb", choices=["plot"], help="print and draw a file's segments")
    parser.add_argument("file", type=Path, help="an audio file")
    parser.add_argument(
        "--out",
        type=Path,
        help="picture to write, .png, .svg or .pdf "
        "(default: FILE's name with .structure.png, in this folder)",
    )
    parser.add_argument(
        "--min_seg", type=float, default=MIN_S, metavar="S", help="shortest segment"
    )
    parser.add_argument("--max_seg", type=float, default=MAX_S, metavar="S", help="longest segment")
    args = parser.parse_args(argv)
    args.out = args.out or Path(f"{args.file.stem}.structure.png")
    try:
        check_plot_file(args.out, "--out")
    except ValueError as error:
        parser.error(str(error))
    return args
