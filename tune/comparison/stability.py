"""Does a strategy say the same of a track that was changed a little? `compare.py --stability N`.

N test tracks are changed in ways that leave the music what it is (`CHANGES`), embedded again as the
run did, and given to its probe. Two figures come of it, each a mean over tracks and changes:

- moved: 1 - cosine of the embeddings before and after, over that of two different tracks. 0 is not
  at all, 1 as far as from one track to the next.
- flips: how often the probe decides otherwise. Of classes and keys another one, of tags the share
  of them that change sides; numbers are no decision.

Changes are made to the mono mix (or the channel) that the strategy hears, at the file's rate, and
encoded into a store of their own, which is deleted. A decision that was wrong and stays so is
stable: read it beside the quality.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stability:
    """How a strategy takes changes.

    Attributes
    ----------
    moved : change -> mean over tracks of the embedding's distance, over that of two tracks
    flips : change -> share of decisions that become others; NaN where there are none
    n_tracks : tracks that were changed
    """

    moved: dict[str, float]
    flips: dict[str, float]
    n_tracks: int

    @property
    def text(self) -> str:
        """Both figures, over all changes: 0.12, 3 %."""
        flips = float(np.mean(list(self.flips.values())))
        shown = "-" if np.isnan(flips) else f"{100 * flips:.0f} %"
        return f"{np.mean(list(self.moved.values())):.2f}, {shown}"


def _lead_in(seconds: float) -> Callable:
    """Silence before the music."""
    return lambda x, rate, rng: np.concatenate([np.zeros(round(seconds * rate), np.float32), x])


def _gain(db: float) -> Callable:
    """The same, quieter."""
    return lambda x, rate, rng: x * np.float32(10 ** (db / 20))


def _noise(db: float) -> Callable:
    """White noise so far below the music."""

    def add(x, rate, rng):
        level = np.sqrt(np.mean(x.astype(np.float64) ** 2)) * 10 ** (-db / 20)
        return x + (level * rng.standard_normal(len(x))).astype(np.float32)

    return add


# Changes: name -> ((samples, rate, random numbers) to samples, the file's ending).
CHANGES: dict[str, tuple[Callable, str]] = {
    "0.15 s lead-in": (_lead_in(0.15), ".flac"),
    "0.7 s lead-in": (_lead_in(0.7), ".flac"),
    "2 s lead-in": (_lead_in(2.0), ".flac"),
    "-6 dB": (_gain(-6.0), ".flac"),
    "mp3 at 128 kbit/s": (lambda x, rate, rng: x, ".mp3"),
    "noise 20 dB below": (_noise(20.0), ".flac"),
}
NOTE = (
    "stability: how far the embedding moves (1: as from one track to another), and how many "
    f"decisions flip, under {', '.join(CHANGES)}"
)
