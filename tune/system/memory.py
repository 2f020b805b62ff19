"""Memory: amounts as text, peaks, free memory, out-of-memory errors.

torch is imported where it is needed: arguments are read before it is loaded.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
# An H100 gains little beyond 120 s (benchmarks/results): longer batches only wait for their tracks.
MOST_BATCH_SECONDS = 480.0
SAMPLE_EVERY_S = 0.005  # between two looks at the resident memory

# Messages of PyTorch's CPU allocator, cuBLAS and cuDNN in a plain RuntimeError.
EXHAUSTED = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on a GPU, else resident in this process."""
    import torch

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
    """Whether an error means that memory ran out, on a GPU or in this process."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in EXHAUSTED)


def free_memory_bytes(device: torch.device) -> int:
    """Memory that is free now: on the GPU, else on the machine or within this container's limit."""
    import torch

    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    free = psutil.virtual_memory().available
    for limit, used in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max" is no limit
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, free)


def batch_seconds_that_fit(bytes_per_second: float, free_bytes: int, least: float) -> float:
    """Audio seconds of a batch that takes half of the free memory, up to `MOST_BATCH_SECONDS`.

    Parameters
    ----------
    bytes_per_second : taken by a batch, for each of its seconds
    free_bytes : on the device, what an allocator keeps for later included
    least : seconds that have been seen to fit

    Examples
    --------
    >>> [batch_seconds_that_fit(33e6, gigabytes * 10**9, 60.0) for gigabytes in (3, 9, 75)]
    [60.0, 136.36363636363637, 480.0]
    """
    fitting = free_bytes / 2 / max(bytes_per_second, 1.0)
    return max(least, min(MOST_BATCH_SECONDS, fitting))


def warn_if_low(device: torch.device, needed: int) -> bool:
    """Warn in one line when less memory is free than encoding will take; return whether it did.

    Parameters
    ----------
    needed : bytes that are still to be taken, besides what is loaded already
    """
    import torch

    free = free_memory_bytes(device)
    if free >= needed:
        return False
    where = f"on {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "in memory"
    log.warning(
        "%.2g GB are free %s, encoding may take %.2g GB: close other programs, or lower "
        "--memory_budget, --batch_seconds or --seg",
        free / 1e9,
        where,
        needed / 1e9,
    )
    return True


def check_room(needed: float, what: str, instead: str) -> None:
    """Raise ValueError when less of the machine's memory is free than something will take.

    Parameters
    ----------
    needed : bytes
    what, instead : what takes them, and what to do about it
    """
    import torch

    free = free_memory_bytes(torch.device("cpu"))
    if needed > free:
        raise ValueError(
            f"{what} take {needed / 1e9:.2g} GB of memory, {free / 1e9:.2g} GB are free: {instead}"
        )


def parse_budget(text: str, total_bytes: int) -> int:
    """Read an amount of memory.

    Parameters
    ----------
    text : str
        A size with a unit ("2GB", "800 MB", "1.5GiB"), or a fraction of the device's memory above
        0 and at most 1 ("0.5").
    total_bytes : int
        The device's memory in bytes.

    Returns
    -------
    int
        Bytes, at least 1.

    Raises
    ------
    ValueError
        When it is neither.

    Examples
    --------
    >>> parse_budget("1.5GB", total_bytes=0), parse_budget("0.5", total_bytes=8_000_000_000)
    (1500000000, 4000000000)
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(?:([kmgt]i?)?(b))?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(
            f"an amount of memory is a size such as 2GB or 800MB, or a fraction of the device's "
            f"memory such as 0.5, got {text!r}"
        )
    number, prefix, unit = float(match[1]), (match[2] or "").lower(), match[3]
    if unit is None and number > 1:
        raise ValueError(
            f"{text!r} has no unit and is no fraction (at most 1): write {text.strip()}GB or such"
        )
    n_bytes = int(number * UNITS[prefix]) if unit else int(number * total_bytes)
    if n_bytes < 1:
        raise ValueError(f"an amount of memory must be above 0, got {text!r}")
    return n_bytes


def device_memory(device) -> int:
    """Memory of a GPU, or of the machine, in bytes."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().total


def weights_bytes(encoder, model=None) -> int:
    """Bytes of the weights of encoder and aggregator on the encoder's device."""
    from torch import nn

    parts = [part for part in (*vars(encoder).values(), model) if isinstance(part, nn.Module)]
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    return sum(t.nbytes for t in tensors if t.device.type == encoder.device.type)


@contextlib.contextmanager
def peak_memory(encoder, model=None) -> Iterator[dict]:
    """Context whose dict holds, when it is left, peak_memory_bytes, its kind and weights_bytes.

    On a GPU the peak is what PyTorch allocates; on a CPU it is the weights and the rise of resident
    memory.
    """
    found = {"weights_bytes": weights_bytes(encoder, model)}
    with PeakMemory(encoder.device) as peak:
        yield found
    if encoder.device.type == "cuda":
        import torch

        found["peak_memory_bytes"] = peak.peak_bytes
        found["peak_memory_kind"] = "allocated"
        found["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(encoder.device)
    else:
        found["peak_memory_bytes"] = found["weights_bytes"] + peak.peak_bytes - peak.rest_bytes
        found["peak_memory_kind"] = "weights and rise of resident memory"
        found["peak_resident_bytes"] = peak.peak_bytes


class PeakMemory:
    """Peak memory within a `with` block.

    On a GPU it is the allocator's peak. Else it is this process's resident memory: its peak so far
    (mostly from loading) may lie above the block's, so a thread samples it every 5 ms; where the
    block sets a new peak, that is exact.

    Attributes
    ----------
    rest_bytes : held when the block began
    peak_bytes : peak inside the block, `rest_bytes` included
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.rest_bytes = self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            import torch

            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.rest_bytes = torch.cuda.memory_allocated(self.device)
            return self
        _give_back_freed_memory()
        self._so_far, self._stop = peak_memory_bytes(self.device), threading.Event()
        self.rest_bytes = self.peak_bytes = self._resident()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        if self.device.type == "cuda":
            self.peak_bytes = peak_memory_bytes(self.device)
            return
        self._stop.set()
        self._thread.join()
        peak = peak_memory_bytes(self.device)
        exact = peak if peak > self._so_far else 0
        self.peak_bytes = max(self.peak_bytes, self._resident(), exact)

    def _watch(self) -> None:
        """Sample the resident memory until the block ends."""
        while not self._stop.wait(SAMPLE_EVERY_S):
            self.peak_bytes = max(self.peak_bytes, self._resident())

    @staticmethod
    def _resident() -> int:
        """Resident memory of this process in bytes."""
        import psutil

        return psutil.Process().memory_info().rss


def _give_back_freed_memory() -> None:
    """Return memory that was freed but kept by the C library: it would hide what is used next."""
    import ctypes

    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl doesn't
        if trim is not None:
            trim(0)
