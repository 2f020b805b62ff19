"""TUNE: how to cut a long track into segments and join their embeddings into one.

    tune.embed("song.mp3", seg=10, agg="mean")      # (D,) float32
    tune.search("embeddings.parquet", "song.mp3")   # the most similar tracks
    tune.store.open(encoder="muq").to_dataset()     # all stored segments, as a datasets.Dataset

Conventions throughout the package: audio is mono float32 in [-1, 1]; times are seconds unless a
name says samples; hidden states are counted from 0 (the front end's output) to the last layer.
Shapes: B batch, N segments or tokens of a track, T frames, L layers, D embedding size, C classes.
"""

import sys

__version__ = "0.1.0"
__all__ = ["__version__", "embed", "search", "store"]


def __dir__() -> list[str]:
    """The public names."""
    return __all__


def __getattr__(name: str):
    """Load public names when they are first used: importing the package costs nothing."""
    import importlib

    if name == "embed":
        return importlib.import_module("tune.embeddings.embedder").embed
    if name == "search":
        return importlib.import_module("tune.embeddings.similar").search
    if name == "store":
        return importlib.import_module("tune.store")
    if name == "transformer":  # its name in the cards of pretrained aggregators
        return importlib.import_module("tune.aggregators.transformer")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_run_as_a_module() -> bool:
    """Whether this is `python -m tune.NAME`, about to import what it needs."""
    given = zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return sys.argv[:1] == ["-m"] and any(a == "-m" and b.startswith("tune.") for a, b in given)


if _is_run_as_a_module():
    from tune.system.openmp_waiting import wait_without_spinning
    from tune.system.signals import exit_on_signal

    exit_on_signal()
    wait_without_spinning()
