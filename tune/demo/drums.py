"""Drums: kits of synthesised hits and the grooves they play.

A groove maps a drum to a pattern of sixteenths: ``X`` accent, ``x`` hit, ``o`` ghost note, ``.``
rest. Drums are listed in the order in which a thinner section drops them, last first.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from tune.demo.synth import SAMPLE_RATE

LEVELS = {"X": 1.0, "x": 0.75, "o": 0.35}

GROOVES: dict[str, dict[str, str]] = {
    "none": {},
    "shaker": {"shaker": "x.o.x.o.x.o.x.o."},
    "pulse": {"kick": "x.......x.......", "shaker": "..o...o...o...o."},
    "rock": {
        "hat": "X.x.X.x.X.x.X.x.",
        "kick": "X.......X.x.....",
        "snare": "....X.......X...",
        "tom": "..............x.",
    },
    "ballad": {"hat": "x...x...x...x...", "kick": "X.......X.......", "rim": "....x.......x..."},
    "four": {
        "kick": "X...X...X...X...",
        "open": "..x...x...x...x.",
        "clap": "....X.......X...",
        "hat": "x.oxx.oxx.oxx.ox",
    },
    "disco": {
        "kick": "X...X...X...X...",
        "hat": "x.x.x.x.x.x.x.x.",
        "snare": "....X.......X...",
        "open": "..x...x...x...x.",
    },
    "electro": {
        "kick": "X.....x.X..x....",
        "snare": "....X.......X...",
        "hat": "x.x.x.x.x.x.x.xx",
        "clap": "....x.......x..x",
    },
    "shuffle": {
        "ride": "X.x.X.x.X.x.X.x.",
        "snare": "....X.......X...",
        "kick": "X.......X.....x.",
        "hat": "....x.......x...",
    },
    "one-drop": {
        "hat": "x.x.x.x.x.x.x.x.",
        "rim": "....x..o....x.o.",
        "kick": "........X.......",
        "snare": "........X.......",
    },
    "steppers": {"kick": "X...X...X...X...", "rim": "....x.......x..o", "hat": "..x...x...x...x."},
    "double": {
        "kick": "XxxxXxxxXxxxXxxx",
        "snare": "....X.......X...",
        "ride": "X...X...X...X...",
        "tom": "............xxxx",
    },
    "gallop": {"kick": "X.xxX.xxX.xxX.xx", "snare": "....X.......X...", "hat": "X...X...X...X..."},
    "waltz": {
        "ride": "X...x.x.x...",
        "hat": "....x.......",
        "kick": "X...........",
        "snare": "......o...o.",
    },
    "waltz-soft": {"kick": "x...........", "brush": "....x...x...", "shaker": "x.o.x.o.x.o."},
    "brushes": {
        "brush": "x...X.x.x...X.x.",
        "kick": "x.......x.......",
        "ride": "x...x.x.x...x.x.",
    },
    "stomp": {"kick": "X.......X.......", "clap": "....x.......x...", "shaker": "x.x.x.x.x.x.x.x."},
}

# Tone of the drums: pitch of the skins, length, share of noise, low-pass on the noise in hertz.
KITS: dict[str, dict[str, float]] = {
    "acoustic": {"pitch": 1.0, "length": 1.0, "noise": 1.0, "top": 8000},
    "electronic": {"pitch": 0.85, "length": 0.8, "noise": 0.8, "top": 11000},
    "gated": {"pitch": 0.9, "length": 1.3, "noise": 1.2, "top": 9000},
    "chip": {"pitch": 1.3, "length": 0.5, "noise": 1.5, "top": 11500},
    "soft": {"pitch": 1.1, "length": 0.9, "noise": 0.6, "top": 5000},
    "heavy": {"pitch": 0.9, "length": 0.7, "noise": 1.1, "top": 10000},
}

# name: (skin hertz, sweep, skin level, skin seconds, noise level, noise seconds, noise high-pass)
_HITS = {
    "kick": (50, 3.0, 1.1, 0.16, 0.08, 0.008, 500),
    "snare": (185, 0.5, 0.5, 0.08, 0.55, 0.11, 900),
    "rim": (820, 0.1, 0.45, 0.02, 0.15, 0.01, 2000),
    "clap": (1, 0.0, 0.0, 0.01, 0.7, 0.09, 1200),
    "hat": (1, 0.0, 0.0, 0.01, 0.35, 0.025, 6500),
    "open": (1, 0.0, 0.0, 0.01, 0.32, 0.14, 6000),
    "ride": (3100, 0.0, 0.025, 0.25, 0.2, 0.22, 5500),
    "crash": (1, 0.0, 0.0, 0.01, 0.5, 0.7, 3500),
    "tom": (105, 0.6, 0.8, 0.16, 0.08, 0.03, 800),
    "shaker": (1, 0.0, 0.0, 0.01, 0.3, 0.035, 4500),
    "brush": (190, 0.2, 0.12, 0.04, 0.4, 0.09, 1800),
}


def hit(name: str, kit: dict[str, float], cache: dict, seed: int) -> np.ndarray:
    """One drum of a kit at full level, made once; (n,) float32, shared and read only."""
    if name not in cache:
        f, sweep, skin, skin_s, noise, noise_s, high_pass = _HITS[name]
        skin_s, noise_s = skin_s * kit["length"], noise_s * kit["length"]
        n = int(SAMPLE_RATE * min(1.8, 5 * max(skin_s, noise_s)))
        t = np.arange(n, dtype=np.float32) / SAMPLE_RATE
        turns = f * kit["pitch"] * (t + sweep * 0.03 * (1 - np.exp(-t / 0.03)))
        out = skin * np.sin(2 * np.pi * turns) * np.exp(-t / skin_s)
        hiss = np.random.default_rng((seed, list(_HITS).index(name))).standard_normal(
            n, dtype=np.float32
        )
        a = np.exp(-2 * np.pi * high_pass / SAMPLE_RATE)
        hiss = lfilter([(1 + a) / 2, -(1 + a) / 2], [1, -a], hiss)
        a = np.exp(-2 * np.pi * kit["top"] / SAMPLE_RATE)
        hiss = lfilter([1 - a], [1, -a], hiss)
        out = out + noise * kit["noise"] * hiss * np.exp(-t / noise_s)
        out[:24] *= np.linspace(0, 1, 24)
        out[-240:] *= np.linspace(1, 0, 240)
        cache[name] = out.astype(np.float32)
    return cache[name]


def play(groove: dict[str, str], energy: float, bars: int, beats: int) -> list[tuple]:
    """Hits of a groove over some bars, thinned to `energy` (0 to 1).

    Returns
    -------
    list of (beat, drum, velocity)
    """
    names = list(groove)[: int(np.ceil(len(groove) * energy))]
    hits = []
    for bar in range(bars):
        for name in names:
            pattern = (groove[name] * 2)[: beats * 4]
            for step, mark in enumerate(pattern):
                if mark in LEVELS:
                    hits.append((bar * beats + step / 4, name, LEVELS[mark]))
    return hits


def fill(rng: np.random.Generator, end: float, names: list[str]) -> list[tuple]:
    """A crescendo of sixteenths over the last beat, on the drums at hand; as in :func:`play`."""
    steps = int(rng.integers(2, 5))
    return [
        (end - (steps - i) / 4, names[int(rng.integers(len(names)))], 0.45 + 0.12 * i)
        for i in range(steps)
    ]
