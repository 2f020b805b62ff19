"""Musical keys: their names, and how near one is to another.

The weighted score (MIREX, mir_eval) gives part of a point to a key that is related to the right
one: 0.5 for a fifth above, 0.3 for the relative, 0.2 for the parallel major or minor.
"""

import numpy as np

PITCHES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")
# In MARBLE's order: the number of a key is its pitch class, and 12 more for minor.
KEYS = tuple(f"{pitch} {mode}" for mode in MODES for pitch in PITCHES)
SHARPS = {"C#": 1, "D#": 3, "F#": 6, "G#": 8, "A#": 10}
FIFTH, RELATIVE, PARALLEL = 0.5, 0.3, 0.2


def key_name(text: str) -> str | None:
    """A key as `KEYS` spells it ("c# Minor" is "Db minor"); None when it is none."""
    parts = text.split()
    if len(parts) != 2 or parts[1].lower() not in MODES:
        return None
    pitch = parts[0][:1].upper() + parts[0][1:].lower()
    pitch = PITCHES[SHARPS[pitch]] if pitch in SHARPS else pitch
    return f"{pitch} {parts[1].lower()}" if pitch in PITCHES else None


def key_weights() -> np.ndarray:
    """What predicting a key scores: (24 true, 24 predicted), as `mir_eval.key.weighted_score`."""
    number = np.arange(24)
    true_minor, minor = number[:, None] >= 12, number >= 12
    above = (number - number[:, None]) % 12  # semitones from the true to the predicted key
    same_mode = true_minor == minor
    weights = np.where(same_mode & (above == 0), 1.0, 0.0)
    weights += FIFTH * (same_mode & (above == 7))
    weights += RELATIVE * (~same_mode & (above == np.where(true_minor, 3, 9)))
    return weights + PARALLEL * (~same_mode & (above == 0))
