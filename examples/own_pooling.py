"""An aggregator of your own that learns with the probe: a torch module's class.

    accelerate launch train_probe.py --agg examples/own_pooling.py:Gated --seg 10
    accelerate launch embed.py MUSIC_DIR --from_run runs/NAME --out e.parquet

It is made with the size of a token, from the probe's seed. Padding must not count.
"""

import torch


class Gated(torch.nn.Module):
    """A sum of the tokens, each weighed by a gate that learns."""

    def __init__(self, size):
        super().__init__()
        self.gate = torch.nn.Linear(size, 1)

    def forward(self, tokens, mask):  # (B, N, D), (B, N) -> (B, D)
        gates = self.gate(tokens).sigmoid() * mask.unsqueeze(-1)
        return (tokens * gates).sum(1) / gates.sum(1)
