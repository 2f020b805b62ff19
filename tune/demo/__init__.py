"""Synthetic music, composed and rendered in NumPy: seven tasks that need no download.

    tasks      the table of the demo tasks        datasets    written to disk in MARBLE's layout
    recipes, moods, attributes, composers, styles what a piece is drawn from
    compose, parts, drums, patches, theory        notes
    synth, mix                                    audio
    __main__   python -m tune.demo list | export | play

>>> from tune.demo import DEMO_TASKS, build
>>> folder = build("demo", "data")  # doctest: +SKIP
"""

from tune.system.lazy import lazy_names

DEMO_TASKS = (
    "demo",
    "demo-mood",
    "demo-form",
    "demo-key",
    "demo-tempo",
    "demo-instruments",
    "demo-artist",
)
__getattr__, __dir__, __all__ = lazy_names(__name__, {"build": "datasets"})
__all__ += ["DEMO_TASKS"]
