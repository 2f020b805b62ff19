"""The speed-up over the study's code, optimisation by optimisation: predicted and measured.

    python benchmarks/levers.py
    python benchmarks/levers.py --encoder muq-nano --duration 3 --rounds 2

First a ladder from the study's code (one segment; its loop over segments is in `study_loop.py`) to
ours: each step adds one optimisation and is compared with the step before. Then single ones against
ours: early exit, chunks of the front end, batches, kernels for a CPU on short segments, half
precision and, with --compile, torch.compile. All run in turn in every round. `measured` is the time
without the optimisation divided by the time with it: above 1 it is faster. `predicted` is the same
ratio from arithmetic, and from this machine's rates where it changes the rate; a dash where
arithmetic says nothing. In float32 the embeddings must agree within 1e-4, in half precision to a
cosine of 0.9999, or the exit code is 1.
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

NAME = "levers"
TOLERANCE = 1e-4  # of the embedding, where both sides compute in float32
MIN_COSINE = 0.9999  # where one side rounds
BATCH = 6  # segments
CHUNKS_S = (2.0, 5.0, 10.0)
SHORT, SHORT_S = (1, 8, 64), 0.2  # batches of segments of so many seconds
FRONT_END_PIECES = 3  # the chunks are tried on a piece this many times as long


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog=f"{NAME}.py", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=3,
        help="times that everything runs, in turn; the median counts",
    )
    parser.add_argument(
        "--duration",
        type=positive_float,
        default=10.0,
        metavar="SECONDS",
        help="length of the segment",
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const=True,
        default=False,
        type=to_bool,
        metavar="BOOL",
        help="try torch.compile too, which takes minutes",
    )
    add_common(parser)
    args = parser.parse_args(argv)
    check_common(parser, args, [])
    if args.duration < 1:
        parser.error(f"--duration must be 1 or more, got {args.duration:g}")
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import copy
import itertools
import math
from dataclasses import dataclass

import common
import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tune.encoders import cpu_linear
from tune.encoders.base import DTYPES, SAMPLE_RATE
from tune.encoders.cpu_linear import ConformerConvolution, linear, use_fast_linear
from tune.encoders.muq_frontend import HALO, FrontEnd
from tune.encoders.registry import load_encoder
from tune.profiling.arithmetic import frontend_flops, matrix_rate, muq_flops
from tune.store.encode import encode_segments


@dataclass(frozen=True)
class Lever:
    """A row: a lever, the run that has it, the run that lacks it, and what arithmetic says.

    `same` is the run whose embedding the lever's is compared with; by default that without it.
    """

    name: str
    run: str
    without: str
    predicted: float | None = None
    same: str | None = None
    precision: str = "no"


def main(args):
    """Make the runs, take them in turn, report."""
    device = common.choose_device(args)
    ours = common.load_ours(args.encoder, args.weights, device)
    study = common.load_original(args.encoder, args.weights, device)
    track = common.compose(args.duration, SAMPLE_RATE, seed=1)
    rates = measure_rates(device)
    runs, levers = ladder(study, ours, track, device, rates)
    for add in (early_exit, chunks, batches, short_segments):
        add(runs, levers, ours, args.duration)
    halves = {p: common.load_ours(args.encoder, args.weights, device, p) for p in rates["half"]}
    for precision, encoder in halves.items():
        half_precision(runs, levers, encoder, precision, track, rates)
    levers.append(Lever("all of ours together", "ours", "study"))

    # Threads, memory pools and kernels get going, and the embeddings are kept for comparison.
    embeddings = {name: work() for name, work in runs.items()}
    embeddings["study, middle layer"], embeddings["study"] = np.split(embeddings["study"], 2)
    compiled = None
    if args.compile:
        compiled = try_compile(runs, levers, embeddings, args, device, track)
    seconds = {name: [] for name in runs}
    for i in range(args.rounds):
        for name, work in runs.items():
            seconds[name].append(common.clock(device, work)[1])
        print(f"round {i + 1} of {args.rounds} done", file=sys.stderr)

    times = {name: common.time_statistics(each) for name, each in seconds.items()}
    rows = [describe(lever, times, embeddings) for lever in levers]
    agree = all(row["agrees"] for row in rows)
    at_once = side_by_side(ours, args.duration)
    path = common.write_report(
        NAME,
        args,
        device,
        {
            "duration_s": args.duration,
            "rounds": args.rounds,
            "front_end_alone_duration_s": FRONT_END_PIECES * args.duration,
            "front_end_chunk_of_ours_s": ours.chunk_s,
            "batch_segments": BATCH,
            "batch_segments_at_once_in_front_end": at_once,
            "rates_flop_per_s": rates,
            "compile": compiled,
            "agree": agree,
            "runs": times,
            "levers": rows,
        },
    )
    show(args, rows, rates, at_once, compiled, path)
    if not agree:
        wrong = ", ".join(row["lever"] for row in rows if not row["agrees"])
        print(f"error: the embeddings differ too much: {wrong}", file=sys.stderr)
        sys.exit(1)


def ladder(study, ours, track, device, rates) -> tuple[dict, list]:
    """Steps from the study's way to ours, all over the same audio and to the last layer.

    Returns
    -------
    runs : dict of name -> function without arguments that returns an embedding
    levers : list of Lever
    """
    last, middle = ours.n_layers, ours.n_layers // 2
    audio = torch.from_numpy(track)[None].to(device)
    whole = muq_flops(ours, len(track), last)
    frames = frontend_flops(ours.model.frontend, len(track))[1]
    logits = 2.0 * frames * study.linear.weight.numel()

    def walk(model):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for state in common.study_states(model, audio):
                x = state
            return x.mean(1)[0].cpu().numpy()

    def no_grad():
        with torch.no_grad():  # what `embed` runs in inference mode
            return type(ours).embed.__wrapped__(ours, track[None], [last]).ravel()

    runs = {
        "study": lambda: common.study_encode(
            study, track, [(0, len(track))], [middle, last], device
        ).ravel()
    }
    levers, models = [], {"plain": study}
    models["sdpa"] = with_sdpa(study)
    models["folded"] = with_folding(models["sdpa"])
    models["channels last"] = with_channels_last(models["folded"])
    steps = [
        ("no codebook logits, no state kept", "plain", (whole + logits) / whole),
        ("attention as SDPA", "sdpa", None),
        ("batch norm folded; ReLU, sum in place", "folded", None),
        ("front end channels-last", "channels last", None),
    ]
    if device.type == "cpu":
        models["oneDNN"] = share(models["channels last"])
        use_fast_linear(models["oneDNN"])
        moved = linear_flops(models["oneDNN"], frames)
        rest = (whole - moved) / rates["convolution"]
        predicted = (moved / rates["matmul"] + rest) / (moved / rates["linear"] + rest)
        steps.append(("linear layers through oneDNN", "oneDNN", predicted))
    models["1x1"] = share(models[steps[-1][1]])
    for new, old in zip(models["1x1"].conformer.layers, study.conformer.layers, strict=True):
        new.conv_module = ConformerConvolution(old.conv_module)
    steps.append(("1 x 1 convolutions as linear layers", "1x1", None))
    before = "study"
    for name, model, predicted in steps:
        runs[model] = lambda model=models[model]: walk(model)
        levers.append(Lever(name, model, before, predicted, "study"))
        before = model
    runs["no_grad"] = no_grad
    runs["ours"] = lambda: ours.embed(track[None], [last]).ravel()
    levers.append(Lever("our mel front end and walk", "no_grad", before, None, "study"))
    levers.append(Lever("inference mode, not no_grad", "ours", "no_grad", None, "study"))
    runs["ours, middle layer"] = lambda: ours.embed(track[None], [middle]).ravel()
    return runs, levers


def early_exit(runs, levers, ours, duration_s) -> None:
    """The walk ends at the middle layer."""
    n_samples, middle = round(duration_s * SAMPLE_RATE), ours.n_layers // 2
    predicted = muq_flops(ours, n_samples, ours.n_layers) / muq_flops(ours, n_samples, middle)
    name = f"early exit at layer {middle}"
    levers.append(Lever(name, "ours, middle layer", "ours", predicted, "study, middle layer"))


def chunks(runs, levers, ours, duration_s) -> None:
    """The front end alone, on a longer piece, in chunks and whole: what the halo costs."""
    track = common.compose(FRONT_END_PIECES * duration_s, SAMPLE_RATE, seed=3)

    def run(chunk_s):
        kept, ours.chunk_s = ours.chunk_s, chunk_s
        try:
            return ours.embed(track[None], [0]).ravel()
        finally:
            ours.chunk_s = kept

    runs["front end, whole"] = lambda: run(math.inf)
    total, n_frames = frontend_flops(ours.model.frontend, len(track))
    local = total - 2.0 * n_frames * ours.model.frontend.linear.weight.numel()
    for chunk_s in (c for c in CHUNKS_S if c < len(track) / SAMPLE_RATE):
        computed = frames_with_halo(n_frames, int(chunk_s * ours.frame_rate))
        predicted = total / (total + local * (computed / n_frames - 1))
        name = f"front end in chunks of {chunk_s:g} s"
        runs[name] = lambda chunk_s=chunk_s: run(chunk_s)
        levers.append(Lever(name, name, "front end, whole", predicted))


def batches(runs, levers, ours, duration_s) -> None:
    """Six segments in a batch, and one at a time; on a CPU the arithmetic is all there is."""
    track = common.compose(BATCH * duration_s, SAMPLE_RATE, seed=4)
    n_samples = len(track) // BATCH
    spans = [(i * n_samples, (i + 1) * n_samples) for i in range(BATCH)]
    for name, size in (("batch", BATCH), ("one by one", 1)):
        batch_s = (size + 0.5) * duration_s
        runs[name] = lambda batch_s=batch_s: (
            encode_segments(track, spans, ours, [ours.n_layers], batch_seconds=batch_s)[0]
            .mean(0)
            .ravel()
        )
    predicted = 1.0 if ours.device.type == "cpu" else None
    levers.append(Lever(f"batch of {BATCH}", "batch", "one by one", predicted))


def short_segments(runs, levers, ours, duration_s) -> None:
    """Short segments with the depthwise kernel and spectra in pieces, and as it was before them.

    Also the whole segment: both hold for any length. On a GPU nothing differs.
    """
    track = common.compose(max(duration_s, max(SHORT) * SHORT_S), SAMPLE_RATE, seed=5)
    n_samples = round(SHORT_S * SAMPLE_RATE)
    pieces = {f"{n} x {SHORT_S:g} s": track[: n * n_samples].reshape(n, -1) for n in SHORT}
    pieces[f"1 x {duration_s:g} s"] = track[None, : round(duration_s * SAMPLE_RATE)]
    for name, audio in pieces.items():

        def run(audio=audio):
            return ours.embed(audio, [ours.n_layers]).mean(0).ravel()

        def before(run=run):
            kept = cpu_linear.depthwise, FrontEnd._power
            cpu_linear.depthwise, FrontEnd._power = plain_depthwise, plain_power
            try:
                return run()
            finally:
                cpu_linear.depthwise, FrontEnd._power = kept

        runs[name], runs[f"{name}, before"] = run, before
        levers.append(
            Lever(f"depthwise kernel, spectra in pieces: {name}", name, f"{name}, before")
        )


def plain_depthwise(x: torch.Tensor, conv: nn.Conv1d) -> torch.Tensor:
    """A depthwise convolution (B, T, D) as PyTorch runs it by itself."""
    return conv(x.transpose(1, 2)).transpose(1, 2)


def plain_power(self, audio: torch.Tensor, n_frames: int) -> torch.Tensor:
    """The front end's power spectrum (B, frames, bins), all at once."""
    spectrum = torch.stft(
        audio, self.n_fft, self.hop, window=self.window, center=False, return_complex=True
    )
    return torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)


