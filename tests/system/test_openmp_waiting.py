"""tune.system.openmp_waiting: threads wait without spinning where a command begins."""

import os
import sys

import pytest
from conftest import ROOT, run

SCRIPT = (
    "import os, sys\n"
    "sys.path.insert(0, {root!r})\n"
    "from tune.cli.parser import Parser, read_arguments\n"
    "read_arguments(lambda: None)\n"
    "assert 'torch' not in sys.modules\n"
    "print(os.environ.get('OMP_WAIT_POLICY'))\n"
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, "None")],
)
def test_waiting_threads_sleep_unless_the_user_decides(given, expected, tmp_path, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    done = run("-c", SCRIPT.format(root=str(ROOT)), cwd=tmp_path, env=given)
    assert done.stdout.strip() == expected, done.stderr


def test_importing_the_package_changes_no_variable():
    before = dict(os.environ)
    import tune

    assert tune.__version__
    assert dict(os.environ) == before
    assert sys.modules["tune"] is tune
