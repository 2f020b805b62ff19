"""Amounts of memory as they are written, and how much a device has."""

import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
         "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


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
