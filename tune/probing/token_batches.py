"""Tokens of a split on a device, padded, standardised and in the probe's type only by the batch.

Tracks have as many tokens as they have: one of four hours among many of thirty seconds would
otherwise multiply the memory of all.
"""

from collections.abc import Iterator

import torch

# Batches are padded to the longest track of the split, but where that multiplies its tokens by
# more than this and takes more than so many bytes: there each to its own longest.
LOPSIDED, LOPSIDED_BYTES = 8, 100_000_000


class TokenBatches:
    """Makes batches of a split's tokens.

    Parameters
    ----------
    tokens : tune.aggregators.track_features.Tokens; its V views are scales x layers
    mean, scale : (V, D) float64, what tokens are standardised by; None leaves them as they are
    n_scales, mix : see `tune.probing.bank.ProbeData`
    dtype, device : of the batches
    """

    def __init__(self, tokens, mean, scale, *, n_scales: int, mix: bool, dtype, device):
        home = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self.flat, self.counts = tokens.flat.to(home), tokens.counts.to(home)  # (S, V, D), (n,)
        self.starts = self.counts.cumsum(0) - self.counts
        self.mean, self.scale = (None, None) if mean is None else (mean.to(home), scale.to(home))
        self.dtype, self.device, self.has_views = dtype, device, mix or n_scales > 1
        numbers = torch.arange(self.flat.shape[1], device=home).view(n_scales, -1)  # (S, L)
        self.views = numbers.t().reshape(1, -1) if mix else numbers.t()  # (L, V'), of each layer
        self.longest, n = int(self.counts.max()), len(self.counts)
        size = torch.finfo(dtype).bits // 8 * self.flat[0].numel()
        self.lopsided = (
            n * self.longest > LOPSIDED * len(self.flat)
            and n * self.longest * size > LOPSIDED_BYTES
        )

    def batch(self, rows: torch.Tensor, index: torch.Tensor) -> tuple:
        """What M probes see of tracks: tokens (M, B, N, [K,] D) and their mask (M, B, N).

        Where one track is far longer than most they are lists of M, each with the N of its own.

        Parameters
        ----------
        rows : (M, 1), each probe's layer
        index : (M, B) or (B,), tracks
        """
        rows, index = rows.to(self.flat.device), index.to(self.flat.device)
        m, views = len(rows), self.views[rows[:, 0]]  # (M, V')
        if index.ndim == 1 and len(self.views) == 1:  # the same for all: nothing is copied
            n = int(self.counts[index].max()) if self.lopsided else self.longest
            x, mask = self._pad(views[:1], index[None], n)
            return x.expand(m, *x.shape[1:]), mask.expand(m, -1, -1)
        index = index.expand(m, -1)
        if not self.lopsided:
            return self._pad(views, index, self.longest)
        lengths = self.counts[index].amax(1).tolist()
        each = zip(views.split(1), index.split(1), lengths, strict=True)
        x, mask = zip(*(self._pad(*some) for some in each), strict=True)
        return [part[0] for part in x], [part[0] for part in mask]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """All tracks, padded: (L, n, N, [K,] D) and the mask (n, N)."""
        index = torch.arange(len(self.counts), device=self.flat.device)
        x, mask = self._pad(self.views, index.expand(len(self.views), -1), self.longest)
        return iter((x, mask[0]))

    def _pad(self, views: torch.Tensor, index: torch.Tensor, n: int) -> tuple:
        """Tokens of views (M, V') and tracks (M, B), padded to n: (M, B, N, [K,] D), (M, B, N)."""
        at = torch.arange(n, device=index.device)
        mask = at < self.counts[index][..., None]  # (M, B, N)
        place = (self.starts[index][..., None] + at).clamp(max=len(self.flat) - 1)
        # (M, B, V', N, D): how it lies in memory decides the last bits of a mix's gradient.
        x = self.flat[place[:, :, None], views[:, None, :, None]]
        real = mask[:, :, None, :, None]
        x.masked_fill_(~real, 0)
        if self.mean is not None:
            mean, scale = (part[views][:, None, :, None] for part in (self.mean, self.scale))
            x = x.double().sub_(mean).mul_(scale).mul_(real)
        x = x.to(self.device, self.dtype)
        return x.movedim(2, 3) if self.has_views else x.squeeze(2), mask.to(self.device)
