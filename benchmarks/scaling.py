"""Time and peak memory by track length, and host memory by number of tracks.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --durations 60 300 --tracks --segs full --original
    python benchmarks/scaling.py --durations --tracks 10 100 1000 10000

First part: the front end in chunks (ours) against the same code with a chunk as long as the track,
and, with --original, muq's own modules run as in the study. Each cell is a process of its own,
which reports its weights, resting memory, peak above it (resident memory, sampled every 5 ms;
on a GPU the allocator's peak) and seconds. The track itself is part of the resting memory. The
slope is megabytes per second of audio, by least squares over the durations from 60 s up. Cells
predicted not to fit into --max_memory are skipped, and the JSON says why.

Second part: encode_tracks with the mel encoder over N files of half a second, and load_features on
their rows; the peak of a process with N tracks. --tracks or --durations without a number skips
that part.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import argparse
import json

from flags import add_common, check_common, to_bytes

from tune.cli.parser import Parser, positive_float, positive_int, read_arguments, run_script
from tune.segments.rules import parse_rule

NAME = "scaling"
SLOPE_FROM_S = 60.0


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog=f"{NAME}.py", description=__doc__)
    parser.add_argument(
        "--durations",
        type=positive_float,
        nargs="*",
        metavar="SECONDS",
        default=[10, 30, 60, 120, 300, 600, 1200],
        help="lengths of the track",
    )
    parser.add_argument(
        "--segs",
        nargs="+",
        default=["full", "10"],
        metavar="SECONDS|full|structure",
        help="segment lengths",
    )
    parser.add_argument(
        "--original", action="store_true", help="measure muq's own unfolded parts too"
    )
    parser.add_argument(
        "--max_memory",
        type=to_bytes,
        default="16GB",
        metavar="SIZE",
        help="skip unchunked cells predicted to need more, such as 16GB or 800MB",
    )
    parser.add_argument(
        "--tracks",
        type=positive_int,
        nargs="*",
        metavar="N",
        default=[10, 100, 1000, 10000],
        help="numbers of tracks",
    )
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)  # of a child process
    add_common(parser)
    args = parser.parse_args(argv)
    check_common(parser, args, args.segs)
    args.segs = list(dict.fromkeys(args.segs))
    args.durations, args.tracks = sorted(set(args.durations)), sorted(set(args.tracks))
    if not (args.durations or args.tracks or args.cell):
        parser.error("nothing to do: give --durations or --tracks")
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import sys
import tempfile
from pathlib import Path

import common
import numpy as np
import soundfile
import torch

from tune.aggregators.track_features import load_features
from tune.encoders import muq
from tune.encoders.base import SAMPLE_RATE
from tune.encoders.registry import load_encoder
from tune.store.encode import encode_segments, encode_tracks
from tune.store.store import Store
from tune.system.memory import PeakMemory

BATCH_S = 60.0  # seconds of audio in one of our batches
WHOLE_S = 1e9  # a chunk as long as any track


def main(args):
    """Run every cell in a process of its own and report; or be such a process."""
    if args.cell is not None:
        work = measure_tracks if "tracks" in args.cell else measure_length
        print(json.dumps(work(**args.cell)))
        return
    device = common.choose_device(args)
    modes = ["chunked", "unchunked", *(["original"] if args.original else [])]
    cells = scale_length(args, device, modes)
    counts = scale_tracks(args.tracks)
    slopes = [
        {"mode": mode, "seg": seg, "mb_per_audio_s": slope(cells, mode, seg)}
        for seg in args.segs
        for mode in modes
        if cells
    ]
    ratios = [
        compare(cells, cell, mode)
        for mode in modes[1:]
        for cell in cells
        if cell["mode"] == "chunked"
    ]
    track_growth = growth(counts)
    path = common.write_report(
        NAME,
        args,
        device,
        {
            "max_memory_bytes": args.max_memory,
            "precision": "no",
            "memory_kind": "allocated on the GPU" if device.type == "cuda" else "resident",
            "chunk_memory_budget_bytes": muq.MEMORY_BUDGET,
            "batch_s": BATCH_S,
            "cells": cells,
            "slopes": slopes,
            "ratios_to_chunked": ratios,
            "slope_over": f"durations from {SLOPE_FROM_S:g} s up",
            "tracks": counts,
            "tracks_growth": track_growth,
        },
    )
    show(args, cells, slopes, counts, track_growth, path)


def scale_length(args, device, modes) -> list[dict]:
    """Measure all modes, segment lengths and durations; a row ends at a cell that fails."""
    cells = []
    for seg in args.segs:
        for mode in modes:
            last = failed = None
            for duration_s in args.durations:
                cell = {"mode": mode, "seg": seg, "duration_s": duration_s}
                needs = predict(args.encoder, mode, seg, duration_s, last)
                if failed:
                    cell["skipped"] = f"{failed['duration_s']:g} s failed already"
                elif mode != "chunked" and needs > args.max_memory:
                    cell["skipped"] = (
                        f"predicted to need {needs / 1e9:.2g} GB, more than --max_memory "
                        f"{args.max_memory / 1e9:g} GB"
                    )
                else:
                    given = {"encoder": args.encoder, "weights": args.weights}
                    cell |= common.run_child(__file__, cell | given | {"device": device.type})
                    last, failed = (last, cell) if "failed" in cell else (cell, None)
                cells.append(cell)
                print(f"{mode}, {seg}, {duration_s:g} s: {_outcome(cell)}", file=sys.stderr)
    return cells


def scale_tracks(numbers: list[int]) -> list[dict]:
    """Measure all numbers of tracks."""
    counts = []
    for n in numbers:
        counts.append({"tracks": n, **common.run_child(__file__, {"tracks": n})})
        print(f"{n} tracks: {_outcome(counts[-1])}", file=sys.stderr)
    return counts


def predict(encoder: str, mode: str, seg: str, duration_s: float, last: dict | None) -> float:
    """Bytes that an unchunked cell needs: what the front end and eager attention hold at once.

    Parameters
    ----------
    last : the measured cell of a shorter track, from which the front end's part is also scaled up
    """
    config = common.muq_config(encoder, "random")[0]
    rule = parse_rule(seg)
    longest_s = rule.max_s if rule.needs_audio else rule.length_s
    length_s = duration_s if longest_s is None else min(duration_s, longest_s)
    # Our batches hold several segments, the original one.
    at_once_s = length_s if mode == "original" else max(length_s, min(BATCH_S, duration_s))
    tensor = config["conv_dim"] * 64 * 50 * 4  # bytes a second after the first convolution
    depth, width = config["encoder_depth"], config["encoder_dim"]
    needs, attention = 5 * tensor * at_once_s, 0.0
    if mode == "original":
        heads = config["w2v2_config"]["num_attention_heads"]
        attention = 3 * heads * (length_s * 25) ** 2 * 4
        needs += (depth + 1) * 25 * width * 4 * duration_s
    if last is not None and seg == "full":
        needs = max(needs, last["peak_above_bytes"] * duration_s / last["duration_s"])
    weights = last["weights_bytes"] if last else depth * width**2 * 26 * 4
    return weights + needs + attention


def measure_length(mode, seg, duration_s, encoder, weights, device) -> dict:
    """Measure one cell (in its own process)."""
    device = torch.device(device)
    track = common.compose(duration_s, SAMPLE_RATE, seed=1)
    spans = parse_rule(seg).cut(track, SAMPLE_RATE)
    if mode == "original":
        model = common.load_original(encoder, weights, device)
        layers = [len(model.conformer.layers)]

        def work(spans):
            return common.study_encode(model, track, spans, layers, device)
    else:
        ours = common.load_ours(encoder, weights, device)
        model, layers = ours.model, [ours.n_layers]
        if mode == "unchunked":
            ours.chunk_s = WHOLE_S

        def work(spans):
            return encode_segments(track, spans, ours, layers, batch_seconds=BATCH_S)[0]

    work([(0, min(len(track), SAMPLE_RATE))])  # warm
    if device.type == "cuda":
        work(spans)  # kernels are chosen for each shape
    with PeakMemory(device) as memory:
        out, seconds = common.clock(device, lambda: work(spans))
    assert np.isfinite(out).all()
    return {
        "weights_bytes": sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
        "rest_bytes": memory.rest_bytes,
        "peak_above_bytes": memory.peak_bytes - memory.rest_bytes,
        "seconds": seconds,
        "segments": len(spans),
        "chunk_s": ours.chunk_s if mode == "chunked" else None,
    }


def measure_tracks(tracks: int) -> dict:
    """Encode and load that many tiny files (in its own process)."""
    encoder = load_encoder("mel")
    rule = parse_rule("full")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / f"{i:06d}.wav") for i in range(tracks)]
        for i, path in enumerate(paths):
            soundfile.write(path, common.compose(0.5, SAMPLE_RATE, seed=i), SAMPLE_RATE)
        store = Store(folder / "store")
        collection = store.collection(encoder, [0], None)
        with PeakMemory(torch.device("cpu")) as memory:
            report, encode_s = common.clock(
                encoder.device, lambda: encode_tracks(paths, encoder, rule, store, collection)
            )
            features, load_s = common.clock(
                encoder.device, lambda: load_features(collection, paths, report.rows, "mean", None)
            )
    assert report.encoded_tracks == tracks == features.values.shape[1]
    return {
        "rest_bytes": memory.rest_bytes,
        "peak_bytes": memory.peak_bytes,
        "features_bytes": features.values.nbytes + features.valid.nbytes,
        "encode_s": encode_s,
        "load_s": load_s,
    }


def slope(cells: list[dict], mode: str, seg: str) -> float | None:
    """Megabytes per second of audio by least squares; None with fewer than two durations."""
    points = [
        (c["duration_s"], c["peak_above_bytes"] / 1e6)
        for c in cells
        if c["mode"] == mode
        and c["seg"] == seg
        and c["duration_s"] >= SLOPE_FROM_S
        and "peak_above_bytes" in c
    ]
    if len(points) < 2:
        return None
    return float(np.polyfit(*zip(*points, strict=True), 1)[0])


def compare(cells: list[dict], ours: dict, mode: str) -> dict:
    """Another mode's peak and seconds as multiples of the chunked cell's; None where unmeasured."""
    other = next(
        c
        for c in cells
        if (c["mode"], c["seg"], c["duration_s"]) == (mode, ours["seg"], ours["duration_s"])
    )
    measured = "seconds" in ours and "seconds" in other
    peak = ours.get("peak_above_bytes")
    return {
        "mode": mode,
        "seg": ours["seg"],
        "duration_s": ours["duration_s"],
        "peak_ratio": other["peak_above_bytes"] / peak if measured and peak else None,
        "seconds_ratio": other["seconds"] / ours["seconds"] if measured else None,
    }


def growth(counts: list[dict]) -> dict | None:
    """Peak memory of the largest number of tracks over that of 100 (or the smallest from 100)."""
    measured = [c for c in counts if "peak_bytes" in c]
    if len(measured) < 2:
        return None
    base = next((c for c in measured if c["tracks"] >= 100), measured[0])
    base = base if base is not measured[-1] else measured[0]
    more = measured[-1]["peak_bytes"] - base["peak_bytes"]
    return {
        "from_tracks": base["tracks"],
        "to_tracks": measured[-1]["tracks"],
        "bytes": more,
        "bytes_per_track": more / (measured[-1]["tracks"] - base["tracks"]),
    }


def _outcome(cell: dict) -> str:
    """The result of a cell, in one line."""
    if "skipped" in cell:
        return f"skipped, {cell['skipped']}"
    if "failed" in cell:
        return f"failed: {cell['failed']}"
    if "tracks" in cell:
        return f"peak {cell['peak_bytes'] / 1e6:.0f} MB"
    return f"{cell['peak_above_bytes'] / 1e6:.0f} MB above rest, {cell['seconds']:.2f} s"


def show(args, cells, slopes, counts, track_growth, path) -> None:
    """Print the tables."""
    if cells:
        columns = list(dict.fromkeys((c["mode"], c["seg"]) for c in cells))
        found = {(c["mode"], c["seg"], c["duration_s"]): c for c in cells}
        rows = [
            [f"{d:g} s", *(_short(found[mode, seg, d]) for mode, seg in columns)]
            for d in args.durations
        ]
        per_s = {(s["mode"], s["seg"]): s["mb_per_audio_s"] for s in slopes}
        rows.append(
            ["slope", *("-" if per_s[c] is None else f"{per_s[c]:.2f} MB/s" for c in columns)]
        )
        common.print_table(
            f"{args.encoder}: peak memory above rest (MB), and seconds",
            ["track", *(f"{mode}, {seg}" for mode, seg in columns)],
            rows,
            [] if counts else [str(path)],
        )
    if counts:
        notes = [str(path)]
        if track_growth:
            notes.insert(
                0,
                "{to_tracks} tracks need {0:.1f} MB more than {from_tracks}".format(
                    track_growth["bytes"] / 1e6, **track_growth
                ),
            )
        common.print_table(
            "mel, files of 0.5 s: resident memory against the number of tracks",
            ["tracks", "peak", "encode", "load"],
            [
                [
                    str(c["tracks"]),
                    f"{c['peak_bytes'] / 1e6:.0f} MB",
                    f"{c['encode_s']:.1f} s",
                    f"{c['load_s']:.1f} s",
                ]
                if "peak_bytes" in c
                else [str(c["tracks"]), "failed", "-", "-"]
                for c in counts
            ],
            notes,
        )


def _short(cell: dict) -> str:
    """A cell for the table."""
    if "seconds" not in cell:
        return "skipped" if "skipped" in cell else "failed"
    return f"{cell['peak_above_bytes'] / 1e6:.0f}, {cell['seconds']:.2f} s"


if __name__ == "__main__":
    run_script(lambda: main(args))
