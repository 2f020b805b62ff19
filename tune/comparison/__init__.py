"""Runs compared: configurations, significance, effects, advice, tables, pictures, report.

python -m tune.comparison paired | attention
"""

from tune.system.lazy import door

PUBLIC = {"analyse": "analysis"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
