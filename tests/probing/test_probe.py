"""MARBLE's probe: standardisation, blocks of tracks, the bank against plain PyTorch, selection."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from probe_data import CPU, normal
from scipy import stats
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import BatchSampler, SequentialSampler

from tune.aggregators.track_features import Features, Tokens
from tune.aggregators.trainable import GatedAttention
from tune.probing.bank import (
    DROPOUT,
    HIDDEN,
    EarlyStopping,
    PaddedIndices,
    Probe,
    ProbeBank,
    ProbeData,
    Standardiser,
)
from tune.tasks.label_kinds import KINDS


def everywhere(values) -> torch.Tensor:
    """A mask without holes."""
    return torch.ones_like(values, dtype=torch.bool)


# Standardiser


def test_standardised_values_by_hand():
    values = torch.tensor([[1.0, 10], [3, 10], [5, 40]], dtype=torch.float64)
    got = Standardiser(values, everywhere(values))(values, everywhere(values))
    expected = [[-(1.5**0.5), -(0.5**0.5)], [0, -(0.5**0.5)], [1.5**0.5, 2**0.5]]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_each_layer_is_standardised_as_by_scikit_learn(rng):
    train, test = normal(rng, 3, 20, 5, loc=4, scale=7), normal(rng, 3, 9, 5)
    got = Standardiser(train, everywhere(train))(test, everywhere(test))
    for layer in range(3):
        expected = StandardScaler().fit(train[layer]).transform(test[layer])
        np.testing.assert_allclose(got[layer], expected, rtol=1e-10)


def test_holes_count_nowhere_and_become_zero(rng):
    values, valid = normal(rng, 1, 12, 4, loc=5), torch.from_numpy(rng.random((1, 12, 4)) < 0.6)
    got = Standardiser(values, valid)(values, valid)
    for d in range(4):
        real = values[0, valid[0, :, d], d]
        expected = (real - real.mean()) / real.std(correction=0)
        torch.testing.assert_close(got[0, valid[0, :, d], d], expected)
    assert (got[~valid] == 0).all()


def test_what_lies_under_a_hole_does_not_matter(rng):
    values, valid = normal(rng, 12, 4), torch.from_numpy(rng.random((12, 4)) < 0.6)
    rubbish = torch.where(valid, values, 1e9)
    assert torch.equal(
        Standardiser(rubbish, valid)(rubbish, valid), Standardiser(values, valid)(values, valid)
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 12_345.678, 1e6 + 0.1])
@pytest.mark.parametrize("n", [1, 3, 1000])
def test_dimension_that_never_varies_in_training_becomes_zero(constant, n):
    train = torch.full((n, 2), constant, dtype=torch.float64)
    test = torch.tensor([[constant, constant + 3]], dtype=torch.float64)
    standardise = Standardiser(train, everywhere(train))
    assert (standardise(train, everywhere(train)) == 0).all()
    assert (standardise(test, everywhere(test)) == 0).all()


def test_dimension_that_varies_little_is_kept():
    train = torch.tensor([[100.0], [100.0 + 1e-3]], dtype=torch.float64)
    got = Standardiser(train, everywhere(train))(train, everywhere(train))
    torch.testing.assert_close(got, torch.tensor([[-1.0], [1.0]], dtype=torch.float64))


def test_dimension_that_varies_by_float32s_rounding_becomes_zero():
    """A unit that is off in all training tracks and on in a test track: it was blown up to 1e7."""
    off = torch.tensor([-0.1118, -0.1118], dtype=torch.float32)
    off[1] = torch.nextafter(off[0], torch.tensor(0.0))
    train = off.double()[torch.tensor([0] * 50 + [1])][:, None]
    test = torch.tensor([[3.0]], dtype=torch.float64)
    assert Standardiser(train, everywhere(train))(test, everywhere(test)).item() == 0


def test_rounding_of_what_is_computed_of_an_embedding_becomes_zero(rng):
    """The deviation of a unit that is off in all training tracks is 0 but for rounding."""
    train = torch.cat([5 + normal(rng, 50, 3), 1e-9 * normal(rng, 50, 1)], 1)
    test = torch.tensor([[5.0, 5.0, 5.0, 1.0]], dtype=torch.float64)
    got = Standardiser(train, everywhere(train))(test, everywhere(test))
    assert got[0, 3] == 0
    assert (got[0, :3] != 0).all()


def test_dimension_without_a_training_value_becomes_zero(rng):
    train, test = normal(rng, 6, 3), normal(rng, 4, 3)
    valid = everywhere(train)
    valid[:, 1] = False
    got = Standardiser(train, valid)(test, everywhere(test))
    assert (got[:, 1] == 0).all()
    assert (got[:, [0, 2]] != 0).all()


# ProbeData


def make_data(rng, kind="classes", n_layers=2, change=0.0):
    """A task's data: 10 training, 4 validation and 3 test tracks of 6 dimensions.

    `change` is added to everything that is not training data.
    """
    sizes = {"train": 10, "val": 4, "test": 3}
    task = SimpleNamespace(kind=kind, classes=[], targets=[], splits={})
    features = {}
    for split, n in sizes.items():
        more = 0 if split == "train" else change
        values = normal(rng, n_layers, n, 6, loc=3, scale=2) + more
        valid = torch.from_numpy(rng.random((n_layers, n, 6)) < 0.9)
        features[split] = Features(values, valid, 0)
        if kind == "classes":
            labels = rng.permutation(np.arange(n) % 3).tolist()
        else:
            labels = (rng.normal([5, -1], [2, 0.1], (n, 2)) + more).tolist()
        task.splits[split] = {"label": labels}
    if kind == "classes":
        task.classes = ["a", "b", "c"]
    else:
        task.targets = ["arousal", "valence"]
    return ProbeData(task, features, CPU), task, features


@pytest.mark.parametrize(("kind", "n_out"), [("classes", 3), ("numbers", 2)])
def test_sizes_are_read_off_the_data(rng, kind, n_out):
    data, _, _ = make_data(rng, kind)
    assert (data.n_train, data.n_in, data.n_out) == (10, 6, n_out)
    assert {s: tuple(x.shape) for s, x in data.inputs.items()} == {
        "train": (2, 10, 6),
        "val": (2, 4, 6),
        "test": (2, 3, 6),
    }
    assert all(x.dtype == torch.float64 for x in data.inputs.values())


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_inputs_and_labels_are_standardised_by_training_statistics_only(kind):
    data, task, features = make_data(np.random.default_rng(5), kind)
    other, _, _ = make_data(np.random.default_rng(5), kind, change=100.0)
    assert torch.equal(data.inputs["train"], other.inputs["train"])
    assert torch.equal(data.labels["train"], other.labels["train"])
    for layer in range(2):
        for name, value in data.constants(layer).items():
            assert torch.equal(value, other.constants(layer)[name])
    train, val = features["train"], features["val"]
    real = train.values[0, train.valid[0, :, 0], 0].numpy()
    expected = (val.values[0, :, 0].numpy() - real.mean()) / real.std() * val.valid[0, :, 0].numpy()
    np.testing.assert_allclose(data.inputs["val"][0, :, 0], expected, rtol=1e-10)
    if kind == "numbers":
        scaler = StandardScaler().fit(task.splits["train"]["label"])
        np.testing.assert_allclose(
            data.labels["val"], scaler.transform(task.splits["val"]["label"]), rtol=1e-10
        )


def test_truth_is_the_labels_as_they_came(rng):
    for kind in ("classes", "numbers"):
        data, task, _ = make_data(rng, kind)
        for split, truth in data.truth.items():
            np.testing.assert_array_equal(truth, task.splits[split]["label"])


def test_decided_class_is_the_largest_logit(rng):
    data, _, _ = make_data(rng)
    logits = torch.tensor([[[0.0, 2, 1], [5, 4, 3]], [[-1.0, -2, -0.5], [0, 1e-9, 0]]])
    np.testing.assert_array_equal(data.predict(logits), [[1, 0], [2, 1]])


def test_decided_values_are_in_the_unit_of_the_labels(rng):
    data, _, _ = make_data(rng, "numbers")
    got = data.predict(data.labels_for("test", 2))
    np.testing.assert_allclose(got, np.stack([data.truth["test"]] * 2), rtol=1e-12)


def test_guess_is_the_most_frequent_training_class(rng):
    data, _, _ = make_data(rng)
    data.truth["train"] = np.array([2, 0, 2, 1])
    data.truth["test"] = np.array([0, 0, 1])
    np.testing.assert_array_equal(data.chance_prediction("test"), [2, 2, 2])


def test_guess_is_the_mean_of_the_training_values(rng):
    data, _, _ = make_data(rng, "numbers")
    expected = np.mean(data.truth["train"], 0)
    np.testing.assert_allclose(data.chance_prediction("val"), [expected] * 4)


def test_labels_are_the_same_for_every_probe(rng):
    for kind, shape in (("classes", (5, 10)), ("numbers", (5, 10, 2))):
        data, _, _ = make_data(rng, kind)
        labels = data.labels_for("train", 5)
        assert labels.shape == shape
        assert all(torch.equal(one, data.labels["train"]) for one in labels)


def test_probes_of_a_layer_stand_side_by_side(rng):
    data, _, _ = make_data(rng)
    assert data.layer_of(3).tolist() == [[0], [0], [0], [1], [1], [1]]


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_constants_standardise_as_the_data_was(rng, kind):
    data, _, features = make_data(rng, kind)
    test = features["test"]
    for layer in range(2):
        saved = data.constants(layer)
        inputs = (test.values[layer] - saved["standardise.mean"]) * saved["standardise.scale"]
        torch.testing.assert_close(inputs * test.valid[layer], data.inputs["test"][layer])
        if kind == "numbers":
            values = data.labels["test"] * saved["target.scale"] + saved["target.centre"]
            np.testing.assert_allclose(values, data.truth["test"])
        assert all(value.is_contiguous() for value in saved.values())


# Views and tokens


def make_views(rng, n_scales=1, mix=False, n_layers=3, **kwargs):
    """A task's data of scales x layers, with tokens of one to four a track.

    Returns the data, its features and its tokens, (V, n, ...) counted scale by scale.
    """
    task = SimpleNamespace(kind="classes", classes=["a", "b"], targets=[], splits={})
    features, tokens = {}, {}
    for split, n in {"train": 10, "val": 4, "test": 3}.items():
        lengths = torch.arange(n) % 4 + 1
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        values = normal(rng, n_scales * n_layers, *mask.shape, 6, loc=3, scale=2)
        values = (values * mask[..., None]).float()
        pooled = values.double().sum(2) / lengths[:, None]
        features[split] = Features(pooled, everywhere(pooled), 0)
        times = [np.stack([np.arange(k), np.arange(k) + 1.0], 1) for k in lengths.tolist()]
        tokens[split] = Tokens.from_padded(values, mask, times)
        task.splits[split] = {"label": [i % 2 for i in range(n)]}
    if kwargs.pop("joined", True):
        kwargs["tokens"] = tokens
    return ProbeData(task, features, CPU, n_scales=n_scales, mix=mix, **kwargs), features, tokens


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    ("n_scales", "mix", "n_sets", "n_views"),
    [(1, False, 3, None), (1, True, 1, 3), (2, False, 3, 2), (2, True, 1, 6)],
)
def test_views_are_arranged_by_layer_then_scale(rng, joined, n_scales, mix, n_sets, n_views):
    data, features, tokens = make_views(rng, n_scales, mix, joined=joined)
    assert (data.n_layers, data.n_views, data.n_train, data.n_in) == (n_sets, n_views, 10, 6)
    kinds = [("pooled", data.inputs)]
    kinds += [("tokens", {s: next(iter(t)) for s, t in data.tokens.items()})] if joined else []
    for kind, arranged in kinds:
        for split, values in arranged.items():
            for view in range(n_scales * 3):
                scale, layer = divmod(view, 3)
                got = values[0 if mix else layer]  # (n, [N,] [K,] D)
                if n_views:
                    got = got[..., layer * n_scales + scale if mix else scale, :]
                train = StandardScaler().fit(features["train"].values[view])
                if kind == "pooled":
                    expected = train.transform(features[split].values[view])
                else:
                    flat = tokens[split].values[view].double().flatten(0, 1)
                    expected = train.transform(flat).reshape(got.shape)
                    expected *= tokens[split].mask[..., None].numpy()
                np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("n_scales", "mix"), [(1, False), (1, True), (2, True)])
def test_mean_of_the_tokens_is_the_pooled_input(rng, n_scales, mix):
    data, _, _ = make_views(rng, n_scales, mix)
    for split, (values, mask) in data.tokens.items():
        lengths = mask.sum(1).view(1, -1, *[1] * (values.ndim - 3))
        mean = values.sum(2) / lengths
        torch.testing.assert_close(mean, data.inputs[split], rtol=0, atol=1e-10)


def test_raw_tokens_are_left_as_they_are(rng):
    data, _, tokens = make_views(rng, n_layers=1, raw=True)
    for split, (values, mask) in data.tokens.items():
        assert values.dtype == torch.float32
        assert torch.equal(values, tokens[split].values)
        assert torch.equal(mask, tokens[split].mask)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(("n_scales", "mix"), [(1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize("own", [True, False])
def test_picked_are_the_tracks_asked_for(rng, joined, n_scales, mix, own):
    data, _, _ = make_views(rng, n_scales, mix, joined=joined)
    rows = data.layer_of(2)  # (M, 1)
    index = torch.tensor([3, 0, 0, 2])
    if own:  # each probe has tracks of its own
        index = torch.stack([index.roll(i) for i in range(len(rows))])
    x, mask = data.get_batch("val", rows, index)
    source, real = data.tokens["val"] if joined else (data.inputs["val"], None)
    for m, row in enumerate(rows[:, 0]):
        for b, track in enumerate(index[m] if own else index):
            assert torch.equal(x[m, b], source[row, track])
            assert real is None or torch.equal(mask[m, b], real[track])
    assert (mask is None) == (not joined)


def test_names_of_views_are_in_the_order_of_their_weights(rng):
    scales, layers = ["10", "2.5", "full"], [0, 4, 8]
    for n, mix, expected in [
        (1, False, []),
        (1, True, ["layer 0", "layer 4", "layer 8"]),
        (3, False, ["10 s", "2.5 s", "full"]),
        (2, True, [f"layer {k}, {s} s" for k in layers for s in ("10", "2.5")]),
    ]:
        data, _, _ = make_views(rng, n, mix, joined=False)
        assert data.view_names(scales[:n], layers) == expected
        assert len(expected) == (data.n_views or 0)


@pytest.mark.parametrize(("n_scales", "mix"), [(1, True), (2, False), (2, True)])
def test_constants_of_views_standardise_as_the_data_was(rng, n_scales, mix):
    data, features, _ = make_views(rng, n_scales, mix, joined=False)
    views = features["test"].values.unflatten(0, (n_scales, 3))  # (S, L, n, D)
    for row in range(data.n_layers):
        saved = data.constants(row)
        assert saved["standardise.mean"].shape == (data.n_views, 6)
        mine = views.permute(2, 1, 0, 3) if mix else views[:, row : row + 1].permute(2, 1, 0, 3)
        inputs = (mine.flatten(1, 2) - saved["standardise.mean"]) * saved["standardise.scale"]
        torch.testing.assert_close(inputs, data.inputs["test"][row])
        assert all(value.is_contiguous() for value in saved.values())


# Positions

LAYOUTS = pytest.mark.parametrize(
    ("n", "batch_size"), [(1, 64), (5, 2), (64, 64), (65, 64), (130, 64), (20, 7), (3, 1)]
)


@LAYOUTS
@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_blocks_hold_each_position_once_and_divide_by_processes(n, batch_size, n_processes):
    positions = PaddedIndices(n, batch_size, n_processes)
    items = [positions[i] for i in range(len(positions))]
    assert sorted(i for i in items if i >= 0) == list(range(n))
    assert len(items) % positions.block == positions.block % n_processes == 0
    assert batch_size <= positions.block < batch_size + n_processes
    blocks = [items[i : i + positions.block] for i in range(0, len(items), positions.block)]
    # A block is an effective batch, whatever the number of processes.
    batches = [list(range(i, min(n, i + batch_size))) for i in range(0, n, batch_size)]
    assert [[i for i in block if i >= 0] for block in blocks] == batches
    assert all(i == -1 for b, real in zip(blocks, batches, strict=True) for i in b[len(real) :])


@LAYOUTS
@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_accelerate_gives_every_process_an_even_share(n, batch_size, n_processes):
    positions = PaddedIndices(n, batch_size, n_processes)
    sampler = BatchSampler(SequentialSampler(positions), positions.block, drop_last=False)
    shares = [
        list(BatchSamplerShard(sampler, n_processes, p, split_batches=True))
        for p in range(n_processes)
    ]
    steps = math.ceil(n / batch_size)
    assert [len(share) for share in shares] == [steps] * n_processes
    assert {len(b) for share in shares for b in share} == {positions.block // n_processes}
    seen = [positions[i] for share in shares for batch in share for i in batch]
    assert sorted(i for i in seen if i >= 0) == list(range(n))


# The bank


def sequential(probe: Probe, dropout: float = DROPOUT) -> nn.Sequential:
    """Plain PyTorch with a probe's weights; trains with dropout of its own."""
    n_in, hidden = probe.w1.shape
    model = nn.Sequential(
        nn.Linear(n_in, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, probe.w2.shape[1]),
    ).to(probe.w1.dtype)
    with torch.no_grad():
        for layer, weight, bias in ((model[0], probe.w1, probe.b1), (model[3], probe.w2, probe.b2)):
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias[0])
    return model


