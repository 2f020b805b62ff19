"""Probes: small heads trained on frozen embeddings, their metrics and intervals."""

from tune.system.lazy import door

PUBLIC = {"bootstrap": "intervals", "paired_bootstrap": "intervals"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
