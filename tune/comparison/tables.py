"""The comparison as tables: on the terminal, and as CSV, Parquet, Markdown and LaTeX."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune.comparison.analysis import EncoderView, TableRow, TaskView
from tune.comparison.configurations import layer_of
from tune.comparison.fewest_seconds import SecondsCurve
from tune.comparison.main_effects import EncoderPair
from tune.comparison.over_tasks import over_tasks
from tune.comparison.published_results import Published, metric_name, same_encoder
from tune.comparison.stability import CHANGES, NOTE
from tune.comparison.verdicts import (
    AS_GOOD,
    BETTER,
    CANT_TELL,
    EQUIVALENT,
    WORSE,
    Verdict,
    family_text,
)
from tune.runs.load import SkippedRun

STYLES = {
    "better": "bold green",
    "equivalent": "cyan",
    "as good": "green",
    "worse": "red",
    "can't tell": "dim",
    "baseline": "bold",
}
P_WORDS = (BETTER, EQUIVALENT, AS_GOOD, WORSE)
MOST_NOTES = 3  # undecided comparisons that are written out under a table
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
HEADS = (
    "strategy",
    "metric",
    "± seeds",
    "95 % interval",
    "difference",
    "95 % interval",
    "p",
    "verdict",
    "s a track",
    "peak memory",
    "embedding",
)


def frame(views: Sequence[TaskView]) -> pd.DataFrame:
    """A row for each configuration: numbers in SI units, undefined ones empty."""
    rows = []
    for view in views:
        for row in view.rows:
            configuration, r, cost = (
                row.configuration,
                row.configuration.result,
                row.configuration.result["cost"],
            )
            d = row.difference if isinstance(row.difference, Verdict) else None
            out = {
                "task": view.task,
                "encoder": r["encoder"],
                "layer": layer_of(r),
                "seg": r["seg"],
                "agg": r["agg"],
                "tokens": r["tokens"],
                "use_seconds": r.get("use_seconds"),
                "pick": r.get("pick"),
                "strategy": configuration.label,
                "shared_settings": ", ".join(configuration.shared),
                "seeds": " ".join(map(str, configuration.seeds)),
                "n_seeds": len(configuration.seeds),
                "n_test": len(configuration.ids),
                "degenerate": bool(r.get("degenerate")),
                "metric": view.metric,
                "mean": row.mean,
                "std_over_seeds": row.std,
            }
            for name, (mean, low, high) in row.metrics.items():
                out |= {name: mean, f"{name}_ci_low": low, f"{name}_ci_high": high}
            out |= {
                "verdict": row.verdict,
                "verdict_alone": d and d.alone,
                "margin": d and d.margin,
                "difference": d and d.difference.value,
                "difference_ci_low": d and d.low,
                "difference_ci_high": d and d.high,
                **{f"p_{word.replace(' ', '_')}": d and d.p[word] for word in P_WORDS},
                "detectable": d and d.detectable,
                "needed_tracks": d and d.needed and d.needed.tracks,
                "needed_seeds": d and d.needed and d.needed.seeds,
                "n_common_tracks": d and d.difference.n_tracks,
                "seconds_per_track": configuration.seconds_per_track,
                "peak_memory_bytes": configuration.memory_bytes,
                "peak_memory_kind": configuration.memory_kind,
                "peak_memory_from": configuration.memory_source,
                "embedding_dim": configuration.dim,
                "store_bytes": configuration.store_bytes,
                "probe_seconds": cost.get("probe_seconds"),
                "device": configuration.device,
                "runs": " ".join(run.name for run in configuration.runs),
            }
            out |= {f"front_{axis}": value for axis, value in row.fronts.items()}
            if row.stability:
                for name in CHANGES:
                    out[f"moved, {name}"] = row.stability.moved[name]
                    out[f"flips, {name}"] = row.stability.flips[name]
            rows.append(out)
    return pd.DataFrame(rows)


def write_frame(views: Sequence[TaskView], path: Path) -> None:
    """Write every configuration as CSV or Parquet, by the file's ending."""
    table = frame(views)
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)


