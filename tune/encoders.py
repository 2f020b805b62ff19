"""Frozen encoders: audio to hidden states, pooled over time.

Layers are counted as MuQ counts its hidden states: 0 is the front end's output, k the output of
layer k, the last one taken after the final layer norm. An encoder is used through `embed`, which
runs a batch of equally long segments up to the deepest layer asked for and keeps only the time
pooled states. The mel front end always runs in float32; half precision begins after it.
"""

import copy
import hashlib
import json
import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

log = logging.getLogger(__name__)

FORWARD_VERSION = 1  # raised when a change of this file changes an encoder's numbers
SAMPLE_RATE = 24_000
MIN_SECONDS = 0.1  # the mel window reflects 43 ms at each edge; below this there's no signal left
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NANO_SEED = 1234

# MuQ in small: the same classes and code path, 2.8 M parameters.
NANO_FOLDER = Path(__file__).parent / "muq-nano"


class EncoderError(ValueError):
    """An encoder that can't be loaded or used; the message says why and what to do."""


class NonFiniteError(ArithmeticError):
    """Hidden states that are NaN or infinite even in float32."""


def resolve_precision(
    requested: str, device_type: str, capability: tuple[int, int] | None = None
) -> str:
    """Choose the precision that the encoder runs in.

    Parameters
    ----------
    requested : "auto", "no", "fp16" or "bf16"
    device_type : "cuda", "cpu", "mps", ...
    capability : (major, minor), optional
        CUDA compute capability. Turing (7.5) reports bf16 as supported but emulates it slowly, so
        the capability decides: fp16 below 8.0, bf16 from there.

    Returns
    -------
    "no" (float32), "fp16" or "bf16"
    """
    if requested not in ("auto", *DTYPES):
        raise ValueError(f"precision must be auto, no, fp16 or bf16, got {requested!r}")
    if requested == "auto":
        if device_type != "cuda":
            return "no"
        return "bf16" if capability is not None and capability >= (8, 0) else "fp16"
    if requested == "fp16" and device_type == "cpu":
        raise ValueError("fp16 needs a GPU: on a CPU use --mixed_precision no (or auto, or bf16)")
    return requested


