"""Original music, composed and synthesised in numpy: three tasks that need no download.

>>> from tune.demo import DEMO_TASKS, build
>>> folder = build("demo", "data")  # doctest: +SKIP
"""

from tune.system.lazy import door

DEMO_TASKS = ("demo", "demo-mood", "demo-form")
__getattr__, __dir__, __all__ = door(__name__, {"build": "datasets"})
__all__ += ["DEMO_TASKS"]
