"""What a run leaves: result, folder, trackers, model card.

python -m tune.runs card | wandb_report
"""

from tune.system.lazy import door

PUBLIC = {"read_run": "load"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
