"""Pickles of the hub converted in a confined process, and the encoders that need it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from tiny_models import save_tiny

from tune.encoders.base import EncoderError
from tune.encoders.check import main
from tune.encoders.muq import HUB_ID, NANO_FOLDER
from tune.encoders.registry import load_encoder

TOWER = {"dim": 48, "tf_depth": 0, "heads": 2, "dim_head": 16, "ff_mult": 4}
MULAN = "OpenMuQ/MuQ-MuLan-large"


@pytest.fixture
def mulan(hub, tmp_path):
    """MuQ-MuLan as it lies on the hub, in small: a configuration and a pickle, depth 0."""
    folder = tmp_path / "mulan"
    folder.mkdir()
    config = {
        "mulan": {"sr": 24_000, "clip_secs": 10, "dim_latent": 24},
        "audio_model": {"name": HUB_ID, "model_dim": 192, "use_layer_idx": -1},
        "text_model": {"name": "xlm-roberta-base", "model_dim": 8},
        "audio_transformer": TOWER,
        "text_transformer": {"tf_depth": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"mulan.audio.model.{k}": v for k, v in nano_weights().items()}
    torch.manual_seed(0)
    for key, shape in (("audio.proj", (48, 192)), ("audio_to_latents", (24, 48))):
        weights[f"mulan.{key}.weight"] = torch.randn(shape)
        weights[f"mulan.{key}.bias"] = torch.randn(shape[0])
    weights["mulan.text.embedding.weight"] = weights["mulan.text.tied"] = torch.ones(3, 3)
    torch.save(weights, folder / "pytorch_model.bin")
    hub.add(HUB_ID, "model", {"config.json": NANO_FOLDER / "config.json"})
    return hub.add(MULAN, "model", folder, license="cc-by-nc-4.0")


def nano_weights():
    """muq-nano's weights in float32."""
    return {k: v.float() for k, v in load_file(NANO_FOLDER / "model.safetensors").items()}


def test_a_pickled_model_is_converted_on_request_and_then_loaded(hub, mulan, capsys):
    with pytest.raises(EncoderError, match=r"holds a pickle only, .* convert muq-mulan$"):
        load_encoder("muq-mulan")
    assert not any("pytorch_model" in path for path in hub.downloads())
    hub.fail("wrong_content", "*pytorch_model.bin", times=1)  # it is verified before it is read
    main(["convert", "muq-mulan"])
    said = capsys.readouterr()
    assert "from now on --encoder muq-mulan is loaded from there" in said.out
    assert "downloading OpenMuQ/MuQ-MuLan-large (about 2.8 GB, weights CC-BY-NC 4.0)" in said.err
    assert "pytorch_model.bin of OpenMuQ/MuQ-MuLan-large is damaged" in said.err
    encoder = load_encoder("muq-mulan")
    assert (encoder.revision, encoder.licence) == (mulan, "CC-BY-NC 4.0")
    assert encoder.sizes == [192] * 5 + [24]
    hub.stop()
    audio = np.random.default_rng(2).standard_normal((1, 24_000), np.float32) * np.float32(0.1)
    inner = load_encoder("muq-nano").embed(audio, [4])
    offline = load_encoder("muq-mulan")
    np.testing.assert_array_equal(offline.embed(audio, [4]), inner)
    np.testing.assert_array_equal(offline.embed(audio, [5]), encoder.embed(audio, [5]))
    with pytest.raises(EncoderError, match="could not be downloaded"):
        load_encoder("muq-mulan", revision="f" * 40)
    main(["list"])
    assert "needs a step: convert muq-mulan" not in capsys.readouterr().out


def test_any_transformers_model_can_be_converted(hub, tmp_path):
    folder = save_tiny(tmp_path / "old", "hubert")
    expected = load_encoder(str(folder)).fingerprint
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    hub.add("someone/old", "model", folder)
    with pytest.raises(EncoderError, match=r"holds no model\.safetensors .* convert someone/old"):
        load_encoder("someone/old")
    main(["convert", "someone/old"])
    assert load_encoder("someone/old").fingerprint == expected


class Bomb:
    """A pickle that leaves a trace when it is executed."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (self.trace, "w"))


def test_what_is_no_tensor_is_neither_executed_nor_converted(hub, tmp_path):
    trace, pickle = tmp_path / "trace", tmp_path / "pytorch_model.bin"
    for content, message in (
        ({"w": Bomb(str(trace))}, r"can't be converted: .*UnpicklingError"),
        (
            {"w": torch.ones(2), "epoch": 3},
            r"can't be converted: .*more than tensors, such as epoch",
        ),
    ):
        torch.save(content, pickle)
        hub.add("someone/bad", "model", {"config.json": b"{}", "pytorch_model.bin": pickle})
        shutil.rmtree(hub.cache, ignore_errors=True)
        with pytest.raises(EncoderError, match=message) as error:
            main(["convert", "someone/bad"])
        assert "\n" not in str(error.value)
    assert not trace.exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    hub.add("someone/none", "model", {"config.json": b"{}"})
    with pytest.raises(EncoderError, match=r"holds no pytorch_model\.bin: there is nothing to"):
        main(["convert", "someone/none"])
    with pytest.raises(EncoderError, match="mel is no model on the hub"):
        main(["convert", "mel"])


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "open(sys.argv[2], 'w')",
        "import os; os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)",
    ],
)
def test_the_converting_process_has_no_network_no_programs_and_no_other_files(tmp_path, attempt):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tune" / "encoders")!r})
from pathlib import Path
import unpickle
unpickle.confine(Path(sys.argv[1]) / "result")
open(sys.argv[1] + "/result", "w").write("allowed")
try:
    {attempt}
except PermissionError as error:
    print("refused:", error)
"""
    (tmp_path / "in").mkdir()
    argv = [sys.executable, "-P", "-c", code, tmp_path / "in", tmp_path / "elsewhere"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.stdout.startswith("refused: the converter may not"), done.stderr
    assert (tmp_path / "in" / "result").read_text() == "allowed"
    assert not (tmp_path / "elsewhere").exists()
