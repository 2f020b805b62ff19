"""Measure the cost of one strategy in a subprocess.

A process of its own, because memory that another strategy used and gave back would hide what this
one needs. The child loads the encoder, warms up, notes what is at rest, encodes the track once
untimed and `repeats` times timed (decode, cut, encode, join: train_probe.py's own functions) and
writes its report. Peak memory is, on a GPU, what PyTorch allocated at most; on a CPU, the weights
and the largest rise of resident memory above the resting process. Aggregators that learn have
random weights: the cost of joining doesn't depend on them.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tune.aggregators.registry import find_row
from tune.segments.pick import PickedSpans, pick_row, pick_spans, read_pick
from tune.segments.rules import Rule, is_degenerate, parse_rule
from tune.system.memory import peak_memory
from tune.system.signals import block_signals

ROOT = Path(__file__).resolve().parents[2]
WARM_UP_S = 1.0
STAGES = ("decode", "cut", "encode", "join")  # of a track, in order
SEED = 1234
# The root goes to the path's end: before the standard library, our profile.py would stand in.
CHILD = """\
import signal, sys
sys.path.append(sys.argv[1])
from tune.system.signals import unblock_signals
unblock_signals(signal.SIG_DFL)  # Ctrl-C: the parent says what there is to say
from tune.profiling.measure import child
child()
"""


@dataclass(frozen=True)
class ProfileConfig:
    """One strategy on one machine.

    Attributes
    ----------
    seg, agg, layer, encoder, weights : as on the command line; with the aggregator hierarchical
        `seg` holds several, such as "10+30+full"
    duration_s : seconds of the track of noise that is encoded; None with `audio`
    precision : "no", "fp16" or "bf16"
    device : "cpu", "cuda", ...
    batch_seconds : audio seconds of one encoder batch
    memory_budget : bytes for `load_encoder`; None is its default
    audio : files to decode and encode instead of noise
    frame_rate : pooled frames a second to be joined; None joins one vector a segment
    aggregator_checkpoint : the Transformer to join with; None is one of the recipe `tune` with
        random weights
    use_seconds, pick : how many seconds of a track, and which (`tune.segments.pick`)
    fusion : "early", or "late": the segments' embeddings aren't joined; all are kept, since the
        probe's outputs are averaged
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
    frame_rate: float | None = None
    aggregator_checkpoint: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    use_seconds: float | None = None
    pick: str | None = None
    fusion: str = "early"

    @property
    def rules(self) -> list[Rule]:
        """The segment rules: one, or one a scale."""
        pick = read_pick(self.use_seconds, self.pick)
        return [parse_rule(seg, pick=pick) for seg in self.segs]

    @property
    def segs(self) -> list[str]:
        """Their names."""
        return self.seg.split("+") if find_row(self.agg).several_segs else [self.seg]


