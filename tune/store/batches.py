"""Segments in batches of equal length: of one track, or of several tracks at once.

Within a track (`encode_segments`) a row does not depend, by a single bit, on which other tracks are
encoded, in which order, or by how many processes: so it is done on a CPU, which a single track
keeps busy. A GPU isn't fed by one: there segments of equal length of several tracks share a batch
(`SharedBatches`), and a row may differ in its last bits with its neighbours.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tune.encoders.base import Encoder, NonFiniteError
from tune.system.memory import batch_seconds_that_fit, free_memory_bytes, is_out_of_memory

log = logging.getLogger(__name__)

BATCH_SECONDS = 60.0  # audio seconds of one batch, unless more fits
HELD_BATCHES = 4  # a track waits for others of its lengths while so many batches' seconds come in


def encode_segments(
    samples: np.ndarray,
    spans: Sequence[tuple[int, int]],
    encoder: Encoder,
    layers: Sequence[int],
    frame_rate: float | None = None,
    batch_seconds: float | None = None,
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
    batch_seconds = batch_seconds or BATCH_SECONDS
    samples = padded(samples, spans)
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
                size = smaller(min(size, len(batch)), length, encoder, error)
                continue
            for i, tokens in zip(batch, pooled, strict=True):
                per_segment[i] = tokens
            at += len(batch)
    return np.concatenate(per_segment), [len(tokens) for tokens in per_segment]


def padded(samples: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Samples with zeros up to the end of the last span."""
    beyond = max(end for _, end in spans) - len(samples)
    return np.pad(samples, (0, beyond)) if beyond > 0 else samples


def smaller(size: int, length: int, encoder: Encoder, error: BaseException) -> int:
    """Half a batch's size, after memory ran out; another error is raised again.

    Parameters
    ----------
    size : of the batch that failed
    length : of its segments, in samples

    Raises
    ------
    ValueError
        When the batch was a single segment and the encoder can't use less.
    """
    if not is_out_of_memory(error):
        raise error
    freed = encoder.graphs is not None and encoder.graphs.clear()
    if size == 1 and not freed and not encoder.shrink():
        raise ValueError(
            f"a segment of {length / encoder.sample_rate:.1f} s does not fit into the "
            f"device's memory: use a shorter --seg or --mixed_precision fp16"
        ) from error
    if size > 1:
        size //= 2
        log.warning("out of memory: going on with %d segments a batch", size)
    if encoder.device.type == "cuda":
        torch.cuda.empty_cache()
    return size


@dataclass(eq=False)
class Segments:
    """A track on its way through shared batches.

    Attributes
    ----------
    track : whatever the caller knows it by
    samples : (n_samples,) float32, zeros included that its last segment is padded with
    spans : the segments' bounds
    since : samples of the tracks before it
    seconds : the track's share of the device's time
    error : why it has no tokens
    """

    track: object
    samples: np.ndarray | None
    spans: Sequence[tuple[int, int]]
    since: int
    seconds: float = 0.0
    error: NonFiniteError | None = None
    found: dict[int, np.ndarray] = field(default_factory=dict)  # by segment, (P, L, D)

    @property
    def tokens(self) -> np.ndarray:
        """All tokens in the order of the spans, (N, L, D)."""
        return np.concatenate([self.found[i] for i in range(len(self.spans))])

    @property
    def counts(self) -> list[int]:
        """Tokens of each segment."""
        return [len(self.found[i]) for i in range(len(self.spans))]


