"""``demo-mood``: latent moods, what raters say of them, and the music that composers make of them.

A mood is (arousal, valence), in the order of the EMO data set.
"""

from __future__ import annotations

import numpy as np

from tune.demo.patches import vary_patch
from tune.demo.recipes import PieceRecipe, from_row
from tune.demo.styles import ARPS, EIGHTHS, HALVES, HOLD, QUARTERS, Style
from tune.demo.theory import is_minor

CORRELATION = 0.15  # of arousal and valence
RATER_NOISE = (0.55, 0.6)  # standard deviations, against 1 for the latent


def rate_moods(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw latent moods and their ratings.

    Returns
    -------
    latent, labels : ndarray, shape (n, 2)
        Arousal, valence. Labels are the latents plus the raters' noise, z-scored over all n.
    """
    valence_of = np.array([[1.0, 0.0], [CORRELATION, np.sqrt(1 - CORRELATION**2)]])
    latent = rng.standard_normal((n, 2)) @ valence_of.T
    rated = latent + rng.normal(0, RATER_NOISE, (n, 2))
    return latent, (rated - rated.mean(0)) / rated.std(0)


# Instruments, grooves and scales from calm or sad (left) to excited or glad (right).
_CALM_TO_LOUD = {
    "lead": (
        "flute",
        "choir",
        "bell",
        "e-piano",
        "nylon",
        "reed",
        "guitar",
        "brass",
        "square-lead",
        "saw-lead",
        "fuzz-guitar",
    ),
    "chords": (
        "warm-pad",
        "choir",
        "strings",
        "nylon",
        "e-piano",
        "piano",
        "guitar",
        "organ",
        "poly-synth",
        "stab",
        "fuzz-guitar",
    ),
    "bass": ("sine-bass", "string-bass", "triangle-bass", "pick-bass", "fm-bass", "saw-bass"),
}
_SAD_TO_GLAD = {
    "pad": ("choir", "strings", "warm-pad", "glass-pad", "organ", ""),
    "arp": ("", "", "nylon", "poly-synth", "pulse", "bell", "marimba"),
}
_GROOVES = (
    "none",
    "none",
    "shaker",
    "pulse",
    "ballad",
    "rock",
    "disco",
    "electro",
    "four",
    "double",
)
_KITS = ("soft", "acoustic", "electronic", "gated", "heavy")
_LINES = (
    HOLD.replace("x", "R"),
    "R-------5-------",
    "R---5---R---a---",
    "R-8-R-8-R-8-R-8-",
    "RRRRRRRRRRRRRRRR",
)
_COMPS = (HOLD, HALVES, QUARTERS, "x--x--x-x--x--x-", EIGHTHS)
_DARK_TO_LIGHT = (
    "phrygian",
    "minor",
    "harmonic",
    "minor",
    "dorian",
    "mixolydian",
    "major",
    "lydian",
    "major",
)
_FAMILIES = {
    True: ("dark", "pop-minor", "baroque-minor", "folk-minor", "drift-minor"),
    False: ("drift", "folk", "pop", "roots", "groove"),
}


def mood_recipe(arousal: float, valence: float, rng: np.random.Generator) -> PieceRecipe:
    """A song for a latent mood (both about standard normal).

    Every choice reads its own noisy copy of the mood, as composers disagree too: no single
    feature of the music gives the latent back.
    """

    def a(noise: float = 0.7) -> float:
        return (arousal + noise * rng.standard_normal()) / np.hypot(1, noise)

    def v(noise: float = 0.7) -> float:
        return (valence + noise * rng.standard_normal()) / np.hypot(1, noise)

    def along(options, x: float):
        """The option at x, a standard normal, of a row from low to high."""
        return options[int(np.clip((0.5 + x / 4.4) * len(options), 0, len(options) - 1))]

    tempo = float(np.round(np.clip(104 + 24 * a(0.5), 58, 172), 1))
    scale = along(_DARK_TO_LIGHT, v(0.5))
    bright = 0.4 * a() + 0.7 * v()
    row = Style(
        tempo=(tempo, tempo),
        beats=(3, 4, 4, 4),
        scales=(scale,),
        harmony=along(_FAMILIES[is_minor(scale)], v()).removesuffix("-minor"),
        **{role: (along(row, a(0.9)),) for role, row in _CALM_TO_LOUD.items()},
        **{role: (along(row, v(0.6)),) for role, row in _SAD_TO_GLAD.items()},
        comps=(along(_COMPS, a(0.9)),),
        lines=(along(_LINES, a(0.9)),),
        grooves=(along(_GROOVES, a(0.5)),),
        kits=(along(_KITS, a()),),
        arps=ARPS,
        density=(d := float(np.clip(0.5 + 0.2 * a(), 0.15, 0.95)), d),
        reverb=(r := float(np.clip(0.25 - 0.1 * v(), 0.02, 0.6)), r),
    )
    recipe = from_row(rng, "mood", row, row, row, row)
    recipe.center = float(np.clip(73 + 5 * v(0.5) + a(), 62, 85))
    recipe.middle = float(np.clip(59 + 4 * v(0.5), 50, 68))
    recipe.tilt_db = 3.5 * bright + float(rng.normal(0, 2))
    recipe.push = float(np.clip(1.5 * np.exp(0.4 * a()), 0.8, 4))
    recipe.peak_db = float(np.clip(-3.5 + 1.2 * a(), -6, -1))
    soft = float(np.clip(np.exp(-0.6 * a()), 0.4, 3))
    for role, patch in recipe.patches.items():
        recipe.patches[role] = vary_patch(patch, rng, 0.1).softened(soft, np.exp(0.35 * bright))
    return recipe
