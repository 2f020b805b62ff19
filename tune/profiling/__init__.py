"""The cost of a strategy.

measure       one strategy measured in a subprocess: peak memory, seconds, throughput
arithmetic    floating-point operations, the machine's matrix rate, the study's costs
report        table, budget and plot
"""

from tune.system.lazy import lazy_names

PUBLIC = {"ProfileConfig": "measure", "measure_here": "measure"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
