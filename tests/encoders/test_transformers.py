"""Encoders of transformers and their check, with tiny models that are saved here."""

import hashlib
import json
import shutil
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, make_task, run_probe, tone
from safetensors.torch import load_file, save_file
from tiny_models import TINY, save_tiny
from transformers import AutoFeatureExtractor, AutoModel

import train_probe
from tune.audio.decode import read_audio
from tune.encoders import transformers as transformers_encoder
from tune.encoders.base import Encoder, EncoderError
from tune.encoders.check import check_encoder, main
from tune.encoders.registry import ENCODERS, EncoderRow, load_encoder
from tune.segments.rules import parse_rule
from tune.store.encode import check_lengths, encode_tracks
from tune.store.store import Store


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of all the tiny models."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(root / name, name) for name in TINY}


@pytest.fixture(scope="module")
def encoders(folders):
    """The tiny models as encoders, in float32."""
    return {name: load_encoder(str(folder)) for name, folder in folders.items()}


def batch(encoder, n=3, seconds=1.03):
    """Segments (n, samples) of noise at the encoder's rate, each half as loud as the one before."""
    rng = np.random.default_rng(7)
    audio = rng.standard_normal((n, round(seconds * encoder.sample_rate)), np.float32)
    return audio * np.float32(0.2) * np.float32(0.5) ** np.arange(n, dtype=np.float32)[:, None]


def layers_of(encoder):
    """All layers, in groups that can be asked for together."""
    layers = range(encoder.n_layers + 1)
    return [list(layers)] if encoder.sizes is None else [[k] for k in layers]


