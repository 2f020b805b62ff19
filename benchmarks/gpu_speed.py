"""Speed on a GPU, and a profile of its time."""

import contextlib
import statistics
from collections import deque

import common
import numpy as np
import torch
from gpu_bench import Bench, at_least, cosines, graphs, run_benchmark, segments

from tune.encoders.base import DTYPES, SAMPLE_RATE
from tune.encoders.cuda_graphs import RECORD_AT, CudaGraphs
from tune.profiling.arithmetic import muq_flops
from tune.system.memory import PeakMemory

LARGE_BUDGET = 40_000_000_000  # bytes: nearly all of a large card, instead of the default 2 GB
TOP_KERNELS = 15


def rates(bench: Bench, record) -> None:
    """The machine's own rates: matrix products, MuQ's 3 x 3 convolution, copies, launches."""
    found = {}
    for name in ("no", *bench.halves):
        dtype = DTYPES[name]
        found[name] = {
            "matmul": common.matmul_rate(bench.device, dtype),
            "convolution": common.convolution_rate(bench.device, dtype),
            "convolution_channels_last": common.convolution_rate(
                bench.device, dtype, torch.channels_last
            ),
        }
        record(flop_per_s=found)
    n_bytes = 2**24 if bench.rehearse else 2**31
    source = torch.ones(n_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = min(common.clock(bench.device, lambda: target.copy_(source))[1] for _ in range(5))
    small, n = torch.zeros(8, device=bench.device), 2000
    launching = [
        common.clock(bench.device, lambda: [small.add_(1) for _ in range(n)])[1] for _ in range(3)
    ]
    record(copy_bytes_per_s=2 * n_bytes / seconds, launch_s=min(launching) / n)


def sizes(bench: Bench, record) -> None:
    """MuQ to its last layer: batches of 10 s, then longer pieces, in each precision."""
    seconds = [(10, n) for n in (1, 3, 6, 12, 24, 48)] + [(30, 1), (30, 4), (45, 1), (60, 1)]
    cells = [("default", p, *each) for p in bench.halves for each in seconds]
    cells += [("default", "no", *each) for each in ((10, 1), (10, 6), (45, 1))]
    cells += [("large", p, *each) for p in bench.halves for each in ((10, 24), (10, 48), (60, 1))]
    best = {
        p: common.matmul_rate(bench.device, DTYPES[p]) for p in dict.fromkeys(c[1] for c in cells)
    }
    rows = []
    for budget, p, length_s, n in cells[:: 9 if bench.rehearse else 1]:
        encoder = bench.encoder(bench.large, p)
        kept = encoder.chunk_s
        if budget == "large":
            per_second = encoder.model.frontend.bytes_per_second(DTYPES[p])
            encoder.chunk_s = LARGE_BUDGET / 2 / per_second
        try:
            rows.append(
                {
                    "budget": budget,
                    "precision": p,
                    "segment_s": length_s,
                    "batch": n,
                    **measure(bench, encoder, segments(n, bench.seconds(length_s, 1)), best[p]),
                }
            )
        finally:
            encoder.chunk_s = kept
        record(rows=rows)


def measure(bench: Bench, encoder, audio: np.ndarray, rate: float, embed=None) -> dict:
    """Seconds, speed and memory of one call of `embed` (default: the encoder's, last layer).

    Parameters
    ----------
    rate : FLOP/s of the card, which the arithmetic's rate is given as a share of
    """
    layer = encoder.n_layers
    embed = embed or (lambda audio: encoder.embed(audio, [layer]))
    for _ in range(RECORD_AT):
        embed(audio)  # kernels are chosen, a graph is recorded
    with PeakMemory(bench.device) as memory:
        embed(audio)
    took = [common.clock(bench.device, lambda: embed(audio))[1] for _ in range(5)]
    median = statistics.median(took)
    flop = len(audio) * muq_flops(encoder, audio.shape[1], layer)
    return {
        "median_s": median,
        "min_s": min(took),
        "max_s": max(took),
        "audio_s_per_s": audio.size / SAMPLE_RATE / median,
        "flop_per_s": flop / median,
        "share_of_matmul": flop / median / rate,
        "rest_bytes": memory.rest_bytes,
        "peak_bytes": memory.peak_bytes,
    }


def study(bench: Bench, record) -> None:
    """The study's way beside ours in one run: in float32, and as each runs by default here.

    By default ours rounds to half precision, and PyTorch rounds convolutions to TF32.
    """
    given = ["--encoder", bench.large, "--device", bench.device.type, "--layers"]
    given += ["4"] if bench.rehearse else ["12"]
    given += ["--duration", "3"] if bench.rehearse else ["--duration", "45"]
    given += ["--rounds", "1"] if bench.rehearse else ["--rounds", "4"]
    for name, more in {
        "float32": [],
        "as_it_comes": ["--tf32", "--precision", bench.halves[-1]],
    }.items():
        record(**{name: run_benchmark("study_loop", *given, *more)})


def where(bench: Bench, record) -> None:
    """Profile of a pass: kernels by name, launches, copies, gaps between kernels."""
    found, p = {}, bench.halves[0]
    encoder = bench.encoder(bench.large, p)
    for n in (1, 6):
        audio = segments(n, bench.seconds(10, 1))
        with graphs(encoder, None):
            found[f"{p}, {n} x 10 s"] = profile(
                bench, lambda audio=audio: encoder.embed(audio, [encoder.n_layers])
            )
        record(passes=found)


def profile(bench: Bench, run) -> dict:
    """Profile three runs: what one of them takes, by kernel (by operator on a CPU)."""
    from torch.profiler import ProfilerActivity, profile

    runs, on_gpu = 3, bench.device.type == "cuda"
    for _ in range(2):
        run()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as profiler:
        _, seconds = common.clock(bench.device, lambda: [run() for _ in range(runs)])
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    events = [e for e in profiler.events() if e.device_type == kind]
    by_name: dict[str, list[float]] = {}
    for event in events:
        us = event.device_time_total if on_gpu else event.self_cpu_time_total
        by_name.setdefault(event.name, []).append(us / 1e6)
    busy = sum(map(sum, by_name.values()))
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    copies = [item for item in ranked if item[0].startswith(("Memcpy", "Memset"))]
    first, last = (
        f(values)
        for f, values in (
            (min, [e.time_range.start for e in events]),
            (max, [e.time_range.end for e in events]),
        )
    )
    return {
        "profiled_s": seconds / runs,
        "busy_s": busy / runs,
        "gap_share": max(0.0, 1 - busy / ((last - first) / 1e6)),
        "launches": len(events) / runs,
        "copies_s": sum(sum(times) for _, times in copies) / runs,
        "kernels": [
            {
                "name": name[:160],
                "s": sum(times) / runs,
                "launches": len(times) / runs,
                "share": sum(times) / busy,
            }
            for name, times in ranked[:TOP_KERNELS]
        ],
    }


def variants(bench: Bench, record) -> None:
    """The pass with graphs, each time with one thing otherwise; waited for and in flight."""
    found = {}
    for p in bench.halves:
        encoder = bench.encoder(bench.large, p)
        rate = common.matmul_rate(bench.device, DTYPES[p])
        for n in (6, 24):
            audio, rows = segments(n, bench.seconds(10, 1)), {}
            for name, context in {
                "as it is": contextlib.nullcontext(),
                "convolutions not fused": unfused(encoder),
                "cuDNN benchmark": trying_kernels(),
                "front end not channels-last": contiguous(encoder),
            }.items():
                with context, graphs(encoder, new_graphs(bench)):
                    rows[name] = measure(bench, encoder, audio, rate)
                    add_in_flight(rows[name], bench, encoder, audio, rate)
            found[f"{p}, {n} x 10 s"] = rows
            fused = all(block.fuses for block in encoder.model.frontend.blocks)
            record(passes=found, convolutions_are_fused=fused)


@contextlib.contextmanager
def unfused(encoder):
    """Context in which the front end adds biases and ReLU in passes of their own."""
    blocks = encoder.model.frontend.blocks
    kept = [block.fuses for block in blocks]
    for block in blocks:
        block.fuses = False
    try:
        yield
    finally:
        for block, fuses in zip(blocks, kept, strict=True):
            block.fuses = fuses


@contextlib.contextmanager
def contiguous(encoder):
    """Context in which the front end's weights aren't channels-last."""
    blocks = encoder.model.frontend.blocks.to(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        blocks.to(memory_format=torch.channels_last)


@contextlib.contextmanager
def trying_kernels():
    """Context of cuDNN's benchmark mode inside the front end, which sets flags of its own."""
    flags = torch.backends.cudnn.flags
    torch.backends.cudnn.flags = lambda **given: flags(**{**given, "benchmark": True})
    try:
        yield
    finally:
        torch.backends.cudnn.flags = flags


def graphed(bench: Bench, record) -> None:
    """Batches with and without CUDA graphs, waited for one by one and two in flight."""
    checks, found = [], {}
    for p in bench.halves:
        encoder = bench.encoder(bench.large, p)
        rate, layers = common.matmul_rate(bench.device, DTYPES[p]), [encoder.n_layers]
        for n in (1, 3, 6, 12, 24)[:: 4 if bench.rehearse else 1]:
            audio, rows = segments(n, bench.seconds(10, 1)), {}
            used = new_graphs(bench)
            for name, here in (("without graphs", None), ("CUDA graph", used)):
                with graphs(encoder, here):
                    rows[name] = measure(bench, encoder, audio, rate)
                    add_in_flight(rows[name], bench, encoder, audio, rate)
                    rows[name]["states"] = encoder.embed(audio, layers)
            plain, graph = (row.pop("states")[:, 0] for row in rows.values())
            what = f"{p}, {n} x 10 s"
            checks.append(
                at_least(f"{what}: cosine of a graph", cosines(graph, plain).min(), 0.99999)
            )
            checks.append(at_least(f"{what}: a graph was recorded", used.works, 1))
            found[what] = rows
            record(passes=found, checks=checks)


def new_graphs(bench: Bench) -> CudaGraphs:
    """CUDA graphs; in a rehearsal a graph is the pass itself."""
    return CudaGraphs((lambda function, batch: function) if bench.rehearse else None)


def add_in_flight(row: dict, bench: Bench, encoder, audio: np.ndarray, rate: float) -> None:
    """Add to a row of `measure` what batches take when the next is begun before one is waited for.

    So encoding runs: a batch is put together while the one before it is computed.
    """
    row["in_flight_s"] = in_flight(bench, encoder, audio)
    row["in_flight_share_of_matmul"] = (
        row["flop_per_s"] * row["median_s"] / row["in_flight_s"] / rate
    )


def in_flight(bench: Bench, encoder, audio: np.ndarray, n: int = 8) -> float:
    """Seconds a batch when the next one is begun before a result is waited for."""

    def run():
        pending = deque()
        for _ in range(n):
            pending.append(encoder.begin(audio, [encoder.n_layers]))
            if len(pending) > 1:
                pending.popleft().result()
        pending.pop().result()

    return min(common.clock(bench.device, run)[1] for _ in range(3)) / n


def compiled(bench: Bench, record) -> None:
    """torch.compile of front end and layers: the first run, then as `variants` measures.

    Alone, and recorded as CUDA graphs: then the launches that it saves count for nothing, and what
    is left is what its kernels save of the pass. Not compiled in a rehearsal, where the compiler
    would take most of the time.
    """
    p = bench.halves[-1]
    encoder = bench.encoder(bench.large, p, compile=not bench.rehearse)
    rate, layers = common.matmul_rate(bench.device, DTYPES[p]), [encoder.n_layers]
    passes: dict[str, dict] = {}
    for n in (6, 24):
        audio = segments(n, bench.seconds(10, 1))
        out, first_s = common.clock(bench.device, lambda audio=audio: encoder.embed(audio, layers))
        expected = bench.encoder(bench.large, p).embed(audio, layers)
        found = passes[f"{p}, {n} x 10 s"] = {
            "first_run_s": first_s,
            "cosine": float(cosines(out[:, 0], expected[:, 0]).min()),
        }
        for name, here in (("without graphs", None), ("CUDA graph", new_graphs(bench))):
            with graphs(encoder, here):
                found[name] = measure(bench, encoder, audio, rate)
                add_in_flight(found[name], bench, encoder, audio, rate)
                record(precision=p, passes=passes)
    with graphs(encoder, None):
        record(profile=profile(bench, lambda: encoder.embed(audio, layers)))
