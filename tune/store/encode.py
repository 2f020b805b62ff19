"""From files to rows of the store: hash, decode, cut, encode, write.

While some tracks are encoded the next ones are hashed and decoded in threads (of many files, each
with a process that decodes) and the last ones written in others; memory holds a few tracks,
whatever the size of the data set. On a CPU a batch never holds segments of two tracks, on a GPU it
does (`tune.store.batches`); segments of two lengths never meet, and nothing is padded.
"""

import itertools
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object

from tune.audio import decode as audio
from tune.audio.decode import AudioError, is_silent, read_header
from tune.audio.processes import DecodeProcesses
from tune.encoders.base import Encoder, NonFiniteError
from tune.segments.pick import pick_spans
from tune.segments.rules import Rule
from tune.store import spot_check
from tune.store.batches import BATCH_SECONDS, SharedBatches, encode_segments
from tune.store.collection import Collection, Row
from tune.store.look_ahead import SPARE, Claimed, Lookup, Share, claimed, look_up
from tune.store.store import Store
from tune.system.memory import peak_memory_bytes, warn_if_low
from tune.system.progress import progress_bar

log = logging.getLogger(__name__)

DECODE_THREADS = min(8, max(1, (os.cpu_count() or 1) // 2))  # the encoder has the other half
MANY_FILES = 4  # a thread: decoding them in processes is worth starting these
WRITERS = 4  # threads: a disk, or a server, flushes several rows at once
UNWRITTEN = 8  # rows that are being written, or wait for it
# For an Accelerator: a process that is done waits for the others, however long they take.
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(days=30))
_CALLS = itertools.count()  # of encode_shared: the same in all processes


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

    def in_order(self, positions: dict[str, int]) -> "EncodeReport":
        """The same, the tracks by their positions, whoever was done with them when."""
        self.rows = dict(sorted(self.rows.items(), key=lambda row: positions[row[0]]))
        self.silent.sort(key=positions.get)
        for odd in (self.skipped, self.warned):
            odd.sort(key=lambda track: positions[track["path"]])
        return self


def encode_tracks(
    paths: Sequence[str],
    encoder: Encoder,
    rule: Rule,
    store: Store,
    collection: Collection,
    *,
    frame_rate: float | None = None,
    batch_seconds: float | None = None,
    strict: bool = False,
    on_track: Callable[[str], None] = lambda path: None,
    share_batches: bool | None = None,
    decoder=None,
    share: Share | None = None,
) -> EncodeReport:
    """Make sure that every usable track has its row in the store.

    Parameters
    ----------
    paths : audio files; duplicates are encoded once
    rule : how tracks are cut
    frame_rate : float, optional
        Store this many pooled frames a second instead of one vector a segment.
    batch_seconds : float, optional
        Audio seconds of one encoder batch (at least one segment); halves itself on out-of-memory.
        None is 60, and in shared batches on a GPU as many as its memory holds.
    strict : bool
        Raise at the first unusable file instead of reporting and skipping it.
    on_track : called with each path that is done, for progress
    share_batches : bool, optional
        Whether segments of several tracks share batches; None: on a GPU (for tests).
    decoder : optional
        Gives files' samples by its `decode(path, sample_rate, channels=)`, a
        `tune.audio.decode.Sound`. None: `tune.audio.decode`, in processes when the files are many
        and there are cores for it.
    share : optional
        What this process does of the tracks, beside others; None: all.

    Raises
    ------
    ValueError
        When `strict` and a file is unusable; when hidden states are not finite in float32; when
        a piece is longer than the encoder takes (found before anything is encoded); or when an
        encoder with code of its own no longer reproduces its stored rows.
    """
    share = share or Share()
    paths = list(dict.fromkeys(paths))
    dealt = share.dealt(paths)
    check_lengths(rule, encoder, dealt)
    for path in dealt if strict else ():
        try:
            audio.check_file(path)
        except AudioError as error:
            raise ValueError(f"{path}: {error}") from error
    passes, redone = encoder.passes, encoder.redone
    lookup, done = Lookup(store, collection, encoder, rule), _Done(strict, on_track)
    n_threads = decode_threads(encoder.device)
    many = n_threads > 1 and MANY_FILES * n_threads <= len(dealt)
    # Of an encoder with code of its own all stored rows are found before anything is encoded.
    parts = Share().taken(dealt) if encoder.own_code else share.taken(paths)
    with (
        DecodeProcesses() if many and decoder is None else nullcontext(decoder or audio) as decoder,
        ThreadPoolExecutor(n_threads, thread_name_prefix="decode") as pool,
        _Writer(lookup, done) as writer,
    ):

        def not_stored():
            """Paths and contents of the tracks without a row."""
            warned = False
            for path, content, stored, reason in look_up(parts, lookup, pool):
                if reason is not None:
                    done.skip(path, reason)
                elif stored is not None:
                    done.finish(path, content, *stored)
                    if not stored[1].silent and spot_check.is_due(encoder, collection):
                        row = read_row(collection, path, content, stored[0])
                        spot_check.compare_row(
                            path, row, encoder, collection, encode_segments, frame_rate
                        )
                else:
                    if not warned:
                        needed = encoder.expected_bytes(batch_seconds or BATCH_SECONDS)
                        warn_if_low(encoder.device, needed)
                    warned = True
                    yield path, content

        todo = not_stored()
        if encoder.own_code:
            todo = iter(list(todo))

        def decode(path, content):
            return _decode(path, content, encoder, lookup, decoder)

        settings = (collection.layers, frame_rate, batch_seconds)
        shared = shares_batches(encoder) if share_batches is None else share_batches
        with closing(claimed(todo, store, decode, pool, n_threads + SPARE)) as tracks:
            encode = _encode_shared if shared else _encode_one_by_one
            encode(tracks, encoder, settings, writer, done)
    done.report.encoder_passes = encoder.passes - passes
    done.report.redone = encoder.redone - redone
    done.report.damaged = list(collection.damaged)
    return done.report


def decode_threads(device: torch.device) -> int:
    """Threads that decode: half of the cores beside an encoder on the CPU, all beside a GPU.

    Processes of one machine share them.
    """
    if device.type != "cuda":
        return DECODE_THREADS
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def shares_batches(encoder: Encoder) -> bool:
    """Whether segments of several tracks share batches: on a GPU."""
    return encoder.device.type == "cuda" and type(encoder).embed is Encoder.embed


def _encode_one_by_one(tracks, encoder, settings, writer, done) -> None:
    """Encode tracks, each on its own."""
    for track in tracks:
        writer.settle(None if track else 0)
        if track is None:
            continue
        sound = writer.take(track)
        if sound is None:
            continue
        samples, sound.samples = sound.samples, None  # not to be held until it's written
        try:
            started = time.perf_counter()
            tokens, counts = encode_segments(samples, sound.spans, encoder, *settings)
            took = time.perf_counter() - started
        except NonFiniteError as error:
            raise ValueError(f"{track.path}: {error}") from error
        writer.add(track, sound, done.encoded(sound, tokens, counts, took, encoder))


def _encode_shared(tracks, encoder, settings, writer, done) -> None:
    """Encode tracks in shared batches; one that can't be encoded costs no other its row."""
    failed = []

    def on_done(segments):
        track, sound = segments.track
        if segments.error:
            failed.append((track, segments.error))
            writer.release(track)
            return
        row = done.encoded(sound, segments.tokens, segments.counts, segments.seconds, encoder)
        writer.add(track, sound, row)

    layers, frame_rate, batch_seconds = settings
    batches = SharedBatches(encoder, layers, frame_rate, batch_seconds, on_done)
    for track in tracks:
        if track is None:
            batches.flush()
        writer.settle(None if track else 0)
        try:
            sound = track and writer.take(track)
        except ValueError:  # an unusable file, when strict
            batches.flush()
            raise
        if sound is not None:
            samples, sound.samples = sound.samples, None  # held by the batches alone
            batches.add((track, sound), samples, sound.spans)
        if failed:
            break
    batches.flush()
    if failed:
        track, error = failed[0]
        raise ValueError(f"{track.path}: {error}") from error


class _Writer:
    """Stores rows in threads of its own, and releases their tracks.

    Its context releases every track that it was given, however it ends.
    """

    def __init__(self, lookup: Lookup, done: "_Done"):
        self.lookup, self.done = lookup, done
        self.pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self.held: set[Claimed] = set()
        self.writing: deque = deque()

    def take(self, track: Claimed) -> "_Decoded | None":
        """Wait for a decoded track; None when it has a row by now, or can't be used."""
        self.held.add(track)
        try:
            decoded = track.decoded.result()
        except AudioError as error:
            self.release(track)
            self.done.skip(track.path, str(error))
            return None
        if decoded.row is None:
            return decoded
        self.release(track)
        self.done.finish(track.path, track.content, decoded.spans, decoded.row)
        return None

    def add(self, track: Claimed, sound: "_Decoded", row: Row) -> None:
        """Store a track's row; waits when there are many to be stored."""
        writing = self.pool.submit(self.lookup.write, track.content, sound.n_samples, row)
        self.writing.append((track, sound.spans, row, writing))
        self.settle(UNWRITTEN)

    def settle(self, at_most: int | None = None) -> None:
        """Report what is stored by now; wait until at most so many rows aren't."""
        most = len(self.writing) if at_most is None else at_most
        while self.writing and (len(self.writing) > most or self.writing[0][-1].done()):
            track, spans, row, writing = self.writing.popleft()
            writing.result()
            self.release(track)
            self.done.finish(track.path, track.content, spans, row)

    def release(self, track: Claimed) -> None:
        """Let other processes have a track."""
        self.held.discard(track)
        track.lock.release()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if error is None:
                self.settle(0)
        finally:
            self.pool.shutdown()  # what was encoded is stored, whatever happened
            for track in list(self.held):
                self.release(track)


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

    def encoded(self, sound: "_Decoded", tokens, counts, seconds: float, encoder) -> Row:
        """A track's row, made now; notes what that took."""
        seconds = round(seconds, 6)  # as the row keeps it
        self.report.encode_seconds += seconds
        self.report.audio_seconds += (
            sum(end - start for start, end in sound.spans) / encoder.sample_rate
        )
        self.report.encoded_tracks += 1
        peak = peak_memory_bytes(encoder.device)
        return Row(tokens, sound.spans, counts, sound.silent, seconds, peak, sound.notes)


@dataclass
class _Decoded:
    """A decoded track, or the row that it has by now."""

    samples: np.ndarray | None
    spans: list
    n_samples: int = 0
    silent: bool = False
    notes: tuple[str, ...] = ()
    row: Row | None = None


def _decode(path, content, encoder, lookup, decoder) -> _Decoded:
    """Decode and cut a track; raises AudioError when its length doesn't suit the encoder.

    Another process may have stored it since it was looked up, the same audio may have come twice,
    or, where the sound decides, another rule may have cut it alike: then there is a row.
    """
    stored = lookup.find(content)
    if stored is not None:
        return _Decoded(None, stored[0], row=stored[1])
    channels = lookup.collection.key["channels"]
    sound = decoder.decode(path, encoder.sample_rate, channels=channels)
    samples = sound.samples
    seconds = len(samples) / encoder.sample_rate
    if seconds < encoder.min_seconds:
        raise AudioError(
            f"too short: {len(samples)} samples ({seconds:.4f} s); "
            f"the encoder needs {encoder.min_seconds:g} s"
        )
    if lookup.rule.name == "full" and encoder.is_too_long(
        len(samples)
    ):  # its header said otherwise
        raise AudioError(
            f"too long: {seconds:.4g} s; {encoder.name} takes at most {encoder.max_seconds:.4g}"
        )
    spans = pick_spans(lookup.rule, lookup.cut(content, samples), encoder.sample_rate)
    row = lookup.read(content, spans)
    return _Decoded(samples, spans, len(samples), is_silent(samples), sound.notes, row)


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
    """Encode on all processes, each what it comes to, and return everybody's report.

    Shows a progress bar on the main process. An error of one process is raised on all of them, so
    that none waits for the others.

    Parameters
    ----------
    encode : `encode(rule, paths, on_track=..., share=...)` is `encode_tracks` with the rest of what
        it needs
    """
    positions = {path: i for i, path in enumerate(dict.fromkeys(paths), start=1)}
    share = Share(accelerator.process_index, accelerator.num_processes, _counts(accelerator))
    report, failure = None, None
    with progress_bar(
        total=len(positions),
        desc="encode",
        unit="track",
        leave=False,
        disable=not accelerator.is_main_process,
    ) as bar:

        def on_track(path):  # all before it are done, or another process has them
            bar.update(max(0, positions[path] - bar.n))

        try:
            report = encode(rule, list(positions), on_track=on_track, share=share)
        except (ValueError, OSError) as error:
            failure = error
    shares = gather_object([(report, str(failure) if failure else None)])
    if failure:
        raise failure
    for _, message in shares:
        if message:
            raise ValueError(message)
    return EncodeReport.merged([share for share, _ in shares]).in_order(positions)


def _counts(accelerator: Accelerator):
    """Counters that the processes share for one call of `encode_shared`; None for a single one."""
    if accelerator.num_processes == 1:
        return None
    store = torch.distributed.distributed_c10d._get_default_store()  # there is no public way to it
    return torch.distributed.PrefixStore(f"tune/encode/{next(_CALLS)}", store)


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


def _header_seconds(path) -> float | None:
    """Length of a file by its header; None where that can't be read: decoding will say why."""
    try:
        seconds = read_header(path).seconds
    except AudioError:
        return None
    return None if math.isnan(seconds) else seconds


def read_row(collection: Collection, path: str | Path, content: str, spans: Sequence) -> Row:
    """Read a row that `encode_tracks` reported; a row that has vanished since is an error."""
    row = collection.read(content, spans)
    if row is None:
        raise ValueError(f"the stored embedding of {path} has vanished: run the command again")
    return row