class SharedBatches:
    """Puts segments of several tracks into batches by length; a batch runs as soon as it is full.

    One batch is computed while the next one is put together, and there is one wait for the device
    a batch.

    Parameters
    ----------
    on_done : called with each `Segments` that is complete
    batch_seconds : audio seconds of a batch; None: as many as the device's memory holds, by what
        the first full batch takes
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[int],
        frame_rate: float | None,
        batch_seconds: float | None,
        on_done: Callable[[Segments], None],
    ):
        self.encoder, self.what, self.on_done = encoder, (layers, frame_rate), on_done
        self.batch_seconds = batch_seconds or BATCH_SECONDS
        self._measures = batch_seconds is None and encoder.device.type == "cuda"
        self._most: dict[int, int] = {}  # segments by length, after memory ran out
        self._bins: dict[int, deque] = {}  # length -> (track, segment) that wait for a batch
        self._tracks: dict[Segments, None] = {}  # unfinished, the oldest first
        self._n_samples = 0  # of all tracks so far
        self._running: deque = deque()  # (pending batch, length, members)

    def add(self, track: object, samples: np.ndarray, spans: Sequence[tuple[int, int]]) -> None:
        """Add a track; runs the batches that are full now."""
        segments = Segments(track, padded(samples, spans), spans, self._n_samples)
        self._tracks[segments] = None
        self._n_samples += len(segments.samples)
        for i, (start, end) in enumerate(spans):
            self._bins.setdefault(end - start, deque()).append((segments, i))
        for length in dict.fromkeys(end - start for start, end in spans):
            self._run(length)
        room = HELD_BATCHES * self.batch_seconds * self.encoder.sample_rate
        while self._tracks and self._n_samples - next(iter(self._tracks)).since > room:
            self._finish_oldest()

    def flush(self) -> None:
        """Run whatever is left, and wait for it."""
        for length in list(self._bins):
            self._run(length, full=False)
        self._fetch(0)

    def _finish_oldest(self) -> None:
        """Run the batches that the oldest track waits for, full or not, and wait for them."""
        oldest = next(iter(self._tracks))
        for length in dict.fromkeys(end - start for start, end in oldest.spans):
            if any(segments is oldest for segments, _ in self._bins[length]):
                self._run(length, full=False)
        self._fetch(0)

    def _size(self, length: int) -> int:
        """Segments of this length in a full batch."""
        size = max(1, int(self.batch_seconds * self.encoder.sample_rate / length))
        return min(size, self._most.get(length, size))

    def _run(self, length: int, *, full: bool = True) -> None:
        """Run batches of one length: the full ones, or all."""
        members = self._bins[length]
        while len(members) >= (self._size(length) if full else 1):
            n = min(len(members), self._size(length))
            self._begin(length, [members.popleft() for _ in range(n)])

    def _begin(self, length: int, members: list) -> None:
        """Begin a batch, and fetch the one before it; halves the batch when memory runs out."""
        todo = deque([members])
        while todo:
            batch = todo.popleft()
            audio = [segments.samples[slice(*segments.spans[i])] for segments, i in batch]
            before = self._start_measuring(length, batch)
            try:
                pending = self.encoder.begin(audio, *self.what)
            except (RuntimeError, MemoryError) as error:
                self._fetch(0)  # its memory is free then
                todo.extendleft(reversed(self._halves(length, batch, error)))
                continue
            self._running.append((pending, length, batch))
            self._fetch(1)
            if before is not None:
                self._fetch(0)
                self._measure(before, length, batch)

    def _halves(self, length: int, batch: list, error: BaseException) -> list[list]:
        """A batch in smaller ones, after memory ran out."""
        size = self._most[length] = smaller(len(batch), length, self.encoder, error)
        return [batch[i : i + size] for i in range(0, len(batch), size)]

    def _fetch(self, at_most: int) -> None:
        """Wait until at most so many batches are running; hand each segment its tokens."""
        while len(self._running) > at_most:
            pending, length, batch = self._running.popleft()
            try:
                states = pending.result(each=True)  # (B, P, L, D)
            except (RuntimeError, MemoryError) as error:  # a second try in float32 takes more
                for part in self._halves(length, batch, error):
                    self._begin(length, part)
                continue
            for (segments, i), tokens in zip(batch, states, strict=True):
                segments.found[i] = tokens.copy()
                segments.seconds += pending.seconds / len(batch)
                if not np.isfinite(tokens).all():
                    segments.error = NonFiniteError(
                        f"{self.encoder.name} gives NaN or infinite hidden states in float32"
                    )
                if len(segments.found) == len(segments.spans):
                    segments.samples = None
                    del self._tracks[segments]
                    self.on_done(segments)

    def _start_measuring(self, length: int, batch: list) -> int | None:
        """Allocated bytes before the first batch that is at least half full; None for others."""
        device = self.encoder.device
        half = self.batch_seconds * self.encoder.sample_rate / 2
        if not self._measures or len(batch) * length < half:
            return None
        self._measures = False
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)

    def _measure(self, before: int, length: int, batch: list) -> None:
        """Let the next batches be as long as memory allows."""
        taken = torch.cuda.max_memory_allocated(self.encoder.device) - before
        seconds = len(batch) * length / self.encoder.sample_rate
        free = free_memory_bytes(self.encoder.device)
        self.batch_seconds = batch_seconds_that_fit(taken / seconds, free, self.batch_seconds)
        log.info("batches of %.0f s (%.2g GB are free)", self.batch_seconds, free / 1e9)
