"""Structure: cut a track where the music changes, instead of every so many seconds.

A track is described by half-second frames of timbre (MFCC) and harmony (chroma), neighbouring
frames are joined bottom-up into sections, and the sections are brought between a shortest and a
longest length. The pieces lie side by side and cover the track. They follow from the audio at its
sample rate alone, not from the encoder. Samples are mono float32; F is frames, D features.

librosa is imported inside the functions: it takes seconds, and other rules don't need it.
"""

import importlib.metadata
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np

from tune.segments.pick import Pick

VERSION = 1  # raise it when a change of this module moves a boundary: stored ones are keyed by it
MIN_S, MAX_S = 5.0, 30.0
MIN_SAMPLE_RATE = 8000
WINDOWS_A_FRAME = 12  # spectra averaged into one frame
WINDOWS_A_SECOND = 24
WINDOW_S = 0.17  # about; long enough to resolve the notes of a chord
BLOCK_FRAMES = 120  # frames whose spectra are in memory at once (a minute, about 40 MB)
N_MELS, N_MFCC = 64, 20
RANGE_DB = 60.0  # dynamic range below the loudest band, so that silence is no outlier
# A feature's deviation counts as at least this much, so that a steady sound's trembling isn't
# blown up to structure: in dB (MFCC), and in parts of the strongest pitch class (chroma).
TIMBRE_FLOOR, CHROMA_FLOOR = 1.0, 0.02
SMOOTH_FRAMES = 5  # width of the median that removes what is shorter than about a second
NOVELTY_FRAMES = 16  # compared before and after a point: 8 s
FLAT_NOVELTY = 1e-6


