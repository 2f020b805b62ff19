"""Results: what a run leaves on disk, and the table that ends it.

A run's folder holds result.json, config.json, predictions.parquet and probe.safetensors. It is
written aside and renamed, so that it exists complete or not at all.
"""

import contextlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save

from tune import __version__
from tune.aggregators.registry import readable_name
from tune.probing.intervals import FOLDS_NOTE
from tune.probing.protocols import CLOSED_FORM
from tune.segments.rules import Rule, describe_counts, is_degenerate, seg_text
from tune.segments.structure import MAX_S, MIN_S
from tune.store.encode import EncodeReport
from tune.store.extractor import Extractor
from tune.system.files import hide_home, save_tensors, slug, write_csv
from tune.system.memory import peak_memory_bytes
from tune.tasks.label_kinds import label_kind
from tune.tasks.registry import describe_partial

log = logging.getLogger(__name__)

PACKAGES = (
    "torch",
    "torchaudio",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "muq",
    "wandb",
    "soundfile",
    "soxr",
    "numpy",
)


LAYERS = {"mix": "mix of all layers", "reduce": "all layers, reduced"}


def versions() -> dict[str, str]:
    """Versions of Python, this project and the packages that a number may depend on.

    W&B may be missing where it isn't reported to.
    """
    found = {"python": platform.python_version(), "tune": __version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_sha() -> str | None:
    """Commit of the project's checkout, with "-dirty" when it was changed; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        out = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's kind and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {os.cpu_count()} cores)"


def joined_name(rules: Sequence[Rule]) -> str:
    """How the segment rules of a run are written: "10", or "10+30+full" for several scales."""
    return "+".join(rule.name for rule in rules)


def default_name(
    task: str,
    encoder: str,
    layer: str,
    rules: Sequence[Rule],
    agg: str,
    frame_rate: float | None,
    channels: str,
) -> str:
    """A run's name when none is given: what was compared, readable in a list of runs.

    Examples
    --------
    >>> from tune.segments.rules import parse_rule
    >>> default_name("gtzan", "muq", "last", [parse_rule("10")], "mean", None, "left")
    'gtzan-muq-layer-last-seg-10-mean-left'
    """
    parts = [task, Path(encoder).name, f"layer-{layer}", f"seg-{joined_name(rules)}"]
    parts += [f"hop-{_first(rules, 'hop_s'):g}"] if _first(rules, "hop_s") else []
    if any(rule.needs_audio and (rule.min_s, rule.max_s) != (MIN_S, MAX_S) for rule in rules):
        parts += [f"{_first(rules, 'min_s'):g}-to-{_first(rules, 'max_s'):g}"]
    parts += [slug(f"use-{rules[0].pick.name}")] if rules[0].pick else []
    parts += [agg] + ([f"frame-{frame_rate:g}hz"] if frame_rate else [])
    parts += [channels] if channels != "mix" else []
    return slug("-".join(parts), also="+")


def describe_run(
    program: str, given: Mapping, argv: Sequence[str], extractor: Extractor, accelerator
) -> dict:
    """Everything that a result may depend on: arguments and what they were resolved to.

    Paths below the user's home are written with ~, since the configuration leaves the machine.
    """
    encoder = extractor.encoder
    return hide_home(dict(given)) | {
        "encoder": encoder.name,
        "encoder_untrained": encoder.untrained,
        "encoder_fingerprint": encoder.fingerprint,
        "encoder_revision": encoder.revision,
        "layers": extractor.layers,
        "precision": encoder.precision,
        "device": device_name(accelerator.device),
        "n_processes": accelerator.num_processes,
        "versions": versions(),
        "git_sha": git_sha(),
        "command": hide_home(" ".join([program, *argv])),
    }


def assemble(
    task,
    extractor: Extractor,
    reports: Sequence[EncodeReport],
    outcome: Mapping,
    config: Mapping,
    truncated: int,
    probe_seconds: float,
) -> dict:
    """Put result.json together; its fields are a contract that other tools rely on.

    Parameters
    ----------
    task, extractor : what was run on
    reports : for each segment rule (several scales only for hierarchical) what `encode` reports;
        costs are the sums
    outcome : as `tune.runs.outcome.score_test` returns
    config : as `describe_run` returns
    truncated : tracks that had more tokens than the aggregator takes
    probe_seconds : training and testing the probes
    """
    encoder, rules = extractor.encoder, extractor.rules
    splits = [{s: data["path"][:] for s, data in t.splits.items()} for t in task.folds or [task]]
    paths = splits[0]
    every = [path for split in paths for path in paths[split]]
    counts = [[len(report.rows[path][1]) for path in every] for report in reports]
    alike = all(is_degenerate(r, c) or r.name == "full" for r, c in zip(rules, counts, strict=True))
    report = EncodeReport.merged(reports)
    skipped = {item["path"]: item["reason"] for item in report.skipped}
    skipped = [{"where": path, "reason": reason} for path, reason in skipped.items()]
    return {
        "task": task.name,
        "kind": task.kind,
        **task.record,
        "encoder": encoder.name,
        "encoder_untrained": encoder.untrained,
        "encoder_revision": encoder.revision,
        "encoder_licence": encoder.licence,
        "data_revision": task.data_revision,
        "partial": task.partial or None,
        "layer": outcome["layer"],
        "layer_asked": config["layer"],
        "layer_scores": outcome["layer_scores"],
        "seg": joined_name(rules),
        "hop": _first(rules, "hop_s"),
        "min_tail": _first(rules, "min_tail_s"),
        "min_seg": _first(rules, "min_s"),
        "max_seg": _first(rules, "max_s"),
        "agg": readable_name(config["agg"]),
        "tokens": extractor.collection.key["tokens"],
        "channels": extractor.channels,
        "pad_tail": bool(_first(rules, "pad")),
        "use_seconds": rules[0].pick and rules[0].pick.seconds,
        "pick": rules[0].pick and rules[0].pick.how,
        "fusion": config.get("fusion", "early"),
        "probe": config.get("probe", "mlp"),
        "protocol": config.get("protocol_settings"),
        "seeds": list(config["seeds"]),
        **{k: config[k] for k in ("precision", "device", "versions", "git_sha", "command")},
        "aggregator": outcome["aggregator"],
        "degenerate": "equals full" if alike and joined_name(rules) != "full" else None,
        "segments_per_track": describe_counts([sum(each) for each in zip(*counts, strict=True)]),
        # In folds each track is tested once, and none is only trained on.
        "n_tracks": {"train": 0, "val": 0, "test": len(every)}
        if task.folds
        else {split: len(paths[split]) for split in paths},
        "folds": outcome.get("folds"),
        "groups": {"column": task.group_column, "n_test": len(set(outcome["groups"]))}
        if outcome.get("groups")
        else None,
        "classes": task.classes,
        "targets": task.targets,
        **{k: outcome[k] for k in ("n_test_scored", "tags_left_out", "unknown_tags")},
        "skipped": task.skipped + skipped,
        "silent": sorted({path for path in report.silent if path in reports[0].rows}),
        "warned": [i for k, i in enumerate(report.warned) if i not in report.warned[:k]],
        "truncated_tracks": truncated,
        "seen_by_aggregator": config.get("seen_by_aggregator"),
        "same_audio_in_test_and_training": _count_leaked(splits, reports[0].rows),
        **{k: outcome[k] for k in ("best_epochs", "tested_epochs", "chosen", "metrics", "chance")},
        "cost": _costs(extractor, reports, report, every)
        | {"embedding_dim": outcome["embedding_dim"], "probe_seconds": probe_seconds},
    }


def _count_leaked(splits: Sequence[Mapping[str, Sequence[str]]], rows: Mapping) -> int:
    """Test tracks with the same audio as a train or val track of their fold; warns of them."""
    leaked = set()
    for paths in splits:
        contents = {split: {rows[path][0] for path in paths[split]} for split in paths}
        leaked |= contents["test"] & (contents["train"] | contents["val"])
    if leaked:
        log.warning("%d test tracks have the same audio as a train or val track", len(leaked))
    return len(leaked)


def _costs(extractor, reports, report, paths) -> dict:
    """What encoding cost; `report` is that of all rules together."""
    device, collection = extractor.encoder.device, extractor.collection
    # Scales that cut a track alike share a row.
    rows = {str(r.rows[p]): r.rows[p] for r in reports for p in paths}.values()
    return {
        "encode_seconds": report.encode_seconds,
        "encode_seconds_stored": report.stored_seconds,
        "encode_peak_memory_bytes": report.stored_peak_bytes or None,
        "audio_seconds": report.audio_seconds,
        "peak_memory_bytes": peak_memory_bytes(device),
        "peak_memory_kind": "allocated" if device.type == "cuda" else "resident",
        "store_bytes": sum(collection.bytes_of(content, spans) for content, spans in rows),
        "encoder_passes": report.encoder_passes,
        "encoded_tracks": report.encoded_tracks,
        "redone_in_float32": report.redone,
        "damaged_rows": len(report.damaged),
    }


def summarise(per_seed: Mapping[str, Sequence[float]], intervals: Mapping) -> dict:
    """Metrics over seeds: {name: {mean, std, ci_low, ci_high, per_seed}}.

    `std` is the sample deviation over seeds (0 for one seed); the interval is the bootstrap's.
    """
    out = {}
    for name, values in per_seed.items():
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        low, high = intervals[name]
        out[name] = {
            "mean": float(np.mean(values)),
            "std": std,
            "ci_low": low,
            "ci_high": high,
            "per_seed": [float(v) for v in values],
        }
    return out


def check_name(output_dir: Path, name: str | None, default: str, overwrite: bool) -> str:
    """Choose a run's name: the one asked for, or the default with a number when it's taken.

    Raises
    ------
    ValueError
        When the name asked for has a result already and `overwrite` is off, or is no plain name.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file; runs need a folder")
    if name is not None:
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"--name must be a plain folder name, got {name!r}")
        if (output_dir / name).exists() and not overwrite:
            raise ValueError(
                f"{output_dir / name} exists: choose another --name or pass --overwrite"
            )
        return name
    return next(c for c in _numbered(default) if not (output_dir / c).exists())


