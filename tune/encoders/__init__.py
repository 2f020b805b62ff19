"""Frozen encoders: audio (B, n_samples) to pooled hidden states (B, P, L, D).

    python -m tune.encoders list | check NAME | convert NAME

Hidden states are counted from 0 (the front end's output) to the last layer.
"""

from tune.system.lazy import door

PUBLIC = {
    "ENCODERS": "registry",
    "Encoder": "base",
    "EncoderError": "base",
    "NonFiniteError": "base",
    "load_encoder": "registry",
}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
