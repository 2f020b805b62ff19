"""benchmarks/gpu.py: its steps on a GPU where there is one, a rehearsal on the CPU, its limits."""

import importlib
import json
import sys
import time

import pytest
import torch
from conftest import ROOT, run

CHECKS = ("golden", "precision", "invariance", "overflow", "out_of_memory", "rows", "shared")
BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_a_gpu_computes_what_a_cpu_does(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu_correct, gpu_bench = map(importlib.import_module, ("gpu_correct", "gpu_bench"))
    bench = gpu_bench.Bench(torch.device("cuda"), rehearse=True)
    found = {}
    getattr(gpu_correct, name)(bench, found.update)
    assert found["checks"]
    assert [check for check in found["checks"] if not check["ok"]] == []


@pytest.mark.slow
def test_the_rehearsal_walks_every_step(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    out = tmp_path / "gpu.json"
    done = run(BENCHMARKS / "gpu.py", "--rehearse", "--out", out, cwd=tmp_path, timeout=500)
    report = json.loads(out.read_text(encoding="utf-8"))
    states = {name: part["state"] for name, part in report["steps"].items()}
    assert states == {step.name: "done" for step in gpu.STEPS}, done.stderr
    assert done.returncode == 0, done.stdout
    found = {name: part["result"] for name, part in report["steps"].items()}
    for name in CHECKS:
        assert all(check["ok"] for check in found[name]["checks"])
    sizes = next(c for c in found["out_of_memory"]["checks"] if "sizes" in c)["sizes"]
    assert sizes == [48, 24, 12, 6, 3]  # halved until the made-up memory suffices
    assert all(check["ok"] for check in found["graphed"]["checks"])
    assert len(found["pipeline"]["half"]["by_batches"]) == 2
    assert found["study"]["float32"]["agree"] is True
    assert found["probe"]["gpu"]["metrics"] == found["probe"]["cpu, same rows"]["metrics"]
    assert found["probe"]["cpu, same rows"]["cost"]["encoder_passes"] == 0
    assert len(found["small_card"]["rows"]) == 2 * 2 * 4 + 3
    assert found["pretraining"]["history"].startswith("epoch,train/loss")
    assert "small_card" in done.stdout


@pytest.fixture
def driver(monkeypatch):
    """gpu.py as a module, with three made-up steps in tests/gpu_steps.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    steps = [
        gpu.Step(name, "gpu_steps", 1.0 if name == "hangs" else 60.0)
        for name in ("fails", "hangs", "works")
    ]
    monkeypatch.setattr(gpu, "BY_NAME", {step.name: step for step in steps})
    program = (
        f"import sys; sys.path += {[str(BENCHMARKS), str(ROOT / 'tests'), str(ROOT)]!r}\n"
        "import gpu\n"
        "names = ('fails', 'hangs', 'works')\n"
        "gpu.BY_NAME = {n: gpu.Step(n, 'gpu_steps', 60.0) for n in names}\n"
        "gpu.work(gpu.parse_args(sys.argv[1:]))\n"
    )
    monkeypatch.setattr(gpu, "WORKER", [sys.executable, "-c", program])
    return gpu


def test_a_step_that_fails_or_hangs_does_not_end_the_others(driver, tmp_path, capfd):
    out = tmp_path / "gpu.json"
    args = driver.parse_args(["--rehearse", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        driver.main(args)
    assert end.value.code == 1
    steps = json.loads(out.read_text(encoding="utf-8"))["steps"]
    assert [part["state"] for part in steps.values()] == ["failed", "stopped", "done"]
    assert "ZeroDivisionError" in steps["fails"]["error"]
    assert steps["fails"]["result"] == {"before": 1}
    assert steps["hangs"]["result"] == {"half": True}  # what it had said by then
    assert steps["works"]["result"]["checks"][0]["ok"] is True
    said = capfd.readouterr()
    assert "Traceback" in said.err
    assert "error: not as expected: fails, hangs" in said.err


def test_the_whole_has_a_limit_and_earlier_parts_stay(driver, tmp_path):
    out = tmp_path / "gpu.json"
    with pytest.raises(SystemExit):
        driver.main(driver.parse_args(["--rehearse", "--out", str(out), "--steps", "fails"]))
    started = time.monotonic()
    with pytest.raises(SystemExit):
        driver.main(driver.parse_args(["--rehearse", "--out", str(out), "--limit", "0.001"]))
    assert time.monotonic() - started < 30
    steps = json.loads(out.read_text(encoding="utf-8"))["steps"]
    assert steps["fails"]["state"] == "failed"
    assert steps["works"]["state"] == "not begun"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_how_to_rehearse(tmp_path):
    done = run(BENCHMARKS / "gpu.py", "--out", tmp_path / "gpu.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: there is no CUDA device: --rehearse walks the steps on a CPU\n"