def own_states(folder, audio):
    """Hidden states as a user of transformers gets them."""
    with transformers_encoder._quiet():
        model = AutoModel.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    inputs = dict(
        extractor(list(audio), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    )
    if "input_features" not in inputs:
        inputs.pop("attention_mask", None)  # all of it is audio
    if "is_longer" in inputs:  # no segment is longer than the window: the extractor draws one
        inputs["is_longer"] = torch.zeros_like(inputs["is_longer"])
        model = model.audio_model
    model = model.encoder if model.config.is_encoder_decoder else model
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("name", TINY)
def test_hidden_states_are_those_of_transformers_layer_by_layer(name, folders, encoders):
    encoder = encoders[name]
    audio = batch(encoder)
    with torch.inference_mode():
        states = list(encoder.hidden_states(torch.from_numpy(audio), range(encoder.n_layers + 1)))
    own = own_states(folders[name], audio)
    assert len(states) == len(own) == (3 if name == "clap" else 4)
    for state, expected in zip(states, own, strict=True):
        assert state.shape == expected.shape
        assert float((state - expected).abs().max()) <= 1e-6
    assert float((own[0].mean() - own[-1].mean()).abs()) > 0


@pytest.mark.parametrize("name", TINY)
def test_batch_equals_one_by_one_and_loading_is_the_same_each_time(name, folders, encoders):
    encoder, audio = encoders[name], batch(encoders[name])
    again = load_encoder(str(folders[name]))
    assert again.fingerprint == encoder.fingerprint
    for layers in layers_of(encoder):
        together = encoder.embed(audio, layers)
        alone = np.concatenate([again.embed(segment[None], layers) for segment in audio])
        np.testing.assert_allclose(together, alone, atol=2e-6, rtol=0)
        turned = encoder.embed(audio[::-1], layers)[::-1]
        np.testing.assert_allclose(turned, together, atol=2e-6, rtol=0)
        assert together.shape == (3, 1, len(layers), encoder.embedding_dim)
    assert not encoder.untrained


@pytest.mark.parametrize("name", TINY)
def test_early_exit_and_half_precision_keep_the_numbers(name, folders, encoders):
    encoder, audio = encoders[name], batch(encoders[name])
    short = load_encoder(str(folders[name]))
    short.keep_layers(1)
    np.testing.assert_array_equal(short.embed(audio, [1]), encoder.embed(audio, [1]))
    assert short.embedding_dim == encoder.embed(audio, [1]).shape[-1]
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.1"):
        short.embed(audio, [2])
    half = load_encoder(str(folders[name]), precision="bf16")
    for layers in layers_of(encoder):
        full, rounded = encoder.embed(audio, layers), half.embed(audio, layers)
        norms = np.linalg.norm(full, axis=-1) * np.linalg.norm(rounded, axis=-1)
        assert ((full * rounded).sum(-1) / norms).min() > 0.999
        assert not np.array_equal(full, rounded)
    assert half.redone == 0


def test_rates_lengths_and_layers_are_read_from_the_model(encoders):
    def found(name):
        e = encoders[name]
        return e.sample_rate, e.frame_rate, e.n_layers, e.embedding_dim, e.max_seconds

    assert found("wav2vec2") == (16_000, 50.0, 3, 32, None)
    assert found("sew") == (16_000, 25.0, 3, 32, None)  # it averages pairs of frames
    assert found("w2v-bert") == (16_000, 50.0, 3, 32, None)
    assert found("whisper") == (16_000, 50.0, 3, 32, 2.0)
    assert found("ast") == (16_000, 10.0, 3, 32, pytest.approx((127 * 160 + 559) / 16_000))
    assert found("clap") == (48_000, None, 2, 32, 2.0)
    # Early exit is there where the layers are a stack of equal parts.
    assert [n for n, e in encoders.items() if e.path is None] == ["clap"]
    assert [n for n, e in encoders.items() if e.tied] == ["whisper"]


def test_padding_of_a_short_segment_is_left_out_of_the_average(folders, encoders):
    audio = batch(encoders["whisper"], n=2, seconds=0.905)  # 14,480 samples, 320 a position
    own = own_states(folders["whisper"], audio)
    assert own[3].shape[1] == 100
    np.testing.assert_allclose(
        encoders["whisper"].embed(audio, [3])[:, 0, 0], own[3][:, :46].mean(1), atol=1e-6
    )
    audio = batch(encoders["w2v-bert"], n=2, seconds=0.515)  # 50 frames: 25 pairs
    assert encoders["w2v-bert"].embed(audio, [3], frame_rate=50).shape[1] == 25
    audio = batch(encoders["w2v-bert"], n=2, seconds=0.525)  # 51 frames: one is padding's half
    own = own_states(folders["w2v-bert"], audio)
    assert own[3].shape[1] == 26
    np.testing.assert_allclose(
        encoders["w2v-bert"].embed(audio, [3])[:, 0, 0], own[3][:, :25].mean(1), atol=1e-6
    )
    audio = batch(encoders["ast"], n=2, seconds=0.5)  # 8,000 samples: 48 frames of 10 ms
    own = own_states(folders["ast"], audio)[2][:, 2:].numpy()  # (B, 2 bands x 12 times, D)
    # A patch at every 10th frame, 16 frames long: the middles are at 8, 18, 28, 38, 48, ...
    real = [band * 12 + time for band in range(2) for time in range(4)]
    expected = own[:, real].mean(1)
    np.testing.assert_allclose(encoders["ast"].embed(audio, [2])[:, 0, 0], expected, atol=1e-6)
    frames = encoders["ast"].embed(audio, [2], frame_rate=10)[:, :, 0]
    assert frames.shape == (2, 4, 32)
    np.testing.assert_allclose(frames[:, 1], own[:, [1, 13]].mean(1), atol=1e-6)


def test_the_shortest_segment_has_a_frame_and_silence_is_finite(encoders):
    for encoder in encoders.values():
        audio = batch(encoder, n=1, seconds=encoder.min_seconds)
        for samples in (audio, np.zeros_like(audio)):
            assert np.isfinite(encoder.embed(samples, [1])).all()


def test_claps_extractor_draws_nothing(encoders):
    audio = batch(encoders["clap"])
    np.random.seed(1)  # the generator that transformers' extractor draws from
    first = encoders["clap"].embed(audio, [2])
    np.random.seed(2)
    np.testing.assert_array_equal(encoders["clap"].embed(audio, [2]), first)


def test_layers_of_different_sizes_are_asked_for_one_by_one(encoders):
    clap = encoders["clap"]
    with pytest.raises(ValueError, match=r"layers of one size, those of clap have 16, 32, 32"):
        clap.check_layers([0, 1, 2])
    with pytest.raises(ValueError, match="layers of one size"):
        clap.embed(batch(clap), [0, 1])
    clap.check_layers([0])
    assert clap.embedding_dim == 16
    with pytest.raises(ValueError, match="don't follow time: it has --tokens segment only"):
        clap.pool_width(1.0)


def test_segments_beyond_the_window_are_refused_before_anything_is_encoded(encoders, tmp_path):
    whisper, ast = encoders["whisper"], encoders["ast"]
    with pytest.raises(ValueError, match=r"whisper takes at most 2 s, got a segment of 2\.1 s"):
        whisper.embed(batch(whisper, seconds=2.1), [3])
    assert whisper.embed(batch(whisper, seconds=2.0), [3]).shape == (3, 1, 1, 32)
    with pytest.raises(ValueError, match=r"--seg 10: whisper takes at most 2 s at once"):
        check_lengths(parse_rule("10"), whisper)
    with pytest.raises(ValueError, match=r"--max_seg 30: ast takes at most 1\.305 s"):
        check_lengths(parse_rule("structure"), ast)
    for wave, seconds in (("short", 1.5), ("long", 2.4)):
        soundfile.write(tmp_path / f"{wave}.wav", tone(seconds, 220, 44_100), 44_100)
    paths = [str(tmp_path / "short.wav"), str(tmp_path / "long.wav")]
    store = Store(tmp_path / "store")
    collection = store.collection(whisper, [3], None)
    before = whisper.passes
    with pytest.raises(ValueError, match=r"--seg full: .*long\.wav has 2\.4 s, whisper takes at"):
        encode_tracks(paths, whisper, parse_rule("full"), store, collection)
    assert whisper.passes == before
    report = encode_tracks(paths[:1], whisper, parse_rule("full"), store, collection)
    assert (len(report.rows), report.skipped) == (1, [])


def test_a_header_that_lies_about_the_length_costs_that_file_only(encoders, tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(2.4, 220, 16_000), 16_000)
    monkeypatch.setattr("tune.store.encode._header_seconds", lambda path: 1.0)
    store = Store(tmp_path / "store")
    collection = store.collection(encoders["whisper"], [3], None)
    report = encode_tracks([str(path)], encoders["whisper"], parse_rule("full"), store, collection)
    assert [item["reason"] for item in report.skipped] == [
        "too long: 2.4 s; whisper takes at most 2"
    ]


@pytest.mark.parametrize("name", TINY)
def test_files_are_decoded_and_cut_at_the_encoders_own_rate(name, encoders, tmp_path):
    encoder = encoders[name]
    path = str(tmp_path / "a.wav")
    soundfile.write(path, tone(2.5, 330, 44_100), 44_100)
    layers = [encoder.n_layers]
    store = Store(tmp_path / "store")
    encoder.check_layers(layers)
    collection = store.collection(encoder, layers, None)
    report = encode_tracks([path], encoder, parse_rule("1"), store, collection)
    row = collection.read(*report.rows[path])
    rate = encoder.sample_rate
    assert collection.key["sample_rate"] == rate
    assert row.spans == [[0, rate], [rate, 2 * rate]]  # the tail of 0.5 s is dropped
    samples = read_audio(path, rate)
    expected = encoder.embed(samples[rate : 2 * rate][None], layers)[0, 0]
    np.testing.assert_allclose(row.tokens[1], expected, atol=2e-6)


def test_the_fingerprint_follows_whatever_changes_the_numbers(folders, encoders, tmp_path):
    seen = {encoders["wav2vec2"].fingerprint}

    def changed(change):
        folder = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folders["wav2vec2"], folder)
        change(folder)
        seen.add(load_encoder(str(folder)).fingerprint)
        return len(seen)

    assert changed(lambda folder: None) == 1
    edit = {"do_normalize": False}

    def other_extractor(folder):
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | edit))

    def other_config(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_eps": 1e-3}))

    def other_weights(folder):
        weights = load_file(folder / "model.safetensors")
        weights["encoder.layers.2.final_layer_norm.bias"] += 1e-3
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    assert changed(other_extractor) == 2
    assert changed(other_config) == 3
    assert changed(other_weights) == 4


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_pickles_are_refused_or_passed_over_and_never_opened(folders, encoders, tmp_path):
    marker = tmp_path / "executed"
    folder = shutil.copytree(folders["hubert"], tmp_path / "both")
    torch.save({"w": Bomb(marker)}, folder / "pytorch_model.bin")
    assert load_encoder(str(folder)).fingerprint == encoders["hubert"].fingerprint
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"pytorch_model\.bin is a pickle, which is never load"):
        load_encoder(str(folder))
    with pytest.raises(EncoderError, match=r"once where you trust it: from transformers import"):
        load_encoder(str(folder))
    assert not marker.exists()


