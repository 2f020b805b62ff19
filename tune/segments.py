"""Segments: which parts of a track are encoded.

A rule turns a track's length into spans [start, end) in samples at the encoder's rate. The tail
(the last piece, shorter than the rest) is encoded at its own length, or dropped when it is shorter
than `min_tail_s`; nothing is ever padded. A track shorter than one segment is one segment.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_TAIL_S = 1.0


@dataclass(frozen=True)
class SegmentRule:
    """Fixed-length segments, or the full track.

    Parameters
    ----------
    length_s : float or None
        Segment length in seconds; None is the full track.
    hop_s : float or None
        Distance between starts in seconds; None is the length (segments side by side). A shorter
        hop overlaps them, a longer one samples the track.
    min_tail_s : float
        A last piece shorter than this is dropped, unless it is the only one.
    """

    length_s: float | None
    hop_s: float | None = None
    min_tail_s: float = MIN_TAIL_S

    def __post_init__(self):
        for name, value in (("segment length", self.length_s), ("hop", self.hop_s)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"the {name} must be a number of seconds above 0, got {value:g}")
        if self.length_s is None and self.hop_s is not None:
            raise ValueError("a hop needs a segment length: the full track is one segment")
        if not (math.isfinite(self.min_tail_s) and self.min_tail_s >= 0):
            raise ValueError(f"the shortest tail must be 0 s or more, got {self.min_tail_s:g}")

    @property
    def name(self) -> str:
        """How the rule is written on the command line: "10", "2.5" or "full"."""
        return "full" if self.length_s is None else f"{self.length_s:g}"

    def spans(self, n_samples: int, sample_rate: int) -> list[tuple[int, int]]:
        """Cut a track.

        Parameters
        ----------
        n_samples : int
            Length of the track, at least 1.
        sample_rate : int
            In Hz.

        Returns
        -------
        list of (start, end)
            In samples, in order. Without a hop there are N = ceil(T / L) of them, one fewer when
            the tail is shorter than `min_tail_s`; never none.
        """
        if n_samples < 1:
            raise ValueError(f"a track needs at least 1 sample, got {n_samples}")
        if self.length_s is None:
            return [(0, n_samples)]
        length = max(1, round(self.length_s * sample_rate))
        hop = length if self.hop_s is None else max(1, round(self.hop_s * sample_rate))
        # Starts go on until a segment reaches the end; with a hop beyond the length the last
        # start could lie past the end, hence the second bound.
        n = min(1 + math.ceil(max(0, n_samples - length) / hop), math.ceil(n_samples / hop))
        spans = [(i * hop, min(i * hop + length, n_samples)) for i in range(n)]
        start, end = spans[-1]
        if n > 1 and end - start < min(length, self.min_tail_s * sample_rate):
            spans.pop()
        return spans


def parse_rule(seg: str, hop_s: float | None = None, min_tail_s: float = MIN_TAIL_S) -> SegmentRule:
    """Read a rule from the command line: `seg` is a number of seconds or "full".

    Raises
    ------
    ValueError
        When `seg` is neither, or a value is out of range.
    """
    if seg == "full":
        return SegmentRule(None, hop_s, min_tail_s)
    try:
        length_s = float(seg)
    except ValueError:
        raise ValueError(f"a segment is a number of seconds or 'full', got {seg!r}") from None
    return SegmentRule(length_s, hop_s, min_tail_s)


def describe_counts(counts: Sequence[int]) -> dict:
    """Summarise the number of segments per track: {"min", "median", "max"}."""
    return {
        "min": int(min(counts)),
        "median": float(np.median(counts)),
        "max": int(max(counts)),
    }


def is_degenerate(rule: SegmentRule, counts: Sequence[int]) -> bool:
    """Say whether cutting cut nothing: every track is one segment although the rule isn't full.

    A hop beyond the length samples the track instead, so one segment isn't all of it.
    """
    if rule.length_s is None or (rule.hop_s or 0) > rule.length_s:
        return False
    return max(counts, default=0) == 1
