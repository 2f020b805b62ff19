"""A researcher's own encoder, without an edit of the source: FILE.py:NAME or PACKAGE.MODULE:NAME.

NAME is a subclass of `Encoder`; or a torch module or callable (a class of either is called without
arguments) that states its `sample_rate` and turns audio (B, n_samples), float32, into states
(B, T, D), or into a list of those, one a layer. States (B, D) are pooled already. It may state
`frame_rate`, `min_seconds` and `max_seconds` too; pooling, precision, batches and the store come
from here. Weights that a file makes at random come from a fixed seed.
"""

import copy
import dataclasses
import hashlib
import importlib.metadata
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tune.encoders.base import DTYPES, MIN_SECONDS, Encoder, EncoderError
from tune.system.plugins import PluginError, load_module, load_object, source_digest

GROUP = "tune.encoders"  # of entry points
SEED = 1234  # of weights that a file makes at random, and of the noise
PROBE_S = 4.0  # length of noise that the frame rate is found with, beside a quarter of it
MAX_FRAMES_OFF = (3, 0.05)  # frames, and share of the frames expected: windows at the edges
INTERNAL = frozenset(vars(nn.Module()))  # what every torch module keeps
# Attributes of an Encoder that don't belong to its numbers.
PER_RUN = ("name", "precision", "device", "passes", "redone", "compared", "graphs", "_rotary")


class PluginEncoder(Encoder):
    """A torch module or a callable as a frozen encoder.

    Parameters
    ----------
    model : takes audio (B, n_samples) and returns states; a module is put into eval mode
    precision : of a module; another callable runs in float32
    """

    own_code = True

    def __init__(self, name: str, model: Callable, *, precision: str, device, fingerprint: str):
        self.sample_rate = _stated_rate(name, model)
        self.min_seconds = getattr(model, "min_seconds", MIN_SECONDS)
        self.max_seconds = getattr(model, "max_seconds", None)
        is_module = isinstance(model, nn.Module)
        for part in [model] if is_module else getattr(model, "__dict__", {}).values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False).to(device)
        super().__init__(
            name,
            frame_rate=None,
            n_layers=0,
            embedding_dim=0,
            precision=precision if is_module else "no",
            device=device,
            fingerprint=fingerprint,
        )
        self.model, self._precise, self._shape = model, None, None
        self._measure(getattr(model, "frame_rate", None))
        if self.precision != "no":
            # A float32 copy on the CPU, for batches that overflow in half precision.
            self._precise = copy.deepcopy(model).to("cpu")
            _cast_parameters(model, DTYPES[precision])

    @torch.inference_mode()
    def _measure(self, stated_rate: float | None) -> None:
        """Find layers, sizes and frame rate by running seeded noise."""
        longest = min(PROBE_S, self.max_seconds or PROBE_S)
        lengths = [max(self.min_seconds, s) for s in (longest / 4, longest)]
        counts = []
        for seconds in dict.fromkeys(lengths):
            n_samples = round(seconds * self.sample_rate)
            noise = np.random.default_rng(SEED).standard_normal((2, n_samples), np.float32)
            found = self._run(self.model, torch.from_numpy(noise * np.float32(0.1)), torch.float32)
            if not all(torch.isfinite(state).all() for state in found):
                raise EncoderError(f"{self.name} gives NaN or infinite states for noise")
            sizes = [state.shape[2] for state in found]
            if self._shape not in (None, sizes):
                raise EncoderError(
                    f"{self.name} gives layers of {sizes} values for {seconds:g} s of noise, but "
                    f"of {self._shape} for {lengths[0]:g} s"
                )
            self._shape = sizes
            counts.append([state.shape[1] for state in found])
        self.n_layers, self.embedding_dim = len(sizes) - 1, sizes[-1]
        self.sizes = sizes if len(set(sizes)) > 1 else None
        if stated_rate is not None:
            self.frame_rate = float(stated_rate)
        elif max(counts[-1]) - min(counts[-1]) <= 1 and counts[0][-1] < counts[-1][-1]:
            self.frame_rate = (counts[-1][-1] - counts[0][-1]) / (lengths[1] - lengths[0])

    def states(self, audio, layers, dtype):
        """Yield the states (B, T, D) of the layers asked for; another shape than found is an error.

        Raises
        ------
        EncoderError
            When layers or sizes differ from those found when it was loaded, or the number of
            frames doesn't follow the frame rate.
        """
        model = self.model
        if dtype == torch.float32 and self._precise is not None:
            model = self._precise.to(self.device)
        found = self._run(model, audio, dtype)
        if [state.shape[2] for state in found] != self._shape:
            raise EncoderError(
                f"{self.name} gives layers of {[state.shape[2] for state in found]} values, but of "
                f"{self._shape} when it was loaded"
            )
        if self.frame_rate is not None:
            expected = audio.shape[1] / self.sample_rate * self.frame_rate
            allowed = MAX_FRAMES_OFF[0] + MAX_FRAMES_OFF[1] * expected
            for state in found:
                if abs(state.shape[1] - expected) > allowed:
                    raise EncoderError(
                        f"{self.name} gives {state.shape[1]} states for "
                        f"{audio.shape[1] / self.sample_rate:.4g} s, about {expected:.0f} were "
                        f"expected at {self.frame_rate:.4g} Hz: states that don't follow time are "
                        f"returned as (B, D)"
                    )
        yield from (found[k] for k in layers)

    def _run(self, model, audio, dtype) -> list[torch.Tensor]:
        """States (B, T, D) of all layers; pooled ones (B, D) count as one frame."""
        audio = audio.to(self.device)
        # Half precision: what needs float32 (a Fourier transform) gets it, as when training.
        half = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=dtype != torch.float32)
        with half, tf32:
            out = model(audio)
        found = []
        for part in out if isinstance(out, list | tuple) else [out]:
            if not isinstance(part, torch.Tensor | np.ndarray):
                raise EncoderError(
                    f"{self.name} must return a tensor (B, T, D), or a list of "
                    f"them, one a layer, got {type(part).__name__}"
                )
            state = torch.as_tensor(part, device=self.device)
            if state.ndim not in (2, 3) or len(state) != len(audio) or 0 in state.shape:
                raise EncoderError(
                    f"{self.name} must return (B, T, D), or (B, D) for pooled "
                    f"states: got {tuple(state.shape)} for audio "
                    f"{tuple(audio.shape)}"
                )
            found.append(state[:, None] if state.ndim == 2 else state)
        if not found:
            raise EncoderError(f"{self.name} returns an empty list of layers")
        return found