def prediction_columns(kind, ids, seeds, truth, guesses, probabilities, classes, targets) -> dict:
    """Columns of predictions.parquet: one row a seed and test track.

    Parameters
    ----------
    ids : (n,) track ids
    truth : (n,) class numbers, (n, C) values or truth values; guesses : (S, n) or (S, n, C)
    probabilities : (S, n, C), used for classes only

    Returns
    -------
    dict
        seed, id, label, prediction and p_<class>; seed, id, label_<target>, prediction_<target>;
        or seed, id, label_<tag> (true or false), score_<tag>; as the kind of label has them
    """
    n = len(ids)
    out = {"seed": [seed for seed in seeds for _ in range(n)], "id": list(ids) * len(seeds)}
    kind = label_kind(kind)
    names = {"classes": classes, "targets": targets}[kind.parts]
    return out | kind.to_columns(truth, guesses, probabilities, names)


def write_run(
    output_dir: Path,
    name: str,
    *,
    result: Mapping,
    config: Mapping,
    outcome: Mapping,
    history: Sequence[Mapping],
    split_made: Sequence[Mapping] | None,
    overwrite: bool,
    rename: bool,
) -> Path:
    """Write a run's folder, whole or not at all.

    Parameters
    ----------
    result, config : written as JSON; undefined numbers (NaN) become null
    outcome : holds "predictions" (columns), "probe" (tensors) and "attention" (columns, or None)
    history : one row an epoch, to history.csv
    split_made : rows of split.csv, when the split or folds were made by us
    overwrite : replace an existing folder
    rename : take the next free numbered name when another process took this one meanwhile

    Returns
    -------
    Path of the folder
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    aside = output_dir / f".{name}.{uuid.uuid4().hex}.tmp"
    old = aside.with_suffix(".old.tmp")
    aside.mkdir()
    try:
        for stem, value in (("result", result), ("config", config)):
            text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
            (aside / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
        pq.write_table(pa.table(outcome["predictions"]), aside / "predictions.parquet")
        meta = {k: json.dumps(result[k]) for k in ("classes", "targets", "agg", "seg", "layer")}
        save_tensors(outcome["probe"], aside / "probe.safetensors", meta, save)
        if outcome["attention"]:
            pq.write_table(pa.table(outcome["attention"]), aside / "attention.parquet")
        write_csv(aside / "history.csv", history)
        if split_made:
            write_csv(aside / "split.csv", split_made)
        if overwrite and (output_dir / name).exists():  # never half a run under its name
            (output_dir / name).rename(old)
        for candidate in _numbered(name) if rename else [name]:
            if not (output_dir / candidate).exists():
                try:
                    aside.rename(output_dir / candidate)
                except OSError:  # another process was quicker
                    continue
                return output_dir / candidate
        raise ValueError(f"{output_dir / name} was made by another process meanwhile")
    finally:
        if old.exists() and not (output_dir / name).exists():  # nothing came in its place
            old.rename(output_dir / name)
        for folder in (aside, old):
            shutil.rmtree(folder, ignore_errors=True)


def print_result(result: Mapping, folder: Path, console: Console | None = None) -> None:
    """Print what a person wants to know at the end of a run."""
    console = console or Console()
    n, counts, cost = result["n_tracks"], result["segments_per_track"], result["cost"]
    encoder = result["encoder"] + (" (untrained)" if result["encoder_untrained"] else "")
    seeds = len(result["seeds"])
    layer = LAYERS.get(result["layer"], f"layer {result['layer']}")
    pieces = "full track" if result["seg"] == "full" else f"segments {seg_text(result['seg'])}"
    if result["use_seconds"]:
        pieces += f" ({result['use_seconds']:g} s {result['pick']})"
    title = f"{result['task']}: {encoder}, {layer}, {pieces}, {result['agg']}"
    title += ", late fusion" * (result["fusion"] == "late")
    table = Table()
    table.add_column("test metric")
    for head in ("mean", f"± over {seeds} seed{'s' * (seeds > 1)}", "95 % interval over tracks"):
        table.add_column(head, justify="right")
    for name, m in result["metrics"].items():
        spread = f"{m['std']:.3f}" if seeds > 1 else "-"
        table.add_row(
            name, _number(m["mean"]), spread, f"{_number(m['ci_low'])} to {_number(m['ci_high'])}"
        )
    console.print(f"\n{title}", style="bold", highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    unit = "segment" if result["fusion"] == "late" else "track"
    tokens = "segments" if result["tokens"] == "segment" else f"tokens ({result['tokens']})"
    lines = [
        (
            "tracks",
            (
                f"{n['test']}, each tested once"
                if result["folds"]
                else f"{n['train']} train, {n['val']} val, {n['test']} test"
            )
            + (f"; {len(result['skipped'])} skipped" if result["skipped"] else ""),
        ),
        (tokens, f"{counts['min']} to {counts['max']} a track (median {counts['median']:g})"),
        ("embedding", f"{cost['embedding_dim']} values a {unit}"),
        *describe_licence(result),
        (
            "encoder",
            f"{cost['encoder_passes']} passes, {cost['audio_seconds']:.0f} s of audio "
            f"in {cost['encode_seconds']:.1f} s"
            if cost["encoder_passes"]
            else "0 passes: everything was in the store",
        ),
        (
            "probe",
            f"{cost['probe_seconds']:.1f} s; peak memory "
            f"{cost['peak_memory_bytes'] / 1e9:.2f} GB ({cost['peak_memory_kind']})",
        ),
        ("result", str(folder / "result.json")),
    ]
    lines[-2:-2] = describe_protocol(result)
    lines[2:2] = describe_aggregator(result["aggregator"])
    lines[1:1] = describe_folds(result) + describe_scoring(result)
    if result.get("partial"):
        text = f"{describe_partial(result['partial'])}: not comparable with published figures"
        lines.insert(1, ("partial", text))
    if result["degenerate"]:
        lines.insert(2, ("note", f"degenerate: {result['degenerate']}"))
    chance = result["chance"]
    lines.insert(1, ("chance", ", ".join(f"{k} {v:.3f}" for k, v in chance.items())))
    for label, text in lines:
        console.print(f"  {label:<10} {text}", highlight=False, soft_wrap=True, markup=False)


def describe_protocol(result: Mapping) -> list[tuple[str, str]]:
    """Lines on a protocol that isn't ours, on a probe that isn't MARBLE's, and what they chose."""
    lines, protocol = [], result["protocol"]
    if protocol and protocol["name"] != "tune":
        own = ", ".join(protocol["changed"]) or "nothing"
        lines.append(("protocol", f"{protocol['name']}; changed by flags: {own}"))
        n = len(protocol["differs"])
        lines.append(("differs", f"in {n} point{'s' * (n > 1)}: protocol.differs in result.json"))
    if result["probe"] != "mlp":
        lines.append(("kind", f"{result['probe']} probe"))
    for name, values in result["chosen"].items():
        shown = ", ".join(f"{value:g}" for value in dict.fromkeys(values))
        lines.append((name, f"{shown}, chosen on validation"))
    return lines


