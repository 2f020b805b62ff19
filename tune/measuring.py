"""What encoding costs in truth: one strategy, measured in a process of its own.

A process of its own, because memory that another cell used and gave back would hide what this one
needs. The child loads the encoder, warms up, notes what is at rest, encodes the track once untimed
and `repeats` times timed (decode, cut, encode, join: train_probe.py's own functions) and writes its
report. Peak memory
is, on a GPU, what PyTorch allocated at most; on a CPU, the weights and the largest rise of resident
memory above the resting process.
"""

import gc
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tune.segments import is_degenerate, parse_rule

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_EVERY_S = 0.005
WARM_UP_S = 1.0
SEED = 1234
# The root goes to the path's end: before the standard library, our profile.py would stand in.
CHILD = "import sys; sys.path.append(sys.argv[1]); from tune.measuring import child; child()"


@dataclass(frozen=True)
class Cell:
    """One strategy on one machine.

    Attributes
    ----------
    seg, agg, layer, encoder, weights : as on the command line
    duration_s : seconds of the track of noise that is encoded; None with `audio`
    precision : "no", "fp16" or "bf16"
    device : "cpu", "cuda", ...
    batch_seconds : audio seconds of one encoder batch
    memory_budget : bytes for `load_encoder`; None is its default
    audio : files to decode and encode instead of noise
    """

    seg: str
    agg: str
    duration_s: float | None
    layer: str = "last"
    encoder: str = "muq"
    weights: str = "random"
    precision: str = "no"
    device: str = "cpu"
    batch_seconds: float = 60.0
    memory_budget: int | None = None
    compile: bool = False
    audio: Sequence[str] = ()


