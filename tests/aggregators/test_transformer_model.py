"""The Transformer aggregator: invariances, and that only the right weights are ever used."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tune.aggregators.registry import COSINES, aggregate_track
from tune.aggregators.transformer.checkpoint import (
    check_tokens_fit,
    embedder,
    load_aggregator,
    view_names,
)
from tune.aggregators.transformer.model import (
    POSITIONS,
    READOUTS,
    AggregatorConfig,
    AggregatorError,
    AggregatorModel,
)
from tune.aggregators.transformer.pretraining_state import save_model
from tune.aggregators.transformer.recipes import standardisation

SIZE, WIDTH = 12, 16
TRAINED_ON = {
    "encoder": "muq",
    "encoder_fingerprint": "a" * 64,
    "layer": 6,
    "tokens": "segment",
    "seg": "10",
    "hop": None,
    "min_tail": 1.0,
    "precision": "no",
}


def make(positions="rotary", size=SIZE, width=WIDTH, seed=0, **kwargs):
    """A small aggregator with weights far from their start, in evaluation mode."""
    settings = (
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 24,
            "max_tokens": 64,
        }
        | TRAINED_ON
        | kwargs
    )
    torch.manual_seed(seed)
    model = AggregatorModel(
        AggregatorConfig(input_size=size, hidden_size=width, positions=positions, **settings)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        if model.config.standardise != "none":
            scale = torch.rand(size) + 0.5
            if model.config.standardise == "within":
                scale = scale.diag() + 0.1 * torch.randn(size, size)
            model.standardise_by(torch.randn(size), scale)
    return model.eval()


def tracks(*lengths, size=SIZE, seed=1):
    """Tracks of random tokens, and them padded with rubbish: list of (N, D), (B, N, D), mask."""
    g = torch.Generator().manual_seed(seed)
    each = [torch.randn(n, size, generator=g) for n in lengths]
    padded = torch.full((len(lengths), max(lengths), size), 99.0)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for i, track in enumerate(each):
        padded[i, : len(track)] = track
        mask[i, : len(track)] = True
    return each, padded, mask


@torch.inference_mode()
def embed(model, tokens, mask=None, readout=None):
    """Embeddings as an array."""
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    return model.embed(tokens, mask, readout).numpy()


@pytest.mark.parametrize(("width", "standardise"), [(SIZE, "within"), (WIDTH, "dimension")])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_and_neighbours_change_no_embedding(positions, readout, width, standardise):
    model = make(positions, width=width, num_attention_heads=2, standardise=standardise)
    each, padded, mask = tracks(9, 1, 4, 33)
    together = embed(model, padded, mask, readout)
    beside = {"residual": SIZE, "gated": SIZE, "order": (COSINES - 1) * width}.get(readout, 0)
    assert together.shape == (4, width + beside)
    for i, track in enumerate(each):
        alone = embed(model, track[None], readout=readout)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)
    backwards = embed(model, padded.flip(0), mask.flip(0), readout)
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-6)


@pytest.mark.parametrize("width", [SIZE, WIDTH])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_what_a_probe_gets_is_the_same_padded_and_alone(positions, readout, width):
    model = make(positions, width=width, num_attention_heads=2)
    each, padded, mask = tracks(9, 1, 4)
    with torch.inference_mode():
        together = model.views(padded, mask, readout)
    assert list(together) == view_names(model.config, readout)
    for i, track in enumerate(each):
        alone = embedder(model, readout)(track)  # (K, D')
        assert len(alone) == len(together)
        for view, expected in zip(together.values(), alone, strict=True):
            np.testing.assert_allclose(view[i], expected, atol=1e-6)
    if "tokens" in together:
        np.testing.assert_allclose(together["tokens"][2, :SIZE], each[2].mean(0), atol=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
def test_hidden_tokens_of_a_padded_track_are_predicted_as_alone(positions):
    model = make(positions)
    each, padded, mask = tracks(9, 4)
    hidden = torch.zeros_like(mask)
    hidden[:, 2] = True
    with torch.inference_mode():
        out = model(padded, mask, hidden)
        alone = model(each[1][None], mask[1:, :4], hidden[1:, :4])
    np.testing.assert_allclose(out.predicted[1, :4], alone.predicted[0], atol=1e-6)
    np.testing.assert_allclose(out.summary[1], alone.summary[0], atol=1e-6)


@pytest.mark.parametrize("mask_token", ["learned", "zero"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_hidden_tokens_value_is_not_seen(positions, mask_token):
    model = make(positions, mask_token=mask_token)
    _, tokens, mask = tracks(6)
    hidden = torch.tensor([[False, True, False, False, True, False]])
    other = tokens.clone()
    other[hidden] = torch.randn(2, SIZE)
    with torch.inference_mode():
        a, b = model(tokens, mask, hidden), model(other, mask, hidden)
        assert torch.equal(a.predicted, b.predicted)
        assert torch.equal(a.summary, b.summary)
        assert not torch.equal(a.tokens, b.tokens)  # the targets differ, the view doesn't
        seen = tokens.clone()
        seen[0, 0] += 1
        assert not torch.allclose(a.predicted, model(seen, mask, hidden).predicted, atol=1e-4)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_order_changes_the_embedding(positions, readout):
    model = make(positions)
    (track,), _, _ = tracks(8)
    forward = embed(model, track[None], readout=readout)
    backward = embed(model, track.flip(0)[None], readout=readout)
    assert np.abs(forward - backward).max() > 1e-3
    if readout in ("residual", "gated"):  # the mean's part doesn't know any order
        np.testing.assert_allclose(forward[:, :SIZE], backward[:, :SIZE], atol=1e-6)


def test_the_residual_readout_begins_with_the_standardised_mean():
    model = make()
    (track,), _, _ = tracks(7)
    expected = ((track - model.token_mean) @ model.token_scale).mean(0)
    out = embed(model, track[None], readout="residual")[0]
    np.testing.assert_allclose(out[:SIZE], expected, atol=1e-6)
    np.testing.assert_array_equal(out[SIZE:], embed(model, track[None], readout="cls")[0])


def test_the_order_readout_is_the_cosines_of_the_states():
    model = make()
    (track,), tokens, mask = tracks(9)
    with torch.inference_mode():
        expected = aggregate_track("dct", model(tokens, mask).states[0])[0]
    got = embed(model, track[None], readout="order")[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(got[:WIDTH], embed(model, track[None], readout="mean")[0], atol=1e-6)


@pytest.mark.parametrize("width", [SIZE, WIDTH])
def test_the_first_gated_view_is_the_mean_aggregator(width):
    model = make(width=width, num_attention_heads=2)
    (track,), tokens, mask = tracks(9)
    views = model.views(tokens, mask, "gated")
    expected, _, _ = aggregate_track("mean", track.double())
    assert torch.equal(views["tokens"][0, :SIZE], expected)  # to the bit: then so is the probe
    assert not views["tokens"][0, SIZE:].any()


def test_a_constant_dimension_becomes_zero():
    model = make(standardise="dimension")
    tokens = torch.randn(200, SIZE, dtype=torch.float64) * 3 + 5
    tokens[:, 2] = 0.1
    model.standardise_by(*standardisation(tokens.split(50), "dimension"))
    mask = torch.ones(1, 200, dtype=torch.bool)
    out = model.standardised(tokens.float()[None], mask)[0]
    assert not out[:, 2].any()
    rest = np.delete(out.numpy(), 2, 1)
    np.testing.assert_allclose(rest.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(rest.std(0), 1, atol=1e-5)
    assert torch.isfinite(model.embed(tokens.float()[None], mask)).all()
    np.testing.assert_allclose(model.mean_token(tokens.mean(0)), 0, atol=1e-6)


def test_whitened_tokens_have_a_mean_variance_of_1(rng):
    # Noise within tracks is large in one direction, the tracks differ in all.
    mixed = torch.from_numpy(rng.normal(size=(SIZE, SIZE))).float()
    each = [
        torch.from_numpy(rng.normal(size=(20, SIZE)) * np.arange(1, SIZE + 1)).float() @ mixed
        + torch.from_numpy(rng.normal(size=SIZE)).float() * 3
        for _ in range(30)
    ]
    model = make(standardise="within")
    model.standardise_by(*standardisation(each, "within"))
    every = torch.cat(each)
    out = model.standardised(every[None], torch.ones(1, 600, dtype=torch.bool))[0].numpy()
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    assert out.var(0).mean() == pytest.approx(1, rel=1e-3)
    inside = np.concatenate([part - part.mean(0) for part in np.split(out, 30)])
    spectrum = np.linalg.eigvalsh(np.cov(inside.T))
    before = np.concatenate([(track - track.mean(0)).numpy() for track in each])
    raw = np.linalg.eigvalsh(np.cov(before.T))
    assert spectrum[-1] / spectrum[0] < 0.1 * raw[-1] / raw[0]


def test_without_standardising_tokens_are_taken_as_they_are():
    model = make(standardise="none")
    (track,), tokens, mask = tracks(5)
    with torch.inference_mode():
        assert torch.equal(model(tokens, mask).tokens[0], track)
    mean = torch.randn(SIZE, dtype=torch.float64)
    torch.testing.assert_close(model.mean_token(mean), mean.float())


def test_too_many_tokens_for_learned_positions_are_refused():
    _, tokens, mask = tracks(65)
    with pytest.raises(AggregatorError, match=r"has 65 tokens, .* positions for 64: use fewer"):
        make("learned").embed(tokens, mask)
    assert np.isfinite(embed(make("learned"), tokens[:, :64])).all()
    assert np.isfinite(embed(make("rotary"), tokens.tile(1, 3, 1))).all()  # has no such limit


@pytest.mark.parametrize("positions", POSITIONS)
def test_heads_that_do_not_divide_the_width_are_refused(positions):
    with pytest.raises(AggregatorError, match="5 heads don't divide the width 16"):
        make(positions, num_attention_heads=5)


def test_unknown_positions_and_readouts_are_refused():
    with pytest.raises(AggregatorError, match="standardise must be one of"):
        make(standardise="all")
    with pytest.raises(AggregatorError, match="positions must be one of"):
        make("sinus")
    _, tokens, mask = tracks(3)
    with pytest.raises(AggregatorError, match="--readout must be one of cls, mean, residual"):
        make().embed(tokens, mask, "max")


def test_without_a_cls_token_its_state_cannot_be_read():
    model = make("learned", cls_token=False, mask_token="zero", readout="mean")
    _, tokens, mask = tracks(3, 5)
    assert embed(model, tokens, mask).shape == (2, WIDTH)
    assert embed(model, tokens, mask, "order").shape == (2, COSINES * WIDTH)
    np.testing.assert_array_equal(
        embed(model, tokens, mask, "gated"), embed(model, tokens, mask, "mean")
    )
    assert "cls" not in view_names(model.config, "gated")
    for readout in ("cls", "residual"):
        with pytest.raises(AggregatorError, match=r"no \[CLS\] token: use --readout mean"):
            model.embed(tokens, mask, readout)


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_trained_weight_gets_a_gradient(positions):
    # Several processes depend on it: a weight that some of them don't use stops the others.
    model = make(positions).train()
    _, tokens, mask = tracks(6, 4)
    hidden = torch.zeros_like(mask)
    hidden[:, 1] = True
    out = model(tokens, mask, hidden)
    (out.predicted[hidden].square().sum() + out.summary.square().sum()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("positions", POSITIONS)
def test_gradient_checkpointing_changes_no_gradient(positions):
    def gradients(checkpointing):
        model = make(positions, dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing
        _, tokens, mask = tracks(6, 4)
        model(tokens, mask, mask & (torch.arange(6) == 1)).predicted.square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, checked = gradients(False), gradients(True)
    assert plain.keys() == checked.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, checked[name], msg=name)


@pytest.fixture
def saved(tmp_path):
    """An aggregator in a folder: model, folder."""
    model = make()
    save_model(model, tmp_path / "saved")
    return model, tmp_path / "saved"


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("ours", [True, False])
def test_what_was_saved_gives_the_same_bits(positions, ours, tmp_path):
    model = make(positions, standardise="within" if ours else "dimension")
    save_model(model, tmp_path) if ours else model.save_pretrained(tmp_path)
    _, tokens, mask = tracks(9, 3)
    for again in (load_aggregator(tmp_path), AggregatorModel.from_pretrained(tmp_path).eval()):
        for readout in READOUTS:
            np.testing.assert_array_equal(
                embed(again, tokens, mask, readout), embed(model, tokens, mask, readout)
            )
        assert torch.equal(again.token_mean, model.token_mean)
        assert torch.equal(again.token_scale, model.token_scale)
    again = load_aggregator(tmp_path)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["model_type"] == "tune-aggregator"
    assert kept["architectures"] == ["AggregatorModel"]
    for name, value in TRAINED_ON.items():
        assert getattr(again.config, name) == value, name
        assert kept.get(name) == value, name


def test_another_process_gives_the_same_bits(saved):
    model, folder = saved
    _, tokens, mask = tracks(9, 3, 20)
    save_file({"tokens": tokens, "mask": mask}, folder.parent / "tokens.safetensors")
    code = (
        "import torch; from safetensors.torch import load_file, save_file\n"
        "from tune.aggregators.transformer.checkpoint import load_aggregator\n"
        f"model, t = load_aggregator({str(folder)!r}), load_file('tokens.safetensors')\n"
        f"out = {{r: model.embed(t['tokens'], t['mask'], r) for r in {READOUTS}}}\n"
        "save_file({r: e.contiguous() for r, e in out.items()}, 'out.safetensors')\n"
    )
    done = run("-c", code, cwd=folder.parent, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    out = load_file(folder.parent / "out.safetensors")
    for readout in READOUTS:
        np.testing.assert_array_equal(out[readout], embed(model, tokens, mask, readout))


def test_our_saving_leaves_no_other_file(saved):
    assert {p.name for p in saved[1].iterdir()} == {"config.json", "model.safetensors"}


def change_weights(folder: Path, change):
    """Rewrite model.safetensors with its weights changed."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["predict.weight", "token_mean", "cls"])