def describe_licence(made: Mapping) -> list[tuple[str, str]]:
    """A line on the licence of the encoder's weights, where it is known: it binds their use."""
    licence = made.get("encoder_licence")
    return [("licence", f"{licence} (the weights of {made['encoder']})")] if licence else []


def describe_folds(result: Mapping) -> list[tuple[str, str]]:
    """Lines on a cross-validation: its folds, and what its interval leaves out."""
    folds = result.get("folds")
    if not folds:
        return []
    name, each = next(iter(result["metrics"])), folds["each"]
    means = ", ".join(_number(fold["metrics"][name]["mean"]) for fold in each)
    layers = [str(fold["layer"]) for fold in each]
    chosen = f"; layers {', '.join(layers)}" if len(set(layers)) > 1 else ""
    grouped = ""
    if folds["group_column"]:
        grouped = f", {folds['n_groups']} groups by {folds['group_column']} kept together"
    groups = "groups" if folds["group_column"] else "tracks"
    return [
        ("folds", f"{folds['n']}{grouped}; {name} of each: {means}{chosen}"),
        ("", f"{FOLDS_NOTE} (it resamples {groups})"),
    ]


def describe_scoring(result: Mapping) -> list[tuple[str, str]]:
    """Lines on what the metric is over, and what its interval leaves out or resamples."""
    lines = []
    if len(result["seeds"]) == 1 and result["probe"] not in CLOSED_FORM:
        lines.append(("seeds", "one: the probe's noise is in no interval; give several --seeds"))
    if result["groups"] and not result["folds"]:
        column, n = result["groups"]["column"], result["groups"]["n_test"]
        text = f"{n} in the test split, by {column}: the interval resamples groups"
        lines.append(("groups", text))
    if (result["seen_by_aggregator"] or {}).get("tracks"):
        n = len(result["seen_by_aggregator"]["tracks"])
        lines.append(("seen", f"the aggregator was trained on {n} test tracks: no fair score"))
    if result["n_test_scored"] != result["n_tracks"]["test"]:
        n, files = result["n_test_scored"], result["n_tracks"]["test"]
        lines.append(("scored", f"{n} test tracks, of which the {files} files are clips"))
    if result["tags_left_out"]:
        some = ", ".join(result["tags_left_out"][:3])
        lines.append(
            (
                "tags",
                f"{len(result['tags_left_out'])} of {len(result['classes'])} are not "
                f"scored, since all or no test tracks have them: {some}",
            )
        )
    return lines


