"""Find recordings that sound the same though their files differ: lossy copies and excerpts.

A recording is known by its landmarks: pairs of peaks of its spectrogram that follow each other,
each a code of (first frequency, step in frequency, step in time). In a copy, whatever its codec,
rate or loudness, many of them are the same, all shifted by one time; in other music a few are, and
not by one time. After Wang 2003, "An industrial-strength audio search algorithm". Another
performance of a piece is another recording, and not found; nor is one at another speed or pitch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 11_025
WINDOW, HOP = 1024, 256  # samples: 93 and 23 ms
NEAR = 15, 14  # a peak is the loudest within so many frames and bins: 0.35 s and 150 Hz
FLOOR = 1e-3  # amplitude of the faintest sine that counts
STEP_FRAMES, STEP_BINS = 64, 64  # how far a pair's second peak may be
FAN = 4  # pairs that a peak begins
AHEAD = 16  # peaks among which its partners are looked for
BLOCK = 4096  # frames that are transformed at once
CODES = 1 << 22
SHIFTS = 1 << 25  # shifts that fit in a key, of either sign: 108 hours
MIN_COMMON = 20  # landmarks that a copy shares at its shift
MIN_DIFFERENT = 12  # pairs of frequencies among them: a held tone repeats a few
MIN_SHARE = 0.12  # where the two overlap; the same drums at one tempo share up to 0.1


@dataclass(frozen=True)
class Landmarks:
    """A recording's landmarks, sorted by time.

    Attributes
    ----------
    codes : (n,) uint32, below 2^22
    frames : (n,) int32, when they begin, in steps of 256 / 11,025 s
    """

    codes: np.ndarray
    frames: np.ndarray


@dataclass(frozen=True)
class AudioMatch:
    """Two recordings that sound the same for a while.

    Attributes
    ----------
    one, other : their names
    share : of the landmarks of the time that both have, the share that both have at this shift
    at_s : when the first one begins in the other, in seconds; negative: before it
    """

    one: str
    other: str
    share: float
    at_s: float


def find_landmarks(samples: np.ndarray, sample_rate: int, thin: int = 1) -> Landmarks:
    """Find a recording's landmarks, about 50 a second of music.

    Parameters
    ----------
    samples : (n,) float32, mono
    sample_rate : in Hz
    thin : only one code in so many is kept, the same ones of every recording
    """
    import soxr

    if sample_rate != SAMPLE_RATE:
        samples = soxr.resample(samples, sample_rate, SAMPLE_RATE)
    frames, bins = _peaks(samples)
    begun = np.zeros(len(frames), int)
    codes, starts = [np.empty(0, int)], [np.empty(0, int)]
    for ahead in range(1, min(AHEAD, len(frames))):
        step, up = frames[ahead:] - frames[:-ahead], bins[ahead:] - bins[:-ahead]
        pairs = (step > 1) & (step < STEP_FRAMES) & (np.abs(up) < STEP_BINS)
        pairs &= begun[:-ahead] < FAN
        begun[:-ahead] += pairs
        codes.append(((bins[:-ahead] << 13) | ((up + STEP_BINS) << 6) | step)[pairs])
        starts.append(frames[:-ahead][pairs])
    code, start = np.concatenate(codes), np.concatenate(starts)
    kept = (code * 2_654_435_761 % 2**32 >> 16) % thin == 0  # Knuth's hash: its high bits spread
    order = np.argsort(start[kept], kind="stable")
    return Landmarks(code[kept][order].astype(np.uint32), start[kept][order].astype(np.int32))


def _peaks(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames and bins (n,) of the spectrogram's peaks, sorted by frame."""
    from scipy.ndimage import maximum_filter

    window = np.hanning(WINDOW).astype(np.float32)
    n = 1 + (len(wave) - WINDOW) // HOP
    frames, bins = [np.empty(0, int)], [np.empty(0, int)]
    for first in range(0, n, BLOCK):
        begin, end = max(0, first - NEAR[0]), min(n, first + BLOCK + NEAR[0])
        part = wave[begin * HOP : (end - 1) * HOP + WINDOW]
        windows = np.lib.stride_tricks.sliding_window_view(part, WINDOW)[::HOP]
        size = np.abs(np.fft.rfft(windows * window))[:, : WINDOW // 2]  # (T, 512)
        highest = maximum_filter(size, [2 * near + 1 for near in NEAR])
        peaks = (size == highest) & (size > FLOOR * window.sum() / 2)
        t, f = peaks[first - begin : first - begin + BLOCK].nonzero()
        frames.append(t + first)
        bins.append(f)
    return np.concatenate(frames), np.concatenate(bins)


def find_alike(
    known: Mapping[str, Landmarks], asked: Sequence[str], among: Sequence[str]
) -> Iterator[list[AudioMatch]]:
    """Look up recordings among others.

    Parameters
    ----------
    known : name -> landmarks, with one `thin`
    asked : names of those that are looked up
    among : names of those they are looked up among; none is compared with itself

    Yields
    ------
    list of Alike for each one asked, the most alike first
    """
    lengths = [len(known[name].codes) for name in among]
    codes = np.concatenate([np.empty(0, np.uint32), *(known[name].codes for name in among)])
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    frames = np.concatenate([np.empty(0, np.int32), *(known[n].frames for n in among)])[order]
    owner = np.repeat(np.arange(len(among)), lengths)[order]
    for name in asked:
        found = []
        for other, shift in _shifts(known[name], codes, frames, owner):
            if among[other] != name:
                share = _share(known[name], known[among[other]], shift)
                if share >= MIN_SHARE:
                    found.append(AudioMatch(name, among[other], share, shift * HOP / SAMPLE_RATE))
        yield sorted(found, key=lambda alike: -alike.share)


def _shifts(one, codes, frames, owner) -> list[tuple[int, int]]:
    """Of each recording with enough landmarks of this one at a shift: its number and the shift."""
    low, high = (np.searchsorted(codes, one.codes, side) for side in ("left", "right"))
    n = high - low
    place = np.arange(n.sum()) + np.repeat(low - np.cumsum(n) + n, n)
    shift = frames[place].astype(np.int64) - np.repeat(one.frames, n)
    keys, counts = np.unique(owner[place] * (2 * SHIFTS) + shift + SHIFTS, return_counts=True)
    # A copy's frames don't begin just where the original's do: two neighbours count together.
    counts[:-1] += np.where(np.diff(keys) == 1, counts[1:], 0)
    best: dict[int, tuple[int, int]] = {}
    enough = counts >= MIN_COMMON
    for key, count in zip(keys[enough].tolist(), counts[enough].tolist(), strict=True):
        other, at = divmod(key, 2 * SHIFTS)
        best[other] = max(best.get(other, (0, 0)), (count, at - SHIFTS))
    return [(other, at) for other, (_, at) in best.items()]


def _share(one: Landmarks, other: Landmarks, shift: int) -> float:
    """Share of the common landmarks where two overlap at a shift; 0 for too few different ones."""
    begin, end = max(0, -shift), min(one.frames[-1], other.frames[-1] - shift)
    mine = one.codes[(one.frames >= begin) & (one.frames <= end)]
    theirs = (other.frames >= begin + shift) & (other.frames <= end + shift)
    at = one.frames.astype(np.int64) * CODES + one.codes
    there = (other.frames.astype(np.int64) - shift) * CODES + other.codes
    common = np.isin(at, np.concatenate([there, there - CODES]))  # at this shift or the next
    if len(np.unique(one.codes[common] >> 6)) < MIN_DIFFERENT:
        return 0.0
    return min(1.0, float(common.sum() / min(len(mine), theirs.sum())))
