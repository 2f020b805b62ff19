"""What tests of probes and of what learns with them share."""

import torch

from tune.probing.intervals import bootstrap_curves, interval

CPU = torch.device("cpu")


def normal(rng, *shape, **kwargs) -> torch.Tensor:
    """Normal values, float64."""
    return torch.from_numpy(rng.normal(size=shape, **kwargs))


def paired_bootstrap(kind, labels, first, second, targets, **settings) -> dict:
    """Second minus first on the resamples that both share: metric -> (difference, low, high)."""
    a, b = (bootstrap_curves(kind, labels, p, targets, **settings) for p in (first, second))
    differences = {name: b[name] - a[name] for name in a}
    return {name: (float(d[0]), *interval(d[1:])) for name, d in differences.items()}
