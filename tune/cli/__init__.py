"""The command line.

parser      argument types, errors as one line, running a script
flags       flags that several scripts share
commands    the list of commands: python -m tune
"""

from tune.system.lazy import lazy_names

PUBLIC = {"Parser": "parser", "begin": "parser", "run_script": "parser"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
