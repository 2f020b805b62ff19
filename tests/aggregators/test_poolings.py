"""Poolings that learn with the probe: values by hand, padding, order, gradients, seeds."""

import numpy as np
import pytest
import torch
from probe_data import normal

from tune.aggregators.poolings import AttentiveStatistics, Correlations, Prototypes
from tune.aggregators.registry import AGGREGATORS, stats

LENGTHS = [1, 4, 6]
POOLINGS = [AttentiveStatistics, Correlations, Prototypes]


@pytest.fixture
def batch(rng):
    """Three tracks of one, four and six tokens of eight dimensions: tokens, mask."""
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    return normal(rng, 3, 6, 8, loc=1), mask


def made(kind, rng) -> torch.nn.Module:
    """A pooling in the middle of training."""
    pooling = kind(8).double()
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.copy_(normal(rng, *parameter.shape))
    return pooling


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("rubbish", [0.0, 1e10])
def test_padding_and_neighbours_do_not_matter(rng, batch, kind, rubbish):
    x, mask = batch
    pooling = made(kind, rng)
    together = pooling(x.masked_fill(~mask[..., None], rubbish), mask)
    assert torch.isfinite(together).all()
    for i, n in enumerate(LENGTHS):
        alone = pooling(x[i : i + 1, :n], mask[i : i + 1, :n])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", POOLINGS)
def test_order_does_not_matter(rng, kind):
    x, mask = normal(rng, 2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    pooling, order = made(kind, rng), torch.from_numpy(rng.permutation(6))
    torch.testing.assert_close(pooling(x[:, order], mask), pooling(x, mask), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", POOLINGS)
def test_gradient_reaches_every_parameter(rng, batch, kind):
    pooling = made(kind, rng)
    out = pooling(*batch)
    (out * normal(rng, *out.shape)).sum().backward()
    for name, parameter in pooling.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_attentive_statistics_start_as_mean_and_deviation(rng, batch):
    torch.testing.assert_close(
        AttentiveStatistics(8).double()(*batch)[1:], stats(*batch)[0][1:], rtol=0, atol=1e-9
    )


def test_attentive_statistics_by_numpy(rng, batch):
    x, mask = batch
    pooling = made(AttentiveStatistics, rng)
    w, b, v = (p.detach().numpy() for p in pooling.parameters())
    track = x[1, :4].numpy()
    scores = np.exp(np.tanh(track @ w.T + b) @ v[0])
    weights = (scores / scores.sum())[:, None]
    mean = (weights * track).sum(0)
    deviation = np.sqrt((weights * track**2).sum(0) - mean**2)
    got = pooling(x, mask)[1].detach()
    np.testing.assert_allclose(got, np.concatenate([mean, deviation]), atol=1e-5)


def test_correlations_are_numpys_beside_the_mean(rng):
    track = normal(rng, 1, 50, 8)
    pooling = made(Correlations, rng)
    got = pooling(track, torch.ones(1, 50, dtype=torch.bool))[0].detach().numpy()
    np.testing.assert_allclose(got[:8], track[0].mean(0))
    expected = np.corrcoef((track[0] @ pooling.project.weight.T).detach().numpy().T)
    np.testing.assert_allclose(got[8:], expected[np.triu_indices(32, 1)], atol=1e-5)


def test_prototypes_are_largest_cosines_to_signs(rng, batch):
    x, mask = batch
    pooling = made(Prototypes, rng)
    signs = np.sign(pooling.vectors.detach().numpy())
    track = x[1, :4].numpy()
    cosines = track @ signs.T / np.linalg.norm(track, axis=1)[:, None] / 8**0.5
    np.testing.assert_allclose(pooling(x, mask)[1].detach(), cosines.max(0), atol=1e-9)


@pytest.mark.parametrize("name", ["attention", "attentive_stats", "correlation", "prototypes"])
def test_a_row_makes_its_pooling_from_the_seed_and_from_saved_weights(rng, batch, name):
    kind = AGGREGATORS[name].pooling()
    one, two, other = (
        kind(8, torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    drawn = [torch.cat([p.flatten() for p in m.parameters()]) for m in (one, two, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    again = kind.from_state(8, one.state_dict())
    x, mask = batch
    torch.testing.assert_close(again(x, mask), one(x, mask), rtol=0, atol=1e-9)
    assert one(x, mask).shape == (3, one.n_out)
