"""What every other room stands on: files, memory, signals, plug-ins, how threads wait, doors."""

from tune.system.lazy import door

PUBLIC = {
    "free_memory_bytes": "memory",
    "is_out_of_memory": "memory",
    "peak_memory_bytes": "memory",
    "warn_if_low": "memory",
}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
