"""Aggregators: values by hand, padding, order, holes, and fixed numbers of tokens."""

import numpy as np
import pytest
import scipy.fft
import torch

from tune.aggregators.registry import (
    AGGREGATORS,
    aggregate_track,
    changes,
    concat,
    dct,
    duration_mean,
    fit_tokens,
    maximum,
    mean,
    stats,
)

FUNCTIONS = {name: row for name, row in AGGREGATORS.items() if row.function}
ALL = pytest.mark.parametrize("name", list(FUNCTIONS))
ANY_NUMBER = pytest.mark.parametrize("name", [n for n, r in FUNCTIONS.items() if not r.fixed_n])
UNORDERED = pytest.mark.parametrize("name", ["mean", "max", "stats", "duration_mean"])
SECONDS = torch.tensor([10.0, 10, 10, 10, 2.5, 7], dtype=torch.float64)  # of six tokens


@pytest.fixture
def tokens(rng):
    """Six tokens of five dimensions, not around zero: (6, 5) float64."""
    return torch.from_numpy(rng.normal(3, 2, (6, 5)))


def everything(tokens):
    """A mask that hides nothing."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool)


def join(name, tokens, mask, seconds=None):
    """Apply a function of the table to a batch; durations (N,) or (B, N) where it needs them."""
    row = AGGREGATORS[name]
    if not row.needs_seconds:
        return row.function(tokens, mask)
    return row.function(tokens, mask, seconds.expand(mask.shape))


def same(a, b, **kwargs):
    """Assert equal embeddings and equal masks, to the bit unless told otherwise."""
    torch.testing.assert_close(a[0], b[0], **({"rtol": 0, "atol": 0} | kwargs))
    assert torch.equal(a[1], b[1])


# Values

TRACK = torch.tensor([[[1.0, -4.0], [3.0, -4.0], [5.0, -1.0]]])  # (1, 3, 2)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (mean, [3, -3]),
        (maximum, [5, -1]),
        (stats, [3, -3, (8 / 3) ** 0.5, 2**0.5]),
        (concat, [1, -4, 3, -4, 5, -1, 1, 1, 1]),
    ],
)
def test_values_by_hand(function, expected):
    out, valid = function(TRACK, everything(TRACK))
    torch.testing.assert_close(out, torch.tensor([expected], dtype=torch.float32))
    assert valid.shape == out.shape
    assert valid.all()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (mean, [2, -4]),
        (maximum, [3, -4]),
        (stats, [2, -4, 1, 0]),
        (concat, [1, -4, 3, -4, 0, 0, 1, 1, 0]),
    ],
)
def test_masked_token_does_not_count(function, expected):
    out, _ = function(TRACK, torch.tensor([[True, True, False]]))
    assert out.tolist() == [expected]


def test_batch_of_ragged_tracks_agrees_with_numpy(rng):
    lengths = [1, 4, 7]
    tokens = torch.from_numpy(rng.normal(size=(3, 7, 5)))
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    for i, n in enumerate(lengths):
        real = tokens[i, :n].numpy()
        np.testing.assert_allclose(mean(tokens, mask)[0][i], real.mean(0))
        np.testing.assert_array_equal(maximum(tokens, mask)[0][i], real.max(0))
        centre_and_spread = np.concatenate([real.mean(0), real.std(0)])
        np.testing.assert_allclose(stats(tokens, mask)[0][i], centre_and_spread, atol=1e-12)


def test_maximum_of_negative_tokens_is_not_the_paddings_zero():
    tokens, mask, _ = fit_tokens(torch.tensor([[-3.0], [-2.0]]), 4)
    assert maximum(tokens[None], mask[None])[0].tolist() == [[-2.0]]


def test_deviation_survives_a_large_offset(tokens):
    # The mean of squares minus the squared mean would lose all digits here.
    spread = aggregate_track("stats", tokens + 1e7)[0][5:]
    torch.testing.assert_close(spread, aggregate_track("stats", tokens)[0][5:], rtol=0, atol=1e-6)


def test_one_token_is_its_own_mean_and_maximum_without_deviation(tokens):
    one = tokens[:1]
    assert torch.equal(aggregate_track("mean", one)[0], one[0])
    assert torch.equal(aggregate_track("max", one)[0], one[0])
    assert torch.equal(aggregate_track("stats", one)[0], torch.cat([one[0], torch.zeros(5)]))


def test_equal_tokens_have_no_deviation():
    assert aggregate_track("stats", torch.full((6, 3), 0.5))[0].tolist() == [0.5] * 3 + [0] * 3


@pytest.mark.parametrize(
    ("name", "size"), [("mean", 5), ("max", 5), ("stats", 10), ("concat", 4 * 5 + 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_size_and_dtype(tokens, name, size, dtype):
    out, valid, _ = aggregate_track(name, tokens.to(dtype), 4)
    assert out.shape == valid.shape == (size,)
    assert out.dtype == dtype
    assert valid.dtype == torch.bool


# Cosines


def test_cosines_are_scipys_over_the_number_of_tokens(tokens):
    out, valid, _ = aggregate_track("dct", torch.cat([tokens, tokens[:4]]))
    expected = scipy.fft.dct(torch.cat([tokens, tokens[:4]]).numpy(), axis=0, type=2)[:8] / 20
    expected[1:] *= 2**0.5
    np.testing.assert_allclose(out.view(8, 5), expected, atol=1e-12)
    assert valid.all()


@pytest.mark.parametrize("n", [1, 3])
def test_a_track_of_few_tokens_has_as_many_cosines(tokens, n):
    out, valid, _ = aggregate_track("dct", tokens[:n])
    assert valid.view(8, 5).all(1).tolist() == [k < n for k in range(8)]
    assert not out[~valid].any()
    torch.testing.assert_close(out[:5], tokens[:n].mean(0))


def test_cosines_do_not_depend_on_how_finely_time_is_cut(rng):
    curve = np.cumsum(rng.normal(size=(4, 5)), 0).repeat(100, 0)  # four sections
    coarse, fine = (
        aggregate_track("dct", torch.from_numpy(curve.reshape(n, -1, 5).mean(1)))[0][: 4 * 5]
        for n in (40, 400)
    )
    torch.testing.assert_close(coarse, fine, rtol=0, atol=0.01)


def test_reversed_track_has_its_odd_cosines_turned(tokens):
    track = torch.cat([tokens, tokens * 2])
    there, back = (aggregate_track("dct", t)[0].view(8, 5) for t in (track, track.flip(0)))
    sign = torch.tensor([1.0, -1] * 4, dtype=torch.float64)[:, None]
    torch.testing.assert_close(back, there * sign, rtol=0, atol=1e-12)


def test_number_of_cosines(tokens):
    assert dct(tokens[None], everything(tokens[None]), 3)[0].shape == (1, 15)


def test_views_of_the_gate_are_mean_deviation_and_cosines(tokens):
    track = tokens[None]
    out, valid = changes(track, everything(track))
    parts = out.view(9, 5)
    assert torch.equal(parts[0], mean(track, everything(track))[0][0])
    assert torch.equal(parts[:2].flatten(), stats(track, everything(track))[0][0])
    assert torch.equal(parts[2:].flatten(), dct(track, everything(track))[0][0, 5:])
    assert torch.equal(valid[0, 10:], dct(track, everything(track))[1][0, 5:])


@pytest.mark.parametrize("name", [n for n, r in FUNCTIONS.items() if r.views])
def test_named_views_are_the_functions_parts_and_the_whitened_mean(tokens, name):
    row = AGGREGATORS[name]
    parts = join(name, tokens[None], everything(tokens[None]))[0].numel() // 5
    assert row.n_parts == parts
    assert len(row.views) == parts + (row.whitening is not None)


# Durations


def test_tokens_weigh_by_their_duration_by_hand():
    out, valid = duration_mean(TRACK, everything(TRACK), torch.tensor([[10.0, 10.0, 2.0]]))
    # (10 x 1 + 10 x 3 + 2 x 5) / 22 and (-40 - 40 - 2) / 22
    torch.testing.assert_close(out, torch.tensor([[50 / 22, -82 / 22]]))
    assert valid.all()
    hidden = torch.tensor([[True, False, True]])
    out, _ = duration_mean(TRACK, hidden, torch.tensor([[6.0, 10.0, 2.0]]))
    torch.testing.assert_close(out, torch.tensor([[2.0, -26 / 8]]))


@pytest.mark.parametrize("length", [0.04, 1.0, 30.0])
def test_tokens_of_one_length_have_their_plain_mean(tokens, length):
    got = aggregate_track("duration_mean", tokens, None, torch.full((6,), length))
    same(got, aggregate_track("mean", tokens), rtol=1e-12)


def test_track_cut_otherwise_has_the_same_mean_by_duration(tokens):
    # A piece cut in two halves of the same sound changes the plain mean, but not this one.
    cut = torch.cat([tokens, tokens[-1:]])
    seconds = torch.tensor([*SECONDS.tolist()[:-1], 3.0, 4.0])
    expected = aggregate_track("duration_mean", tokens, None, SECONDS)
    same(aggregate_track("duration_mean", cut, None, seconds), expected, rtol=1e-12)
    assert not torch.allclose(
        aggregate_track("mean", cut)[0], aggregate_track("mean", tokens)[0], rtol=1e-3
    )


def test_mean_by_duration_without_durations_raises(tokens):
    with pytest.raises(ValueError, match="duration_mean needs the tokens' durations"):
        aggregate_track("duration_mean", tokens)


# Invariances


@ANY_NUMBER
@pytest.mark.parametrize("rubbish", [0.0, 1e30, -1e30])
def test_padding_changes_nothing(tokens, name, rubbish):
    padded = torch.cat([tokens, torch.full((3, 5), rubbish, dtype=tokens.dtype)])[None]
    mask = (torch.arange(9) < 6)[None]
    seconds = torch.cat([SECONDS, torch.tensor([0.0, 5, 1e30])])
    expected = join(name, tokens[None], mask[:, :6], SECONDS)
    same(join(name, padded, mask, seconds), expected, rtol=1e-12)


@pytest.mark.parametrize("rubbish", [0.0, 1e30, torch.nan])
def test_what_lies_under_a_hole_of_concat_is_hidden(tokens, rubbish):
    mask = (torch.arange(6) < 4)[None]
    hidden = tokens.clone()
    hidden[4:] = rubbish
    same(concat(hidden[None], mask), concat(tokens[None], mask))


@ALL
def test_batch_equals_one_by_one(rng, name):
    tokens = torch.from_numpy(rng.normal(size=(4, 6, 5)))
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 5])[:, None]
    seconds = torch.from_numpy(rng.uniform(1, 10, (4, 6)))
    out, valid = join(name, tokens, mask, seconds)
    for i in range(4):
        one = slice(i, i + 1)
        alone = join(name, tokens[one], mask[one], seconds[one])
        same((out[one], valid[one]), alone, rtol=1e-12)


@UNORDERED
def test_order_does_not_matter(tokens, rng, name):
    order = torch.from_numpy(rng.permutation(6))
    shuffled = aggregate_track(name, tokens[order], None, SECONDS[order])
    same(shuffled, aggregate_track(name, tokens, None, SECONDS), rtol=1e-12)


def test_order_matters_to_concat(tokens):
    forward, backward = (aggregate_track("concat", t, 6)[0] for t in (tokens, tokens.flip(0)))
    assert not torch.allclose(forward, backward)


def test_concat_keeps_the_order(tokens):
    out = aggregate_track("concat", tokens, 6)[0]
    assert torch.equal(out[:30].view(6, 5), tokens)
    assert torch.equal(
        aggregate_track("concat", tokens.flip(0), 6)[0][:30].view(6, 5).flip(0), tokens
    )


@ALL
def test_input_is_left_as_it_was(tokens, name):
    before, seconds = tokens.clone(), SECONDS.clone()
    aggregate_track(name, tokens, 8, seconds)
    assert torch.equal(tokens, before)
    assert torch.equal(seconds, SECONDS)


# Fixed numbers of tokens


def test_short_track_is_padded_with_zeros(tokens):
    padded, mask, truncated = fit_tokens(tokens[:2], 5)
    assert torch.equal(padded, torch.cat([tokens[:2], torch.zeros(3, 5)]))
    assert mask.tolist() == [True, True, False, False, False]
    assert not truncated


def test_track_of_the_right_number_is_unchanged(tokens):
    padded, mask, truncated = fit_tokens(tokens, 6)
    assert torch.equal(padded, tokens)
    assert mask.all()
    assert not truncated


def test_long_track_is_cut_at_its_end_and_says_so(tokens):
    padded, mask, truncated = fit_tokens(tokens, 4)
    assert torch.equal(padded, tokens[:4])
    assert mask.tolist() == [True] * 4
    assert truncated


def test_concat_of_a_short_track_has_holes_and_a_mask():
    out, valid, truncated = aggregate_track("concat", torch.tensor([[7.0, 8.0]]), 3)
    assert out.tolist() == [7, 8, 0, 0, 0, 0, 1, 0, 0]
    # The mask itself is always a value: it tells the probe which tokens are real.
    assert valid.tolist() == [True] * 2 + [False] * 4 + [True] * 3
    assert not truncated


def test_concat_of_a_long_track_is_that_of_its_beginning(tokens):
    out, valid, truncated = aggregate_track("concat", tokens, 2)
    same((out, valid), aggregate_track("concat", tokens[:2], 2))
    assert truncated


def test_concat_without_a_number_of_tokens_raises(tokens):
    with pytest.raises(ValueError, match="concat needs the number of tokens"):
        aggregate_track("concat", tokens)


@ANY_NUMBER
def test_number_of_tokens_is_ignored_where_it_is_not_needed(tokens, name):
    out, valid, truncated = aggregate_track(name, tokens, 2, SECONDS)
    same((out, valid), aggregate_track(name, tokens, None, SECONDS))
    assert not truncated
