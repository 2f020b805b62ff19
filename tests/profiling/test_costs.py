"""tune.profiling: costs on paper, measured, and as people read them."""

import io
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from rich.console import Console
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tune.aggregators.registry import AGGREGATORS
from tune.aggregators.transformer.recipes import TUNE, make_config, make_model
from tune.encoders import cpu_linear, muq
from tune.encoders.registry import load_encoder
from tune.profiling import arithmetic, report
from tune.profiling import measure as measuring
from tune.store.collection import Row
from tune.system import memory

GB = 10**9


# Arithmetic


@pytest.fixture(scope="module")
def nano():
    """MuQ in small."""
    return load_encoder("muq-nano")


@pytest.mark.parametrize("layer", [0, 1, 4])
@pytest.mark.parametrize("n_samples", [24_000, 80_880])
def test_arithmetic_agrees_with_torchs_counter(nano, layer, n_samples, monkeypatch):
    audio = np.full((1, n_samples), 0.1, np.float32)
    # The counter knows neither the CPU's fused attention nor oneDNN's products: their plain forms.
    monkeypatch.setattr(cpu_linear, "ONEDNN", False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        nano.embed(audio, [layer])
    assert arithmetic.muq_flops(nano, n_samples, layer) == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


def test_muq_large_takes_264_gflop_in_front_and_146_in_its_layers():
    """10 s through MuQ-large, on shapes alone: 264 in convolutions, 146 in layers, 420 in all."""
    from muq.muq.modules.conv import Conv2dSubsampling
    from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
        Wav2Vec2ConformerConfig,
        Wav2Vec2ConformerEncoder,
    )

    config = muq.nano_config()["w2v2_config"] | muq.LARGE_W2V2
    with torch.device("meta"):
        front = Conv2dSubsampling(1, 512, 1024, strides=[2, 2], n_bands=128)
        front.blocks, front.hop, front.bands = front.conv, 240, torch.empty(1025, 128)
        conformer = Wav2Vec2ConformerEncoder(Wav2Vec2ConformerConfig(**config))
    model = SimpleNamespace(frontend=front, conformer=conformer)
    in_front, in_all = (arithmetic.muq_flops(model, 240_000, layer) for layer in (0, 12))
    mel_and_projection = 2 * 1000 * 1025 * 128 + 2 * 250 * (512 * 32) * 1024
    assert in_front - mel_and_projection == pytest.approx(264e9, rel=0.01)
    assert in_all - in_front == pytest.approx(146e9, rel=0.02)
    assert in_all == pytest.approx(420e9, rel=0.01)


def test_a_layer_that_is_not_there_is_an_error(nano):
    with pytest.raises(ValueError, match=r"0\.\.4, got 5"):
        arithmetic.muq_flops(nano, 24_000, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_rate_is_a_rate(dtype, monkeypatch):
    monkeypatch.setitem(arithmetic.RATE_SIZES, "cpu", (64, 256))
    assert 1e6 < arithmetic.matrix_rate(torch.device("cpu"), dtype) < 1e16


# Budgets


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("2GB", 2 * GB),
        ("800MB", 800 * 10**6),
        (" 1.5 gb", 1_500_000_000),
        ("1GiB", 2**30),
        ("64kB", 64_000),
        ("12b", 12),
        ("0.5", 4 * GB),
        (".25", 2 * GB),
        ("1", 8 * GB),
    ],
)
def test_budget_is_a_size_or_a_fraction(text, n_bytes):
    assert memory.parse_budget(text, 8 * GB) == n_bytes


@pytest.mark.parametrize("text", ["", "much", "-1GB", "2 4GB", "2G", "nan", "inf", "1e3MB"])
def test_budget_of_another_form_is_an_error(text):
    with pytest.raises(ValueError, match=r"size such as 2GB .* fraction"):
        memory.parse_budget(text, 8 * GB)


def test_budget_above_one_needs_a_unit():
    with pytest.raises(ValueError, match="write 2GB"):
        memory.parse_budget("2", 8 * GB)


