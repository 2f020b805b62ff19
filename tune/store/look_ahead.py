"""Tracks that are to be encoded: hashed, looked up, claimed and decoded ahead, in threads.

A file is decoded soon after it was hashed, when the system still holds its bytes: it is read from
its disk once. What is stored already is never decoded.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass

import numpy as np
from filelock import FileLock

from tune.audio import decode as audio
from tune.audio.decode import AudioError
from tune.encoders.base import Encoder
from tune.segments.pick import pick_spans
from tune.segments.rules import Rule
from tune.store.collection import Collection, Row
from tune.store.store import Store

log = logging.getLogger(__name__)

SPARE = 2  # tracks decoded ahead, besides one in each thread
LOOKED_UP = 32  # tracks that a thread looks up at a time
NO_TOKENS = np.empty((0, 0, 0), np.float32)
WAIT_S = 0.5  # between two looks at a track that another process is encoding


class Lookup:
    """A store's rows for one encoder and rule, for several threads: they look up one at a time.

    Rows are written beside that, as flushing one to its disk takes long on some.

    Parameters
    ----------
    store, collection, encoder, rule : see `tune.store.encode.encode_tracks`
    """

    def __init__(self, store: Store, collection: Collection, encoder: Encoder, rule: Rule):
        self.store, self.collection, self.rule = store, collection, rule
        self.sample_rate = encoder.sample_rate
        self._lock = threading.Lock()

    def __call__(self, path: str) -> tuple:
        """A file's path, content, (spans, row) or None if not stored, reason why it is unusable."""
        try:
            content = self.store.content(path)
        except AudioError as error:
            return path, None, None, str(error)
        if self.collection.older and audio.is_decoded_as_before(path):
            self._adopt(content)
        return path, content, self.find(content), None

    def find(self, content: str) -> tuple[list, Row] | None:
        """A track's spans and row (without its tokens), or None; nothing is decoded for it."""
        with self._lock:
            if self.rule.needs_audio:
                spans = self.store.read_boundaries(content, self._cut_key(), self.sample_rate)
            else:
                n_samples = self.collection.length(content)
                spans = None if n_samples is None else self.rule.spans(n_samples, self.sample_rate)
            if spans is not None:
                spans = pick_spans(self.rule, spans, self.sample_rate)
            row = None if spans is None else self.collection.read(content, spans)
        return None if row is None else (spans, without_tokens(row))

    def cut(self, content: str, samples: np.ndarray) -> list[tuple[int, int]]:
        """Cut a decoded track; boundaries that follow from the sound are found once and kept."""
        if not self.rule.needs_audio:
            return self.rule.cut(samples, self.sample_rate)
        key = self._cut_key()
        with self._lock:
            spans = self.store.read_boundaries(content, key, self.sample_rate)
        if spans is None or spans[-1][1] != len(samples):  # another library, another length
            spans = self.rule.cut(samples, self.sample_rate)
            with self._lock:
                self.store.write_boundaries(content, key, self.sample_rate, spans)
        return spans

    def read(self, content: str, spans) -> Row | None:
        """A track's row for these segments, without its tokens, or None."""
        with self._lock:
            row = self.collection.read(content, spans)
        return row and without_tokens(row)

    def write(self, content: str, n_samples: int, row: Row) -> None:
        """Store a track's row."""
        self.collection.write(content, n_samples, row)

    def _adopt(self, content: str) -> None:
        """Take over what an older decoder's samples gave, of a file that it decoded alike."""
        with self._lock:
            self.collection.adopt(content)
            if self.rule.needs_audio:
                rate, cut = self.sample_rate, self._cut_key()
                spans = self.store.read_boundaries(content, self.rule.key(), rate)
                if spans is not None and self.store.read_boundaries(content, cut, rate) is None:
                    self.store.write_boundaries(content, cut, rate, spans)

    def _cut_key(self) -> dict:
        """What boundaries by the sound depend on."""
        return {**self.rule.key(), **self.collection.decoding}


