"""tune.encoders: golden hidden states, precision, pooling, loading."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from conftest import tone
from safetensors.torch import load_file, save_file

from tune.encoders.base import EncoderError, NonFiniteError, resolve_layers, resolve_precision
from tune.encoders.muq import NANO_FOLDER
from tune.encoders.registry import load_encoder


@pytest.fixture(scope="module")
def nano():
    """The small MuQ, built once."""
    return load_encoder("muq-nano")


@pytest.fixture
def segments(rng):
    """Three 1.5 s segments of noise with different levels."""
    scale = np.array([[0.05], [0.1], [0.3]])
    return (rng.standard_normal((3, 36_000)) * scale).astype(np.float32)


@pytest.mark.parametrize("case", ["a", "b"])
def test_hidden_states_equal_those_of_muqs_own_code(reference, case):
    golden = np.load(reference / "muq-tiny.golden.npz")
    encoder = load_encoder(str(reference / "muq-tiny"))
    audio = torch.from_numpy(golden[f"{case}_audio"])
    with torch.inference_mode():
        states = list(encoder.states(audio, range(5), torch.float32))
    assert len(states) == 5
    for k, state in enumerate(states):
        expected = golden[f"{case}_hidden_{k}"]
        assert state.shape == expected.shape
        np.testing.assert_allclose(state.numpy(), expected, atol=1e-4, rtol=0)


def test_embedding_is_the_time_mean_of_the_golden_states(reference):
    golden = np.load(reference / "muq-tiny.golden.npz")
    encoder = load_encoder(str(reference / "muq-tiny"))
    out = encoder.embed(golden["b_audio"], [0, 3, 4])
    expected = np.stack([golden[f"b_hidden_{k}"].mean(1) for k in (0, 3, 4)], 1)
    np.testing.assert_allclose(out[:, 0], expected, atol=1e-5)


def test_early_exit_gives_the_same_layers(reference):
    audio = np.load(reference / "muq-tiny.golden.npz")["a_audio"]
    whole = load_encoder(str(reference / "muq-tiny")).embed(audio, [0, 2])
    short = load_encoder(str(reference / "muq-tiny"))
    short.keep_layers(2)
    assert len(short.model.conformer.layers) == 2
    np.testing.assert_array_equal(short.embed(audio, [0, 2]), whole)
    # The last layer of the whole model is normalised; the last one kept here is not the last.
    assert short.n_layers == 4
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.2"):
        short.embed(audio, [4])


@pytest.mark.parametrize("name", ["muq-nano", "mel"])
def test_batch_equals_one_by_one(name, segments):
    encoder = load_encoder(name)
    layers = range(encoder.n_layers + 1)
    together = encoder.embed(segments, layers)
    alone = np.concatenate([encoder.embed(s[None], layers) for s in segments])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(encoder.embed(segments[::-1], layers)[::-1], together)
    assert together.shape == (3, 1, len(layers), encoder.embedding_dim)
    assert encoder.passes == 9


def test_mel_is_mean_and_deviation_of_the_decibel_spectrogram(segments):
    import librosa

    out = load_encoder("mel").embed(segments[:1], [0])[0, 0, 0]
    power = librosa.feature.melspectrogram(
        y=segments[0],
        sr=24_000,
        n_fft=2048,
        hop_length=240,
        n_mels=128,
        htk=True,
        norm=None,
        pad_mode="reflect",
    )
    decibel = 10 * np.log10(np.maximum(power, 1e-10))[:, :-1]
    np.testing.assert_allclose(out[:128], decibel.mean(1), atol=1e-3)
    np.testing.assert_allclose(out[128:], decibel.std(1), atol=1e-3)


def test_frames_are_windows_that_average_to_the_segment(nano, segments):
    one = nano.embed(segments, [4])[:, 0, 0]
    frames = nano.embed(segments, [4], frame_rate=5)[:, :, 0]  # 38 frames in windows of 5
    assert frames.shape == (3, 8, 192)
    weights = np.array([5, 5, 5, 5, 5, 5, 5, 3]) / 38
    np.testing.assert_allclose(np.einsum("w,bwd->bd", weights, frames), one, atol=1e-5)
    with pytest.raises(ValueError, match="at most 25 Hz"):
        nano.embed(segments, [4], frame_rate=26)


def test_nano_is_the_same_model_each_time_and_its_twin_says_that_it_is_untrained(nano):
    state = random.getstate()
    torch.manual_seed(99)
    again, twin = load_encoder("muq-nano"), load_encoder("muq-nano-untrained")
    assert again.fingerprint == nano.fingerprint != twin.fingerprint
    assert (again.untrained, again.label) == (False, "muq-nano")
    assert (twin.untrained, twin.label) == (True, "muq-nano-untrained (untrained)")
    assert twin.fingerprint == load_encoder("muq-nano-untrained").fingerprint
    assert random.getstate() == state  # MuQ's constructor seeds Python's generator; we put it back


def test_segments_that_are_too_short_are_refused(nano):
    with pytest.raises(ValueError, match=r"at least 0\.1 s"):
        nano.embed(np.zeros((1, 2399), np.float32), [4])
    assert np.isfinite(nano.embed(np.zeros((1, 2400), np.float32), [4])).all()


def test_bf16_is_close_to_float32(segments, nano):
    half = load_encoder("muq-nano", precision="bf16").embed(segments, [4])[:, 0, 0]
    full = nano.embed(segments, [4])[:, 0, 0]
    cosine = (half * full).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
    assert (cosine > 0.9999).all()
    assert not np.array_equal(half, full)


@pytest.mark.parametrize("name", ["muq-nano", "muq-tiny"])
def test_bf16_keeps_the_direction_of_every_layers_track_embedding(name, request, rng):
    if name == "muq-tiny":
        name = str(request.getfixturevalue("reference") / name)
    full, half = load_encoder(name), load_encoder(name, precision="bf16")
    layers = range(full.n_layers + 1)
    full.chunk_s = float("inf")
    # The shortest, one frame over a second, an odd one, and one of several chunks and segments.
    for batch, length in ((1, 2400), (1, 24_240), (2, 31_357), (3, 84_001)):
        audio = np.stack([tone(length / 24_000, 110 * (i + 1), seed=i) for i in range(batch)])
        audio += 0.02 * rng.standard_normal(audio.shape, np.float32)
        expected = full.embed(audio, layers)[:, 0].mean(0)  # (L, D), mean over segments
        for chunk_s in (float("inf"), 1.0):
            half.chunk_s = chunk_s
            got = half.embed(audio, layers)[:, 0].mean(0)
            norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
            cosine = (got * expected).sum(1) / norms  # (L,)
            assert cosine.min() >= 0.9999, (length, chunk_s, cosine)
    assert half.redone == 0


def test_rotary_frequencies_stay_in_float32():
    half = load_encoder("muq-nano", precision="bf16")
    assert half.model.conformer.embed_positions.inv_freq.dtype == torch.float32
    assert half.model.frontend.linear.weight.dtype == torch.bfloat16


def test_a_batch_that_overflows_in_half_precision_is_redone_in_float32(segments, nano):
    half = load_encoder("muq-nano", precision="bf16")
    with torch.no_grad():
        half.model.frontend.linear.bias[0] = float("inf")  # only the half-precision copy
    out = half.embed(segments, [4])
    assert half.redone == 1
    np.testing.assert_allclose(out, nano.embed(segments, [4]), atol=1e-6)


def test_states_that_are_not_finite_in_float32_are_an_error(segments):
    encoder = load_encoder("muq-nano")
    with torch.no_grad():
        encoder.model.frontend.linear.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="muq-nano gives NaN or infinite"):
        encoder.embed(segments, [4])


@pytest.mark.parametrize(
    ("requested", "device", "capability", "expected"),
    [
        ("auto", "cpu", None, "no"),
        ("auto", "mps", None, "no"),
        ("auto", "cuda", (7, 5), "fp16"),
        ("auto", "cuda", (8, 0), "bf16"),
        ("auto", "cuda", (9, 0), "bf16"),
        ("no", "cuda", (9, 0), "no"),
        ("fp16", "cuda", (9, 0), "fp16"),
        ("bf16", "cpu", None, "bf16"),
    ],
)
def test_precision_follows_the_device(requested, device, capability, expected):
    assert resolve_precision(requested, device, capability) == expected


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        resolve_precision("fp16", "cpu")


def test_layers_are_read_from_the_flag():
    assert resolve_layers("last", 12) == [12]
    assert resolve_layers("all", 2) == [0, 1, 2]
    assert resolve_layers("6", 12) == [6]
    for wrong in ("13", "-1", "first", "1.5"):
        with pytest.raises(ValueError, match="number from 0 to 12"):
            resolve_layers(wrong, 12)


def _save_nano(folder):
    """Save the small MuQ's weights as a folder like those on the hub."""
    from muq.muq import MuQ, MuQConfig

    folder.mkdir()
    config = json.loads((NANO_FOLDER / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(5)
    save_file(MuQ(MuQConfig(**config)).state_dict(), folder / "model.safetensors")
    return folder


def test_a_folder_is_loaded_and_known_by_its_weights(tmp_path, segments):
    folder = _save_nano(tmp_path / "mine")
    first = load_encoder(str(folder))
    assert (first.name, first.untrained) == ("mine", False)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_encoder(str(moved)).fingerprint == first.fingerprint
    weights = load_file(folder / "model.safetensors")
    weights["model.conv.linear.bias"] += 1e-3
    save_file(weights, moved / "model.safetensors")
    assert load_encoder(str(moved)).fingerprint != first.fingerprint


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    folder = _save_nano(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"w": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"pytorch_model\.bin is a pickle, which is never"):
        load_encoder(str(folder))
    assert not marker.exists()


def test_folders_that_are_no_muq_are_refused_with_the_reason(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"holds no config\.json"):
        load_encoder(str(tmp_path / "empty"))
    folder = _save_nano(tmp_path / "broken")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:5000])
    with pytest.raises(EncoderError, match="damaged"):
        load_encoder(str(folder))
    weights = load_file(_save_nano(tmp_path / "partial") / "model.safetensors")
    del weights["model.conv.linear.weight"]
    save_file(weights, tmp_path / "partial" / "model.safetensors")
    with pytest.raises(EncoderError, match=r"1 names differ.*conv\.linear\.weight"):
        load_encoder(str(tmp_path / "partial"))
    (folder / "model.safetensors").write_bytes(whole)
    for config, message in (
        ({}, "neither MuQ's .* nor MuQ-MuLan's, nor a transformers model's"),
        ({"model_type": "bert"}, "no preprocessor_config"),
    ):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(EncoderError, match=message):
            load_encoder(str(folder))


def test_unknown_names_and_missing_networks_are_one_clear_error(monkeypatch, tmp_path):
    with pytest.raises(EncoderError, match=r"none of muq, .*mel, no folder and no hub id"):
        load_encoder("nonsense")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match=r"is not in the local cache.*--encoder FOLDER"):
        load_encoder("muq")


@pytest.mark.gpu
def test_fp16_on_a_gpu_is_close_to_float32(segments, nano):
    half = load_encoder("muq-nano", precision="fp16", device="cuda").embed(segments, [4])[:, 0, 0]
    full = nano.embed(segments, [4])[:, 0, 0]
    cosine = (half * full).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
    assert (cosine > 0.9999).all()


def test_the_compiler_is_given_operations_that_it_can_lower(rng):
    """oneDNN's own operation, which we call on CPUs, is none of them."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph.code)
        return graph.forward

    part = load_encoder("muq-nano").model.conformer.layers[0].ffn1
    x = torch.from_numpy(rng.standard_normal((1, 7, 192), np.float32))
    torch.compiler.reset()
    compiled = torch.compile(part, backend=backend)(x)
    torch.testing.assert_close(compiled, part(x), rtol=1e-4, atol=1e-5)
    assert seen
    assert "mkldnn" not in "".join(seen)
