"""The Transformer aggregator in use: loaded, checked against the store, and put to work.

A checkpoint is never used in part and never left to chance: what is missing, of another shape or
trained on other tokens is an error. Only safetensors are read.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # transformers' models take seconds to import, and most runs have none
    from tune.aggregators.transformer.model import AggregatorConfig, AggregatorModel

log = logging.getLogger(__name__)


def load_for(name: str, encoder, layers: Sequence[int], collection, rules: Sequence):
    """Load an aggregator and check that it was trained on the tokens that it will get.

    Another segment rule than in training is no error, since the tokens are of the same kind, but
    a warning.
    """
    model = load_aggregator(name)
    tokens = collection.key["tokens"]
    check_tokens_fit(model.config, encoder=encoder, layers=layers, tokens=tokens, name=name)
    trained, here = (model.config.seg, model.config.hop), (rules[0].name, rules[0].hop_s)
    if trained != here:
        log.warning(
            "%s was trained on --seg %s (hop %s), here it is %s (%s)", name, *trained, *here
        )
    return model


def tokens_of(name: str | None, frame_rate: float) -> tuple[str, float]:
    """Kind and rate of the tokens that a checkpoint was trained on; segments without a checkpoint.

    Parameters
    ----------
    name : a folder or hub id; None without one
    frame_rate : returned where the tokens are segments

    Returns
    -------
    ("segment" or "frame", frames a second)
    """
    kind = load_aggregator(name).config.tokens if name else "segment"
    return ("segment", frame_rate) if kind == "segment" else ("frame", float(kind.split()[-2]))


def embedder(model: AggregatorModel, readout: str | None) -> Callable:
    """A function tokens (N, D) -> views (K, D') on the CPU: one track at a time, no padding."""

    @torch.inference_mode()
    def embed(tokens: torch.Tensor) -> torch.Tensor:
        x = tokens.float().to(model.device)[None]
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return torch.cat(list(model.views(x, mask, readout).values())).cpu()

    return embed


def view_names(config: AggregatorConfig, readout: str | None) -> list[str]:
    """Names of the views that `AggregatorModel.views` gives."""
    readout = readout or config.readout
    if readout == "gated":
        from tune.aggregators.registry import COSINES

        cosines = (f"cosine {k}" for k in range(1, COSINES))
        return ["tokens", *(["cls"] if config.cls_token else []), "states", *cosines]
    if readout != "residual" or config.hidden_size != config.input_size:
        return [readout]
    return ["tokens", *(["whitened"] if config.standardise == "within" else []), "cls"]


def make_initial_model(
    model: AggregatorModel | None, tokens: tuple
) -> Callable[[int], AggregatorModel]:
    """What a Transformer that is trained with a probe begins as: seed -> model.

    Parameters
    ----------
    model : a pretrained one, of which each probe gets a copy; None draws weights from the seed
    tokens : (values (1, n, N, D), mask (n, N)) of the training tracks
    """
    if model is not None:
        return lambda seed: copy.deepcopy(model)
    from tune.aggregators.transformer.recipes import TUNE, make_config, make_model, standardisation

    values, mask = tokens
    tracks = (track[real].cpu() for track, real in zip(values[0], mask, strict=True))
    statistics = standardisation(tracks, TUNE.standardise)
    config = make_config(TUNE, values.shape[-1])
    return lambda seed: make_model(config, seed, statistics).eval()


def load_aggregator(name: str | Path) -> AggregatorModel:
    """Load a pretrained aggregator in evaluation mode.

    Parameters
    ----------
    name : a folder with config.json and model.safetensors, or a hub id

    Raises
    ------
    AggregatorError
        When there is none, it is damaged or no aggregator, or a weight is missing or has another
        shape: weights are never left to chance. Pickles are never read.
    """
    from transformers import PreTrainedConfig
    from transformers.utils.logging import disable_progress_bar

    from tune.aggregators.transformer.model import (
        AggregatorConfig,
        AggregatorError,
        AggregatorModel,
    )

    folder = Path(name)
    is_hub_id = str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))
    if not folder.is_dir() and (not is_hub_id or folder.parent.is_dir()):
        raise AggregatorError(f"--aggregator_checkpoint {name}: no such folder, and no hub id")
    if folder.is_dir():
        for file in ("config.json", "model.safetensors"):
            if not (folder / file).is_file():
                raise AggregatorError(
                    f"--aggregator_checkpoint {name} holds no {file}: it needs what "
                    f"pretrain_aggregator.py writes to --out"
                )
    try:
        config = PreTrainedConfig.get_config_dict(str(name))[0]
        if config.get("model_type") != AggregatorConfig.model_type:
            kind = config.get("model_type")
            says = f"says {kind!r}" if kind else "names no model_type"
            raise AggregatorError(
                f"--aggregator_checkpoint {name} is no aggregator (its config.json {says}): make "
                f"one with pretrain_aggregator.py"
            )
        disable_progress_bar()  # a few tensors
        model, info = AggregatorModel.from_pretrained(
            str(name), use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except AggregatorError:
        raise
    except Exception as error:  # the hub's client, safetensors and transformers raise their own
        raise AggregatorError(
            f"--aggregator_checkpoint {name} can't be loaded: {_first_line(error)}"
        ) from error
    wrong = [
        str(key)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in info[kind]
    ]
    if wrong:
        raise AggregatorError(
            f"--aggregator_checkpoint {name}: {len(wrong)} weights are missing or don't fit its "
            f"configuration, the first is {wrong[0]}"
        )
    for key, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise AggregatorError(f"--aggregator_checkpoint {name}: {key} is not finite")
    return model.eval().requires_grad_(False)


def check_tokens_fit(config: AggregatorConfig, *, encoder, layers, tokens: str, name: str) -> None:
    """Refuse an aggregator that was trained on other tokens than the store's.

    Parameters
    ----------
    encoder : tune.encoders.base.Encoder whose tokens are to be joined
    layers : hidden layers asked for
    tokens : kind of token, as the store's collection names it

    Raises
    ------
    AggregatorError
        With every difference: encoder, weights, layer, kind or size of the tokens.
    """
    from tune.aggregators.transformer.model import AggregatorError

    differences = [
        f"{what} {theirs} (here {ours})"
        for what, theirs, ours in (
            ("encoder", config.encoder, encoder.name),
            ("encoder weights", str(config.encoder_fingerprint)[:8], encoder.fingerprint[:8]),
            ("layer", config.layer, layers[0] if len(layers) == 1 else layers),
            ("tokens", config.tokens, tokens),
            ("token size", config.input_size, encoder.embedding_dim),
        )
        # The same weights under another name are the same encoder.
        if theirs != ours and what != "encoder"
    ]
    if differences:
        raise AggregatorError(
            f"--aggregator_checkpoint {name} doesn't fit: it was trained on {config.encoder}, "
            + ", ".join(differences)
        )


def _first_line(error: Exception) -> str:
    """An error's first line that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
