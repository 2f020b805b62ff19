"""Reports of measured costs: a table, what fits a budget, a plot over track length.

A row is a dict: a configuration's settings and the result of `tune.profiling.measure.measure`. GB
are 10^9 bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tune.profiling.arithmetic import STUDY_DEVICE, STUDY_TASKS, longest_within, study_cost

NOTED_S = 1e-4  # shorter times a track are not mentioned
# Settings that get a column only when they differ between the rows.
SETTINGS = {
    "encoder": "encoder",
    "precision": "precision",
    "layer": "layer",
    "fusion": "fusion",
    "batch_seconds": "batch s",
}


def complete_row(settings: Mapping, found: Mapping, matrix_rate: float) -> dict:
    """Join settings with what was measured, the machine's matrix rate and the study's figures.

    Adds `share_of_matrix_rate` (None for an encoder whose arithmetic isn't known) and `study`:
    None, or `study_cost` with `peak_ratio`, our peak over the study's; None for another encoder
    than MuQ at its full size, which would be no comparison.
    """
    row = {**settings, **found}
    if "failed" in found:
        return row | {"study": None}
    rate = found["flops_per_second"]
    row["share_of_matrix_rate"] = None if rate is None else rate / matrix_rate
    early = settings["fusion"] == "early"  # the study's only kind
    row["study"] = (
        study_cost(found["duration_s"], settings["seg"], settings["agg"]) if early else None
    )
    if row["study"]:
        ratio = found["peak_memory_bytes"] / row["study"]["peak_memory_bytes"]
        row["study"]["peak_ratio"] = ratio if found["muq_large"] else None
    return row


def print_costs(rows: Sequence[Mapping], device: str, console: Console) -> None:
    """Print one row a configuration, with the study's figures where it has some."""
    varied = [key for key in SETTINGS if len({row[key] for row in rows}) > 1]
    study = any(row["study"] for row in rows)
    table = Table()
    for key in varied:
        table.add_column(SETTINGS[key])
    table.add_column("seg", no_wrap=True)
    table.add_column("agg", no_wrap=True)
    heads = [
        "track s",
        "passes",
        "peak GB",
        "s a track",
        "min to max",
        "audio s / s",
        "GFLOP/s",
        "of matrix rate",
        "embedding",
        "store kB",
    ]
    for head in heads + ["study GB", "study s", "ours / study GB"] * study:
        table.add_column(head, justify="right", no_wrap=head == "min to max")
    for row in rows:
        shown = [str(row[key]) for key in varied] + [seg_of(row), row["agg"]]
        table.add_row(*shown, *_numbers(row), *(_study_numbers(row) if study else []))
    console.print(
        f"\n{_title(rows[0], varied)}, on {device}",
        style="bold",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    console.print(table)
    for note in _notes(rows, device, study):
        console.print(f"  {note}", highlight=False, soft_wrap=True, markup=False)


def _title(row, varied) -> str:
    """The settings that all rows share."""
    name = row["encoder"] + (" (random weights)" if row.get("encoder_untrained") else "")
    parts = {
        "encoder": name,
        "precision": _precision(row["precision"]),
        "layer": f"layer {row['layer']}",
        "fusion": f"{row['fusion']} fusion" * (row["fusion"] != "early"),
        "batch_seconds": f"{row['batch_seconds']:g} s a batch",
    }
    shown = [text for key, text in parts.items() if text and key not in varied]
    return ", ".join(shown) or "costs"


def _precision(name) -> str:
    """A precision in words."""
    return "float32" if name == "no" else name


def _numbers(row) -> list[str]:
    """A row's measured columns."""
    if "failed" in row:
        seconds = row["duration_s"]
        return ["files" if seconds is None else f"{seconds:g}", "", row["failed"], *[""] * 7]
    known = row["flops_per_second"] is not None
    return [
        f"{row['duration_s']:g}",
        f"{row['encoder_passes']:g}" + (" = full" if row["degenerate"] else ""),
        f"{row['peak_memory_bytes'] / 1e9:.3f}",
        f"{row['seconds_per_track']:.3f}",
        f"{row['seconds_per_track_min']:.3f} to {row['seconds_per_track_max']:.3f}",
        f"{row['audio_seconds_per_second']:.1f}",
        f"{row['flops_per_second'] / 1e9:.1f}" if known else "-",
        f"{row['share_of_matrix_rate']:.0%}" if known else "-",
        str(row["embedding_dim"]),
        f"{row['store_bytes'] / 1e3:.1f}",
    ]


def _study_numbers(row) -> list[str]:
    """A row's columns with the study's figures."""
    study = row["study"]
    if study is None:
        return ["", "", ""]
    ratio = study["peak_ratio"]
    return [
        f"{study['peak_memory_bytes'] / 1e9:.3f}",
        f"{study['seconds_per_track']:.3f}",
        "-" if ratio is None else f"{ratio:.2f}",
    ]


def _comparable(row) -> bool:
    """Whether the study measured the same encoder on tracks as long."""
    return row["study"] is not None and row["study"]["peak_ratio"] is not None


def _notes(rows, device, study) -> list[str]:
    """Notes on how to read the table."""
    done = [row for row in rows if "failed" not in row]
    notes = []
    if done:
        weights_gb = done[0]["weights_bytes"] / 1e9
        notes.append(f"Peak: {done[0]['peak_memory_kind']}. Weights: {weights_gb:.3f} GB (row 1).")
    if any(row["degenerate"] for row in done):
        notes.append("= full: the segment isn't shorter than the track, so the track wasn't cut.")
    if any(row["redone_in_float32"] for row in done):
        notes.append(
            "Some batches overflowed and were repeated in float32; the times include that."
        )
    if any(row["decode_seconds"] > NOTED_S for row in done):
        per = ", ".join(dict.fromkeys(f"{row['decode_seconds']:.3f} s" for row in done))
        notes.append(f"Times include decoding: {per} a track.")
    cutting = max((row["cut_seconds"] for row in done), default=0.0)
    if cutting > NOTED_S:
        notes.append(f"Times include finding the boundaries: up to {cutting:.3f} s a track.")
    for agg in dict.fromkeys(row["agg"] for row in done if row["aggregator_parameters"]):
        part = [row for row in done if row["agg"] == agg]
        parameters, joining = (
            max(row[key] for row in part) for key in ("aggregator_parameters", "join_seconds")
        )
        notes.append(
            f"{agg}: up to {parameters:,} parameters, in the weights; joining takes up to "
            f"{joining:.4f} s a track, in the times."
        )
    if study:
        tasks = ", ".join(
            f"{name} ({row.duration_s:g} s, {row.test_tracks} tracks)"
            for name, row in STUDY_TASKS.items()
        )
        notes.append(
            f"The study measured MuQ on an {STUDY_DEVICE}, we on {device}: compare memory, not "
            f"seconds. Its seconds are for its whole test split, here divided by the number of "
            f"tracks: {tasks}."
        )
        if any(
            row["study"] and row["agg"] == "transformer" and not row["frame_rate"] for row in done
        ):
            notes.append(
                "The study's Transformer joins frames at 25 Hz (here: --tokens frame "
                "--frame_rate 25), ours one vector a segment."
            )
        if any(row["study"] and row["study"]["peak_ratio"] is None for row in done):
            notes.append("No ratio: this encoder isn't MuQ at its full size.")
    return notes


def budget_answer(rows: Sequence[Mapping], budget_bytes: int) -> dict:
    """Which configurations fit a budget, and the longest full track that does.

    Returns
    -------
    dict
        budget_bytes; `fits`: one bool a row; `longest_full_track`: for each encoder, precision,
        layer and batch size with two or more durations of the full track, these settings, the
        durations measured, and the line's answer (see `longest_within`)
    """
    fits = ["failed" not in r and r["peak_memory_bytes"] <= budget_bytes for r in rows]
    groups: dict[tuple, list] = {}
    for row in rows:
        if row["seg"] == "full" and "failed" not in row:
            groups.setdefault(tuple(row[key] for key in SETTINGS), []).append(row)
    longest = []
    for key, group in groups.items():
        durations = [row["duration_s"] for row in group]
        if len(set(durations)) > 1:
            line = longest_within(budget_bytes, durations, [r["peak_memory_bytes"] for r in group])
            longest.append(
                {
                    **dict(zip(SETTINGS, key, strict=True)),
                    "durations_s": sorted(set(durations)),
                    **line,
                }
            )
    return {"budget_bytes": budget_bytes, "fits": fits, "longest_full_track": longest}


def print_budget(rows: Sequence[Mapping], answer: Mapping, console: Console) -> None:
    """Print which configurations fit a budget, and the longest full track that does."""

    def say(text):
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    fits = answer["fits"]
    budget_gb = answer["budget_bytes"] / 1e9
    say(f"\n{sum(fits)} of {len(fits)} configurations fit into {budget_gb:.2f} GB.")
    for row, fit in zip(rows, fits, strict=True):
        if not fit:
            reason = row.get("failed") or f"{row['peak_memory_bytes'] / 1e9:.3f} GB"
            say(f"  does not fit: {describe_config(row)}: {reason}")
    for line in answer["longest_full_track"]:
        low, high = line["durations_s"][0], line["durations_s"][-1]
        seconds = line["seconds"]
        if seconds is None:
            text = f"not limited by memory as far as measured ({low:g} to {high:g} s)"
        else:
            text = (
                f"about {seconds:.0f} s ({seconds / 60:.1f} min), extrapolated from a line "
                f"through the peaks measured from {low:g} to {high:g} s"
            )
        say(
            f"  longest full track ({line['encoder']}, {_precision(line['precision'])}, layer "
            f"{line['layer']}): {text}"
        )


def describe_config(row: Mapping) -> str:
    """A configuration in a few words, for progress and messages."""
    track = "files" if row["duration_s"] is None else f"{row['duration_s']:g} s"
    return (
        f"{row['encoder']} seg {seg_of(row)} {row['agg']}"
        f"{', late fusion' * (row['fusion'] == 'late')}, track {track}, layer {row['layer']}, "
        f"{_precision(row['precision'])}, {row['batch_seconds']:g} s a batch"
    )


def seg_of(row: Mapping) -> str:
    """A configuration's segments, with how many seconds of them are used."""
    used = f" ({row['use_seconds']:g} s {row['pick']})" if row.get("use_seconds") else ""
    return row["seg"] + used


def curves(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """Measured rows by strategy, each in the order of track length; settings named if varied."""
    varied = [key for key in SETTINGS if len({row[key] for row in rows}) > 1]
    out: dict[str, list] = {}
    for row in rows:
        if "failed" not in row:
            name = " ".join([f"{seg_of(row)} {row['agg']}", *(str(row[key]) for key in varied)])
            out.setdefault(name, []).append(row)
    return {name: sorted(part, key=lambda row: row["duration_s"]) for name, part in out.items()}


def plot_costs(rows: Sequence[Mapping], device: str, path: Path) -> None:
    """Draw peak memory and seconds a track against track length; crosses are the study's memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    memory, time = figure.subplots(1, 2)
    for name, part in curves(rows).items():
        x = [row["duration_s"] for row in part]
        (line,) = memory.plot(x, [r["peak_memory_bytes"] / 1e9 for r in part], "o-", label=name)
        study = [row for row in part if _comparable(row)]
        memory.plot(
            [row["duration_s"] for row in study],
            [row["study"]["peak_memory_bytes"] / 1e9 for row in study],
            "x",
            color=line.get_color(),
            markersize=9,
        )
        median = [row["seconds_per_track"] for row in part]
        low = [row["seconds_per_track"] - row["seconds_per_track_min"] for row in part]
        high = [row["seconds_per_track_max"] - row["seconds_per_track"] for row in part]
        time.errorbar(x, median, [low, high], fmt="o-", capsize=3, label=name)
    if any(map(_comparable, rows)):
        memory.plot([], [], "kx", markersize=9, label=f"the study, {STUDY_DEVICE}")
    for axes, unit in ((memory, "peak memory (GB)"), (time, "seconds a track")):
        axes.set(xlabel="track length (s)", ylabel=unit, ylim=(0, None))
        axes.grid(alpha=0.3)
    memory.legend(fontsize="small")
    figure.suptitle(f"{rows[0]['encoder']} on {device}", fontsize="medium")
    figure.savefig(path, dpi=150)
