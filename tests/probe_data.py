"""What tests of probes and of what learns with them share."""

import torch

CPU = torch.device("cpu")


def normal(rng, *shape, **kwargs) -> torch.Tensor:
    """Normal values, float64."""
    return torch.from_numpy(rng.normal(size=shape, **kwargs))