def test_a_missing_weight_is_refused(saved, name):
    change_weights(saved[1], lambda weights: weights.pop(name))
    with pytest.raises(AggregatorError, match=f"1 weights are missing .* first is {name}"):
        load_aggregator(saved[1])


def test_a_surplus_weight_is_refused(saved):
    change_weights(saved[1], lambda weights: weights.update(surplus=torch.ones(2)))
    with pytest.raises(AggregatorError, match=r"don't fit .* first is surplus"):
        load_aggregator(saved[1])


def test_a_weight_of_another_shape_is_refused(saved):
    def grow(weights):
        weights["predict.bias"] = torch.ones(SIZE + 1)

    change_weights(saved[1], grow)
    with pytest.raises(AggregatorError, match="saved"):
        load_aggregator(saved[1])


def test_a_damaged_file_is_refused(saved):
    path = saved[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AggregatorError, match="can't be loaded"):
        load_aggregator(saved[1])
    (saved[1] / "config.json").write_text("{")
    with pytest.raises(AggregatorError, match="can't be loaded"):
        load_aggregator(saved[1])


class Trap:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def plant(folder: Path, trace: Path):
    """Put pickles where a loader might look for weights."""
    for name in ("pytorch_model.bin", "model.bin", "pytorch_model.bin.index.json"):
        (folder / name).write_bytes(pickle.dumps(Trap(trace)))


