"""The command line.

parser      argument types, errors as one line, running a script
flags       every flag of the scripts
commands    the list of commands: python -m tune
"""

from tune.system.lazy import lazy_names

PUBLIC = {"Parser": "parser", "read_arguments": "parser", "run_script": "parser"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
