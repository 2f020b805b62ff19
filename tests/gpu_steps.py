"""Made-up steps for test_gpu.py."""

import time


def fails(bench, record):
    """Say something, then fail."""
    record(before=1)
    raise ZeroDivisionError("made up")


def hangs(bench, record):
    """Say something, then never end."""
    record(half=True)
    time.sleep(600)


def works(bench, record):
    """Check one thing."""
    record(checks=[{"what": "one", "value": 1.0, "at_most": 1.0, "ok": True}])
