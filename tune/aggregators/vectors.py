"""A track's rows to its one vector, by any aggregator: what a probe would see of the track.

What was learned with a probe (attention, the weights of a mix) comes from a run, and standardises
its input by that run's training tracks, as it was learned. Whitening is fitted on the tracks at
hand, without labels, unless a run brings its own. All else is the aggregator's plain output.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from tune.aggregators.registry import AGGREGATORS
from tune.aggregators.track_features import track_views
from tune.aggregators.trainable import GatedAttention, Mix
from tune.aggregators.transformer.checkpoint import embedder
from tune.aggregators.whitening import WithinTrack
from tune.store.store import Collection, Row


class TrackJoiner:
    """Joins a track's rows, one a segment rule, into one vector.

    Parameters
    ----------
    agg : a name of `AGGREGATORS`
    collection : where the rows come from
    model : the Transformer, for `transformer`
    readout : its read-out; None is its own
    n_tokens : for `concat`
    constants : what was learned or fitted before: joiner.*, standardise.*, whitening.*

    Attributes
    ----------
    constants : the same and what `fit` found; all that another track needs to be joined alike
    """

    def __init__(self, agg: str, collection: Collection, *, model=None, readout: str | None = None,
                 n_tokens: int | None = None, constants: Mapping | None = None):  # fmt: skip
        self.agg, self.collection, self.n_tokens = agg, collection, n_tokens
        self.constants = dict(constants or {})
        self._model, self._readout = model, readout
        self._views = None if model is None else embedder(model, readout)
        self._joiner = self._load_joiner()

    def fit(self, tracks: Iterable[Sequence[Row]]) -> None:
        """Find what the aggregator needs to know of all tracks: a whitening, a number of tokens.

        Parameters
        ----------
        tracks : the rows of every track that is to be joined; read only where they are needed
        """
        if AGGREGATORS[self.agg].fixed_n and self.n_tokens is None:
            self.n_tokens = max(len(rows[0].tokens) for rows in tracks)
        if self.agg == "whitened" and "whitening.matrix" not in self.constants:
            within = None
            for rows in tracks:
                tokens = torch.from_numpy(rows[0].tokens[:, 0])  # (N, D)
                within = within or WithinTrack(tokens.shape[1])
                within.add(tokens)
            mean, matrix = within.fit()
            # As they are kept with the embeddings: a track that comes later is joined alike.
            self.constants |= {"whitening.mean": mean.float(), "whitening.matrix": matrix.float()}

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row]) -> tuple[np.ndarray, bool]:
        """Join one track: (D',) float32, and whether tokens were cut off."""
        if isinstance(self._joiner, GatedAttention):
            tokens = torch.from_numpy(rows[0].tokens).double()  # (N, L, D)
            tokens = self._standardised(tokens if self._joiner.mix else tokens[:, 0])
            mask = torch.ones(1, len(tokens), dtype=torch.bool)
            return self._joiner(tokens[None], mask)[0].float().numpy(), False
        if self._model is not None and self._joiner is None:
            tokens = torch.from_numpy(rows[0].tokens[:, 0]).to(self._model.device)[None]
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            return self._model.embed(tokens, mask, self._readout)[0].cpu().numpy(), False
        scales, truncated = [], False
        for row in rows:
            found = track_views(row, self.collection, self.agg, self.n_tokens, self._views)
            truncated |= found[0][2]
            scales.append(torch.stack([values for values, _, _ in found]))  # (L, D')
        if self.agg == "whitened":
            mean, matrix = (self.constants[f"whitening.{k}"].double() for k in ("mean", "matrix"))
            scales.append((scales[0] - mean) @ matrix)
        if self._joiner is not None:
            views = torch.stack(scales, 1).flatten(0, 1)  # (L S, D'), as the probe's mix has them
            return self._joiner(self._standardised(views)).float().numpy(), truncated
        assert scales[-1].shape[0] == 1, "several layers need a mix"
        return scales[-1][0].float().numpy(), truncated

    def _standardised(self, values: torch.Tensor) -> torch.Tensor:
        """Standardised as the run's probe saw it."""
        mean, scale = (self.constants[f"standardise.{k}"].double() for k in ("mean", "scale"))
        return (values - mean) * scale

    def _load_joiner(self) -> torch.nn.Module | None:
        """What a run learned in front of its probe, rebuilt from its tensors."""
        prefix = "joiner."
        state = {k.removeprefix(prefix): v.double() for k, v in self.constants.items()
                 if k.startswith(prefix)}  # fmt: skip
        if not state:
            return None
        size = self.constants["standardise.mean"].shape[-1]
        if self.agg == "attention":
            views = len(state["mix.scores"]) if "mix.scores" in state else None
            joiner = GatedAttention(
                size, torch.float64, generator=torch.Generator(), n_views=views,
                heads=state["scores"].shape[1], hidden=state["scores"].shape[0],
            )  # fmt: skip
        else:
            joiner = Mix(len(state["scores"]), size, torch.float64)
        joiner.load_state_dict(state)
        return joiner.eval().requires_grad_(False)
