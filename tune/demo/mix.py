"""Effects and mastering on float32 mono arrays at `SAMPLE_RATE`."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter, oaconvolve

from tune.demo.synth import SAMPLE_RATE


def overdrive(x: np.ndarray, drive: float) -> np.ndarray:
    """Soft distortion of a whole part, so that the notes of a chord beat against each other."""
    return (np.tanh(x * np.float32(drive)) * np.float32(0.5)).astype(np.float32)


def echo(x: np.ndarray, delay_s: float, feedback: float) -> np.ndarray:
    """Five fading repeats, each darker than the one before."""
    shift = max(1, int(delay_s * SAMPLE_RATE))
    out = np.zeros_like(x)
    tap = x
    for i in range(1, 6):
        if i * shift >= len(x):
            break
        tap = (tap[:-1] + tap[1:]) * np.float32(0.5 * feedback)
        end = min(len(out), i * shift + len(tap))
        out[i * shift : end] += tap[: end - i * shift]
    return out


def reverb(x: np.ndarray, rt60_s: float, rng: np.random.Generator) -> np.ndarray:
    """A room: convolution with decaying noise, at half the rate because rooms are dark anyway."""
    n = int(rt60_s * SAMPLE_RATE / 2)
    t = np.arange(n, dtype=np.float32) / n
    response = rng.standard_normal(n, dtype=np.float32) * np.exp(-6.9 * t)
    response = lfilter([0.45], [1, -0.55], response)
    response[: int(0.004 * SAMPLE_RATE)] = 0  # 8 ms before the first wall answers
    response = (response / np.sqrt(np.sum(response**2))).astype(np.float32)
    half = x[: len(x) // 2 * 2].reshape(-1, 2).mean(1)
    wet = oaconvolve(half, response)[: len(half)]
    out = np.zeros_like(x)
    out[0 : 2 * len(wet) : 2] = wet
    out[1 : 2 * len(wet) - 1 : 2] = 0.5 * (wet[:-1] + wet[1:])
    return out


def tilt(x: np.ndarray, decibels: float) -> np.ndarray:
    """Turn the balance of treble to bass about 900 Hz by `decibels`."""
    a = np.float32(np.exp(-2 * np.pi * 900 / SAMPLE_RATE))
    low = lfilter(np.array([1 - a], np.float32), np.array([1, -a], np.float32), x)
    g = np.float32(10 ** (decibels / 40))
    return low / g + (x - low) * g


def block_dc(x: np.ndarray) -> np.ndarray:
    """Remove what lies below about 20 Hz."""
    b, a = np.array([1, -1], np.float32), np.array([1, -0.995], np.float32)
    return lfilter(b, a, x)


def fade(x: np.ndarray, in_s: float, out_s: float) -> np.ndarray:
    """Fade both ends, in place."""
    n_in, n_out = int(in_s * SAMPLE_RATE), int(out_s * SAMPLE_RATE)
    x[:n_in] *= np.sin(np.linspace(0, np.pi / 2, n_in, dtype=np.float32)) ** 2
    x[-n_out:] *= np.cos(np.linspace(0, np.pi / 2, n_out, dtype=np.float32)) ** 2
    return x


def limit(x: np.ndarray, peak_db: float, push: float) -> np.ndarray:
    """Round off the loudest peaks and set the level.

    Without memory: equal samples give equal samples wherever they stand.

    Parameters
    ----------
    peak_db
        Level of the highest peak, dB below full scale (a negative number).
    push
        How far into the limiter the music is driven; 1 leaves all but rare peaks alone.
    """
    loud = np.quantile(np.abs(x[::8]), 0.998) / push
    x = x * np.float32(0.7 / max(loud, 1e-9))
    size = np.abs(x)
    over = size > 0.7
    x[over] = np.sign(x[over]) * (0.7 + 0.3 * np.tanh((size[over] - 0.7) / 0.3))
    return x * np.float32(10 ** (peak_db / 20) / np.max(np.abs(x)))