def row_texts(row: TableRow) -> list[str]:
    """A row of the table as text, in the order of `HEADS`."""
    d = row.difference
    mean, low, high = next(iter(row.metrics.values()))
    out = [row.configuration.label, number(mean), number(row.std), span(low, high)]
    if isinstance(d, Verdict):
        out += [signed(d.difference.value), span(d.low, d.high, signed), p_text(p_of(d))]
    else:
        out += ["", "", ""]
    return [*out, row.verdict, *costs(row)]


def costs(row: TableRow) -> list[str]:
    """Seconds, memory and embedding size as text; "-" where unknown."""
    configuration = row.configuration
    seconds = (
        "-" if configuration.seconds_per_track is None else f"{configuration.seconds_per_track:.3g}"
    )
    memory = (
        "-" if configuration.memory_bytes is None else f"{configuration.memory_bytes / 1e9:.2f} GB"
    )
    return [seconds, memory, "-" if configuration.dim is None else f"{configuration.dim:,}"]


def strategies_text(pair: EncoderPair) -> str:
    """The strategies that a comparison of two encoders is averaged over."""
    names, n = pair.strategies, len(pair.strategies)
    return ", ".join(names) if n <= 3 else f"{n} strategies"


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many others there are.

    Examples
    --------
    >>> some_of(["10 s mean", "10 s max", "full mean"], 2)
    '10 s mean, 10 s max and 1 other'
    """
    more = others(len(names) - most)
    return ", ".join(names[:most]) + (f" and {more}" if more else "")


def others(n: int) -> str:
    """1 other, 2 others; "" for none."""
    return f"{n} other{'s' * (n != 1)}" if n > 0 else ""


def left_out_text(pair: EncoderPair, most: int = 3) -> str:
    """The strategies of two encoders that a comparison is not averaged over; "" for none."""
    return "; ".join(f"{name} {some_of(x, most)}" for name, x in pair.left_out.items() if x)


def apart_text(view: TaskView) -> str:
    """The encoders that aren't compared with each other, and why; "" for none."""
    apart = [f"{a} and {b}" for a, b in view.encoders_apart]
    why = "no strategy, or no test tracks with the same labels, in common"
    return f"not compared: {some_of(apart)} ({why})" if apart else ""


PUBLISHED_NOTE = (
    "against: whether the published figure is inside, above or below the 95 % interval of ours, in "
    "brackets where ours is another encoder"
)


def published_texts(published: Published) -> tuple[list[str], list[list[str]], list[str]]:
    """Published figures beside ours as text: heads, rows, and a line on each protocol spread."""
    metrics = list(published.lines[0].figures)
    names = {c: f"{c.result['encoder']} {c.label}" for c in published.ours}
    heads = ["encoder", "source", "protocol", *map(metric_name, metrics)]
    heads += [f"against {name}" for name in names.values()]
    rows = []
    for c, found in published.ours.items():
        values = [found.get(m, (float("nan"),) * 3) for m in metrics]
        figures = [f"{number(mean)} ({span(low, high)})" for mean, low, high in values]
        rows.append([names[c], "ours", "", *figures, *[""] * len(names)])
    for line in published.lines:
        figures = [
            number(value) + (f" ± {number(std)}" if std else "")
            for value, std in line.figures.values()
        ]
        words = [
            (c, ", ".join(word or "-" for word in words.values())) for c, words in line.ours.items()
        ]
        against = [word if same_encoder(c, line) else f"({word})" for c, word in words]
        rows.append([line.name, line.source, line.protocol, *figures, *against])
    spread = [
        f"protocol spread, {encoder}: "
        + ", ".join(
            f"{metric_name(m)} {number(low)} to {number(high)} ({100 * (high - low):.1f} points)"
            for m, (low, high) in found.items()
        )
        for encoder, found in published.spread.items()
    ]
    return heads, rows, spread


def number(value: float | None) -> str:
    """Three decimals, or "-"."""
    return "-" if value is None or value != value else f"{value:.3f}"


def signed(value: float) -> str:
    """Three decimals with a sign."""
    return "-" if value != value else f"{value:+.3f}"