@dataclass(frozen=True)
class StructureRule:
    """Segments that follow the music's sections; has the interface of `rules.SegmentRule`.

    Parameters
    ----------
    pick : Pick, optional
        Which of the pieces are encoded (`tune.segments.pick`); `cut` gives all.
    min_s, max_s : float
        Shortest and longest piece in seconds. The number of sections looked for is the track's
        length over max_s / 2 (15 s by default).

    Raises
    ------
    ValueError
        When a value is out of range, or `max_s` is less than twice `min_s`.
    """

    min_s: float = MIN_S
    max_s: float = MAX_S
    pick: Pick | None = field(default=None, repr=False)

    name: ClassVar[str] = "structure"
    needs_audio: ClassVar[bool] = True
    # Attributes that only fixed lengths have.
    length_s: ClassVar[None] = None
    hop_s: ClassVar[None] = None
    min_tail_s: ClassVar[None] = None

    def __post_init__(self):
        for name, value in (("shortest", self.min_s), ("longest", self.max_s)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"the {name} piece must be a number of seconds above 0, got {value:g}"
                )
        if self.max_s < 2 * self.min_s:
            raise ValueError(
                "the longest piece must be at least twice the shortest, or a piece that is too "
                f"long couldn't be split: got {self.min_s:g} s and {self.max_s:g} s"
            )

    def key(self) -> dict:
        """Everything that the boundaries depend on besides the audio: their key in the store."""
        return {
            "rule": self.name,
            "version": VERSION,
            "librosa": importlib.metadata.version("librosa"),
            "min_s": float(self.min_s),
            "max_s": float(self.max_s),
        }

    def cut(self, samples: np.ndarray, sample_rate: int) -> list[tuple[int, int]]:
        """Cut a track at its sections.

        Temporally constrained agglomerative clustering (Ward), as in McFee & Ellis, "Learning to
        segment songs with ordinal linear discriminant analysis", ICASSP 2014, by librosa's
        `segment.agglomerative`. A section shorter than `min_s` then joins the neighbour that
        sounds more like it; one longer than `max_s` is split at the largest novelty (`novelty`),
        or evenly where nothing changes.

        Parameters
        ----------
        samples : ndarray of float32, shape (n_samples,)
        sample_rate : int
            In Hz, at least 8000.

        Returns
        -------
        list of (start, end)
            In samples, in order, side by side, from 0 to n_samples. Each is between `min_s` and
            `max_s` long (to the rounding of a sample), but for a track that is shorter than
            `min_s`: that is one piece.

        Raises
        ------
        ValueError
            When there are no samples, or the sample rate is too low.
        """
        n = len(samples)
        if n < 1:
            raise ValueError(f"a track needs at least 1 sample, got {n}")
        shortest = max(1, round(self.min_s * sample_rate))
        longest = max(round(self.max_s * sample_rate), 2 * shortest)
        if n < 2 * shortest:
            return [(0, n)]  # two pieces wouldn't both be long enough
        k = min(max(1, round(n / (longest / 2))), n // shortest)
        features, frame = describe(samples, sample_rate), frame_length(sample_rate)
        bounds = _sections(features, frame, n, k)
        bounds = _merge_short(bounds, features, frame, shortest)
        bounds = _split_long(bounds, novelty(features), frame, shortest, longest)
        return list(pairwise(bounds))


def frame_length(sample_rate: int) -> int:
    """Samples of one frame, about half a second."""
    return WINDOWS_A_FRAME * round(sample_rate / WINDOWS_A_SECOND)


def describe(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Describe a track by timbre and harmony, standardised over the track.

    Parameters
    ----------
    samples : ndarray of float32, shape (n_samples,)
    sample_rate : int
        In Hz, at least 8000.

    Returns
    -------
    ndarray of float64, shape (F, D)
        One row for each whole frame of the track, and at least one. Both groups weigh alike. All
        zeros for a sound that doesn't change.
    """
    import librosa

    if sample_rate < MIN_SAMPLE_RATE:
        raise ValueError(
            f"the structure needs a sample rate of {MIN_SAMPLE_RATE} Hz or more, got {sample_rate}"
        )
    log_mel, chroma = _pooled(samples, sample_rate)  # (N_MELS, F), (12, F)
    log_mel = np.maximum(log_mel, log_mel.max() - RANGE_DB)
    # The cosine transform is linear: of the frames' means it is the mean of the windows' MFCC.
    timbre = librosa.feature.mfcc(S=log_mel, n_mfcc=N_MFCC)
    groups = [_standardised(timbre, TIMBRE_FLOOR), _standardised(chroma, CHROMA_FLOOR)]
    return np.concatenate(groups).T


def novelty(features: np.ndarray) -> np.ndarray:
    """How much the sound changes at the start of each frame.

    Foote's checkerboard kernel ("Automatic audio segmentation using a measure of audio novelty",
    ICME 2000) with inner products as similarity: its sum is the squared distance between the mean
    frames before and after, here of 8 s each (less at the ends, weighted as Ward does).

    Parameters
    ----------
    features : ndarray, shape (F, D)

    Returns
    -------
    ndarray of float64, shape (F,)
        0 or more; 0 at the first frame.
    """
    n = len(features)
    sums = np.concatenate([np.zeros((1, features.shape[1])), np.cumsum(features, axis=0)])
    at = np.arange(1, n)
    before, after = np.maximum(at - NOVELTY_FRAMES, 0), np.minimum(at + NOVELTY_FRAMES, n)
    n_before, n_after = at - before, after - at
    change = (sums[after] - sums[at]) / n_after[:, None]
    change -= (sums[at] - sums[before]) / n_before[:, None]  # (F - 1, D)
    weight = 2 / NOVELTY_FRAMES * n_before * n_after / (n_before + n_after)
    return np.concatenate([[0.0], weight * (change**2).sum(1)])


def _pooled(samples, sample_rate) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-mel (in dB) and chroma of every frame, block by block."""
    import librosa

    hop = round(sample_rate / WINDOWS_A_SECOND)
    n_fft = 2 ** round(math.log2(WINDOW_S * sample_rate))
    n_frames = max(1, len(samples) // frame_length(sample_rate))
    mels, chromas = [], []
    for first in range(0, n_frames, BLOCK_FRAMES):
        count = min(BLOCK_FRAMES, n_frames - first)
        block = _block(samples, first * WINDOWS_A_FRAME, count * WINDOWS_A_FRAME, hop, n_fft)
        spectra = librosa.stft(block, n_fft=n_fft, hop_length=hop, center=False)
        power = spectra.real**2 + spectra.imag**2
        mel = librosa.feature.melspectrogram(S=power, sr=sample_rate, n_fft=n_fft, n_mels=N_MELS)
        # A tuning found in each block would shift one block's pitch classes against another's.
        chroma = librosa.feature.chroma_stft(S=power, sr=sample_rate, n_fft=n_fft, tuning=0.0)
        for kept, values in ((mels, librosa.power_to_db(mel, top_db=None)), (chromas, chroma)):
            kept.append(values.reshape(len(values), count, WINDOWS_A_FRAME).mean(2))
    return np.concatenate(mels, axis=1), np.concatenate(chromas, axis=1)


def _block(samples, first, count, hop, n_fft) -> np.ndarray:
    """Samples under `count` windows from the first, each centred on its hop, zeros outside."""
    start = first * hop + hop // 2 - n_fft // 2
    end = start + (count - 1) * hop + n_fft
    part = samples[max(0, start) : max(0, end)]
    return np.pad(part, (max(0, -start), max(0, end - len(samples))))


def _standardised(group, floor) -> np.ndarray:
    """Smooth and standardise features (D, F) over the track; nothing where none passes the floor.

    Divided by the root of their number, so that groups of different size weigh alike.
    """
    from scipy.ndimage import median_filter

    group = group.astype(np.float64)
    # Mirrored, so that half a second of silence at an end goes as it does in the middle.
    group = median_filter(group, size=(1, SMOOTH_FRAMES), mode="mirror")
    group -= group.mean(1, keepdims=True)
    deviation = group.std(1, keepdims=True)
    if deviation.max() < floor:
        return np.zeros_like(group)
    return group / np.maximum(deviation, floor) / math.sqrt(len(group))


def _sections(features, frame, n_samples, k) -> list[int]:
    """Bounds [0, ..., n_samples] of at most k sections; even ones when nothing changes."""
    import librosa

    if not features.any():
        return [n_samples * i // k for i in range(k + 1)]
    starts = librosa.segment.agglomerative(features, min(k, len(features)), axis=0)
    return [*(int(start) * frame for start in starts), n_samples]


def _merge_short(bounds, features, frame, shortest) -> list[int]:
    """Join every piece that is too short, the shortest first, to the neighbour most like it."""
    bounds = list(bounds)

    def mean(i):
        first, last = bounds[i] // frame, bounds[i + 1] // frame
        return features[first : max(last, first + 1)].mean(0)

    while len(bounds) > 2:
        lengths = np.diff(bounds)
        i = int(lengths.argmin())
        if lengths[i] >= shortest:
            break
        if 0 < i < len(lengths) - 1:
            here = mean(i)
            to_next = np.linalg.norm(here - mean(i + 1)) < np.linalg.norm(here - mean(i - 1))
        else:
            to_next = i == 0
        del bounds[i + 1 if to_next else i]
    return bounds


def _split_long(bounds, novel, frame, shortest, longest) -> list[int]:
    """Split every piece that is too long, until none is."""
    out, todo = [0], list(bounds[:0:-1])  # the ends still to be reached, the next one last
    while todo:
        start, end = out[-1], todo[-1]
        if end - start <= longest:
            out.append(todo.pop())
            continue
        first = -(-(start + shortest) // frame)
        allowed = novel[first : (end - shortest) // frame + 1]
        if allowed.size and allowed.max() > FLAT_NOVELTY:
            todo.append((first + int(allowed.argmax())) * frame)
        else:
            pieces = -(-(end - start) // longest)
            # Half of a piece that is too long is long enough, as longest >= 2 * shortest.
            todo += [start + (end - start) * i // pieces for i in range(pieces - 1, 0, -1)]
    return out
