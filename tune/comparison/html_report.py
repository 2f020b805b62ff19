"""The HTML report: one file that works offline.

Jinja2 escapes every string; the page forbids all outside requests and every script but its own by
a content security policy.
"""

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from markupsafe import Markup

from tune import __version__
from tune.comparison import figures, tables
from tune.comparison.analysis import AXES, TableRow, TaskView
from tune.comparison.configurations import Configuration
from tune.comparison.over_tasks import over_tasks
from tune.comparison.per_class import Attention, Breakdown
from tune.comparison.published_results import STUDY_METRICS
from tune.comparison.verdicts import Verdict
from tune.runs.load import SkippedRun
from tune.segments.plot import clock

PAGE = Path(__file__).resolve().parent / "report_page"


def render(
    views: Sequence[TaskView],
    left: Sequence[SkippedRun],
    *,
    correction: str,
    command: str = "",
    made: datetime | None = None,
) -> str:
    """Make the page.

    Parameters
    ----------
    views, left : as `tune.comparison.analysis.analyse` and `tune.comparison` give them
    correction : "holm" or "none"
    command : the command line, for the footer
    made : when; now if None
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "number": tables.number,
        "signed": tables.signed,
        "p_text": tables.p_text,
        "p_of": tables.p_of,
        "css_class": _css_class,
        "some_of": tables.some_of,
        "left_out": tables.left_out_text,
    }
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    drawn = _figures(views)
    return environment.get_template("page.html").render(
        tasks=[_task(i, view, drawn[i], correction) for i, view in enumerate(views)],
        n_configurations=sum(len(view.rows) for view in views),
        n_runs=sum(len(row.configuration.runs) for view in views for row in view.rows),
        over_tasks=over_tasks(views, correction),
        left=left,
        correction=correction,
        command=command,
        version=__version__,
        made=(made or datetime.now()).strftime("%Y-%m-%d %H:%M"),
        script=Markup(script),
        digest=digest,
        style=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
    )


def _figures(views) -> list[list[dict]]:
    """Each task's fronts as SVG; the differences are in its table already."""
    out = []
    for i, view in enumerate(views):
        mine = []
        for j, (name, title, figure, tips) in enumerate(figures.draw_all([view])):
            if not name.endswith("-differences"):
                svg = figures.inline_svg(figure, tips, f"f{i}-{j}", title)
                mine.append({"title": title, "svg": Markup(svg)})  # ElementTree has escaped it
        out.append(mine)
    return out


def _task(i: int, view: TaskView, drawn: list[dict], correction: str) -> dict:
    """A task's part of the page."""
    scale = _scale([row.difference for row in view.rows])
    several = len(view.encoders) > 1
    missing = [
        heading
        for axis, (heading, _) in AXES.items()
        if not any(row.fronts.get(axis) is not None for row in view.rows)
    ]
    return {
        "id": f"task-{i}",
        "view": view,
        "figures": drawn,
        "several": several,
        "rows": [_row(row, scale) for row in sorted(view.rows, key=_by_quality)],
        "zero": _percent(0.0, scale),
        "missing": missing,
        "apart": tables.apart_text(view),
        "stable": tables.stability_note(view),
        "verdict_notes": [
            (encoder.name, tables.verdict_notes(view, encoder, correction))
            for encoder in view.encoders
        ],
        "targets": list(view.rows[0].metrics)[1:],
        "study": _study(view),
        "published": tables.published_texts(view.published) if view.published else None,
        "published_note": tables.PUBLISHED_NOTE,
        "study_heads": list(STUDY_METRICS.get(view.task, {}).values()),
        "breakdown": _breakdown(view.breakdown, several),
        "attention": [_attention(a) for a in view.breakdown.attention],
    }


def _by_quality(row: TableRow) -> float:
    """The best first, undefined ones last."""
    return -row.mean if np.isfinite(row.mean) else float("inf")


