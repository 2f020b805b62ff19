"""tune.encoders.plugin and tune.system.plugins: an encoder of one's own, from a file."""

import sys
from textwrap import dedent

import numpy as np
import pytest
import torch
from conftest import tone
from soundfile import write

from tune.encoders import plugin
from tune.encoders.base import EncoderError
from tune.encoders.registry import load_encoder
from tune.segments.rules import parse_rule
from tune.store.encode import encode_tracks
from tune.store.store import Store

MODULE = """
    import torch
    from torch import nn
    from torchaudio.transforms import MelSpectrogram

    class Mine(nn.Module):
        sample_rate = 16_000

        def __init__(self):
            super().__init__()
            self.mel = MelSpectrogram(self.sample_rate, n_fft=400, hop_length=320, n_mels=32)
            self.norm = nn.BatchNorm1d(32)
            self.net = nn.Sequential(nn.Conv1d(32, 8, 3, padding=1), nn.Dropout(0.5))
            self.register_buffer("scale", torch.ones(1), persistent=False)

        def forward(self, audio):
            x = self.norm((self.mel(audio) + 1e-4).log())
            return [x.transpose(1, 2), (self.net(x) * self.scale).relu().transpose(1, 2)]
"""


def save(folder, text, name="mine.py"):
    """Write a file of a user's; return its path."""
    (folder / name).write_text(dedent(text))
    return folder / name


def noise(rng, n=2, samples=24_000):
    """Quiet noise (n, samples)."""
    return rng.standard_normal((n, samples)).astype(np.float32) * np.float32(0.1)


def test_a_module_is_measured_frozen_and_the_same_each_time(tmp_path, rng):
    spec = f"{save(tmp_path, dedent(MODULE) + 'OTHER = torch.randn(3)')}:Mine"
    encoder = load_encoder(spec)
    assert encoder.name == "mine.py:Mine"
    assert (encoder.sample_rate, encoder.n_layers, encoder.sizes) == (16_000, 1, [32, 8])
    assert encoder.frame_rate == 50
    assert encoder.own_code
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())
    audio = noise(rng)
    out = encoder.embed(audio, [1])
    assert out.shape == (2, 1, 1, 8)
    again = load_encoder(spec)  # its random weights come from a fixed seed
    assert again.fingerprint == encoder.fingerprint
    assert (again.embed(audio, [1]) == out).all()
    assert encoder.embed(audio, [0], frame_rate=10).shape == (2, 16, 1, 32)
    # By hand: the mean over time of what the module itself returns.
    with torch.inference_mode():
        own = encoder.model(torch.from_numpy(audio))[1].mean(1).numpy()
    np.testing.assert_array_equal(out[:, 0, 0], own)


