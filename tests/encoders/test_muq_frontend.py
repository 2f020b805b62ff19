"""The chunked, folded front end equals MuQ's own, whatever the chunk and length."""

import json

import numpy as np
import pytest
import torch
from muq.muq import MuQ, MuQConfig
from safetensors.torch import load_file

from tune.encoders.muq import LARGE, LARGE_W2V2, NANO_FOLDER
from tune.encoders.muq_frontend import FrontEnd
from tune.encoders.registry import load_encoder

LENGTHS = 12
CHUNKS = 4


def original(model, audio):
    """MuQ's own front end: its modules, unfolded and unchunked."""
    mel = model.normalize(model.preprocessing(audio, ["melspec_2048"]))["melspec_2048"]
    return model.conv(mel)


def build(config, weights=None):
    """muq's MuQModel in evaluation mode, with batch statistics that are not trivial."""
    torch.manual_seed(3)
    muq = MuQ(MuQConfig(**config))
    if weights is not None:
        muq.load_state_dict(weights)
    else:
        for module in muq.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, 0, 0.2)
    return muq.model.eval().requires_grad_(False)


def large_config():
    """MuQ-large's front end over a conformer of no layers."""
    config = json.loads((NANO_FOLDER / "config.json").read_text()) | LARGE | {"encoder_depth": 0}
    config["w2v2_config"] |= LARGE_W2V2 | {"num_hidden_layers": 0}
    return config


def check(model, rng, longest_s, batch=1):
    """Compare at random lengths and chunk sizes; return how many chunkings were tried."""
    frontend, tried = FrontEnd(model), 0
    # Whole seconds, one frame (240 samples) and one output frame (960) over, and odd ones.
    lengths = rng.integers(2400, longest_s * 24_000, LENGTHS - 4).tolist()
    lengths += [24_000, 24_240, 24_960, 2400]
    for length in lengths:
        audio = torch.from_numpy(rng.standard_normal((batch, length)).astype(np.float32) * 0.1)
        with torch.inference_mode():
            expected = original(model, audio)
            n = expected.shape[1]
            for chunk in rng.integers(1, n + 2, CHUNKS).tolist():
                out = frontend(audio, torch.float32, chunk)
                assert out.shape == expected.shape, (length, chunk)
                error = (out - expected).abs().max().item()
                assert error < 1e-5, (length, chunk, error)
                tried += 1
    return tried


def test_chunks_equal_the_whole_on_the_reference_model(reference, rng):
    config = json.loads((reference / "muq-tiny" / "config.json").read_text())
    weights = load_file(reference / "muq-tiny" / "model.safetensors")
    assert check(build(config, weights), rng, longest_s=12, batch=2) >= 48


@pytest.mark.slow
def test_chunks_equal_the_whole_at_muqs_full_size(rng):
    assert check(build(large_config()), rng, longest_s=1.2) >= 48


def test_chunks_equal_the_whole_with_lively_batch_statistics(rng):
    config = json.loads((NANO_FOLDER / "config.json").read_text())
    assert check(build(config), rng, longest_s=6) >= 48


def test_the_chunk_changes_no_embedding_beyond_rounding(rng):
    encoder = load_encoder("muq-nano")
    audio = rng.standard_normal((2, 5 * 24_000 + 77)).astype(np.float32) * 0.1
    encoder.chunk_s = float("inf")
    whole = encoder.embed(audio, range(5))
    for chunk_s in (1.0, 1.7, 3.3, 6.0):
        encoder.chunk_s = chunk_s
        np.testing.assert_allclose(encoder.embed(audio, range(5)), whole, atol=1e-5)


def test_a_smaller_budget_makes_smaller_chunks_and_the_same_embedding(rng):
    audio = rng.standard_normal((1, 4 * 24_000)).astype(np.float32) * 0.1
    large = load_encoder("muq-nano", memory_budget=2_000_000_000)
    small = load_encoder("muq-nano", memory_budget=15_000_000)
    assert small.chunk_s < large.chunk_s
    assert small.fingerprint == large.fingerprint
    np.testing.assert_allclose(small.embed(audio, [4]), large.embed(audio, [4]), atol=1e-5)


def test_out_of_memory_halves_the_chunk_down_to_a_second():
    encoder = load_encoder("muq-nano")
    encoder.chunk_s = 3.0
    assert encoder.shrink()
    assert encoder.chunk_s == 1.5
    assert encoder.shrink()
    assert encoder.chunk_s == 1.0
    assert not encoder.shrink()


def test_folding_in_half_precision_keeps_the_direction_of_the_embedding(rng):
    audio = rng.standard_normal((3, 3 * 24_000)).astype(np.float32) * 0.1
    full = load_encoder("muq-nano").embed(audio, [4])[:, 0, 0]
    half = load_encoder("muq-nano", precision="bf16").embed(audio, [4])[:, 0, 0]
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert (cosine >= 0.9999).all()


def test_random_weights_of_muqs_size_need_no_download():
    encoder = load_encoder("muq", weights="random")
    assert encoder.untrained
    assert (encoder.n_layers, encoder.embedding_dim) == (12, 1024)
    n = sum(p.numel() for p in encoder.model.parameters())
    assert 300e6 < n < 330e6
    with pytest.raises(ValueError, match="random weights are made for muq only"):
        load_encoder("some/model", weights="random")
