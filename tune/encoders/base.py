"""What all encoders share: pooling over time, precision, and the float32 second try.

Layers are counted as MuQ counts its hidden states: 0 is the front end's output, k the output of
layer k, the last one taken after the final layer norm. An encoder is used through `embed`, which
runs a batch of equally long segments up to the deepest layer asked for and keeps only the time
pooled states. The mel front end always runs in float32; half precision begins after it.
"""

import copy
import os
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from tune.encoders.cuda_graphs import CudaGraphs

SAMPLE_RATE = 24_000
MIN_SECONDS = 0.1  # the mel window reflects 43 ms at each edge; below this there's no signal left
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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


def precision_on(device: torch.device | str, requested: str) -> str:
    """Choose the precision on a device, by its CUDA capability where it has one."""
    device = torch.device(device)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return resolve_precision(requested, device.type, capability)


def launched_precision(requested: str) -> str:
    """--mixed_precision, where it is auto that of `accelerate launch --mixed_precision`.

    "no" is also what Accelerate's launcher says when nobody asked, so it leaves auto as it is.

    Raises
    ------
    ValueError
        When Accelerate was asked for a precision that the encoders don't have.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if requested != "auto" or launched == "no":
        return requested
    if launched not in ("fp16", "bf16"):
        raise ValueError(
            f"accelerate launch asks for mixed precision {launched}, which encoders don't have: "
            "pass --mixed_precision no, fp16 or bf16 to this script"
        )
    return launched


class Encoder:
    """What all encoders share: pooling, precision and the float32 second try.

    Attributes
    ----------
    name : str
        As given on the command line (a path is cut to its last part).
    sample_rate : int
        In Hz.
    max_seconds : float or None
        The longest segment that it takes (None: any); longer ones are refused, never cut.
    frame_rate : float or None
        Hidden states per second; None where they don't follow time.
    n_layers, first_layer : int
        Number of the last hidden state, and of the first: 0 but for models that don't give it.
    embedding_dim : int
        Size of one pooled state.
    sizes : list of int or None
        The same by layer, where layers differ; `embedding_dim` is then that of the layer asked for.
    precision : str
        "no", "fp16" or "bf16".
    revision : str or None
        The hub's commit that it came from.
    licence : str or None
        Of its weights, as its table row or its card says.
    untrained : bool
        True when the weights are random.
    own_code : bool
        True when it runs code that isn't TUNE's: the store then compares a row with it once.
    fingerprint : str
        SHA-256 over everything that determines the numbers but audio, layers and precision.
    passes, redone : int
        Segments encoded so far, and batches computed again in float32.
    compared : set of str
        Folders of stored rows that it was compared with (`tune.store.spot_check`).
    """

    sample_rate = SAMPLE_RATE
    min_seconds = MIN_SECONDS
    max_seconds: float | None = None
    sizes: Sequence[int] | None = None
    revision: str | None = None
    licence: str | None = None
    own_code = False
    first_layer = 0
    graphs: CudaGraphs | None = None  # of batches whose shape comes again, on a GPU

    def __init__(
        self,
        name,
        *,
        frame_rate,
        n_layers,
        embedding_dim,
        precision,
        device,
        fingerprint,
        untrained=False,
    ):
        self.name, self.untrained = name, untrained
        self.frame_rate, self.n_layers, self.embedding_dim = frame_rate, n_layers, embedding_dim
        self.precision, self.device = precision, torch.device(device)
        self.fingerprint = fingerprint
        self.passes = self.redone = 0
        self.compared: set[str] = set()

    @property
    def label(self) -> str:
        """The name as shown to people, which says when the weights are random."""
        return f"{self.name} (untrained)" if self.untrained else self.name

    def states(self, audio, layers, dtype) -> Iterator[torch.Tensor]:
        """Yield the hidden states (B, T, D) of the layers asked for, in ascending order."""
        raise NotImplementedError

    def keep_layers(self, deepest: int) -> None:
        """Free what only layers above `deepest` need; asking for those later is an error."""

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise ValueError when these layers can't be taken together; know their size from now."""
        if self.sizes is None:
            return
        sizes = [self.sizes[k] for k in layers]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"--layer all and mix need layers of one size, those of {self.name} have "
                f"{', '.join(map(str, sizes))} values: take one, from 0 to {self.n_layers}"
            )
        self.embedding_dim = sizes[0]

    def expected_bytes(self, batch_seconds: float) -> int:
        """Memory that encoding will take besides what is loaded: here a guess, that of the weights.

        Parameters
        ----------
        batch_seconds : audio seconds of one batch
        """
        model = getattr(self, "model", None)
        if not isinstance(model, torch.nn.Module):
            return 0
        return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))

    def shrink(self) -> bool:
        """Use less memory after the device ran out of it; say whether that was possible."""
        return False

    def pool(self, states: torch.Tensor) -> torch.Tensor:
        """Reduce a window of frames (..., T, D) to one vector (..., E): here the mean."""
        return states.float().mean(-2)

    def pool_width(self, frame_rate: float) -> int:
        """Frames in one window of `frame_rate` a second; more than the encoder has is an error."""
        if self.frame_rate is None:
            raise ValueError(
                f"the hidden states of {self.name} don't follow time: it has --tokens segment only"
            )
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
            At `sample_rate`, at least `min_seconds` and at most `max_seconds` long.
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
        return self.begin(audio, layers, frame_rate).result()

    @torch.inference_mode()
    def begin(
        self, audio: Sequence[np.ndarray], layers: Sequence[int], frame_rate: float | None = None
    ) -> "PendingBatch":
        """Begin to encode a batch, as `embed` does; on a GPU without waiting for the result.

        Parameters
        ----------
        audio : (B, n_samples), or a list of B arrays (n_samples,)
        """
        shape = (len(audio), *np.shape(audio[0])) if len(audio) else (0,)
        if len(shape) != 2 or shape[1] < self.min_seconds * self.sample_rate:
            raise ValueError(
                f"expected (B, samples) with at least {self.min_seconds} s at "
                f"{self.sample_rate} Hz, got shape {shape}"
            )
        if self.is_too_long(shape[1]):
            raise ValueError(
                f"{self.name} takes at most {self.max_seconds:.4g} s, "
                f"got a segment of {shape[1] / self.sample_rate:.4g} s"
            )
        self.check_layers(layers)
        if self.device.type == "cuda":
            batch = torch.empty(shape, pin_memory=True)
            np.stack(audio, out=batch.numpy())
        else:
            batch = torch.from_numpy(np.ascontiguousarray(audio, np.float32))
        return PendingBatch(self, batch.to(self.device, non_blocking=True), layers, frame_rate)

    def run(self, batch: torch.Tensor, layers, frame_rate) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled states of a batch on the device, (B, P, L, E), and where they are finite, (B,)."""

        def compute(batch):
            out = self._pooled(batch, layers, frame_rate, DTYPES[self.precision])
            return out, torch.isfinite(out).flatten(1).all(1)

        if self.graphs is None:
            return compute(batch)
        chunk_s = getattr(self, "chunk_s", None)
        return self.graphs(compute, batch, (tuple(batch.shape), tuple(layers), frame_rate, chunk_s))

    def is_too_long(self, n_samples: int) -> bool:
        """Say whether a segment is longer than the encoder takes."""
        return self.max_seconds is not None and n_samples > round(
            self.max_seconds * self.sample_rate
        )

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


class PendingBatch:
    """A batch whose pooled states the device may still be computing.

    Attributes
    ----------
    seconds : float
        Time that the device took for it; known when `result` has returned.
    """

    def __init__(self, encoder: Encoder, batch: torch.Tensor, layers, frame_rate):
        self.encoder, self.batch, self.what = encoder, batch, (layers, frame_rate)
        self.seconds, self._events = 0.0, None
        if batch.device.type == "cuda":
            stream = torch.cuda.current_stream(batch.device)
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record(stream)
        started = time.perf_counter()
        # Copied as soon as they are there: the one wait for the device is in `result`.
        self.states, self.finite = map(_to_host, encoder.run(batch, layers, frame_rate))
        if self._events:
            self._events[1].record(stream)
        else:
            self.seconds = time.perf_counter() - started

    @torch.inference_mode()
    def result(self, *, each: bool = False) -> np.ndarray:
        """Wait for the states (B, P, L, E), float32.

        Parameters
        ----------
        each : compute again in float32 only the segments whose states aren't finite in half
            precision, not the whole batch; those that aren't finite in float32 either stay so

        Raises
        ------
        NonFiniteError
            When states are not finite in float32 either.
        """
        if self._events:
            self._events[1].synchronize()
            self.seconds = self._events[0].elapsed_time(self._events[1]) / 1000
        encoder, states, bad = self.encoder, self.states, ~self.finite
        if bad.any() and encoder.precision != "no":
            encoder.redone += 1
            bad = bad if each else torch.ones_like(bad)
            again = encoder._pooled(
                self.batch[bad.to(self.batch.device)], *self.what, torch.float32
            )
            states[bad] = again.cpu()
        self.batch = None
        if not each and not torch.isfinite(states).all():
            raise NonFiniteError(f"{encoder.name} gives NaN or infinite hidden states in float32")
        encoder.passes += len(states)
        return states.numpy()


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to pinned memory of the host, behind what the device has to do before."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def cast_copy(
    model: nn.Module, dtype: torch.dtype, device: torch.device, keep: tuple[str, ...] = ()
) -> nn.Module:
    """A copy of a model in half precision on a device, made tensor by tensor.

    Parameters
    ----------
    keep : ends of the names of buffers that stay in float32
    """
    memo = {id(p): nn.Parameter(p.to(device, dtype), False) for p in model.parameters()}
    for key, buffer in model.named_buffers():
        half = buffer.is_floating_point() and not key.endswith(keep)
        memo[id(buffer)] = buffer.to(device, dtype if half else buffer.dtype, copy=True)
    return copy.deepcopy(model, memo)


def resolve_layers(layer: str, n_layers: int, first: int = 0) -> list[int]:
    """Turn `--layer last | all | mix | reduce | K` into numbers; a mix takes all, from `first`.

    Raises
    ------
    ValueError
        When it is none of these or the encoder has no such layer.
    """
    if layer == "last":
        return [n_layers]
    if layer in ("all", "mix", "reduce"):
        return list(range(first, n_layers + 1))
    if not layer.isdecimal() or not first <= int(layer) <= n_layers:
        raise ValueError(
            f"--layer must be last, all, mix or a number from {first} to {n_layers}, got {layer}"
        )
    return [int(layer)]
