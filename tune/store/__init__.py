"""The embedding store: each segment is encoded once, for every aggregator, probe, seed and agent.

store         a folder of collections and the keys they are found by: Store
collection    rows on disk: Collection, Row
encode        files to rows: hash, decode, cut, encode, write
look_ahead    tracks that are hashed, looked up, claimed and decoded ahead
batches       segments in batches, of one track or of several
extractor     encoder, layers and collection for a script
spot_check    a stored row of a plug-in encoder is encoded again and compared
packs         many rows in one file, and the index that finds them
prune         list, pack and delete rows
stale_files   removes temporary files of killed writers
to_dataset    the rows as a datasets.Dataset
command       python -m tune.store list | size | pack | prune (encode: tune.tasks.encode_shard)
"""

from tune.system.lazy import lazy_names

PUBLIC = {
    "Collection": "collection",
    "Extractor": "extractor",
    "Row": "collection",
    "Store": "store",
    "encode_segments": "batches",
    "encode_tracks": "encode",
    "open": "store",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
