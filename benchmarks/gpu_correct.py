"""Correctness on a GPU: each step compares numbers with a stated tolerance.

Differences are shares of the largest expected value, cosines the lowest over segments.
"""

import contextlib
import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from gpu_bench import (
    ROOT,
    Bench,
    at_least,
    at_most,
    cosines,
    difference,
    forget_encoders,
    music,
    run_script,
    segments,
)

from tune.encoders.base import SAMPLE_RATE
from tune.encoders.registry import load_encoder
from tune.segments.rules import parse_rule
from tune.store.encode import encode_segments, encode_tracks
from tune.store.store import Store

EXACT = 1e-4  # between two float32 computations of the same numbers
ROUNDED = 3e-2  # between two half-precision computations of the same numbers
MIN_COSINE = 0.999  # of a pooled state, half precision against float32
WHOLE = float("inf")  # a chunk as long as any segment
REFERENCE = ROOT.parent / "shared" / "reference"  # where it lies beside the checkout


def tests(bench: Bench, record) -> None:
    """The tests marked gpu; in a rehearsal they are skipped, but collected."""
    every = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [path for path in every if "mark.gpu" in path.read_text(encoding="utf-8")]
    done = run_script(
        "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "-p", "no:cacheprovider", *marked
    )
    last = done.stdout.strip().splitlines()[-1]
    record(
        summary=last,
        output=done.stdout[-8000:],
        checks=[at_most("exit code of pytest -m gpu", done.returncode, 0)],
    )


def golden(bench: Bench, record) -> None:
    """Float32 hidden states against muq's own (the tiny reference model) and this machine's CPU."""
    checks = []
    if REFERENCE.is_dir():
        states = np.load(REFERENCE / "muq-tiny.golden.npz")
        encoder = load_encoder(str(REFERENCE / "muq-tiny"), device=bench.device)
        for case in ("a", "b"):
            audio = torch.from_numpy(states[f"{case}_audio"]).to(bench.device)
            with torch.inference_mode():
                found = list(encoder.states(audio, range(5), torch.float32))
            off = [
                difference(x.cpu().numpy(), states[f"{case}_hidden_{k}"])
                for k, x in enumerate(found)
            ]
            checks.append(at_most(f"golden states, case {case}", max(off), EXACT, by_layer=off))
    else:
        print(
            "no reference model beside the checkout: its golden states are left out",
            file=sys.stderr,
        )
    audio = segments(2, bench.seconds(10, 2))
    for name in dict.fromkeys(("muq-nano", bench.large, "mel")):
        ours, theirs = (bench.encoder(name, "no", device) for device in (bench.device, "cpu"))
        layers = range(ours.n_layers + 1)
        got, expected = ours.embed(audio, layers)[:, 0], theirs.embed(audio, layers)[:, 0]
        off = [difference(got[:, k], expected[:, k]) for k in layers]
        checks.append(
            at_most(f"{name}: {bench.device.type} against cpu", max(off), EXACT, by_layer=off)
        )
        record(checks=checks)


def precision(bench: Bench, record) -> None:
    """Pooled states of every layer in half precision against float32, on music and near silence."""
    checks = []
    loud = segments(4, bench.seconds(10, 2))
    for name in dict.fromkeys(("muq-nano", bench.large)):
        full = bench.encoder(name, "no")
        layers = range(full.n_layers + 1)
        for half in (bench.encoder(name, p) for p in bench.halves):
            for what, audio in (("music", loud), ("quiet", loud * np.float32(1e-3))):
                redone = half.redone
                got, expected = (e.embed(audio, layers)[:, 0] for e in (half, full))
                lowest = cosines(got, expected)
                checks.append(
                    at_least(
                        f"{name}, {half.precision}, {what}: cosine to float32",
                        lowest.min(),
                        MIN_COSINE,
                        by_layer=lowest.tolist(),
                        redone=half.redone - redone,
                    )
                )
                record(checks=checks)