def test_pickles_are_never_read(saved, tmp_path):
    model, folder = saved
    trace = tmp_path / "trace"
    plant(folder, trace)
    _, tokens, mask = tracks(4)
    np.testing.assert_array_equal(
        embed(load_aggregator(folder), tokens, mask), embed(model, tokens, mask)
    )
    (folder / "model.safetensors").unlink()
    with pytest.raises(AggregatorError, match=r"holds no model\.safetensors"):
        load_aggregator(folder)
    assert not trace.exists()
    pickle.loads((folder / "model.bin").read_bytes())
    assert trace.exists()  # the trap works


def test_another_kind_of_model_is_refused(saved):
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "bert"}))
    with pytest.raises(AggregatorError, match=r"is no aggregator \(its config.json says 'bert'\)"):
        load_aggregator(saved[1])
    path.unlink()
    with pytest.raises(AggregatorError, match=r"holds no config\.json"):
        load_aggregator(saved[1])


@pytest.mark.parametrize("name", ["./none", "none", "/a/b/c", "~/none"])
def test_a_folder_that_is_not_there_is_refused(name):
    with pytest.raises(AggregatorError, match="no such folder, and no hub id"):
        load_aggregator(name)


def test_our_kind_is_no_secret_code_on_the_hub(saved):
    # A foreign model_type is unknown to transformers: nobody gets another class by mistake.
    with pytest.raises(ValueError, match="tune-aggregator"):
        AutoConfig.from_pretrained(saved[1])