def describe_aggregator(aggregator: Mapping) -> list[tuple[str, str]]:
    """Lines on an aggregator that learns: its parameters, its weights of layers or scales."""
    lines = []
    if aggregator["checkpoint"]:
        how = "trained on with the probe" if aggregator["tuned"] else "frozen"
        lines.append(("aggregator", f"{aggregator['checkpoint']}, {how}"))
    if aggregator["parameters_learned_with_probe"]:
        n = aggregator["parameters_learned_with_probe"]
        lines.append(("learned", f"{n:,} parameters in front of each probe"))
    if aggregator["view_weights"]:
        weights = np.mean(list(aggregator["view_weights"].values()), 0)
        shown = (f"{view} {w:.2f}" for view, w in zip(aggregator["views"], weights, strict=True))
        lines.append(("mix", ", ".join(shown)))
    return lines


def _first(rules: Sequence[Rule], name: str):
    """The first value of an attribute that not all kinds of rules have, or None."""
    values = (getattr(rule, name, None) for rule in rules)
    return next((value for value in values if value is not None), None)


def _numbered(name: str):
    """name, name-2, name-3, ..."""
    yield name
    i = 2
    while True:
        yield f"{name}-{i}"
        i += 1


def _number(value: float | None) -> str:
    """A metric with three decimals, or what an undefined one is called."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.3f}"


def _plain(value):
    """JSON-ready: no NumPy types, paths or NaN."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
