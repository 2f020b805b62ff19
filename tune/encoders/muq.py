"""MuQ (Zhu et al. 2025), frozen: its own modules, walked by our forward.

The `muq` package's forward breaks on current transformers, computes codebook logits and keeps every
state; the parts themselves are sound. The front end runs in chunks (`tune.encoders.muq_frontend`),
attention as SDPA, and the walk ends at the deepest layer asked for. Batch normalisations are
folded into the convolutions before them, which is exact but for rounding.
"""

import contextlib
import hashlib
import json
import logging
import random
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn

from tune.encoders import hub
from tune.encoders.base import DTYPES, Encoder, EncoderError, cast_copy
from tune.encoders.cpu_linear import ConformerConvolution, use_fast_linear
from tune.encoders.cuda_graphs import CudaGraphs
from tune.encoders.muq_frontend import FrontEnd

log = logging.getLogger(__name__)

FORWARD_VERSION = 2  # raised when a change here or in the front end changes MuQ's numbers
MEMORY_BUDGET = 2_000_000_000  # bytes
MIN_CHUNK_S = 1.0
ROTARY_KEPT = 16  # lengths
RANDOM_SEED = 1234
POSITIONS = "model.conformer.pos_conv_embed."  # convolutional positions; not used with rotary ones
HUB_ID = "OpenMuQ/MuQ-large-msd-iter"
CONVERT = "from muq import MuQ; MuQ.from_pretrained(NAME).save_pretrained(FOLDER)"
# MuQ in small: the same classes and code path, 2.4 M parameters, by
# tools/muq_nano/pretrain_nano.py.
NANO_FOLDER = Path(__file__).parent / "muq-nano"
# What MuQ-large-msd-iter differs in from the small one; for random weights of its size.
LARGE = {"conv_dim": 512, "encoder_dim": 1024, "encoder_depth": 12}
LARGE_W2V2 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 12,
}


class MuQEncoder(Encoder):
    """MuQ at one precision, within a memory budget.

    Parameters
    ----------
    config : as in config.json
    weights : state dict, or None for weights from a fixed seed
    memory_budget : bytes that weights and activations should stay within; what the weights leave
        is shared by the front end's chunk and the rest
    """

    def __init__(
        self,
        name,
        config: dict,
        weights: dict | None,
        *,
        precision,
        device,
        memory_budget=MEMORY_BUDGET,
        compile=False,
    ):
        model, digest = _build(config, weights)
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
        self.muq_layers = self.n_layers  # MuQ-MuLan has more behind them
        model = _Parts(model)
        self._twin = None
        if precision != "no":
            # The float32 original stays on the CPU, for batches that overflow in half precision.
            # Half precision would shift positions, and the mel part has no use for it.
            keep = ("inv_freq", "frontend.window", "frontend.bands")
            self._twin, model = model, cast_copy(model, DTYPES[precision], self.device, keep)
        self.model = model.to(self.device)
        held = sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers()))
        free = max(memory_budget - held, memory_budget // 8)
        per_second = self.model.frontend.bytes_per_second(DTYPES[precision])
        self.chunk_s = max(MIN_CHUNK_S, free / 2 / per_second)
        self._rotary: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        if self.device.type == "cuda" and not compile:
            self.graphs = CudaGraphs()
        if compile:
            self.model.frontend.compile()
            for layer in self.model.conformer.layers:
                layer.compile()

    def keep_layers(self, deepest):
        """Drop the conformer layers above the deepest one asked for, and their memory."""
        for model in filter(None, (self.model, self._twin)):
            del model.conformer.layers[deepest:]

    def expected_bytes(self, batch_seconds):
        """What the front end's chunk and the rest share, as far as a batch fills it."""
        per_second = self.model.frontend.bytes_per_second(DTYPES[self.precision])
        return int(min(2 * self.chunk_s, batch_seconds) * per_second)

    def shrink(self):
        """Halve the front end's chunk, down to a second."""
        if self.chunk_s <= MIN_CHUNK_S:
            return False
        self.chunk_s = max(MIN_CHUNK_S, self.chunk_s / 2)
        if self.graphs:
            self.graphs.clear()  # they were recorded with the longer chunk
        log.warning("out of memory: the front end goes on in chunks of %.1f s", self.chunk_s)
        return True

    def states(self, audio, layers, dtype):
        """Yield MuQ's hidden states (B, T, D) for the layers, T at 25 Hz."""
        half = dtype != torch.float32
        model = self.model
        if not half and self._twin is not None:
            model = self._twin.to(self.device)
        conformer, wanted = model.conformer, set(layers)
        if min(wanted) < 0 or max(wanted) > len(conformer.layers):
            raise ValueError(f"layers must lie in 0..{len(conformer.layers)}, got {layers}")
        # Segments side by side as far as the budget goes, then one at a time, then cut: whole
        # segments need no halo.
        seconds = audio.shape[1] / self.sample_rate
        group = max(1, int(min(len(audio), self.chunk_s / seconds)))
        chunk = max(1, int(min(self.chunk_s, seconds + 1) * self.frame_rate))
        # Convolutions in true float32 when float32 is what was asked for (cuDNN's default is TF32).
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=half):
            x = torch.cat([model.frontend(part, dtype, chunk) for part in audio.split(group)])
        if 0 in wanted:
            yield x  # (B, T, D)
        positions = self._positions(conformer, x)
        for k, layer in enumerate(conformer.layers[: max(wanted)], start=1):
            x = layer(x, relative_position_embeddings=positions)
            x = x[0] if isinstance(x, tuple) else x  # a tuple before transformers 5
            if k in wanted:
                yield conformer.layer_norm(x) if k == self.muq_layers else x

    def _positions(self, conformer, x) -> torch.Tensor:
        """Rotary positions for states (B, T, D), kept for the lengths that came last.

        A CUDA graph computes its own: kept ones could be gone when it is replayed.
        """
        frequencies = getattr(conformer.embed_positions, "inv_freq", None)
        if frequencies is None:
            return conformer.embed_positions(x)
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return rotary(x.shape[1], frequencies, x.dtype)
        key = (x.shape[1], x.dtype)
        if key not in self._rotary:
            self._rotary[key] = rotary(x.shape[1], frequencies, x.dtype)
            while len(self._rotary) > ROTARY_KEPT:
                self._rotary.popitem(last=False)
        self._rotary.move_to_end(key)
        return self._rotary[key]