def an_encoder(**kwargs):
    """What `check_tokens_fit` looks at."""
    settings = {"name": "muq", "fingerprint": "a" * 64, "embedding_dim": SIZE} | kwargs
    return SimpleNamespace(**settings)


def test_the_tokens_it_was_trained_on_fit():
    config = make().config
    check_tokens_fit(config, encoder=an_encoder(), layers=[6], tokens="segment", name="x")
    # The same weights under another name are the same encoder.
    check_tokens_fit(
        config, encoder=an_encoder(name="copy"), layers=[6], tokens="segment", name="x"
    )


@pytest.mark.parametrize(
    ("encoder", "layers", "tokens", "message"),
    [
        ({"fingerprint": "b" * 64}, [6], "segment", r"encoder weights aaaaaaaa \(here bbbbbbbb\)$"),
        ({}, [5], "segment", r"layer 6 \(here 5\)$"),
        ({}, [5, 6], "segment", r"layer 6 \(here \[5, 6\]\)$"),
        ({}, [6], "frame at 5 Hz", r"tokens segment \(here frame at 5 Hz\)$"),
        ({"embedding_dim": 9}, [6], "segment", rf"token size {SIZE} \(here 9\)$"),
        (
            {"fingerprint": "b" * 64, "embedding_dim": 9},
            [0],
            "frame at 1 Hz",
            "trained on muq, encoder weights .*, layer .*, tokens .*, token size ",
        ),
    ],
)
def test_each_difference_is_named(encoder, layers, tokens, message):
    with pytest.raises(AggregatorError, match=message):
        check_tokens_fit(
            make().config, encoder=an_encoder(**encoder), layers=layers, tokens=tokens, name="x"
        )
