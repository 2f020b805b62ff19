"""``demo-key``, ``demo-tempo``, ``demo-instruments``: one property of a piece is its label.

The property is drawn apart from the style, so that instruments, groove and mix give nothing away
(``demo-instruments``: so that groove, harmony and mix don't). Each function takes the number of a
piece and a generator, and returns the label and the piece's recipe.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tune.demo.recipes import draw_chords, from_row, pick, style_recipe
from tune.demo.styles import STYLES
from tune.demo.theory import KEYS

MODES = ("major", "minor")
TEMPO_RANGE = (60, 180)  # beats a minute
# Over all styles and grooves the log-mel baseline was at chance.
TEMPO_STYLES = ("chiptune", "house", "synthpop")
TEMPO_GROOVES = ("four", "disco", "electro")
TEMPO_BARS = (2, 4, 6, 8)  # bars in a verse: at any tempo some form lasts about a minute
INSTRUMENTS = (
    "bell",
    "brass",
    "choir",
    "e-piano",
    "fiddle",
    "flute",
    "fuzz-guitar",
    "guitar",
    "harpsichord",
    "organ",
    "piano",
    "reed",
    "saw-lead",
    "square-lead",
    "strings",
)


def key_piece(index: int, rng: np.random.Generator):
    """A piece in key `index` of the 24, which take turns."""
    tonic, mode = index % 12, MODES[index // 12 % 2]
    style = pick(rng, sorted(STYLES))
    recipe = style_recipe(style, rng, hybrid=0)
    recipe.key, recipe.scale = tonic, mode
    recipe.chords = draw_chords(rng, STYLES[style].harmony, mode, tonic)
    return f"{KEYS[tonic]} {mode}", recipe


def tempo_piece(_: int, rng: np.random.Generator):
    """A piece whose tempo, uniform in its logarithm, says nothing of the style; label: log2 BPM."""
    tempo = float(np.round(2 ** rng.uniform(*np.log2(TEMPO_RANGE)), 1))
    style = pick(rng, TEMPO_STYLES)
    row = replace(STYLES[style], tempo=(tempo, tempo), bars=TEMPO_BARS, grooves=TEMPO_GROOVES)
    return [round(float(np.log2(tempo)), 6)], from_row(rng, style, row, row, row, row)


def instruments_piece(_: int, rng: np.random.Generator):
    """A piece for two to four of the `INSTRUMENTS`, any of them in any part, with bass and drums.

    Label: their names. They play lead and chords and, where there are more than two, pad or
    arpeggio or both.
    """
    names = [str(name) for name in rng.permutation(INSTRUMENTS)[: int(rng.integers(2, 5))]]
    others = ["pad", "arp"] if rng.random() < 0.5 else ["arp", "pad"]
    roles = dict.fromkeys(("pad", "arp"), ("",))
    roles |= {r: (n,) for r, n in zip(["lead", "chords", *others], names, strict=False)}
    style = pick(rng, sorted(STYLES))
    row = STYLES[style]
    return sorted(names), from_row(rng, style, row, replace(row, **roles), row, row)