def span(low: float, high: float, text=number) -> str:
    """An interval."""
    return "-" if low != low else f"{text(low)} to {text(high)}"


def p_of(verdict: Verdict) -> float:
    """One-sided p of a verdict's word; where it can't be told, the smallest of any word."""
    return min(verdict.p.values()) if verdict.word == CANT_TELL else verdict.p[verdict.word]


def verdict_notes(view: TaskView, encoder: EncoderView, correction: str) -> list[str]:
    """Lines under a table: the margin and the family, then what would settle what can't be told."""
    found = [
        (row.configuration.label, row.difference)
        for row in view.rows
        if row.encoder == encoder.name and isinstance(row.difference, Verdict)
    ]
    note = [stability_note(view)] if stability_note(view) else []
    if not found:
        return note
    n, lines = len(found), [family_text(encoder.margin, len(found), correction)]
    single = sum(verdict.difference.n_seeds == 1 for _, verdict in found)
    if single:
        lines.append(
            f"one seed in {single} of {n} comparison{'s' * (n > 1)}: probe noise is not in it, so "
            "that verdicts err more often; give train_probe.py several --seeds"
        )
    open_ones = [f"{label}: {verdict}" for label, verdict in found if verdict.word == CANT_TELL]
    lines += note
    lines += open_ones[:MOST_NOTES]
    if len(open_ones) > MOST_NOTES:
        lines.append(f"and {len(open_ones) - MOST_NOTES} more that can't be told")
    return lines


def seconds_title(curve: SecondsCurve) -> str:
    """The strategy of a curve of seconds."""
    return f"{curve.encoder} {curve.whole.label}"


def p_text(p: float) -> str:
    """A p-value."""
    return "-" if p != p else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def print_views(
    views: Sequence[TaskView], left: Sequence[SkippedRun], correction: str, console: Console
) -> None:
    """Print each task's table, its main effects and its guidelines."""

    def say(text, style=None):
        console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)

    for view in views:
        for encoder in view.encoders:
            rows = [row for row in view.rows if row.encoder == encoder.name]
            untrained = ", untrained" * encoder.untrained
            against = f", against {encoder.baseline.label}" if encoder.baseline else ""
            say(
                f"\n{view.task}, {encoder.name}{untrained}: {view.metric} on {view.n_test} test "
                f"tracks{against}",
                "bold",
            )
            console.print(_table(rows, view, correction))
            say(f"  {encoder.note}" if encoder.note else "", "yellow")
            for text in verdict_notes(view, encoder, correction):
                say(f"  {text}")
            for effect in encoder.effects:
                levels = "; ".join(
                    f"{x.name} {x.mean:.3f}"
                    + (
                        f" ({x.difference.difference.value:+.3f}, {x.word})"
                        if x.difference
                        else f" ({x.word})" * bool(x.same_as)
                    )
                    for x in effect.levels
                )
                left_out = f"; left out: {some_of(effect.left_out)}" if effect.left_out else ""
                say(
                    f"  effect of {effect.factor}, mean over {', '.join(effect.others)}: "
                    f"{levels}{left_out}"
                )
            width = max((len(advice.question) for advice in encoder.advice), default=0)
            for advice in encoder.advice:
                say(f"  {advice.question:<{width}}  {advice.answer}: {advice.evidence}")
        for pair in view.encoder_pairs:
            d = pair.difference
            say(
                f"  encoders {pair.name} {pair.mean:.3f}, {pair.other} {pair.mean_of_other:.3f}: "
                f"{d.difference.value:+.3f} ({span(d.low, d.high, signed)}), {d.word}; "
                f"mean over {strategies_text(pair)}"
                + (f"; left out: {left_out_text(pair)}" if left_out_text(pair) else "")
            )
        if view.encoders_apart:
            say(f"  encoders {apart_text(view)}")
        for curve in view.seconds:
            say(f"\n{view.task}, {seconds_title(curve)}: {view.metric} by seconds used", "bold")
            table = Table()
            for i, head in enumerate(("seconds of a track", *curve.picks)):
                table.add_column(head, justify="right" if i else "left")
            for texts in curve.texts():
                table.add_row(*texts)
            console.print(table)
            for text in curve.answers():
                say(f"  {text}")
        for line in view.study:
            figures = ", ".join(f"{n} {v}" for n, v in line.study.items())
            ours = "; ".join(
                f"{c.result['encoder']} {c.label} " + ", ".join(line.texts(c)) for c in line.ours
            )
            say(f"  study: {line.strategy}: {figures}" + (f"; ours: {ours}" if ours else ""))
        if view.published:
            heads, rows, spread = published_texts(view.published)
            say(f"\n{view.task}: published, beside ours", "bold")
            table = Table()
            for i, head in enumerate(heads):
                table.add_column(head, overflow="fold", justify="right" if i > 2 else "left")
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)
            for text in (PUBLISHED_NOTE, *spread):
                say(f"  {text}")
    for found in over_tasks(views, correction):
        say(f"\n{found.title}", "bold")
        table = Table()
        for i, head in enumerate(found.HEADS):
            table.add_column(head, justify="right" if 0 < i < 5 else "left", overflow="fold")
        for effect in found.effects:
            table.add_row(*map(Text, effect.texts()))
        console.print(table)
        for text in found.answers():
            say(f"  {text}")
    if left:
        say(f"\n{len(left)} run{'s' * (len(left) > 1)} left out:")
        for item in left:
            say(f"  {item.where}: {item.reason}")


