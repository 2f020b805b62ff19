"""Threads that wait without spinning, so that a busy machine doesn't slow them down many times."""

import os

# What decides how OpenMP's threads wait: GNU's, LLVM's and Intel's names.
DECIDED_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_without_spinning() -> None:
    """Let OpenMP's waiting threads sleep, unless the user has decided how they wait.

    To be called before torch is loaded. By default they spin: beside one other busy process on two
    cores, encoding was then measured to take 2.6 times as long (docs/reliability.md).
    """
    if not any(name in os.environ for name in DECIDED_BY):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