@pytest.mark.parametrize("text", ["0GB", "0", "0.0", "0.1b"])
def test_budget_of_nothing_is_an_error(text):
    with pytest.raises(ValueError, match="above 0"):
        memory.parse_budget(text, 8 * GB)


def test_device_memory_of_a_cpu_is_the_machines():
    assert memory.device_memory(torch.device("cpu")) > 2**28


def test_longest_track_by_hand():
    line = arithmetic.longest_within(11 * GB, [30, 60, 60], [2 * GB, 3 * GB, 3 * GB])
    assert line["bytes_at_0_s"] == pytest.approx(1 * GB)
    assert line["seconds"] == pytest.approx(300)


def test_longest_track_is_none_where_memory_does_not_grow_and_0_where_nothing_fits():
    assert arithmetic.longest_within(GB, [30, 60], [3 * GB, 2 * GB])["seconds"] is None
    assert arithmetic.longest_within(GB, [30, 60], [4 * GB, 5 * GB])["seconds"] == 0.0
    with pytest.raises(ValueError, match="two or more"):
        arithmetic.longest_within(GB, [30, 30], [1, 2])


# The study's figures


def test_the_studys_seconds_are_divided_by_its_test_tracks():
    found = arithmetic.study_cost(45.0, "10", "concat")
    assert (found["task"], found["peak_memory_bytes"]) == ("EMO", 9_730_000_000)
    assert found["seconds_per_track"] == pytest.approx(137.0 / 125)
    found = arithmetic.study_cost(30.0, "30", "mean")
    assert (found["task"], found["peak_memory_bytes"]) == ("GTZAN", 3_928_000_000)
    assert found["seconds_per_track"] == pytest.approx(82.5 / 290)


def test_the_studys_full_track_serves_every_aggregator():
    rows = [arithmetic.study_cost(45.01, "full", agg) for agg in AGGREGATORS]
    assert all(row == rows[0] for row in rows)
    assert rows[0]["peak_memory_bytes"] == 6_816_000_000


@pytest.mark.parametrize(
    ("seconds", "seg", "agg"), [(60, "full", "mean"), (45, "10", "max"), (45, "20", "mean")]
)
def test_where_the_study_is_silent_there_is_nothing(seconds, seg, agg):
    assert arithmetic.study_cost(seconds, seg, agg) is None


def test_the_studys_table_is_complete():
    cells = {(task, seg, agg) for task, seg, agg in arithmetic.STUDY}
    strategies = {
        ("full", "any"),
        ("10", "concat"),
        ("10", "mean"),
        ("10", "transformer"),
        ("30", "mean"),
        ("60", "transformer"),
    }
    assert cells == {(task, *each) for task in ("EMO", "GTZAN") for each in strategies}
    assert arithmetic.study_cost(45.0, "60", "transformer")["peak_memory_bytes"] == 4_132_000_000
    assert arithmetic.study_cost(30.0, "10", "transformer")["seconds_per_track"] == 80.7 / 290


# Measuring


def test_a_config_in_this_process_counts_passes_values_and_arithmetic(nano):
    config = measuring.ProfileConfig("1", "concat", 2.5, encoder="muq-nano", layer="2")
    found = measuring.measure_here(config, 2)
    assert found["segments_per_track"] == {"min": 2, "median": 2.0, "max": 2}  # 0.5 s is dropped
    assert (found["encoder_passes"], found["audio_seconds"]) == (2, 2.0)
    assert found["embedding_dim"] == 2 * 192 + 2
    assert found["flops"] == 2 * arithmetic.muq_flops(nano, 24_000, 2)
    assert found["store_bytes"] > 2 * 192 * 4
    assert found["degenerate"] is None
    low, high = found["seconds_per_track_min"], found["seconds_per_track_max"]
    assert 0 < low <= found["seconds_per_track"] <= high
    # Layers above 2 are dropped, so their weights count nowhere.
    assert 0 < found["weights_bytes"] < memory.weights_bytes(nano)
    assert found["peak_memory_bytes"] >= found["weights_bytes"]