def train(bank: ProbeBank, x, y, kind="classes", epochs=4, batch_size=8, lr=5e-3) -> None:
    """Train a bank by Adam as train_probe.py does; x (n, D) and y (n,) or (n, C)."""
    optimizers = [torch.optim.Adam(p.parameters(), lr=lr, fused=True) for p in bank.probes]
    for _ in range(epochs):
        orders = bank.orders(len(x))
        for start in range(0, len(x), batch_size):
            index = orders[:, start : start + batch_size]
            keep = bank.dropout_masks(batch_size)[:, : index.shape[1]]
            for optimizer in optimizers:
                optimizer.zero_grad()
            KINDS[kind].loss(bank(x[index], keep), y[index]).mean(1).sum().backward()
            for optimizer in optimizers:
                optimizer.step()


def predict(bank: ProbeBank, x) -> torch.Tensor:
    """Outputs of every probe for the same inputs: (M, n, C)."""
    with torch.inference_mode():
        return bank.eval()(x.expand(len(bank.probes), *x.shape))


@pytest.fixture
def xy(rng):
    """Inputs (30, 6), classes (30,) of three, and values (30, 2) which hang on them."""
    x = normal(rng, 30, 6)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0), x[:, :2] * 2 + 0.1 * normal(rng, 30, 2)


