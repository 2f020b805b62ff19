"""What a strategy costs: arithmetic, measurement, report."""

from tune.system.lazy import door

PUBLIC = {"Cell": "measure", "run_cell": "measure"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