@pytest.mark.parametrize(
    ("agg", "size", "parameters"),
    [
        ("duration_mean", 256, 0),
        ("stats", 512, 0),
        ("max", 256, 0),
        ("attention", 256, 2 * 256 * 32 + 32 * 4),
    ],
)
def test_a_config_joins_as_the_aggregator_does(agg, size, parameters):
    found = measuring.measure_here(measuring.ProfileConfig("1", agg, 2.5, encoder="mel"), 1)
    assert (found["embedding_dim"], found["aggregator_parameters"]) == (size, parameters)
    assert found["join_seconds"] > 0
    assert found["seconds_per_track"] == pytest.approx(
        sum(found[f"{stage}_seconds"] for stage in measuring.STAGES)
    )


def joined_by(config, encoder):
    """What joins the rows of a track, as profile.py measures it."""
    return partial(measuring.join, measuring.make_aggregator(config, encoder))


def test_attention_joins_every_layer(nano):
    config = measuring.ProfileConfig("1", "attention", 2.5, encoder="muq-nano", layer="all")
    join = joined_by(config, nano)
    tokens = np.random.default_rng(0).standard_normal((2, 5, 192)).astype(np.float32)
    joined = join([Row(tokens, [(0, 24_000), (24_000, 48_000)], [1, 1], False, 0.0)])
    # Its scores begin at zero: each token weighs the same.
    assert torch.stack(joined).numpy() == pytest.approx(tokens.mean(0, np.float64))


@pytest.mark.parametrize(
    ("seg", "agg", "views"), [("1", "mean", 5), ("1", "attention", 5), ("1+2", "hierarchical", 10)]
)
def test_mixed_layers_are_joined_into_one(nano, seg, agg, views):
    config = measuring.ProfileConfig(seg, agg, 2.5, encoder="muq-nano", layer="mix")
    aggregator = measuring.make_aggregator(config, nano)
    scales = len(config.rules)
    tokens = np.random.default_rng(0).standard_normal((2, 5, 192)).astype(np.float32)
    row = Row(tokens, [(0, 24_000), (24_000, 48_000)], [1, 1], False, 0.0)
    (joined,) = measuring.join(aggregator, [row] * scales)
    model = aggregator.pooling
    assert joined.numpy() == pytest.approx(tokens.mean((0, 1), np.float64))
    assert len((model if agg != "attention" else model.mix).scores) == views


def test_duration_mean_weighs_the_tail_by_its_length(nano):
    join = joined_by(measuring.ProfileConfig("1", "duration_mean", 2.5), nano)
    tokens = np.array([[[1.0]], [[5.0]]], np.float32)
    (joined,) = join([Row(tokens, [(0, 30_000), (30_000, 40_000)], [1, 1], False, 0.0)])
    assert joined.item() == pytest.approx(2.0)