def without_tokens(row: Row) -> Row:
    """A row's facts."""
    return Row(NO_TOKENS, row.spans, row.counts, row.silent, row.seconds, row.peak_bytes, row.notes)


class Share:
    """The tracks that are this process's, of those that several processes encode together.

    Parameters
    ----------
    index, count : which of how many processes
    store : torch.distributed.Store, optional
        Where several processes count the tracks that are taken; for one call alone.
    """

    def __init__(self, index: int = 0, count: int = 1, store=None):
        self.index, self.count, self._store = index, count, store

    def dealt(self, paths: Sequence[str]) -> Sequence[str]:
        """A share of the tracks that is known beforehand."""
        return paths[self.index :: self.count]

    def taken(self, paths: Sequence[str]) -> Iterator[Sequence[str]]:
        """Some tracks at a time, whenever this process is free for them, until all are taken.

        Towards the end there are ever fewer, so that processes end together, however long their
        tracks are and however fast their devices.
        """
        parts, start = [], 0
        while start < len(paths):
            left = len(paths) - start
            n = LOOKED_UP if self.count == 1 else min(LOOKED_UP, left // (4 * self.count))
            parts.append(paths[start : start + max(1, n)])
            start += max(1, n)
        if self._store is None:
            yield from parts
            return
        while (k := self._store.add("taken", 1) - 1) < len(parts):
            yield parts[k]


def look_up(parts: Iterator[Sequence[str]], lookup: Lookup, pool: Executor) -> Iterator[tuple]:
    """Look files up, some ahead of the caller, and yield what `lookup` gives, in their order."""
    running = deque()

    def submit():
        if (some := next(parts, None)) is not None:
            running.append(pool.submit(lambda: [lookup(path) for path in some]))

    submit()
    submit()
    while running:
        found = running.popleft().result()
        submit()
        yield from found


@dataclass(eq=False)
class Claimed:
    """A track that this process is to encode.

    Attributes
    ----------
    decoded : a future of what `decode` makes of it
    lock : to be released when its row is stored; None while another process has it
    """

    path: str
    content: str
    decoded: Future | None = None
    lock: FileLock | None = None


def claimed(
    found: Iterator[tuple[str, str]], store: Store, decode: Callable, pool: Executor, ahead: int
) -> Iterator[Claimed | None]:
    """Claim and decode tracks in the pool, and yield those that nobody else is encoding.

    Tracks that are held are put off and waited for at the end. None asks the caller to store and
    release all that it was given: this process may be the one that holds them.

    Parameters
    ----------
    found : (path, content) of each track
    decode : of path and content
    ahead : tracks that are decoded, or being decoded
    """
    put_off: deque = deque()
    window: deque[Claimed] = deque()
    told = False

    def work(track, timeout_s):
        track.lock = store.claim(track.content, timeout_s=timeout_s)
        return track.lock and decode(track.path, track.content)

    def start(path, content, timeout_s=0.0):
        track = Claimed(path, content)
        track.decoded = pool.submit(work, track, timeout_s)
        window.append(track)
        return track

    try:
        while True:
            while len(window) < ahead and (item := next(found, None)):
                start(*item)
            if window:
                wait([window[0].decoded])
                track = window.popleft()
                if track.lock:
                    yield track
                else:
                    track.decoded.result()  # the lock's own error, if there is one
                    put_off.append((track.path, track.content))
            elif put_off:
                yield None
                track = start(*put_off.popleft(), timeout_s=WAIT_S)
                wait([track.decoded])
                if track.lock:  # the others may be free as well
                    found, put_off = iter(put_off), deque()
                elif not told:
                    log.info(
                        "waiting for another process, which is encoding into %s: %d tracks left",
                        store.root,
                        len(put_off) + 1,
                    )
                    told = True
            else:
                return
    finally:
        wait([track.decoded for track in window if not track.decoded.cancel()])
        for track in window:
            if track.lock:
                track.lock.release()
