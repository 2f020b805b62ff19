"""Figures of a comparison: fronts of quality against cost, and differences to the baseline.

Drawn with matplotlib (the extra `plot`), as SVG inside the report or as PNG and SVG for a paper.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

from tune.comparison.analysis import AXES, EncoderView, TableRow, TaskView, cost_of
from tune.comparison.fewest_seconds import SecondsCurve
from tune.comparison.verdicts import Verdict
from tune.system.files import slug

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
COLOURS = ("#1f6f8b", "#b5482f", "#5b7f2b", "#7a4f9a", "#8a6d1d")  # one an encoder
VERDICTS = {
    "better": "#1d7a3f",
    "equivalent": "#1f6f8b",
    "as good": "#5b7f2b",
    "worse": "#b3261e",
    "can't tell": "#5f6b76",
}
GREY = "#a9b2ba"
SAME_PLACE = 8  # pixels; names of points nearer than that are written side by side
UNITS = {"memory": 1e9, "seconds": 1.0, "dim": 1.0}
LABELS = {
    "memory": "peak memory while encoding (GB)",
    "seconds": "encoding, seconds a track",
    "dim": "values of the embedding",
}
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#66717b",
    "axes.labelcolor": "#2b333b",
    "xtick.color": "#4b555e",
    "ytick.color": "#4b555e",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "svg.hashsalt": "tune",
}


def front_figure(view: TaskView, axis: str):
    """Draw quality against a cost: the front in colour, what it dominates grey.

    Parameters
    ----------
    axis : a name of `AXES`

    Returns
    -------
    (Figure, tips: gid -> text), or None where the cost isn't known for two configurations
    """
    rows = [row for row in view.rows if row.fronts.get(axis) is not None]
    comparable = AXES[axis][1]
    groups: dict = {}
    for row in rows:
        groups.setdefault(comparable(row.configuration), []).append(row)
    if len(rows) < 2 or max(map(len, groups.values())) < 2:
        return None
    from matplotlib.figure import Figure

    # Costs of different devices or kinds don't belong on one axis: the largest group is drawn.
    rows = max(groups.values(), key=len)
    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    axes = figure.subplots()
    front = sorted((r for r in rows if r.fronts[axis]), key=lambda r: (_x(r, axis), r.mean))
    axes.plot(
        [_x(r, axis) for r in front],
        [r.mean for r in front],
        drawstyle="steps-post",
        color="#66717b",
        linewidth=1,
        zorder=1,
    )
    names = [encoder.name for encoder in view.encoders]
    tips = {}
    for i, row in enumerate(rows):
        on = row.fronts[axis]
        colour = COLOURS[names.index(row.encoder) % len(COLOURS)] if on else GREY
        gid = f"point-{axis}-{i}"
        if on:
            _, low, high = next(iter(row.metrics.values()))
            axes.plot(
                [_x(row, axis)] * 2, [low, high], color=colour, alpha=0.25, linewidth=3, zorder=2
            )
        axes.plot(
            [_x(row, axis)],
            [row.mean],
            "o",
            color=colour,
            markersize=7 if on else 5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            gid=gid,
            zorder=4 if on else 3,
        )
        cost = f"{_x(row, axis):.3g}{_unit(axis)}" + ("" if on else " (dominated)")
        tips[gid] = f"{row.encoder} {row.configuration.label}: {view.metric} {row.mean:.3f}, {cost}"
    costs = [_x(row, axis) for row in rows]
    if min(costs) > 0 and max(costs) / min(costs) > 8:
        _plain_decades(axes)
    axes.margins(x=0.12)
    _label(axes, front[-4:], axis)
    axes.set(xlabel=LABELS[axis], ylabel=_plain(view.metric))
    axes.grid(alpha=0.25, linewidth=0.6)
    if len(names) > 1:
        for name, colour in zip(names, COLOURS, strict=False):
            axes.plot([], [], "o", color=colour, label=_plain(name), markersize=5)
        axes.legend(fontsize=7.5, frameon=False, loc="lower right")
    return figure, tips


def forest_figure(view: TaskView, encoder: EncoderView):
    """Draw each difference to the encoder's baseline with its interval, coloured by its verdict."""
    rows = [
        row
        for row in view.rows
        if row.encoder == encoder.name
        and row.configuration.duplicate_of is None
        and isinstance(row.difference, Verdict)
    ]
    if not rows:
        return None
    from matplotlib.figure import Figure

    rows.sort(key=lambda row: row.difference.difference.value)
    figure = Figure(figsize=(6, 1.2 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#66717b", linewidth=0.8)
    axes.axvline(-encoder.margin, color="#66717b", linewidth=0.8, linestyle=":")
    for y, row in enumerate(rows):
        d = row.difference
        colour = VERDICTS[d.word]
        axes.plot([d.low, d.high], [y, y], color=colour, linewidth=1.6)
        axes.plot([d.difference.value], [y], "o", color=colour, markersize=4.5)
    axes.set_yticks(range(len(rows)), [_plain(row.configuration.label) for row in rows], fontsize=8)
    axes.set(
        xlabel=_plain(f"{view.metric}, difference to {encoder.baseline.label}"),
        ylim=(-0.7, len(rows) - 0.3),
    )
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    return figure, {}


def seconds_figure(view: TaskView, curve: SecondsCurve):
    """Draw quality against the seconds used, a line a pick; filled points are shown as good.

    Returns
    -------
    (Figure, tips: gid -> text)
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(curve.low, curve.high, color="#66717b", alpha=0.12, linewidth=0)
    axes.axhline(curve.mean, color="#66717b", linewidth=0.9, label="all of each track")
    tips = {}
    for (pick, points), colour in zip(curve.picks.items(), COLOURS, strict=False):
        axes.plot([p.seconds for p in points], [p.mean for p in points], color=colour, label=pick)
        for point in points:
            gid = f"seconds-{pick}-{point.seconds:g}"
            axes.plot(
                [point.seconds],
                [point.mean],
                "o",
                color=colour,
                markerfacecolor=colour if point.as_good else "white",
                markersize=6,
                gid=gid,
                zorder=3,
            )
            tips[gid] = (
                f"{point.seconds:g} s {pick}: {view.metric} {point.mean:.3f}, {point.verdict}"
            )
    if len(curve.seconds) > 1 and curve.seconds[-1] / curve.seconds[0] > 8:
        _plain_decades(axes)
    axes.set(xlabel="seconds of each track", ylabel=_plain(view.metric))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(fontsize=7.5, frameon=False)
    return figure, tips


def inline_svg(figure, tips: Mapping[str, str], prefix: str, title: str) -> str:
    """Turn a figure into an <svg> for an HTML page.

    Ids are made unique to the page, what is not drawn is taken out, and the parts named in `tips`
    (by gid) say their text when pointed at.
    """
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.fromstring(out.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("metadata") or child.tag == f"{{{SVG}}}style":
                parent.remove(child)
    for element in root.iter():
        name = element.get("id")
        if name in tips:
            element.set("data-tip", tips[name])
            element.set("tabindex", "0")
        if name:
            element.set("id", f"{prefix}-{name}")
        for key, value in element.attrib.items():
            if key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#", f"url(#{prefix}-", value))
    root.set("style", "stroke-linejoin:round;stroke-linecap:butt")
    root.set("role", "img")
    root.set("aria-label", title)
    for key in ("width", "height"):  # the page sets the size
        root.attrib.pop(key, None)
    return ET.tostring(root, encoding="unicode")


def draw_all(views: Sequence[TaskView]):
    """Yield (name, title, Figure, tips) of every figure of a comparison."""
    import matplotlib as mpl

    for view in views:
        for axis in AXES:
            with mpl.rc_context(STYLE):
                made = front_figure(view, axis)
            if made:
                yield f"{view.task}-{axis}", f"{view.metric} against {LABELS[axis]}", *made
        for i, curve in enumerate(view.seconds):
            with mpl.rc_context(STYLE):
                made = seconds_figure(view, curve)
            title = (
                f"{curve.encoder} {curve.whole.label}: {view.metric} by the seconds of each track"
            )
            title += " that are used; filled: shown to be as good as all, whose interval is grey"
            number = f"-{i + 1}" if i else ""
            yield f"{view.task}-{curve.encoder}-fewest-seconds{number}", title, *made
        for encoder in view.encoders:
            with mpl.rc_context(STYLE):
                made = forest_figure(view, encoder)
            if made:
                title = f"differences to {encoder.baseline.label}"
                yield f"{view.task}-{encoder.name}-differences", title, *made


def save_figures(views: Sequence[TaskView], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG; returns the files."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, _, figure, _ in draw_all(views):
        safe = slug(name).lstrip(".")
        for ending in (".png", ".svg"):
            path = folder / f"{safe}{ending}"
            with mpl.rc_context(STYLE):
                figure.savefig(path, dpi=200)
            files.append(path)
    return files


def _x(row: TableRow, axis: str) -> float:
    """A cost in the axis' unit."""
    return cost_of(row.configuration, axis) / UNITS[axis]


def _unit(axis: str) -> str:
    """The unit of a cost."""
    return {"memory": " GB", "seconds": " s a track", "dim": " values"}[axis]


def _label(axes, rows: Sequence[TableRow], axis: str) -> None:
    """Name the points of the front, each above and to the left or right, where there is room."""
    axes.autoscale_view()  # what follows asks for places on the page
    placed: list[tuple] = []  # (where on the page, row, names of all that stand there)
    for row in rows:
        here = axes.transData.transform((_x(row, axis), row.mean))
        text = (
            row.configuration.label
            if len(row.configuration.label) <= 26
            else row.configuration.label[:25] + "…"
        )
        for there, _, texts in placed:
            if abs(here - there).max() < SAME_PLACE:
                texts.append(text)
                break
        else:
            placed.append((here, row, [text]))
    for here, row, texts in placed:
        right = axes.transAxes.inverted().transform(here)[0] > 0.5
        axes.annotate(
            _plain(", ".join(texts)),
            (_x(row, axis), row.mean),
            fontsize=8,
            textcoords="offset points",
            xytext=(-6 if right else 6, 4),
            ha="right" if right else "left",
            zorder=5,
        )


def _plain_decades(axes) -> None:
    """Give the axis a logarithmic scale with 1, 2 and 5 of each decade as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain(text: str) -> str:
    """Text without formulas: a dollar sign would begin one."""
    return text.replace("$", r"\$")