def test_a_transformer_of_the_recipe_joins_and_its_weights_count():
    plain = measuring.measure_here(measuring.ProfileConfig("1", "mean", 2.5, encoder="muq-nano"), 1)
    config = measuring.ProfileConfig("1", "transformer", 2.5, encoder="muq-nano")
    found = measuring.measure_here(config, 1)
    assert found["embedding_dim"] == 10 * 192  # every view that a gate may let through
    assert found["encoder_passes"] == plain["encoder_passes"] == 2
    more = found["weights_bytes"] - plain["weights_bytes"]
    assert more >= 4 * found["aggregator_parameters"] > 1e6
    frames = measuring.ProfileConfig("1", "transformer", 2.5, encoder="muq-nano", frame_rate=25.0)
    assert measuring.measure_here(frames, 1)["store_bytes"] > 10 * found["store_bytes"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small Transformer over muq-nano's segments."""
    recipe = replace(TUNE, num_layers=1, readout="cls")
    config = make_config(recipe, 192, encoder="muq-nano", tokens="segment", seg="10")
    folder = tmp_path_factory.mktemp("aggregator")
    make_model(config, 1, None).save_pretrained(folder)
    return str(folder)


def test_a_checkpoint_is_measured_instead(checkpoint):
    config = measuring.ProfileConfig(
        "1", "transformer", 2.5, encoder="muq-nano", aggregator_checkpoint=checkpoint
    )
    found = measuring.measure_here(config, 1)
    assert found["embedding_dim"] == 192
    config = replace(config, aggregator_checkpoint=None)
    own = measuring.make_aggregator(config, load_encoder("muq-nano")).model
    assert found["aggregator_parameters"] < sum(p.numel() for p in own.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "mel"}, "joins tokens of 192 values .of muq-nano., those of mel have 256"),
        ({"frame_rate": 2.0}, "joins the tokens 'segment', not 'frame at 2 Hz': --tokens"),
        ({"aggregator_checkpoint": "./none"}, "./none: no such folder"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, changes, message):
    given = {"encoder": "muq-nano", "aggregator_checkpoint": checkpoint, **changes}
    with pytest.raises(ValueError, match=message):
        measuring.measure_here(measuring.ProfileConfig("1", "transformer", 2.5, **given), 1)


def test_hierarchical_is_one_config_and_costs_all_scales(nano):
    found = measuring.measure_here(
        measuring.ProfileConfig("1+2+full", "hierarchical", 3.0, encoder="muq-nano"), 1
    )
    assert found["segments_per_track"] == {"min": 6, "median": 6.0, "max": 6}
    assert (found["encoder_passes"], found["audio_seconds"]) == (6, 9.0)
    assert (found["embedding_dim"], found["aggregator_parameters"]) == (192, 3)
    seconds = (1, 1, 1, 2, 1, 3)
    assert found["flops"] == sum(arithmetic.muq_flops(nano, s * 24_000, 4) for s in seconds)
    assert found["degenerate"] is None


def test_scales_that_cut_alike_are_encoded_once_as_in_the_store():
    found = measuring.measure_here(
        measuring.ProfileConfig("5+10+full", "hierarchical", 3.0, encoder="mel"), 1
    )
    assert (found["encoder_passes"], found["audio_seconds"]) == (1, 3.0)
    assert found["segments_per_track"]["max"] == 3
    assert found["degenerate"] == "equals full"
    alone = measuring.measure_here(measuring.ProfileConfig("full", "mean", 3.0, encoder="mel"), 1)
    assert (found["store_bytes"], alone["degenerate"]) == (alone["store_bytes"], None)


def test_finding_where_to_cut_is_timed_apart_from_encoding():
    found = measuring.measure_here(
        measuring.ProfileConfig("structure", "mean", 12.0, encoder="muq-nano"), 1
    )
    assert found["cut_seconds"] > 1e-4
    assert found["flops_per_second"] == pytest.approx(found["flops"] / found["encode_seconds"])
    assert found["audio_seconds"] == 12.0


