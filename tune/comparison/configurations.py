"""Merge runs that differ only in their seeds into configurations, which `compare.py` compares.

Runs that differ in nothing but their seeds are one configuration: task x encoder x layer x segments
x aggregator x tokens, and whatever else changes a number (checkpoint, hop, precision, the probe's
training).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tune.aggregators.registry import AGGREGATORS
from tune.runs.load import Run, SkippedRun
from tune.runs.predictions import folds_text
from tune.segments.rules import MIN_TAIL_S, fixed_length, seg_text
from tune.segments.structure import MAX_S, MIN_S

# What changes a probe's training; a value that isn't the default makes another configuration.
TRAINING = {
    "lr": None,
    "aggregator_lr": None,
    "epochs": 50,
    "patience": 20,
    "batch_size": 64,
    "probe_precision": "float64",
}
APART = ("aggregator_lr", "probe_precision")  # no protocol sets these
PROTOCOL = {
    "standardise": "dimension",
    "target_scale": "standardised",
    "plateau_patience": None,
    "plateau_factor": None,
    "accumulation": 1,
    "val_unit": "track",
    "tie_break": "loss",
    "test_weights": "best",
    "averaged": "outputs",
}


@dataclass(eq=False)
class Configuration:
    """Runs of one strategy with different seeds.

    Attributes
    ----------
    runs : newest first
    ids : (n,) test tracks, sorted
    labels : (n,) class numbers or (n, C) values
    predictions : (S, n) or (S, n, C), all seeds
    groups : (n,) of a task whose tracks a column groups, else None
    label : its name, unique for a task and encoder
    shared : settings that all of a task and encoder share, which their labels leave out
    memory_bytes, memory_kind, memory_source : peak while encoding, allocated on a GPU or resident,
        and where it was measured; None if no run encoded anything, so that the peak is unknown
    """

    runs: list[Run]
    ids: list[str]
    labels: np.ndarray
    predictions: np.ndarray
    groups: list[str] | None = None
    label: str = ""
    shared: tuple[str, ...] = ()
    memory_bytes: int | None = None
    memory_kind: str = ""
    memory_source: str = ""
    duplicate_of: "Configuration | None" = (
        None  # the configuration that this degenerate one repeats
    )

    @property
    def result(self) -> dict:
        """The newest run's result.json."""
        return self.runs[0].result

    @property
    def seeds(self) -> list[int]:
        """Seeds of all runs."""
        return sorted(seed for run in self.runs for seed in run.result["seeds"])

    @property
    def seconds_per_track(self) -> float | None:
        """Encoding time of a track, when its rows were made by whichever run."""
        seconds = self.result["cost"].get("encode_seconds_stored")
        n = sum(self.result["n_tracks"].values())
        # Rounded: sums in another order aren't another cost.
        return float(f"{seconds / n:.6g}") if seconds and n else None

    @property
    def dim(self) -> int | None:
        """Size of a track's embedding."""
        return self.result["cost"].get("embedding_dim")

    @property
    def store_bytes(self) -> int | None:
        """Size of its segments in the store, all tracks together."""
        return self.result["cost"].get("store_bytes")

    @property
    def device(self) -> str:
        """The device it ran on: seconds of different devices are not compared."""
        return self.result.get("device", "")


def merge(runs: Sequence[Run]) -> tuple[list[Configuration], list[SkippedRun]]:
    """Merge runs that differ in their seeds only; of the same seeds the newest counts.

    Returns
    -------
    configurations, and the runs that another one replaced
    """
    groups: dict[tuple, list[Run]] = {}
    for run in sorted(runs, key=lambda r: (-r.made, r.name, r.where)):
        groups.setdefault(_key(run), []).append(run)
    configurations, left = [], []
    for members in groups.values():
        kept = members[:1]
        for run in members[1:]:
            reason = _why_apart(kept, run)
            if reason is None:
                kept.append(run)
            else:
                left.append(SkippedRun(run.where, reason))
        first = kept[0].predictions
        merged = np.concatenate([run.predictions.predictions for run in kept])
        configurations.append(Configuration(kept, first.ids, first.labels, merged, first.groups))
    _share_groups(configurations)
    _name(configurations)
    _find_memory(configurations, runs)
    _find_duplicates(configurations)
    return sorted(configurations, key=_order), left


def _share_groups(configurations: Sequence[Configuration]) -> None:
    """Give configurations of a task the groups of its newest run that has any.

    Differences are paired group by group; older runs of the same tracks don't have their groups. A
    track that the newest run doesn't have is a group of its own.
    """
    newest: dict[tuple, dict[str, str]] = {}
    for configuration in sorted(configurations, key=lambda c: -c.runs[0].made):
        if configuration.groups is not None:
            found = dict(zip(configuration.ids, configuration.groups, strict=True))
            newest.setdefault((task_key(configuration), folds_text(configuration.result)), found)
    for configuration in configurations:
        known = newest.get((task_key(configuration), folds_text(configuration.result)))
        if known is not None:
            configuration.groups = [known.get(name, name) for name in configuration.ids]


