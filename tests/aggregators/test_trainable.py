"""Aggregators that learn with the probe: what they start as, their formula, and banks of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from probe_data import CPU, normal

from tune.aggregators import trainable
from tune.aggregators.track_features import Features, Tokens
from tune.aggregators.trainable import Gate, GatedAttention, Mix
from tune.aggregators.transformer import checkpoint
from tune.aggregators.transformer.recipes import TUNE, make_config, make_model
from tune.probing.bank import ProbeBank, ProbeData
from tune.probing.token_batches import TokenBatches

LENGTHS = [1, 4, 6]
EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture
def batch(rng):
    """Three tracks of one, four and six tokens of eight dimensions, zeros behind: tokens, mask."""
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    return normal(rng, 3, 6, 8) * mask[..., None], mask


def attention(rng=None, size=8, **kwargs) -> GatedAttention:
    """A GatedAttention; with a generator of NumPy's, somewhere in the middle of training."""
    out = GatedAttention(size, torch.float64, generator=torch.Generator().manual_seed(1), **kwargs)
    if rng is not None:
        with torch.no_grad():
            for parameter in out.parameters():
                parameter.copy_(normal(rng, *parameter.shape))
    return out


# Mix


def test_mix_starts_as_the_average_of_its_views(rng):
    x = normal(rng, 5, 3, 4)
    mix = Mix(3, 4, torch.float64)
    torch.testing.assert_close(mix(x), x.mean(-2), **EXACT)
    assert mix.weights().tolist() == pytest.approx([1 / 3] * 3)


def test_mix_weighs_by_the_softmax_of_its_scores(rng):
    x, mix = normal(rng, 5, 3, 4), Mix(3, 4, torch.float64)
    with torch.no_grad():
        mix.scores.copy_(torch.tensor([0.0, np.log(2), np.log(5)]))
    assert mix.weights().tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    expected = x[:, 0] / 8 + x[:, 1] * 2 / 8 + x[:, 2] * 5 / 8
    torch.testing.assert_close(mix(x), expected, **EXACT)


def test_weights_of_a_mix_add_up_to_one_wherever_it_went(rng):
    mix = Mix(14, 4, torch.float64)
    with torch.no_grad():
        mix.scores.copy_(normal(rng, 14, scale=30))
    assert mix.weights().sum().item() == pytest.approx(1, abs=1e-12)
    assert (mix.weights() >= 0).all()


# Attention


@pytest.mark.parametrize("n_views", [None, 3])
def test_attention_starts_as_the_mean(rng, batch, n_views):
    x, mask = batch
    if n_views:
        x = normal(rng, 3, 6, n_views, 8) * mask[..., None, None]
    got = attention(n_views=n_views)(x, mask)
    plain = x.mean(2) if n_views else x
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(got[i], plain[i, :n].mean(0), **EXACT)


@pytest.mark.parametrize("n_views", [None, 3])
def test_attention_is_equation_9_in_every_head(rng, batch, n_views):
    x, mask = batch
    pooling = attention(rng, n_views=n_views)
    if n_views:
        x = normal(rng, 3, 6, n_views, 8) * mask[..., None, None]
    got, shown = pooling(x, mask), pooling.token_weights(x, mask)
    gates, w = (p.detach().numpy() for p in (pooling.gates, pooling.scores))
    for i, n in enumerate(LENGTHS):
        h = x[i, :n].numpy()  # (N, [K,] D)
        if n_views:
            scores = pooling.mix.scores.detach().numpy()
            h = np.einsum("nkd,k->nd", h, np.exp(scores) / np.exp(scores).sum())
        expected = np.zeros(8)
        for head in range(4):
            # Ilse et al. 2018, eq. 9: exp(w' (tanh(V h') * sigm(U h'))), over its sum.
            gate = np.tanh(h @ gates[0]) / (1 + np.exp(-h @ gates[1]))
            a = np.exp(gate @ w[:, head])
            a /= a.sum()
            part = slice(2 * head, 2 * head + 2)
            expected[part] = a @ h[:, part]
            np.testing.assert_allclose(shown[i, :n, head].detach(), a, atol=1e-12)
        np.testing.assert_allclose(got[i].detach(), expected, atol=1e-12)
        assert (shown[i, n:] == 0).all()


