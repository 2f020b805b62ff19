"""A row of the registry at work: a track's tokens to its embedding.

The same object for probes (`load`, `poolings`), for files of embeddings (`fit`, then a call a
track) and for costs (`untrained`, then `join`). What was learned with a probe (attention, the
weights of a mix) comes from a run, and standardises its input by that run's training tracks, as it
was learned. Whitening is fitted on the tracks at hand, without labels, unless a run brings its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tune.aggregators import trainable
from tune.aggregators.registry import find_row
from tune.aggregators.track_features import (
    load_segments,
    load_task_features,
    load_tokens,
    token_seconds,
    track_views,
)
from tune.aggregators.transformer import checkpoint as transformer
from tune.aggregators.whitening import accumulate
from tune.store.collection import Collection, Row

if TYPE_CHECKING:
    from tune.aggregators.transformer.model import AggregatorModel


class TrackAggregator:
    """Joins a track's tokens, of one row a segment rule, into one embedding.

    Parameters
    ----------
    agg : an aggregator, as `tune.aggregators.registry.find_row` takes it
    segs : the segment rules' names
    sample_rate : of the encoder
    window_s : seconds of a pooled frame; None where tokens are segments
    mix : whether all layers are mixed
    reduce : whether a linear layer over them stands in the mix's place
    model : the Transformer that was loaded, or None
    readout : of the Transformer; None is its own
    tune : whether the Transformer is trained with the probe
    n_tokens : for an aggregator that needs a fixed number
    constants : what was learned or fitted before: joiner.*, standardise.*, whitening.*
    checkpoint : the Transformer's name, for results

    Attributes
    ----------
    row : of the registry
    constants : the same and what `fit` found; all that another track needs to be joined alike
    pooling : the module that learned in front of a probe, or None
    """

    def __init__(
        self,
        agg: str,
        segs: Sequence[str],
        *,
        sample_rate: int,
        window_s: float | None = None,
        mix: bool = False,
        reduce: bool = False,
        model: AggregatorModel | None = None,
        readout: str | None = None,
        tune: bool = False,
        n_tokens: int | None = None,
        constants: Mapping | None = None,
        checkpoint: str | None = None,
    ):
        self.row, self.agg, self.segs = find_row(agg), agg, segs
        self.sample_rate, self.window_s = sample_rate, window_s
        self.mix, self.model, self.readout, self.tune = mix, model, readout, tune
        self.checkpoint, self.reduce = checkpoint, reduce
        self.n_tokens = n_tokens
        self.constants = {
            name: value if isinstance(value, torch.Tensor) else torch.tensor(value)
            for name, value in (constants or {}).items()
        }
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.pooling = self._load_pooling()

    @classmethod
    def untrained(
        cls,
        agg: str,
        segs: Sequence[str],
        *,
        size: int,
        device: torch.device,
        n_layers: int | None,
        seed: int,
        **settings,
    ) -> TrackAggregator:
        """One whose weights are those before learning, on the encoder's device.

        Parameters
        ----------
        size : D of a token
        n_layers : how many are mixed, or None
        settings : as above
        """
        made = cls(agg, segs, mix=n_layers is not None, **settings)
        if made.row.whitening:
            made.constants["whitening.mean"] = torch.zeros(size, dtype=torch.float64)
            made.constants["whitening.matrix"] = torch.eye(size, dtype=torch.float64)
        if made.row.pretrained:
            n_views = len(made.scales)
            if made.gated:
                made.pooling = trainable.Gate(torch.ones(n_views), size, made.dtype)
            elif n_views > 1:
                made.pooling = trainable.Mix(n_views, size, made.dtype)
            return made
        # The probe's type: train_probe.py's aggregators compute in it, but for the Transformer.
        made.device, made.dtype = device, torch.float32 if device.type == "mps" else torch.float64
        n_views = (n_layers or 1) * len(made.scales)
        if made.row.pooling:
            made.pooling = made.row.pooling()(
                size, made.dtype, n_views=n_layers, generator=torch.Generator().manual_seed(seed)
            ).to(device)
        elif made.gated:  # as costly as it gets
            made.pooling = trainable.Gate(torch.ones(len(made.scales)), size, made.dtype, n_layers)
            made.pooling = made.pooling.to(device)
        elif n_layers is not None or n_views > 1:
            made.pooling = trainable.Mix(n_views, size, made.dtype).to(device)
        return made

    @property
    def scales(self) -> list[str]:
        """What the probe may mix beside layers: segment lengths, or an aggregator's views."""
        if self.row.views:
            return list(self.row.views)
        if self.row.pretrained and not self.tune:
            return transformer.view_names(self.model.config, self.readout)
        return list(self.segs)

    @property
    def readout_used(self) -> str | None:
        """The Transformer's read-out, also where none was asked for; None without one."""
        if not self.row.pretrained:
            return None
        from tune.aggregators.transformer.recipes import TUNE

        return self.readout or (self.model.config.readout if self.model else TUNE.readout)

    @property
    def gated(self) -> bool:
        """Whether views are chosen by the labels, instead of mixed."""
        if self.row.pretrained:
            return not self.tune and self.readout_used == "gated"
        return self.row.gated

    @property
    def settings(self) -> dict:
        """What a run's configuration says of it beside the flags: where its file is, its digest."""
        own = self.row.own
        return {"agg": own.spec, "agg_sha256": own.sha256} if own else {}

    def load(
        self, splits, collection: Collection, rows: Sequence[Mapping], device: torch.device
    ) -> tuple:
        """What the probes see.

        Parameters
        ----------
        splits : of a task (`tune.tasks.Task`)
        rows : for each segment rule, path -> (content, spans)
        device : a Transformer's

        Returns
        -------
        {split: Features}, {split: Tokens} or None where the probes see none, and how many tracks
        had more tokens than the aggregator takes
        """
        agg, embed, tokens = self.agg, None, None
        if self.tune:
            agg = "mean"  # what the probes would see if they didn't see the tokens
        elif self.row.pretrained:
            embed = transformer.embedder(self.model.to(device), self.readout)
        features, truncated = load_task_features(splits, collection, rows, agg, embed)
        if self.row.pooling or self.tune:
            tokens = load_tokens(splits, collection, rows[0])
        return features, tokens, truncated

    def load_segments(self, splits, collection: Collection, rows: Sequence[Mapping]) -> tuple:
        """What probes see that judge segments: {split: Features}, {split: owners}.

        See `tune.aggregators.track_features.load_segments`; nothing is joined.
        """
        return load_segments(splits, collection, rows[0])

    def poolings(self, data, seeds: Sequence[int], device: torch.device) -> list | None:
        """What learns in front of each probe (`tune.aggregators.trainable`), or None.

        Parameters
        ----------
        data : tune.probing.bank.ProbeData
        """
        if self.row.pooling:
            return trainable.make_poolings(self.row.pooling(), data, seeds, device)
        if self.tune:
            start = transformer.make_initial_model(self.model, data.tokens["train"])
            return trainable.make_transformers(data, seeds, start, self.readout, device)
        if self.gated:
            return trainable.make_gates(data, seeds, self.scales, self.mix, device)
        return trainable.make_mixes(data, seeds, device, reduce=self.reduce)

    def fit(self, tracks: Iterable[Sequence[Row]]) -> None:
        """Find what the aggregator needs to know of all tracks: a whitening, a number of tokens.

        Parameters
        ----------
        tracks : the rows of every track that is to be joined; read only where they are needed
        """
        if self.row.fixed_n and self.n_tokens is None:
            self.n_tokens = max(len(rows[0].tokens) for rows in tracks)
        if self.row.whitening and "whitening.matrix" not in self.constants:
            tokens = (torch.from_numpy(rows[0].tokens[:, :1]) for rows in tracks)  # (N, 1, D)
            (within,) = accumulate(tokens, self.row.whitening)
            mean, matrix = within.fit()
            # As they are kept with the embeddings: a track that comes later is joined alike.
            self.constants |= {"whitening.mean": mean.float(), "whitening.matrix": matrix.float()}

    def __call__(self, rows: Sequence[Row]) -> tuple[np.ndarray, bool]:
        """Join one track: (D',) float32, and whether tokens were cut off."""
        joined, truncated = self.join(rows)
        assert len(joined) == 1, "several layers need a mix"
        return joined[0].float().numpy(), truncated

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> tuple[list[torch.Tensor], bool]:
        """Join one track.

        Parameters
        ----------
        rows : the track's, one a segment rule

        Returns
        -------
        embeddings (D') on the CPU, one a layer, or one of all layers where they are mixed; and
        whether tokens were cut off
        """
        if self.row.pooling and self.pooling is not None:
            return self._pool_tokens(rows[0]), False
        if self.model is not None and self.pooling is None:
            tokens = torch.from_numpy(rows[0].tokens[:, 0]).to(self.model.device)[None]
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            return [self.model.embed(tokens, mask, self.readout)[0].cpu()], False
        scales, truncated = [], False
        embed = None if self.model is None else transformer.embedder(self.model, self.readout)
        for row in rows:
            seconds = token_seconds(row, self.sample_rate, self.window_s)
            found = track_views(row, seconds, self.row, self.agg, self.n_tokens, embed)
            truncated |= found[0][2]
            values = torch.stack([values for values, _, _ in found])  # (L, D')
            scales += values.unflatten(-1, (self.row.n_parts, -1)).unbind(1)
        if self.row.whitening:
            mean, matrix = (self.constants[f"whitening.{k}"].double() for k in ("mean", "matrix"))
            scales.append((scales[0] - mean) @ matrix)
        if self.pooling is None:
            return list(scales[-1]), truncated
        views = torch.stack(scales, 1).flatten(0, 1)  # (L S, D'), as the probe's mix has them
        views = self._standardised(views).to(self.device, self.dtype)
        groups = views.split(self.pooling.n_views)  # one a layer, where layers aren't mixed
        return [self.pooling(group).cpu() for group in groups], truncated

    def _pool_tokens(self, row: Row) -> list[torch.Tensor]:
        """Pool a row's tokens by what learned to, each layer's or all mixed."""
        tokens = torch.from_numpy(row.tokens).to(self.device, self.dtype)  # (N, L, D)
        parts = tokens.unbind(1) if self.pooling.mix is None else [tokens]
        mask = torch.ones(1, len(tokens), dtype=torch.bool, device=self.device)
        return [self.pooling(self._standardised(x)[None], mask)[0].cpu() for x in parts]

    def _standardised(self, values: torch.Tensor) -> torch.Tensor:
        """Standardised as a run's probe saw it; as they are without one."""
        if "standardise.mean" not in self.constants:
            return values
        mean, scale = (self.constants[f"standardise.{k}"].double() for k in ("mean", "scale"))
        return (values - mean) * scale

    def _load_pooling(self) -> torch.nn.Module | None:
        """What a run learned in front of its probe, rebuilt from its tensors."""
        prefix = "joiner."
        state = {
            k.removeprefix(prefix): v.double()
            for k, v in self.constants.items()
            if k.startswith(prefix)
        }
        if not state:
            return None
        size = self.constants["standardise.mean"].shape[-1]
        if self.row.pooling:
            pooling = self.row.pooling().from_state(size, state)
        else:
            if "weights" in state:
                n_layers = len(state["mix.scores"]) if "mix.scores" in state else None
                pooling = trainable.Gate(state["weights"], size, torch.float64, n_layers)
            elif "weight" in state:
                pooling = trainable.Reduce(len(state["weight"]) // size, size, torch.float64)
            else:
                pooling = trainable.Mix(len(state["scores"]), size, torch.float64)
            pooling.load_state_dict(state)
        return pooling.eval().requires_grad_(False)
