"""profile.py bears a standard-library name; these keep both that module and ours usable."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import soundfile
from conftest import ROOT, run, tone

from tune.aggregators.transformer.recipes import TUNE, make_config, make_model


def test_the_standard_librarys_profile_is_handed_on():
    code = (
        "import profile, cProfile, sysconfig\n"
        "from pathlib import Path\n"
        "assert Path(profile.__file__) == Path(sysconfig.get_path('stdlib'), 'profile.py')\n"
        "assert callable(profile.run) and callable(profile.runctx) and profile.Profile\n"
        "cProfile.run('sum(range(10))')\n"
        "profile.run('sum(range(10))')\n"
    )
    done = run("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("function calls") == 2


def test_an_optimizer_works_from_the_repository_root():
    code = (
        "import cProfile, torch\n"
        "p = torch.nn.Parameter(torch.ones(1))\n"
        "o = torch.optim.AdamW([p], lr=0.1)\n"
        "(p * 2).sum().backward()\n"
        "o.step()\n"
        "print(p.item() < 1)\n"
    )
    done = run("-c", code, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stderr


def test_cprofile_runs_as_a_module_from_the_repository_root(tmp_path):
    script = tmp_path / "work.py"
    script.write_text("print(sum(range(1000)))\n")
    done = run("-m", "cProfile", script, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "499500" in done.stdout
    assert "function calls" in done.stdout


def test_late_fusion_keeps_every_segment_and_joins_none(tmp_path):
    grid = ["--encoder", "mel", "--seg", "1", "--agg", "mean", "max", "--fusion", "early", "late"]
    rest = ["--duration", "3", "--repeats", "1", "--out", "costs.json"]
    done = run(ROOT / "profile.py", *grid, *rest, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    sizes = {(row["agg"], row["fusion"]): row["embedding_dim"] for row in rows}
    assert sizes == {("mean", "early"): 256, ("mean", "late"): 768, ("max", "early"): 256}
    done = run(ROOT / "profile.py", *grid[:4], "--agg", "max", "--fusion", "late", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--fusion late joins no embeddings: it goes with --agg mean" in done.stderr


def test_the_script_shows_its_help():
    done = run("profile.py", "--help", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "peak memory" in done.stdout
    for word in (
        "transformer",
        "attention",
        "hierarchical",
        "structure",
        "--aggregator_checkpoint",
    ):
        assert word in done.stdout


def test_installing_puts_no_profile_on_the_path(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import profile, tune; print(profile.__file__); print(tune.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    profile_file, tune_file = done.stdout.split()
    assert not profile_file.startswith(str(ROOT))
    assert tune_file.startswith(str(ROOT))


def test_importing_it_loads_nothing_of_ours():
    code = "import profile, sys; print(any(m.startswith(('tune', 'torch')) for m in sys.modules))"
    done = run("-c", code, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_a_grid_beside_the_studys_figures_and_a_budget(tmp_path):
    done = run(
        ROOT / "profile.py",
        "--encoder=muq-nano",
        "--seg",
        "full",
        "--agg",
        "concat",
        "--duration=45",
        "--repeats=1",
        "--budget=11GB",
        "--out=costs/all.json",
        cwd=tmp_path,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "costs" / "all.json").read_text())
    rows = record["rows"]
    assert [(row["seg"], row["duration_s"]) for row in rows] == [("full", 45), ("full", 22.5)]
    full, half = rows
    assert full["encoder_passes"] == half["encoder_passes"] == 1
    assert full["embedding_dim"] == 193
    for row in rows:
        assert row["weights_bytes"] < row["peak_memory_bytes"] < 2e9
        assert row["peak_memory_bytes"] < row["peak_resident_bytes"]
        assert row["seconds_per_track"] > 0
        assert row["audio_seconds"] == row["duration_s"]
        assert 0 < row["share_of_matrix_rate"] < 2
    assert full["flops"] > 1.9 * half["flops"]
    assert half["study"] is None
    assert full["study"]["peak_memory_bytes"] == 6_816_000_000
    assert full["study"]["peak_ratio"] is None  # not MuQ at its full size
    assert record["budget"]["fits"] == [True, True]
    (line,) = record["budget"]["longest_full_track"]
    assert line["durations_s"] == [22.5, 45]
    assert line["seconds"] is None or line["seconds"] > 45
    assert record["machine"]["matrix_flops_per_second"]["no"] > 1e8
    assert record["versions"]["torch"]
    assert record["command"].startswith("profile.py --encoder=muq-nano")
    assert "6.816" in done.stdout
    assert "RTX 2080 Ti" in done.stdout
    assert "longest full track (muq-nano, float32, layer last)" in done.stdout
    assert "[2/2] muq-nano seg full" in done.stderr


def test_a_file_is_decoded_cut_and_tracked(tmp_path):
    soundfile.write(tmp_path / "song.wav", tone(3.0, 220, 44_100), 44_100)
    done = run(
        ROOT / "profile.py",
        "--encoder=mel",
        "--seg=1",
        "--agg=concat",
        "--audio",
        "song.wav",
        "--repeats=2",
        "--out=costs.json",
        "--report_to=wandb",
        cwd=tmp_path,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert row["audio"] == ["song.wav"]
    assert row["duration_s"] == pytest.approx(3.0, abs=1e-3)
    assert 0 < row["decode_seconds"] < row["seconds_per_track"]
    assert row["degenerate"] is None
    assert (row["encoder_passes"], row["embedding_dim"]) == (3, 3 * 256 + 3)
    assert row["flops"] is None
    assert row["seconds_per_track_min"] < row["seconds_per_track_max"]
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_the_plot_is_drawn_or_says_what_is_missing(tmp_path):
    done = run(
        ROOT / "profile.py",
        "--encoder=mel",
        "--seg=full",
        "--duration",
        "1",
        "2",
        "--repeats=1",
        "--plot=costs.svg",
        cwd=tmp_path,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    if importlib.util.find_spec("matplotlib"):
        assert done.returncode == 0, done.stderr
        assert "</svg>" in (tmp_path / "costs.svg").read_text()
    else:
        assert done.returncode == 2
        assert "pip install matplotlib" in done.stderr


@pytest.mark.slow
def test_hierarchical_makes_one_cell_of_all_segments_beside_the_grid(tmp_path):
    done = run(
        ROOT / "profile.py",
        "--encoder=mel",
        "--seg",
        "1",
        "1.0",
        "full",
        "--agg",
        "hierarchical",
        "mean",
        "--duration=2.5",
        "--repeats=1",
        "--budget=11GB",
        "--out=costs.json",
        cwd=tmp_path,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert [(row["seg"], row["agg"], row["duration_s"]) for row in rows] == [
        ("1", "mean", 2.5),
        ("full", "mean", 2.5),
        ("1+full", "hierarchical", 2.5),
        ("full", "mean", 1.25),
    ]
    assert [row["encoder_passes"] for row in rows] == [2, 1, 3, 1]
    assert "1+full" in done.stdout


@pytest.mark.slow
def test_a_transformer_stands_beside_the_studys_and_a_checkpoint_loses_its_folder(tmp_path):
    config = make_config(replace(TUNE, num_layers=1), 256, encoder="mel", tokens="segment")
    make_model(config, 1, None).save_pretrained(tmp_path / "aggregators" / "mine")
    done = run(
        ROOT / "profile.py",
        "--encoder=mel",
        "--seg",
        "10",
        "60",
        "--agg",
        "mean",
        "transformer",
        "--aggregator_checkpoint",
        tmp_path / "aggregators" / "mine",
        "--repeats=1",
        "--out=costs.json",
        cwd=tmp_path,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    found = {(row["seg"], row["agg"]): row for row in rows}
    peaks = {key: row["study"] and row["study"]["peak_memory_bytes"] for key, row in found.items()}
    assert peaks == {
        ("10", "mean"): 3_552_000_000,
        ("10", "transformer"): 4_095_000_000,
        ("60", "mean"): None,
        ("60", "transformer"): 4_132_000_000,
    }
    for (_, agg), row in found.items():
        assert row["aggregator_checkpoint"] == ("mine" if agg == "transformer" else None)
        assert (row["aggregator_parameters"] > 0) == (agg == "transformer")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seg=ten"], "number of seconds, 'full' or 'structure', got 'ten'"),
        (["--duration=0"], "a number above 0"),
        (["--budget=11"], "write 11GB"),
        (["--memory_budget=lots"], "a size such as 2GB"),
        (["--repeats=0"], "a whole number above 0"),
        (["--plot=costs.svg"], "two or more --duration"),
        (["--plot=costs.doc", "--duration", "1", "2"], ".png, .svg or .pdf"),
        (["--out=."], "is a folder"),
        (["--audio", "a.wav", "--duration=3"], "exclude each other"),
        (["--device=cuda"], "unrecognized arguments"),
        (["--agg=hierarchical", "--seg", "10", "10.0"], "needs several --seg, such as 10 30 full"),
        (
            ["--agg=transformer", "--layer", "last", "mix"],
            "joins one layer's tokens: --layer last ",
        ),
        (["--aggregator_checkpoint=mine"], "belongs to --agg transformer"),
        (["--tokens=beat"], "invalid choice: 'beat'"),
    ],
)
def test_a_bad_value_ends_in_one_line(tmp_path, flags, message):
    done = run(ROOT / "profile.py", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_aggregator_that_only_the_library_knows_ends_in_one_line(tmp_path):
    done = run(ROOT / "profile.py", "--agg", "mean", "magic", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "profile.py: error: --agg must be one of mean, duration_mean, max, concat"
    )
    assert len(done.stderr.splitlines()) == 1


def test_an_unusable_file_ends_in_one_line(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"")
    done = run(ROOT / "profile.py", "--audio=bad.wav", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: --audio bad.wav: empty file (0 bytes)\n"


@pytest.mark.slow
def test_a_cell_that_is_wrong_ends_in_one_line_and_keeps_what_came_before(tmp_path):
    done = run(
        ROOT / "profile.py",
        "--encoder=mel",
        "--layer",
        "0",
        "7",
        "--seg=full",
        "--duration=1",
        "--repeats=1",
        "--out=costs.json",
        cwd=tmp_path,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: --layer must be last, all, mix or a number from 0 to 0, got 7"
    )
    assert len(json.loads((tmp_path / "costs.json").read_text())["rows"]) == 1