def half_precision(runs, levers, encoder, precision, track, rates) -> None:
    """The encoder in half precision, at the rates that the machine has there."""
    whole = muq_flops(encoder, len(track), encoder.n_layers)
    frames = frontend_flops(encoder.model.frontend, len(track))[1]
    products = linear_flops(encoder.model, frames)
    half = rates["half"][precision]
    before = products / rates["linear"] + (whole - products) / rates["convolution"]
    after = products / half["matmul"] + (whole - products) / half["convolution"]
    runs[precision] = lambda: encoder.embed(track[None], [encoder.n_layers]).ravel()
    levers.append(Lever(precision, precision, "ours", before / after, precision=precision))


def try_compile(runs, levers, embeddings, args, device, track) -> dict:
    """Compile ours; say how long that took, or why it failed."""
    try:
        encoder = load_encoder(args.encoder, weights=args.weights, device=device, compile=True)
        work = lambda: encoder.embed(track[None], [encoder.n_layers]).ravel()  # noqa: E731
        embeddings["compiled"], seconds = common.clock(device, work)
    except Exception as error:  # the compiler's own, its tools', the operating system's
        said = " ".join(str(error).split()[:20])  # the compiler's messages go on for pages
        return {"failed": f"{type(error).__name__}: {said}"}
    runs["compiled"] = work
    levers.append(Lever("torch.compile", "compiled", "ours"))
    return {"first_run_s": seconds}


