"""musicnn: its checkpoint's format, and its network against NumPy and against TensorFlow's output.

The package's weights are needed for the golden values only. The other tests write a package with
random weights, whose `__init__.py` raises: it is read and never imported.
"""

import importlib.util
import json
import os
import struct
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from conftest import make_task, run_probe
from musicnn_golden import synthetic_audio
from numpy.lib.stride_tricks import sliding_window_view

from tune.encoders import musicnn
from tune.encoders.base import EncoderError
from tune.encoders.check import check_encoder
from tune.encoders.registry import load_encoder
from tune.encoders.tensor_bundle import MAGIC, masked_crc32c, read_bundle

GOLDEN = Path(__file__).with_name("musicnn.golden.npz")
FLOAT32, INT32 = 1, 3  # as TensorFlow numbers its types
ALL = range(6)


def varint(value):
    """A number in 7 bits a byte, the lowest first."""
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def sized(number, data):
    """A field of a protocol buffer that holds bytes."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def block(rows):
    """A LevelDB block, its checksum included: every third key is written out in full."""
    out, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(rows):
        shared = 0
        if i % 3 == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(last), len(key)) and last[shared] == key[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out, last = out + key[shared:] + value, key
    restarts = restarts or [0]
    out += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)) + b"\0"
    return out + struct.pack("<I", masked_crc32c(out))


def write_bundle(prefix, tensors, *, dtype=FLOAT32, rows_a_block=7):
    """Write a checkpoint as TensorFlow's BundleWriter does."""
    rows, data = [(b"", b"\x08\x01\x1a\x02\x08\x01")], b""  # header: one file, little-endian
    for name, value in sorted(tensors.items()):
        raw = value.astype("<f4").tobytes()
        shape = b"".join(sized(2, b"\x08" + varint(n)) for n in value.shape)
        place = b"\x20" + varint(len(data)) if data else b""  # a zero is left out
        crc = b"\x35" + struct.pack("<I", masked_crc32c(raw))
        entry = b"\x08" + varint(dtype) + sized(2, shape) + place + b"\x28" + varint(len(raw)) + crc
        rows.append((name.encode(), entry))
        data += raw
    table, index = b"", []

    def add(content):
        nonlocal table
        handle = varint(len(table)) + varint(len(content) - 5)
        table += content
        return handle

    for i in range(0, len(rows), rows_a_block):
        part = rows[i : i + rows_a_block]
        index.append((part[-1][0], add(block(part))))
    footer = add(block([])) + add(block(index))
    Path(f"{prefix}.index").write_bytes(table + footer.ljust(40, b"\0") + MAGIC)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)


def random_weights(seed):
    """Tensors with the checkpoint's names and shapes, and one that is not needed."""
    rng = np.random.default_rng(seed)
    shapes = [(7, 38, 1, 204), (7, 67, 1, 204), *((n, 1, 1, 51) for n in (128, 64, 32))]
    shapes += [(7, 561, 1, 64), (7, 64, 1, 64), (7, 64, 1, 64)]
    out = {"dense/kernel": rng.standard_normal((1506, 200)) * 0.03, "dense_1/bias": np.zeros(50)}
    out["dense/bias"] = rng.standard_normal(200) * 0.1
    for i, shape in enumerate(shapes):
        name = f"conv2d_{i}" if i else "conv2d"
        scale = (2 / np.prod(shape[:3])) ** 0.5
        out[f"{name}/kernel"] = rng.standard_normal(shape) * scale
        out[f"{name}/bias"] = rng.standard_normal(shape[3]) * 0.1
    for i, n in enumerate([1, *(shape[3] for shape in shapes), 1506, 200]):
        name = f"batch_normalization_{i}" if i else "batch_normalization"
        out[f"{name}/gamma"] = rng.uniform(-1.5, 1.5, n)  # trained ones have both signs
        for key in ("beta", "moving_mean"):
            out[f"{name}/{key}"] = rng.standard_normal(n) * 0.2
        out[f"{name}/moving_variance"] = rng.uniform(0.5, 2, n)
    return {key: value.astype(np.float32) for key, value in out.items()}


@pytest.fixture(scope="module")
def weights():
    """The random weights of both checkpoints."""
    return {"MSD_musicnn": random_weights(1), "MTT_musicnn": random_weights(2)}