class Encoder:
    """What all encoders share: pooling, precision and the float32 second try.

    Attributes
    ----------
    name : str
        As given on the command line (a path is cut to its last part).
    sample_rate : int
        In Hz.
    frame_rate : float
        Hidden states per second.
    n_layers : int
        Number of the last hidden state; there are n_layers + 1.
    embedding_dim : int
        Size of one pooled state.
    precision : str
        "no", "fp16" or "bf16".
    untrained : bool
        True when the weights are random.
    fingerprint : str
        SHA-256 over everything that determines the numbers but audio, layers and precision.
    passes, redone : int
        Segments encoded so far, and batches computed again in float32.
    """

    sample_rate = SAMPLE_RATE
    min_seconds = MIN_SECONDS

    def __init__(self, name, *, frame_rate, n_layers, embedding_dim, precision, device,
                 fingerprint, untrained=False):  # fmt: skip
        self.name, self.untrained = name, untrained
        self.frame_rate, self.n_layers, self.embedding_dim = frame_rate, n_layers, embedding_dim
        self.precision, self.device = precision, torch.device(device)
        self.fingerprint = fingerprint
        self.passes = self.redone = 0

    @property
    def label(self) -> str:
        """The name as shown to people, which says when the weights are random."""
        return f"{self.name} (untrained)" if self.untrained else self.name

    def states(self, audio, layers, dtype) -> Iterator[torch.Tensor]:
        """Yield the hidden states (B, T, D) of the layers asked for, in ascending order."""
        raise NotImplementedError

    def keep_layers(self, deepest: int) -> None:
        """Free what only layers above `deepest` need; asking for those later is an error."""

    def pool(self, states: torch.Tensor) -> torch.Tensor:
        """Reduce a window of frames (..., T, D) to one vector (..., E): here the mean."""
        return states.float().mean(-2)

    def pool_width(self, frame_rate: float) -> int:
        """Frames in one window of `frame_rate` a second; more than the encoder has is an error."""
        if not 0 < frame_rate <= self.frame_rate:
            raise ValueError(
                f"--frame_rate must be above 0 and at most {self.frame_rate:g} Hz "
                f"(the rate of {self.name}), got {frame_rate:g}"
            )
        return round(self.frame_rate / frame_rate)

    @torch.inference_mode()
    def embed(
        self, audio: np.ndarray, layers: Sequence[int], frame_rate: float | None = None
    ) -> np.ndarray:
        """Encode a batch of equally long segments.

        Parameters
        ----------
        audio : ndarray of float32, shape (B, n_samples)
            At `sample_rate`, at least `min_seconds` long.
        layers : ascending layer numbers, each from 0 to `n_layers`
        frame_rate : float, optional
            Pool to this many vectors a second instead of one a segment (at most the encoder's).

        Returns
        -------
        ndarray of float32, shape (B, P, L, E)
            P is 1, or the number of windows when `frame_rate` is given (the last one may be
            shorter and is averaged over its own frames).

        Raises
        ------
        NonFiniteError
            When states are not finite in float32 either. In half precision a batch with
            non-finite states is computed again in float32 and counted in `redone`.
        """
        if audio.ndim != 2 or audio.shape[1] < self.min_seconds * self.sample_rate:
            raise ValueError(
                f"expected (B, samples) with at least {self.min_seconds} s at "
                f"{self.sample_rate} Hz, got shape {audio.shape}"
            )
        batch = torch.from_numpy(np.ascontiguousarray(audio, np.float32)).to(self.device)
        out = self._pooled(batch, layers, frame_rate, DTYPES[self.precision])
        if not torch.isfinite(out).all() and self.precision != "no":
            self.redone += 1
            out = self._pooled(batch, layers, frame_rate, torch.float32)
        if not torch.isfinite(out).all():
            raise NonFiniteError(f"{self.name} gives NaN or infinite hidden states in float32")
        self.passes += len(audio)
        return out.cpu().numpy()

    def _pooled(self, batch, layers, frame_rate, dtype) -> torch.Tensor:
        """Pooled states of a batch, (B, P, L, E) in float32, holding one layer at a time."""
        out = []
        for states in self.states(batch, layers, dtype):  # (B, T, D)
            if frame_rate is None:
                out.append(self.pool(states)[:, None])  # (B, 1, E)
            else:
                width = self.pool_width(frame_rate)
                out.append(torch.stack([self.pool(w) for w in states.split(width, 1)], 1))
        return torch.stack(out, 2)


class MuQEncoder(Encoder):
    """MuQ (Zhu et al. 2025), its own modules walked by our forward.

    The `muq` package's forward breaks on current transformers, computes the codebook logits and
    keeps every state; the parts themselves are sound. Attention runs as SDPA.
    """

    def __init__(self, name, config: dict, weights: dict | None, *, precision, device):
        model, digest = _build_muq(config, weights)
        super().__init__(
            name,
            frame_rate=float(config.get("label_rate", 25)),
            n_layers=len(model.conformer.layers),
            embedding_dim=config["encoder_dim"],
            precision=precision,
            device=device,
            fingerprint=digest,
            untrained=weights is None,
        )
        self._twin = None  # a float32 copy on the CPU, for batches that overflow in half precision
        if precision != "no":
            self._twin = copy.deepcopy(model)
        self.model = _cast(model, DTYPES[precision]).to(self.device)

    def keep_layers(self, deepest):
        """Drop the conformer layers above the deepest one asked for, and their memory."""
        for model in filter(None, (self.model, self._twin)):
            del model.conformer.layers[deepest:]

    def states(self, audio, layers, dtype):
        """Yield MuQ's hidden states (B, T, D) for the layers, T at 25 Hz."""
        model = self.model
        half = dtype != torch.float32
        if not half and self._twin is not None:
            model = self._twin.to(self.device)
        wanted = set(layers)
        if min(wanted) < 0 or max(wanted) > len(model.conformer.layers):
            raise ValueError(f"layers must lie in 0..{len(model.conformer.layers)}, got {layers}")
        mel = model.preprocessor_melspec_2048(audio.float())[..., :-1]  # (B, 128, 100 Hz)
        mel = (mel - model.stat["melspec_2048_mean"]) / model.stat["melspec_2048_std"]
        # Convolutions in true float32 when float32 is what was asked for (cuDNN's default is TF32).
        with torch.backends.cudnn.flags(allow_tf32=half):
            x = model.conv(mel.to(dtype))  # (B, T, D)
        if 0 in wanted:
            yield x
        conformer, last = model.conformer, max(wanted)
        positions = conformer.embed_positions(x)
        for k, layer in enumerate(conformer.layers[:last], start=1):
            x = layer(x, relative_position_embeddings=positions)
            x = x[0] if isinstance(x, tuple) else x  # a tuple before transformers 5
            if k in wanted:
                yield conformer.layer_norm(x) if k == self.n_layers else x


