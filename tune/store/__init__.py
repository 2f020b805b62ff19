"""The embedding store: each segment is encoded once, for every aggregator, probe, seed and agent.

python -m tune.store list | size | prune
"""

from tune.system.lazy import door

PUBLIC = {
    "Collection": "store",
    "Extractor": "extractor",
    "Row": "store",
    "Store": "store",
    "encode_segments": "encode",
    "encode_tracks": "encode",
    "open": "store",
}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
