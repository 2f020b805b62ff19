"""Encoders from the hub, through its stand-in: downloads, damage, errors, licences."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

from tune.encoders import hub as encoders_hub
from tune.encoders.base import EncoderError
from tune.encoders.check import main
from tune.encoders.muq import HUB_ID, NANO_FOLDER
from tune.encoders.registry import load_encoder
from tune.system.hub_errors import explain


@pytest.fixture
def muq(hub, tmp_path):
    """MuQ's repository, in small: configuration, safetensors, a pickle that is never wanted."""
    folder = tmp_path / "muq"
    folder.mkdir()
    shutil.copy(NANO_FOLDER / "config.json", folder)
    save_file(load_file(NANO_FOLDER / "model.safetensors"), folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    return hub.add(HUB_ID, "model", folder)


def blobs(hub) -> list:
    """Files of the cache that hold content, unfinished ones too."""
    return [p for p in hub.cache.rglob("blobs/*") if p.is_file()]


def audio():
    """A segment of noise at 24 kHz."""
    return np.random.default_rng(1).standard_normal((1, 24_000), np.float32) * np.float32(0.1)


def test_muq_is_fetched_once_verified_and_works_offline(hub, muq, caplog):
    caplog.set_level("INFO")
    first = load_encoder("muq")
    assert (first.revision, first.licence) == (muq, "CC-BY-NC 4.0")
    line = "downloading OpenMuQ/MuQ-large-msd-iter (1.33 GB, weights CC-BY-NC 4.0) from the"
    assert line in caplog.text
    assert not any("pytorch_model" in path for path in hub.downloads())
    asked = len(hub.asked)
    second = load_encoder("muq")
    assert len(hub.asked) == asked
    hub.stop()
    offline = load_encoder("muq")
    nano = load_encoder("muq-nano").embed(audio(), [4])
    for encoder in (first, second, offline):
        assert encoder.fingerprint == first.fingerprint
        np.testing.assert_array_equal(encoder.embed(audio(), [4]), nano)


def test_weights_that_arrive_damaged_are_fetched_again(hub, muq, caplog):
    hub.fail("wrong_content", "*model.safetensors", times=1)
    encoder = load_encoder("muq")
    assert "model.safetensors of OpenMuQ/MuQ-large-msd-iter is damaged" in caplog.text
    assert encoder.fingerprint == load_encoder("muq-nano").fingerprint
    assert sum("model.safetensors" in path for path in hub.downloads() if "/cdn/" in path) == 2


def test_weights_that_are_always_damaged_end_in_one_line_and_are_gone(hub, muq):
    hub.fail("wrong_content", "*model.safetensors")
    with pytest.raises(EncoderError, match=r"model\.safetensors .* arrived damaged twice") as error:
        load_encoder("muq")
    assert "\n" not in str(error.value)
    assert not [p for p in hub.cache.rglob("model.safetensors")]
    hub.heal()
    assert load_encoder("muq").n_layers == 4  # the same error never comes twice


def test_weights_that_rot_in_the_cache_are_noticed_and_replaced(hub, muq):
    load_encoder("muq")
    (blob,) = (p for p in blobs(hub) if p.stat().st_size > 1_000_000)
    data = bytearray(blob.read_bytes())
    data[-5] ^= 1
    blob.write_bytes(data)
    hub.stop()
    with pytest.raises(EncoderError, match=r"was damaged in the local cache .* was removed, but"):
        load_encoder("muq")
    with pytest.raises(EncoderError, match=r"could not be downloaded: the hub can't be reached"):
        load_encoder("muq")


def test_a_damaged_configuration_is_replaced_too(hub, muq):
    load_encoder("muq")
    config = next(hub.cache.rglob("config.json")).resolve()
    config.write_text(config.read_text()[:-20])
    assert load_encoder("muq").n_layers == 4
    assert json.loads(config.read_text())["encoder_dim"] == 192


FAULTS = [  # fault, path, what is said
    ("no_repo", "*", r"there is no model OpenMuQ/MuQ-large-msd-iter on the hub, or it is private"),
    ("gated", "*", r"is gated \(403 Client Error\): accept its terms at https://huggingface.co/Op"),
    ("no_revision", "*", r"has no revision main \(404 Client Error\)"),
    ("no_file", "*/resolve/*", r"lacks a file that it lists \(404 Client Error\)"),
    (403, "*/resolve/*", r"the hub answered 403 .*: your account or token may not read it"),
    (404, "*/resolve/*", r"the hub answered 404"),
    (429, "*", r"the hub answered 429 .*too many requests from your address: wait some minutes"),
    (500, "*", r"the hub answered 500 .*: the hub has a problem of its own .* run again later"),
    (503, "*", r"the hub answered 503"),
    ("drop", "*.safetensors", r"the connection broke off \(.*\): run again"),
    ("stall", "*.safetensors", r"the connection broke off \(.*\): run again"),
    ("wrong_size", "*.safetensors", r"did not arrive whole \(Consistency check failed: file sho"),
]


@pytest.mark.parametrize(("kind", "path", "message"), FAULTS)
def test_every_failure_is_one_line_with_cause_and_fix(hub, muq, monkeypatch, kind, path, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.fail(kind, path)
    with pytest.raises(EncoderError, match=message) as error:
        load_encoder("muq")
    assert "\n" not in str(error.value)
    assert "--encoder muq-nano" in str(error.value)
    left = [p.name for p in blobs(hub)]
    assert not [name for name in left if name.endswith(".incomplete")]
    hub.heal()
    assert load_encoder("muq").n_layers == 4


def test_a_full_disk_is_called_that(hub, muq, full_disk):
    with (
        pytest.warns(UserWarning, match="Not enough free disk space"),
        pytest.raises(EncoderError, match=r"the disk is full \(No space left on device\): free"),
    ):
        load_encoder("muq")
    assert blobs(hub) == []


def test_a_refused_token_is_called_that(hub, muq, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(EncoderError, match=r"the hub refused your token \(.*\): get a valid one"):
        load_encoder("muq")


def test_no_network_and_offline_mode_are_told_apart(hub, muq, monkeypatch):
    hub.stop()
    with pytest.raises(EncoderError, match=r"the hub can't be reached \(.*\): with a network"):
        load_encoder("muq")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"told to stay offline: unset HF_HUB_OFFLINE"):
        load_encoder("muq")


def test_a_misspelt_name_is_told_its_neighbours(hub, muq):
    message = (
        r"there is no model OpenMuQ/MuQ-large-msd on the hub.*: nearest are OpenMuQ/MuQ-large-msd-"
    )
    with pytest.raises(EncoderError, match=message):
        load_encoder("OpenMuQ/MuQ-large-msd")


def test_errors_of_data_sets_are_told_with_their_page(hub):
    from huggingface_hub import snapshot_download

    hub.add("m-a-p/GTZAN", "dataset", {"a.wav": b"x"})
    hub.fail("gated")
    with pytest.raises(OSError) as error:
        snapshot_download("m-a-p/GTZAN", repo_type="dataset")
    text = explain(error.value, "m-a-p/GTZAN", "dataset")
    assert text.startswith("the data set m-a-p/GTZAN is gated (403 Client Error): accept its terms")
    assert "https://huggingface.co/datasets/m-a-p/GTZAN" in text


def test_a_licence_is_read_off_the_card(tmp_path):
    for head, expected in (
        ("---\nlicense: cc-by-nc-4.0\n---\n", "CC-BY-NC 4.0"),
        ("---\ntags: [a]\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("---\nlicense: openrail\n---\n# card", "openrail"),
        ("# no header\nlicense: mit\n", None),
        ("", None),
    ):
        (tmp_path / "README.md").write_text(head)
        assert encoders_hub.licence_of(tmp_path) == expected
    folder = save_tiny(tmp_path / "tiny", "wav2vec2")
    assert load_encoder(str(folder)).licence is None
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert load_encoder(str(folder)).licence == "Apache 2.0"


def test_mert_95m_is_taken_from_its_pull_request(hub, tmp_path):
    folder = save_tiny(tmp_path / "mert", "hubert")
    commit = "72e21e1" + "0" * 33
    hub.add("m-a-p/MERT-v1-95M", "model", folder, ref="refs/pr/3", commit=commit)
    assert load_encoder("mert-95m").revision == commit
    other = hub.add("m-a-p/MERT-v1-95M", "model", folder, ref="refs/pr/3", commit="a" * 40)
    shutil.rmtree(hub.cache)
    with pytest.raises(EncoderError, match=r"refs/pr/3 of m-a-p/MERT-v1-95M is now commit aaaa"):
        load_encoder("mert-95m")
    assert load_encoder("mert-95m", revision=other).revision == other


def test_the_list_says_what_each_row_needs(hub, muq, capsys):
    main(["list"])
    lines = {
        line.split("│")[1].strip(): line
        for line in capsys.readouterr().out.splitlines()[3:30]
        if line.count("│") > 4
    }
    assert "works now" in lines["muq"]
    assert "1.33 GB, to download" in lines["muq"]
    assert "CC-BY-NC 4.0" in lines["muq"]
    assert "needs a step: convert muq-mulan" in lines["muq-mulan"]
    assert "needs trust: --trust_remote_code" in lines["mert-v2-30s"]
    assert "works now" in lines["mel"]
    load_encoder("muq")
    main(["list"])
    assert "1.33 GB, in the cache" in capsys.readouterr().out


def test_a_session_that_another_thread_closed_is_a_hub_that_cant_be_reached(hub):
    """The client gives a thread None then, and the cause is in that other thread."""
    error = AttributeError("'NoneType' object has no attribute 'request'")
    assert "the hub can't be reached" in explain(error, "m-a-p/GTZAN", "dataset")