def share(model: nn.Module) -> nn.Module:
    """A copy of a model's structure that shares its weights."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def with_sdpa(model) -> nn.Module:
    """The model with torch's fused attention."""
    model = share(model)
    for layer in model.conformer.layers:
        layer.self_attn.config["_attn_implementation"] = "sdpa"
    return model


def with_folding(model) -> nn.Module:
    """The model with batch normalisations folded into convolutions, as `FrontEnd` does it."""
    blocks = FrontEnd(model).blocks.to(memory_format=torch.contiguous_format)
    model = share(model)
    model.conv.conv = nn.Sequential(*blocks)
    for layer in model.conformer.layers:
        module = layer.conv_module
        module.depthwise_conv = fuse_conv_bn_eval(module.depthwise_conv, module.batch_norm)
        module.batch_norm = nn.Identity()
    return model


def with_channels_last(model) -> nn.Module:
    """The model with the front end's weights, and so its activations, channels-last."""
    model = share(model)
    model.conv.conv = copy.deepcopy(model.conv.conv).to(memory_format=torch.channels_last)
    return model


def linear_flops(model, frames: int) -> float:
    """Arithmetic of the linear layers of front end and conformer."""
    front = model.conv if hasattr(model, "conv") else model.frontend
    modules = itertools.chain(front.modules(), model.conformer.modules())
    return sum(2.0 * frames * m.weight.numel() for m in modules if isinstance(m, nn.Linear))


