"""The confined process that makes safetensors of a pickle: see `tune.encoders.convert`.

python -P unpickle.py PICKLE RESULT
"""

import ctypes
import os
import sys
import zipfile
from pathlib import Path

# What the process may not do, by the names of Python's audit events.
FORBIDDEN = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "os.system")
FORBIDDEN += ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def leave_network() -> None:
    """Leave the network, where the system allows it: this process has no connection from now on."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET)


def confine(to: Path) -> None:
    """Take network, other programs and all files but the result from this process, for good."""

    def refuse(event, args):
        if event in FORBIDDEN:
            raise PermissionError(f"the converter may not use {event}")
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            writes = (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND)
            if writes and Path(os.fsdecode(args[0])).parent != to.parent:
                raise PermissionError(f"the converter may not write {os.fsdecode(args[0])}")

    sys.addaudithook(refuse)


def convert_file(pickle: Path, to: Path) -> None:
    """Write the tensors of a pickle as safetensors; it may hold nothing else."""
    leave_network()  # before torch has threads, with which it isn't possible
    import torch
    from safetensors.torch import save_file

    confine(to)
    new = zipfile.is_zipfile(pickle)  # what torch saved before 1.6 can't be mapped
    found = torch.load(pickle, map_location="cpu", weights_only=True, mmap=new)
    found = found.get("state_dict", found)
    others = [key for key, value in found.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"it holds more than tensors, such as {others[0]}")
    seen, tensors = set(), {}
    for key, value in found.items():
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        tensors[key] = value.clone() if shared else value.contiguous()
    save_file(tensors, to, {"format": "pt"})


if __name__ == "__main__":
    convert_file(Path(sys.argv[1]), Path(sys.argv[2]))
