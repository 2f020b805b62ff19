"""Memory while weights are loaded: measured in a process of its own."""

import json

import torch
from conftest import run
from muq.muq import MuQ, MuQConfig
from safetensors.torch import save_file

from tune.encoders.muq import nano_config

MEASURE = """
import sys
from pathlib import Path
from tune.encoders.registry import load_encoder

def memory(key):
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(key + ":") + 1]) * 1024

load_encoder("muq-nano")  # what is imported and allocated once
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = memory("VmRSS")
encoder = load_encoder(sys.argv[1])
print(memory("VmHWM") - before, encoder.fingerprint)
"""


def save_like_muq(folder):
    """MuQ's true file in shape, a tenth of its size: codebooks, prefix, parametrised weights."""
    config = nano_config() | {"codebook_size": 8192, "use_rvq_target": True, "rvq_ckpt_path": None}
    config |= {"encoder_dim": 512, "conv_dim": 128, "encoder_depth": 6}
    config["w2v2_config"] |= {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_hidden_layers": 6,
    }
    torch.manual_seed(0)
    weights = MuQ(MuQConfig(**config)).state_dict()
    names = set(weights)
    assert all(name.startswith("model.") for name in names)
    assert any(name.endswith("parametrizations.weight.original0") for name in names)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = {key: value.contiguous().clone() for key, value in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return (folder / "model.safetensors").stat().st_size


def test_loading_muq_takes_at_most_1_3_times_its_weights(tmp_path):
    size = save_like_muq(tmp_path / "muq")
    assert size > 100e6
    (tmp_path / "measure.py").write_text(MEASURE)
    done = run(tmp_path / "measure.py", tmp_path / "muq", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    peak, _ = done.stdout.split()
    assert int(peak) <= 1.3 * size, f"{int(peak) / size:.2f} x {size}"
