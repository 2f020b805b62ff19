"""MuQ-MuLan's audio tower against muq's own modules, from a folder saved here."""

import json
import shutil

import numpy as np
import pytest
import torch
from muq.muq_mulan.models.audio import AudioSpectrogramTransformerPretrained
from safetensors.torch import load_file, save_file
from torch import nn

from tune.encoders.base import EncoderError
from tune.encoders.muq import NANO_FOLDER
from tune.encoders.registry import load_encoder

TOWER = {
    "dim": 48,
    "tf_depth": 2,
    "heads": 2,
    "dim_head": 16,
    "attn_dropout": 0.0,
    "ff_dropout": 0.0,
    "ff_mult": 4,
}


class Tower(nn.Module):
    """muq's audio tower, with a MuQ that is given its hidden states."""

    def __init__(self, muq):
        super().__init__()

        class Given(AudioSpectrogramTransformerPretrained):
            def _init_pretrained_model(self, model_name):
                self.model = muq

            def _forward_pretrained_model(self, wave):
                return self.given

        self.audio = Given(model_name="muq", model_dim=192, use_layer_idx=-2, **TOWER)
        self.audio_to_latents = nn.Linear(TOWER["dim"], 24)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as MuQMuLan.save_pretrained leaves it (its text tower is one tensor), its tower."""
    from muq.muq import MuQ, MuQConfig

    folder = tmp_path_factory.mktemp("mulan")
    (folder / "inner").mkdir()
    muq_config = json.loads((NANO_FOLDER / "config.json").read_text())
    (folder / "inner" / "config.json").write_text(json.dumps(muq_config))
    torch.manual_seed(3)
    tower = Tower(MuQ(MuQConfig(**muq_config))).eval()
    weights = {f"mulan.{key}": value.contiguous() for key, value in tower.state_dict().items()}
    weights["mulan.text.proj.weight"] = torch.ones(2, 2)
    save_file(weights, folder / "model.safetensors")
    config = {
        "mulan": {"sr": 24_000, "clip_secs": 10, "dim_latent": 24},
        "audio_model": {"name": "inner", "model_dim": 192, "use_layer_idx": -2},
        "text_model": {"name": "someone/text", "model_dim": 8},
        "audio_transformer": TOWER,
        "text_transformer": {"tf_depth": 1},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, tower


@pytest.fixture(scope="module")
def inner(saved, tmp_path_factory):
    """The MuQ inside, as an encoder of its own."""
    folder = tmp_path_factory.mktemp("muq")
    shutil.copy(saved[0] / "inner" / "config.json", folder)
    save_file(saved[1].audio.model.state_dict(), folder / "model.safetensors")
    return load_encoder(str(folder))


@pytest.fixture
def audio(rng):
    """Two segments of noise."""
    return (rng.standard_normal((2, 30_000)) * 0.1).astype(np.float32)


def test_the_towers_layers_are_those_of_muqs_own_modules(saved, inner, audio):
    folder, tower = saved
    encoder = load_encoder(str(folder))
    assert (encoder.n_layers, encoder.sizes) == (7, [192] * 5 + [48] * 2 + [24])
    with torch.inference_mode():
        batch = torch.from_numpy(audio)
        states = list(encoder.states(batch, range(8), torch.float32))
        muq_states = list(inner.states(batch, range(5), torch.float32))
        # muq's own layers but for the last, and its mean over time.
        tower.audio.given = muq_states
        pooled, layers = tower.audio(batch, return_all_layers=True)
        latents = tower.audio_to_latents(pooled)
    for state, expected in zip(states[:5], muq_states, strict=True):
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(states[5], layers[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(states[6].mean(1), pooled, rtol=0, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(audio, [7])[:, 0, 0], latents, atol=1e-5)


def test_batch_equals_single_and_early_exit_keeps_the_numbers(saved, audio):
    encoder = load_encoder(str(saved[0]))
    for layer in (2, 5, 7):
        together = encoder.embed(audio, [layer])
        alone = np.concatenate([encoder.embed(segment[None], [layer]) for segment in audio])
        np.testing.assert_allclose(together, alone, atol=2e-6)
        short = load_encoder(str(saved[0]))
        short.keep_layers(layer)
        assert short.embedding_dim == encoder.sizes[layer]
        np.testing.assert_array_equal(short.embed(audio, [layer]), together)
        if layer < 7:
            with pytest.raises(ValueError, match=rf"layers must lie in 0\.\.{layer}"):
                short.embed(audio, [7])
    half = load_encoder(str(saved[0]), precision="bf16")
    full, rounded = encoder.embed(audio, [7])[:, 0, 0], half.embed(audio, [7])[:, 0, 0]
    norms = np.linalg.norm(full, axis=1) * np.linalg.norm(rounded, axis=1)
    assert ((full * rounded).sum(1) / norms).min() > 0.999
    with torch.no_grad():
        half.head["proj"].bias[0] = float("inf")  # only the half-precision copy
    np.testing.assert_allclose(half.embed(audio, [7])[:, 0, 0], full, atol=1e-6)
    assert half.redone == 1
    with pytest.raises(ValueError, match="--layer all and mix need layers of one size"):
        encoder.check_layers(range(8))


def test_the_fingerprint_covers_the_head_but_not_the_text_tower(saved, tmp_path):
    first = load_encoder(str(saved[0])).fingerprint
    folder = shutil.copytree(saved[0], tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights["mulan.text.proj.weight"] += 1
    save_file(weights, folder / "model.safetensors")
    assert load_encoder(str(folder)).fingerprint == first
    weights["mulan.audio_to_latents.bias"] += 1
    save_file(weights, folder / "model.safetensors")
    assert load_encoder(str(folder)).fingerprint != first


def test_what_is_no_mulan_is_refused_with_the_reason(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"is a pickle, .*MuQMuLan\.from_pretrained"):
        load_encoder(str(folder))
    folder = shutil.copytree(saved[0], tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    del weights["mulan.audio.transformer.layers.1.1.1.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(EncoderError, match=r"don't fit the configuration: .*layers\.1\.1\.1"):
        load_encoder(str(folder))
    (folder / "inner" / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(EncoderError, match="its audio model inner is no MuQ"):
        load_encoder(str(folder))
