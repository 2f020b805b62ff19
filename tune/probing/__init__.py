"""Probes: small heads trained on frozen embeddings.

bank        many probes trained at once, with early stopping
token_batches  tokens of tracks, padded and standardised by the batch
closed_form  ridge and k-NN probes
protocols   --protocol: presets of flags
intervals   bootstrap intervals over test tracks
"""

from tune.system.lazy import lazy_names

PUBLIC = {"bootstrap": "intervals"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
