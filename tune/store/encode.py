"""From files to rows of the store: decode, cut, encode, write, one track at a time.

A batch never holds segments of two tracks or of two lengths, so a track's row does not depend, by
a single bit, on which other tracks are encoded, in which order, or by how many processes. While
one track is encoded the next ones are decoded in threads; memory holds a few tracks, whatever
the size of the data set.
"""

import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from tune.audio import decode as audio
from tune.audio.decode import AudioError, is_silent, read_header
from tune.encoders.base import Encoder, NonFiniteError
from tune.segments.rules import Rule
from tune.store import spot_check
from tune.store.store import Collection, Row, Store
from tune.system.memory import is_out_of_memory, peak_memory_bytes, warn_if_low

log = logging.getLogger(__name__)

# Decoding and resampling release the interpreter's lock; the other half of the cores is left to
# the encoder.
DECODE_THREADS = min(8, max(1, (os.cpu_count() or 1) // 2))
SPARE = 2  # tracks decoded ahead, besides one in each thread
WAIT_S = 0.5  # between two looks at a track that another process is encoding


@dataclass
class EncodeReport:
    """What `encode_tracks` did.

    Attributes
    ----------
    rows : dict, path -> (content, spans)
        Where each usable track's row is.
    skipped : list of {"path", "reason"}
    silent : list of paths that are digital silence
    warned : list of {"path", "reason"}
        What is odd about files that were used all the same, such as channels that cancel.
    encoded_tracks, encoder_passes, redone : int
        Tracks and segments encoded now (0 when all were stored), batches redone in float32.
    encode_seconds, audio_seconds : float
        Time in the encoder, and seconds of audio that went through it.
    stored_seconds : float
        What encoding all the rows took, whenever that was: the strategy's cost, also when stored.
    stored_peak_bytes : int
        Peak memory of a process while it encoded them, whenever that was; 0 when not known.
    damaged : list of rows whose checksum was wrong and that were encoded again
    """

    rows: dict = field(default_factory=dict)
    skipped: list = field(default_factory=list)
    silent: list = field(default_factory=list)
    warned: list = field(default_factory=list)
    encoded_tracks: int = 0
    encoder_passes: int = 0
    redone: int = 0
    encode_seconds: float = 0.0
    audio_seconds: float = 0.0
    stored_seconds: float = 0.0
    stored_peak_bytes: int = 0
    damaged: list = field(default_factory=list)

    @classmethod
    def merged(cls, reports: Sequence["EncodeReport"]) -> "EncodeReport":
        """Add up the reports of several processes."""
        out = cls()
        for report in reports:
            for item in fields(cls):
                value, more = getattr(out, item.name), getattr(report, item.name)
                both = {**value, **more} if isinstance(value, dict) else value + more
                setattr(out, item.name, max(value, more) if "peak" in item.name else both)
        return out


def encode_tracks(
    paths: Sequence[str],
    encoder: Encoder,
    rule: Rule,
    store: Store,
    collection: Collection,
    *,
    frame_rate: float | None = None,
    batch_seconds: float = 60.0,
    strict: bool = False,
    on_track: Callable[[str], None] = lambda path: None,
) -> EncodeReport:
    """Make sure that every usable track has its row in the store.

    Parameters
    ----------
    paths : audio files; duplicates are encoded once
    rule : how tracks are cut
    frame_rate : float, optional
        Store this many pooled frames a second instead of one vector a segment.
    batch_seconds : float
        Audio seconds of one encoder batch (at least one segment); halves itself on out-of-memory.
    strict : bool
        Raise at the first unusable file instead of reporting and skipping it.
    on_track : called with each path that is done, for progress

    Raises
    ------
    ValueError
        When `strict` and a file is unusable; when hidden states are not finite in float32; when
        a piece is longer than the encoder takes (found before anything is encoded); or when an
        encoder with code of its own no longer reproduces its stored rows.
    """
    check_lengths(rule, encoder, paths)
    passes, redone = encoder.passes, encoder.redone
    done = _Done(strict, on_track)
    pending: deque[tuple[str, str]] = deque()
    for path in dict.fromkeys(paths):
        try:
            content = store.content(path)
        except AudioError as error:
            done.skip(path, str(error))
            continue
        if collection.older and audio.is_decoded_as_before(path):
            _adopt(store, collection, encoder, rule, content)
        stored = _stored(store, collection, encoder, rule, content)
        if stored is None:
            pending.append((path, content))
        else:
            done.finish(path, content, *stored)
            if not stored[1].silent and spot_check.is_due(encoder, collection):
                spot_check.compare_row(
                    path, stored[1], encoder, collection, encode_segments, frame_rate
                )
    if pending:
        warn_if_low(encoder.device, encoder.expected_bytes(batch_seconds))

    def decode(path, content):
        return _decode(path, content, encoder, rule, store, collection)

    for path, content, decoded, lock in _claimed(pending, store, decode):
        try:
            stored = _stored(store, collection, encoder, rule, content)
            if stored is not None:  # another process was quicker, or the same audio came twice
                done.finish(path, content, *stored)
                continue
            sound, spans = decoded.result()
            row = collection.read(content, spans)
            if row is None:  # else it's cut by its sound, and another rule had cut it alike
                row = done.encode(
                    sound, spans, encoder, collection.layers, frame_rate, batch_seconds
                )
                collection.write(content, len(sound.samples), row)
            done.finish(path, content, spans, row)
        except AudioError as error:
            done.skip(path, str(error))
        except NonFiniteError as error:
            raise ValueError(f"{path}: {error}") from error
        finally:
            lock.release()
    if done.report.encoded_tracks:
        collection.pack_when_many()
    done.report.encoder_passes = encoder.passes - passes
    done.report.redone = encoder.redone - redone
    done.report.damaged = list(collection.damaged)
    return done.report


class _Done:
    """The report of `encode_tracks`, while it is at work."""

    def __init__(self, strict: bool, on_track: Callable[[str], None]):
        self.report, self.strict, self.on_track = EncodeReport(), strict, on_track

    def finish(self, path: str, content: str, spans, row: Row) -> None:
        """Note where a track's row is."""
        self.report.rows[path] = (content, spans)
        self.report.stored_seconds += row.seconds
        self.report.stored_peak_bytes = max(self.report.stored_peak_bytes, row.peak_bytes)
        if row.silent:
            log.warning("%s is digital silence: it was encoded all the same", path)
            self.report.silent.append(path)
        for note in row.notes:
            log.warning("%s: %s", path, note)
            self.report.warned.append({"path": path, "reason": note})
        self.on_track(path)

    def skip(self, path: str, reason: str) -> None:
        """Note a file that can't be used."""
        if self.strict:
            raise ValueError(f"{path}: {reason}")
        log.warning("skipped %s: %s", path, reason)
        self.report.skipped.append({"path": path, "reason": reason})
        self.on_track(path)

    def encode(self, sound: audio.Sound, spans, encoder: Encoder, *settings) -> Row:
        """Encode a track, and note what that took; `settings` are `encode_segments`'s."""
        started = time.perf_counter()
        tokens, counts = encode_segments(sound.samples, spans, encoder, *settings)
        seconds = round(time.perf_counter() - started, 6)  # as the row keeps it
        self.report.encode_seconds += seconds
        self.report.audio_seconds += sum(end - start for start, end in spans) / encoder.sample_rate
        self.report.encoded_tracks += 1
        peak = peak_memory_bytes(encoder.device)
        silent = is_silent(sound.samples)
        return Row(tokens, spans, counts, silent, seconds, peak, sound.notes)


def _decode(path, content, encoder, rule, store, collection) -> tuple[audio.Sound, list]:
    """A track and its spans; raises AudioError when its length doesn't suit the encoder."""
    sound = audio.decode(path, encoder.sample_rate, channels=collection.key["channels"])
    samples = sound.samples
    seconds = len(samples) / encoder.sample_rate
    if seconds < encoder.min_seconds:
        raise AudioError(
            f"too short: {len(samples)} samples ({seconds:.4f} s); "
            f"the encoder needs {encoder.min_seconds:g} s"
        )
    if rule.name == "full" and encoder.is_too_long(len(samples)):  # its header said otherwise
        raise AudioError(
            f"too long: {seconds:.4g} s; {encoder.name} takes at most {encoder.max_seconds:.4g}"
        )
    return sound, _cut(store, collection, rule, content, samples, encoder.sample_rate)


def check_lengths(rule: Rule, encoder: Encoder, paths: Sequence[str] = ()) -> None:
    """Raise ValueError when the rule makes pieces longer than the encoder takes.

    Parameters
    ----------
    paths : for full tracks, whose lengths are read off their headers
    """
    if encoder.max_seconds is None:
        return
    limit = f"{encoder.name} takes at most {encoder.max_seconds:.4g} s at once"
    flag, longest = ("--max_seg", rule.max_s) if rule.needs_audio else ("--seg", rule.length_s)
    if rule.needs_audio:
        longest = max(longest, 2 * rule.min_s)  # as the rule itself says
    if longest is not None and encoder.is_too_long(round(longest * encoder.sample_rate)):
        raise ValueError(f"{flag} {longest:g}: {limit}")
    for path in paths if longest is None else ():
        seconds = _header_seconds(path)
        if seconds is not None and encoder.is_too_long(int(seconds * encoder.sample_rate)):
            raise ValueError(
                f"--seg full: {path} has {seconds:.4g} s, {limit}: cut it into shorter --seg"
            )


def encode_shared(
    accelerator: Accelerator, paths: Sequence[str], encode: Callable[..., EncodeReport], rule: Rule
) -> EncodeReport:
    """Encode on all processes, each its share of the tracks, and return everybody's report.

    Shows a progress bar on the main process. An error of one process is raised on all of them, so
    that none waits for the others.

    Parameters
    ----------
    encode : `encode(rule, paths, on_track=...)` is `encode_tracks` with the rest of what it needs
    """
    mine = list(dict.fromkeys(paths))[accelerator.process_index :: accelerator.num_processes]
    report, failure = None, None
    with tqdm(
        total=len(mine),
        desc="encode",
        unit="track",
        leave=False,
        dynamic_ncols=True,
        disable=not accelerator.is_main_process,
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
    ) as bar:
        try:
            report = encode(rule, mine, on_track=lambda path: bar.update())
        except (ValueError, OSError) as error:
            failure = error
    shares = gather_object([(report, str(failure) if failure else None)])
    if failure:
        raise failure
    for _, message in shares:
        if message:
            raise ValueError(message)
    return EncodeReport.merged([share for share, _ in shares])


def check_rules_fit(
    rules: Sequence[Rule], frame_rate: float | None, encoder: Encoder, layers: Sequence[int] = ()
) -> None:
    """Raise when the encoder can't take the rules' pieces, the frame rate or these layers."""
    if layers:
        encoder.check_layers(layers)
    for rule in rules:
        lengths = {
            "--min_tail": rule.min_tail_s,
            "--seg": rule.length_s,
            "--min_seg": getattr(rule, "min_s", None),
        }
        for flag, value in lengths.items():
            if value is not None and value < encoder.min_seconds:
                most = encoder.max_seconds
                takes = f"takes {encoder.min_seconds:g} to {most:g} s at once" if most else ""
                raise ValueError(
                    f"{flag} {value:g}: {encoder.name} "
                    f"{takes or f'needs at least {encoder.min_seconds:g} s'}"
                )
        check_lengths(rule, encoder)
    if frame_rate is not None:
        encoder.pool_width(frame_rate)


def encode_segments(
    samples: np.ndarray,
    spans: Sequence[tuple[int, int]],
    encoder: Encoder,
    layers: Sequence[int],
    frame_rate: float | None = None,
    batch_seconds: float = 60.0,
) -> tuple[np.ndarray, list[int]]:
    """Encode one track's segments, each at its own length.

    Parameters
    ----------
    samples : ndarray of float32, shape (n_samples,)
    spans : the segments' bounds in samples; what lies beyond the track is zeros

    Returns
    -------
    tokens : ndarray of float32, shape (N, L, D)
        In the order of the spans; with `frame_rate`, several tokens a segment.
    counts : list of int
        Tokens of each segment.
    """
    beyond = max(end for _, end in spans) - len(samples)
    if beyond > 0:
        samples = np.pad(samples, (0, beyond))
    per_segment: list[np.ndarray | None] = [None] * len(spans)
    lengths: dict[int, list[int]] = {}
    for i, (start, end) in enumerate(spans):
        lengths.setdefault(end - start, []).append(i)
    for length, members in lengths.items():
        size = max(1, int(batch_seconds * encoder.sample_rate / length))
        at = 0
        while at < len(members):
            batch = members[at : at + size]
            try:
                audio = np.stack([samples[slice(*spans[i])] for i in batch])
                pooled = encoder.embed(audio, layers, frame_rate)  # (B, P, L, D)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1 and not encoder.shrink():
                    raise ValueError(
                        f"a segment of {length / encoder.sample_rate:.1f} s does not fit into the "
                        f"device's memory: use a shorter --seg or --mixed_precision fp16"
                    ) from error
                if size > 1:
                    size = max(1, min(size, len(batch)) // 2)
                    log.warning("out of memory: going on with %d segments a batch", size)
                if encoder.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            for i, tokens in zip(batch, pooled, strict=True):
                per_segment[i] = tokens
            at += len(batch)
    return np.concatenate(per_segment), [len(tokens) for tokens in per_segment]


def _header_seconds(path) -> float | None:
    """Length of a file by its header; None where that can't be read: decoding will say why."""
    try:
        seconds = read_header(path).seconds
    except AudioError:
        return None
    return None if math.isnan(seconds) else seconds


def _stored(store, collection, encoder, rule, content) -> tuple[list, Row] | None:
    """A track's spans and row when the store has them; nothing is decoded for it."""
    if rule.needs_audio:
        cut = {**rule.key(), **collection.decoding}
        spans = store.read_boundaries(content, cut, encoder.sample_rate)
    else:
        n_samples = collection.length(content)
        spans = None if n_samples is None else rule.spans(n_samples, encoder.sample_rate)
    row = None if spans is None else collection.read(content, spans)
    return None if row is None else (spans, row)


def _adopt(store, collection, encoder, rule, content) -> None:
    """Take over what an older decoder's samples gave, of a file that it decoded alike."""
    collection.adopt(content)
    if rule.needs_audio:
        cut, rate = {**rule.key(), **collection.decoding}, encoder.sample_rate
        spans = store.read_boundaries(content, rule.key(), rate)
        if spans is not None and store.read_boundaries(content, cut, rate) is None:
            store.write_boundaries(content, cut, rate, spans)


def _cut(store, collection, rule, content, samples, sample_rate) -> list[tuple[int, int]]:
    """Cut a decoded track; boundaries that follow from the sound are found once and kept."""
    if not rule.needs_audio:
        return rule.cut(samples, sample_rate)
    key = {**rule.key(), **collection.decoding}
    spans = store.read_boundaries(content, key, sample_rate)
    if spans is None or spans[-1][1] != len(samples):  # another library, another length
        spans = rule.cut(samples, sample_rate)
        store.write_boundaries(content, key, sample_rate, spans)
    return spans


def _claimed(pending: deque, store: Store, decode) -> Iterator[tuple]:
    """Yield (path, content, future of what `decode` makes, lock) for tracks nobody is encoding.

    Tracks held by another process are put off and waited for at the end.
    """
    put_off: deque = deque()
    window: deque = deque()
    with ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode") as pool:
        try:
            while pending or window or put_off:
                while pending and len(window) < DECODE_THREADS + SPARE:
                    path, content = pending.popleft()
                    lock = store.claim(content)
                    if lock is None:
                        put_off.append((path, content))
                    else:
                        window.append((path, content, pool.submit(decode, path, content), lock))
                if window:
                    yield window.popleft()
                elif put_off:
                    path, content = put_off.popleft()
                    lock = store.claim(content, timeout_s=WAIT_S)
                    if lock is None:
                        put_off.append((path, content))
                    else:
                        yield path, content, pool.submit(decode, path, content), lock
        finally:
            for _, _, future, lock in window:
                future.cancel()
                lock.release()


def read_row(collection: Collection, path: str | Path, content: str, spans: Sequence) -> Row:
    """Read a row that `encode_tracks` reported; a row that has vanished since is an error."""
    row = collection.read(content, spans)
    if row is None:
        raise ValueError(f"the stored embedding of {path} has vanished: run the command again")
    return row
