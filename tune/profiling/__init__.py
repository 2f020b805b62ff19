"""What a strategy costs: arithmetic, measurement, report."""

from tune.system.lazy import door

PUBLIC = {"ProfileConfig": "measure", "measure_here": "measure"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