def test_weights_of_tokens_add_up_to_one_in_every_head(rng, batch):
    x, mask = batch
    weights = attention(rng).token_weights(x, mask)
    assert weights.shape == (3, 6, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(3, 4, dtype=torch.float64), **EXACT)


def test_order_of_the_tokens_does_not_matter_to_attention(rng):
    x, mask = normal(rng, 2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    pooling, order = attention(rng), torch.from_numpy(rng.permutation(6))
    torch.testing.assert_close(pooling(x[:, order], mask), pooling(x, mask), **EXACT)
    shuffled = pooling.token_weights(x[:, order], mask)
    torch.testing.assert_close(shuffled, pooling.token_weights(x, mask)[:, order], **EXACT)


@pytest.mark.parametrize("rubbish", [0.0, 1e30, -1e30])
def test_padding_and_neighbours_do_not_matter_to_attention(rng, batch, rubbish):
    x, mask = batch
    pooling = attention(rng)
    together = pooling(x.masked_fill(~mask[..., None], rubbish), mask)
    for i, n in enumerate(LENGTHS):
        alone = pooling(x[i : i + 1, :n], mask[i : i + 1, :n])
        torch.testing.assert_close(together[i : i + 1], alone, **EXACT)


@pytest.mark.parametrize(
    ("size", "asked", "heads"), [(8, 4, 4), (9, 4, 3), (7, 4, 1), (2, 4, 2), (1, 4, 1), (12, 5, 4)]
)
def test_heads_divide_the_dimensions(rng, size, asked, heads):
    pooling = attention(rng, size=size, heads=asked)
    assert pooling.heads == heads
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert pooling(normal(rng, 2, 3, size), mask).shape == (2, size)


def test_gradient_reaches_every_parameter_of_attention(rng, batch):
    x, mask = batch[0][..., None, :] * normal(rng, 3, 1), batch[1]
    pooling = attention(n_views=3)
    optimizer = torch.optim.Adam(pooling.parameters(), lr=1e-2)
    aim = normal(rng, 3, 8)
    for _ in range(2):  # w starts at zero, so that V and U begin to move in the second step
        optimizer.zero_grad()
        ((pooling(x, mask) - aim) ** 2).sum().backward()
        optimizer.step()
    for name, parameter in pooling.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (pooling.gates.grad.abs().amax((1, 2)) > 0).all()  # V as well as U


# What the probes see


SIZES = {"train": 24, "val": 6, "test": 5}


def make_task(rng, n_scales=1, n_layers=1, size=8, plant=None, **kwargs) -> ProbeData:
    """A task of two classes with one to five tokens a track.

    Parameters
    ----------
    plant : the one view that tells the classes apart, counted scale by scale; None is all of them
    kwargs : of ProbeData; with `joined=True` the probes get tokens
    """
    joined, raw = kwargs.pop("joined", False), kwargs.get("raw", False)
    task = SimpleNamespace(kind="classes", classes=["a", "b"], targets=[], splits={})
    features, tokens = {}, {}
    for split, n in SIZES.items():
        labels = np.arange(n) % 2
        lengths = rng.integers(1, 6, n)
        mask = torch.arange(lengths.max()) < torch.from_numpy(lengths)[:, None]
        values = normal(rng, n_scales * n_layers, n, lengths.max(), size, loc=3)
        told = slice(None) if plant is None else plant
        values[told, labels == 1, :, : size // 2] += 2
        values = (values * mask[..., None]).float()
        pooled = values.double().sum(2) / mask.sum(1)[:, None]
        features[split] = Features(pooled, torch.ones_like(pooled, dtype=torch.bool), 0)
        times = [np.stack([np.arange(k), np.arange(k) + 1.0], 1) for k in lengths]
        tokens[split] = Tokens.from_padded(values, mask, times)
        task.splits[split] = {"label": labels.tolist(), "id": [f"{split}{i}" for i in range(n)]}
    return ProbeData(
        task, features, CPU, n_scales=n_scales, tokens=tokens if joined or raw else None, **kwargs
    )


def poolings_for(kind: str, data: ProbeData, seeds):
    """One pooling a probe, as train_probe.py makes them."""
    if kind == "transformer":
        model = small_model(size=data.n_in)
        start = checkpoint.make_initial_model(model, data.tokens["train"])
        return trainable.make_transformers(data, seeds, start, None, CPU)
    if kind == "mix":
        return trainable.make_mixes(data, seeds, CPU)
    return trainable.make_poolings(GatedAttention, data, seeds, CPU)


def train(data: ProbeData, seeds, poolings, *, rate=None, lr=5e-3, epochs=4, batch_size=8):
    """Train a bank as train_probe.py does; return it."""
    n_in = poolings[0].n_out if poolings else data.n_in
    bank = ProbeBank(seeds * data.n_layers, n_in, data.n_out, hidden=32, poolings=poolings)
    rates = {"probe": lr, "pooling": rate or (poolings and poolings[0].default_lr(lr))}
    optimizers = [torch.optim.Adam(p.groups(rates), fused=True) for p in bank.probes]
    rows = data.layer_of(len(seeds))
    bank.train()
    for _ in range(epochs):
        for index in bank.orders(data.n_train).split(batch_size, 1):
            keep = bank.dropout_masks(batch_size)[:, : index.shape[1]]
            x, mask = data.get_batch("train", rows, index)
            for optimizer in optimizers:
                optimizer.zero_grad()
            out = bank(x, keep, mask)
            data.kind.loss(out, data.labels["train"][index]).mean(1).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    return bank


@torch.inference_mode()
def predict(bank: ProbeBank, data: ProbeData, n_seeds: int) -> torch.Tensor:
    """Outputs of every probe for the test split, (M, n, C)."""
    bank.eval()
    x, mask = data.get_batch("test", data.layer_of(n_seeds), torch.arange(SIZES["test"]))
    return bank(x, mask=mask)


JOINED = {
    "attention": {"joined": True},
    "attention of layers": {"joined": True, "n_layers": 3},
    "attention over a mix": {"joined": True, "n_layers": 3, "mix": True},
    "mix": {"n_layers": 3, "n_scales": 2, "mix": True},
    "transformer": {"raw": True},
}


@pytest.mark.parametrize("kind", JOINED)
def test_a_pooling_does_not_depend_on_which_seeds_train_together(rng, kind):
    data, kind = make_task(rng, **JOINED[kind]), kind.split()[0]
    seeds = [3, 4, 5]
    before = predict(
        train(data, seeds, poolings_for(kind, data, seeds * data.n_layers), epochs=0), data, 3
    )
    bank = train(data, seeds, poolings_for(kind, data, seeds * data.n_layers))
    together = predict(bank, data, 3)
    assert (together - before).abs().max() > 0.1
    for i, seed in enumerate(seeds):
        alone = train(data, [seed], poolings_for(kind, data, [seed] * data.n_layers))
        torch.testing.assert_close(predict(alone, data, 1), together[i::3], rtol=0, atol=1e-9)
        for name, value in alone.probes[0].joiner.state_dict().items():
            torch.testing.assert_close(value, bank.probes[i].joiner.state_dict()[name])


def test_attention_that_learns_nothing_is_the_probe_on_the_mean(rng):
    data = make_task(rng, joined=True)
    bank = train(data, [1, 2], poolings_for("attention", data, [1, 2]), rate=1e-30)
    got = predict(bank, data, 2)
    data.tokens = None  # the probes now see the means
    expected = predict(train(data, [1, 2], None), data, 2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_a_poolings_draws_leave_the_probe_as_it_was(rng):
    data = make_task(rng, joined=True)
    joined = ProbeBank([7], 8, 2, poolings=poolings_for("attention", data, [7]))
    plain = ProbeBank([7], 8, 2)
    for name, value in plain.probes[0].state_dict().items():
        assert torch.equal(value, joined.probes[0].state_dict()[name])
    assert torch.equal(joined.orders(9), plain.orders(9))


def test_attention_of_a_seed_is_its_own(rng):
    data = make_task(rng, joined=True)
    one, two, again = (j.gates for j in poolings_for("attention", data, [1, 2, 1]))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


@pytest.mark.parametrize(("n_scales", "n_layers"), [(3, 1), (1, 4), (2, 3)])
def test_weight_goes_up_for_the_one_view_that_tells(rng, n_scales, n_layers):
    scales, layers = ["10", "30", "full"][:n_scales], [0, 5, 7, 12][:n_layers]
    for plant in range(n_scales * n_layers):
        # Views are counted scale by scale, layer by layer.
        scale, layer = scales[plant // n_layers], layers[plant % n_layers]
        data = make_task(rng, n_scales, n_layers, plant=plant, mix=n_layers > 1)
        names = data.view_names(scales, layers)
        bank = train(data, [1, 2], poolings_for("mix", data, [1, 2]), rate=0.1, epochs=12)
        for probe in bank.probes:
            best = names[int(probe.joiner.weights().argmax())]
            assert probe.joiner.weights().max() > 1.5 / len(names)
            length = scale if scale == "full" else f"{scale} s"
            expected = {(3, 1): length, (1, 4): f"layer {layer}"}
            assert best == expected.get((n_scales, n_layers), f"layer {layer}, {length}")


def test_result_says_what_was_learned(rng):
    data = make_task(rng, n_layers=3, mix=True, joined=True)
    bank = train(data, [5, 6], poolings_for("attention", data, [5, 6]))
    about = {"checkpoint": None, "tuned": False, "readout": None}
    got = trainable.describe(bank.probes, [5, 6], views=["a", "b", "c"], **about)
    assert got["parameters_learned_with_probe"] == 2 * 8 * 32 + 32 * 4 + 3
    assert list(got["view_weights"]) == ["5", "6"]
    assert [sum(w) for w in got["view_weights"].values()] == pytest.approx([1, 1])
    plain = trainable.describe(train(data, [5], None, epochs=0).probes, [5], views=[], **about)
    assert (plain["parameters_learned_with_probe"], plain["view_weights"]) == (0, {})


def test_columns_of_attention_are_what_the_probe_used(rng):
    data = make_task(rng, n_layers=2, joined=True)
    bank = train(data, [5, 6], poolings_for("attention", data, [5, 6, 5, 6]))
    split = {"id": [f"t{i}" for i in range(SIZES["test"])]}
    got = trainable.attention_columns(bank.probes[2:], [5, 6], data, 1, split)
    values, mask = data.tokens["test"]
    lengths = mask.sum(1).tolist()
    assert got["seed"] == [5] * sum(lengths) + [6] * sum(lengths)
    assert got["token"] == [k for n in lengths for k in range(n)] * 2
    assert got["id"][: sum(lengths)] == [f"t{i}" for i, n in enumerate(lengths) for _ in range(n)]
    heads = np.stack([got[f"head_{h}"] for h in range(4)])
    np.testing.assert_allclose(heads.mean(0), got["weight"])
    at = 0
    pooled = bank.probes[2].joiner(values[1], mask).detach()
    for i, n in enumerate(lengths):
        tokens = values[1, i, :n].numpy().reshape(n, 4, 2)  # (N, heads, D / heads)
        expected = (heads[:, at : at + n].T[..., None] * tokens).sum(0).ravel()
        np.testing.assert_allclose(pooled[i], expected, atol=1e-12)
        at += n
    assert trainable.attention_columns(ProbeBank([5], 8, 2).probes, [5], data, 1, split) is None


# The gate


def test_gate_puts_the_chosen_views_side_by_side(rng):
    x = normal(rng, 2, 3, 8)
    gate = Gate(torch.tensor([1.0, 0, 0.5]), 8, torch.float64)
    assert gate.n_out == 16
    torch.testing.assert_close(gate(x), torch.cat([x[:, 0], 0.5 * x[:, 2]], 1), **EXACT)
    assert torch.equal(Gate(torch.tensor([1.0, 0, 0]), 8, torch.float64)(x), x[:, 0])


def test_gate_mixes_layers_first(rng):
    x = normal(rng, 2, 4 * 3, 8)  # four layers of three views, layer by layer
    gate = Gate(torch.tensor([1.0, 0, 0.5]), 8, torch.float64, n_layers=4)
    mean, last = (x[:, i::3].mean(1) for i in (0, 2))
    torch.testing.assert_close(gate(x), torch.cat([mean, 0.5 * last], 1), **EXACT)
    shown = torch.tensor([0.25, 0, 0.125] * 4, dtype=torch.float64)
    torch.testing.assert_close(gate.view_weights(), shown)


def test_probe_behind_a_closed_gate_is_the_means_to_the_bit(rng):
    """Views that say nothing are left out, and then nothing tells that there ever was a gate."""
    data = make_task(rng, n_scales=3, size=8, plant=0)
    gates = trainable.make_gates(data, [1, 2], ["mean", "deviation", "whitened"], False, CPU)
    assert [gate.chosen for gate in gates] == [[0], [0]]
    got = predict(train(data, [1, 2], gates), data, 2)
    data.inputs = {s: values[:, :, 0] for s, values in data.inputs.items()}
    assert torch.equal(got, predict(train(data, [1, 2], None), data, 2))


def test_gate_opens_for_a_view_that_tells_in_each_layer_by_itself(rng):
    data = make_task(rng, n_scales=2, n_layers=2, size=8, plant=0)
    for values in data.inputs.values():  # (L, n, K, D): layer 1 tells by its second view
        values[1] = values[0].flip(1)
    gates = trainable.make_gates(data, [1, 2, 1, 2], ["mean", "order"], False, CPU)
    assert [gate.chosen for gate in gates] == [[0], [0], [0, 1], [0, 1]]
    bank = train(data, [1, 2], gates)
    assert [len(probe.w1) for probe in bank.probes] == [8, 8, 16, 16]
    said = trainable.describe(
        bank.probes[2:], [1, 2], views=["mean", "order"], checkpoint=None, tuned=False, readout=None
    )
    assert said["view_weights"] == {"1": [1, 1], "2": [1, 1]}


# The Transformer

KINDS = pytest.mark.parametrize(
    ("positions", "cls_token", "readout"),
    [
        ("rotary", True, "residual"),
        ("rotary", True, "mean"),
        ("learned", True, "cls"),
        ("learned", False, "mean"),
        ("rotary", True, "order"),
    ],
)


def small_model(seed=0, size=8, **kwargs):
    """A Transformer of two layers with much dropout."""
    recipe = replace(TUNE, num_layers=2, num_heads=2, intermediate_size=16, dropout=0.5, **kwargs)
    return make_model(make_config(recipe, size), seed, None).eval()


@KINDS
def test_tuned_transformer_starts_as_the_frozen_one(rng, positions, cls_token, readout):
    data = make_task(rng, raw=True)
    model = small_model(positions=positions, cls_token=cls_token)
    features = {}
    for split, (values, mask) in data.tokens.items():
        pairs = zip(values[0], mask, strict=True)
        with torch.no_grad():  # one track at a time, without padding
            each = [model.embed(x[m][None], m[m][None], readout)[0].double() for x, m in pairs]
        pooled = torch.stack(each)[None]
        features[split] = Features(pooled, torch.ones_like(pooled, dtype=torch.bool), 0)
    splits = {s: {"label": labels.tolist()} for s, labels in data.truth.items()}
    task = SimpleNamespace(kind="classes", classes=["a", "b"], targets=[], splits=splits)
    frozen = ProbeData(task, features, CPU)
    start = checkpoint.make_initial_model(model, data.tokens["train"])
    (tuned,) = trainable.make_transformers(data, [1], start, readout, CPU)
    assert tuned.n_out == frozen.n_in
    for split, (values, mask) in data.tokens.items():
        got = tuned(values[0], mask)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, frozen.inputs[split][0], rtol=0, atol=1e-4)


def test_dropout_of_a_tuned_transformer_stays_off(rng):
    data = make_task(rng, raw=True)
    (tuned,) = poolings_for("transformer", data, [1])
    values, mask = data.tokens["test"]
    expected = tuned.eval()(values[0], mask)
    bank = ProbeBank([1], tuned.n_out, 2, poolings=[tuned]).train()
    assert not any(module.training for module in tuned.model.modules())
    assert torch.equal(bank.probes[0].joiner(values[0], mask), expected)


@KINDS
def test_what_only_pretraining_uses_is_left_alone(rng, positions, cls_token, readout):
    data = make_task(rng, raw=True)
    model = small_model(positions=positions, cls_token=cls_token)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start = checkpoint.make_initial_model(model, data.tokens["train"])
    bank = train(data, [1], trainable.make_transformers(data, [1], start, readout, CPU), epochs=2)
    unused = [
        n
        for n, p in model.named_parameters()
        if n.startswith(("predict", "summarise", "hole")) or "word_emb" in n or "tok_emb" in n
    ]
    assert len(unused) >= 4
    for name, parameter in bank.probes[0].joiner.model.named_parameters():
        if name in unused:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])
        else:  # a gradient that never comes would hang several processes
            assert parameter.grad is not None, name
            assert not torch.equal(parameter, before[name]), name
    # Each probe has a copy of its own.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_transformer_from_scratch_differs_by_seed(rng):
    data = make_task(rng, size=16, raw=True)
    start = checkpoint.make_initial_model(None, data.tokens["train"])
    state = torch.get_rng_state()
    one, two, again = trainable.make_transformers(data, [1, 2, 1], start, "cls", CPU)
    assert torch.equal(torch.get_rng_state(), state)
    values, mask = data.tokens["test"]
    got = [pooling(values[0], mask) for pooling in (one, two, again)]
    assert torch.equal(got[0], got[2])
    assert (got[0] - got[1]).abs().max() > 0.1
    values, mask = data.tokens["train"]
    seen = one.model.standardised(values[0], mask)[mask]
    torch.testing.assert_close(seen.mean(0), torch.zeros(16), rtol=0, atol=1e-5)
    assert seen.var(0, correction=0).mean().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("told", [True, False])
def test_gated_transformer_learns_only_where_its_states_tell(rng, told):
    data = make_task(rng, raw=True)
    model = small_model()
    if told:  # one half of the dimensions grows and the other falls, or the other way round
        halves = torch.tensor([1.0] * 4 + [-1] * 4)
        slope = torch.linspace(-2, 2, 6)[:, None] * halves  # (N, D)
        for split, (values, _) in data.tokens.items():
            sign = 2.0 * data.labels[split] - 1
            n = values.shape[1]
            tokens = normal(rng, 1, n, 6, 8) + sign[:, None, None] * slope
            every = Tokens.from_padded(
                tokens.float(), torch.ones(n, 6, dtype=torch.bool), [None] * n
            )
            data.tokens[split] = TokenBatches(
                every, None, None, n_scales=1, mix=False, dtype=torch.float32, device=CPU
            )
    else:  # its states are all the same
        model.core.final_norm.weight.data.zero_()
    start = checkpoint.make_initial_model(model, data.tokens["train"])
    (tuned,) = trainable.make_transformers(data, [1], start, "gated", CPU)
    assert any(p.requires_grad for p in tuned.parameters()) == told
    assert (tuned.gate.chosen != [0]) == told
    if not told:
        values, mask = data.tokens["test"]
        expected = data.inputs["test"][0]
        torch.testing.assert_close(tuned(values[0], mask), expected, rtol=0, atol=1e-6)
    before = [p.clone() for p in tuned.parameters()]
    bank = train(data, [1], [tuned], epochs=1)
    after = bank.probes[0].joiner.parameters()
    moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert moved == told


def test_padding_and_neighbours_do_not_matter_to_a_tuned_transformer(rng):
    data = make_task(rng, raw=True)
    (tuned,) = poolings_for("transformer", data, [1])
    values, mask = data.tokens["test"]
    together = tuned(values[0], mask)
    for i, n in enumerate(mask.sum(1).tolist()):
        alone = tuned(values[0, i : i + 1, :n], mask[i : i + 1, :n])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_order_of_the_tokens_matters_to_a_transformer(rng, positions):
    model, tokens = small_model(positions=positions), normal(rng, 6, 8).float()
    with torch.no_grad():
        for parameter in model.parameters():  # at first nothing attends to anything
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    embed = checkpoint.embedder(model, "cls")
    assert (embed(tokens) - embed(tokens.flip(0))).abs().max() > 1e-3