@pytest.fixture(scope="module")
def site(tmp_path_factory, weights):
    """A folder of installed packages: a musicnn with random weights, which can't be imported."""
    folder = tmp_path_factory.mktemp("site")
    for name, tensors in weights.items():
        (folder / "musicnn" / name).mkdir(parents=True)
        write_bundle(f"{folder / 'musicnn' / name}/", tensors)
    (folder / "musicnn" / "__init__.py").write_text("raise RuntimeError('musicnn was executed')\n")
    return folder


@pytest.fixture(scope="module")
def encoder(site):
    """The encoder with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        return load_encoder("musicnn")


def states_of(encoder, audio, layers=ALL):
    """Hidden states of a batch (B, n_samples), a layer each."""
    with torch.inference_mode():
        return [s.numpy() for s in encoder.states(torch.from_numpy(audio), layers, torch.float32)]


def test_a_bundle_is_read_as_it_was_written(tmp_path, rng):
    tensors = {f"layer_{i}/kernel": rng.standard_normal((i, 3), np.float32) for i in range(1, 30)}
    tensors["layer_1/number"] = np.float32(2.5).reshape(())
    tensors["mean"] = np.zeros((300, 1, 2), np.float32)
    write_bundle(tmp_path / "model", tensors)
    found = read_bundle(tmp_path / "model")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)
    assert list(read_bundle(tmp_path / "model", ["mean"])) == ["mean"]
    with pytest.raises(ValueError, match="holds no median"):
        read_bundle(tmp_path / "model", ["median"])


def test_every_flipped_byte_of_a_bundle_is_found(tmp_path, rng):
    tensors = {name: rng.standard_normal(5, np.float32) for name in ("a", "ab", "b")}
    write_bundle(tmp_path / "model", tensors, rows_a_block=2)
    index, data = tmp_path / "model.index", tmp_path / "model.data-00000-of-00001"
    table_bytes = len(index.read_bytes())
    empty = index.read_bytes().index(block([]))  # the metaindex, which isn't read
    unread = range(empty, empty + len(block([])))
    for file, n in ((index, table_bytes - 48), (data, 60)):
        whole = file.read_bytes()
        for at in range(n):
            if file == index and at in unread:
                continue
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            with pytest.raises(ValueError, match="damaged"):
                read_bundle(tmp_path / "model")
        for n_left in (0, 10, n // 2, n - 1):
            file.write_bytes(whole[:n_left])
            with pytest.raises(ValueError, match="damaged"):
                read_bundle(tmp_path / "model")
        file.write_bytes(whole)
    assert read_bundle(tmp_path / "model").keys() == tensors.keys()


def test_other_types_than_float32_are_refused(tmp_path):
    write_bundle(tmp_path / "model", {"steps": np.zeros(2, np.float32)}, dtype=INT32)
    with pytest.raises(ValueError, match="steps is no whole float32 tensor"):
        read_bundle(tmp_path / "model")


def test_the_log_mel_is_librosas(encoder):
    audio = synthetic_audio(1.3)
    mel = librosa.feature.melspectrogram(
        y=audio, sr=16_000, hop_length=256, n_fft=512, n_mels=96, pad_mode="reflect"
    )
    found = encoder.log_mel(torch.from_numpy(audio)[None])[0]
    np.testing.assert_allclose(found, np.log10(10_000 * mel.T + 1), atol=1e-4)


def numpy_states(weights, x):
    """The layers of one patch (F, 96), written after the package's models.py."""
    w = {key: value.astype(float) for key, value in weights.items()}

    def numbered(name, i):
        return f"{name}_{i}" if i else name

    def normalise(i, x):  # the last dimension
        g, b, m, v = (
            w[f"{numbered('batch_normalization', i)}/{key}"]
            for key in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - m) / np.sqrt(v + 1e-3) * g + b

    def convolve(i, x):  # (F, bands) -> (F, bands - width + 1, D)
        kernel = w[f"{numbered('conv2d', i)}/kernel"][:, :, 0]
        n = len(kernel)
        x = np.pad(x, (((n - 1) // 2, n // 2), (0, 0)))
        windows = sliding_window_view(x, kernel.shape[:2])
        y = np.tensordot(windows, kernel, 2) + w[f"{numbered('conv2d', i)}/bias"]
        return normalise(i + 1, np.maximum(y, 0))

    x = normalise(0, x[..., None])[..., 0]
    states = [np.concatenate([convolve(i, x).max(1) for i in range(5)], 1)]
    states.append(convolve(5, states[0])[:, 0])
    states.append(convolve(6, states[1])[:, 0] + states[1])
    states.append(convolve(7, states[2])[:, 0] + states[2])
    states.append(np.concatenate(states, 1))
    pooled = np.stack([states[4].max(0), states[4].mean(0)], 1).ravel()  # by turns
    dense = np.maximum(normalise(9, pooled) @ w["dense/kernel"] + w["dense/bias"], 0)
    return [*states, np.tile(normalise(10, dense), (len(x), 1))]


def test_layers_equal_those_of_numpy(encoder, weights):
    audio = synthetic_audio(0.5)[None]
    log_mel = encoder.log_mel(torch.from_numpy(audio))[0].numpy().astype(float)
    expected = numpy_states(weights["MSD_musicnn"], log_mel)
    for k, (found, state) in enumerate(zip(states_of(encoder, audio), expected, strict=True)):
        assert found[0].shape == state.shape == (32, encoder.sizes[k])
        np.testing.assert_allclose(found[0], state, atol=1e-4 * np.abs(state).max())


@pytest.mark.parametrize("layers", [[0], [4], [5], [1, 2, 3]])
def test_layers_asked_for_alone_are_the_same(encoder, layers):
    audio = synthetic_audio(0.5)[None]
    whole = states_of(encoder, audio)
    for k, state in zip(layers, states_of(encoder, audio, layers), strict=True):
        np.testing.assert_allclose(state, whole[k], atol=1e-5 * np.abs(whole[k]).max())
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.5"):
        states_of(encoder, audio, [6])


@pytest.mark.parametrize(
    ("n_frames", "n_patches", "n_rest"), [(1, 1, 0), (186, 1, 0), (187, 1, 0), (188, 2, 1)]
)
def test_patches_hold_every_frame_once_and_no_padding(n_frames, n_patches, n_rest):
    frames = torch.arange(2.0 * n_frames).reshape(2, n_frames, 1)
    patches, found = musicnn.cut_patches(frames)
    assert patches.shape == (2, n_patches, min(n_frames, 187), 1)
    assert found == n_rest
    whole = patches[:, : n_patches - bool(n_rest)].flatten(1, 2)
    rest = patches[:, -1, len(patches[0, 0]) - n_rest :]
    torch.testing.assert_close(torch.cat([whole, rest], 1), frames)


def test_a_segments_frames_are_those_of_its_patches(encoder):
    audio = synthetic_audio(6.5)[None]  # 407 frames: two patches and 33 more
    log_mel = encoder.log_mel(torch.from_numpy(audio))
    found = states_of(encoder, audio)
    with torch.inference_mode():
        patches = [
            encoder.model(log_mel[:, start : start + 187], ALL) for start in (0, 187, 407 - 187)
        ]
    for k, state in enumerate(found):
        parts = [patches[0][k], patches[1][k], patches[2][k][:, -33:]]
        expected = torch.cat(parts, 1).numpy()
        np.testing.assert_allclose(state, expected, atol=1e-5 * np.abs(expected).max())


def test_the_check_finds_it_fit_for_use(encoder):
    findings = check_encoder(encoder)
    assert len(findings) == 5
    assert [item.what for item in findings if not item.ok] == []


@pytest.mark.parametrize("seconds", [0.1, 3.2])
def test_a_segment_does_not_depend_on_its_batch(encoder, seconds):
    audio = synthetic_audio(seconds)
    batch = np.stack([audio, audio[::-1] * np.float32(0.3), np.zeros_like(audio)])
    together = states_of(encoder, batch)
    for i, segment in enumerate(batch):
        for k, alone in enumerate(states_of(encoder, segment[None])):
            limit = 1e-5 * np.abs(together[k]).max()
            np.testing.assert_allclose(together[k][i], alone[0], atol=limit)


def test_layers_of_several_sizes_are_taken_one_at_a_time(encoder):
    audio = synthetic_audio(1.0)[None]
    assert encoder.embed(audio, [1, 2, 3], frame_rate=12.5).shape == (1, 13, 3, 64)
    with pytest.raises(ValueError, match="561, 64, 64, 64, 753, 200 values: take one, from 0 to 5"):
        encoder.embed(audio, ALL)


def test_each_checkpoint_has_its_own_numbers(encoder, site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    other, again = load_encoder("musicnn-mtt"), load_encoder("musicnn")
    assert again.fingerprint == encoder.fingerprint != other.fingerprint
    audio = synthetic_audio(1.0)[None]
    assert not np.allclose(encoder.embed(audio, [5]), other.embed(audio, [5]))


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r"pip install --no-deps musicnn==0\.1\.0$"):
        load_encoder("musicnn")


def test_a_damaged_or_other_checkpoint_is_told_with_its_folder(tmp_path, weights, monkeypatch):
    folder = tmp_path / "musicnn" / "MSD_musicnn"
    folder.mkdir(parents=True)
    (tmp_path / "musicnn" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    advice = "pip install --no-deps --force-reinstall musicnn==0.1.0"
    with pytest.raises(EncoderError, match=rf"MSD_musicnn.*No such file.*{advice}"):
        load_encoder("musicnn")
    other = weights["MSD_musicnn"] | {"dense/bias": np.zeros(500, np.float32)}
    write_bundle(f"{folder}/", other)
    with pytest.raises(EncoderError, match=r"MSD_musicnn.*dense\.bias.*500"):
        load_encoder("musicnn")
    data = folder / ".data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(EncoderError, match=r"MSD_musicnn.*damaged"):
        load_encoder("musicnn")


def test_compile_is_refused(site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    with pytest.raises(EncoderError, match="--compile is made for MuQ"):
        load_encoder("musicnn", compile=True)


def test_train_probe_runs_with_it(tmp_path, site):
    done = run_probe(
        *("--task", make_task(tmp_path / "tones", n=(4, 2, 4)), "--encoder=musicnn", "--seg=1"),
        *("--epochs=2", "--report_to=none", "--name=r"),
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "runs" / "r" / "result.json").read_text())
    assert (result["encoder"], result["precision"]) == ("musicnn", "no")
    assert (result["cost"]["embedding_dim"], result["skipped"]) == (200, [])


@pytest.mark.parametrize("name", musicnn.CHECKPOINTS)
def test_trained_layers_and_tags_equal_those_of_the_packages_tensorflow_graph(name):
    if importlib.util.find_spec("musicnn") is None:
        pytest.skip(f"the trained weights are not here: {musicnn.INSTALL}")
    golden, checkpoint = np.load(GOLDEN), musicnn.CHECKPOINTS[name]
    encoder = load_encoder(name)
    audio = synthetic_audio()[None]
    np.testing.assert_allclose(
        encoder.log_mel(torch.from_numpy(audio))[0].mean(0), golden["log_mel"], atol=1e-4
    )
    # The package leaves out what is no whole patch.
    states = [s[0, : 2 * 187].reshape(2, 187, -1) for s in states_of(encoder, audio)]

    def expected(*keys):
        return np.concatenate([golden[f"{checkpoint}.{key}"] for key in keys], 1)

    front, middle = ("timbral", "temporal"), ("cnn1", "cnn2", "cnn3")
    for k, keys in enumerate([front, *((key,) for key in middle), front + middle]):
        np.testing.assert_allclose(states[k].mean(1), expected(*keys), atol=1e-3)
    np.testing.assert_allclose(states[4].max(1), expected("max_pool"), atol=2e-3)
    penultimate = states[5][:, 0]
    np.testing.assert_allclose(penultimate, expected("penultimate"), atol=1e-4)
    folder = Path(importlib.util.find_spec("musicnn").submodule_search_locations[0]) / checkpoint
    output = read_bundle(f"{folder}/", ["dense_1/kernel", "dense_1/bias"])
    tags = 1 / (1 + np.exp(-penultimate @ output["dense_1/kernel"] - output["dense_1/bias"]))
    np.testing.assert_allclose(tags, expected("tags"), atol=1e-5)
