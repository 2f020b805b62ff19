"""Discrete tokens of a spectrogram, the targets of masked prediction; 25 a second.

MuQ predicts tokens of a Mel-RVQ, a residual quantiser of four mel frames. Here a quantiser is
fitted by k-means, for several views of the same spectrogram, because a small model with
an hour of training needs guidance (MERT's constant-Q target has the same purpose):

    mel        four mel frames (40 ms), MuQ's own target; three codebooks
    texture    mean and deviation of the mel bands over a second; two codebooks
    chroma     pitch classes over a second
    tonality   pitch classes over four seconds, invariant to the key: magnitudes of their discrete
               Fourier transform
    degrees    pitch classes over four seconds relative to those of the bass: major or minor in any
               key
    rhythm     the spectrum of the onsets' modulations (0.5 to 12 Hz) over four seconds

Each view is standardised, reduced to its principal components and quantised by codebooks of 256,
each of which codes the residual of those before it. The k-means is this module's own, not
scikit-learn's, so that the tokens of the shipped weights can be made again.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from muq_nano.mel_corpus import N_MELS, STRIDE

CODES = 256  # of a codebook
CODEBOOKS = {"mel": 3, "texture": 2, "chroma": 1, "tonality": 1, "degrees": 1, "rhythm": 1}
STREAMS = tuple(f"{v}.{i}" for v, n in CODEBOOKS.items() for i in range(n))
COMPONENTS = 48
_ONSET_WINDOW, _ONSET_BINS = 512, slice(2, 64)  # frames at 100 Hz; 0.4 to 12.3 Hz


def views(mel: np.ndarray, pitch: np.ndarray) -> dict[str, torch.Tensor]:
    """Views of a track, each (T, K) in float32.

    Parameters
    ----------
    mel : (4 T, 128) in dB at 100 Hz
    pitch : (T, 72) in dB at 25 Hz
    """
    x = torch.from_numpy(np.ascontiguousarray(mel, np.float32)).clamp(min=-60)
    frames = x.view(-1, STRIDE, N_MELS)  # (T, 4, 128)
    level = frames.mean(1)  # (T, 128)
    mean = _smooth(level, 25)
    spread = (_smooth(level.square(), 25) - mean.square()).clamp(min=0).sqrt()
    semitones = 10 ** (torch.from_numpy(np.ascontiguousarray(pitch, np.float32)) / 20)
    chroma = semitones.view(len(semitones), -1, 12).sum(1)  # (T, 12)
    second, four = _smooth(chroma, 25), _smooth(chroma, 100)
    octaves = semitones.view(len(semitones), -1, 12)
    low, high = (_smooth(x.sum(1), 100) for x in (octaves[:, :3], octaves[:, 2:]))
    spectrum = torch.fft.rfft(four / four.sum(1, keepdim=True).clamp(min=1e-8))
    return {
        "mel": frames.flatten(1),
        "texture": torch.cat([mean, spread], 1),
        "chroma": second / second.norm(dim=1, keepdim=True).clamp(min=1e-8),
        "tonality": spectrum.abs()[:, 1:],
        "degrees": _degrees(low, high),
        "rhythm": _modulations(x)[: len(frames)],
    }


def _degrees(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Circular cross-correlation (T, 12) of pitch classes in the bass, squared, and above it."""
    low, high = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-8) for x in (low, high))
    return torch.fft.irfft(torch.fft.rfft(low.square()).conj() * torch.fft.rfft(high), n=12)


def _smooth(x: torch.Tensor, width: int) -> torch.Tensor:
    """Running mean over `width` frames of (T, K), over what there is of them at the edges."""
    total = torch.cat([x.new_zeros(1, x.shape[1], dtype=torch.float64), x.double().cumsum(0)])
    at = torch.arange(len(x))
    low, high = (at - width // 2).clamp(min=0), (at + width - width // 2).clamp(max=len(x))
    return ((total[high] - total[low]) / (high - low)[:, None]).float()


def _modulations(mel: torch.Tensor) -> torch.Tensor:
    """Logarithmic modulation spectrum of the onsets in two halves of the bands, (T, K)."""
    rise = (mel[1:] - mel[:-1]).clamp(min=0)  # (4 T - 1, 128)
    onsets = torch.stack([rise[:, :48].mean(1), rise[:, 48:].mean(1)])  # (2, 4 T - 1)
    spectrum = torch.stft(
        onsets,
        _ONSET_WINDOW,
        STRIDE,
        window=torch.hann_window(_ONSET_WINDOW),
        return_complex=True,
        pad_mode="constant",
    )
    size = spectrum.abs()[:, _ONSET_BINS]  # (2, 62, T)
    size = size / size.sum(1, keepdim=True).clamp(min=1e-6)
    return (size + 1e-3).log().permute(2, 0, 1).flatten(1)


class Quantiser:
    """Views to tokens (T, 9): standardise, project, code the remainder again and again."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self.tensors = dict(tensors)

    @classmethod
    def fit(
        cls,
        tracks: Iterable[tuple[np.ndarray, np.ndarray]],
        seed: int,
        per_track: int = 100,
        rounds: int = 20,
    ) -> "Quantiser":
        """Fit to some frames of every track."""
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, list] = {name: [] for name in CODEBOOKS}
        for mel, pitch in tracks:
            found = views(mel, pitch)
            at = torch.randint(len(found["mel"]), (per_track,), generator=generator)
            for name, view in found.items():
                drawn[name].append(view[at])
        tensors = {}
        for name, parts in drawn.items():
            x = torch.cat(parts)
            tensors[f"{name}.mean"] = mean = x.mean(0)
            scale = x.std(0).clamp(min=1e-3)
            x = (x - mean) / scale
            basis = torch.linalg.eigh(x.T @ x / len(x)).eigenvectors.flip(1)[:, :COMPONENTS]
            tensors[f"{name}.basis"] = basis / scale[:, None]  # (K, at most 48)
            x = x @ basis
            for book in range(CODEBOOKS[name]):
                centres = _k_means(x, CODES, rounds, generator)
                tensors[f"{name}.{book}"] = centres
                x = x - centres[_nearest(x, centres)]
        return cls({k: v.contiguous() for k, v in tensors.items()})

    def __call__(self, mel: np.ndarray, pitch: np.ndarray) -> np.ndarray:
        """Tokens (T, 9) uint8 of a track, in the order of `STREAMS`."""
        out = []
        for name, x in views(mel, pitch).items():
            x = (x - self.tensors[f"{name}.mean"]) @ self.tensors[f"{name}.basis"]
            for book in range(CODEBOOKS[name]):
                centres = self.tensors[f"{name}.{book}"]
                codes = _nearest(x, centres)
                out.append(codes)
                x = x - centres[codes]
        return torch.stack(out, 1).to(torch.uint8).numpy()


def _nearest(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Number of the nearest centre of each row, (N,)."""
    distances = centres.square().sum(1) - 2 * (x @ centres.T)
    return distances.argmin(1)


def _k_means(x: torch.Tensor, k: int, rounds: int, generator: torch.Generator) -> torch.Tensor:
    """Lloyd's algorithm from k rows drawn at random; a centre that runs empty is drawn anew."""
    drawn = torch.randint(len(x), (k,), generator=generator)
    centres = x[drawn].clone()
    for _ in range(rounds):
        codes = _nearest(x, centres)
        count = torch.bincount(codes, minlength=k)
        total = torch.zeros_like(centres).index_add_(0, codes, x)
        centres = total / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero()[:, 0]
        if len(empty):
            drawn = torch.randint(len(x), (len(empty),), generator=generator)
            centres[empty] = x[drawn]
    return centres
