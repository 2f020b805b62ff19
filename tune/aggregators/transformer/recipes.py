"""Recipes of the Transformer aggregator: its shape and how it is pretrained.

`study` is the original study's, as its released code has it; `tune` is ours (docs/LOG.md says how
it came about).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from tune.aggregators.whitening import WithinTrack, accumulate

if TYPE_CHECKING:  # transformers' models take seconds to import
    from tune.aggregators.transformer.model import AggregatorConfig, AggregatorModel


MOST_HEADS = 8
ROUNDING = 1e-7  # of float32, relative: a dimension that varies by no more is constant


@dataclass(frozen=True)
class AggregatorRecipe:
    """Settings of one recipe.

    Attributes
    ----------
    tokens, frame_rate : what is joined, as train_probe.py's flags
    hidden_size : width; 0 is the encoder's
    num_heads : attention heads; 0 is as many as the width allows, up to `MOST_HEADS`
    num_layers, intermediate_size, dropout, positions, cls_token, mask_token,
    standardise, readout : see `AggregatorConfig`
    mask_prob, span : see `tune.aggregators.transformer.masking.draw_masked`
    objective : a name of `tune.aggregators.transformer.masking.OBJECTIVES`
    track_weight : weight of the [CLS] token's own objective
    (`tune.aggregators.transformer.masking.track_losses`) lr, weight_decay, schedule ("cosine" or
    "constant"), warmup (share of the steps), epochs, batch_size (tracks), clip (largest norm of
    the gradient, 0 for none) : the optimisation, by
        AdamW
    """

    tokens: str = "segment"
    frame_rate: float = 1.0
    hidden_size: int = 0
    num_layers: int = 4
    num_heads: int = 0
    intermediate_size: int = 1024
    dropout: float = 0.1
    positions: str = "rotary"
    cls_token: bool = True
    mask_token: str = "learned"
    standardise: str = "dimension"
    readout: str = "gated"
    mask_prob: float = 0.3
    span: int = 1
    objective: str = "mse"
    track_weight: float = 1.0
    lr: float = 5e-4
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.1
    epochs: int = 50
    batch_size: int = 16
    clip: float = 1.0


TUNE = AggregatorRecipe()
STUDY = replace(
    TUNE,
    tokens="frame",
    frame_rate=25.0,
    positions="learned",
    cls_token=False,
    mask_token="zero",
    standardise="none",
    readout="mean",
    mask_prob=0.15,
    objective="mse",
    track_weight=0.0,
    lr=5e-5,
    schedule="constant",
    warmup=0.0,
    epochs=1,
    clip=0.0,
)
RECIPES = {"tune": TUNE, "study": STUDY}


def make_config(recipe: AggregatorRecipe, input_size: int, **trained_on) -> AggregatorConfig:
    """A recipe's model configuration for tokens of a size.

    Parameters
    ----------
    trained_on : encoder, encoder_fingerprint, layer, tokens, seg, hop, min_tail, precision
    """
    from tune.aggregators.transformer.model import AggregatorConfig

    width = recipe.hidden_size or input_size
    return AggregatorConfig(
        input_size=input_size,
        hidden_size=width,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads or most_heads(width),
        intermediate_size=recipe.intermediate_size,
        dropout=recipe.dropout,
        positions=recipe.positions,
        cls_token=recipe.cls_token,
        mask_token=recipe.mask_token,
        standardise=recipe.standardise,
        readout=recipe.readout,
        recipe=asdict(recipe),
        **trained_on,
    )


def most_heads(width: int) -> int:
    """The most attention heads of an even size, up to `MOST_HEADS`, that a width divides into.

    >>> most_heads(1024), most_heads(200)
    (8, 5)
    """
    return max((n for n in range(1, MOST_HEADS + 1) if width % (2 * n) == 0), default=1)


def standardisation(tracks: Iterable[torch.Tensor], how: str) -> tuple:
    """Mean (D,) and scale of training tracks' tokens (N, D), for `AggregatorModel`.

    The scale is (D,), one over the deviation (0 for a dimension that never varies), or (D, D) for
    how = "within": the whitening, scaled so that a whitened token's mean variance is 1.

    Raises
    ------
    ValueError
        When nothing varies within tracks and that is what is asked for.
    """
    (within,) = accumulate((tokens[:, None] for tokens in tracks), WithinTrack)
    if how != "within":
        deviation = within.covariance().diagonal().clamp(min=0).sqrt()
        varies = deviation > 1e-12 + ROUNDING * within.mean.abs()
        scale = torch.where(varies, 1 / deviation, 0.0)
        return within.mean, scale
    mean, matrix = within.fit()
    variance = (matrix.T @ within.covariance() @ matrix).diagonal().mean()
    return mean, matrix / variance.sqrt()


def make_model(config: AggregatorConfig, seed: int, statistics: tuple | None) -> AggregatorModel:
    """A model with weights from a seed, standardising by the training tokens' (mean, scale)."""
    from tune.aggregators.transformer.model import AggregatorModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AggregatorModel(config)
    if config.standardise != "none" and statistics is not None:
        model.standardise_by(*statistics)
    return model