def rotary(n_frames: int, frequencies: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cosines and sines of rotary positions, as transformers computes them: (2, T, 1, 1, D)."""
    times = torch.arange(n_frames, dtype=frequencies.dtype, device=frequencies.device)
    angles = times[:, None] * frequencies
    angles = torch.cat((angles, angles), -1)[:, None, None]  # (T, 1, 1, D)
    return torch.stack([angles.cos(), angles.sin()]).to(dtype)


class _Parts(nn.Module):
    """What feature extraction needs of MuQ: front end and conformer, normalisations folded in.

    The quantiser, the codebook logits and the convolutional positions are left behind.
    """

    def __init__(self, muq: nn.Module):
        super().__init__()
        self.frontend = FrontEnd(muq)
        self.conformer = muq.conformer
        del self.conformer.pos_conv_embed  # not used with rotary positions
        for layer in self.conformer.layers:
            layer.conv_module = ConformerConvolution(layer.conv_module)
        use_fast_linear(self)


def load_nano(name, **kwargs) -> MuQEncoder:
    """MuQ in small, pretrained, with the weights in the package."""
    return load_folder(NANO_FOLDER, name, **kwargs)


def load_nano_untrained(name, **kwargs) -> MuQEncoder:
    """MuQ in small with weights from a fixed seed: what muq-nano was before it learnt."""
    return MuQEncoder(name, nano_config(), None, **kwargs)


def load_random(name, **kwargs) -> MuQEncoder:
    """MuQ at its full size with weights from a fixed seed: for measuring what it costs."""
    config = nano_config() | LARGE
    config["w2v2_config"] |= LARGE_W2V2
    return MuQEncoder(name, config, None, **kwargs)


def load_folder(folder, name, **kwargs) -> MuQEncoder:
    """MuQ from config.json and model.safetensors in a folder."""
    return MuQEncoder(name, *_read_muq(Path(folder)), **kwargs)


def nano_config() -> dict:
    """The configuration of MuQ in small."""
    return json.loads((NANO_FOLDER / "config.json").read_text(encoding="utf-8"))


def is_muq(config: dict) -> bool:
    """Say whether a config.json is MuQ's."""
    return "encoder_dim" in config and "w2v2_config" in config


def _read_muq(folder: Path) -> tuple[dict, dict]:
    """Read MuQ's configuration and weights from a folder."""
    config = hub.read_json(folder / "config.json")
    return config, hub.read_weights(hub.check_weights(folder, str(folder), CONVERT))


def _build(config: dict, weights: dict | None) -> tuple[nn.Module, str]:
    """Build MuQ in evaluation mode and digest it; without weights they come from the fixed seed."""
    from muq.muq import MuQ, MuQConfig

    config = json.loads(json.dumps(config))
    config["w2v2_config"]["_attn_implementation"] = "sdpa"
    config["rvq_ckpt_path"] = None  # the original would torch.load (unpickle) it
    python_random = random.getstate()  # MuQModel seeds Python's global generator
    # Parameters that are read from a file take no memory before; buffers are computed as ever.
    empty = init_empty_weights(include_buffers=False) if weights else contextlib.nullcontext()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), empty:
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm, inside muq's quantiser
        torch.manual_seed(RANDOM_SEED)
        muq = MuQ(MuQConfig(**config))
    random.setstate(python_random)
    if weights is not None:
        given = muq.state_dict()
        # The rotary frequencies are those of the configuration, whatever is in the file.
        weights = {
            key: value.to(given[key].dtype) if key in given else value
            for key, value in weights.items()
            if not key.endswith("inv_freq")
        }
        missing, unexpected = muq.load_state_dict(weights, strict=False, assign=True)
        missing = [k for k in missing if not k.startswith(POSITIONS)]  # may be left out
        wrong = [k for k in (*missing, *unexpected) if not _unused(k)]
        if wrong:
            raise EncoderError(
                f"the weights don't fit the configuration: {len(wrong)} names differ, "
                f"the first is {wrong[0]}"
            )
    model = muq.model.eval().requires_grad_(False)
    digest = hashlib.sha256(f"muq {FORWARD_VERSION}".encode())
    digest.update(json.dumps(config["stat"], sort_keys=True).encode())
    absent = set() if weights is None else set(model.state_dict()) - {k[6:] for k in weights}
    for key, value in sorted(model.state_dict().items()):
        if not _unused(f"model.{key}") and key not in absent:
            digest.update(f"{key}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy())
    return model, digest.hexdigest()


def needed_weights(key: str) -> bool:
    """Say whether a weight is needed of a model with rotary positions, as muq-nano is."""
    return not _unused(key) and not key.startswith(POSITIONS)


def _unused(key: str) -> bool:
    """Say whether a weight plays no part in feature extraction."""
    parts = ("model.linear.", "model.rvq.", "model.quantizer_", "model.recon_proj.")
    return key.startswith(parts) or key == "model.cls_token" or key.endswith("inv_freq")
