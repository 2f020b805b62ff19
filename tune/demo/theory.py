"""Scales, chords, progressions and voice leading.

Conventions: pitches are MIDI numbers (60 = middle C), pitch classes are 0 to 11 and relative to
the tonic until :func:`transpose` adds the key, chords are tuples of pitch classes, root first.
"""

from __future__ import annotations

import re

import numpy as np

KEYS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")

SCALES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "harmonic": (0, 2, 3, 5, 7, 8, 11),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "pentatonic": (0, 2, 4, 7, 9),
    "minor-pentatonic": (0, 3, 5, 7, 10),
    "blues": (0, 3, 5, 6, 7, 10),
}

# Written against the major scale, so that a minor key says bIII, bVI, bVII.
PROGRESSIONS: dict[str, tuple[str, ...]] = {
    "pop": ("I V vi IV", "vi IV I V", "I vi IV V", "I IV vi V", "IV V iii vi"),
    "pop-minor": ("i bVI bIII bVII", "i iv bVI V", "i bVII bVI V", "i bVI iv V7"),
    "baroque": ("I V vi iii IV I ii V", "I IV viio iii vi ii V I", "I ii V7 I"),
    "baroque-minor": ("i iv bVII bIII bVI iio V i", "i V i bVII bIII iv V7 i", "i iv V i"),
    "blues": ("I7 I7 I7 I7 IV7 IV7 I7 I7 V7 IV7 I7 V7", "I7 IV7 I7 I7 IV7 IV7 I7 VI7 ii7 V7 I7 V7"),
    "blues-minor": ("i7 i7 i7 i7 iv7 iv7 i7 i7 bVI7 V7 i7 V7",),
    "jazz": ("ii7 V7 Imaj7 vi7", "Imaj7 vi7 ii7 V7", "iii7 VI7 ii7 V7", "Imaj7 IVmaj7 ii7 V7"),
    "jazz-minor": ("iih7 V7 i7 i7", "i7 iv7 iih7 V7", "i7 bVImaj7 iih7 V7"),
    "drift": (
        "Imaj7 II Imaj7 vi7",
        "Iadd9 IVmaj7",
        "Isus2 V vi7 IVmaj7",
        "Imaj7 iii7 IVadd9 IVmaj7",
    ),
    "drift-minor": ("i7 IV7", "iadd9 bVImaj7 bIIImaj7 bVII", "i7 v7 bVImaj7 bVII"),
    "groove": ("IVmaj7 iii7 ii7 Imaj7", "Imaj7 vi7 IVmaj7 V", "vi7 IVmaj7 Imaj7 V"),
    "groove-minor": ("i7 iv7", "i7 bVII bVImaj7 v7", "i7 bIIImaj7 iv7 v7", "i7 IV7"),
    "roots": ("I IV V IV", "I V I IV", "I ii IV V"),
    "roots-minor": ("i iv", "i bVII", "i iv i v", "i bVII bVI bVII"),
    "folk": ("I IV I V", "I bVII IV I", "vi IV I V", "I V IV I", "I IV V I"),
    "folk-minor": ("i bVII i v", "i bIII bVII i", "i IV bVII i"),
    "power": ("I5 bVII5 IV5 I5", "I5 IV5 bVI5 bVII5"),
    "power-minor": ("i5 bVI5 bVII5 i5", "i5 bII5 i5 bVII5", "i5 bIII5 bVI5 V5", "i5 i5 bII5 bVI5"),
    "dark-minor": ("i bII i viio", "i iio V7 i", "i bVI iio V"),
}

_DEGREES = {"I": 0, "II": 2, "III": 4, "IV": 5, "V": 7, "VI": 9, "VII": 11}
_ROMAN = re.compile(r"^(b?)([IViv]+)(.*)$")
_QUALITIES = {  # suffix: (intervals after an upper-case numeral, after a lower-case one)
    "": ((0, 4, 7), (0, 3, 7)),
    "7": ((0, 4, 7, 10), (0, 3, 7, 10)),
    "maj7": ((0, 4, 7, 11), (0, 3, 7, 11)),
    "add9": ((0, 4, 7, 2), (0, 3, 7, 2)),
    "sus2": ((0, 2, 7), (0, 2, 7)),
    "5": ((0, 7), (0, 7)),
    "o": ((0, 3, 6), (0, 3, 6)),
    "h7": ((0, 3, 6, 10), (0, 3, 6, 10)),
}


def chord(symbol: str) -> tuple[int, ...]:
    """Pitch classes of a Roman numeral, root first, relative to the tonic.

    Raises
    ------
    ValueError
        If the symbol is not a Roman numeral with a known quality.
    """
    match = _ROMAN.match(symbol)
    if not match or match[2].upper() not in _DEGREES or match[3] not in _QUALITIES:
        raise ValueError(f"expected a chord such as 'IV', 'ii7' or 'bVImaj7', got {symbol!r}")
    root = _DEGREES[match[2].upper()] - len(match[1])
    return tuple((root + i) % 12 for i in _QUALITIES[match[3]][match[2].islower()])


def is_minor(scale: str) -> bool:
    """Whether a scale has the minor third."""
    return 3 in SCALES[scale]


def transpose(pitch_classes: tuple[int, ...], key: int) -> tuple[int, ...]:
    """Pitch classes moved from C to `key` (0 to 11)."""
    return tuple((p + key) % 12 for p in pitch_classes)


def local_scale(scale: tuple[int, ...], tones: tuple[int, ...]) -> list[int]:
    """The scale bent to a chord: a borrowed tone replaces the scale's tones a semitone from it."""
    borrowed = [t for t in tones if t not in scale]
    kept = [s for s in scale if all((s - t) % 12 not in (1, 11) for t in borrowed)]
    return sorted(set(kept) | set(tones))


def ladder(pitch_classes, low: int, high: int) -> np.ndarray:
    """Every MIDI pitch of the given classes in [low, high], rising."""
    wanted = set(pitch_classes)
    return np.array([p for p in range(low, high + 1) if p % 12 in wanted])


def nearest(pitches: np.ndarray, target: float) -> int:
    """The pitch closest to `target`; the lower one on a tie."""
    return int(pitches[np.argmin(np.abs(pitches - target))])


def voice_lead(previous: list[int] | None, tones: tuple[int, ...], center: float) -> list[int]:
    """Close voicing of a chord that moves least from the previous one.

    Parameters
    ----------
    previous
        MIDI pitches of the chord before, rising, or None at the start.
    tones
        Pitch classes of the chord.
    center
        MIDI pitch around which the voicing should lie; keeps a long chain from drifting.

    Returns
    -------
    list of int
        MIDI pitches, rising, as many as there are tones.
    """
    best, best_cost = [], np.inf
    for bottom in range(int(center) - 12, int(center) + 6):
        if bottom % 12 not in tones:
            continue
        voicing = sorted(bottom + (t - bottom) % 12 for t in tones)
        cost = 0.6 * abs(float(np.mean(voicing)) - center)
        if previous:
            cost += sum(min(abs(p - q) for q in previous) for p in voicing) + abs(
                voicing[-1] - previous[-1]
            )
        if cost < best_cost:
            best, best_cost = voicing, cost
    return best
