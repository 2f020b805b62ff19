"""How transformers' audio models take audio, and how their hidden states follow time.

A row of `FAMILIES` belongs to a feature extractor: models of one are fed alike. Sample rate,
lengths and rates are read from the configuration of model and feature extractor. Where a model
takes windows of a fixed length, its feature extractor fills a shorter segment up as it did in
training; the frames of that padding are left out of every average where frames follow time
(Whisper, AST). They don't in CLAP, whose extractor repeats the segment instead: there all positions
count.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tune.encoders.base import EncoderError

KALDI_SHIFT_S, KALDI_WINDOW_S = 0.010, 0.025  # of the filter banks: fixed in the extractors' code


@dataclass(frozen=True)
class Geometry:
    """Lengths in samples, and hidden states a second (None: they don't follow time)."""

    frame_rate: float | None
    min_samples: int = 1
    max_samples: int | None = None


@dataclass(frozen=True)
class Family:
    """A row of the table.

    `measured_family` makes the row of a model whose feature extractor isn't known.

    Attributes
    ----------
    geometry : (tower's configuration, feature extractor) -> Geometry
    inputs : names of what the feature extractor makes for the tower
    frames : (hidden states as transformers gives them, samples, encoder) -> (B, T, D), real frames
    models : model types (config.json) it is known for; None: every one whose configuration has
        what `geometry` reads
    tower, config : model -> the module that takes the features, configuration -> its part of it
    """

    geometry: Callable[..., Geometry]
    inputs: tuple[str, ...]
    frames: Callable[..., torch.Tensor]
    models: tuple[str, ...] | None = None
    tower: Callable[[nn.Module], nn.Module] = lambda model: model
    config: Callable = lambda config: config


def extract(extractor, inputs, audio: np.ndarray) -> dict[str, torch.Tensor]:
    """Features of a batch (B, n_samples), each segment by itself: none depends on its neighbours.

    CLAP's extractor calls a segment of a batch, drawn at random, longer than its window where none
    is (a trick for training); segments here never are.
    """
    rows = [
        extractor(segment, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        for segment in audio
    ]
    out = {name: torch.cat([torch.as_tensor(row[name]) for row in rows]) for name in inputs}
    if "is_longer" in out:
        out["is_longer"] = torch.zeros_like(out["is_longer"])
    return out


def _waveform_geometry(config, extractor) -> Geometry:
    """Convolutions over the waveform: no longest segment; the shortest gives two frames."""
    strides, kernels = getattr(config, "conv_stride", None), getattr(config, "conv_kernel", None)
    if not strides or not kernels:
        raise EncoderError(
            f"the configuration of a {config.model_type} model names no conv_stride and "
            f"conv_kernel, so its frame rate is unknown: it needs a row of its own in "
            f"tune/encoders/feature_extractors.py"
        )
    hop = math.prod(strides)
    need = 2  # frames
    for stride, kernel in zip(reversed(strides), reversed(kernels), strict=True):
        need = (need - 1) * stride + kernel
    # SEW and SEW-D average neighbouring frames before their layers.
    squeeze = getattr(config, "squeeze_factor", 1)
    return Geometry(extractor.sampling_rate / hop / squeeze, need + (squeeze - 1) * hop)


def _whisper_geometry(config, extractor) -> Geometry:
    """A window of 30 s; two spectrogram frames a position."""
    hop = 2 * extractor.hop_length
    window = config.max_source_positions * hop
    if window != extractor.n_samples or config.num_mel_bins != extractor.feature_size:
        raise EncoderError(
            f"the feature extractor makes {extractor.n_samples} samples and "
            f"{extractor.feature_size} bands, the model takes {window} and {config.num_mel_bins}"
        )
    return Geometry(extractor.sampling_rate / hop, 1, window)


def _whisper_frames(states, n_samples, encoder):
    """The positions that hold audio: the first ones."""
    rate = encoder.sample_rate / encoder.frame_rate  # samples a position
    return states[:, : math.ceil(n_samples / rate)]


def _kaldi_frames(n_samples: int, extractor) -> int:
    """Filter bank frames of a segment."""
    shift, window = (round(s * extractor.sampling_rate) for s in (KALDI_SHIFT_S, KALDI_WINDOW_S))
    return 1 + (n_samples - window) // shift


def _seamless_geometry(config, extractor) -> Geometry:
    """Filter bank frames, `stride` of them side by side; no longest segment."""
    shift, window = (round(s * extractor.sampling_rate) for s in (KALDI_SHIFT_S, KALDI_WINDOW_S))
    need = window + (2 * extractor.stride - 1) * shift
    return Geometry(1 / (KALDI_SHIFT_S * extractor.stride), need)


def _seamless_frames(states, n_samples, encoder):
    """All but a last one that the extractor filled up with padding (and masked)."""
    return states[:, : _kaldi_frames(n_samples, encoder.extractor) // encoder.extractor.stride]


def _ast_geometry(config, extractor) -> Geometry:
    """A window of `max_length` filter bank frames, seen in patches."""
    found = extractor.max_length, extractor.num_mel_bins
    if found != (config.max_length, config.num_mel_bins):
        raise EncoderError(
            f"the feature extractor makes {found[0]} frames of {found[1]} bands, the model takes "
            f"{config.max_length} of {config.num_mel_bins}"
        )
    shift, window = (round(s * extractor.sampling_rate) for s in (KALDI_SHIFT_S, KALDI_WINDOW_S))
    longest = (config.max_length - 1) * shift + window + shift - 1
    return Geometry(1 / (KALDI_SHIFT_S * config.time_stride), window, longest)


def _ast_frames(states, n_samples, encoder):
    """Patches averaged over frequency, without the two tokens in front, where they hold audio.

    A patch counts when its middle lies in the segment; the first one always does.
    """
    config, extractor = encoder.config, encoder.extractor
    bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    grid = states[:, 2:].unflatten(1, (bands, -1))  # (B, bands, times, D)
    frames = _kaldi_frames(n_samples, extractor)
    times = math.ceil((frames - config.patch_size / 2) / config.time_stride)
    return grid[:, :, : max(1, times)].mean(1)


def _clap_geometry(config, extractor) -> Geometry:
    """A window of `max_length_s`, folded into an image: time runs in both of its directions."""
    return Geometry(None, 1, extractor.nb_max_samples)


def _clap_frames(states, n_samples, encoder):
    """All positions of the image: (B, D, H, W) as a stage gives it."""
    return states.flatten(2).transpose(1, 2)


FAMILIES = {
    # Wav2Vec2, HuBERT, WavLM, Data2Vec, UniSpeech, SEW, Wav2Vec2-Conformer, MERT, ...
    "Wav2Vec2FeatureExtractor": Family(
        _waveform_geometry, ("input_values",), lambda states, n_samples, encoder: states
    ),
    "SeamlessM4TFeatureExtractor": Family(
        _seamless_geometry,
        ("input_features", "attention_mask"),
        _seamless_frames,
        models=("wav2vec2-bert",),
    ),
    "WhisperFeatureExtractor": Family(
        _whisper_geometry,
        ("input_features",),
        _whisper_frames,
        models=("whisper",),
        tower=lambda model: model.get_encoder(),
    ),
    "ASTFeatureExtractor": Family(
        _ast_geometry, ("input_values",), _ast_frames, models=("audio-spectrogram-transformer",)
    ),
    "ClapFeatureExtractor": Family(
        _clap_geometry,
        ("input_features", "is_longer"),
        _clap_frames,
        models=("clap", "clap_audio_model"),
        tower=lambda model: getattr(model, "audio_model", model),
        config=lambda config: getattr(config, "audio_config", config),
    ),
}


def family_of(extractor, model_type: str, name: str) -> Family:
    """The row of a feature extractor; raise when the model isn't known to be fed by it."""
    kind = type(extractor).__name__
    row = FAMILIES.get(kind)
    if row is None or (row.models is not None and model_type not in row.models):
        known = ", ".join(key.removesuffix("FeatureExtractor") for key in FAMILIES)
        raise EncoderError(
            f"{name} is a {model_type} model with a {kind}, which is none of those known "
            f"({known}): it needs a row in tune/encoders/feature_extractors.py (CONTRIBUTING.md, "
            f"Add an encoder)"
        )
    return row


PROBE_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # lengths tried for the shortest segment
SPAN_S = 4.0  # over which frames are counted; whole frames of every usual rate fit into it


def measured_family(name: str, model: nn.Module, extractor, min_seconds: float | None) -> Family:
    """The row of a model with code of its own whose feature extractor isn't known, by running it.

    It has to take a waveform and to return `hidden_states` (B, T, D) that grow with it. What the
    extractor makes and the model's forward names is handed on, masks included. Frames that the
    output's mask leaves out (`feature_attention_mask`, `attention_mask`) enter no average.

    Parameters
    ----------
    min_seconds : the shortest segment, where it is known; else the shortest that runs is looked for

    Raises
    ------
    EncoderError
        When it can't be run, or its states don't follow time.
    """
    rate = getattr(extractor, "sampling_rate", None)
    if not rate:
        raise EncoderError(f"{name}: its {type(extractor).__name__} states no sampling_rate")
    taken = inspect.signature(model.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in taken.values())

    def frames_of(seconds: float) -> tuple[tuple[str, ...], int]:
        noise = np.random.default_rng(0).standard_normal(round(seconds * rate), np.float32) * 0.1
        found = extractor(noise, sampling_rate=rate, return_tensors="pt")
        inputs = {key: found[key] for key in found if anything or key in taken}
        with torch.inference_mode():
            out = model(**inputs, output_hidden_states=True)
        states, mask = getattr(out, "hidden_states", None), frame_mask(out)
        if not states or states[-1].ndim != 3:
            raise EncoderError("it returns no hidden_states (B, T, D)")
        return tuple(inputs), states[-1].shape[1] if mask is None else int(mask[0].sum())

    last = None
    for seconds in PROBE_S if min_seconds is None else (1.0, min_seconds):
        try:
            inputs, few = frames_of(seconds)
            _, many = frames_of(seconds + SPAN_S)
        except Exception as error:  # whatever its code raises
            last = error
            continue
        if few and many > few:
            break
        last = EncoderError(f"{few} states of {seconds:g} s, {many} of {seconds + SPAN_S:g} s")
    else:
        reason = " ".join(str(last).split())[:300]
        raise EncoderError(
            f"{name}: its {type(extractor).__name__} isn't known, and run on noise its states "
            f"don't follow time ({type(last).__name__}: {reason})"
        ) from last
    shortest = round((seconds if min_seconds is None else min_seconds) * rate)
    geometry = Geometry((many - few) / SPAN_S, shortest)
    return Family(lambda config, extractor: geometry, inputs, _masked_frames)


def frame_mask(output) -> torch.Tensor | None:
    """The mask (B, T) over frames that a model returns beside its states, or None."""
    states = getattr(output, "hidden_states", None) or [output.last_hidden_state]
    for key in ("feature_attention_mask", "attention_mask"):
        mask = getattr(output, key, None)
        if isinstance(mask, torch.Tensor) and mask.shape == states[-1].shape[:2]:
            return mask.bool()
    return None


def _masked_frames(states, n_samples, encoder):
    """The frames that the model's mask counts; segments of one length have the same ones."""
    mask = encoder.mask
    if mask is None:
        return states
    if not (mask == mask[:1]).all():
        raise EncoderError(f"{encoder.name}: its mask differs between segments of one length")
    return states[:, mask[0]]