def test_half_precision_casts_parameters_and_keeps_the_direction(tmp_path, rng):
    spec = f"{save(tmp_path, MODULE)}:Mine"
    full, half = load_encoder(spec), load_encoder(spec, precision="bf16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.model.mel.spectrogram.window.dtype == torch.float32
    assert {p.dtype for p in full.model.parameters()} == {torch.float32}
    assert half.fingerprint == full.fingerprint
    a, b = (e.embed(noise(rng, 1), [1]).ravel() for e in (full, half))
    assert (a @ b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    assert half.redone == 0


def test_a_callable_runs_in_float32_and_pooled_states_have_no_frames(tmp_path, rng):
    path = save(
        tmp_path,
        """
        def loud(audio):
            return audio.unfold(1, 800, 800).square().mean(2, keepdim=True)
        loud.sample_rate = 16_000

        class Pooled:
            sample_rate = 8_000
            max_seconds = 3.0
            def __call__(self, audio):
                return audio.std(1, keepdim=True)
    """,
    )
    loud = load_encoder(f"{path}:loud", precision="bf16")
    assert (loud.precision, loud.frame_rate, loud.embedding_dim) == ("no", 20.0, 1)
    audio = noise(rng)
    np.testing.assert_allclose(loud.embed(audio, [0]).ravel(), (audio**2).mean(1), rtol=1e-5)
    pooled = load_encoder(f"{path}:Pooled")
    assert (pooled.frame_rate, pooled.max_seconds) == (None, 3.0)
    with pytest.raises(ValueError, match="don't follow time: it has --tokens segment only"):
        pooled.embed(audio, [0], frame_rate=1.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "mine.py has no 'missing'"),
        ("no_rate", "must state its sample_rate, a whole number of Hz"),
        ("float_rate", r"must state its sample_rate, .* got 16000\.0"),
        ("flat", r"must return \(B, T, D\), or \(B, D\) for pooled states: got \(2,\)"),
        ("other_batch", r"must return .*: got \(1, 7\) for audio \(2, "),
        ("words", "must return a tensor .* got str"),
        ("empty", "returns an empty list of layers"),
        ("nan", "gives NaN or infinite states for noise"),
        ("grows", "gives layers of .* values for 4 s of noise, but of"),
        ("NUMBER", "is neither a subclass of .* but int"),
        ("Needs", "is a class that can't be called without arguments .*size"),
    ],
)
def test_what_is_no_encoder_is_said_in_one_line(tmp_path, name, message):
    path = save(
        tmp_path,
        """
        import torch
        NUMBER = 3
        def no_rate(audio): return audio
        def float_rate(audio): return audio
        def flat(audio): return audio.mean(1)
        def other_batch(audio): return torch.ones(1, 7)
        def words(audio): return "states"
        def empty(audio): return []
        def nan(audio): return audio[:, :5] * float("nan")
        def grows(audio): return audio[:, None]
        float_rate.sample_rate = 16e3
        for f in (flat, other_batch, words, empty, nan, grows):
            f.sample_rate = 16_000
        class Needs(torch.nn.Module):
            sample_rate = 16_000
            def __init__(self, size): super().__init__()
    """,
    )
    with pytest.raises(EncoderError, match=message) as caught:
        load_encoder(f"{path}:{name}")
    assert "\n" not in str(caught.value)


def test_no_such_file_or_module(tmp_path):
    with pytest.raises(EncoderError, match=r"--encoder .*none\.py can't be read: No such file"):
        load_encoder(f"{tmp_path}/none.py:Mine")
    with pytest.raises(EncoderError, match=r"the module no_such_package\.module can't be loaded"):
        load_encoder("no_such_package.module:Mine")
    with pytest.raises(EncoderError, match="--revision belongs to a model on the hub"):
        load_encoder(f"{save(tmp_path, MODULE)}:Mine", revision="main")


def test_states_that_change_their_shape_later_are_an_error(tmp_path, rng):
    path = save(
        tmp_path,
        """
        def fickle(audio):
            return audio.unfold(1, 800, 800) if audio.shape[1] > 15_000 else audio[:, None, :800]
        fickle.sample_rate = 16_000
    """,
    )
    encoder = load_encoder(f"{path}:fickle")
    encoder.embed(noise(rng, 1, 40_000), [0])
    with pytest.raises(EncoderError, match=r"gives 1 states for 0\.75 s, about 15 were expected"):
        encoder.embed(noise(rng, 1, 12_000), [0])


def test_any_change_of_code_or_state_changes_the_fingerprint(tmp_path):
    path = save(tmp_path, MODULE)
    helper = save(tmp_path, "def gain():\n    return 2\n", "gain_of_mine.py")
    prints = [load_encoder(f"{path}:Mine").fingerprint]

    def changed(text):
        path.write_text(dedent(text))
        prints.append(load_encoder(f"{path}:Mine").fingerprint)
        assert len(set(prints)) == len(prints)

    changed(MODULE.replace(".relu()", ".abs()"))
    changed(MODULE.replace("torch.ones(1)", "torch.zeros(1)"))
    changed("import gain_of_mine\n" + dedent(MODULE))
    helper.write_text("def gain():\n    return 3\n")
    prints.append(load_encoder(f"{path}:Mine").fingerprint)
    assert len(set(prints)) == len(prints)
    assert sys.modules["gain_of_mine"].gain() == 3  # and what runs is the new one
    other = save(tmp_path / "..", MODULE, "mine.py")  # elsewhere, the same text: the same encoder
    assert load_encoder(f"{other}:Mine").fingerprint == prints[0]


