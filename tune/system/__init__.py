"""What all other packages build on.

files            atomic writes, the cache folder, names and paths as shown
memory           amounts, peaks, free memory, out-of-memory errors
signals          Ctrl-C and SIGTERM
hub_errors       the hub's errors as sentences
plugins, local_modules    FILE.py:NAME, and the modules that such a file imports
progress         bars, also in Jupyter and in logs
lazy             names imported when they are first used
openmp_waiting   OpenMP threads that sleep while they wait
"""

from tune.system.lazy import lazy_names

PUBLIC = {
    "free_memory_bytes": "memory",
    "is_out_of_memory": "memory",
    "peak_memory_bytes": "memory",
    "warn_if_low": "memory",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
