"""``demo-artist``: who composed a piece, told by habits alone.

All composers write in the same styles, in turn, with each style's own instruments, drums and mix.
Whatever a composer has a habit of is done so in a share `FOLLOWED` of the pieces, each habit by
itself, and as the style has it in the rest. Patterns are explained in :mod:`tune.demo.styles`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from tune.demo.recipes import from_row
from tune.demo.styles import ARPS, EIGHTHS, HALVES, HOLD, QUARTERS, STYLES

FOLLOWED = 0.9
ARTIST_STYLES = ("chiptune", "folk", "house", "synthpop")


@dataclass(frozen=True)
class Habits:
    """A composer's habits: fields of a `Style`, and where melodies lie and how they move."""

    scales: tuple[str, ...]
    harmony: str  # name of a family of progressions, see theory.PROGRESSIONS
    comps: tuple[str, ...]
    lines: tuple[str, ...]
    arps: tuple[str, ...]
    swing: tuple[float, float]
    density: tuple[float, float]
    register: int  # semitones by which the chords lie above the middle
    center: float  # MIDI pitch that melodies keep returning to
    steps: tuple[int, ...]  # of a melody, in tones of the scale; one is drawn for every note


STRAIGHT, LILT, SWUNG = (0.5, 0.5), (0.54, 0.58), (0.62, 0.66)
REPEATS, STEPS, SKIPS, LEAPS = (0, 0, 0, 1), (1, 1, 1, 0), (1, 2, 2, 3), (0, 3, 4, 5)

COMPOSERS: dict[str, Habits] = {
    "Abel": Habits(
        ("major",),
        "pop",
        (QUARTERS, HALVES),
        ("R---5---R---5---",),
        ARPS[:1],
        STRAIGHT,
        (0.3, 0.45),
        0,
        70.0,
        STEPS,
    ),
    "Berg": Habits(
        ("minor", "harmonic"),
        "baroque",
        (EIGHTHS, "x---x-x-x---x-x-"),
        ("R-3-5-a-R-3-5-a-",),
        ARPS[1:2],
        STRAIGHT,
        (0.65, 0.85),
        5,
        82.0,
        STEPS,
    ),
    "Cole": Habits(
        ("dorian", "mixolydian"),
        "jazz",
        ("x--x--x-x--x--x-", "..x...x...x...x."),
        ("R---3---5---a---",),
        ARPS[2:3],
        SWUNG,
        (0.5, 0.7),
        -6,
        76.0,
        SKIPS,
    ),
    "Dahl": Habits(
        ("lydian", "major"),
        "drift",
        (HOLD, HALVES),
        ("R---------------", "R-------5-------"),
        ARPS[3:],
        LILT,
        (0.2, 0.35),
        5,
        64.0,
        LEAPS,
    ),
    "Ekko": Habits(
        ("minor", "dorian"),
        "groove",
        ("x..x..x...x..x..", "..x...x...x.x.x."),
        ("R..R..R...5.R...", "R--R--R-R--R--a-"),
        ARPS[1:2],
        LILT,
        (0.4, 0.6),
        -6,
        70.0,
        REPEATS,
    ),
    "Fink": Habits(
        ("phrygian", "minor"),
        "power",
        (EIGHTHS, "x.xxx.xxx.xxx.xx"),
        ("RRRRRRRRRRRRRRRR", "R-R-R-R-R-R-R-R-"),
        ARPS[:1],
        STRAIGHT,
        (0.4, 0.6),
        0,
        64.0,
        LEAPS,
    ),
    "Gray": Habits(
        ("mixolydian", "major"),
        "folk",
        ("x---x-x-x---x-x-", "0-2-1-2-0-2-1-2-"),
        ("R-8-R-8-R-8-R-8-",),
        ARPS[3:],
        SWUNG,
        (0.6, 0.8),
        5,
        76.0,
        SKIPS,
    ),
    "Holt": Habits(
        ("minor", "minor-pentatonic"),
        "roots",
        ("..x...x...x...x.", "....x.......x..."),
        ("R...R.5.....8.5.", "R--R--5-....R.a."),
        ARPS[2:3],
        LILT,
        (0.2, 0.4),
        -6,
        82.0,
        REPEATS,
    ),
}


def artist_piece(index: int, rng: np.random.Generator):
    """A piece by composer `index` of the eight, who take turns, as the styles do after them."""
    names = sorted(COMPOSERS)
    name, style = names[index % 8], ARTIST_STYLES[index // 8 % len(ARTIST_STYLES)]
    kept = {k: v for k, v in asdict(COMPOSERS[name]).items() if rng.random() < FOLLOWED}
    of_melody = {k: kept.pop(k) for k in ("center", "steps") if k in kept}
    row = replace(STYLES[style], **kept)
    return name, replace(from_row(rng, style, row, row, row, row), **of_melody)
