"""Threads that wait without spinning, for machines that do something else as well."""

import os

# What decides how OpenMP's threads wait: GNU's, LLVM's and Intel's names.
DECIDED_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_without_spinning() -> None:
    """Let OpenMP's waiting threads sleep, unless the user has decided how they wait.

    To be called before torch is loaded. By default they spin, on cores that other programs could
    use; docs/LOG.md (2026-11-26) has what that was measured to be.
    """
    if not any(name in os.environ for name in DECIDED_BY):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