def test_probe_is_marbles():
    probe = ProbeBank([0], 7, 3).probes[0]
    assert {name: tuple(p.shape) for name, p in probe.named_parameters()} == {
        "w1": (7, 512),
        "b1": (1, 512),
        "w2": (512, 3),
        "b2": (1, 3),
    }
    assert (HIDDEN, DROPOUT) == (512, 0.2)


def test_bank_computes_what_plain_pytorch_does(rng):
    bank, x = ProbeBank([1, 2, 3], 6, 4), normal(rng, 3, 10, 6)
    for probe, inputs, out in zip(bank.probes, x, bank(x), strict=True):
        torch.testing.assert_close(out, sequential(probe).eval()(inputs), rtol=0, atol=1e-12)


def test_initial_weights_have_the_distribution_of_nn_linear():
    probe = ProbeBank([0], 100, 40).probes[0]
    for weight, bias in ((probe.w1, probe.b1), (probe.w2, probe.b2)):
        bound = weight.shape[0] ** -0.5
        theirs = nn.Linear(*weight.shape).weight
        assert 0.99 * bound < theirs.abs().max() <= bound
        for ours in (weight, bias):
            uniform = stats.uniform(-bound, 2 * bound)
            assert stats.kstest(ours.detach().flatten().numpy(), uniform.cdf).pvalue > 0.01