def test_what_cutting_imports_is_there_before_the_resting_measurement():
    code = (
        "import sys, numpy as np\n"
        "from tune.profiling import measure as measuring\n"
        "from tune.segments.rules import parse_rule\n"
        "rule = parse_rule('structure')\n"
        "measuring._warm_up_cutting(rule, 24_000)\n"
        "there = set(sys.modules)\n"
        "music = np.random.default_rng(0).standard_normal(60 * 24_000).astype(np.float32)\n"
        "music[24_000 * 20 :] *= 0.01\n"
        "assert len(rule.cut(music, 24_000)) > 1\n"
        "print(sorted(m for m in set(sys.modules) - there if 'librosa' in m or 'sklearn' in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_segment_that_is_no_shorter_than_the_track_is_marked():
    found = measuring.measure_here(measuring.ProfileConfig("10", "mean", 1.0, encoder="mel"), 1)
    assert found["degenerate"] == "equals full"
    assert (found["encoder_passes"], found["embedding_dim"], found["flops"]) == (1, 256, None)


def test_the_peak_is_seen_below_an_earlier_one():
    encoder = SimpleNamespace(device=torch.device("cpu"), part=nn.Linear(10, 10, bias=False))
    earlier = np.ones(40_000_000)  # 320 MB
    del earlier
    with memory.peak_memory(encoder) as found:
        block = np.ones(20_000_000)  # 160 MB
        time.sleep(0.1)
        del block
    assert found["weights_bytes"] == 400
    assert 150e6 < found["peak_memory_bytes"] < 250e6


def test_the_child_finds_the_standard_library_before_the_repository(monkeypatch):
    code = "import json, sys; sys.path.append(sys.argv[1])\n"
    code += "json.dump(sys.path, open(sys.argv[2], 'w'))"
    monkeypatch.setattr(measuring, "CHILD", code)
    monkeypatch.chdir(ROOT)
    path = measuring.measure(measuring.ProfileConfig("10", "mean", 1.0))
    assert path[-1] == str(ROOT)
    assert "" not in path


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("ValueError('too long') from torch.OutOfMemoryError('x')", "out of memory"),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", "out of memory"),
    ],
)
def test_a_config_that_does_not_fit_is_reported(monkeypatch, error, message):
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import torch\n"
        "from tune.profiling import measure as measuring\n"
        f"def broken(config, repeats): raise {error}\n"
        "measuring.measure_here = broken\n"
        "measuring.child()\n"
    )
    monkeypatch.setattr(measuring, "CHILD", code)
    assert measuring.measure(measuring.ProfileConfig("10", "mean", 1.0)) == {"failed": message}


def test_a_killed_child_is_reported_and_a_bug_is_raised(monkeypatch):
    config = measuring.ProfileConfig("10", "mean", 1.0)
    monkeypatch.setattr(measuring, "CHILD", "import os; os.kill(os.getpid(), 9)")
    assert "out of memory" in measuring.measure(config)["failed"]
    monkeypatch.setattr(measuring, "CHILD", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="code 3"):
        measuring.measure(config)


@pytest.mark.gpu
def test_a_gpu_reports_what_pytorch_allocated():
    config = measuring.ProfileConfig(
        "1", "mean", 3.0, encoder="muq-nano", device="cuda", precision="fp16"
    )
    found = measuring.measure(config, 1)
    assert found["peak_memory_kind"] == "allocated"
    assert found["weights_bytes"] < found["peak_memory_bytes"] <= found["peak_reserved_bytes"]


# The report


def settings(**changes):
    """A configuration's settings."""
    return {
        "seg": "10",
        "agg": "mean",
        "duration_s": 45.0,
        "layer": "last",
        "fusion": "early",
        "encoder": "muq",
        "precision": "fp16",
        "batch_seconds": 60.0,
        "frame_rate": None,
        **changes,
    }


def found(**changes):
    """What measuring such a configuration gives."""
    return {
        "duration_s": 45.0,
        "peak_memory_bytes": 1_776_000_000,
        "peak_memory_kind": "allocated",
        "weights_bytes": 670_000_000,
        "seconds_per_track": 0.2,
        "seconds_per_track_min": 0.1,
        "seconds_per_track_max": 0.3,
        "decode_seconds": 0.0,
        "audio_seconds_per_second": 225.0,
        "flops": 2e12,
        "flops_per_second": 1e13,
        "embedding_dim": 1024,
        "store_bytes": 20_000,
        "encoder_passes": 5.0,
        "degenerate": None,
        "redone_in_float32": 0.0,
        "muq_large": True,
        "encoder_untrained": True,
        "cut_seconds": 0.0,
        "join_seconds": 1e-5,
        "aggregator_parameters": 0,
        **changes,
    }


def printed(function, *args):
    """What a function prints on a wide console."""
    console = Console(width=200, record=True, file=io.StringIO())
    function(*args, console)
    return console.export_text()


