"""The pretrained muq-nano that the package ships: its size, its numbers, what it was made from."""

import configparser
import fnmatch
import json

import numpy as np
import torch
from conftest import ROOT, tone
from muq_nano import nano
from muq_nano.composed import TURNS
from muq_nano.mel_tokens import CODES, STREAMS
from safetensors.torch import load_file

from tune.encoders.muq import NANO_FOLDER
from tune.encoders.registry import load_encoder

WEIGHTS = NANO_FOLDER / "model.safetensors"


def test_the_weights_are_small_and_in_the_package():
    assert WEIGHTS.stat().st_size < 12_000_000
    values = load_file(WEIGHTS)
    # Batch statistics aside, which are no parameters.
    n = sum(v.numel() for k, v in values.items() if "running" not in k and "num_batches" not in k)
    assert n == 2_361_216 <= 4_000_000
    assert n == nano.count(nano.build_model(1))
    assert all(v.dtype == torch.float16 for v in values.values() if v.ndim > 1)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = (
        setup["options.package_data"]["tune.encoders"].replace("\n", " ").replace(",", " ").split()
    )
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (NANO_FOLDER / name).is_file()
        assert any(fnmatch.fnmatch(f"muq-nano/{name}", pattern) for pattern in patterns)


def test_batch_statistics_are_those_of_music():
    values = load_file(WEIGHTS)
    names = [name for name in values if name.endswith("running_var")]
    assert len(names) == 6 + 4  # of the front end and of the conformer's layers
    for name in names:
        variance = values[name]
        assert torch.isfinite(variance).all()
        assert ((variance > 0) & (variance < 1e5)).all()
        assert not torch.allclose(variance, torch.ones_like(variance))  # as they begin
        assert values[name.replace("running_var", "num_batches_tracked")] >= 1000


def test_the_package_runs_what_was_trained():
    """The states that pretraining sees and those of the encoder are the same, layer by layer."""
    model = nano.build_model(1).eval()
    weights = {k.removeprefix("model."): v for k, v in load_file(WEIGHTS).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    # Heads, and the conformer's positions, which aren't used.
    assert {k.split(".")[0] for k in missing} == {"head", "projection", "order", "conformer"}
    encoder = load_encoder("muq-nano")
    assert not encoder.untrained
    audio = torch.from_numpy(np.stack([tone(2, 220), tone(2, 330, seed=1)]))
    padded = torch.nn.functional.pad(audio, (1024, 1024), mode="reflect")
    front = encoder.model.frontend
    mel = front._mel(padded, 0, 200) * front.std + front.mean  # (B, 128, 200)
    kept = {}
    model.conformer.layer_norm.register_forward_hook(lambda *x: kept.update(last=x[2]))
    with torch.inference_mode():
        model(mel.transpose(1, 2), torch.zeros(2, 1, dtype=torch.long))
        states = list(encoder.states(audio, [4], torch.float32))
    torch.testing.assert_close(states[0], kept["last"], atol=2e-4, rtol=1e-4)


def test_golden_states():
    """The first four values of each layer's time mean, from the weights as shipped."""
    golden = [
        [3.5838, 16.9489, -8.8464, 14.9941],
        [-0.0289, 1.0473, -0.8577, 2.1826],
        [0.2002, -0.2505, -0.6157, 2.0423],
        [0.1443, 0.3436, 0.0520, 1.3118],
        [-3.3293, 4.3985, -1.1351, 1.7965],
    ]
    out = load_encoder("muq-nano").embed(tone(1.5, 220, seed=3)[None], range(5))[0, 0]
    assert out.shape == (5, 192)
    np.testing.assert_allclose(out[:, :4], golden, atol=1e-3)


def test_the_card_tells_what_the_weights_are():
    card = (NANO_FOLDER / "README.md").read_text(encoding="utf-8")
    facts = json.loads((NANO_FOLDER / "pretrain.json").read_text(encoding="utf-8"))
    assert facts["command"].startswith("tools/pretrain_nano.py")  # where it lay then
    assert facts["command"] in card
    assert f"{facts['history'][-1]['step']:,} steps" in card
    assert f"{facts['history'][-1]['val/loss']:.3f}" in card
    assert facts["corpus"]["tasks"] == ["gamemusic"]
    for word in ("GPL", "CC BY-SA", "open legal question"):  # what may bind who uses the weights
        assert word in card.split("## Licence")[1]
    assert "MIT" in card
    assert len(STREAMS) * CODES == 2304
    assert set(TURNS) == {"style", "mood", "wild", "form"}
