"""Instruments as rows of a table: an engine of :mod:`tune.demo.synth` and its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Patch:
    """An instrument: an engine and its settings.

    Times in seconds, cutoffs in hertz, detune in cents. `bright` and `dark` are the low-pass
    cutoffs at the attack and after `fade` seconds (engine ``wave``); `bright` is the modulation
    index of ``fm`` and the pick's hardness (0 to 1) of ``pluck``, where `decay` is the time the
    string takes to fall by 60 dB.
    """

    engine: str
    shape: str = "saw"
    attack: float = 0.005
    decay: float = 0.3
    sustain: float = 0.7
    release: float = 0.08
    bright: float = 4000.0
    dark: float = 1500.0
    fade: float = 0.3
    voices: int = 1
    detune: float = 8.0
    vibrato: float = 0.0
    breath: float = 0.0
    ratio: float = 1.0
    gain: float = 1.0
    drive: float = 0.0

    def softened(self, attack: float, bright: float) -> Patch:
        """The same instrument with its attack and its brightness multiplied."""
        brighter = self.bright * bright
        return replace(
            self,
            attack=min(0.6, self.attack * attack),
            bright=min(1.0, brighter) if self.engine == "pluck" else brighter,
            dark=self.dark * bright,
        )


PATCHES: dict[str, Patch] = {
    "sine-bass": Patch("wave", "sine", 0.01, 0.5, 0.8, 0.08, 600, 300, gain=1.2),
    "saw-bass": Patch("wave", "saw", 0.004, 0.2, 0.6, 0.05, 1600, 350, 0.15, gain=1.0),
    "square-bass": Patch("wave", "square", 0.004, 0.2, 0.7, 0.05, 1400, 500, 0.2),
    "triangle-bass": Patch("wave", "triangle", 0.003, 0.3, 0.9, 0.02, 4000, 3000, gain=1.1),
    "fm-bass": Patch("fm", "", 0.003, 0.35, 0.5, 0.05, 2.2, 0.3, 0.15, ratio=1.0),
    "string-bass": Patch("pluck", "", decay=2.2, release=0.06, bright=0.25, gain=1.3),
    "pick-bass": Patch("pluck", "", decay=2.8, release=0.06, bright=0.6, gain=1.1),
    "piano": Patch("wave", "piano", 0.003, 1.1, 0.0, 0.12, 4500, 1000, 0.35, 2, 2.0),
    "e-piano": Patch("fm", "tine", 0.003, 1.4, 0.0, 0.12, 1.3, 0.15, 0.4, ratio=1.0),
    "bell": Patch("fm", "", 0.002, 1.6, 0.0, 0.5, 2.2, 0.2, 0.7, ratio=3.51, gain=0.7),
    "marimba": Patch("fm", "", 0.002, 0.35, 0.0, 0.1, 1.2, 0.0, 0.05, ratio=3.93),
    "brass": Patch("wave", "saw", 0.05, 0.4, 0.8, 0.08, 2600, 1700, 0.5, 2, 5.0, 0.1),
    "guitar": Patch("pluck", "", decay=2.4, release=0.1, bright=0.55),
    "nylon": Patch("pluck", "", decay=1.6, release=0.1, bright=0.3, gain=1.1),
    "harpsichord": Patch("pluck", "", decay=1.7, release=0.05, bright=0.95, gain=0.8),
    "fuzz-guitar": Patch("wave", "saw", 0.004, 1.0, 0.8, 0.04, 3500, 2200, 0.5, 2, 6.0, drive=7.0),
    "organ": Patch("wave", "organ", 0.012, 0.3, 0.95, 0.05, 6000, 5000, 0.3, vibrato=0.08),
    "flute": Patch("wave", "flute", 0.05, 0.2, 0.85, 0.1, 5000, 3500, 0.3, 1, 0, 0.18, 0.02),
    "reed": Patch("wave", "reed", 0.03, 0.2, 0.8, 0.07, 4200, 2400, 0.3, 1, 0, 0.15, 0.01),
    "strings": Patch("wave", "saw", 0.12, 0.4, 0.85, 0.25, 3200, 2200, 0.6, 3, 9.0, 0.12),
    "fiddle": Patch("wave", "saw", 0.045, 0.2, 0.85, 0.09, 4200, 3000, 0.3, 1, 0, 0.22, 0.008),
    "warm-pad": Patch("wave", "saw", 0.4, 0.8, 0.85, 0.7, 1200, 700, 1.5, 3, 10.0),
    "glass-pad": Patch("fm", "", 0.3, 1.0, 0.8, 0.8, 1.0, 0.5, 1.2, ratio=2.0, gain=0.8),
    "choir": Patch("wave", "choir", 0.18, 0.4, 0.85, 0.35, 5000, 4000, 1.0, 3, 11.0, 0.15, 0.01),
    "saw-lead": Patch("wave", "saw", 0.008, 0.3, 0.75, 0.09, 5500, 2500, 0.25, 2, 9.0, 0.1),
    "square-lead": Patch("wave", "square", 0.004, 0.15, 0.7, 0.03, 8000, 5000, 0.2, vibrato=0.08),
    "pulse": Patch("wave", "pulse", 0.003, 0.12, 0.6, 0.03, 9000, 5500, 0.2),
    "poly-synth": Patch("wave", "saw", 0.006, 0.35, 0.4, 0.12, 3800, 900, 0.25, 2, 9.0),
    "stab": Patch("wave", "pulse", 0.003, 0.16, 0.15, 0.06, 4500, 800, 0.1, 2, 8.0),
}


def vary_patch(patch: Patch, rng: np.random.Generator, amount: float = 0.22) -> Patch:
    """The same instrument built by another maker: its settings moved by about `amount`."""
    low, high = 1 - amount, 1 + amount
    bright = patch.bright * rng.uniform(low, high)
    return replace(
        patch,
        attack=patch.attack * rng.uniform(low, high),
        decay=patch.decay * rng.uniform(low, high),
        release=patch.release * rng.uniform(low, high),
        bright=min(bright, 1.0) if patch.engine == "pluck" else bright,
        dark=patch.dark * rng.uniform(low, high),
        fade=patch.fade * rng.uniform(low, high),
        detune=patch.detune * rng.uniform(low, high),
    )
