"""Between the store and the probe: which aggregator joins a run's tokens, and what learns of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tune.aggregators import trainable
from tune.aggregators.track_features import load_task_features, load_tokens
from tune.aggregators.transformer import checkpoint
from tune.probing.bank import ProbeData

if TYPE_CHECKING:
    from tune.aggregators.transformer.model import AggregatorModel


@dataclass(frozen=True)
class Joining:
    """How a run joins a track's tokens.

    Attributes
    ----------
    agg : a name of `tune.aggregators.AGGREGATORS`
    segs : the segment rules' names, several for hierarchical
    mix : whether the probe mixes all layers
    model : the Transformer that was loaded, or None
    readout : of the Transformer; None is its own
    tune : whether the Transformer is trained with the probe
    """

    agg: str
    segs: Sequence[str]
    mix: bool = False
    model: AggregatorModel | None = None
    readout: str | None = None
    tune: bool = False

    @property
    def scales(self) -> list[str]:
        """What the probe may mix beside layers: segment lengths, or an aggregator's views."""
        if self.agg == "whitened":
            return ["mean", "whitened"]
        if self.agg == "transformer" and not self.tune:
            return checkpoint.view_names(self.model.config, self.readout)
        return list(self.segs)

    @property
    def readout_used(self) -> str | None:
        """The Transformer's read-out, also where none was asked for; None without one."""
        if self.agg != "transformer":
            return None
        from tune.aggregators.transformer.recipes import TUNE

        return self.readout or (self.model.config.readout if self.model else TUNE.readout)

    def load(self, task, collection, rows: Sequence[Mapping], device: torch.device) -> tuple:
        """What the probes see, and how many tracks had more tokens than the aggregator takes.

        Parameters
        ----------
        task : tune.tasks.Task
        rows : for each segment rule, path -> (content, spans)

        Returns
        -------
        tune.probing.bank.ProbeData, int
        """
        agg, embed, tokens = self.agg, None, None
        if self.tune:
            agg = "mean"  # what the probes would see if they didn't see the tokens
        elif agg == "transformer":
            embed = checkpoint.embedder(self.model.to(device), self.readout)
        features, truncated = load_task_features(task.splits, collection, rows, agg, embed)
        if agg == "attention" or self.tune:
            tokens = load_tokens(task.splits, collection, rows[0])
        data = ProbeData(
            task, features, device, n_scales=len(self.scales), mix=self.mix, tokens=tokens,
            raw=self.tune,
        )  # fmt: skip
        return data, truncated

    def joiners(self, data: ProbeData, seeds: Sequence[int], device: torch.device) -> list | None:
        """What learns in front of each probe (`tune.aggregators.trainable`), or None."""
        if self.agg == "attention":
            return trainable.make_attention(data, seeds, device)
        if self.tune:
            start = checkpoint.starter(self.model, data.tokens["train"])
            return trainable.make_transformers(data, seeds, start, self.readout, device)
        return trainable.make_mixes(data, seeds, device)