def task_key(run: Run | Configuration) -> tuple:
    """Properties that two runs must share to be compared at all."""
    r = run.result
    return (r["task"], r["kind"], tuple(r["classes"] or ()), tuple(r["targets"] or ()))


def layer_of(result: Mapping) -> str:
    """The layer as a strategy: a number, or how it was found."""
    asked = result.get("layer_asked")
    return asked if asked in ("all", "mix", "reduce") else str(result["layer"])


def pick_text(result: Mapping) -> str:
    """How many seconds of each track are used, and which: 30 s spread; "" for all."""
    seconds = result.get("use_seconds")
    return f"{seconds:g} s {result['pick']}" if seconds else ""


def details(run: Run, whole_path: bool = False) -> list[str]:
    """Settings of a run that aren't the defaults, beside segments, aggregator, layer and tokens."""
    r, out = run.result, []
    protocol = r.get("protocol") or {"name": "tune", "changed": {}}
    ours = protocol["name"] == "tune"

    def differs(name, value, usual) -> bool:
        """Whether a setting isn't the default, or not what the protocol's name says already."""
        return value != usual if ours else name in protocol["changed"]

    if r.get("hop"):
        out.append(f"hop {r['hop']:g} s")
    if r.get("min_tail") is not None and differs("min_tail", r["min_tail"], MIN_TAIL_S):
        out.append(f"tail from {r['min_tail']:g} s")
    out += [pick_text(r)] if pick_text(r) else []
    limits = (r.get("min_seg"), r.get("max_seg"))
    if None not in limits and limits != (MIN_S, MAX_S):
        out.append(f"segments of {limits[0]:g} to {limits[1]:g} s")
    aggregator = r.get("aggregator") or {}
    if aggregator.get("checkpoint"):
        path = str(aggregator["checkpoint"])
        out.append(path if whole_path else Path(path).name)
    elif r["agg"] in AGGREGATORS and AGGREGATORS[r["agg"]].pretrained:
        out.append("from scratch")
    if aggregator.get("plugin"):  # the same name with other code is another configuration
        out.append(f"source {aggregator['plugin']['sha256'][:8]}")
    if aggregator.get("readout"):
        out.append(aggregator["readout"])
    if aggregator.get("tuned") and aggregator.get("checkpoint"):
        out.append("tuned")
    out += [folds_text(r)] if folds_text(r) else []
    if not ours:
        out.append(protocol["name"])
    if differs("fusion", r.get("fusion", "early"), "early"):
        out.append(f"{r['fusion']} fusion")
    if differs("channels", r.get("channels") or "mix", "mix"):
        out.append(f"channels {r['channels']}")
    if differs("pad_tail", r.get("pad_tail", False), False):
        out.append("padded" if r["pad_tail"] else "not padded")
    if (r.get("seen_by_aggregator") or {}).get("tracks"):
        out.append(f"has seen {len(r['seen_by_aggregator']['tracks'])} test tracks")
    if r.get("probe", "mlp") != "mlp":
        out.append(f"{r['probe']} probe")
    for name, usual in {**TRAINING, **PROTOCOL}.items():
        value = run.config.get(name, usual)
        changed = value != usual if name in APART else differs(name, value, usual)
        if changed:
            values = value if isinstance(value, list) else [value]
            shown = "/".join(v if isinstance(v, str) else f"{v:g}" for v in values)
            out.append(f"{name} {shown}")
    return out


def _key(run: Run) -> tuple:
    """Properties that runs of one configuration share."""
    r = run.result
    return (
        *task_key(run),
        r["encoder"],
        layer_of(r),
        r["seg"],
        r["agg"],
        r["tokens"],
        r.get("precision"),
        *details(run, whole_path=True),
    )


def _why_apart(kept: Sequence[Run], run: Run) -> str | None:
    """The reason why a run can't be merged with those kept, or None."""
    newest = kept[0]
    if newest.config.get("encoder_fingerprint") != run.config.get("encoder_fingerprint"):
        return f"other weights of the encoder than the newer {newest.name}"
    a, b = newest.predictions, run.predictions
    if a.ids != b.ids or not np.array_equal(a.labels, b.labels):
        return f"another test split than the newer {newest.name}"
    for other in kept:
        shared = set(other.result["seeds"]) & set(run.result["seeds"])
        if shared:
            return (
                f"replaced by the newer {other.name}: the same configuration and seed {min(shared)}"
            )
    return None


