"""MuQ's front end, exact and in constant memory: mel spectrogram and two convolution blocks.

The front end is nearly all of MuQ's memory and two thirds of its arithmetic, and it is local in
time: an output frame (25 Hz) depends on nine mel frames (100 Hz) to each side. So it runs in chunks
of time with a halo, whose outputs are thrown away: the rest equals the pass over the whole segment.
At a segment's true edges the mel window reflects and the convolutions pad with zeros, as before.

Batch normalisation is folded into the convolutions (its statistics are frozen), which is exact but
for rounding.
"""

import copy
import logging

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tune.system.memory import is_out_of_memory

log = logging.getLogger(__name__)

SAMPLE_RATE = 24_000
SPECTRA = 64  # at once on a CPU: half a megabyte
HALO = 4  # output frames to each side that a chunk computes and drops; 3 are touched by its edges


class FrontEnd(nn.Module):
    """Audio (B, n_samples) to the conformer's input (B, T, D).

    Parameters
    ----------
    muq : muq's MuQModel in evaluation mode; left as it is
    """

    def __init__(self, muq: nn.Module):
        super().__init__()
        mel = muq.preprocessor_melspec_2048.mel_stft
        self.n_fft, self.hop = mel.n_fft, mel.hop_length
        self.window = nn.Buffer(mel.spectrogram.window.clone())
        self.bands = nn.Buffer(mel.mel_scale.fb.clone())  # (n_fft / 2 + 1, n_mels)
        self.mean, self.std = muq.stat["melspec_2048_mean"], muq.stat["melspec_2048_std"]
        self.blocks = nn.ModuleList(_Block(block) for block in muq.conv.conv)
        self.blocks.to(memory_format=torch.channels_last)  # a sixth faster on CPUs, more on GPUs
        self.linear = copy.deepcopy(muq.conv.linear)
        self.stride = 1
        for block in self.blocks:
            self.stride *= block.first.stride[1]

    def bytes_per_second(self, dtype: torch.dtype) -> float:
        """About the peak memory of one second of audio: five tensors of the first block's size."""
        first = self.blocks[0].first
        frames = SAMPLE_RATE / self.hop / first.stride[1]
        bands = self.bands.shape[1] / first.stride[0]
        return 5 * first.out_channels * bands * frames * dtype.itemsize

    def forward(self, audio: torch.Tensor, dtype: torch.dtype, chunk_frames: int) -> torch.Tensor:
        """Run chunk by chunk.

        Parameters
        ----------
        audio : (B, n_samples) float32
        dtype : of the convolutions; the mel spectrogram is float32
        chunk_frames : output frames of one chunk

        Returns
        -------
        (B, T, D), T = ceil(mel frames / stride)
        """
        n_mel = audio.shape[1] // self.hop  # the last, incomplete frame is dropped, as MuQ does
        padded = F.pad(audio.float(), (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        n_out = -(-n_mel // self.stride)
        out = []
        for start in range(0, n_out, chunk_frames):
            end = min(start + chunk_frames, n_out)
            first = max(0, start - HALO)
            x = self._mel(padded, first * self.stride, min((end + HALO) * self.stride, n_mel))
            x = x.to(dtype)[:, None]  # (B, 1, n_mels, mel frames)
            for block in self.blocks:
                x = block(x)
            x = x[..., start - first : end - first]  # (B, C, F, T)
            out.append(self.linear(x.permute(0, 3, 1, 2).flatten(2)))
        return torch.cat(out, 1) if len(out) > 1 else out[0]

    def _mel(self, padded, first: int, last: int) -> torch.Tensor:
        """Normalised log-mel frames first..last-1 of the padded audio: (B, n_mels, frames)."""
        part = padded[:, first * self.hop : (last - 1) * self.hop + self.n_fft]
        mel = (self._power(part, last - first) @ self.bands).transpose(1, 2)
        return mel.clamp_(min=1e-10).log10_().mul_(10).sub_(self.mean).div_(self.std)

    def _power(self, audio, n_frames: int) -> torch.Tensor:
        """Power spectrum (B, n_frames, bins), on a CPU made in pieces that fit its caches."""

        def power(part):
            spectrum = torch.stft(
                part,
                self.n_fft,
                self.hop,
                self.n_fft,
                self.window,
                center=False,
                return_complex=True,
            )  # (B, bins, frames)
            return spectrum.real.square().add_(spectrum.imag.square()).transpose(1, 2)

        if audio.device.type != "cpu":
            return power(audio)
        out = audio.new_empty(len(audio), n_frames, self.n_fft // 2 + 1)
        group = max(1, SPECTRA // n_frames)  # segments at once
        for i in range(0, len(audio), group):
            for k in range(0, n_frames, SPECTRA):
                end = min(k + SPECTRA, n_frames)
                part = audio[i : i + group, k * self.hop : (end - 1) * self.hop + self.n_fft]
                out[i : i + group, k:end] = power(part)
        return out


class _Block(nn.Module):
    """MuQ's Res2dModule with batch normalisation folded into its convolutions.

    In half precision on a GPU, cuDNN adds biases, the side branch and ReLU inside its convolutions:
    as passes of their own they take a sixth of a large GPU's time.
    """

    fuses = True  # on this machine

    def __init__(self, block: nn.Module):
        super().__init__()
        self.first = fuse_conv_bn_eval(block.conv1, block.bn1)
        self.side = fuse_conv_bn_eval(block.conv3, block.bn3)
        self.second = fuse_conv_bn_eval(block.conv2, block.bn2)
        self.bias = nn.Buffer(self.side.bias + self.second.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, F, T) to (B, C', F / 2, T / stride)."""
        if self.fuses and x.device.type == "cuda" and x.dtype != torch.float32:
            try:
                return self._fused(x)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self.fuses = False
                log.info("cuDNN has no fused convolution here: %s", error)
        main = self.second(F.relu_(self.first(x)))
        return F.relu_(main.add_(self.side(x)))

    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        """`forward` by cuDNN's convolutions that end in a ReLU."""

        def shape(layer):
            return layer.stride, layer.padding, layer.dilation, layer.groups

        first, side, second = self.first, self.side, self.second
        main = torch.cudnn_convolution_relu(x, first.weight, first.bias, *shape(first))
        added = F.conv2d(x, side.weight, None, *shape(side))
        return torch.cudnn_convolution_add_relu(
            main, second.weight, added, 1.0, self.bias, *shape(second)
        )