def invariance(bench: Bench, record) -> None:
    """The front end in chunks against whole, and a batch against its segments one by one."""
    checks = []
    long, batch = segments(1, bench.seconds(30, 5)), segments(5, bench.seconds(10, 2))
    for name in dict.fromkeys(("muq-nano", bench.large)):
        for p in ("no", *bench.halves):
            encoder = bench.encoder(name, p)
            layers, limit = [0, encoder.n_layers], EXACT if p == "no" else ROUNDED
            kept = encoder.chunk_s
            try:
                encoder.chunk_s = WHOLE
                whole = encoder.embed(long, layers)
                encoder.chunk_s = 1.3
                off = difference(encoder.embed(long, layers), whole)
                checks.append(at_most(f"{name}, {p}: chunks against whole", off, limit))
                encoder.chunk_s = WHOLE
                together = encoder.embed(batch, layers)
                alone = np.concatenate([encoder.embed(x[None], layers) for x in batch])
                again = encoder.embed(batch, layers)
            finally:
                encoder.chunk_s = kept
            off = difference(together, alone)
            checks.append(at_most(f"{name}, {p}: batch against single", off, limit))
            off = difference(again, together)
            checks.append(at_most(f"{name}, {p}: the same twice", off, 0.0))
            record(checks=checks)


def overflow(bench: Bench, record) -> None:
    """A front end whose numbers overflow in half precision: the batch is redone in float32."""
    checks = []
    audio = segments(2, 2)
    for p in bench.halves:
        half = bench.encoder("muq-nano", p, memory_budget=2_000_000_000)  # one to spoil
        with torch.no_grad():  # of the half-precision copy; bf16 reaches as far as float32
            half.model.frontend.linear.weight.mul_(1e4 if p == "fp16" else 3e38)
        out = half.embed(audio, [half.n_layers])
        off = difference(out, bench.encoder("muq-nano", "no").embed(audio, [half.n_layers]))
        checks.append(at_most(f"{p}: overflow, against float32", off, EXACT))
        checks.append(at_least(f"{p}: batches redone in float32", half.redone, 1))
        record(checks=checks)


def out_of_memory(bench: Bench, record) -> None:
    """Too little memory for a batch, then for a front end's chunk: both halve, and go on."""
    forget_encoders()  # graphs of earlier steps hold memory that no peak below counts
    on_gpu = bench.device.type == "cuda"  # a cap needs peaks that are apart, muq-nano's too
    n, duration_s = 48, 10.0 if on_gpu else bench.seconds(10, 1)
    n_samples = round(duration_s * SAMPLE_RATE)
    track = np.concatenate(segments(n, duration_s))
    spans = [(i * n_samples, (i + 1) * n_samples) for i in range(n)]
    encoder = copy.copy(bench.encoder(bench.large, bench.halves[0]))
    encoder.graphs = None  # they are dropped for good when memory runs out
    layers = [encoder.n_layers]

    def encode(size):
        return encode_segments(track, spans, encoder, layers, None, size * duration_s)[0]

    expected = encode(1)
    with short_of_memory(bench, encoder, lambda: encode(3), lambda: encode(n), (4, WHOLE)) as tried:
        lowest = cosines(encode(n), expected).min()
    checks = [
        at_least("halved batches: cosine to single segments", lowest, MIN_COSINE),
        at_least("sizes of batches tried", len(set(tried)), 2, sizes=list(dict.fromkeys(tried))),
    ]
    record(checks=checks)

    def whole(chunk_s):
        encoder.chunk_s = chunk_s
        return encode_segments(track[:long], [(0, long)], encoder, layers)[0]

    long, long_s = 4 * n_samples, 4 * duration_s
    expected, quarter_s = whole(WHOLE), 1.2 * duration_s
    with short_of_memory(
        bench, encoder, lambda: whole(quarter_s), lambda: whole(long_s), (1, quarter_s)
    ):
        lowest = cosines(whole(long_s), expected).min()
    checks += [
        at_least("halved chunks: cosine to the whole", lowest, MIN_COSINE),
        at_most("seconds of a chunk afterwards", encoder.chunk_s, long_s / 2, before=long_s),
    ]
    record(checks=checks)


