"""MuQ-MuLan's text tower: a sentence in the space of the audio tower's last layer.

XLM-RoBERTa (fine-tuned), muq's Transformer, the mean over tokens, and a projection, as in muq's own
`extract_text_latents`. It is read from the same safetensors as the audio tower; only tokenizer and
configuration of XLM-RoBERTa come from the folder, or the hub's model, that MuQ-MuLan's config.json
names (`text_model.name`).
"""

from pathlib import Path

import torch
from torch import nn

from tune.encoders import hub
from tune.encoders.base import EncoderError
from tune.encoders.convert import converted
from tune.encoders.muq_mulan import CONVERT, HUB_ID, is_mulan
from tune.encoders.registry import ENCODERS

TOKENIZER = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
MODEL, TRANSFORMER, PROJ = (f"mulan.text.{part}." for part in ("model", "transformer", "proj"))
LATENTS = "mulan.text_to_latents."


class MuLanText(nn.Module):
    """The text tower, on the CPU in float32.

    Parameters
    ----------
    config : MuQ-MuLan's, as in config.json
    folder : of XLM-RoBERTa's configuration and tokenizer
    weights : state dict of MuQ-MuLan; what isn't the text tower's is ignored
    """

    def __init__(self, config: dict, folder: Path, weights: dict):
        from muq.muq_mulan.modules.transformer import Transformer
        from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

        super().__init__()
        text, width = config["text_transformer"], config["text_model"].get("model_dim")
        dim = text["dim"]
        roberta = XLMRobertaConfig.from_pretrained(folder)
        self.model = XLMRobertaModel(roberta, add_pooling_layer=False)
        self.proj = nn.Linear(width, dim) if width not in (None, dim) else nn.Identity()
        self.transformer = Transformer(
            dim=dim,
            depth=text["tf_depth"],
            dim_head=text["dim_head"],
            heads=text["heads"],
            ff_mult=text["ff_mult"],
        )
        self.latents = nn.Linear(dim, config["mulan"]["dim_latent"])
        for part, prefix in (
            (self.model, MODEL),
            (self.proj, PROJ),
            (self.transformer, TRANSFORMER),
            (self.latents, LATENTS),
        ):
            state = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            unused = ("pooler.", "embeddings.position_ids")  # some versions save them
            part.load_state_dict({k: v for k, v in state.items() if not k.startswith(unused)})
        self.max_tokens = roberta.max_position_embeddings - roberta.pad_token_id - 1
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.eval().requires_grad_(False)

    def forward(self, text: str) -> torch.Tensor:
        """A text's vector of length 1, (latent,) float32.

        Raises
        ------
        ValueError
            When the text is empty or too long.
        """
        inputs = self.tokenizer([text], return_tensors="pt")
        n_tokens = inputs["input_ids"].shape[1]
        if not text.strip() or n_tokens > self.max_tokens:
            raise ValueError(
                f"a text of 1 to {self.max_tokens} tokens is expected, got {n_tokens} "
                f"({text[:40]!r})"
            )
        with torch.inference_mode():
            x = self.model(**inputs).last_hidden_state  # (1, T, width)
            x = self.transformer(self.proj(x)).mean(1)  # (1, D)
            return nn.functional.normalize(self.latents(x), dim=-1)[0]


def mulan_folder(name: str, revision: str | None = None) -> Path:
    """The folder of an encoder that is a MuQ-MuLan.

    Parameters
    ----------
    name : "muq-mulan", a folder or a hub id
    revision : of a model of the hub

    Raises
    ------
    EncoderError
        When it is another encoder, or its weights aren't here.
    """
    row, folder = ENCODERS.get(name), Path(name)
    other = EncoderError(
        f"{name} has no text tower, MuQ-MuLan has: python -m tune.encoders convert muq-mulan "
        f"once, then --encoder muq-mulan"
    )
    if row is not None or not folder.is_dir():
        is_hub_id = name.count("/") == 1 and ":" not in name
        repo = HUB_ID if name == "muq-mulan" else name if row is None and is_hub_id else None
        if repo is None:
            raise other
        folder = converted(repo, revision) or hub.cached(repo, revision)
        if folder is None:
            raise EncoderError(
                f"{name}: its weights aren't here: python -m tune.encoders convert {name}"
            )
    if not is_mulan(hub.read_json(folder / "config.json")):
        raise other
    return folder


def load_text_tower(name: str, revision: str | None = None) -> MuLanText:
    """MuQ-MuLan's text tower.

    Parameters
    ----------
    name, revision : see `mulan_folder`

    Raises
    ------
    EncoderError
        When it is another encoder, its weights or tokenizer aren't here, or don't fit.
    """
    folder = mulan_folder(name, revision)
    config = hub.read_json(folder / "config.json")
    inside = config.get("text_model", {}).get("name", "")
    places = [Path(p) for p in (folder / inside, inside) if inside and Path(p).is_dir()]
    place = places[0] if places else hub.fetch(inside, None, TOKENIZER)
    if hub.read_json(place / "config.json").get("model_type") != "xlm-roberta":
        raise EncoderError(f"{name}: its text model {inside} is no XLM-RoBERTa")
    if not (place / "tokenizer.json").is_file():
        raise EncoderError(f"{place} holds no tokenizer.json: hf download {inside} tokenizer.json")
    weights = hub.read_weights(hub.check_weights(folder, name, CONVERT), "mulan.text")
    try:
        return MuLanText(config, place, weights)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"{name}: the text tower's weights don't fit the configuration: {reason}"
        ) from error
