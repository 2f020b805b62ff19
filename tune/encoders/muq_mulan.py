"""MuQ-MuLan's audio tower (Zhu et al. 2025), frozen; the text tower is neither read nor built.

It is a MuQ of its own (fine-tuned), walked by `tune.encoders.muq`, then muq's Transformer, whose
mean over time is projected into the space shared with text. Layers 0 to M are MuQ's hidden states,
M + j is the state after layer j of the Transformer, and the last one is its projection, frame by
frame: the projection is linear, so a segment's mean of it is MuQ-MuLan's audio embedding before
that is scaled to length 1. muq's own code takes clips of 10 s, as in training: `--seg 10`.
"""

import copy
import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from tune.encoders import hub
from tune.encoders.base import DTYPES, EncoderError
from tune.encoders.muq import MuQEncoder, is_muq

HUB_ID = "OpenMuQ/MuQ-MuLan-large"
FORWARD_VERSION = 2  # raised when a change here changes the numbers
CONVERT = "from muq import MuQMuLan; MuQMuLan.from_pretrained(NAME).save_pretrained(FOLDER)"
INNER = "mulan.audio.model."  # MuQ's weights within MuQ-MuLan's
OUTER = {
    "proj": "mulan.audio.proj.",
    "transformer": "mulan.audio.transformer.",
    "latents": "mulan.audio_to_latents.",
}


class MuLanEncoder(MuQEncoder):
    """MuQ-MuLan's audio tower at one precision.

    Parameters
    ----------
    config : MuQ-MuLan's, as in config.json
    muq_config : that of the MuQ inside
    weights : state dict of MuQ-MuLan; what isn't the audio tower's is ignored
    """

    def __init__(
        self, name, config: dict, muq_config: dict, weights: dict, *, precision, device, **kwargs
    ):
        inner = {
            key.removeprefix(INNER): value
            for key, value in weights.items()
            if key.startswith(INNER)
        }
        super().__init__(name, muq_config, inner, precision=precision, device=device, **kwargs)
        head, digest = _build_head(name, config, weights)
        index = config["audio_model"].get("use_layer_idx", -1)
        self.use_layer = range(self.muq_layers + 1)[index]
        depth = len(head["transformer"].layers)
        latent, width = head["latents"].weight.shape
        self.sizes = [self.embedding_dim] * (self.muq_layers + 1) + [width] * depth + [latent]
        self.n_layers = self.deepest = self.muq_layers + depth + 1
        self.embedding_dim = latent
        self.fingerprint = hashlib.sha256(f"{self.fingerprint} {digest}".encode()).hexdigest()
        self._precise_head = copy.deepcopy(head) if precision != "no" else None
        self.head = head.to(self.device, DTYPES[precision])

    def keep_layers(self, deepest):
        """Drop the layers above the deepest one asked for, and their memory."""
        self.deepest, self.embedding_dim = deepest, self.sizes[deepest]
        if deepest <= self.muq_layers:
            super().keep_layers(deepest)
            self.head = self._precise_head = None
            return
        for head in filter(None, (self.head, self._precise_head)):
            del head["transformer"].layers[deepest - self.muq_layers :]

    def states(self, audio, layers, dtype):
        """Yield the hidden states (B, T, D) for the layers, T at 25 Hz."""
        inner = [k for k in layers if k <= self.muq_layers]
        outer = set(layers) - set(inner)
        if max(layers) > self.deepest:
            raise ValueError(f"layers must lie in 0..{self.deepest}, got {layers}")
        needed = sorted({*inner, self.use_layer} if outer else inner)
        for k, state in zip(needed, super().states(audio, needed, dtype), strict=True):
            if k in inner:
                yield state
            if k == self.use_layer:
                x = state
        if not outer:
            return
        head = self.head
        if dtype == torch.float32 and self._precise_head is not None:
            head = self._precise_head.to(self.device)
        x = head["proj"](x)  # (B, T, D)
        for k, (attention, feed_forward) in enumerate(
            head["transformer"].layers, start=self.muq_layers + 1
        ):
            x = attention(x) + x
            x = feed_forward(x) + x
            if k in outer:
                yield x
        if self.n_layers in outer:
            yield head["latents"](x)


def is_mulan(config: dict) -> bool:
    """Say whether a config.json is MuQ-MuLan's."""
    return "mulan" in config and "audio_transformer" in config


def load_folder(folder, name, **kwargs) -> MuLanEncoder:
    """MuQ-MuLan's audio tower from config.json and model.safetensors in a folder.

    The configuration of the MuQ inside is that of `audio_model.name`: a folder (also below this
    one), or the hub's.
    """
    folder = Path(folder)
    config = hub.read_json(folder / "config.json")
    files = hub.check_weights(folder, name, CONVERT)
    inside = config.get("audio_model", {}).get("name", "")
    places = [Path(p) for p in (folder / inside, inside) if inside and Path(p).is_dir()]
    place = places[0] if places else hub.fetch(inside, None, ["config.json"])
    muq_config = hub.read_json(place / "config.json")
    if not is_muq(muq_config):
        raise EncoderError(f"{name}: its audio model {inside} is no MuQ (no encoder_dim)")
    weights = hub.read_weights(files, "mulan.audio")  # the text tower's stay where they are
    return MuLanEncoder(name, config, muq_config, weights, **kwargs)


def _build_head(name, config: dict, weights: dict) -> tuple[nn.ModuleDict, str]:
    """Build what stands behind MuQ in the audio tower, and digest it."""
    from muq.muq_mulan.modules.transformer import Transformer

    audio, proj = config["audio_transformer"], weights.get(OUTER["proj"] + "weight")
    if proj is None:
        raise EncoderError(f"{name}: the weights hold no {OUTER['proj']}weight: no MuQ-MuLan")
    head = nn.ModuleDict(
        {
            "proj": nn.Linear(proj.shape[1], audio["dim"]),
            "transformer": Transformer(
                dim=audio["dim"],
                depth=audio["tf_depth"],
                dim_head=audio["dim_head"],
                heads=audio["heads"],
                ff_mult=audio["ff_mult"],
            ),
            "latents": nn.Linear(audio["dim"], config["mulan"]["dim_latent"]),
        }
    )
    state = {
        f"{part}.{key.removeprefix(prefix)}": value
        for part, prefix in OUTER.items()
        for key, value in weights.items()
        if key.startswith(prefix)
    }
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(f"{name}: the weights don't fit the configuration: {reason}") from error
    digest = hashlib.sha256(f"mulan {FORWARD_VERSION}".encode())
    digest.update(json.dumps([audio, config["audio_model"]], sort_keys=True).encode())
    for key, value in sorted(head.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.float().contiguous().numpy())
    return head.eval().requires_grad_(False), digest.hexdigest()
