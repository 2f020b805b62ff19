"""musicnn (Pons and Serra 2019), a convolutional tagger with 0.8 M parameters, run by torch.

The weights come from the Python package `musicnn` 0.1.0 (ISC licence). It asks for a NumPy of 2019
and for TensorFlow, so it is installed without its dependencies, and its checkpoint is the only file
that is read (`tune.encoders.tensor_bundle`): none of its code is executed.

Layers: 0 the front end (timbral, then temporal filters), 1 to 3 the mid-end's convolutions, 4 those
four side by side, 5 the tagger's penultimate layer, one vector a patch, held for the patch's
frames. As in the package, patches of 187 frames (3 s) follow each other without overlap. Frames
that remain at the end are taken from one more patch that ends with the segment; a shorter segment
is one patch of its own length. No frame of padding is returned.
"""

import hashlib
import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tune.encoders.base import Encoder, EncoderError
from tune.encoders.tensor_bundle import read_bundle

FORWARD_VERSION = 1  # raised when a change here changes the numbers
INSTALL = "pip install --no-deps musicnn==0.1.0"
REINSTALL = "pip install --no-deps --force-reinstall musicnn==0.1.0"
CHECKPOINTS = {"musicnn": "MSD_musicnn", "musicnn-mtt": "MTT_musicnn"}  # folders of the package
SAMPLE_RATE, N_FFT, HOP, N_BANDS = 16_000, 512, 256, 96
PATCH = 187  # frames
PATCHES_AT_ONCE = 8
PATCH_BYTES = 20_000_000  # activations of one patch; measured: 0.08 GB for four
SIZES = (561, 64, 64, 64, 753, 200)  # of the layers
STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")
EPSILON = 1e-3  # of TensorFlow's batch normalisation