def load_plugin(
    spec: str,
    name: str | None = None,
    *,
    precision: str,
    device,
    compile: bool = False,
    memory_budget: int | None = None,
) -> Encoder:
    """Load an encoder of one's own.

    Parameters
    ----------
    spec : FILE.py:NAME or PACKAGE.MODULE:NAME
    name : how it is shown; by default the spec, a file without its folder
    precision, device, compile, memory_budget : see `load_encoder`; a subclass of `Encoder` gets
        those that it takes

    Raises
    ------
    EncoderError
        When there is no such file or name, or what it names is no encoder.
    """
    source, _, attribute = spec.rpartition(":")
    name = name or f"{Path(source).name}:{attribute}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            found, module = load_object(spec), load_module(spec)
        except PluginError as error:
            raise EncoderError(f"--encoder {error}") from error
        torch.manual_seed(SEED)  # also where the file was imported before
        code = f"{source_digest(module)} {attribute} {_state_of_globals(module)}"
        if isinstance(found, type) and issubclass(found, Encoder):
            given = {
                "name": name,
                "precision": precision,
                "device": device,
                "compile": compile,
                "memory_budget": memory_budget,
            }
            return _load_subclass(name, found, code, given)
        if compile:
            raise EncoderError(f"--compile is made for MuQ: leave it out for {name}")
        model = _make_model(name, found)
    _stated_rate(name, model)
    digest = hashlib.sha256(f"plugin {code} {state_digest(model)}".encode()).hexdigest()
    return PluginEncoder(name, model, precision=precision, device=device, fingerprint=digest)