def measure(config: ProfileConfig, repeats: int = 3) -> dict:
    """Measure a strategy in a child process.

    Parameters
    ----------
    config : what to measure
    repeats : tracks (or passes over the files) timed, at least 1

    Returns
    -------
    dict
        As `measure_here` returns; or {"failed": reason} when it didn't fit into memory.

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
        job = json.dumps({"config": asdict(config), "repeats": repeats})
        with block_signals():
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
        with process:
            try:
                process.communicate(job)
            except BaseException:
                process.kill()
                raise
        if report.exists():
            found = json.loads(report.read_text(encoding="utf-8"))
        elif process.returncode == -getattr(signal, "SIGKILL", 9):
            return {"failed": "killed by the system, most likely out of memory"}
        else:
            raise RuntimeError(
                f"measuring {config} failed with code {process.returncode}, see above"
            )
    if "error" in found:
        raise ValueError(found["error"])
    return found


def child() -> None:
    """Measure the strategy described on stdin and write the report to the path in sys.argv[2]."""
    import torch

    from tune.cli.parser import raised_by_us

    job = json.load(sys.stdin)
    try:
        found = measure_here(ProfileConfig(**job["config"]), job["repeats"])
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


def measure_here(config: ProfileConfig, repeats: int) -> dict:
    """Measure a strategy in this process.

    Returns
    -------
    dict
        Of a track: seconds_per_track (median over the repeats; decoding, cutting, encoding and
        joining), seconds_per_track_min, seconds_per_track_max, decode_seconds, cut_seconds,
        encode_seconds and join_seconds (medians; within the former), duration_s, audio_seconds
        (that went through the encoder), encoder_passes, store_bytes, flops of the encoder (None
        for one that isn't MuQ). Rates: audio_seconds_per_second, and flops_per_second while
        encoding. Of the whole: embedding_dim, aggregator_parameters, peak_memory_bytes and its
        kind, weights_bytes (encoder and aggregator), peak_reserved_bytes (GPU) or
        peak_resident_bytes (CPU), segments_per_track (of all scales), degenerate,
        redone_in_float32, encoder_untrained, muq_large.
    """
    from tune.encoders.cuda_graphs import RECORD_AT
    from tune.store.extractor import Extractor

    rules = config.rules
    extractor = Extractor(  # its store is never opened
        config.encoder,
        rules,
        config.layer,
        frame_rate=config.frame_rate,
        device=config.device,
        precision=config.precision,
        memory_budget=config.memory_budget,
        weights=config.weights,
        compile=config.compile,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    encoder, layers = extractor.encoder, extractor.layers
    aggregator = make_aggregator(config, encoder)
    model = aggregator.model or aggregator.pooling
    sources = config.audio or [_noise(config.duration_s, encoder.sample_rate)]
    warm_up_s = min(WARM_UP_S, encoder.max_seconds or WARM_UP_S)
    short = [_noise(max(warm_up_s, encoder.min_seconds), encoder.sample_rate)]
    for rule in rules:
        if rule.needs_audio:
            _warm_up_cutting(rule, encoder.sample_rate)
    # The compiler's own memory isn't the strategy's, so it gets to see the full size first.
    _run(sources if config.compile else short, encoder, layers, rules, aggregator, config)
    passes, redone = encoder.passes, encoder.redone
    with peak_memory(encoder, model) as peak:
        # The first run at full size sets up kernels and memory pages, the first few record CUDA
        # graphs: they count for the peak only.
        untimed = RECORD_AT if encoder.graphs else 1
        given = (sources, encoder, layers, rules, aggregator, config)
        runs = [_run(*given) for _ in range(repeats + untimed)][untimed:]
    passes, redone = encoder.passes - passes, encoder.redone - redone
    return {
        **_times(runs, len(sources), encoder, max(layers)),
        "degenerate": _degenerate(rules, [track["counts"] for track in runs[0]["tracks"]]),
        **peak,
        "aggregator_parameters": 0 if model is None else sum(p.numel() for p in model.parameters()),
        "encoder_passes": passes / (repeats + untimed) / len(sources),
        "redone_in_float32": redone / (repeats + untimed) / len(sources),
        "encoder_untrained": encoder.untrained,
        "muq_large": (encoder.n_layers, encoder.embedding_dim) == (12, 1024),
    }


def _times(runs: Sequence[dict], n: int, encoder, layer: int) -> dict:
    """Times and sizes of a track, from runs over n tracks."""
    from tune.segments.rules import describe_counts

    tracks = runs[0]["tracks"]
    each = [sum(run[stage] for stage in STAGES) / n for run in runs]
    stages = {f"{s}_seconds": statistics.median(run[s] for run in runs) / n for s in STAGES}
    spans = [span for track in tracks for span in track["spans"]]
    audio_s = sum(end - start for start, end in spans) / encoder.sample_rate / n
    flops = _flops(encoder, layer, spans)
    return {
        "duration_s": sum(track["n_samples"] for track in tracks) / encoder.sample_rate / n,
        "n_tracks": n,
        "segments_per_track": describe_counts([sum(track["counts"]) for track in tracks]),
        "seconds_per_track": statistics.median(each),
        "seconds_per_track_min": min(each),
        "seconds_per_track_max": max(each),
        **stages,
        "audio_seconds": audio_s,
        "audio_seconds_per_second": audio_s / statistics.median(each),
        "embedding_dim": tracks[0]["embedding_dim"],
        "store_bytes": sum(track["store_bytes"] for track in tracks) / n,
        "flops": None if flops is None else flops / n,
        "flops_per_second": None if flops is None else flops / n / stages["encode_seconds"],
    }


def make_aggregator(config: ProfileConfig, encoder):
    """The aggregator with random weights (`tune.aggregators.TrackAggregator`), or a checkpoint's.

    Raises
    ------
    ValueError
        When the checkpoint of a Transformer can't be loaded, or takes other tokens.
    """
    from tune.aggregators.track_aggregator import TrackAggregator
    from tune.encoders.base import resolve_layers

    rate = config.frame_rate
    pretrained = find_row(config.agg).pretrained
    mixed = (
        len(resolve_layers(config.layer, encoder.n_layers, encoder.first_layer))
        if config.layer == "mix"
        else None
    )
    return TrackAggregator.untrained(
        config.agg,
        config.segs,
        size=encoder.embedding_dim,
        device=encoder.device,
        n_layers=None if pretrained else mixed,
        seed=SEED,
        sample_rate=encoder.sample_rate,
        window_s=encoder.pool_width(rate) / encoder.frame_rate if rate else None,
        model=_transformer(config, encoder).to(encoder.device) if pretrained else None,
    )


def join(aggregator, rows: Sequence) -> list:
    """A track's embeddings, one a layer; as many tokens are joined as the track has."""
    aggregator.n_tokens = len(rows[0].tokens)
    return aggregator.join(rows)[0]


def _transformer(config, encoder):
    """The Transformer aggregator: the checkpoint's, or the recipe `tune` with random weights."""
    from tune.aggregators.transformer.checkpoint import load_aggregator
    from tune.aggregators.transformer.recipes import TUNE, make_config, make_model

    name, size = config.aggregator_checkpoint, encoder.embedding_dim
    if name is None:
        return make_model(make_config(TUNE, size), SEED, None).eval().requires_grad_(False)
    model = load_aggregator(name)
    if model.config.input_size != size:
        raise ValueError(
            f"--aggregator_checkpoint {name} joins tokens of {model.config.input_size} values "
            f"(of {model.config.encoder}), those of {encoder.name} have {size}"
        )
    tokens = "segment" if config.frame_rate is None else f"frame at {config.frame_rate:g} Hz"
    if model.config.tokens not in (None, tokens):
        raise ValueError(
            f"--aggregator_checkpoint {name} joins the tokens {model.config.tokens!r}, not "
            f"{tokens!r}: --tokens and --frame_rate choose them"
        )
    return model


def _run(sources, encoder, layers, rules, aggregator, config) -> dict:
    """Decode, cut, encode and join every track once; time it, the looks at the results apart."""
    from tune.store.collection import Row
    from tune.store.encode import encode_segments

    seconds = dict.fromkeys(STAGES, 0.0)
    tracks = []
    for source in sources:
        lap = time.perf_counter()

        def done(stage):
            nonlocal lap
            now = time.perf_counter()
            seconds[stage] += now - lap
            lap = now

        samples = _read(source, encoder.sample_rate)
        done("decode")
        rate = encoder.sample_rate
        cuts = [tuple(pick_spans(rule, rule.cut(samples, rate), rate)) for rule in rules]
        done("cut")
        rows = {}
        for spans in dict.fromkeys(cuts):  # scales that cut alike share a row, as in the store
            tokens, counts = encode_segments(
                samples, spans, encoder, layers, config.frame_rate, config.batch_seconds
            )
            rows[spans] = Row(tokens, list(spans), counts, False, 0.0)
        done("encode")
        used = [_used(rule, rows[spans], rate) for rule, spans in zip(rules, cuts, strict=True)]
        if config.fusion == "late":
            embedding_dim = used[0].tokens[:, 0].size
        else:
            embedding_dim = len(join(aggregator, used)[0])
        done("join")
        tracks.append(
            {
                "n_samples": len(samples),
                "counts": [len(row.spans) for row in used],
                "spans": [span for spans in rows for span in spans],
                "embedding_dim": embedding_dim,
                "store_bytes": sum(_store_bytes(row, len(samples)) for row in rows.values()),
            }
        )
    return {**seconds, "tracks": tracks}


def _used(rule, row, sample_rate: int):
    """A row's central segments where these are asked for; all are encoded to find them."""
    if rule.pick is None or rule.pick.how != "central":
        return row
    spans = rule.pick.choose_central(row, sample_rate, even=not rule.needs_audio)
    return pick_row(row, spans) if isinstance(spans, PickedSpans) else row


def _read(source, sample_rate):
    """A track's samples: decoded, or as they are."""
    from tune.audio.decode import AudioError, read_audio

    if not isinstance(source, str):
        return source
    try:
        return read_audio(source, sample_rate)
    except AudioError as error:
        raise ValueError(f"{source}: {error}") from error


def _degenerate(rules, counts) -> str | None:
    """Say so when no rule cuts any track; `counts` are segments by track and rule."""
    by_rule = zip(rules, zip(*counts, strict=True), strict=True)
    alike = all(rule.name == "full" or is_degenerate(rule, part) for rule, part in by_rule)
    return "equals full" if alike and any(rule.name != "full" for rule in rules) else None


def _warm_up_cutting(rule, sample_rate) -> None:
    """Cut once by the sound: the libraries that this imports are no part of a track's peak."""
    noise = _noise(3 * rule.min_s, sample_rate)
    noise[len(noise) // 2 :] *= 0.1  # a change to be found, or the search for it is left out
    rule.cut(noise, sample_rate)


def _noise(seconds: float, sample_rate: int):
    """Quiet white noise, always the same: the cost of encoding doesn't depend on the sound."""
    import numpy as np

    noise = np.random.default_rng(SEED).standard_normal(round(seconds * sample_rate), np.float32)
    return noise * np.float32(0.1)


def _store_bytes(row, n_samples) -> int:
    """Size of the track's row, by writing it into a store that is thrown away."""
    from tune.store.collection import Collection

    with tempfile.TemporaryDirectory() as folder:
        collection = Collection(Path(folder), Path(folder), None, {}, [])
        collection.write("0" * 64, n_samples, row)
        return collection.bytes_of("0" * 64, row.spans)


def _flops(encoder, layer, spans) -> float | None:
    """Arithmetic of all segments; None for an encoder that isn't MuQ."""
    from tune.encoders.muq import MuQEncoder
    from tune.profiling.arithmetic import muq_flops

    if not isinstance(encoder, MuQEncoder):
        return None
    return sum(muq_flops(encoder, end - start, layer) for start, end in spans)