def frames_with_halo(n_frames: int, chunk: int) -> int:
    """Output frames that a front end in chunks computes, halos included."""
    starts = range(0, n_frames, chunk)
    return sum(min(s + chunk + HALO, n_frames) - max(0, s - HALO) for s in starts)


def side_by_side(ours, duration_s) -> int:
    """Segments of a batch that go through the front end at once, as `MuQEncoder.states` does it."""
    return max(1, int(min(BATCH, ours.chunk_s / duration_s)))


def measure_rates(device) -> dict:
    """This machine's rates in FLOP/s: in float32 and in half precision."""
    full = {"matmul": common.matmul_rate(device), "convolution": common.convolution_rate(device)}
    full["linear"] = linear_rate(device) if device.type == "cpu" else full["matmul"]
    half = {
        p: {
            "matmul": matrix_rate(device, DTYPES[p]),
            "convolution": common.convolution_rate(device, DTYPES[p]),
        }
        for p in (("bf16",) if device.type == "cpu" else ("bf16", "fp16"))
    }
    return full | {"half": half}


@torch.inference_mode()
def linear_rate(device) -> float:
    """FLOP/s of `tune.encoders.cpu_linear.linear` (oneDNN on CPUs)."""
    return matrix_rate(device, torch.float32, [lambda x, y: linear(x, y, None)])


def describe(lever: Lever, times, embeddings) -> dict:
    """One row of the report."""
    got, expected = embeddings[lever.run], embeddings[lever.same or lever.without]
    cosine = float(got @ expected / np.linalg.norm(got) / np.linalg.norm(expected))
    difference, exact = float(np.abs(got - expected).max()), lever.precision == "no"
    return {
        "lever": lever.name,
        "run": lever.run,
        "without": lever.without,
        "compared_with": lever.same or lever.without,
        "with_s": times[lever.run],
        "without_s": times[lever.without],
        "predicted_ratio": lever.predicted,
        "ratio": times[lever.without]["median_s"] / times[lever.run]["median_s"],
        "precision": lever.precision,
        "max_abs_difference": difference,
        "cosine": cosine,
        "agrees": difference < TOLERANCE if exact else cosine >= MIN_COSINE,
    }


def show(args, rows, rates, at_once, compiled, path) -> None:
    """Print the table."""
    shown = [
        [
            row["lever"],
            common.show_spread(row["without_s"]),
            common.show_spread(row["with_s"]),
            "-" if row["predicted_ratio"] is None else f"{row['predicted_ratio']:.2f}x",
            f"{row['ratio']:.2f}x",
            f"{row['max_abs_difference']:.1e}"
            if row["precision"] == "no"
            else f"cosine {row['cosine']:.6f}",
        ]
        for row in rows
    ]
    notes = [
        f"chunks: the front end alone, {FRONT_END_PIECES * args.duration:g} s, against the whole; "
        f"batch: {at_once} of {BATCH} segments at once in the front end",
        "this machine's rates (GFLOP/s): "
        + ", ".join(
            f"{what} {rates[what] / 1e9:.3g}" for what in ("matmul", "linear", "convolution")
        ),
    ]
    notes += [
        f"in {p}: " + ", ".join(f"{what} {rate / 1e9:.3g}" for what, rate in each.items())
        for p, each in rates["half"].items()
    ]
    if compiled and "failed" in compiled:
        notes.append(f"torch.compile failed: {compiled['failed']}")
    elif compiled:
        notes.append(f"torch.compile: the first run took {compiled['first_run_s']:.0f} s")
    common.print_table(
        f"{args.encoder}, {args.duration:g} s: seconds, median of {args.rounds} rounds",
        ["lever", "without", "with", "predicted", "measured", "difference"],
        shown,
        [*notes, str(path)],
    )


if __name__ == "__main__":
    run_script(lambda: main(args))
