"""Our encoding of a track compared with the study's, on the same audio and the same weights.

    python benchmarks/study_loop.py
    python benchmarks/study_loop.py --encoder muq-nano --duration 12 --rounds 2

The study's way: one segment at a time, float32, all layers computed and kept, eager attention, no
folding, no chunking, codebook logits computed too, and the CUDA cache emptied after each segment.
Ours: batches of segments, front end in chunks, SDPA, and an early exit at the layer asked for. Both
sides run in turn in every round. The track embeddings (mean over segments) must agree within 1e-4,
or the exit code is 1. Writes medians, spreads and ratios as JSON.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import sys

from flags import add_common, check_common

from tune.cli.parser import (
    Parser,
    positive_float,
    positive_int,
    read_arguments,
    run_script,
    to_bool,
)
from tune.segments.rules import parse_rule

NAME = "study_loop"
TOLERANCE = 1e-4  # of a track's embedding, where both sides compute in float32
MIN_COSINE = 0.99  # where one side rounds


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog=f"{NAME}.py", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=3,
        help="times that each side runs, in turn; the median counts",
    )
    parser.add_argument(
        "--duration",
        type=positive_float,
        default=45.0,
        metavar="SECONDS",
        help="length of the track",
    )
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        metavar="K",
        help="layers at which ours "
        "stops; the study computes all (default: the last and the middle one, "
        "12 6 for MuQ-large)",
    )
    parser.add_argument(
        "--segs",
        nargs="+",
        default=["10", "full"],
        metavar="SECONDS|full|structure",
        help="segment lengths",
    )
    parser.add_argument(
        "--precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="ours; no is float32. With another one the embeddings must agree to "
        f"a cosine of {MIN_COSINE}",
    )
    parser.add_argument(
        "--tf32",
        nargs="?",
        const=True,
        default=False,
        type=to_bool,
        metavar="BOOL",
        help="let the study's convolutions round to TF32, which "
        "is PyTorch's default from Ampere on (the study's GPU has no TF32)",
    )
    add_common(parser)
    args = parser.parse_args(argv)
    check_common(parser, args, args.segs)
    args.segs = list(dict.fromkeys(args.segs))
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import common
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tune.encoders.base import DTYPES, SAMPLE_RATE
from tune.store.encode import encode_segments

RATES = {"matmul": common.matmul_rate, "convolution": common.convolution_rate}
FLOP_S = 10  # seconds of audio that the arithmetic is counted for


def main(args):
    """Load both sides, run them in turn, compare, report."""
    device = common.choose_device(args)
    if args.precision == "fp16" and device.type == "cpu":
        common.fail("--precision fp16 needs a GPU")
    ours = common.load_ours(args.encoder, args.weights, device, args.precision)
    study = common.load_original(args.encoder, args.weights, device)
    layers = list(dict.fromkeys(args.layers or [ours.n_layers, ours.n_layers // 2]))
    if not all(0 <= k <= ours.n_layers for k in layers):
        common.fail(f"--layers must lie in 0..{ours.n_layers} for {args.encoder}")
    track = common.compose(args.duration, SAMPLE_RATE, seed=1)
    spans = {seg: parse_rule(seg).cut(track, SAMPLE_RATE) for seg in args.segs}
    flops = count_flops(study, device)
    rates = {p: {"matmul": 0.0, "convolution": 0.0} for p in ("no", args.precision)}

    def run_study(seg):
        return common.study_encode(study, track, spans[seg], layers, device, args.tf32)

    def run_ours(seg, layer):
        return encode_segments(track, spans[seg], ours, [layer])[0]

    # Memory pools and threads get going; on a GPU, kernels are chosen for each shape.
    for seg in args.segs if device.type == "cuda" else []:
        run_study(seg)
        for layer in layers:
            run_ours(seg, layer)
    short = [(0, min(len(track), 2 * SAMPLE_RATE))]
    common.study_encode(study, track, short, layers, device, args.tf32)
    encode_segments(track, short, ours, [max(layers)])

    seconds, embeddings = {}, {}
    for i in range(args.rounds):
        for precision, rate in rates.items():  # in every round: the best one counts
            for what, measure in RATES.items():
                rate[what] = max(rate[what], measure(device, DTYPES[precision]))
        for seg in args.segs:
            runs = {"study": lambda seg=seg: run_study(seg)}
            runs |= {k: lambda seg=seg, k=k: run_ours(seg, k) for k in layers}
            for side, work in runs.items():
                out, took = common.clock(device, work)  # (N, L, D)
                seconds.setdefault((seg, side), []).append(took)
                embeddings[seg, side] = out.mean(0)  # (L, D)
        print(f"round {i + 1} of {args.rounds} done", file=sys.stderr)

    cells, exact = [], args.precision == "no" and not args.tf32
    for seg in args.segs:
        for i, layer in enumerate(layers):
            expected, got = embeddings[seg, "study"][i], embeddings[seg, layer][0]
            cosine = expected @ got / np.linalg.norm(expected) / np.linalg.norm(got)
            times = {s: common.time_statistics(seconds[seg, s]) for s in ("study", layer)}
            audio_s = sum(end - start for start, end in spans[seg]) / SAMPLE_RATE
            # Useful arithmetic: our halos, computed twice, don't count.
            speed = {
                "ours": flops[layer] * audio_s / FLOP_S / times[layer]["median_s"],
                "study": flops[-1] * audio_s / FLOP_S / times["study"]["median_s"],
            }
            cells.append(
                {
                    "seg": seg,
                    "layer": layer,
                    "segments": len(spans[seg]),
                    "audio_s": audio_s,
                    "study": times["study"],
                    "ours": times[layer],
                    "ratio": times["study"]["median_s"] / times[layer]["median_s"],
                    "max_abs_difference": float(np.abs(expected - got).max()),
                    "cosine": float(cosine),
                    "ours_flop_per_s": speed["ours"],
                    "study_flop_per_s": speed["study"],
                    "ours_share_of_matmul": speed["ours"] / rates[args.precision]["matmul"],
                    "study_share_of_matmul": speed["study"] / rates["no"]["matmul"],
                    "ours_share_of_best": speed["ours"] / max(rates[args.precision].values()),
                    "study_share_of_best": speed["study"] / max(rates["no"].values()),
                }
            )
    agree = all(
        c["max_abs_difference"] < TOLERANCE if exact else c["cosine"] > MIN_COSINE for c in cells
    )
    path = common.write_report(
        NAME,
        args,
        device,
        {
            "duration_s": args.duration,
            "rounds": args.rounds,
            "precision": args.precision,
            "study_tf32": args.tf32,
            "rates_flop_per_s": rates,
            "arithmetic": {
                "of": f"the study's forward for {FLOP_S} s of audio, up to each layer, counted by "
                "torch.utils.flop_counter (matrix products and convolutions)",
                "flop_by_layer": flops[:-1],
                "flop_with_logits": flops[-1],
            },
            "agree": agree,
            "cells": cells,
        },
    )
    show(args, cells, flops, rates, exact, path)
    if not agree:
        worst = max(c["max_abs_difference"] for c in cells)
        print(f"error: the two sides' embeddings differ by up to {worst:.2e}", file=sys.stderr)
        sys.exit(1)


def count_flops(model, device) -> list[int]:
    """Floating-point operations of the study's forward for 10 s of audio.

    Returns
    -------
    list of the running total after each hidden state (index k: up to layer k), and last the whole
    with the codebook logits
    """
    audio = torch.from_numpy(common.compose(FLOP_S, SAMPLE_RATE, seed=2))[None].to(device)
    totals = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for state in common.study_states(model, audio):
            last = state
            totals.append(counter.get_total_flops())
        model.linear(last)
        totals.append(counter.get_total_flops())
    return totals


def show(args, cells, flops, rates, exact, path) -> None:
    """Print the table."""
    rows = [
        [
            f"{c['seg']}, layer {c['layer']}",
            common.show_spread(c["study"]),
            common.show_spread(c["ours"]),
            f"{c['ratio']:.2f}x",
            f"{c['max_abs_difference']:.1e}" if exact else f"cosine {c['cosine']:.5f}",
            f"{c['ours_share_of_matmul']:.0%}",
            f"{c['ours_share_of_best']:.0%}",
        ]
        for c in cells
    ]
    rate = rates[args.precision]
    common.print_table(
        f"{args.encoder}, a track of {args.duration:g} s: seconds, median of {args.rounds} rounds",
        [
            "segments",
            "study's way",
            "ours",
            "ratio",
            "difference",
            "ours / matmul",
            "ours / best rate",
        ],
        rows,
        [
            f"arithmetic of 10 s: {flops[-1] / 1e9:.3g} GFLOP, "
            f"{flops[0] / 1e9:.3g} of them in the front end",
            f"this machine's rates, measured between the rounds (GFLOP/s): matmul "
            f"{rate['matmul'] / 1e9:.3g}, MuQ's 3 x 3 convolution {rate['convolution'] / 1e9:.3g}",
            str(path),
        ],
    )


if __name__ == "__main__":
    run_script(lambda: main(args))