@contextlib.contextmanager
def short_of_memory(bench: Bench, encoder, enough, too_much, most):
    """Cap the GPU's memory between the peaks of two runs; give the list of batches tried inside.

    Parameters
    ----------
    enough, too_much : functions that run what must fit, and what must not
    most : on a CPU, whose memory can't be capped, the batch and the chunk in seconds above which
        the forward raises the error itself
    """
    tried, states = [], encoder.states
    caps = bench.device.type == "cuda"
    if caps:
        total = torch.cuda.get_device_properties(bench.device).total_memory
        cap = (allocated_peak(enough) + allocated_peak(too_much)) / 2

    def noted(audio, layers, dtype):
        tried.append(len(audio))
        seconds = min(encoder.chunk_s, audio.shape[1] / SAMPLE_RATE)
        if not caps and (len(audio) > most[0] or seconds > most[1]):
            raise torch.OutOfMemoryError("out of memory, made up for the rehearsal")
        return states(audio, layers, dtype)

    encoder.states = noted
    try:
        if caps:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(cap / total)
        yield tried
    finally:
        del encoder.states
        if caps:
            torch.cuda.set_per_process_memory_fraction(1.0)


def allocated_peak(run) -> int:
    """Bytes that are allocated on the GPU at most while something runs."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def rows(bench: Bench, record) -> None:
    """Rows of the store made on the GPU against the CPU's, from the same files."""
    checks, n = [], 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / f"{i}.flac") for i in range(n)]
        for i, path in enumerate(paths):
            soundfile.write(path, music(bench.seconds(25, 4), seed=i), SAMPLE_RATE)
        for encoder_name in ("muq-nano", bench.large):
            devices = {bench.device.type: bench.device, "cpu": torch.device("cpu")}
            some = paths if encoder_name == "muq-nano" else paths[:1]  # MuQ-large takes a CPU long
            rule, found = parse_rule("10"), {}
            for kind, device in devices.items():
                encoder = bench.encoder(encoder_name, "no", device)
                store = Store(folder / f"store-{encoder_name}-{kind}")
                collection = store.collection(encoder, [encoder.n_layers], None)
                report = encode_tracks(some, encoder, rule, store, collection)
                found[kind] = [collection.read(*report.rows[path]).tokens for path in some]
            expected = found.pop("cpu")
            for kind, got in (found or {"cpu": expected}).items():
                off = max(difference(a, b) for a, b in zip(got, expected, strict=True))
                checks.append(at_most(f"{encoder_name}: rows of {kind} against cpu", off, EXACT))
                record(checks=checks)


def shared(bench: Bench, record) -> None:
    """Rows whose tracks shared batches against rows whose tracks didn't, from the same files."""
    checks, lengths = [], (25, 30, 12, 30, 40, 30, 10, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / f"{i}.flac") for i in range(len(lengths))]
        for i, (path, length) in enumerate(zip(paths, lengths, strict=True)):
            soundfile.write(path, music(bench.seconds(length, length / 8), seed=i), SAMPLE_RATE)
        rule = parse_rule("10" if not bench.rehearse else "1", min_tail_s=0.5)
        for p in ("no", *bench.halves):
            encoder, found = bench.encoder(bench.large, p), {}
            layers = list(range(encoder.n_layers + 1))
            for together in (False, True):
                store = Store(folder / f"store-{p}-{together}")
                collection = store.collection(encoder, layers, None)
                report = encode_tracks(
                    paths, encoder, rule, store, collection, share_batches=together
                )
                found[together] = [collection.read(*report.rows[path]) for path in paths]
            lowest = min(
                cosines(a.tokens, b.tokens).min()
                for a, b in zip(found[True], found[False], strict=True)
            )
            checks.append(
                at_least(f"{p}: shared batches, cosine to a track's own", lowest, 0.99999)
            )
            record(checks=checks)
