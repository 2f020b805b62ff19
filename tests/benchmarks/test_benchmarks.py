"""benchmarks/: each command as its users run it, in small; no speed is asserted."""

import importlib
import json

import pytest
from conftest import ROOT, run

BENCHMARKS = ROOT / "benchmarks"
NAMES = ("study_loop", "levers", "per_epoch", "scaling", "pipeline")


def bench(name, *args, cwd):
    """Run a benchmark with muq-nano on the CPU; return its report and the finished process."""
    out = cwd / "new" / f"{name}.json"
    given = ("--encoder", "muq-nano", "--device", "cpu", "--out", out)
    done = run(BENCHMARKS / f"{name}.py", *args, *given, cwd=cwd)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["benchmark"] == name
    assert report["command"].startswith(f"python benchmarks/{name}.py {args[0]}")
    assert str(cwd) not in json.dumps({k: v for k, v in report.items() if k != "versions"})
    assert report["machine"]["cores"] >= 1
    assert "cpu" in report["machine"]["device"]
    assert "torch" in report["versions"]
    assert "git_sha" in report
    return report, done


@pytest.fixture
def scaling(monkeypatch):
    """benchmarks/scaling.py as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scaling")


def test_decoding_measures_each_kind(tmp_path):
    out = tmp_path / "decoding.json"
    given = ("--duration", "1", "--rounds", "1", "--out", out)
    done = run(BENCHMARKS / "decoding.py", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    speeds = report["times_real_time"]
    wavs = {"wav", "wav, 24 bits", "wav, floats"}
    assert set(speeds) == wavs | {"flac", "mp3", "ogg", "opus", "m4a"}
    assert all(min(speed.values()) > 1 for speed in speeds.values())
    assert wavs | {"flac", "mp3", "ogg"} <= report["ratio_to_libsndfile"].keys()


def test_probes_are_trained_in_both_precisions(tmp_path):
    out = tmp_path / "probes.json"
    given = ["--tracks", "64", "--layers", "2", "--size", "16", "--seeds", "2", "--rounds", "1"]
    done = run(BENCHMARKS / "probes.py", *given, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert set(report["epoch"]) == {"float64", "float32"} == set(report["magnatagatune_s"])
    assert report["ratio"] > 0


@pytest.mark.slow
def test_study_loop_agrees_and_reports_both_sides(tmp_path):
    args = ("--duration", "3.5", "--rounds", "2", "--segs", "2", "full", "--layers", "4", "1")
    report, done = bench("study_loop", *args, cwd=tmp_path)
    cells = {(c["seg"], c["layer"]): c for c in report["cells"]}
    assert set(cells) == {("2", 4), ("2", 1), ("full", 4), ("full", 1)}
    assert report["agree"] is True
    for cell in cells.values():
        assert cell["max_abs_difference"] < 1e-4
        assert len(cell["study"]["rounds_s"]) == len(cell["ours"]["rounds_s"]) == 2
        assert cell["ratio"] == cell["study"]["median_s"] / cell["ours"]["median_s"]
        assert cell["ours_share_of_matmul"] >= cell["ours_share_of_best"] > 0
    assert cells["2", 4]["segments"] == 2
    flops = report["arithmetic"]["flop_by_layer"]
    assert flops == sorted(flops)
    assert len(flops) == 5
    assert flops[-1] < report["arithmetic"]["flop_with_logits"]
    assert set(report["rates_flop_per_s"]) == {"no"}
    assert all(rate > 0 for rate in report["rates_flop_per_s"]["no"].values())
    assert "study's way" in done.stdout


@pytest.mark.slow
def test_levers_are_pulled_one_by_one(tmp_path):
    args = ("--duration", "1.5", "--rounds", "2")
    report, done = bench("levers", *args, cwd=tmp_path)
    levers = {row["lever"]: row for row in report["levers"]}
    assert report["agree"] is True
    assert report["compile"] is None
    *rows, total = report["levers"]
    assert (total["run"], total["without"]) == ("ours", "study")
    ladder = [row for row in rows if row["compared_with"] == "study"]
    assert [row["without"] for row in ladder] == ["study", *(row["run"] for row in ladder[:-1])]
    assert ladder[-1]["run"] == "ours"
    assert len(ladder) == 8
    for row in levers.values():
        assert len(row["with_s"]["rounds_s"]) == 2
        assert row["ratio"] == row["without_s"]["median_s"] / row["with_s"]["median_s"]
    # By hand: 113 frames of 4.5 s in chunks of 50 compute 4 + 8 + 4 more.
    chunk = levers["front end in chunks of 2 s"]
    assert 113 / (113 + 16) < chunk["predicted_ratio"] < 0.9
    assert "front end in chunks of 5 s" not in levers
    assert 1 < levers["early exit at layer 2"]["predicted_ratio"] < 2
    assert levers["early exit at layer 2"]["compared_with"] == "study, middle layer"
    assert levers["attention as SDPA"]["predicted_ratio"] is None
    assert levers["bf16"]["max_abs_difference"] > 0
    assert levers["bf16"]["cosine"] >= 0.9999
    assert "batch norm folded" in done.stdout


@pytest.mark.parametrize("works", [True, False])
def test_levers_say_what_compiling_gave_or_why_it_failed(monkeypatch, works):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    levers = importlib.import_module("levers")

    def load(name, weights, device, compile):
        assert compile
        if not works:
            raise RuntimeError("no compiler\n" + 50 * "more ")
        return levers.common.load_ours(name, weights, device)

    monkeypatch.setattr(levers, "load_encoder", load)
    args = levers.parse_args(["--encoder", "muq-nano", "--compile"])
    runs, rows, embeddings = {}, [], {}
    track = levers.common.compose(1, 24_000, seed=1)
    said = levers.try_compile(runs, rows, embeddings, args, levers.torch.device("cpu"), track)
    if works:
        assert said["first_run_s"] > 0
        assert [(row.run, row.without) for row in rows] == [("compiled", "ours")]
        assert (runs["compiled"]() == embeddings["compiled"]).all()
    else:
        assert said == {"failed": "RuntimeError: no compiler" + 18 * " more"}
        assert not runs
        assert not rows


def test_frames_with_halo_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    levers = importlib.import_module("levers")
    assert levers.frames_with_halo(100, 100) == 100
    assert levers.frames_with_halo(100, 50) == 108
    assert levers.frames_with_halo(100, 25) == 29 + 33 + 33 + 29
    assert levers.frames_with_halo(101, 50) == 54 + 55 + 5  # the middle one's halo is cut


@pytest.mark.slow
def test_per_epoch_says_that_one_epoch_was_multiplied(tmp_path):
    report, done = bench("per_epoch", "--tracks", "6", "--duration", "2", cwd=tmp_path)
    once, every = report["encode_once"], report["encode_every_epoch"]
    assert (every["measured_epochs"], every["multiplied_by"]) == (1, 50)
    assert every["encode_s"] == pytest.approx(50 * every["measured_encode_s"])
    assert (once["encoder_passes"], every["encoder_passes"]) == (6, 300)
    assert report["ratio"] == pytest.approx(every["total_s"] / once["total_s"])
    assert report["tracks"] == {"train": 4, "val": 2}
    assert "ONE epoch measured" in done.stdout


@pytest.mark.slow
def test_a_benchmark_cuts_by_the_sound_too(tmp_path):
    args = ("--tracks", "1", "--duration", "11", "--rounds", "1", "--seg", "structure")
    report, _ = bench("pipeline", *args, cwd=tmp_path)
    assert report["seg"] == "structure"
    assert report["pipeline"]["median_s"] > 0


@pytest.mark.slow
def test_pipeline_compares_files_with_the_encoder_alone(tmp_path):
    args = ("--tracks", "2", "--duration", "2.5", "--rounds", "2", "--seg", "1")
    report, _ = bench("pipeline", *args, cwd=tmp_path)
    files, encoder = report["pipeline"], report["encoder_alone"]
    assert report["ratio"] == files["median_s"] / encoder["median_s"]
    assert len(report["decode_and_resample_alone"]["rounds_s"]) == 2
    assert report["audio_s"] == pytest.approx(5, abs=0.01)


@pytest.mark.slow
def test_a_clock_stands_in_for_a_card(tmp_path):
    args = ("--tracks", "4", "--duration", "3", "--rounds", "1", "--seg", "1", "--card_speed", "6")
    report, done = bench("pipeline", *args, cwd=tmp_path)
    assert report["card_speed"] == 6
    assert report["encoder_alone"]["median_s"] == pytest.approx(2, abs=0.2)  # 12 s at 6 x
    assert report["pipeline"]["median_s"] > 2
    assert report["batches"] == "shared by tracks"
    assert "a card at 6 x real time" in done.stdout


@pytest.mark.slow
def test_scaling_measures_skips_and_counts(tmp_path):
    args = ("--durations", "1", "60", "--segs", "full", "--tracks", "5", "--max_memory", "40MB")
    report, done = bench("scaling", *args, cwd=tmp_path)
    cells = {(c["mode"], c["duration_s"]): c for c in report["cells"]}
    for key in (("chunked", 1), ("chunked", 60), ("unchunked", 1)):
        assert cells[key]["seconds"] > 0
        assert cells[key]["peak_above_bytes"] >= 0
        assert cells[key]["rest_bytes"] > cells[key]["weights_bytes"] > 1e6
    assert "more than --max_memory 0.04 GB" in cells["unchunked", 60]["skipped"]
    assert [r["duration_s"] for r in report["ratios_to_chunked"]] == [1, 60]
    assert report["ratios_to_chunked"][0]["seconds_ratio"] > 0
    assert report["ratios_to_chunked"][1]["seconds_ratio"] is None
    assert [c["tracks"] for c in report["tracks"]] == [5]
    assert report["tracks"][0]["peak_bytes"] > 1e6
    assert "skipped" in done.stdout


def test_scaling_walks_muqs_own_parts_too(scaling):
    cell = scaling.measure_length("original", "1", 2.0, "muq-nano", "random", "cpu")
    assert cell["segments"] == 2
    assert cell["weights_bytes"] > 1e6


@pytest.mark.slow
def test_scaling_measures_pieces_cut_by_the_sound(scaling):
    cell = scaling.measure_length("chunked", "structure", 12.0, "muq-nano", "random", "cpu")
    assert cell["segments"] in (1, 2)
    assert cell["seconds"] > 0


def test_slope_and_growth_by_hand(scaling):
    cells = [
        {"mode": "chunked", "seg": "full", "duration_s": d, "peak_above_bytes": b}
        for d, b in ((10, 9e9), (60, 100e6), (120, 220e6), (300, 580e6))
    ]
    assert scaling.slope(cells, "chunked", "full") == pytest.approx(2.0)
    assert scaling.slope(cells[:2], "chunked", "full") is None
    counts = [{"tracks": n, "peak_bytes": 1000 + n} for n in (10, 100, 1100)]
    grown = {"from_tracks": 100, "to_tracks": 1100, "bytes": 1000, "bytes_per_track": 1.0}
    assert scaling.growth(counts) == grown
    assert scaling.growth(counts[:1]) is None


def test_prediction_grows_with_what_is_held_at_once(scaling):
    def predict(mode, seg, seconds):
        return scaling.predict("muq", mode, seg, seconds, None)

    assert predict("unchunked", "full", 600) > 16e9 > predict("unchunked", "full", 300)
    assert predict("unchunked", "10", 1200) == predict("unchunked", "10", 60)
    assert predict("unchunked", "structure", 1200) == predict("unchunked", "30", 1200)
    assert predict("original", "structure", 1200) == predict("original", "30", 1200)
    assert predict("original", "full", 1200) > 2 * predict("unchunked", "full", 1200)
    small = {"duration_s": 60, "peak_above_bytes": 5e9, "weights_bytes": 1e9}
    assert scaling.predict("muq", "unchunked", "full", 120, small) == 11e9


@pytest.mark.parametrize("name", NAMES)
def test_help_teaches(name, tmp_path):
    done = run(BENCHMARKS / f"{name}.py", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"python benchmarks/{name}.py" in done.stdout
    assert "--weights" in done.stdout


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "study_loop",
            ("--segs", "ten"),
            "a segment is a number of seconds, 'full' or 'structure'",
        ),
        ("levers", ("--duration", "0.5"), "--duration must be 1 or more"),
        ("per_epoch", ("--tracks", "5"), "--tracks must be 6 or more"),
        ("scaling", ("--max_memory", "much"), "expected an amount such as 16GB"),
        ("scaling", ("--durations", "--tracks"), "nothing to do"),
        ("pipeline", ("--out", "."), "can't be written"),
    ],
)
def test_a_wrong_argument_is_one_line(name, args, message, tmp_path):
    done = run(BENCHMARKS / f"{name}.py", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_layer_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    study_loop = importlib.import_module("study_loop")
    args = ["--encoder", "muq-nano", "--layers", "5", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        study_loop.main(study_loop.parse_args(args))
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: --layers must lie in 0..4 for muq-nano"


def test_store_finds_every_row_in_both_layouts(tmp_path):
    out = tmp_path / "store.json"
    sizes = ("--rows", "5", "--rows", "20", "--sample", "10", "--rounds", "1", "--width", "8")
    done = run(BENCHMARKS / "store.py", *sizes, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert {n: set(sides) for n, sides in report["rows"].items()} == {
        "5": {"packs", "files"},
        "20": {"packs", "files"},
    }
    assert set(report["growth"]) == {"length", "row"}
    assert report["second_run"]["packs"]["processor"]["median_us"] > 0
