"""Memory: the peak so far, what is free, and which errors say that there is none left."""

import contextlib
import logging
import sys
from pathlib import Path

import torch

log = logging.getLogger(__name__)

# What PyTorch's CPU allocator, cuBLAS and cuDNN say in a plain RuntimeError.
EXHAUSTED = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
CGROUPS = (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
           ("/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes"))  # fmt: skip


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on a GPU or in this process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in EXHAUSTED)


def free_memory_bytes(device: torch.device) -> int:
    """Memory that is free now: on the GPU, else on the machine or within this container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = psutil.virtual_memory().available
    for limit, used in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max" is no limit
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, free)


def warn_if_low(device: torch.device, needed: int) -> bool:
    """Warn in one line when less memory is free than encoding will take; say whether it did.

    Parameters
    ----------
    needed : bytes that are still to be taken, besides what is loaded already
    """
    free = free_memory_bytes(device)
    if free >= needed:
        return False
    where = f"on {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "in memory"
    log.warning(
        "%.2g GB are free %s, encoding may take %.2g GB: close other programs, or lower "
        "--memory_budget, --batch_seconds or --seg",
        free / 1e9, where, needed / 1e9,
    )  # fmt: skip
    return True
