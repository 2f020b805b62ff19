"""Original music, composed and synthesised in numpy: seven tasks that need no download.

>>> from tune.demo import DEMO_TASKS, build
>>> folder = build("demo", "data")  # doctest: +SKIP
"""

from tune.demo.datasets import build
from tune.demo.tasks import DEMO_TASKS

__all__ = ["DEMO_TASKS", "build"]
