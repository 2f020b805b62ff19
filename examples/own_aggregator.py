"""The median and the range of each dimension: an aggregator of one's own, as a plain function.

python train_probe.py --agg examples/own_aggregator.py:median_range
"""

import torch


def median_range(tokens, mask):
    """Join tokens (B, N, D), real where mask (B, N) is True, into (B, 2 D)."""
    hidden = ~mask.unsqueeze(-1)
    median = tokens.masked_fill(hidden, torch.nan).nanmedian(1).values
    spread = tokens.masked_fill(hidden, -torch.inf).amax(1)
    spread = spread - tokens.masked_fill(hidden, torch.inf).amin(1)
    return torch.cat([median, spread], -1)
