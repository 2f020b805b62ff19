"""What is defined where numbers run out: memory, finite losses, labels and tracks."""

import csv
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, tone

from tune.encoders.registry import load_encoder
from tune.probing.bank import NonFiniteLossLocator
from tune.probing.intervals import score
from tune.segments.rules import SegmentRule
from tune.store.encode import encode_segments, encode_tracks
from tune.store.store import Store
from tune.system import memory
from tune.tasks.load import TaskError, load_task


def table(folder, rows) -> str:
    """A .csv of (label, split) rows."""
    with (folder / "task.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"][: 3 if rows[0][1] else 2])
        for i, (label, split) in enumerate(rows):
            writer.writerow([f"{i}.wav", label, split][: 3 if split else 2])
    return str(folder / "task.csv")


def load(folder, rows, **kwargs):
    return load_task(table(folder, rows), folder, cache_dir=folder, **kwargs)


TRAIN = [("rock", "train"), ("jazz", "train"), ("rock", "val"), ("jazz", "val")]


def test_a_label_that_is_not_in_training_is_skipped_and_said(tmp_path):
    task = load(tmp_path, [*TRAIN, ("rock", "test"), ("folk", "test")])
    assert task.classes == ["jazz", "rock"]
    assert len(task.splits["test"]) == 1
    (item,) = task.skipped
    assert item["reason"] == "unknown label 'folk': no training track has it"
    assert item["where"].endswith("task.csv:7")


def test_a_class_that_is_absent_from_test_is_no_part_of_macro_f1_even_if_predicted(tmp_path):
    task = load(tmp_path, [*TRAIN, ("rock", "test"), ("rock", "test")])
    truth = np.array(task.splits["test"]["label"])
    assert score("classes", truth, np.array([1, 1]), []) == {"accuracy": 1.0, "macro_f1": 1.0}
    found = score("classes", truth, np.array([1, 0]), [])
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx(2 / 3)}


def test_a_constant_target_is_refused_in_training_and_has_no_r2_in_test(tmp_path):
    numbers = [("0.5", "train"), ("1.5", "train"), ("0.5", "val"), ("0.7", "val")]
    with pytest.raises(TaskError, match="a target has the same value on all training tracks"):
        load(tmp_path, [("0.5", "train"), ("0.5", "train"), *numbers[2:], ("1.5", "test")])
    task = load(tmp_path, [*numbers, ("0.5", "test"), ("0.5", "test")])
    truth = np.array(task.splits["test"]["label"])
    assert math.isnan(score("numbers", truth, truth + 1, task.targets)["r2"])


@pytest.mark.parametrize(
    ("n", "refused"), [(1, "val split has no"), (2, "val split has no"), (12, None)]
)
def test_fewer_tracks_than_splits_is_refused(tmp_path, n, refused):
    rows = [(("rock", "jazz")[i % 2], None) for i in range(n)]
    if refused:
        with pytest.raises(TaskError, match=f"the {refused} usable track"):
            load(tmp_path, rows)
    else:
        assert all(len(split) for split in load(tmp_path, rows).splits.values())


def test_one_class_is_refused(tmp_path):
    with pytest.raises(TaskError, match="a classifier needs two classes or more"):
        load(tmp_path, [("rock", s) for s in ("train", "train", "val", "test")])


class Alone:
    """An accelerator of one process."""

    @staticmethod
    def gather(x):
        return x


def test_the_first_batch_whose_loss_is_not_finite_is_named_with_its_tracks():
    culprit, tracks = NonFiniteLossLocator(torch.device("cpu")), [f"{i}.wav" for i in range(10)]
    orders = torch.stack([torch.arange(10), torch.arange(9, -1, -1)])
    assert culprit.describe(Alone, orders, 4, tracks) == ", on the validation split"
    for value in (1.0, math.nan, math.inf):
        losses = torch.ones(2, 4)
        losses[1, 2] = value
        culprit.see(losses)
    said = culprit.describe(Alone, orders, 4, tracks)
    assert said == ", batch 2 of 3 (5.wav, 4.wav, 3.wav and 1 more)"


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__ + str(e)[:8])
def test_every_way_of_running_out_of_memory_halves_the_batch(monkeypatch, error):
    mel, sizes = load_encoder("mel"), []
    embed = mel.embed

    def small_memory(audio, *args):
        sizes.append(len(audio))
        if len(audio) > 2:
            raise error
        return embed(audio, *args)

    samples, spans = tone(4.0, 440), [(i * 12_000, (i + 1) * 12_000) for i in range(8)]
    expected, _ = encode_segments(samples, spans, mel, [0])
    monkeypatch.setattr(mel, "embed", small_memory)
    tokens, _ = encode_segments(samples, spans, mel, [0])
    assert sizes == [8, 4, 2, 2, 2, 2]
    np.testing.assert_array_equal(tokens, expected)


def test_another_runtime_error_is_not_taken_for_one(monkeypatch):
    mel = load_encoder("mel")

    def broken(*args):
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr(mel, "embed", broken)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        encode_segments(tone(1.0, 440), [(0, 24_000)], mel, [0])


FORCED = """
import resource, sys
import numpy as np, torch
from tune.encoders.registry import load_encoder
from tune.store.encode import encode_segments
torch.set_num_threads(1)
mel = load_encoder("mel")
rng = np.random.default_rng(1)
samples = rng.standard_normal(24_000 * 240).astype(np.float32)
spans = [(i * 24_000, (i + 1) * 24_000) for i in range(240)]
sizes, embed = [], mel.embed
mel.embed = lambda audio, *a: sizes.append(len(audio)) or embed(audio, *a)
few, _ = encode_segments(samples, spans[:4], mel, [0])  # whatever it needs but for the batch
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, resource.RLIM_INFINITY))
sizes.clear()
tokens, _ = encode_segments(samples, spans, mel, [0], batch_seconds=240)
assert sizes[0] == 240 and sizes[-1] < 240 and sizes[1] == 120, sizes
assert np.allclose(tokens[:4], few, atol=1e-3)
print("halved", len(tokens))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory as Linux does")
def test_memory_that_runs_out_in_truth_halves_the_batch():
    done = subprocess.run(
        [sys.executable, "-c", FORCED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "halved 240\n"), done.stderr


def test_low_memory_is_said_in_one_line_before_anything_is_encoded(tmp_path, monkeypatch, caplog):
    import soundfile

    path, nano = str(tmp_path / "a.wav"), load_encoder("muq-nano")
    soundfile.write(path, tone(1.0, 440), 24_000)
    store, rule = Store(tmp_path / "store"), SegmentRule(1.0)
    collection = store.collection(nano, [4], None)
    needed = nano.expected_bytes(60.0)
    assert 0 < needed < memory.free_memory_bytes(nano.device)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: needed - 1)
    with caplog.at_level(logging.WARNING, "tune"):
        encode_tracks([path], nano, rule, store, collection)
        (record,) = caplog.records
        assert "GB are free in memory, encoding may take" in record.getMessage()
        assert "lower --memory_budget, --batch_seconds or --seg" in record.getMessage()
        caplog.clear()
        encode_tracks([path], nano, rule, store, collection)  # it's stored: nothing to warn of
        assert not caplog.records


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "CGROUPS", ((str(limit), str(used)),))
    machine = memory.free_memory_bytes(torch.device("cpu"))
    limit.write_text("max\n")
    used.write_text("500\n")
    assert memory.free_memory_bytes(torch.device("cpu")) > 100_000
    limit.write_text("1700\n")
    assert memory.free_memory_bytes(torch.device("cpu")) == 1200 < machine
