"""Models with code of their own: all buffers set, the same numbers twice, MERT-v2's shape."""

import json

import mert_v2
import numpy as np
import pytest
import torch
from conftest import make_task
from safetensors.torch import load_file
from transformers import AutoModel

import train_probe
from tune.encoders.base import EncoderError, resolve_layers
from tune.encoders.check import main
from tune.encoders.registry import ENCODERS, load_encoder
from tune.segments.rules import parse_rule
from tune.store.encode import check_rules_fit

PINNED = ENCODERS["mert-v2-30s"].commit


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """A place of its own for the code that transformers copies."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )


@pytest.fixture
def folder(tmp_path):
    """A small MERT-v2."""
    return mert_v2.save(tmp_path / "small")


def load(folder, **kwargs):
    """Load a model whose code is trusted."""
    return load_encoder(str(folder), trust_remote_code=True, **kwargs)


def segments(seconds=1.3, n=3):
    """Segments of noise at 24 kHz."""
    rng = np.random.default_rng(5)
    return rng.standard_normal((n, round(seconds * 24_000)), np.float32) * np.float32(0.3)


def own_states(folder, audio):
    """Hidden states as the code and the weights say, without a loader of transformers."""
    model = mert_v2.own_model(folder)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    n = audio.shape[1] // 960 * 960
    with torch.inference_mode():
        return model(torch.from_numpy(audio[:, :n]), output_hidden_states=True).hidden_states


def test_transformers_leaves_buffers_that_are_not_saved_unset_and_this_does_not(folder):
    encoder = load(folder)
    expected = 1 / 10_000 ** (torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(encoder.model.embed_positions.inv_freq, expected)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        theirs = AutoModel.from_pretrained(folder, trust_remote_code=True)
    finally:
        torch.use_deterministic_algorithms(False)
    # When this no longer holds, transformers has mended it, and `remote_code` may go.
    assert not torch.allclose(theirs.embed_positions.inv_freq, expected)


def test_layers_are_numbered_by_their_block_and_padding_is_masked(folder):
    encoder, audio = load(folder), segments()
    assert (encoder.n_layers, encoder.first_layer, encoder.frame_rate) == (3, 0, 25.0)
    assert (encoder.sample_rate, encoder.embedding_dim) == (24_000, 16)
    own = own_states(folder, audio)  # of the audio alone: no padding is there to be masked
    assert own[0].shape == (3, 32, 16)
    found = encoder.embed(audio, [1, 2, 3])[:, 0]
    for k in range(3):
        np.testing.assert_allclose(found[:, k], own[k].mean(1), atol=1e-6)
    assert encoder.embed(audio, [0]).shape == (3, 1, 1, 16)
    assert encoder.embed(audio, [3], frame_rate=25).shape[1] == 32
    assert resolve_layers("all", encoder.n_layers, encoder.first_layer) == [0, 1, 2, 3]


@pytest.mark.parametrize("loop", [mert_v2.PLAIN_LOOP, mert_v2.COUNTED_LOOP])
def test_layers_above_are_dropped_where_the_code_allows_it(tmp_path, loop):
    folder = mert_v2.save(tmp_path / "m", loop=loop)
    encoder, audio = load(folder), segments()
    expected = encoder.embed(audio, [2])
    encoder.keep_layers(2)
    assert len(encoder.model.layers) == (2 if loop == mert_v2.PLAIN_LOOP else 3)
    np.testing.assert_array_equal(encoder.embed(audio, [2]), expected)


def test_half_precision_leaves_the_rotary_frequencies_alone(folder):
    half, audio = load(folder, precision="bf16"), segments()
    assert half.model.embed_positions.inv_freq.dtype == torch.float32
    assert half.model.project.weight.dtype == torch.bfloat16
    one, two = (e.embed(audio, [3])[:, 0, 0] for e in (load(folder), half))
    cosine = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize(
    ("frequencies", "message"),
    [
        (mert_v2.UNSET, r"its code never sets the buffer embed_positions\.inv_freq"),
        (mert_v2.RANDOM, r"loaded twice and gives other numbers \(embed_positions\.inv_freq dif"),
    ],
)
def test_a_model_that_is_not_the_same_twice_is_refused(tmp_path, frequencies, message):
    folder = mert_v2.save(tmp_path / "m", frequencies=frequencies)
    with pytest.raises(EncoderError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_all_buffers_are_part_of_the_fingerprint(tmp_path):
    one = load(mert_v2.save(tmp_path / "a"))
    assert load(mert_v2.save(tmp_path / "b")).fingerprint == one.fingerprint
    # A number that the code takes from elsewhere: neither the file nor the weights differ.
    place = tmp_path / "base.txt"
    place.write_text("10000")
    code = (
        f"inv_freq = 1.0 / float(open({str(place)!r}).read()) ** (torch.arange(0, size, 2) / size)"
    )
    folder = mert_v2.save(tmp_path / "c", frequencies=code)
    first = load(folder).fingerprint
    assert load(folder).fingerprint == first
    place.write_text("20000")
    assert load(folder).fingerprint != first


def test_weights_that_do_not_fit_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(EncoderError, match=r"don't fit the configuration: \d+ are missing"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(EncoderError, match=r"don't fit the configuration: .*of another shape"):
        load(folder)


def test_an_extractor_whose_states_do_not_follow_time_is_refused(folder):
    code = (folder / "feature_extraction_mert2.py").read_text()
    code = code.replace("n = len(audio) // self.hop * self.hop", "n = 9600")
    (folder / "feature_extraction_mert2.py").write_text(code)
    with pytest.raises(EncoderError, match=r"Mert2FeatureExtractor isn't known, .*follow time"):
        load(folder)


def test_the_check_loads_twice_and_gives_its_verdict(folder, capsys):
    main(["check", str(folder), "--trust_remote_code"])
    out = capsys.readouterr().out
    assert "small: layers 0 to 3 of 16 values, 25 states a second, 24000 Hz" in out
    assert "loaded twice" in out
    assert "the same to the bit" in out
    assert "licence of the weights: CC-BY-NC 4.0" in out
    assert out.rstrip().endswith("fit for use")


def test_mert_v2_rows_are_pinned_and_loaded_from_the_hub_and_then_without_it(hub, folder, caplog):
    caplog.set_level("INFO")
    hub.add("m-a-p/MERT-v2-30s", "model", folder, commit=PINNED)
    newer = hub.add("m-a-p/MERT-v2-30s", "model", folder, commit="f" * 40)
    with pytest.raises(EncoderError, match=r"mert-v2-30s brings its own code .* only with --trust"):
        load_encoder("mert-v2-30s")
    assert not any(p.endswith((".safetensors", ".py")) for p in hub.downloads())
    encoder = load_encoder("mert-v2-30s", trust_remote_code=True)
    assert (encoder.revision, encoder.licence) == (PINNED, "CC-BY-NC 4.0")
    assert "downloading m-a-p/MERT-v2-30s (about 2.5 GB, weights CC-BY-NC 4.0)" in caplog.text
    assert f"--revision={PINNED}" in caplog.text
    other = load_encoder("mert-v2-30s", trust_remote_code=True, revision="main")
    assert other.revision == newer
    asked = len(hub.asked)
    again = load_encoder("mert-v2-30s", trust_remote_code=True)
    assert len(hub.asked) == asked
    hub.stop()
    offline = load_encoder("mert-v2-30s", trust_remote_code=True)
    audio = segments()
    for e in (again, offline):
        assert e.fingerprint == encoder.fingerprint
        np.testing.assert_array_equal(e.embed(audio, [3]), encoder.embed(audio, [3]))


def test_fullsong_takes_30_to_360_seconds(hub, folder):
    hub.add("m-a-p/MERT-v2-FullSong", "model", folder)
    encoder = load_encoder("mert-v2-fullsong", trust_remote_code=True)
    assert (encoder.min_seconds, encoder.max_seconds) == (29.5, 360.0)
    assert encoder.embed(segments(30, 1), [1]).shape == (1, 1, 1, 16)
    with pytest.raises(ValueError, match=r"--seg 10: mert-v2-fullsong takes 29\.5 to 360 s"):
        check_rules_fit([parse_rule("10", min_tail_s=30)], None, encoder)
    with pytest.raises(ValueError, match=r"--seg 400: mert-v2-fullsong takes at most 360 s"):
        check_rules_fit([parse_rule("400", min_tail_s=30)], None, encoder)
    with pytest.raises(ValueError, match=r"takes at most 360 s, got a segment of 361 s"):
        encoder.embed(segments(361, 1), [1])


@pytest.mark.parametrize(
    ("name", "seconds", "cut"),
    [
        ("mert-v2-30s", 2.2, ["--seg=1", "--min_tail=0.5"]),
        ("mert-v2-fullsong", 30.1, ["--seg=30", "--min_tail=29.5"]),
    ],
)
def test_train_probe_with_mert_v2_from_the_hub_and_offline(
    hub, folder, tmp_path, monkeypatch, capsys, name, seconds, cut
):
    row = ENCODERS[name]
    commit = hub.add(row.repo, "model", folder, commit=row.commit)
    task = make_task(tmp_path / "tones", seconds=seconds, n=(4, 2, 4))
    given = [f"--task={task}", f"--encoder={name}", "--trust_remote_code", *cut]
    given += ["--layer=all", "--report_to=none", "--epochs=2"]
    monkeypatch.chdir(tmp_path)
    asked = []
    for run in ("first", "second", "offline"):
        if run == "offline":
            hub.stop()
        where = [f"--name={run}", f"--store={tmp_path / f'store-{run}'}"]
        train_probe.main(train_probe.parse_args([*given, *where]))
        asked.append(len(hub.asked))
    assert asked[0] == asked[1] > 0
    first, second, offline = (
        json.loads((tmp_path / "runs" / run / "result.json").read_text())
        for run in ("first", "second", "offline")
    )
    assert first["encoder_revision"] == commit
    assert first["encoder_licence"] == "CC-BY-NC 4.0"
    assert f"licence    CC-BY-NC 4.0 (the weights of {name})" in capsys.readouterr().out
    assert first["metrics"] == second["metrics"] == offline["metrics"]
    assert list(first["layer_scores"]) == ["0", "1", "2", "3"]
