"""The command line: parser, argument types, how errors are shown, the commands of the rooms."""

from tune.system.lazy import door

PUBLIC = {"Parser": "parser", "read_arguments": "parser", "run_script": "parser"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
