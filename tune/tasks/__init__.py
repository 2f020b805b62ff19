"""Tasks: tracks with labels and a split, from folders, lists, archives and the hub.

python -m tune.tasks list | show NAME | check NAME
"""

from tune.system.lazy import door

PUBLIC = {"TASKS": "registry", "Task": "load", "TaskError": "readers", "load_task": "load"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
