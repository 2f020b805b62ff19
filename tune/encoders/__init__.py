"""Frozen encoders: audio (B, n_samples) to pooled hidden states (B, P, L, D).

    registry      the table of encoders             base          the class Encoder
    muq, muq_frontend, muq_mulan                    plugin        custom encoders: FILE.py:NAME
    transformers, hidden_states, feature_extractors               transformers' audio models
    musicnn, tensor_bundle                          musicnn from its TensorFlow checkpoint
    remote_code   models with Python code of their own
    hub           downloads                         cpu_linear    matrix products on CPUs
    cuda_graphs   passes on a GPU as recorded graphs
    convert, unpickle                               pickles to safetensors
    check         python -m tune.encoders list | check NAME | convert NAME

Hidden states are counted from 0 (the front end's output) to the last layer.
"""

from tune.system.lazy import lazy_names

PUBLIC = {
    "ENCODERS": "registry",
    "Encoder": "base",
    "EncoderError": "base",
    "NonFiniteError": "base",
    "load_encoder": "registry",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
