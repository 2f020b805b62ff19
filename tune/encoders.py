"""The table of encoders: MuQ, MuQ in small, and the log-mel baseline."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tune.encoder import SAMPLE_RATE, Encoder, EncoderError
from tune.muq import MEMORY_BUDGET, load_folder, load_hub, load_nano, load_random

MEL_VERSION = 1  # raised when a change here changes the baseline's numbers


class MelEncoder(Encoder):
    """Log-mel baseline: mean and deviation of each of MuQ's 128 mel bands (in dB) over time.

    Any learned encoder must beat it. It has one layer, number 0.
    """

    def __init__(self, *, device):
        from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

        key = f"mel {MEL_VERSION} 24000 2048 240 128 db"
        super().__init__(
            "mel", frame_rate=100.0, n_layers=0, embedding_dim=256, precision="no",
            device=device, fingerprint=hashlib.sha256(key.encode()).hexdigest(),
        )  # fmt: skip
        self.mel = MelSpectrogram(SAMPLE_RATE, n_fft=2048, hop_length=240, n_mels=128).to(device)
        self.decibel = AmplitudeToDB().to(device)

    def states(self, audio, layers, dtype):
        """Yield the log-mel spectrogram (B, T, 128) at 100 Hz, in dB."""
        if set(layers) != {0}:
            raise ValueError(f"the mel encoder has layer 0 only, got {layers}")
        yield self.decibel(self.mel(audio.float()))[..., :-1].transpose(1, 2)

    def pool(self, states):
        """Mean and population deviation of each band, (..., 256)."""
        return torch.cat([states.mean(-2), states.std(-2, correction=0)], -1)


def _load_mel(name, *, precision, device, **kwargs):
    """The log-mel baseline; always float32."""
    return MelEncoder(device=device)


@dataclass(frozen=True)
class EncoderRow:
    """A row of the table of encoders."""

    load: Callable[..., Encoder]
    about: str


ENCODERS = {
    "muq": EncoderRow(load_hub, "MuQ, 300 M parameters, from the hub (weights CC-BY-NC 4.0)"),
    "muq-nano": EncoderRow(load_nano, "MuQ in small, 2.7 M parameters, untrained, no download"),
    "mel": EncoderRow(_load_mel, "log-mel mean and deviation per band: the baseline to beat"),
}


def load_encoder(
    name: str, *, precision: str = "no", device: str | torch.device = "cpu",
    weights: str = "pretrained", memory_budget: int = MEMORY_BUDGET, compile: bool = False,
) -> Encoder:  # fmt: skip
    """Load a frozen encoder.

    Parameters
    ----------
    name : str
        A name of `ENCODERS`, a folder with MuQ's config.json and model.safetensors, or a hub id.
    precision : "no", "fp16" or "bf16"
    device : what it runs on
    weights : "pretrained", or "random" for MuQ's size with weights from a fixed seed: no download,
        for measuring what it costs (which does not depend on the weights)
    memory_budget : bytes that weights and activations should stay within; sets the size of the
        front end's chunks, which changes no result
    compile : pass the parts through `torch.compile`

    Raises
    ------
    EncoderError
        When it is unknown, can't be downloaded, is incomplete or holds other weights than its
        configuration says. Weights are read from safetensors only, never from a pickle.
    """
    kwargs = {"precision": precision, "device": device, "memory_budget": memory_budget,
              "compile": compile}  # fmt: skip
    if weights == "random" and name not in ("muq-nano", "mel"):
        if name != "muq":
            raise EncoderError(f"random weights are made for muq only, not for {name!r}")
        return load_random(name, **kwargs)
    if name in ENCODERS:
        return ENCODERS[name].load(name, **kwargs)
    if Path(name).is_dir():
        return load_folder(name, Path(name).resolve().name, **kwargs)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return load_hub(name, **kwargs)
    raise EncoderError(
        f"unknown encoder {name!r}: it is none of {', '.join(ENCODERS)}, no folder and no hub id"
    )
