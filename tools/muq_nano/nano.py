"""Pretraining of muq-nano: MuQ's classes with heads for tokens, songs and orders; the losses.

The model is built by the configuration that the package ships; `write_model` leaves what
`tune.encoders.muq` loads. See tools/muq_nano/pretrain_nano.py.
"""

import hashlib
import json
import random
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from muq_nano.mel_tokens import CODES, STREAMS
from tune.encoders.muq import nano_config, needed_weights
from tune.system.files import save_tensors

PROJECTION_SIZE, TEMPERATURE = 64, 0.1
HEADS = ("head.", "projection.", "order.")  # used in pretraining only


class MaskedMuQ(nn.Module):
    """MuQ's front end and conformer, and the logits of the tokens at frames asked for."""

    def __init__(self, config: dict):
        super().__init__()
        from muq.muq import MuQ, MuQConfig

        muq = MuQ(MuQConfig(**config)).model
        self.mean, self.std = (config["stat"][f"melspec_2048_{k}"] for k in ("mean", "std"))
        self.conv, self.conformer = muq.conv, muq.conformer
        self.conformer.pos_conv_embed.requires_grad_(False)  # not used with rotary positions
        self.head = nn.Linear(config["encoder_dim"], len(STREAMS) * CODES)
        self.projection = nn.Linear(config["encoder_dim"], PROJECTION_SIZE, bias=False)
        self.order = nn.Linear(config["encoder_dim"], PROJECTION_SIZE, bias=False)

    def forward(self, mel: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Log-mel (B, 4 T, 128) in dB and frames (B, K) to logits and projections.

        Returns
        -------
        logits : (B, K, 9 * 256), of the frames' tokens
        projections, orders : (B, 64), of the crops as wholes: two projections of their time mean
        """
        x = self.conv((mel.transpose(1, 2) - self.mean) / self.std)  # (B, T, D)
        positions = self.conformer.embed_positions(x)
        for layer in self.conformer.layers:
            x = layer(x, relative_position_embeddings=positions)
            x = x[0] if isinstance(x, tuple) else x  # a tuple before transformers 5
        x = self.conformer.layer_norm(x)
        logits = self.head(x.gather(1, frames[..., None].expand(-1, -1, x.shape[-1])))
        mean = x.mean(1)
        return logits, self.projection(mean), self.order(mean)


def nt_xent_loss(projections: torch.Tensor, albums: torch.Tensor | None = None) -> torch.Tensor:
    """NT-Xent: a crop's partner against the other crops (Chen et al. 2020).

    Partners are of one song, or of one album, as in Alonso-Jimenez et al. 2023 by artists.

    Parameters
    ----------
    projections : (2 n, 64); rows i and n + i are partners
    albums : (2 n,), number of each crop's album: other crops of it are left out
    """
    projections = nn.functional.normalize(projections.float(), dim=1)
    partner = torch.arange(len(projections), device=projections.device).roll(len(projections) // 2)
    alike = (projections @ projections.T / TEMPERATURE).fill_diagonal_(float("-inf"))  # (2 n, 2 n)
    if albums is not None:
        same = albums[:, None] == albums
        same[torch.arange(len(projections), device=projections.device), partner] = False
        alike = alike.masked_fill(same, float("-inf"))
    return nn.functional.cross_entropy(alike, partner)


def order_contrastive_loss(
    projections: torch.Tensor, orders: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrastive loss of an example's other take among all orders of its pieces, and accuracy.

    Parameters
    ----------
    projections : (G * 2 * O, 64), sorted by group, take and order (`muq_nano.nano_orders.draw`)
    orders : O
    """
    first, second = (
        nn.functional.normalize(projections.float(), dim=1).unflatten(0, (-1, 2, orders)).unbind(1)
    )
    alike = torch.einsum("gad,gbd->gab", first, second) / TEMPERATURE  # (G, O, O)
    truth = torch.arange(orders, device=projections.device).expand(alike.shape[:2])
    both = torch.stack([alike, alike.transpose(1, 2)]).flatten(0, 2)  # (2 G O, O)
    loss = nn.functional.cross_entropy(both, truth.flatten().repeat(2))
    return loss, (alike.argmax(2) == truth).float().mean()


def build_model(seed: int) -> MaskedMuQ:
    """The model by the package's configuration, with weights from a seed and without dropout."""
    config = nano_config()
    config["rvq_ckpt_path"] = None
    w2v2 = config["w2v2_config"]
    w2v2 |= {k: 0.0 for k in w2v2 if k.endswith("dropout")}
    w2v2["_attn_implementation"] = "sdpa"
    python_random = random.getstate()  # MuQModel seeds Python's global generator
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm, inside muq's quantiser
        torch.manual_seed(seed)
        model = MaskedMuQ(config)
    random.setstate(python_random)
    return model


def take_weights(model: MaskedMuQ, folder: Path) -> str:
    """Put the weights of a model that `write_model` left into this one; its heads stay as drawn.

    Returns
    -------
    SHA-256 of the file of weights

    Raises
    ------
    ValueError
        When the folder holds no such model, or one of another shape.
    """
    file = folder / "model.safetensors"
    try:
        found = {
            k.removeprefix("model."): v.float() if v.is_floating_point() else v
            for k, v in load_file(file).items()
        }
    except (OSError, SafetensorError) as error:
        raise ValueError(f"--init {folder} holds no model.safetensors of this script") from error
    own = model.state_dict()
    wanted = {k for k in own if needed_weights(f"model.{k}") and not k.startswith(HEADS)}
    if found.keys() != wanted or any(found[k].shape != own[k].shape for k in wanted):
        raise ValueError(f"--init {folder} holds another kind of model than muq-nano")
    model.load_state_dict(found, strict=False)
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def count(model: MaskedMuQ) -> int:
    """Number of parameters that are saved: without heads and MuQ's unused parts."""
    return sum(
        v.numel()
        for k, v in model.named_parameters()
        if needed_weights(f"model.{k}") and not k.startswith(HEADS)
    )


def write_model(model: MaskedMuQ, out: Path) -> None:
    """Write config.json and model.safetensors: matrices in float16, the rest in float32."""
    weights = {
        f"model.{k}": (v.half() if v.ndim > 1 else v.float() if v.is_floating_point() else v)
        .detach()
        .cpu()
        .contiguous()
        for k, v in model.state_dict().items()
        if needed_weights(f"model.{k}") and not k.startswith(HEADS)
    }
    part = out / "model.tmp"
    save_tensors(weights, part, {"format": "pt"}, save)
    text = json.dumps(nano_config(), indent=2) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")
    part.replace(out / "model.safetensors")
