"""Embeddings of your own music with a chosen strategy.

embedder        tune.embed, and the Embedder behind embed.py
strategy        everything that an embedding depends on, as one record; --from_run
tags            artist, title, album, year and genre of a file
columns         the columns of the files
track_table     their rows, from the store
file_formats    Parquet, .npy, datasets folder
space           centring, whitening, mutual proximity: how embeddings are compared
retrieval       whether neighbours have the same labels
similar         python -m tune.embeddings similar
agreement       python -m tune.embeddings agreement
duplicates      python -m tune.embeddings duplicates
groups          python -m tune.embeddings groups
map             python -m tune.embeddings map
stability       how embeddings of changed copies move (compare.py --stability)
hubness         python -m tune.embeddings hubness
"""

from tune.system.lazy import lazy_names

PUBLIC = {"Embedder": "embedder", "Strategy": "strategy", "embed": "embedder", "search": "similar"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