def _row(row: TableRow, scale) -> dict:
    """A line of the table: texts, values to sort by, and where its interval is drawn."""
    texts = tables.row_texts(row)
    configuration, d = row.configuration, row.difference
    classes = [
        "aside" if configuration.duplicate_of is not None else "dominated" if row.dominated else "",
        "base" if row.is_baseline else "",
    ]
    source = configuration.memory_source or "unknown: no run of this encoding computed anything"
    interval = None
    if isinstance(d, Verdict) and np.isfinite([d.low, d.high]).all():
        left, middle, right = (_percent(v, scale) for v in (d.low, d.difference.value, d.high))
        interval = {"left": left, "width": right - left, "middle": middle}
    return {
        "row": row,
        "text": texts,
        "class": " ".join(filter(None, classes)),
        "interval": interval,
        "difference": d if isinstance(d, Verdict) else None,
        "reason": d if isinstance(d, str) else "",
        "about": _about(configuration),
        "memory_from": f"{configuration.memory_kind} {source}".strip(),
        "pareto": [axis for axis, on in row.fronts.items() if on],
        "word": row.verdict if isinstance(d, Verdict) or row.is_baseline else "none",
    }


def _css_class(word: str) -> str:
    """A verdict as the name of a style: cant-tell."""
    return word.replace(" ", "-").replace("'", "")


def _about(configuration: Configuration) -> str:
    """The tooltip of a strategy."""
    seeds = ", ".join(map(str, configuration.seeds))
    runs = ", ".join(run.name for run in configuration.runs)
    text = f"layer {configuration.result['layer']}; seeds {seeds}; {runs}; {configuration.device}"
    return text + ("; every track is one segment" if configuration.result.get("degenerate") else "")


def _scale(differences) -> tuple[float, float]:
    """The range that all intervals of a table are drawn in; it holds zero."""
    ends = [
        v for d in differences if isinstance(d, Verdict) for v in (d.low, d.high) if np.isfinite(v)
    ] + [0.0]
    low, high = min(ends), max(ends)
    room = 0.03 * (high - low) or 1.0
    return low - room, high + room


def _percent(value: float, scale) -> float:
    """The position of a value in a range, in per cent."""
    return round(100 * (value - scale[0]) / (scale[1] - scale[0]), 2)


def _study(view: TaskView) -> list[dict]:
    """The study's table, our configurations beside its figures."""
    lines = []
    for line in view.study:
        ours = [
            {
                "name": f"{c.result['encoder']} {c.label}",
                "same": c.result["encoder"] == "muq",
                "values": line.texts(c),
            }
            for c in line.ours
        ]
        lines.append(
            {
                "strategy": line.strategy,
                "study": list(line.study.values()),
                "cost": line.study_cost,
                "ours": ours,
            }
        )
    return lines


def _breakdown(b: Breakdown, several: bool) -> dict:
    """The table by class or target; shades run from the table's lowest to its highest value."""
    real = b.values[np.isfinite(b.values)]
    low, high = (float(real.min()), float(real.max())) if len(real) else (0.0, 1.0)

    def shade(value):
        return round(0.55 * (value - low) / (high - low), 3) if high > low else 0.0

    return {
        "heading": b.heading,
        "noun": b.noun,
        "spread_of": b.spread_of,
        "more": tables.others(b.n_configurations - len(b.configurations)),
        "disputed": b.disputed,
        "configurations": [
            f"{c.result['encoder']} {c.label}" if several else c.label for c in b.configurations
        ],
        "rows": [
            (part, [(float(v), shade(v)) if np.isfinite(v) else (None, 0.0) for v in values])
            for part, values in zip(b.parts, b.values, strict=True)
        ],
    }


def _attention(found: Attention) -> dict:
    """Tracks as strips of tokens, darker where the weight is larger."""
    tracks = []
    for track in found.tracks:
        grouped = track.grouped(48)
        length = float(grouped.times[:, 1].max())
        shares = grouped.mean / max(grouped.mean.max(), 1e-12)
        tokens = [
            {
                "width": round(100 * (end - start) / length, 2),
                "shade": round(float(s), 3),
                "tip": f"{clock(start)} to {clock(end)}: weight {w:.3f}, "
                f"{w * len(grouped.mean):.2f} times the average",
            }
            for (start, end), s, w in zip(grouped.times, shares, grouped.mean, strict=True)
        ]
        tracks.append(
            {"id": track.id, "evenness": track.evenness, "tokens": tokens, "length": clock(length)}
        )
    return {
        "label": f"{found.configuration.result['encoder']} {found.configuration.label}",
        "evenness": found.evenness,
        "tracks": tracks,
    }
