"""tune.store.spot_check: an encoder with code of its own is compared with a stored row, once."""

import numpy as np
import pytest
from conftest import tone
from soundfile import write

from tune.encoders.registry import load_encoder
from tune.segments.rules import parse_rule
from tune.store import encode
from tune.store.encode import encode_tracks
from tune.store.store import Store

# What it multiplies by is read at each call: nothing that a fingerprint could cover.
MODULE = """
from pathlib import Path

def scaled(audio):
    x = audio.unfold(1, 800, 800)[..., :4]
    return x + float(Path(__file__).with_name("shift.txt").read_text())
scaled.sample_rate = 16_000
"""


@pytest.fixture
def music(tmp_path):
    """A silent track, then two of 3 s."""
    write(tmp_path / "0.wav", np.zeros(72_000, np.float32), 24_000)
    for i in (1, 2):
        write(tmp_path / f"{i}.wav", tone(3.0, 200 * i, seed=i), 24_000)
    return [str(tmp_path / f"{i}.wav") for i in range(3)]


@pytest.fixture
def encoded(tmp_path, music):
    """A function that encodes the music with a fresh encoder, as another process would."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "shift.txt").write_text("0")
    store = Store(tmp_path / "store")

    def run(paths=music, precision="no", frame_rate=None):
        encoder = load_encoder(f"{tmp_path}/mine.py:scaled", precision=precision)
        collection = store.collection(encoder, [0], frame_rate)
        given = (paths, encoder, parse_rule("1"), store, collection)
        report = encode_tracks(*given, frame_rate=frame_rate)
        again = encode_tracks(*given, frame_rate=frame_rate)
        assert again.encoder_passes == 0
        return report, encoder

    return run


@pytest.mark.parametrize("frame_rate", [None, 4.0])
def test_what_has_changed_beside_the_file_is_said_in_one_line(tmp_path, music, encoded, frame_rate):
    first, _ = encoded(frame_rate=frame_rate)
    again, encoder = encoded(frame_rate=frame_rate)
    assert (first.encoder_passes, again.encoder_passes, encoder.passes) == (9, 0, 0)
    (tmp_path / "shift.txt").write_text("1e-6")  # rounding
    encoded(frame_rate=frame_rate)
    (tmp_path / "shift.txt").write_text("0.01")
    with pytest.raises(ValueError, match=r"no longer reproduces the stored row of .*1\.wav") as e:
        encoded(frame_rate=frame_rate)
    assert "\n" not in str(e.value)
    assert "use a fresh --store, or delete" in str(e.value)


def test_before_anything_is_encoded(tmp_path, music, encoded):
    encoded(music[:2])
    (tmp_path / "shift.txt").write_text("0.01")
    with pytest.raises(ValueError, match="no longer reproduces"):
        encoded()
    assert len(list((tmp_path / "store").glob("*/layers-*/??/*.safetensors"))) == 2


def test_once_a_collection_and_never_for_our_own(tmp_path, music, encoded, monkeypatch):
    encoded()
    compared = []
    monkeypatch.setattr(encode.spot_check, "compare_row", lambda *a: compared.append(a[0]))
    encoded()
    assert compared[0] == music[1]  # not the silent one
    del compared[:]
    mel, store = load_encoder("mel"), Store(tmp_path / "store")
    for _ in range(2):
        encode_tracks(music, mel, parse_rule("1"), store, store.collection(mel, [0], None))
    assert compared == []


def test_the_comparison_is_made_once(music, encoded, monkeypatch):
    encoded()
    _, encoder = encoded()
    assert len(encoder.compared) == 1
    reads = []
    monkeypatch.setattr(
        encode.spot_check, "read_audio", lambda *a, **k: reads.append(a) or np.zeros(48_000)
    )
    monkeypatch.setattr(encode.spot_check, "_difference", lambda *a: 0.0)
    monkeypatch.setattr(encode, "encode_segments", lambda *a, **k: (None, None))
    encoded()  # two calls of encode_tracks
    assert len(reads) == 1
