"""An encoder of your own: a torch module over audio that states its sample rate.

    accelerate launch train_probe.py --encoder examples/own_encoder.py:Bands --seg 10
    python -m tune.encoders check examples/own_encoder.py:Bands

Copy it anywhere and name it by its path, also in sweeps. The store, segments, layers, half
precision and pooling over time are TUNE's; a changed file is encoded anew.
"""

import torch
from torchaudio.transforms import MelSpectrogram


class Bands(torch.nn.Module):
    """Loudness of 64 mel bands (layer 0), and 128 random mixtures of them over 0.2 s (layer 1)."""

    sample_rate = 24_000

    def __init__(self):
        super().__init__()
        self.mel = MelSpectrogram(self.sample_rate, n_fft=2048, hop_length=480, n_mels=64)
        self.mix = torch.nn.Conv1d(64, 128, 11, padding=5)

    def forward(self, audio):  # (B, n_samples) -> (B, T, D) of each layer
        bands = self.mel(audio).add(1e-4).log()  # (B, 64, T)
        return [bands.transpose(1, 2), self.mix(bands).relu().transpose(1, 2)]
