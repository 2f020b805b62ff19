"""Embeddings of your own music with a strategy that was chosen, their files and search.

python -m tune.embeddings similar | agreement | duplicates
"""

from tune.system.lazy import door

PUBLIC = {"Embedder": "embedder", "Strategy": "strategy", "embed": "embedder"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
