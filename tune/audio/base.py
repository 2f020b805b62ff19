"""What all readers of audio files share: the header, the rule for what is complete, the error.

The rule: all audio that a file announces must be there, or the file is refused; what is there
beside it (bytes behind the end, a last frame that is cut) is passed over, with a note.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SLACK_S = 0.06  # what may be missing: codecs' frames and containers' clocks blur a length
SURPLUS_BYTES = 1024  # of anything but tags and zeros behind the audio: worth a note
Block = tuple[np.ndarray, int]  # (C, n) float32 and its rate in Hz


class AudioError(ValueError):
    """A file that can't be used; the message is the reason, without the path."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself: rate in Hz, channels, format and seconds (NaN where unknown)."""

    sample_rate: int
    channels: int
    format: str
    seconds: float


class Reader:
    """A file that is open.

    Attributes
    ----------
    header : Header
    declared_s : seconds that there must be, or None where nothing says so
    damage : what makes the file unusable, a clause each
    notes : what is odd about it and loses no audio, a clause each
    can_seek : whether `blocks` takes the first frame and the number of frames
    """

    can_seek = False

    def __init__(self, header: Header, declared_s: float | None = None):
        self.header, self.declared_s = header, declared_s
        self.damage: list[str] = []
        self.notes: list[str] = []

    def blocks(self) -> Iterator[Block]:
        """All samples, in blocks of one rate and number of channels each."""
        raise NotImplementedError

    def check(self, seconds: float | None = None) -> None:
        """Raise AudioError for what is damaged, or when less was read than is announced."""
        if self.damage:
            more = f" (and {len(self.damage) - 1} more)" if len(self.damage) > 1 else ""
            first = self.damage[0]
            raise AudioError(first if first.startswith("truncated") else f"damaged: {first}{more}")
        if None not in (seconds, self.declared_s) and seconds + SLACK_S < self.declared_s:
            raise AudioError(f"truncated: {seconds:.2f} s of the {self.declared_s:.2f} s announced")

    def note_surplus(self, n_bytes: int) -> None:
        """Note bytes behind the audio that are neither tags nor zeros."""
        if n_bytes >= SURPLUS_BYTES:
            self.notes.append("the bytes behind its end are no audio and were passed over")
