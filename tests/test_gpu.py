"""On a GPU: the checks of benchmarks/gpu.py with muq-nano, each by its own limits."""

import importlib

import pytest
import torch
from conftest import ROOT

CHECKS = ("golden", "precision", "invariance", "overflow", "out_of_memory", "rows")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_a_gpu_computes_what_a_cpu_does(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu_correct, gpu_bench = map(importlib.import_module, ("gpu_correct", "gpu_bench"))
    bench = gpu_bench.Bench(torch.device("cuda"), rehearse=True)
    found = {}
    getattr(gpu_correct, name)(bench, found.update)
    assert found["checks"]
    assert [check for check in found["checks"] if not check["ok"]] == []
