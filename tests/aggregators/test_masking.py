"""Masking: what is masked, the losses by hand and by other means, the copying baseline."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from tune.aggregators.transformer.masking import (
    OBJECTIVES,
    copy_nearest,
    draw_masked,
    losses,
    track_losses,
)


def generator(seed):
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    """Three tracks of 7, 5 and 2 tokens, padded with rubbish: predicted, tokens, masked, mask."""
    g = generator(3)
    predicted, tokens = torch.randn(2, 3, 7, 6, generator=g, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 5, 2])[:, None]
    masked = torch.zeros(3, 7, dtype=torch.bool)
    masked[0, [1, 2, 6]] = masked[1, [0, 3]] = masked[2, 1] = True
    return predicted, tokens, masked, mask


@pytest.mark.parametrize("n_tokens", [2, 3, 5, 16, 61])
@pytest.mark.parametrize("mask_prob", [0.0, 0.15, 0.5, 0.99])
@pytest.mark.parametrize("span", [1, 2, 5, 100])
def test_something_is_hidden_and_something_stays(n_tokens, mask_prob, span):
    for seed in range(30):
        masked = draw_masked(n_tokens, mask_prob, span, generator(seed))
        assert masked.dtype == torch.bool
        assert masked.shape == (n_tokens,)
        assert 1 <= masked.sum() <= n_tokens - 1
        # The number is the share, rounded up or down; spans that touch take none of it away.
        assert max(1, int(mask_prob * n_tokens)) <= masked.sum() or masked.sum() == n_tokens - 1
        assert masked.sum() <= max(1, int(mask_prob * n_tokens) + 1)


@pytest.mark.parametrize(("n_tokens", "span"), [(6, 1), (12, 1), (12, 3), (50, 5)])
@pytest.mark.parametrize("mask_prob", [0.25, 0.4, 0.77])
def test_the_share_is_right_on_average(n_tokens, span, mask_prob):
    g = generator(1)
    shares = [draw_masked(n_tokens, mask_prob, span, g).double().mean() for _ in range(1500)]
    assert np.mean(shares) == pytest.approx(mask_prob, abs=4 * np.std(shares) / 1500**0.5 + 1e-9)


def test_every_token_is_hidden_equally_often_without_spans():
    g = generator(2)
    often = sum(draw_masked(8, 0.3, 1, g).double() for _ in range(4000)) / 4000
    np.testing.assert_allclose(often, 0.3, atol=0.04)


def test_spans_are_contiguous():
    for seed in range(200):
        masked = draw_masked(60, 0.2, 4, generator(seed)).int()
        edges = torch.diff(masked, prepend=torch.zeros(1), append=torch.zeros(1))
        runs = (edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]
        # 12 tokens in spans of 4: at most one is cut short by the number wanted.
        assert sum(run < 4 for run in runs.tolist()) <= 1
        assert len(runs) <= 4


def test_hiding_follows_from_the_generator_alone():
    first = draw_masked(40, 0.3, 2, generator(5))
    torch.rand(100)  # the global generator plays no part
    state = torch.get_rng_state()
    assert torch.equal(first, draw_masked(40, 0.3, 2, generator(5)))
    assert torch.equal(state, torch.get_rng_state())
    assert any(not torch.equal(first, draw_masked(40, 0.3, 2, generator(s))) for s in range(6, 9))


@pytest.mark.parametrize("n_tokens", [0, 1])
def test_a_single_token_is_refused(n_tokens):
    with pytest.raises(ValueError, match=f"2 tokens or more to hide one, got {n_tokens}"):
        draw_masked(n_tokens, 0.3, 1, generator(0))


def test_losses_by_hand():
    tokens = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]])
    predicted = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [0.0, -1.0]]])
    masked = torch.tensor([[False, True, True]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # Squares: ((0 + 4) / 2 + (0 + 9) / 2) / 2; cosines: 1 / sqrt(5) and -1.
    assert losses("mse", predicted, tokens, masked, mask).tolist() == [3.25]
    cosine = losses("cosine", predicted, tokens, masked, mask).item()
    assert cosine == pytest.approx((1 - 5**-0.5 + 2) / 2)
    # A query along its own token among two orthogonal ones, at temperature 1: -log(e / (e + 1)).
    eye = torch.eye(2)[None]
    first = torch.tensor([[True, False]])
    loss = losses("infonce", eye * 5, eye * 2, first, mask[:, :2], temperature=1.0)
    assert loss.item() == pytest.approx(-np.log(np.e / (np.e + 1)))


def test_mse_against_numpy(batch):
    predicted, tokens, masked, mask = batch
    p, t, h = (x.numpy() for x in (predicted, tokens, masked))
    expected = [((p[b][h[b]] - t[b][h[b]]) ** 2).mean() for b in range(3)]
    np.testing.assert_allclose(losses("mse", predicted, tokens, masked, mask), expected)


def test_cosine_against_scikit_learn(batch):
    predicted, tokens, masked, mask = batch
    expected = [
        1 - np.diag(cosine_similarity(p[h], t[h])).mean()
        for p, t, h in zip(*(x.numpy() for x in (predicted, tokens, masked)), strict=True)
    ]
    np.testing.assert_allclose(losses("cosine", predicted, tokens, masked, mask), expected)


def unit(vector):
    """A vector of length 1."""
    return vector / np.linalg.norm(vector)


def test_infonce_against_a_double_loop(batch):
    predicted, tokens, masked, mask = batch
    p, t, h, m = (x.numpy() for x in batch)
    expected = []
    for b in range(3):
        each = []
        for n in np.flatnonzero(h[b]):
            scores = {
                (c, k): unit(p[b, n]) @ unit(t[c, k]) / 0.3
                for c in range(3)
                for k in range(7)
                if m[c, k]
            }
            assert len(scores) == 14  # all real tokens, masked or not, of the batch
            each.append(np.log(sum(np.exp(s) for s in scores.values())) - scores[b, n])
        expected.append(np.mean(each))
    actual = losses("infonce", predicted, tokens, masked, mask, temperature=0.3)
    np.testing.assert_allclose(actual, expected)


@pytest.mark.parametrize("objective", ["mse", "cosine"])
def test_a_tracks_loss_is_the_same_alone_whatever_the_padding(objective, batch):
    predicted, tokens, masked, mask = batch
    together = losses(objective, predicted, tokens, masked, mask)
    for b in range(3):
        n = int(mask[b].sum())
        alone = losses(objective, *(x[b : b + 1, :n] for x in batch))
        np.testing.assert_allclose(alone[0], together[b], rtol=1e-12)


def test_infonce_looks_at_no_padding(batch):
    predicted, tokens, masked, mask = batch
    expected = losses("infonce", predicted, tokens, masked, mask)
    other = tokens.masked_fill(~mask[..., None], 123.0)
    torch.testing.assert_close(losses("infonce", predicted, other, masked, mask), expected)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_predictions_of_hidden_tokens_get_gradients(objective, batch):
    predicted, tokens, masked, mask = batch
    predicted.requires_grad_(True)
    losses(objective, predicted, tokens, masked, mask).sum().backward()
    moved = predicted.grad.abs().sum(-1) > 0
    assert torch.equal(moved, masked)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_perfect_prediction_has_the_smallest_loss(objective, batch):
    predicted, tokens, masked, mask = batch
    perfect = losses(objective, tokens, tokens, masked, mask)
    assert (perfect < losses(objective, predicted, tokens, masked, mask)).all()
    if objective != "infonce":
        np.testing.assert_allclose(perfect, 0, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_silent_tokens_give_finite_losses_and_gradients(objective, batch):
    _, tokens, masked, mask = batch
    zero = torch.zeros_like(tokens, requires_grad=True)
    loss = losses(objective, zero, tokens * 0, masked, mask)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(zero.grad).all()


def test_an_unknown_objective_is_named(batch):
    with pytest.raises(ValueError, match="mse, cosine, infonce, got 'mae'"):
        losses("mae", *batch)


def test_track_losses_against_a_loop(batch):
    _, tokens, masked, _ = batch
    summary = torch.randn(3, 6, generator=generator(9), dtype=torch.float64)
    keys = [unit(t[h].mean(0)) for t, h in zip(tokens.numpy(), masked.numpy(), strict=True)]
    expected, recognised = [], []
    for b in range(3):
        scores = np.array([unit(summary[b].numpy()) @ key / 0.2 for key in keys])
        expected.append(np.log(np.exp(scores).sum()) - scores[b])
        recognised.append(float(scores.argmax() == b))
    loss, right = track_losses(summary, tokens, masked, temperature=0.2)
    np.testing.assert_allclose(loss, expected)
    assert right.tolist() == recognised
    own = torch.from_numpy(np.array(keys))
    assert track_losses(own, tokens, masked)[1].tolist() == [1, 1, 1]


def test_a_track_alone_is_no_task_for_its_cls(batch):
    _, tokens, masked, _ = batch
    summary = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    loss, _ = track_losses(summary, tokens[:1], masked[:1])
    loss.sum().backward()
    assert loss.item() == 0
    assert not summary.grad.any()


def test_copying_by_hand():
    tokens = torch.arange(7.0)[None, :, None].expand(2, 7, 2).clone()
    tokens[1] += 10
    masked = torch.zeros(2, 7, dtype=torch.bool)
    masked[0, [1, 2, 3, 6]] = masked[1, [0, 3]] = True
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    copied = copy_nearest(tokens, masked, mask)
    # Token 2 lies between 0 and 4, equally near: the earlier one. Padding is never copied.
    assert copied[0, :, 0].tolist() == [0, 0, 0, 4, 4, 5, 5]
    assert copied[1, :4, 1].tolist() == [11, 11, 12, 12]


def test_copying_against_a_loop():
    g = generator(4)
    for _ in range(20):
        tokens = torch.randn(2, 9, 3, generator=g)
        mask = torch.arange(9) < torch.tensor([9, 6])[:, None]
        masked = torch.stack(
            [
                torch.cat([draw_masked(int(m.sum()), 0.5, 2, g), torch.zeros(9, dtype=torch.bool)])[
                    :9
                ]
                for m in mask
            ]
        )
        copied = copy_nearest(tokens, masked, mask)
        for b in range(2):
            seen = [k for k in range(9) if mask[b, k] and not masked[b, k]]
            for n in range(int(mask[b].sum())):
                assert torch.equal(
                    copied[b, n], tokens[b, min(seen, key=lambda k: (abs(k - n), k))]
                )