def test_a_row_has_its_share_of_the_machine_and_the_studys_ratio():
    row = report.complete_row(settings(), found(), 4e13)
    assert row["share_of_matrix_rate"] == 0.25
    assert row["study"]["peak_ratio"] == pytest.approx(1.776 / 3.552)


def test_another_encoder_is_not_compared_with_the_study():
    row = report.complete_row(settings(), found(muq_large=False), 4e13)
    assert row["study"]["peak_memory_bytes"] == 3_552_000_000
    assert row["study"]["peak_ratio"] is None
    assert "No ratio" in printed(report.print_costs, [row], "this GPU")


def test_the_table_says_whose_seconds_these_are():
    rows = [
        report.complete_row(settings(), found(), 4e13),
        report.complete_row(settings(seg="60"), found(degenerate="equals full"), 4e13),
        report.complete_row(settings(seg="30", layer="6"), {"failed": "out of memory"}, 4e13),
        report.complete_row(settings(), found(flops_per_second=None), 4e13),
    ]
    text = printed(report.print_costs, rows, "this GPU")
    for part in (
        "RTX 2080 Ti, we on this GPU",
        "125 tracks",
        "290 tracks",
        "3.552",
        "0.50",
        "25%",
        "5 = full",
        "out of memory",
        "muq (random weights), fp16",
    ):
        assert part in text
    assert "│ layer" in text.replace("┃", "│")  # it differs, so it has a column


def test_the_table_says_what_cutting_and_learning_add():
    joined = found(cut_seconds=0.05, join_seconds=0.004, aggregator_parameters=3_025_536)
    rows = [report.complete_row(settings(agg="transformer"), joined, 4e13)]
    text = printed(report.print_costs, rows, "this GPU")
    for part in (
        "up to 0.050 s a track",
        "transformer: up to 3,025,536 parameters",
        "0.0040 s",
        "4.095",
        "joins frames at 25 Hz",
    ):
        assert part in text
    rows[0]["frame_rate"] = 25.0
    assert "joins frames" not in printed(report.print_costs, rows, "this GPU")
    plain = [report.complete_row(settings(), found(), 4e13)]
    text = printed(report.print_costs, plain, "this GPU")
    assert "to cut" not in text
    assert "parameters" not in text


def test_a_table_without_the_studys_lengths_has_no_study():
    row = report.complete_row(settings(), found(duration_s=60.0), 4e13)
    assert "study" not in printed(report.print_costs, [row], "this GPU")


def test_budget_names_what_does_not_fit_and_the_longest_track():
    rows = [
        report.complete_row(settings(seg="full"), found(), 4e13),
        report.complete_row(
            settings(seg="full", duration_s=90.0),
            found(duration_s=90.0, peak_memory_bytes=2_776_000_000),
            4e13,
        ),
        report.complete_row(settings(seg="30"), {"failed": "out of memory"}, 4e13),
    ]
    answer = report.budget_answer(rows, 2 * GB)
    assert answer["fits"] == [True, False, False]
    (line,) = answer["longest_full_track"]
    assert line["seconds"] == pytest.approx(45 + 45 * 0.224)
    text = printed(report.print_budget, rows, answer)
    assert "1 of 3 configurations fit into 2.00 GB" in text
    assert "seg 30 mean, track 45 s, layer last, fp16, 60 s a batch: out of memory" in text
    assert "about 55 s (0.9 min), extrapolated" in text


def test_curves_hold_one_strategy_in_order_of_length():
    rows = [
        report.complete_row(settings(seg=seg), found(duration_s=s), 4e13)
        for seg in ("10", "full")
        for s in (60.0, 30.0)
    ]
    rows.append(report.complete_row(settings(), {"failed": "out of memory"}, 4e13))
    lines = report.curves(rows)
    assert list(lines) == ["10 mean", "full mean"]
    assert [row["duration_s"] for row in lines["10 mean"]] == [30.0, 60.0]


def test_importing_costs_and_measuring_loads_nothing_heavy():
    code = (
        "import sys, tune.profiling.arithmetic, tune.profiling.measure\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