def measure(cell: Cell, repeats: int = 3) -> dict:
    """Measure a cell in a child process.

    Parameters
    ----------
    cell : what to measure
    repeats : tracks (or passes over the files) timed, at least 1

    Returns
    -------
    dict
        As `run_cell` returns; or {"failed": reason} when it didn't fit into memory.

    Raises
    ------
    ValueError
        When the strategy itself is wrong: an unknown encoder, no such layer, a bad file.
    RuntimeError
        When the child fails by a bug; its traceback is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-P", "-c", CHILD, str(ROOT), str(report)]
        job = json.dumps({"cell": asdict(cell), "repeats": repeats})
        done = subprocess.run(command, input=job, text=True, stdout=subprocess.DEVNULL)
        if report.exists():
            found = json.loads(report.read_text(encoding="utf-8"))
        elif done.returncode == -getattr(signal, "SIGKILL", 9):
            return {"failed": "killed by the system, most likely out of memory"}
        else:
            raise RuntimeError(f"measuring {cell} failed with code {done.returncode}, see above")
    if "error" in found:
        raise ValueError(found["error"])
    return found


def child() -> None:
    """Measure the cell described on stdin and write the report to the path in sys.argv[2]."""
    import torch

    from tune.cli import raised_by_us

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: the parent says what there is to say
    job = json.load(sys.stdin)
    try:
        found = run_cell(Cell(**job["cell"]), job["repeats"])
    except (ValueError, RuntimeError, MemoryError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, torch.OutOfMemoryError | MemoryError) or (
            "can't allocate memory" in str(cause)  # a RuntimeError on a CPU
        ):
            found = {"failed": "out of memory"}
        elif isinstance(error, ValueError) and raised_by_us(error):
            found = {"error": str(error)}
        else:
            raise
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


def run_cell(cell: Cell, repeats: int) -> dict:
    """Measure a cell in this process.

    Returns
    -------
    dict
        Of a track: seconds_per_track (median over the repeats; decoding, encoding and joining),
        seconds_per_track_min, seconds_per_track_max, decode_seconds (median; within the former),
        duration_s, audio_seconds (that went through the encoder), encoder_passes, store_bytes,
        flops (None for an encoder that isn't MuQ). Rates: audio_seconds_per_second, and
        flops_per_second while encoding. Of the whole: embedding_dim, peak_memory_bytes and its
        kind, weights_bytes, peak_reserved_bytes (GPU) or peak_resident_bytes (CPU),
        segments_per_track, degenerate, redone_in_float32, encoder_untrained, muq_large.
    """
    from tune.encoder import resolve_layers
    from tune.encoders import load_encoder
    from tune.segments import describe_counts

    budget = {} if cell.memory_budget is None else {"memory_budget": cell.memory_budget}
    encoder = load_encoder(cell.encoder, precision=cell.precision, device=cell.device,
                           weights=cell.weights, compile=cell.compile, **budget)  # fmt: skip
    layers = resolve_layers(cell.layer, encoder.n_layers)
    encoder.keep_layers(max(layers))
    rule, cuda = parse_rule(cell.seg), encoder.device.type == "cuda"
    sources = cell.audio or [_noise(cell.duration_s, encoder.sample_rate)]
    short = [_noise(max(WARM_UP_S, encoder.min_seconds), encoder.sample_rate)]
    # The compiler's own memory isn't the strategy's, so it gets to see the full size first.
    _run(sources if cell.compile else short, encoder, layers, rule, cell)
    passes, redone = encoder.passes, encoder.redone
    with (_gpu_peak if cuda else _resident_peak)(encoder) as peak:
        # The first run at full size sets up kernels and memory pages: it counts for the peak only.
        runs = [_run(sources, encoder, layers, rule, cell) for _ in range(repeats + 1)][1:]
    passes, redone = encoder.passes - passes, encoder.redone - redone

    n = len(sources)
    tracks = runs[0]["tracks"]
    counts = [len(track["spans"]) for track in tracks]
    each = [run["seconds"] / n for run in runs]
    audio_s = sum(e - s for t in tracks for s, e in t["spans"]) / encoder.sample_rate / n
    flops = _flops(encoder, max(layers), [span for t in tracks for span in t["spans"]])
    encode_s = statistics.median(run["encode_seconds"] for run in runs) / n
    return {
        "duration_s": sum(track["n_samples"] for track in tracks) / encoder.sample_rate / n,
        "n_tracks": n,
        "segments_per_track": describe_counts(counts),
        "degenerate": "equals full" if is_degenerate(rule, counts) else None,
        "seconds_per_track": statistics.median(each),
        "seconds_per_track_min": min(each),
        "seconds_per_track_max": max(each),
        "decode_seconds": statistics.median(r["decode_seconds"] for r in runs) / n,
        "audio_seconds": audio_s,
        "audio_seconds_per_second": audio_s / statistics.median(each),
        **peak,
        "embedding_dim": tracks[0]["embedding_dim"],
        "store_bytes": sum(track["store_bytes"] for track in tracks) / n,
        "encoder_passes": passes / (repeats + 1) / n,
        "redone_in_float32": redone / (repeats + 1) / n,
        "flops": None if flops is None else flops / n,
        "flops_per_second": None if flops is None else flops / n / encode_s,
        "encoder_untrained": encoder.untrained,
        "muq_large": (encoder.n_layers, encoder.embedding_dim) == (12, 1024),
    }


def _run(sources, encoder, layers, rule, cell) -> dict:
    """Decode, cut, encode and join every track once; time it, the looks at the results apart."""
    import torch

    from tune.aggregators import aggregate_track
    from tune.audio import AudioError, read_audio
    from tune.encoding import encode_segments

    decode_s = encode_s = join_s = 0.0
    tracks = []
    for source in sources:
        started = time.perf_counter()
        try:
            samples = source
            if isinstance(source, str):
                samples = read_audio(source, encoder.sample_rate)
        except AudioError as error:
            raise ValueError(f"{source}: {error}") from error
        decoded = time.perf_counter()
        spans = rule.spans(len(samples), encoder.sample_rate)
        tokens, counts = encode_segments(
            samples, spans, encoder, layers, batch_seconds=cell.batch_seconds
        )
        encoded = time.perf_counter()
        by_layer = torch.from_numpy(tokens).double().unbind(1)  # L times (N, D)
        joined = [aggregate_track(cell.agg, layer, len(layer))[0] for layer in by_layer]
        decode_s += decoded - started
        encode_s += encoded - decoded
        join_s += time.perf_counter() - encoded
        stored = _store_bytes(tokens, spans, counts, len(samples))
        tracks.append({"n_samples": len(samples), "spans": spans, "store_bytes": stored,
                       "embedding_dim": len(joined[0])})  # fmt: skip
    return {"seconds": decode_s + encode_s + join_s, "decode_seconds": decode_s,
            "encode_seconds": encode_s, "tracks": tracks}  # fmt: skip


def _noise(seconds: float, sample_rate: int):
    """Quiet white noise, the same every time: what encoding costs doesn't depend on the sound."""
    import numpy as np

    noise = np.random.default_rng(SEED).standard_normal(round(seconds * sample_rate), np.float32)
    return noise * np.float32(0.1)


def _store_bytes(tokens, spans, counts, n_samples) -> int:
    """Size of the track's row, by writing it into a store that is thrown away."""
    from tune.store import Collection, Row

    with tempfile.TemporaryDirectory() as folder:
        collection = Collection(Path(folder), Path(folder), None, {}, [])
        collection.write("0" * 64, n_samples, Row(tokens, spans, counts, False, 0.0))
        return collection.bytes_of("0" * 64, spans)


def _flops(encoder, layer, spans) -> float | None:
    """Arithmetic of all segments; None for an encoder that isn't MuQ."""
    from tune.costs import muq_flops
    from tune.muq import MuQEncoder

    if not isinstance(encoder, MuQEncoder):
        return None
    return sum(muq_flops(encoder, end - start, layer) for start, end in spans)


def _weights_bytes(encoder) -> int:
    """Bytes of the weights on the encoder's device."""
    from torch import nn

    parts = [part for part in vars(encoder).values() if isinstance(part, nn.Module)]
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    return sum(t.nbytes for t in tensors if t.device.type == encoder.device.type)


@contextmanager
def _gpu_peak(encoder):
    """Fill a dict with what PyTorch allocates and reserves at most inside the block."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(encoder.device)
    found = {"weights_bytes": _weights_bytes(encoder)}
    yield found
    found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(encoder.device)
    found["peak_memory_kind"] = "allocated"
    found["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(encoder.device)


@contextmanager
def _resident_peak(encoder):
    """Fill a dict with the weights and the rise of resident memory inside the block.

    The process's own peak so far (mostly from loading) may lie above the block's, so a thread looks
    at the resident memory every few milliseconds; where the block sets a new peak, that is exact.
    """
    import psutil

    from tune.results import peak_memory_bytes

    _give_back_freed_memory()
    resident = psutil.Process().memory_info
    so_far, rest = peak_memory_bytes(encoder.device), resident().rss
    seen, stop = [rest], threading.Event()

    def watch():
        while not stop.wait(SAMPLE_EVERY_S):
            seen[0] = max(seen[0], resident().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    found = {"weights_bytes": _weights_bytes(encoder)}
    try:
        yield found
    finally:
        stop.set()
        thread.join()
    peak = peak_memory_bytes(encoder.device)
    top = max(seen[0], resident().rss, peak if peak > so_far else 0)
    found["peak_memory_bytes"] = found["weights_bytes"] + top - rest
    found["peak_memory_kind"] = "weights and rise of resident memory"
    found["peak_resident_bytes"] = top


def _give_back_freed_memory() -> None:
    """Return memory that was freed but kept by the C library: it would hide what is used next."""
    import ctypes

    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl doesn't
        if trim is not None:
            trim(0)
