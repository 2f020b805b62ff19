"""Musical keys: their names, and how near one is to another.

The weighted score (MIREX, mir_eval) gives part of a point to a key that is related to the right
one: 0.5 for a fifth above, 0.3 for the relative, 0.2 for the parallel major or minor.
"""

import re
import unicodedata

import numpy as np

from tune.tasks.rows import number

PITCHES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")
# In MARBLE's order: the number of a key is its pitch class, and 12 more for minor.
KEYS = tuple(f"{pitch} {mode}" for mode in MODES for pitch in PITCHES)
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = str.maketrans("♯♭𝄪", "#bx", "♮")
SPELLED = re.compile(
    r"([A-G])[\s_-]*(#{1,2}|b{1,2}|x|sharp|flat)?[\s:_-]*(major|maj|minor|min|m)?", re.I
)
STEPS = {"#": 1, "##": 2, "x": 2, "sharp": 1, "b": -1, "bb": -2, "flat": -1}
FIFTH, RELATIVE, PARALLEL = 0.5, 0.3, 0.2


def key_name(text: str) -> str | None:
    """A key as `KEYS` spells it; None when it is none.

    A capital letter alone is a major key; a small one alone could be either, and is none.

    Examples
    --------
    >>> [key_name(text) for text in ("c# Minor", "F#m", "A:min", "Cb major", "E♭", "a", "H dur")]
    ['Db minor', 'Gb minor', 'A minor', 'B major', 'Eb major', None, None]
    """
    text = unicodedata.normalize("NFC", text).translate(ACCIDENTALS).strip()
    match = SPELLED.fullmatch(text)
    if not match:
        return None
    letter, accidental, mode = match.groups()
    if not mode and letter.islower():
        return None
    minor = mode == "m" or (mode or "").lower().startswith("min")  # CM is C major, Cm C minor
    number = SEMITONES[letter.upper()] + STEPS.get((accidental or "").lower(), 0)
    return f"{PITCHES[number % 12]} {MODES[minor]}"


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


def bare_keys(labels: list) -> list[str]:
    """A line on the keys whose mode isn't written, which are read as major."""
    texts = [label.strip() for label in labels if isinstance(label, str) and key_name(label)]
    bare = [text for text in texts if "m" not in text.lower()]
    if not bare:
        return []
    keys = number(len(bare), "key")
    return [f"{keys} without a mode read as major: {bare[0]} as {key_name(bare[0])}"]
