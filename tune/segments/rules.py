"""Segment rules: which parts of a track are encoded.

A rule turns a track into spans [start, end) in samples at the encoder's rate. Nothing is padded
unless `pad` asks for it: then the tail's span ends beyond the track, and the encoder hears zeros
there. There are two kinds, with `name`, `needs_audio` and `cut(samples, sample_rate)` in common:
`SegmentRule` needs a track's length only (`spans`), `tune.segments.structure.StructureRule` its
sound.

With fixed lengths, the tail (the last piece, shorter than the rest) is encoded at its own length,
or dropped when it is shorter than `min_tail_s`. A track shorter than one segment is one segment.

    python -m tune.segments plot song.flac      # see where --seg structure cuts a track
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tune.segments.pick import Pick
from tune.segments.structure import StructureRule

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
    pad : bool
        Lengthen the last piece to a whole segment with zeros, as MARBLE does.
    pick : Pick, optional
        Which of the segments are encoded (`tune.segments.pick`); `spans` and `cut` give all.
    """

    length_s: float | None
    hop_s: float | None = None
    min_tail_s: float = MIN_TAIL_S
    pad: bool = False
    pick: Pick | None = field(default=None, repr=False)

    needs_audio: ClassVar[bool] = False

    def __post_init__(self):
        for name, value in (("segment length", self.length_s), ("hop", self.hop_s)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"the {name} must be a number of seconds above 0, got {value:g}")
        if self.length_s is None and self.hop_s is not None:
            raise ValueError("a hop needs a segment length: the full track is one segment")
        if self.length_s is None and self.pad:
            raise ValueError("padding needs a segment length: the full track is one segment")
        if self.length_s is None and self.pick is not None:
            raise ValueError("--use_seconds picks segments: the full track is one, give --seg")
        if not (math.isfinite(self.min_tail_s) and self.min_tail_s >= 0):
            raise ValueError(f"the shortest tail must be 0 s or more, got {self.min_tail_s:g}")

    @property
    def name(self) -> str:
        """The rule on the command line: "10", "2.5" or "full"."""
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
            the tail is shorter than `min_tail_s`; never none. With `pad` the last one may end
            beyond the track.

        Examples
        --------
        >>> SegmentRule(10).spans(n_samples=25, sample_rate=1)
        [(0, 10), (10, 20), (20, 25)]
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
        return [(start, start + length) for start, _ in spans] if self.pad else spans

    def cut(self, samples: np.ndarray, sample_rate: int) -> list[tuple[int, int]]:
        """Cut a track by its audio (n_samples,), as every kind of rule can."""
        return self.spans(len(samples), sample_rate)


Rule = SegmentRule | StructureRule


def parse_rule(
    seg: str,
    hop_s: float | None = None,
    min_tail_s: float = MIN_TAIL_S,
    min_seg_s: float | None = None,
    max_seg_s: float | None = None,
    pad: bool = False,
    pick: Pick | None = None,
) -> Rule:
    """Read a rule from the command line.

    Parameters
    ----------
    seg : a number of seconds, "full" or "structure"
    hop_s : with a number of seconds only
    min_tail_s : float
        Without meaning for "full" and "structure", which have no tail.
    min_seg_s, max_seg_s : float, optional
        Shortest and longest piece of "structure"; an error with any other.
    pad : pad the last piece with zeros; with a number of seconds only
    pick : which segments are used; not with "full"

    Raises
    ------
    ValueError
        When `seg` is none of these, a value is out of range, or they don't belong together.

    Examples
    --------
    >>> parse_rule("10", hop_s=5.0)
    SegmentRule(length_s=10.0, hop_s=5.0, min_tail_s=1.0, pad=False)
    """
    if seg == "structure":
        if hop_s is not None:
            raise ValueError("a hop needs a segment length: 'structure' puts its pieces end to end")
        if pad:
            raise ValueError("padding needs a segment length: 'structure' leaves no tail")
        given = {"min_s": min_seg_s, "max_s": max_seg_s}
        return StructureRule(**{k: v for k, v in given.items() if v is not None}, pick=pick)
    if min_seg_s is not None or max_seg_s is not None:
        raise ValueError(
            f"a shortest or longest segment belongs to 'structure', but the segments are {seg!r}"
        )
    if seg == "full":
        return SegmentRule(None, hop_s, min_tail_s, pad, pick)
    try:
        length_s = float(seg)
    except ValueError:
        raise ValueError(
            f"a segment is a number of seconds, 'full' or 'structure', got {seg!r}"
        ) from None
    return SegmentRule(length_s, hop_s, min_tail_s, pad, pick)


def fixed_length(seg: str) -> float | None:
    """Seconds of a fixed segment length by its name; None for "full", "structure" and several.

    Examples
    --------
    >>> fixed_length("2.5"), fixed_length("full")
    (2.5, None)
    """
    return float(seg) if seg.replace(".", "", 1).isdigit() else None


def seg_text(seg: str) -> str:
    """A segment rule's name as tables and titles show it.

    Examples
    --------
    >>> seg_text("10"), seg_text("full"), seg_text("10+30+full")
    ('10 s', 'full', '10+30+full')
    """
    return seg if fixed_length(seg) is None else f"{seg} s"


def parse_rules(
    segs: Sequence[str],
    hop_s: float | None = None,
    min_tail_s: float = MIN_TAIL_S,
    min_seg_s: float | None = None,
    max_seg_s: float | None = None,
    pad: bool = False,
    pick: Pick | None = None,
) -> list[Rule]:
    """Read the rules asked for; among several, each takes the settings that it knows.

    Parameters
    ----------
    segs : each as in `parse_rule`, as the other settings are

    Examples
    --------
    >>> [rule.hop_s for rule in parse_rules(["10", "full"], hop_s=5.0)]
    [5.0, None]
    """
    several, rules = len(segs) > 1, []
    for seg in segs:
        hop = None if several and seg in ("full", "structure") else hop_s
        limits = (None, None) if several and seg != "structure" else (min_seg_s, max_seg_s)
        rules.append(parse_rule(seg, hop, min_tail_s, *limits, pad, pick))
    return rules


def describe_counts(counts: Sequence[int]) -> dict:
    """Summarise the number of segments per track.

    Examples
    --------
    >>> describe_counts([3, 6, 5])
    {'min': 3, 'median': 5.0, 'max': 6}
    """
    return {"min": int(min(counts)), "median": float(np.median(counts)), "max": int(max(counts))}


def is_degenerate(rule: Rule, counts: Sequence[int]) -> bool:
    """Whether every track is one segment although the rule isn't "full".

    A hop beyond the length, or a pick, samples the track instead, so one segment isn't all of it,
    and a padded one holds more.
    """
    if getattr(rule, "pad", False) or rule.pick is not None:
        return False
    if rule.name == "full" or (rule.hop_s or 0) > (rule.length_s or math.inf):
        return False
    return max(counts, default=0) == 1