class MelEncoder(Encoder):
    """Log-mel baseline: mean and deviation of each of MuQ's 128 mel bands (in dB) over time.

    Any learned encoder must beat it. It has one layer, number 0.
    """

    def __init__(self, *, device):
        from muq.muq import MuQ  # noqa: F401 (fails early and clearly when muq is missing)
        from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

        key = f"mel {FORWARD_VERSION} 24000 2048 240 128 db"
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


def _load_nano(name, *, precision, device):
    """MuQ in small with weights from a fixed seed (untrained)."""
    config = json.loads((NANO_FOLDER / "config.json").read_text(encoding="utf-8"))
    return MuQEncoder(name, config, None, precision=precision, device=device)


def _load_hub(name, *, precision, device):
    """MuQ from the hub, or from the hub's cache."""
    repo = HUB_NAMES.get(name, name)
    folder = _download(repo)
    return _load_folder(folder, name, precision=precision, device=device)


def _load_folder(folder, name, *, precision, device):
    """MuQ from config.json and model.safetensors in a folder."""
    config, weights = _read_muq(Path(folder))
    return MuQEncoder(name, config, weights, precision=precision, device=device)


def _load_mel(name, *, precision, device):
    """The log-mel baseline; always float32."""
    return MelEncoder(device=device)


HUB_NAMES = {"muq": "OpenMuQ/MuQ-large-msd-iter"}


@dataclass(frozen=True)
class EncoderRow:
    """A row of the table of encoders."""

    load: Callable[..., Encoder]
    about: str


ENCODERS = {
    "muq": EncoderRow(_load_hub, "MuQ, 300 M parameters, from the hub (weights CC-BY-NC 4.0)"),
    "muq-nano": EncoderRow(_load_nano, "MuQ in small, 2.8 M parameters, untrained, no download"),
    "mel": EncoderRow(_load_mel, "log-mel mean and deviation per band: the baseline to beat"),
}


def load_encoder(
    name: str, *, precision: str = "no", device: str | torch.device = "cpu"
) -> Encoder:
    """Load a frozen encoder.

    Parameters
    ----------
    name : str
        A name of `ENCODERS`, a folder with MuQ's config.json and model.safetensors, or a hub id.
    precision : "no", "fp16" or "bf16"
    device : what it runs on

    Raises
    ------
    EncoderError
        When it is unknown, can't be downloaded, is incomplete or holds other weights than its
        configuration says. Weights are read from safetensors only, never from a pickle.
    """
    kwargs = {"precision": precision, "device": device}
    if name in ENCODERS:
        return ENCODERS[name].load(name, **kwargs)
    if Path(name).is_dir():
        return _load_folder(name, Path(name).resolve().name, **kwargs)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _load_hub(name, **kwargs)
    raise EncoderError(
        f"unknown encoder {name!r}: it is none of {', '.join(ENCODERS)}, no folder and no hub id"
    )