def _name(configurations: Sequence[Configuration]) -> None:
    """Name configurations by the settings in which those of a task and encoder differ."""
    groups: dict[tuple, list[Configuration]] = {}
    for configuration in configurations:
        groups.setdefault((*task_key(configuration), configuration.result["encoder"]), []).append(
            configuration
        )
    for group in groups.values():
        usual = Counter(layer_of(c.result) for c in group).most_common(1)[0][0]
        precisions = {c.result.get("precision") for c in group}
        each = [details(configuration.runs[0]) for configuration in group]
        shared = tuple(x for x in each[0] if len(each) > 1 and all(x in some for some in each))

        def text(configuration, whole_path=False, usual=usual, precisions=precisions, left=shared):
            r = configuration.result
            parts = [x for x in details(configuration.runs[0], whole_path) if x not in left]
            layer = layer_of(r)
            parts += [f"layer {layer}"] if layer != usual else []
            parts += [r["tokens"]] if r["tokens"] != "segment" else []
            parts += [str(r.get("precision"))] if len(precisions) > 1 else []
            return f"{seg_text(r['seg'])} {r['agg']}" + (f" ({', '.join(parts)})" if parts else "")

        short = Counter(text(configuration) for configuration in group)
        for configuration in group:
            configuration.shared = shared
            configuration.label = text(configuration, whole_path=short[text(configuration)] > 1)


def _find_memory(configurations: Sequence[Configuration], runs: Sequence[Run]) -> None:
    """Find each configuration's peak memory: kept in the store, or of a run that encoded."""

    def encoding(r):
        return (
            r["task"],
            r["encoder"],
            layer_of(r),
            r["seg"],
            r["tokens"],
            r.get("precision"),
            r.get("device"),
            r.get("use_seconds"),
            r.get("pick"),
        )

    peaks: dict[tuple, list[tuple[int, Run]]] = {}
    for run in runs:
        cost = run.result["cost"]
        if cost.get("encoder_passes") and cost.get("peak_memory_bytes"):
            peaks.setdefault(encoding(run.result), []).append((cost["peak_memory_bytes"], run))
    for configuration in configurations:
        cost, found = configuration.result["cost"], peaks.get(encoding(configuration.result))
        if cost.get("encode_peak_memory_bytes"):
            configuration.memory_bytes = cost["encode_peak_memory_bytes"]
            configuration.memory_kind = cost.get("peak_memory_kind", "")
            configuration.memory_source = "kept with the rows when they were encoded"
        elif found:
            peak, run = max(found, key=lambda pair: pair[0])
            configuration.memory_bytes = max(peak, cost.get("peak_memory_bytes") or 0)
            configuration.memory_kind = cost.get("peak_memory_kind", "")
            own = run in configuration.runs
            configuration.memory_source = (
                "this run" if own else f"{run.name}, which encoded the same"
            )


def _find_duplicates(configurations: Sequence[Configuration]) -> None:
    """Link configurations that equal another one to that, if any: the full track, or the mean.

    Over one piece a maximum and a mean by duration are the mean: such a configuration repeats the
    mean's, unless its predictions say otherwise. So does a gate that let in nothing else.
    """
    full: dict[tuple, Configuration] = {}
    usual = {name: row.of_one_piece for name, row in AGGREGATORS.items() if row.of_one_piece}
    for configuration in sorted(
        configurations, key=lambda c: (c.result["seg"] != "full", c.result["agg"] in usual)
    ):
        r = configuration.result
        if r["seg"] == "full" or r.get("degenerate") or r.get("same_as"):
            rest = (
                *task_key(configuration),
                r["encoder"],
                layer_of(r),
                r["tokens"],
                r.get("precision"),
                *details(configuration.runs[0], whole_path=True),
            )
            plain = full.get((*rest, usual.get(r["agg"])))
            if plain is not None and (r.get("same_as") or same_predictions(plain, configuration)):
                configuration.duplicate_of = plain
                continue
            configuration.duplicate_of = full.setdefault((*rest, r["agg"]), configuration)
            configuration.duplicate_of = (
                None if configuration.duplicate_of is configuration else configuration.duplicate_of
            )
    means = {_tokens_of(c): c for c in configurations if c.result["agg"] == "mean"}
    for configuration in configurations:
        mean = means.get(_tokens_of(configuration))
        if (
            mean is not None
            and _kept_mean(configuration.result)
            and same_predictions(mean, configuration)
        ):
            configuration.duplicate_of = mean.duplicate_of or mean


def _tokens_of(configuration: Configuration) -> tuple:
    """What is joined: the task, the encoder and the segments."""
    r = configuration.result
    return (*task_key(configuration), r["encoder"], layer_of(r), r["tokens"], r["seg"])


def _kept_mean(result: Mapping) -> bool:
    """Whether a gate let in nothing beside the mean, which is its first view."""
    about = result.get("aggregator") or {}
    weights = about.get("view_weights") or {}
    gated = result["agg"] == "gated" or about.get("readout") == "gated"
    return gated and bool(weights) and all(w[0] == 1 and not any(w[1:]) for w in weights.values())


def same_predictions(one: Configuration, other: Configuration) -> bool:
    """Whether two configurations have the same predictions for each seed."""
    return (
        one.ids == other.ids
        and one.predictions.shape == other.predictions.shape
        and bool(np.array_equal(one.predictions, other.predictions))
    )


def _order(configuration: Configuration) -> tuple:
    """Tables run from short segments to the full track, then by aggregator."""
    r = configuration.result
    length = fixed_length(r["seg"])
    number = float("inf") if length is None else length
    return (
        r["task"],
        r["encoder"],
        number,
        r["seg"] != "full",
        r["seg"],
        r["agg"],
        configuration.label,
    )