def test_state_is_parameters_all_buffers_and_simple_attributes(tmp_path):
    class Holder:
        pass

    def digest(**values):
        holder = Holder()
        vars(holder).update(values)
        return plugin.state_digest(holder)

    linear = torch.nn.Linear(2, 2)
    before = digest(model=linear, hop=3)
    assert before == digest(model=linear, hop=3)
    assert before != digest(model=linear, hop=4)
    assert digest(x=[1.0, torch.ones(2)]) != digest(x=[1.0, torch.zeros(2)])
    assert digest(x=np.ones(2)) != digest(x=np.ones((2, 1)))
    with torch.no_grad():
        linear.bias[0] += 1e-6
    assert before != digest(model=linear, hop=3)
    conv = [torch.nn.Conv1d(1, 1, 1, stride=s) for s in (1, 2)]
    conv[1].load_state_dict(conv[0].state_dict())
    assert plugin.state_digest(conv[0]) != plugin.state_digest(conv[1])


SUBCLASS = """
    from tune.encoders import Encoder
    from gain_of_mine import gain

    class Loud(Encoder):
        sample_rate = 16_000

        def __init__(self, *, device):
            super().__init__("loud", frame_rate=20.0, n_layers=0, embedding_dim=1,
                             precision="no", device=device, fingerprint="always the same")

        def states(self, audio, layers, dtype):
            yield (audio * gain()).unfold(1, 800, 800)[..., :1].relu()
"""


def test_a_changed_module_never_meets_its_old_rows(tmp_path):
    track = tmp_path / "a.wav"
    write(track, tone(3.0, 220), 24_000)
    path, store = save(tmp_path, SUBCLASS), Store(tmp_path / "store")
    helper = save(tmp_path, "def gain():\n    return 2\n", "gain_of_mine.py")

    def encode():
        encoder = load_encoder(f"{path}:Loud")
        collection = store.collection(encoder, [0], None)
        report = encode_tracks([str(track)], encoder, parse_rule("1"), store, collection)
        return report.encoder_passes, collection.read(*report.rows[str(track)]).tokens

    passes, first = encode()
    assert passes == 3
    assert encode()[0] == 0
    path.write_text(dedent(SUBCLASS).replace(".relu()", ".abs()"))
    passes, second = encode()
    assert passes == 3
    assert not (first == second).all()
    helper.write_text("def gain():\n    return 4\n")
    passes, third = encode()
    assert passes == 3
    np.testing.assert_allclose(third, 2 * second, rtol=1e-6)
    helper.write_text("def gain():\n    return 2\n")
    path.write_text(dedent(SUBCLASS))
    assert encode()[0] == 0  # back to where it was: its rows are still there


def test_a_subclass_that_takes_a_precision_has_one_fingerprint(tmp_path):
    path = save(
        tmp_path,
        """
        from tune.encoders import Encoder
        import torch

        class Half(Encoder):
            def __init__(self, name, *, precision, device):
                super().__init__(name, frame_rate=30.0, n_layers=0, embedding_dim=4,
                                 precision=precision, device=device, fingerprint="1")
                self.model = torch.nn.Linear(800, 4).to(torch.bfloat16 if precision == "bf16"
                                                        else torch.float32)

            def states(self, audio, layers, dtype):
                yield self.model(audio.unfold(1, 800, 800).to(self.model.weight.dtype))
    """,
    )
    full, half = (load_encoder(f"{path}:Half", precision=p) for p in ("no", "bf16"))
    assert half.precision == "bf16"
    assert half.model.weight.dtype == torch.bfloat16
    assert full.fingerprint == half.fingerprint
    with pytest.raises(EncoderError, match="--compile is made for MuQ"):
        load_encoder(f"{path}:Half", compile=True)


def test_installed_packages_bring_encoders(tmp_path, monkeypatch):
    save(tmp_path, MODULE, "their_encoders.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tune.encoders]\ntheirs = their_encoders:Mine\n")
    encoder = load_encoder("theirs")
    assert (encoder.name, encoder.embedding_dim) == ("theirs", 8)
    assert load_encoder("their_encoders:Mine").fingerprint == encoder.fingerprint
    with pytest.raises(EncoderError, match="unknown encoder 'others'"):
        load_encoder("others")