class MusicnnEncoder(Encoder):
    """musicnn, always in float32.

    Parameters
    ----------
    weights : the checkpoint's tensors by name, as `WEIGHTS` lists them
    """

    sample_rate = SAMPLE_RATE
    sizes = SIZES

    def __init__(self, name, weights: dict[str, np.ndarray], *, device):
        from torchaudio.transforms import MelSpectrogram

        digest = hashlib.sha256(f"musicnn {FORWARD_VERSION}".encode())
        for key, value in sorted(weights.items()):
            digest.update(f"{key}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value))
        super().__init__(
            name,
            frame_rate=SAMPLE_RATE / HOP,
            n_layers=len(SIZES) - 1,
            embedding_dim=SIZES[-1],
            precision="no",
            device=device,
            fingerprint=digest.hexdigest(),
        )
        # librosa's bands; the edges are reflected, which was its default in 2019.
        self.mel = MelSpectrogram(
            SAMPLE_RATE, N_FFT, hop_length=HOP, n_mels=N_BANDS, norm="slaney", mel_scale="slaney"
        ).to(device)
        self.model = Musicnn()
        self.model.load_state_dict({WEIGHTS[k]: _to_torch(v) for k, v in weights.items()})
        self.model.eval().requires_grad_(False).to(device)

    def expected_bytes(self, batch_seconds):
        """Activations of the patches that run together."""
        patches = math.ceil(batch_seconds * self.frame_rate / PATCH)
        return min(PATCHES_AT_ONCE, patches) * PATCH_BYTES

    def states(self, audio, layers, dtype):
        """Yield hidden states (B, T, D) at 62.5 Hz, in float32; D differs by layer."""
        if min(layers) < 0 or max(layers) > self.n_layers:
            raise ValueError(f"layers must lie in 0..{self.n_layers}, got {layers}")
        patches, n_rest = cut_patches(self.log_mel(audio))  # (B, P, F, 96)
        # Convolutions in true float32 (cuDNN's default is TF32).
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            parts = [
                self.model(part, layers) for part in patches.flatten(0, 1).split(PATCHES_AT_ONCE)
            ]
        for k in range(len(layers)):
            state = torch.cat([part[k] for part in parts]).unflatten(0, patches.shape[:2])
            if n_rest:
                whole, last = state[:, :-1], state[:, -1, -n_rest:]
                yield torch.cat([whole.flatten(1, 2), last], 1)
            else:
                yield state.flatten(1, 2)  # (B, T, D)

    def log_mel(self, audio: torch.Tensor) -> torch.Tensor:
        """The network's input: (B, n_samples) to (B, T, 96).

        The package rounds the mel spectrogram to float16, which overflows in loud music (above
        6.55) and makes the network's output meaningless; here it stays float32.
        """
        return torch.log10(10_000 * self.mel(audio.float()) + 1).transpose(1, 2)


class Musicnn(nn.Module):
    """The network. `convs` and `norms` are numbered as TensorFlow numbers them."""

    def __init__(self):
        super().__init__()
        shapes = [(204, 7, 38), (204, 7, 67), (51, 128, 1), (51, 64, 1), (51, 32, 1)]
        front = [nn.Conv2d(1, n, (time, bands)) for n, time, bands in shapes]
        middle = [nn.Conv2d(1, 64, (7, width)) for width in SIZES[:3]]
        self.convs = nn.ModuleList(front + middle)
        channels = [1, *(conv.out_channels for conv in self.convs), 2 * SIZES[4], SIZES[5]]
        self.norms = nn.ModuleList(Norm(n) for n in channels)
        self.dense = nn.Linear(2 * SIZES[4], SIZES[5])

    def forward(self, patches: torch.Tensor, layers) -> list[torch.Tensor]:
        """Log-mel patches (P, F, 96) to the hidden states (P, F, D) of the layers."""
        x = self.norms[0](patches[:, None])  # (P, 1, F, 96)
        states = [torch.cat([self._convolve(i, x) for i in range(5)], 1)]  # (P, 561, F)
        for i in range(5, 8):
            y = self._convolve(i, states[-1].transpose(1, 2)[:, None])  # (P, 64, F)
            states.append(y + states[-1] if i > 5 else y)
        states.append(torch.cat(states, 1))  # (P, 753, F)
        if len(SIZES) - 1 in layers:
            pooled = torch.stack([states[-1].amax(2), states[-1].mean(2)], 2).flatten(1)
            x = self.norms[10](F.relu(self.dense(self.norms[9](pooled))))  # (P, 200)
            states.append(x[..., None].expand(-1, -1, patches.shape[1]))
        return [states[k].transpose(1, 2) for k in layers]

    def _convolve(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Convolution i, ReLU, normalisation, maximum over bands: (P, 1, F, bands) to (P, D, F).

        The maximum comes first, which saves time and memory and is the same: all between them is
        monotone. Where the normalisation's factor is negative it has to be the minimum.
        """
        conv, norm = self.convs[i], self.norms[i + 1]
        before = (conv.kernel_size[0] - 1) // 2  # as TensorFlow pads to the same length
        x = F.pad(x, (0, 0, before, conv.kernel_size[0] - 1 - before))
        sign = norm.gamma.sign()[:, None]
        x = F.conv2d(x, conv.weight * sign[..., None, None]).amax(3) * sign
        return norm(F.relu(x + conv.bias[:, None]))


class Norm(nn.Module):
    """Batch normalisation of dimension 1 by the statistics of training."""

    def __init__(self, n: int):
        super().__init__()
        for key in STATISTICS:
            self.register_buffer(key, torch.empty(n))

    def forward(self, x):
        """Normalise x (P, D, ...)."""
        return F.batch_norm(
            x, self.moving_mean, self.moving_variance, self.gamma, self.beta, eps=EPSILON
        )


def _numbered(layer: str, i: int) -> str:
    """The name that TensorFlow gives the layer of this kind that was made i-th."""
    return f"{layer}_{i}" if i else layer


# Names of the checkpoint's tensors, and those of the network's.
WEIGHTS = {
    **{f"{_numbered('conv2d', i)}/kernel": f"convs.{i}.weight" for i in range(8)},
    **{f"{_numbered('conv2d', i)}/bias": f"convs.{i}.bias" for i in range(8)},
    **{
        f"{_numbered('batch_normalization', i)}/{key}": f"norms.{i}.{key}"
        for i in range(11)
        for key in STATISTICS
    },
    "dense/kernel": "dense.weight",
    "dense/bias": "dense.bias",
}


def _to_torch(value: np.ndarray) -> torch.Tensor:
    """A kernel (time, bands, in, out) or (in, out) in torch's order, other tensors as they are."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
    value = value if axes is None else value.transpose(axes)
    return torch.from_numpy(np.array(value, order="C"))


def cut_patches(frames: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Cut frames (B, T, D) into patches.

    Returns
    -------
    tensor of shape (B, P, F, D)
        F is 187, or T where that is less. When T isn't a multiple of F the last patch ends with
        the last frame and overlaps the one before.
    int
        Number of frames at the end of the last patch that no other patch holds; 0 when T is a
        multiple of F.
    """
    width = min(PATCH, frames.shape[1])
    whole, n_rest = divmod(frames.shape[1], width)
    patches = list(frames[:, : whole * width].split(width, 1))
    if n_rest:
        patches.append(frames[:, -width:])
    return torch.stack(patches, 1), n_rest


def load_musicnn(name, *, device, compile=False, **kwargs) -> MusicnnEncoder:
    """A row of `CHECKPOINTS`, from the installed package."""
    if compile:
        raise EncoderError(f"--compile is made for MuQ: leave it out for {name}")
    package = importlib.util.find_spec("musicnn")  # found, not imported
    if package is None or not package.submodule_search_locations:
        raise EncoderError(
            f"{name} takes its weights from the Python package musicnn, which isn't installed: "
            f"{INSTALL}"
        )
    folder = Path(package.submodule_search_locations[0]) / CHECKPOINTS[name]
    try:
        return MusicnnEncoder(name, read_bundle(f"{folder}/", WEIGHTS), device=device)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise EncoderError(
            f"{name}: the weights in {folder} aren't those of musicnn 0.1.0 ({reason}): {REINSTALL}"
        ) from error