def write_markdown(views: Sequence[TaskView], correction: str, path: Path) -> None:
    """Write each task's table and guidelines as Markdown."""
    lines = []
    for view in views:
        for encoder in view.encoders:
            heads = (*HEADS[:1], view.metric, *HEADS[2:6], _p_head(correction), *HEADS[7:])
            heads += _stability_head(view)
            title = f"## {_md(view.task)}, {_md(encoder.name)}" + " (untrained)" * encoder.untrained
            lines += [
                title,
                "",
                f"{view.n_test} test tracks. "
                + (
                    f"Baseline: {_md(encoder.baseline.label)}."
                    if encoder.baseline
                    else _md(encoder.note)
                ),
                "",
            ]
            lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
            for row in view.rows:
                if row.encoder == encoder.name:
                    texts = [_md(text) for text in (*row_texts(row), *_stability_text(row, view))]
                    texts[7] = f"**{texts[7]}**" if texts[7] in P_WORDS else texts[7]
                    lines.append(f"| {' | '.join(texts)} |")
            lines += ["", *(_md(text) + "  " for text in verdict_notes(view, encoder, correction))]
            lines += [
                "",
                *(
                    f"- **{_md(a.question)}**: {_md(a.answer)}. {_md(a.evidence)}"
                    for a in encoder.advice
                ),
                "",
            ]
        if view.encoder_pairs:
            lines += [
                f"## {_md(view.task)}, encoders",
                "",
                f"| encoder | {view.metric} | against | {view.metric} | difference | 95 % | "
                f"{_p_head(correction)} | verdict | mean over | left out |",
                "|---|---:|---|---:|---:|---:|---:|---|---|---|",
            ]
        for pair in view.encoder_pairs:
            d = pair.difference
            texts = [
                pair.name,
                number(pair.mean),
                pair.other,
                number(pair.mean_of_other),
                signed(d.difference.value),
                span(d.low, d.high, signed),
                p_text(p_of(d)),
                d.word,
                strategies_text(pair),
                left_out_text(pair),
            ]
            lines.append(f"| {' | '.join(map(_md, texts))} |")
        lines += [""] * bool(view.encoder_pairs)
        if view.encoders_apart:
            lines += [f"Encoders {_md(apart_text(view))}.", ""]
        for curve in view.seconds:
            heads = ("seconds of a track", *curve.picks)
            lines += [f"## {_md(view.task)}, {_md(seconds_title(curve))}: seconds used", ""]
            lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * len(curve.picks)]
            lines += [f"| {' | '.join(map(_md, texts))} |" for texts in curve.texts()]
            lines += ["", *(f"- {_md(text)}" for text in curve.answers()), ""]
        if view.published:
            heads, rows, spread = published_texts(view.published)
            lines += [f"## {_md(view.task)}, published", ""]
            lines += [
                f"| {' | '.join(map(_md, heads))} |",
                "|---" * 3 + "|---:" * (len(heads) - 3) + "|",
            ]
            lines += [f"| {' | '.join(map(_md, row))} |" for row in rows]
            lines += ["", *(f"- {_md(text)}" for text in (PUBLISHED_NOTE, *spread)), ""]
    for found in over_tasks(views, correction):
        lines += [f"## {_md(found.title)}", "", f"| {' | '.join(found.HEADS)} |"]
        lines += ["|---|---:|---:|---:|---|---|---|"]
        lines += [f"| {' | '.join(map(_md, effect.texts()))} |" for effect in found.effects]
        lines += ["", *(f"- {_md(text)}" for text in found.answers()), ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_latex(views: Sequence[TaskView], correction: str, path: Path) -> None:
    """Write a booktabs table for each task and encoder."""
    out = ["% needs \\usepackage{booktabs}"]
    for view in views:
        for encoder in view.encoders:
            correct = "Holm-corrected" if correction == "holm" else "uncorrected"
            against = ""
            if encoder.baseline:
                against = (
                    f" Differences to {encoder.baseline.label}: paired 95 % interval, {correct} "
                    "one-sided p"
                )
                if encoder.margin is not None:
                    against += f", margin {encoder.margin:.3g}"
                against += "."
            caption = (
                f"{view.task}, {encoder.name}: {view.metric} on {view.n_test} test tracks "
                f"with its 95 % interval.{against}"
            )
            out += [
                r"\begin{table}",
                r"\centering\small",
                rf"\caption{{{_tex(caption)}}}",
                r"\begin{tabular}{lrrrrrl}",
                r"\toprule",
                rf"strategy & {_tex(view.metric)} & 95\,\% & difference & 95\,\% & p & "
                r"verdict \\",
                r"\midrule",
            ]
            for row in view.rows:
                if row.encoder == encoder.name:
                    label, mean, _, between, value, of_difference, p, word, *_ = row_texts(row)
                    value, of_difference = (x.replace("-", "$-$") for x in (value, of_difference))
                    columns = (_tex(label), mean, between, value, of_difference, p, _tex(word))
                    out.append(" & ".join(columns) + r" \\")
            out += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    path.write_text("\n".join(out), encoding="utf-8")


def _table(rows: Sequence[TableRow], view: TaskView, correction: str) -> Table:
    """A task's table for one encoder; dominated configurations are dim."""
    table = Table()
    heads = (HEADS[0], view.metric, *HEADS[2:6], _p_head(correction), *HEADS[7:])
    heads += _stability_head(view)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    for row in rows:
        texts = [Text(text) for text in (*row_texts(row), *_stability_text(row, view))]
        texts[7].stylize(STYLES.get(row.verdict, ""))
        table.add_row(
            *texts, style="dim" if row.dominated or row.configuration.duplicate_of else None
        )
    return table


def stability_note(view: TaskView) -> str:
    """A line on the column of stability; "" without it."""
    found = [row.stability for row in view.rows if row.stability]
    return f"{NOTE}; {found[0].n_tracks} tracks" if found else ""


def _stability_head(view: TaskView) -> tuple[str, ...]:
    """The heading of the column of stability, if there is one."""
    return ("moved, flips",) if stability_note(view) else ()


def _stability_text(row: TableRow, view: TaskView) -> tuple[str, ...]:
    """A row of that column."""
    shown = row.stability.text if row.stability else "-"
    return (shown,) if stability_note(view) else ()


def _p_head(correction: str) -> str:
    """The heading of the p-values."""
    return "p (Holm)" if correction == "holm" else "p"


def _md(text: str) -> str:
    """Text that Markdown shows as it is, in a table as well."""
    text = "".join(
        f"&#{ord(c)};" if c in "<>|&" else f"\\{c}" if c in "\\`*_[]#" else c for c in text
    )
    return " ".join(text.split())


def _tex(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(LATEX.get(c, c) for c in text)
