"""Instruments: one note in, one array out.

Three engines make every pitched sound: ``wave`` (a band-limited wavetable that darkens as it
rings, which is additive and subtractive synthesis for the price of a look-up), ``fm`` (two
operators) and ``pluck`` (Karplus and Strong's string). Audio is float32, mono, at `SAMPLE_RATE`;
times are seconds; pitches are MIDI numbers; velocities run from 0 to 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tune.demo.patches import Patch

SAMPLE_RATE = 24_000
_TABLE_BITS = 14
_TABLE = 1 << _TABLE_BITS
_VELOCITIES = (0.45, 0.7, 0.95)  # timbres made; loudness itself stays continuous


def frequency(midi: float) -> float:
    """Hertz of a MIDI pitch."""
    return 440.0 * 2.0 ** ((midi - 69) / 12)


def envelope(patch: Patch, n_held: int, n: int) -> np.ndarray:
    """Attack, decay, sustain, release; (n,) float32, released after `n_held` samples."""
    t = np.arange(n, dtype=np.float32) / SAMPLE_RATE
    env = patch.sustain + (1 - patch.sustain) * np.exp(t * np.float32(-3.0 / patch.decay))
    n_attack = max(48, int(patch.attack * SAMPLE_RATE))  # below 2 ms an attack is a click
    ramp = np.linspace(0, np.pi / 2, min(n_attack, n), dtype=np.float32)
    env[: len(ramp)] *= np.sin(ramp) ** 2
    tail = n - n_held
    env[n_held:] *= np.linspace(1, 0, tail, dtype=np.float32) ** 2
    return env


def _spectrum(shape: str, harmonics: np.ndarray, f0: float) -> np.ndarray:
    """Amplitudes of the harmonics 1, 2, ... of a wave shape."""
    h, odd = harmonics, harmonics % 2
    drawbars = {1: 1.0, 2: 0.8, 3: 0.5, 4: 0.45, 6: 0.2, 8: 0.2}
    if shape == "sine":
        return (h == 1) + 0.15 * (h == 2)
    if shape == "saw":
        return 1 / h
    if shape == "square":
        return odd / h
    if shape == "triangle":
        return odd / h**2 * np.where(h % 4 == 3, -1, 1)
    if shape == "pulse":
        return np.sin(np.pi * h * 0.22) / h
    if shape == "organ":
        return np.array([drawbars.get(int(k), 0.0) for k in h])
    if shape == "flute":
        return np.array([{1: 1.0, 2: 0.3, 3: 0.12, 4: 0.04}.get(int(k), 0.0) for k in h])
    if shape == "piano":
        return np.abs(np.sin(np.pi * h / 7.3)) / h
    formants = {
        "reed": ((1100, 500, 1.0), (2600, 700, 0.5)),
        "choir": ((650, 220, 1.0), (1080, 260, 0.6), (2700, 500, 0.25)),
    }[shape]
    hz = h * f0
    return sum(g * np.exp(-(((hz - c) / w) ** 2)) for c, w, g in formants) / h**0.5 + 0.15 / h**2


def _table(shape: str, f0: float, cutoff: float) -> np.ndarray:
    """One period of a wave, low-passed at `cutoff` and free of aliases; (2**14,) float32."""
    h = np.arange(1, max(2, int(0.46 * SAMPLE_RATE / f0)) + 1)
    amplitude = _spectrum(shape, h, f0)
    # Levelled before the filter, so that closing the filter also makes the sound softer.
    amplitude = amplitude / np.sqrt(np.sum(amplitude**2)) / (1 + (h * f0 / cutoff) ** 4) ** 0.5
    spectrum = np.zeros(_TABLE // 2 + 1, dtype=np.complex64)
    spectrum[1 : len(h) + 1] = -0.5j * amplitude * _TABLE
    return np.fft.irfft(spectrum).astype(np.float32)


def _phase(f: float, n: int, start: int = 0) -> np.ndarray:
    """Phase as a 32-bit fraction of a turn: wraps for free and never loses precision."""
    step = np.uint32(round(f / SAMPLE_RATE * 2**32))
    return np.arange(n, dtype=np.uint32) * step + np.uint32(start)


def _radians(phase: np.ndarray) -> np.ndarray:
    """32-bit phase to float32 radians in [-pi, pi)."""
    return phase.view(np.int32) * np.float32(np.pi / 2**31)


def _wave(patch: Patch, f0: float, n: int, velocity: float, rng) -> np.ndarray:
    """Wavetable voice(s), fading from a bright table to a dark one."""
    bright = _table(patch.shape, f0, max(patch.bright * (0.5 + 0.6 * velocity), 1.2 * f0))
    dark = _table(patch.shape, f0, max(patch.dark * (0.6 + 0.5 * velocity), 1.1 * f0))
    t = np.arange(n, dtype=np.float32) / SAMPLE_RATE
    opening = np.exp(t * np.float32(-1 / patch.fade))
    wobble = 0
    if patch.vibrato:
        depth = patch.vibrato * f0 * 0.0578 / (2 * np.pi * 5.3)  # turns; vibrato in semitones
        wobble = np.sin(t * np.float32(2 * np.pi * 5.3)) * np.minimum(t * 3, 1)
        wobble = (wobble * np.float32(depth * 2**32)).astype(np.int64).astype(np.uint32)
    out = np.zeros(n, dtype=np.float32)
    for spread in np.linspace(-1, 1, patch.voices) if patch.voices > 1 else (0.0,):
        f = f0 * 2 ** (spread * patch.detune / 1200)
        index = (_phase(f, n, int(rng.integers(2**32))) + wobble) >> np.uint32(32 - _TABLE_BITS)
        low = dark[index]
        out += low + opening * (bright[index] - low)
    out *= np.float32(0.8 / np.sqrt(patch.voices))
    if patch.breath:
        out += np.float32(patch.breath) * rng.standard_normal(n, dtype=np.float32)
    return out


def _fm(patch: Patch, f0: float, n: int, velocity: float) -> np.ndarray:
    """Two operators; the index falls with time and, against aliases, with pitch."""
    t = np.arange(n, dtype=np.float32) / SAMPLE_RATE
    peak = patch.bright * (0.4 + 0.8 * velocity) * min(1.0, 1800 / (f0 * patch.ratio))
    floor = min(patch.dark, peak)
    index = floor + (peak - floor) * np.exp(t * np.float32(-1 / patch.fade))
    modulator = np.sin(_radians(_phase(f0 * patch.ratio, n)))
    out = np.sin(_radians(_phase(f0, n)) + index * modulator)
    if patch.shape == "tine" and 9 * f0 < 10_000:
        tine = np.sin(_radians(_phase(9 * f0, n))) * np.exp(t * np.float32(-18))
        out += np.float32(0.25 * velocity) * tine
    return out


def _pluck(patch: Patch, f0: float, n: int, velocity: float, rng) -> np.ndarray:
    """Karplus-Strong, one period at a time, then read at the speed that tunes it exactly."""
    damp = 0.5 - 0.3 * patch.bright
    period = max(2, int(np.floor(SAMPLE_RATE / f0 - damp)))
    speed = f0 * (period + damp) / SAMPLE_RATE
    laps = int(np.ceil(n * speed / period)) + 1
    string = np.zeros(laps * period + 1, dtype=np.float32)
    burst = rng.uniform(-1, 1, period).astype(np.float32)
    hardness = np.clip(patch.bright * (0.6 + 0.5 * velocity), 0.1, 1.0)
    spectrum = np.fft.rfft(burst)
    k = np.arange(len(spectrum))
    spectrum *= 1 / (1 + (k * f0 / (300 + 5000 * hardness**2)) ** 2) * np.abs(np.sin(k * 0.44))
    burst = np.fft.irfft(spectrum, period)
    string[1 : period + 1] = burst / (np.sqrt(np.mean(burst**2)) + 1e-9) * 0.5
    gain = 10 ** (-3 / (f0 * patch.decay))
    old, new = np.float32(gain * (1 - damp)), np.float32(gain * damp)
    for start in range(period + 1, laps * period + 1, period):
        back = start - period
        lap = old * string[back:start]
        lap += new * string[back - 1 : start - 1]
        string[start : start + period] = lap
    read = np.arange(n) * speed + 1
    return np.interp(read, np.arange(len(string)), string).astype(np.float32)


def note(patch: Patch, midi: int, held: int, velocity: float, cache: dict) -> np.ndarray:
    """One note at full level, made once for each pitch, length and velocity class.

    Parameters
    ----------
    midi
        Pitch.
    held
        Samples until the release.
    velocity
        0 to 1; chooses the timbre. The caller scales the loudness.
    cache
        Notes made so far with this patch; filled here.

    Returns
    -------
    ndarray, shape (held + release,), float32
        Read only: it is shared.
    """
    which = int(np.argmin([abs(velocity - v) for v in _VELOCITIES]))
    key = (midi, held, which)
    if key not in cache:
        f0, level = frequency(midi), _VELOCITIES[which]
        n = held + max(240, int(patch.release * SAMPLE_RATE))
        # Seeded by the note itself: the result cannot depend on which note was asked for first.
        rng = np.random.default_rng((midi, held, which))
        if patch.engine == "wave":
            sound = _wave(patch, f0, n, level, rng) * envelope(patch, held, n)
        elif patch.engine == "fm":
            sound = _fm(patch, f0, n, level) * envelope(patch, held, n)
        else:
            ringing = replace(patch, sustain=1.0)
            sound = _pluck(patch, f0, n, level, rng) * envelope(ringing, held, n)
        cache[key] = sound.astype(np.float32) * np.float32(patch.gain)
    return cache[key]