MODEL_CODE = """
from pathlib import Path
from transformers import HubertConfig, HubertModel
from transformers.modeling_outputs import BaseModelOutput

Path({marker!r}).touch()


class OwnConfig(HubertConfig):
    model_type = "own"


class OwnModel(HubertModel):
    config_class = OwnConfig

    def forward(self, input_values, output_hidden_states=None):
        # As MERT's code under transformers 5: written for an encoder that returned them itself.
        features = self.feature_extractor(input_values).transpose(1, 2)
        out = self.encoder(self.feature_projection(features), attention_mask=None)
        return BaseModelOutput(last_hidden_state=out[0], hidden_states=out.hidden_states)
"""


@pytest.fixture
def own_code(folders, tmp_path, monkeypatch):
    """A model with code of its own, which leaves a mark when it is executed."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    folder = shutil.copytree(folders["hubert"], tmp_path / "own")
    marker = tmp_path / "executed"
    (folder / "modeling_own.py").write_text(MODEL_CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return SimpleNamespace(folder=folder, marker=marker, config=config)


def test_a_models_own_code_is_executed_only_when_it_is_trusted(own_code, folders, caplog):
    refused = r"own brings its own code \(modeling_own\.py\), .* only with --trust_remote_code: .*"
    with pytest.raises(EncoderError, match=refused + "--revision COMMIT"):
        load_encoder(str(own_code.folder))
    assert not own_code.marker.exists()
    own_code_encoder = load_encoder(str(own_code.folder), trust_remote_code=True)
    assert own_code.marker.exists()
    assert "own: executing its own code" in caplog.text
    audio = batch(own_code_encoder)
    with torch.inference_mode():
        states = list(own_code_encoder.hidden_states(torch.from_numpy(audio), range(4)))
        with transformers_encoder._quiet():
            model = AutoModel.from_pretrained(folders["hubert"]).eval()
        own = own_states(folders["hubert"], audio)
        # The model's output, after its final norm, as in the transformers of its time.
        last = model.encoder.layer_norm(own[3])
    for state, expected in zip(states, [*own[:3], last], strict=True):
        assert float((state - expected).abs().max()) <= 1e-6
    before = own_code_encoder.fingerprint
    with (own_code.folder / "modeling_own.py").open("a") as file:
        file.write("\n# another version\n")
    assert load_encoder(str(own_code.folder), trust_remote_code=True).fingerprint != before


def test_code_that_is_not_needed_or_not_pinned_is_never_executed(own_code, encoders):
    def configure(**changes):
        (own_code.folder / "config.json").write_text(json.dumps(own_code.config | changes))

    configure(model_type="hubert")  # transformers has it
    for trust in (False, True):
        found = load_encoder(str(own_code.folder), trust_remote_code=trust)
        np.testing.assert_array_equal(
            found.embed(batch(found), [3]), encoders["hubert"].embed(batch(found), [3])
        )
    configure(auto_map={"AutoModel": "someone/else--modeling_own.OwnModel"})
    with pytest.raises(EncoderError, match=r"code of another repository \(someone/else--"):
        load_encoder(str(own_code.folder), trust_remote_code=True)
    assert not own_code.marker.exists()


def test_models_that_cannot_be_used_are_refused_with_the_reason(folders, tmp_path):
    def broken(name, change):
        folder = shutil.copytree(folders[name], tmp_path / f"broken{len(list(tmp_path.iterdir()))}")
        change(folder)
        return str(folder)

    def config(**changes):
        def change(folder):
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return change

    def drop(key):
        def change(folder):
            weights = load_file(folder / "model.safetensors")
            del weights[key]
            save_file(weights, folder / "model.safetensors", {"format": "pt"})

        return change

    key = "encoder.layers.1.feed_forward.output_dense.weight"
    for name, change, message in (
        ("hubert", lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config"),
        ("hubert", drop(key), rf"1 are missing or of another shape, the first is {key}"),
        ("hubert", config(num_hidden_layers=4), "are missing or of another shape, the first is"),
        ("hubert", config(model_type="nonsense"), "can't be loaded: ValueError: .*nonsense"),
        ("hubert", lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "can't be loaded"),
        ("hubert", lambda f: (f / "config.json").write_text("{"), "damaged: config.json"),
        (
            "whisper",
            lambda f: save_tiny(f, "whisper", chunk_length=3),
            "extractor makes 48000 samples and 16 bands, the model takes 32000 and 16",
        ),
        ("whisper", lambda f: save_tiny(f, "whisper", dither=1e-4), "adds noise .dither 0.0001"),
        (
            "ast",
            lambda f: save_tiny(f, "ast", max_length=64),
            "extractor makes 64 frames of 32 bands, the model takes 128 of 32",
        ),
        (
            "whisper",
            lambda f: shutil.copy(folders["hubert"] / "preprocessor_config.json", f),
            "a whisper model names no conv_stride and conv_kernel",
        ),
        (
            "wav2vec2",
            lambda f: shutil.copy(folders["whisper"] / "preprocessor_config.json", f),
            "is a wav2vec2 model with a WhisperFeatureExtractor, which is none of those known",
        ),
    ):
        with pytest.raises(EncoderError, match=message):
            load_encoder(broken(name, change))
    with pytest.raises(EncoderError, match="--compile is made for MuQ"):
        load_encoder(str(folders["hubert"]), compile=True)
    with pytest.raises(EncoderError, match="random weights are made for muq only"):
        load_encoder(str(folders["hubert"]), weights="random")


def test_a_hub_model_is_fetched_configuration_first_and_known_by_its_commit(hub, folders, encoders):
    commit = hub.add("someone/wavlm", "model", folders["wavlm"], ref="v1")
    encoder = load_encoder("someone/wavlm", revision="v1")
    assert (encoder.name, encoder.revision) == ("someone/wavlm", commit)
    assert encoder.fingerprint == encoders["wavlm"].fingerprint
    names = [path.rpartition("/")[2] for path in hub.downloads()]
    assert sorted(names[:2]) == ["config.json", "preprocessor_config.json"]
    assert names[2:] == ["model.safetensors"]
    asked = len(hub.asked)
    load_encoder("someone/wavlm", revision="v1")
    assert len(hub.asked) == asked  # from the cache


def test_a_hub_models_code_is_fetched_only_when_it_is_trusted(hub, own_code, caplog):
    commit = hub.add("someone/own", "model", own_code.folder)
    with pytest.raises(EncoderError, match="someone/own brings its own code"):
        load_encoder("someone/own")
    assert not any(path.endswith((".py", ".safetensors")) for path in hub.downloads())
    assert not own_code.marker.exists()
    encoder = load_encoder("someone/own", trust_remote_code=True)
    assert own_code.marker.exists()
    assert encoder.revision == commit
    assert f"--revision={commit}" in caplog.text
    for name in ("mel", "muq-nano", str(own_code.folder)):
        with pytest.raises(EncoderError, match="--revision belongs to a model on the hub"):
            load_encoder(name, revision="v1")


def test_weights_in_several_files_are_read_through_their_index(folders, encoders, tmp_path):
    folder = shutil.copytree(folders["hubert"], tmp_path / "sharded")
    with transformers_encoder._quiet():
        AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="30KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert load_encoder(str(folder)).fingerprint == encoders["hubert"].fingerprint
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(EncoderError, match=r"holds no model-00002.*, which its index names"):
        load_encoder(str(folder))


def test_musicfm_is_refused_with_the_reason():
    with pytest.raises(EncoderError, match="no package, its code would have to be copied"):
        load_encoder("musicfm")


FLAGS = ["--seg=1", "--min_tail=0.5", "--epochs=2", "--report_to=none", "--name=r"]


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_train_probe_takes_a_models_folder(name, folders, tmp_path):
    task = make_task(tmp_path / "tones", n=(4, 2, 4))
    done = run_probe(
        "--task", task, "--encoder", folders[name], *FLAGS, "--layer=all", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "runs" / "r" / "result.json").read_text())
    assert (result["encoder"], result["encoder_untrained"]) == (name, False)
    assert list(result["layer_scores"]) == ["0", "1", "2", "3"]
    assert result["cost"]["embedding_dim"] == 32
    assert result["skipped"] == []


@pytest.mark.parametrize("name", [n for n in TINY if n not in ("wav2vec2", "whisper")])
def test_train_probe_takes_every_other_models_folder(name, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = make_task(tmp_path / "tones", n=(4, 2, 4))
    given = ["--task", str(task), "--encoder", str(folders[name]), "--layer=1"]
    train_probe.main(train_probe.parse_args([*given, *FLAGS]))
    result = json.loads((tmp_path / "runs" / "r" / "result.json").read_text())
    assert (result["encoder"], result["layer"]) == (name, 1)
    assert result["segments_per_track"]["max"] >= 2
    assert result["skipped"] == []


def test_train_probe_refuses_what_the_model_cannot_take_before_it_begins(folders, tmp_path):
    for flags, message in (
        (["--encoder", str(folders["whisper"]), "--seg=10"], "--seg 10: whisper takes at most 2 s"),
        (["--encoder", str(folders["clap"]), "--seg=1", "--layer=all"], "layers of one size"),
        (["--encoder", str(folders["clap"]), "--seg=1", "--tokens=frame"], "don't follow time"),
    ):
        args = train_probe.parse_args(
            [
                *flags,
                "--task",
                str(tmp_path),
                "--report_to=none",
                "--output_dir",
                str(tmp_path / "runs"),
            ]
        )
        with pytest.raises(ValueError, match=message):
            train_probe.main(args)
    assert not (tmp_path / "runs").exists()


def test_the_check_passes_a_good_encoder_and_prints_what_it_found(folders, capsys):
    main(["check", str(folders["wavlm"])])
    out = capsys.readouterr().out
    assert "wavlm: layers 0 to 3 of 32 values, 50 states a second, 16000 Hz" in out
    for line in (
        "shapes (B, T, D)",
        "4 x (3, 99, 32)",
        "finite values",
        "batch = single",
        "the same twice",
        "bf16 = float32",
        "cost of 10 s",
    ):
        assert line in out
    assert "FAILS" not in out
    assert out.rstrip().endswith("fit for use")
    main(["list"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("muq-mulan", "mert-95m", "musicfm", "WhisperFeatureExtr"))


def test_the_check_fails_a_broken_encoder_with_code_1(folders, tmp_path, capsys):
    folder = shutil.copytree(folders["wavlm"], tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layers.1.final_layer_norm.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit) as end:
        main(["check", str(folder)])
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert "NaN or infinite" in out
    assert "not fit for use: finite values" in out


@pytest.mark.parametrize(
    ("spoil", "failed"),
    [
        (lambda s: s + 1e-3 * torch.rand_like(s), {"batch = single", "the same twice"}),
        (lambda s: s - s.mean(0, keepdim=True), {"batch = single"}),
        (lambda s: s[:, :5], {"shapes (B, T, D)"}),
        (lambda s: s.mean(1), {"shapes (B, T, D)"}),
    ],
)
def test_the_check_names_what_is_wrong(folders, spoil, failed):
    encoder = load_encoder(str(folders["hubert"]))
    states = encoder.states
    encoder.states = lambda *args: map(spoil, states(*args))
    assert {item.what for item in check_encoder(encoder) if not item.ok} >= failed


def test_the_check_sees_half_precision_that_is_off(folders, encoders):
    half = load_encoder(str(folders["wav2vec2"]), precision="bf16")
    assert all(item.ok for item in check_encoder(encoders["wav2vec2"], half))
    with torch.no_grad():
        half.model.encoder.layers[2].final_layer_norm.bias += 3
    wrong = [item for item in check_encoder(encoders["wav2vec2"], half) if not item.ok]
    assert [item.what for item in wrong] == ["bf16 = float32"]
    assert "(layer 3)" in wrong[0].found


def test_the_encoder_that_contributing_teaches_passes_its_check(monkeypatch, capsys):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    known = {"Encoder": Encoder, "EncoderRow": EncoderRow, "hashlib": hashlib}
    start, row = text.index("    class LoudnessEncoder"), text.index('    "loudness": EncoderRow')
    exec(textwrap.dedent(text[start:row]), known)
    rows = eval("{" + text[row : text.index("\n", row)] + "}", known)
    monkeypatch.setitem(ENCODERS, "loudness", rows["loudness"])
    main(["check", "loudness"])
    assert "fit for use" in capsys.readouterr().out