def installed() -> dict[str, str]:
    """Encoders of installed packages (entry points in the group tune.encoders): name -> spec."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}


def _load_subclass(name: str, kind: type[Encoder], code: str, given: dict) -> Encoder:
    """Make an instance of a subclass of Encoder; its fingerprint covers its code and state too."""
    parameters = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        if given["compile"] and "compile" not in parameters:
            raise EncoderError(f"--compile is made for MuQ: leave it out for {name}")
        given = {key: value for key, value in given.items() if key in parameters}
    encoder = kind(**given)
    plain = encoder
    if given.keys() & {"precision", "compile", "memory_budget"}:  # they don't change what it is
        keys = {"name": name, "precision": "no", "device": torch.device("cpu")}
        torch.manual_seed(SEED)
        plain = kind(**{key: value for key, value in keys.items() if key in given})
    stated = f"encoder {code} {plain.fingerprint} {state_digest(plain)}"
    encoder.fingerprint = hashlib.sha256(stated.encode()).hexdigest()
    encoder.name, encoder.own_code = name, True
    return encoder


def _make_model(name: str, found) -> Callable:
    """The module or callable that a name stands for; a class is called without arguments."""
    if isinstance(found, Encoder):
        raise EncoderError(f"{name} is an Encoder already made: name its class")
    if isinstance(found, type):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise EncoderError(
                f"{name} is a class that can't be called without arguments ({error}): name an "
                f"instance of it, or a subclass without arguments"
            ) from None
        found = found()
    elif isinstance(found, nn.Module):
        found = copy.deepcopy(found)  # it may be asked for again, at another precision
    if not callable(found):
        raise EncoderError(
            f"{name} is neither a subclass of tune.encoders.Encoder nor a torch module or callable "
            f"over audio (B, n_samples), but {type(found).__name__}"
        )
    return found


def _stated_rate(name: str, model) -> int:
    """The sample rate that a model states."""
    rate = getattr(model, "sample_rate", None)
    if not isinstance(rate, int) or isinstance(rate, bool) or rate <= 0:
        raise EncoderError(
            f"{name} must state its sample_rate, a whole number of Hz such as "
            f"sample_rate = 24_000, got {rate!r}"
        )
    return rate


def _cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a module's parameters, and the buffers beside them (those of a batch norm).

    Buffers of parts without parameters, such as windows, mel filters or rotary frequencies, keep
    float32.
    """
    for part in model.modules():
        if next(part.parameters(recurse=False), None) is not None:
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)


def state_digest(obj) -> str:
    """SHA-256 over what an object holds: parameters, all buffers, simple attributes."""
    digest = hashlib.sha256()
    _feed(digest, obj, set(), top=True)
    return digest.hexdigest()


def _state_of_globals(module) -> str:
    """SHA-256 over the tensors, arrays and torch modules among a file's global names."""
    kept = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, torch.Tensor | np.ndarray | nn.Module)
    }
    return state_digest(kept)


def _feed(digest, value, seen: set[int], top: bool = False) -> None:
    """Add a value to a digest: its type, and what it holds where that is simple."""
    digest.update(f"<{type(value).__name__}>".encode())
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        digest.update(repr(value).encode())
        return
    if isinstance(value, torch.Tensor | np.ndarray):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
        digest.update(value.tobytes())
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    elif isinstance(value, set | frozenset):
        items = [(item, None) for item in sorted(map(repr, value))]
    elif isinstance(value, nn.Module):
        items = [(k, v) for k, v in sorted(vars(value).items()) if k not in INTERNAL]
        items += [*value._parameters.items(), *value._buffers.items(), *value._modules.items()]
    elif isinstance(value, Encoder):
        items = [(k, v) for k, v in sorted(vars(value).items()) if k not in PER_RUN]
    elif top or dataclasses.is_dataclass(value):
        items = sorted(getattr(value, "__dict__", {}).items())
    else:
        return
    for key, item in items:
        digest.update(f"[{key}]".encode())
        _feed(digest, item, seen)
