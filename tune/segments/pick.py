"""Some of a track's segments: --use_seconds N, chosen by --pick.

    first      the segments that the track begins with
    middle     those around its middle
    spread     evenly over the track, each in the middle of its part
    central    those nearest to the track's mean embedding

The first three follow from the cut alone, so that only those segments are encoded. `central` needs
the embeddings of all: everything is encoded, and then some of it used. A track takes as many whole
segments as N seconds hold, at least one; of --seg structure, as many of mean length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PICKS = ("first", "middle", "spread", "central")


class PickedSpans(list):
    """Spans (start, end) of some segments of a track, in order.

    Attributes
    ----------
    whole : all spans of the track; where its row is stored, theirs is a part of it
    """

    def __init__(self, spans: Sequence, whole: Sequence):
        super().__init__(spans)
        self.whole = list(whole)

    def __reduce__(self):
        return PickedSpans, (list(self), self.whole)

    @property
    def share(self) -> float:
        """The share of the encoded samples that is used."""
        return _length(self) / _length(self.whole)


@dataclass(frozen=True)
class Pick:
    """How many seconds of a track are used, and which.

    Parameters
    ----------
    seconds : float
    how : a name of `PICKS`

    Raises
    ------
    ValueError
        When `seconds` isn't above 0, or there is no such pick.
    """

    seconds: float
    how: str = "first"

    def __post_init__(self):
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"--use_seconds needs seconds above 0, got {self.seconds:g}")
        if self.how not in PICKS:
            raise ValueError(f"--pick must be {', '.join(PICKS)}, got {self.how!r}")

    @property
    def name(self) -> str:
        """Such as "30 s spread"."""
        return f"{self.seconds:g} s {self.how}"

    def count(self, spans: Sequence, sample_rate: int, even: bool = True) -> int:
        """How many segments are used.

        Parameters
        ----------
        spans : all of a track
        even : whether they have one length, but for a shorter tail

        Examples
        --------
        >>> Pick(30).count([(0, 10), (10, 20), (20, 30), (30, 34)], sample_rate=1)
        3
        """
        lengths = [end - start for start, end in spans]
        length = max(lengths) if even else sum(lengths) / len(lengths)
        return min(len(spans), max(1, int(round(self.seconds * sample_rate) // length)))

    def choose(self, spans: Sequence, sample_rate: int, even: bool = True) -> Sequence:
        """The spans to be encoded: all of them where every one is used, or for `central`.

        Examples
        --------
        >>> spans = [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50)]
        >>> Pick(20, "middle").choose(spans, 1), Pick(20, "spread").choose(spans, 1)
        ([(10, 20), (20, 30)], [(10, 20), (30, 40)])
        """
        n, k = len(spans), self.count(spans, sample_rate, even)
        if k == n or self.how == "central":
            return spans
        start = {"first": 0, "middle": (n - k) // 2}
        if self.how == "spread":
            at = [(2 * i + 1) * n // (2 * k) for i in range(k)]
        else:
            at = range(start[self.how], start[self.how] + k)
        return PickedSpans([spans[i] for i in at], spans)

    def choose_central(self, row, sample_rate: int, even: bool = True) -> Sequence:
        """The segments of a track's row (`tune.store.collection.Row`) nearest to their mean.

        By the cosine to the mean of all segments, averaged over layers; of equal ones the earlier.
        """
        k = self.count(row.spans, sample_rate, even)
        spans = [tuple(span) for span in row.spans]
        if k == len(spans):
            return spans
        ends = np.cumsum(row.counts)
        each = [t.mean(0) for t in np.split(row.tokens.astype(np.float64), ends[:-1])]  # (L, D)
        segments = np.stack(each)  # (N, L, D)
        near = (_unit(segments) * _unit(segments.mean(0))).sum(-1).mean(-1)  # (N,)
        at = sorted(np.argsort(-near, kind="stable")[:k].tolist())
        return PickedSpans([spans[i] for i in at], spans)


def pick_spans(rule, spans: Sequence, sample_rate: int) -> Sequence:
    """The spans of a track that a segment rule wants encoded; `spans` are all."""
    if rule.pick is None:
        return spans
    return rule.pick.choose(spans, sample_rate, even=not rule.needs_audio)


def pick_row(row, spans: PickedSpans):
    """The picked segments' part of a whole track's row; encoding it took its share of the time."""
    at = {tuple(map(int, span)): i for i, span in enumerate(row.spans)}
    chosen = [at[tuple(map(int, span))] for span in spans]
    parts = np.split(row.tokens, np.cumsum(row.counts)[:-1])
    return type(row)(
        np.concatenate([parts[i] for i in chosen]),
        [row.spans[i] for i in chosen],
        [row.counts[i] for i in chosen],
        row.silent,
        row.seconds * spans.share,
        row.peak_bytes,
        row.notes,
    )


def read_pick(seconds: float | str | None, how: str | None) -> Pick | None:
    """The pick that flags ask for, or None: all of each track ("all": whichever the pick)."""
    if seconds == "all":
        return None
    if seconds is None:
        if how is not None:
            raise ValueError(f"--pick {how} chooses among segments: give --use_seconds as well")
        return None
    return Pick(seconds, how or "first")


def _length(spans: Sequence) -> int:
    """Samples of spans."""
    return sum(end - start for start, end in spans)


def _unit(values: np.ndarray) -> np.ndarray:
    """Vectors of length 1; zeros stay."""
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-300)