def resolve_layers(layer: str, n_layers: int) -> list[int]:
    """Turn `--layer last | all | K` into layer numbers.

    Raises
    ------
    ValueError
        When it is none of these or the encoder has no such layer.
    """
    if layer == "last":
        return [n_layers]
    if layer == "all":
        return list(range(n_layers + 1))
    if not layer.isdecimal() or int(layer) > n_layers:
        raise ValueError(f"--layer must be last, all or a number from 0 to {n_layers}, got {layer}")
    return [int(layer)]


def _download(repo: str) -> Path:
    """Fetch config and safetensors of a hub model into the hub's cache."""
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "model.safetensors"]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=True))
    except OSError:
        log.info("downloading %s from the Hugging Face hub", repo)
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises its own and its HTTP library's errors
        raise EncoderError(
            f"{repo} is not in the local cache and could not be downloaded "
            f"({type(error).__name__}). With a network, run again; without one, put its "
            f"config.json and model.safetensors into a folder and pass --encoder FOLDER, "
            f"or use --encoder muq-nano or mel, which need no download."
        ) from error


def _read_muq(folder: Path) -> tuple[dict, dict]:
    """Read MuQ's configuration and weights from a folder."""
    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    if not config_path.is_file():
        raise EncoderError(f"{folder} holds no config.json, so it is not a MuQ model")
    if not weights_path.is_file():
        pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        hint = f" ({pickles[0]} is a pickle, which is never loaded)" if pickles else ""
        raise EncoderError(f"{folder} holds no model.safetensors{hint}")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        weights = load_file(weights_path)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise EncoderError(f"{folder} is damaged: {error}") from error
    if "encoder_dim" not in config or "w2v2_config" not in config:
        raise EncoderError(f"{config_path} is not a MuQ configuration (no encoder_dim)")
    return config, weights


def _build_muq(config: dict, weights: dict | None) -> tuple[torch.nn.Module, str]:
    """Build MuQ in evaluation mode and digest it; without weights they come from the fixed seed."""
    from muq.muq import MuQ, MuQConfig

    config = json.loads(json.dumps(config))
    config["w2v2_config"]["_attn_implementation"] = "sdpa"
    config["rvq_ckpt_path"] = None  # the original would torch.load (unpickle) it
    python_random = random.getstate()  # MuQModel seeds Python's global generator
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm, inside muq's quantiser
        torch.manual_seed(NANO_SEED)
        muq = MuQ(MuQConfig(**config))
    random.setstate(python_random)
    if weights is not None:
        missing, unexpected = muq.load_state_dict(weights, strict=False)
        wrong = [k for k in missing if not _unused(k)] + [k for k in unexpected if not _unused(k)]
        if wrong:
            raise EncoderError(
                f"the weights don't fit the configuration: {len(wrong)} names differ, "
                f"the first is {wrong[0]}"
            )
    model = muq.model
    # Feature extraction uses neither the quantiser nor the codebook logits.
    for part in ("linear", "rvq", "quantizer_melspec_2048", "recon_proj"):
        if hasattr(model, part):
            delattr(model, part)
    model = model.eval().requires_grad_(False)
    digest = hashlib.sha256(f"muq {FORWARD_VERSION}".encode())
    digest.update(json.dumps(config["stat"], sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return model, digest.hexdigest()


def _unused(key: str) -> bool:
    """Say whether a weight plays no part in feature extraction."""
    parts = ("model.linear.", "model.rvq.", "model.quantizer_", "model.recon_proj.")
    return key.startswith(parts) or key == "model.cls_token" or key.endswith("inv_freq")


def _cast(model, dtype) -> torch.nn.Module:
    """Cast the weights, but not the rotary frequencies: half precision would shift positions."""
    inv_freq = model.conformer.embed_positions.inv_freq.clone()
    model = model.to(dtype)
    model.conformer.embed_positions.inv_freq = inv_freq.float()
    return model
