"""The Transformer aggregator: a track's tokens through a BERT-style encoder into one embedding.

`AggregatorModel` is a Hugging Face model: `save_pretrained`, `from_pretrained` (a folder or a hub
id, safetensors only). Its configuration names the encoder, layer and tokens that it was trained
on; `checkpoint` refuses anything else. Tokens are (B, N, D) with a mask (B, N) that is True
at real ones; padding changes no real token's state.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    ModernBertConfig,
    ModernBertModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormModel,
)

from tune.aggregators.registry import COSINES, dct, mean

READOUTS = ("cls", "mean", "residual", "order", "gated")
STANDARDISE = ("none", "dimension", "within")
POSITIONS = ("rotary", "learned")


class AggregatorError(ValueError):
    """An aggregator that can't be loaded or doesn't fit; the message says why and what to do."""


class AggregatorConfig(PreTrainedConfig):
    """What an aggregator is, and what it was trained on.

    Parameters
    ----------
    input_size : size D of a token
    hidden_size : width H of the Transformer; other than D, tokens pass through a linear layer
    num_hidden_layers, num_attention_heads, intermediate_size, dropout : its shape
    positions : "learned" (a BERT with normalisation before each block, as the study has it) or
        "rotary" (ModernBERT: relative positions, so that longer tracks than in training are fine)
    max_tokens : tokens of the longest track, for learned positions
    cls_token : whether a learned [CLS] token stands in front
    mask_token : "learned", or "zero" as in the study
    standardise : what is done to tokens by statistics of the training tracks: "none", "dimension"
        (each to zero mean and unit variance) or "within" (whitened by what varies within tracks,
        `tune.aggregators.whitening`, and scaled to a mean variance of 1)
    readout : how a track's embedding is taken when nothing else is said: "cls" (the [CLS] state),
        "mean" (mean of the token states), "residual" (the [CLS] state beside the plain mean of the
        tokens), "order" (the first cosines of the token states over the track,
        `tune.aggregators.registry.dct`) or "gated" (what of these a probe's labels ask for,
        `tune.aggregators.view_selection`; without a probe it is "residual", or "mean" without a
        [CLS])
    encoder, encoder_fingerprint, layer, tokens, seg, hop, min_tail, precision : what the tokens are
    recipe : how it was trained, for people
    """

    model_type = "tune-aggregator"

    def __init__(
        self,
        input_size=1024,
        hidden_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=1024,
        dropout=0.1,
        positions="rotary",
        max_tokens=4096,
        cls_token=True,
        mask_token="learned",
        standardise="within",
        readout="cls",
        encoder=None,
        encoder_fingerprint=None,
        layer=None,
        tokens=None,
        seg=None,
        hop=None,
        min_tail=None,
        precision=None,
        recipe=None,
        **kwargs,
    ):
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.intermediate_size, self.dropout = intermediate_size, dropout
        self.positions, self.max_tokens = positions, max_tokens
        self.cls_token, self.mask_token, self.standardise = cls_token, mask_token, standardise
        self.readout = readout
        self.encoder, self.encoder_fingerprint, self.layer = encoder, encoder_fingerprint, layer
        self.tokens, self.seg, self.hop, self.min_tail = tokens, seg, hop, min_tail
        self.precision, self.recipe = precision, recipe
        super().__init__(**kwargs)


@dataclass
class Aggregated:
    """What a forward pass gives.

    Attributes
    ----------
    states : (B, N, H), of the tokens
    cls : (B, H), of the [CLS] token, or None without one
    tokens : (B, N, D), standardised as the model sees them: what masked modelling predicts
    predicted : (B, N, D), predictions of the tokens; with masked tokens only
    summary : (B, D), what [CLS] says of the masked tokens; with masked tokens and a [CLS] only
    """

    states: torch.Tensor
    cls: torch.Tensor | None
    tokens: torch.Tensor
    predicted: torch.Tensor | None = None
    summary: torch.Tensor | None = None


class AggregatorModel(PreTrainedModel):
    """A BERT-style encoder over a track's tokens (Devlin et al. 2019; the study's aggregator)."""

    config_class = AggregatorConfig
    base_model_prefix = "aggregator"
    main_input_name = "tokens"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: AggregatorConfig):
        super().__init__(config)
        if config.positions not in POSITIONS:
            raise AggregatorError(f"positions must be one of {POSITIONS}, got {config.positions!r}")
        if config.hidden_size % config.num_attention_heads:
            raise AggregatorError(
                f"{config.num_attention_heads} heads don't divide the width {config.hidden_size}"
            )
        if config.positions == "rotary" and config.hidden_size // config.num_attention_heads % 2:
            raise AggregatorError(
                f"rotary positions need heads of an even size, not "
                f"{config.hidden_size} / {config.num_attention_heads}"
            )
        if config.standardise not in STANDARDISE:
            raise AggregatorError(
                f"standardise must be one of {', '.join(STANDARDISE)}, got {config.standardise!r}"
            )
        size, width = config.input_size, config.hidden_size
        self.register_buffer("token_mean", torch.zeros(size))
        within = config.standardise == "within"
        self.register_buffer("token_scale", torch.eye(size) if within else torch.ones(size))
        self.project = nn.Identity() if size == width else nn.Linear(size, width)
        self.cls = nn.Parameter(torch.zeros(width)) if config.cls_token else None
        self.hole = nn.Parameter(torch.zeros(width)) if config.mask_token == "learned" else None
        self.core = _rotary(config) if config.positions == "rotary" else _learned(config)
        self.core.get_input_embeddings().weight.requires_grad = False  # tokens are vectors already
        self.predict = nn.Linear(width, size)  # masked tokens
        self.summarise = nn.Linear(width, size) if config.cls_token else None  # [CLS], in training
        self.post_init()

    def _init_weights(self, module):
        """BERT's initial weights for our own layers (the core brings its own)."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, AggregatorModel):
            nn.init.zeros_(module.token_mean)
            within = module.config.standardise == "within"
            (nn.init.eye_ if within else nn.init.ones_)(module.token_scale)
            for parameter in filter(lambda p: p is not None, (module.cls, module.hole)):
                nn.init.normal_(parameter, std=0.02)

    def standardise_by(self, mean: torch.Tensor, scale: torch.Tensor) -> None:
        """Take the training tokens' mean (D,) and scale: (D,), or for "within" (D, D)."""
        self.token_mean.copy_(mean)
        self.token_scale.copy_(scale)

    def standardised(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) as the model sees them; zero where the mask is False."""
        return self._scaled(tokens).masked_fill(~mask[..., None], 0)

    def mean_token(self, mean: torch.Tensor) -> torch.Tensor:
        """The training tokens' mean (D,) as the model sees it: zero where it standardises."""
        return self._scaled(mean.to(self.token_mean.device, self.token_mean.dtype))

    def _scaled(self, tokens):
        """Tokens (..., D), standardised."""
        centred = tokens - self.token_mean
        if self.token_scale.ndim == 1:
            return centred * self.token_scale
        with torch.autocast(tokens.device.type, enabled=False):  # in float32
            return centred @ self.token_scale

    def forward(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor, masked: torch.Tensor | None = None
    ) -> Aggregated:
        """Run a batch of tracks.

        Parameters
        ----------
        tokens : (B, N, D)
        attention_mask : (B, N) bool, True at real tokens
        masked : (B, N) bool, True at tokens that are masked out and to be predicted

        Raises
        ------
        AggregatorError
            When a track has more tokens than learned positions.
        """
        limit = self.config.max_tokens
        if self.config.positions == "learned" and tokens.shape[1] > limit:
            raise AggregatorError(
                f"a track has {tokens.shape[1]} tokens, this aggregator has positions for {limit}: "
                f"use fewer (--frame_rate, longer --seg) or one with rotary positions"
            )
        x = tokens = self.standardised(tokens, attention_mask)  # (B, N, D)
        if masked is not None and self.hole is None:
            x = x.masked_fill(masked[..., None], 0)
        x = self.project(x)  # (B, N, H)
        if masked is not None and self.hole is not None:
            x = torch.where(masked[..., None], self.hole.to(x.dtype), x)
        if self.cls is not None:
            x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], 1)
            attention_mask = torch.cat(
                [attention_mask.new_ones(len(attention_mask), 1), attention_mask], 1
            )
        states = self.core(inputs_embeds=x, attention_mask=attention_mask.long()).last_hidden_state
        cls = None
        if self.cls is not None:
            cls, states = states[:, 0], states[:, 1:]
        if masked is None:
            return Aggregated(states, cls, tokens)
        summary = None if cls is None else self.summarise(cls)
        return Aggregated(states, cls, tokens, self.predict(states), summary)

    def embed(
        self, tokens: torch.Tensor, mask: torch.Tensor, readout: str | None = None
    ) -> torch.Tensor:
        """One embedding a track.

        Parameters
        ----------
        tokens, mask : as in `forward`
        readout : a name of `READOUTS`; None is the configuration's

        Returns
        -------
        (B, H), or (B, D + H) for "residual", (B, K H) for "order"
        """
        readout = readout or self.config.readout
        if readout == "gated":
            readout = "mean" if self.cls is None else "residual"
        if readout not in READOUTS:
            raise AggregatorError(f"--readout must be one of {', '.join(READOUTS)}, got {readout}")
        if readout in ("cls", "residual") and self.cls is None:
            raise AggregatorError(
                f"this aggregator has no [CLS] token: use --readout mean or order instead of "
                f"{readout}"
            )
        out = self(tokens, mask)
        if readout == "cls":
            return out.cls
        if readout == "order":
            return dct(out.states, mask)[0]
        if readout == "mean":
            return mean(out.states, mask)[0]
        return torch.cat([mean(out.tokens, mask)[0], out.cls], -1)

    def views(
        self, tokens: torch.Tensor, mask: torch.Tensor, readout: str | None = None
    ) -> dict[str, torch.Tensor]:
        """What a probe gets of a track: one view, or several of one size to mix or choose from.

        Returns
        -------
        {"cls", "mean" or "order": as `embed` gives it}; or for "residual", where H = D, {"tokens",
        "whitened", "cls"}, each (B, D): the tokens' plain mean, the mean of the whitened tokens (of
        an aggregator that whitens) and the [CLS] state. Where H differs from D, one view as `embed`
        gives it. For "gated" {"tokens", "cls" (where there is one), "states", "cosine 1", ...}: the
        plain mean, [CLS], and the mean and cosines of the states; the smaller are padded with zeros
        where H differs from D.
        """
        readout = readout or self.config.readout
        if readout == "gated":
            return self._gated_views(tokens, mask)
        if readout != "residual" or self.config.hidden_size != self.config.input_size:
            return {readout: self.embed(tokens, mask, readout)}
        whitened, cls = self.embed(tokens, mask, readout).split(self.config.input_size, -1)
        plain = {"tokens": mean(tokens, mask)[0]}
        within = self.config.standardise == "within"
        return plain | ({"whitened": whitened} if within else {}) | {"cls": cls}

    def _gated_views(self, tokens, mask) -> dict[str, torch.Tensor]:
        """The views of "gated", (B, max(D, H)) each; the tokens' mean is that of --agg mean."""
        out = self(tokens, mask)
        exact = torch.float32 if tokens.device.type == "mps" else torch.float64
        cosines = dct(out.states, mask)[0].chunk(COSINES, -1)
        found = {
            "tokens": mean(tokens.to(exact), mask)[0],
            **({} if out.cls is None else {"cls": out.cls}),
            "states": cosines[0],
            **{f"cosine {k}": cosines[k] for k in range(1, COSINES)},
        }
        width = max(self.config.input_size, self.config.hidden_size)
        return {k: F.pad(view.to(exact), (0, width - view.shape[-1])) for k, view in found.items()}


def _learned(config) -> nn.Module:
    """A BERT with normalisation before each block and learned positions, the study's kind."""
    core = RobertaPreLayerNormModel(
        RobertaPreLayerNormConfig(
            vocab_size=1,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            type_vocab_size=1,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act="gelu",
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=config.max_tokens + 2,
            attn_implementation="sdpa",
        ),
        add_pooling_layer=False,
    )
    core.embeddings.LayerNorm = nn.Identity()  # tokens plus positions, as the study has it
    return core


def _rotary(config) -> nn.Module:
    """ModernBERT (Warner et al. 2024) with attention over the whole track in every layer."""
    layers = config.num_hidden_layers
    return ModernBertModel(
        ModernBertConfig(
            vocab_size=1,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            cls_token_id=0,
            sep_token_id=0,
            hidden_size=config.hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            attention_dropout=config.dropout,
            mlp_dropout=config.dropout,
            embedding_dropout=config.dropout,
            layer_types=["full_attention"] * layers,
            max_position_embeddings=config.max_tokens,
            attn_implementation="sdpa",
        )
    )