def test_seed_makes_the_probe_whatever_the_bank():
    alone, among = ProbeBank([7], 6, 3), ProbeBank([1, 7, 2], 6, 3)
    for name, value in alone.probes[0].state_dict().items():
        assert torch.equal(value, among.probes[1].state_dict()[name])
        assert not torch.equal(value, among.probes[0].state_dict()[name])
    for _ in range(2):  # the draws of training go on alike
        assert torch.equal(alone.orders(30)[0], among.orders(30)[1])
        assert torch.equal(alone.dropout_masks(8)[0], among.dropout_masks(8)[1])


def test_same_seed_twice_is_the_same_probe(xy):
    x, y, _ = xy
    bank = ProbeBank([5, 5], 6, 3)
    train(bank, x, y)
    one, two = predict(bank, x)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_state_of_the_global_generator_does_not_matter(xy):
    x, y, _ = xy
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        bank = ProbeBank([5], 6, 3)
        train(bank, x, y)
        outputs.append(predict(bank, x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_probe_trained_alone_equals_the_same_seed_in_a_bank(xy, kind):
    x, y = xy[0], xy[1] if kind == "classes" else xy[2]
    n_out = 3 if kind == "classes" else 2
    bank = ProbeBank([11, 12, 13], 6, n_out)
    before = predict(bank, x)
    train(bank, x, y, kind)
    together = predict(bank, x)
    assert (together - before).abs().max() > 0.1
    for i, seed in enumerate([11, 12, 13]):
        alone = ProbeBank([seed], 6, n_out)
        train(alone, x, y, kind)
        torch.testing.assert_close(predict(alone, x)[0], together[i], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_bank_trains_as_plain_pytorch_does(xy, kind):
    x, y = xy[0], xy[1] if kind == "classes" else xy[2]
    bank = ProbeBank([3, 4], 6, 3 if kind == "classes" else 2)
    models = [sequential(probe) for probe in bank.probes]
    train(bank, x, y, kind)
    criterion = nn.CrossEntropyLoss() if kind == "classes" else nn.MSELoss()
    for seed, model, expected in zip([3, 4], models, predict(bank, x), strict=True):
        draws = ProbeBank([seed], 6, bank.probes[0].w2.shape[1])  # orders and dropout only
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(4):
            order = draws.orders(30)[0]
            for index in order.split(8):
                keep = draws.dropout_masks(8)[0, : len(index)]
                out = model[3](model[1](model[0](x[index])) * keep)
                optimizer.zero_grad()
                criterion(out, y[index]).backward()
                optimizer.step()
        torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=1e-9)


def test_probes_have_their_own_inputs_and_gradients(rng):
    bank, x = ProbeBank([1, 2], 6, 3), normal(rng, 2, 5, 6)
    bank(x)[0].sum().backward()
    assert bank.probes[0].w1.grad.abs().max() > 0
    assert bank.probes[1].w1.grad.abs().max() == 0
    changed = x.clone()
    changed[1] += 1
    assert torch.equal(bank(changed)[0], bank(x)[0])
    assert not torch.equal(bank(changed)[1], bank(x)[1])


def test_some_probes_of_a_bank_do_what_they_do_among_all(rng):
    bank, x = ProbeBank([1, 2, 3], 6, 4), normal(rng, 3, 10, 6)
    same = ProbeBank([1, 2, 3], 6, 4)
    keep, orders = same.dropout_masks(10), same.orders(30)
    assert torch.equal(bank.dropout_masks(10, [2, 0]), keep[[2, 0]])
    assert torch.equal(bank.orders(30, [2, 0]), orders[[2, 0]])
    out = bank(x[[2, 0]], keep[[2, 0]], which=[2, 0])
    assert torch.equal(out, bank(x, keep)[[2, 0]])
    out.sum().backward()
    assert bank.probes[1].w1.grad is None  # that one has stopped
    assert bank.probes[2].w1.grad.abs().max() > 0


def test_batch_size_and_order_do_not_change_an_output(rng):
    bank, x = ProbeBank([1, 2], 6, 3), normal(rng, 9, 6)
    whole = predict(bank, x)
    one_by_one = torch.cat([predict(bank, x[i : i + 1]) for i in range(9)], 1)
    torch.testing.assert_close(one_by_one, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(predict(bank, x.flip(0)), whole.flip(1), rtol=0, atol=1e-12)


def test_float32_probe_starts_from_the_same_weights():
    wide, narrow = (
        ProbeBank([9], 6, 3).probes[0],
        ProbeBank([9], 6, 3, dtype=torch.float32).probes[0],
    )
    for name, value in wide.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(narrow.state_dict()[name], value.float())


# Dropout and order


def test_dropout_is_off_when_predicting(rng):
    bank, x = ProbeBank([1, 2], 6, 3), normal(rng, 2, 10, 6)
    assert torch.equal(bank.eval()(x), bank.eval()(x))
    for probe, inputs, out in zip(bank.probes, x, bank.eval()(x), strict=True):
        torch.testing.assert_close(out, sequential(probe, 0.9).eval()(inputs))


def test_dropout_zeroes_hidden_units(rng):
    bank, x = ProbeBank([1], 6, 3), normal(rng, 1, 4, 6)
    keep = bank.dropout_masks(4)
    plain = sequential(bank.probes[0])
    torch.testing.assert_close(bank(x, keep)[0], plain[3](plain[1](plain[0](x[0])) * keep[0]))
    assert not torch.allclose(bank(x, keep), bank(x))


def test_dropout_keeps_a_share_and_scales_it_up():
    keep = ProbeBank([1, 2], 6, 3).dropout_masks(50)
    assert keep.shape == (2, 50, HIDDEN)
    assert keep.dtype == torch.float64
    assert sorted(set(keep.flatten().tolist())) == [0, 1.25]
    for one in keep:
        kept = int((one > 0).sum())
        assert stats.binomtest(kept, one.numel(), 0.8).pvalue > 0.01
    assert not torch.equal(*keep)


def test_dropout_of_zero_keeps_everything():
    assert (ProbeBank([1], 6, 3, dropout=0).dropout_masks(5) == 1).all()


def test_orders_are_permutations_that_differ_by_seed_and_epoch():
    bank = ProbeBank([1, 2], 6, 3)
    first, second = bank.orders(40), bank.orders(40)
    for order in (*first, *second):
        assert sorted(order.tolist()) == list(range(40))
    assert len({tuple(order.tolist()) for order in (*first, *second)}) == 4


# Losses


def test_cross_entropy_by_hand():
    uniform, sure = torch.zeros(1, 2, 4), torch.tensor([[[50.0, 0, 0, 0], [50, 0, 0, 0]]])
    labels = torch.tensor([[0, 3]])
    assert KINDS["classes"].loss(uniform, labels)[0].tolist() == pytest.approx([math.log(4)] * 2)
    assert KINDS["classes"].loss(sure, labels)[0].tolist() == pytest.approx([0, 50], abs=1e-6)


def test_squared_error_is_averaged_over_targets():
    outputs, labels = torch.tensor([[[1.0, 2], [0, 0]]]), torch.tensor([[[1.0, 5], [1, 1]]])
    assert KINDS["numbers"].loss(outputs, labels).tolist() == [[4.5, 1]]


def test_mean_loss_of_each_probe_is_pytorchs(rng):
    outputs = normal(rng, 3, 8, 4)
    classes, values = torch.from_numpy(rng.integers(0, 4, (3, 8))), normal(rng, 3, 8, 4)
    for i in range(3):
        ours = KINDS["classes"].loss(outputs, classes)[i].mean()
        torch.testing.assert_close(ours, nn.CrossEntropyLoss()(outputs[i], classes[i]))
        ours = KINDS["numbers"].loss(outputs, values)[i].mean()
        torch.testing.assert_close(ours, nn.MSELoss()(outputs[i], values[i]))


# Selection


def select(epochs, patience=20, m=1):
    """Run a selection over (scores, losses) of each epoch; weights are set to the epoch's number.

    Returns the selection, the bank with its best weights, and the epoch at which all had stopped.
    """
    bank = ProbeBank(range(m), 2, 2, hidden=3)
    selection, stop = EarlyStopping(bank, patience), None
    for epoch, (scores, loss) in enumerate(epochs, 1):
        with torch.no_grad():
            for p in bank.parameters():
                p.fill_(epoch)
        if selection.update(bank, epoch, np.array(scores, float), np.array(loss, float)):
            stop = epoch
            break
    selection.restore(bank)
    return selection, bank, stop


def weights(bank) -> list[float]:
    """The one value that all of a probe's weights have, for each probe."""
    values = [
        torch.cat([p.flatten() for p in probe.parameters()]).unique() for probe in bank.probes
    ]
    return [value.item() for value in values]


def test_best_epoch_is_chosen_and_its_weights_restored():
    selection, bank, stop = select([([0.2], [1]), ([0.9], [2]), ([0.5], [0.1])])
    assert weights(bank) == selection.best_epoch.tolist() == [2]
    assert selection.best_score.tolist() == [0.9]
    assert stop is None


def test_tie_goes_to_the_lower_loss():
    selection, bank, _ = select([([0.5], [3]), ([0.5], [1]), ([0.5], [2])])
    assert weights(bank) == selection.best_epoch.tolist() == [2]


def test_tie_in_both_goes_to_the_earlier_epoch():
    _, bank, _ = select([([0.5], [1]), ([0.5], [1])])
    assert weights(bank) == [1]


def test_lower_loss_does_not_beat_a_better_score():
    _, bank, _ = select([([0.6], [9]), ([0.5], [0.1])])
    assert weights(bank) == [1]


def test_each_probe_has_its_own_best_epoch():
    selection, bank, _ = select(
        [([0.1, 0.9, 0.5], [1, 1, 3]), ([0.5, 0.2, 0.5], [1, 1, 1]), ([0.7, 0.3, 0.4], [1, 1, 1])],
        m=3,
    )
    assert weights(bank) == selection.best_epoch.tolist() == [3, 1, 2]


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_stops_after_patience_epochs_without_a_better_one(patience):
    falling = [([0.1], [1]), ([0.9], [1])] + [([0.5], [0.1])] * 20
    selection, bank, stop = select(falling, patience)
    assert stop == 2 + patience
    assert weights(bank) == [2]
    assert selection.stopped.tolist() == [True]


def test_improvement_just_in_time_starts_the_patience_anew():
    _, bank, stop = select([([0.1], [1]), ([0.0], [1]), ([0.2], [1]), *[([0.1], [1])] * 9], 2)
    assert stop == 5
    assert weights(bank) == [3]


def test_probe_that_has_stopped_stays_stopped():
    rise = [([0.5, 0.1], [1, 1]), ([0.4, 0.2], [1, 1]), ([0.4, 0.3], [1, 1]), ([0.9, 0.9], [1, 1])]
    selection, bank, stop = select(rise, 2, m=2)
    assert stop is None  # the second goes on
    assert selection.stopped.tolist() == [True, False]
    assert weights(bank) == [1, 4]


def test_choice_does_not_depend_on_the_other_probes(rng):
    scores, loss = rng.integers(0, 4, (2, 30, 3)) / 4
    _, together, _ = select(zip(scores, loss, strict=True), 5, m=3)
    for i in range(3):
        _, alone, _ = select(zip(scores[:, i : i + 1], loss[:, i : i + 1], strict=True), 5)
        assert weights(alone) == [weights(together)[i]]


@pytest.mark.parametrize("undefined", [np.nan, -np.inf])
def test_loss_decides_where_the_metric_is_undefined(undefined):
    selection, bank, _ = select([([undefined], [3]), ([undefined], [1]), ([undefined], [2])])
    assert weights(bank) == [2]
    assert selection.best_score.tolist() == [-1]


def test_comparable_scores_are_the_scores_or_minus_the_loss():
    got = EarlyStopping.comparable(np.array([0.5, np.nan, -3.0]), np.array([9.0, 2.0, 1.0]))
    assert got.tolist() == [0.5, -2.0, -3.0]


def test_worst_scores_still_leave_weights_to_restore():
    _, bank, _ = select([([-1e9], [1e9])])
    assert weights(bank) == [1]


# Memory


def one_long_track(rng, **kwargs):
    """A task whose training tracks have two tokens each, but one that has 3,000."""
    task = SimpleNamespace(kind="classes", classes=["a", "b"], targets=[], splits={})
    features, tokens = {}, {}
    for split, counts in {"train": [2] * 99 + [3000], "val": [3, 1], "test": [2]}.items():
        flat = normal(rng, sum(counts), 1, 48, loc=3, scale=2).float()
        times = [np.zeros((k, 2)) for k in counts]
        tokens[split] = Tokens(flat, torch.tensor(counts), times)
        pooled = torch.stack([x.double().mean(0) for x in flat[:, 0].split(counts)])[None]
        features[split] = Features(pooled, everywhere(pooled), 0)
        task.splits[split] = {"label": [i % 2 for i in range(len(counts))]}
    return ProbeData(task, features, CPU, tokens=tokens, **kwargs), tokens


def test_one_long_track_does_not_lengthen_the_others(rng):
    data, tokens = one_long_track(rng)
    train = data.tokens["train"]
    assert (train.lopsided, data.tokens["val"].lopsided) == (True, False)
    rows = data.layer_of(2)
    index = torch.tensor([[0, 1, 99, 5], [0, 1, 7, 5]])
    x, mask = data.get_batch("train", rows, index)
    assert [tuple(part.shape) for part in x] == [(4, 3000, 48), (4, 2, 48)]
    mean, scale = data.standardise.mean[0, 0], data.standardise.scale[0, 0]
    tracks = tokens["train"].flat[:, 0].split(tokens["train"].counts.tolist())
    for m in range(2):
        for b, track in enumerate(index[m].tolist()):
            expected = (tracks[track].double() - mean) * scale
            assert torch.equal(x[m][b][mask[m][b]], expected)
            assert not x[m][b][~mask[m][b]].any()
    x, mask = data.get_batch("train", rows, torch.tensor([3, 4]))  # the same for all
    assert (x.shape, mask.shape) == ((2, 2, 2, 48), (2, 2, 2))


def test_a_probe_learns_the_same_from_lists_as_from_padded_batches(rng):
    data, _ = one_long_track(rng)
    index = torch.tensor([[0, 1, 99, 5], [2, 3, 7, 5]])
    x, mask = data.get_batch("train", data.layer_of(2), index)
    padded, where = (torch.zeros(2, 4, 3000, 48, dtype=torch.float64), torch.zeros(2, 4, 3000) > 0)
    for m in range(2):
        padded[m, :, : x[m].shape[1]], where[m, :, : x[m].shape[1]] = x[m], mask[m]
    outputs = []
    for given in ((x, mask), (padded, where)):
        pooling = [
            GatedAttention(48, torch.float64, generator=torch.Generator().manual_seed(m))
            for m in range(2)
        ]
        bank = ProbeBank([1, 2], 48, 2, poolings=pooling)
        out = bank(given[0], mask=given[1])
        out.square().sum().backward()
        outputs.append([out, *(p.grad for p in bank.parameters())])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_standardising_in_place_gives_the_same_in_the_features_own_memory(rng):
    data, task, features = make_data(rng)
    values = {split: f.values.clone() for split, f in features.items()}
    own = {s: dataclasses.replace(f, values=values[s]) for s, f in features.items()}
    there = ProbeData(task, own, CPU, in_place=True)
    for split, inputs in data.inputs.items():
        assert torch.equal(there.inputs[split], inputs)
        assert there.inputs[split].data_ptr() == values[split].data_ptr()
