"""Small models of the shape of MERT-v2: code of their own, blocks only as hidden states, a mask.

Written for these tests from what is published of MERT-v2: `hidden_states[0]` is block 1, the rotary
frequencies are a buffer that isn't saved, the output has a `feature_attention_mask`, the feature
extractor is its own.
"""

import json
import sys

import torch

LAYERS, SIZE, RATE = 3, 16, 24_000

CODE = """
import torch
from dataclasses import dataclass
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class Mert2Output(ModelOutput):
    last_hidden_state: torch.FloatTensor = None
    hidden_states: tuple = None
    feature_attention_mask: torch.Tensor = None


class Mert2Config(PretrainedConfig):
    model_type = "mert2"

    def __init__(self, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, hop=960, **rest):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.hop = num_attention_heads, hop
        super().__init__(**rest)


class Positions(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size // config.num_attention_heads
        {frequencies}
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, n_frames):
        angles = torch.arange(n_frames, device=self.inv_freq.device)[:, None] * self.inv_freq
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, size = config.num_attention_heads, config.hidden_size
        self.norm, self.qkv = nn.LayerNorm(size), nn.Linear(size, 3 * size)
        self.out, self.ffn = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, hidden_states, positions, mask):
        batch, frames, size = hidden_states.shape
        parts = self.qkv(self.norm(hidden_states)).chunk(3, -1)
        q, k, v = (x.view(batch, frames, self.heads, -1).transpose(1, 2) for x in parts)
        cos, sin = (x.to(q.dtype) for x in positions)
        turn = lambda x: x * cos + torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) * sin
        x = nn.functional.scaled_dot_product_attention(turn(q), turn(k), v, mask[:, None, None])
        x = hidden_states + self.out(x.transpose(1, 2).reshape(batch, frames, size))
        return x + nn.functional.gelu(self.ffn(x))


class Mert2Model(PreTrainedModel):
    config_class = Mert2Config

    def __init__(self, config):
        super().__init__(config)
        self.project = nn.Linear(config.hop, config.hidden_size)
        self.embed_positions = Positions(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(self, input_values, attention_mask=None, output_hidden_states=None):
        hop = self.config.hop
        x = self.project(input_values.unfold(1, hop, hop))
        mask = torch.ones(x.shape[:2], device=x.device, dtype=torch.bool)
        if attention_mask is not None:
            mask = attention_mask[:, ::hop].bool()
        positions, states = self.embed_positions(x.shape[1]), []
        for {loop}:
            x = layer(x, positions, mask)
            states.append(x)
        return Mert2Output(
            last_hidden_state=self.norm(x),
            hidden_states=tuple(states) if output_hidden_states else None,
            feature_attention_mask=mask,
        )
"""
COMPUTED = "inv_freq = 1.0 / 10_000 ** (torch.arange(0, size, 2) / size)"
RANDOM = "inv_freq = torch.rand(size // 2)"
UNSET = "inv_freq = torch.empty(size // 2)"
PLAIN_LOOP = "layer in self.layers"
COUNTED_LOOP = "layer in (self.layers[k] for k in range(self.config.num_hidden_layers))"

EXTRACTOR = '''
import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor


class Mert2FeatureExtractor(SequenceFeatureExtractor):
    """Pads to whole frames, and then by another eight that the mask leaves out."""

    model_input_names = ["input_values", "attention_mask"]

    def __init__(self, feature_size=1, sampling_rate=24_000, padding_value=0.0, hop=960, **rest):
        self.hop = hop
        super().__init__(feature_size, sampling_rate, padding_value, **rest)

    def __call__(self, audio, sampling_rate=None, return_tensors=None):
        assert sampling_rate == self.sampling_rate
        n = len(audio) // self.hop * self.hop
        values = np.zeros((1, n + 8 * self.hop), np.float32)
        values[0, :n] = audio[:n]
        mask = (np.arange(values.shape[1]) < n)[None].astype(np.int64)
        return BatchFeature({"input_values": values, "attention_mask": mask}, return_tensors)
'''


def save(folder, *, frequencies=COMPUTED, loop=PLAIN_LOOP, seed=3):
    """Save such a model with random weights as it lies on the hub; returns the folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    code = CODE.replace("{frequencies}", frequencies).replace("{loop}", loop)
    (folder / "modeling_mert2.py").write_text(code)
    (folder / "feature_extraction_mert2.py").write_text(EXTRACTOR)
    config = {
        "model_type": "mert2",
        "architectures": ["Mert2Model"],
        "hidden_size": SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "hop": 960,
        "auto_map": {
            "AutoConfig": "modeling_mert2.Mert2Config",
            "AutoModel": "modeling_mert2.Mert2Model",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    extractor = {
        "feature_extractor_type": "Mert2FeatureExtractor",
        "sampling_rate": RATE,
        "feature_size": 1,
        "padding_value": 0.0,
        "hop": 960,
        "auto_map": {"AutoFeatureExtractor": "feature_extraction_mert2.Mert2FeatureExtractor"},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    (folder / "README.md").write_text(
        "---\nlicense: cc-by-nc-4.0\ntags: [music]\n---\n\n# MERT-v2\n"
    )
    torch.manual_seed(seed)
    save_file(own_model(folder).state_dict(), folder / "model.safetensors", {"format": "pt"})
    return folder


def own_model(folder):
    """The model as its code makes it, in evaluation mode; no transformers loader in between."""
    module = {"__name__": f"mert2_of_{folder.name}"}
    sys.modules[module["__name__"]] = type(sys)(module["__name__"])
    exec((folder / "modeling_mert2.py").read_text(), module)
    return module["Mert2Model"](module["Mert2Config"]()).eval()
