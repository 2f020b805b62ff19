"""examples/own_encoder.py, used from a folder outside the checkout by every command."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_task, run
from in_process import call

import tune

SPEC = "own_encoder.py:Bands"
PROBE = (
    "--task",
    "tones",
    "--encoder",
    SPEC,
    "--seg",
    "1",
    "--epochs",
    "2",
    "--store",
    "store",
    "--report_to",
    "none",
)
SWEEP = """
program: train_probe.py
name: own
method: grid
metric: {name: val/best_score, goal: maximize}
parameters:
  task: {value: tones}
  encoder: {value: "own_encoder.py:Bands"}
  seg: {value: "1"}
  agg: {values: [mean, max]}
  epochs: {value: 2}
  store: {value: store}
command: ["${env}", accelerate, launch, "${program}", "${args}"]
"""


@pytest.fixture
def home(tmp_path):
    """A folder with the example and a small task."""
    shutil.copy(ROOT / "examples" / "own_encoder.py", tmp_path)
    make_task(tmp_path / "tones")
    return tmp_path


def probe(home, name, *flags):
    """Run train_probe.py; return its result.json."""
    done = call("train_probe.py", *PROBE, "--name", name, *flags, cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads((home / "runs" / name / "result.json").read_text())


def test_the_example_has_at_most_15_lines_of_code():
    text = (ROOT / "examples" / "own_encoder.py").read_text().split('"""', 2)[2]
    lines = [line for line in text.splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 15


def test_a_probe_embeddings_and_a_change(home):
    first = probe(home, "first")
    assert first["encoder"] == SPEC
    assert (first["cost"]["encoder_passes"], first["cost"]["embedding_dim"]) == (36, 128)
    again = probe(home, "again", "--agg", "max")
    assert again["cost"]["encoder_passes"] == 0
    done = call(
        "embed.py",
        "tones/audio",
        "--encoder",
        SPEC,
        "--seg",
        "1",
        "--store",
        "store",
        "--out",
        "e.parquet",
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    assert "0 passes: everything was in the store" in done.stdout
    table = pq.read_table(home / "e.parquet")
    assert (table.num_rows, table["embedding"].type.list_size) == (18, 128)

    path = home / "own_encoder.py"
    path.write_text(path.read_text().replace(".relu()", ".abs()"))
    changed = probe(home, "changed")
    assert changed["cost"]["encoder_passes"] == 36
    prints = [
        json.loads((home / "runs" / name / "config.json").read_text())["encoder_fingerprint"]
        for name in ("first", "again", "changed")
    ]
    assert prints[0] == prints[1] != prints[2]
    frames = probe(home, "frames", "--tokens", "frame", "--frame_rate", "10", "--layer", "0")
    assert (frames["tokens"], frames["cost"]["embedding_dim"]) == ("frame at 10 Hz", 64)


def test_embed_follows_a_change_within_a_process(home):
    path = home / "own_encoder.py"
    before, out = path.read_text(), []
    for text in (before, before.replace(".relu()", ".abs()"), before):
        path.write_text(text)
        out.append(
            tune.embed(
                home / "tones" / "audio" / "001.wav",
                seg=1,
                store=home / "store",
                encoder=f"{path}:Bands",
                device="cpu",
            )
        )
    assert not (out[0] == out[1]).all()
    assert (out[0] == out[2]).all()


def test_a_sweep(home):
    (home / "own.yaml").write_text(SWEEP)
    done = run("-m", "tune.sweep", "own.yaml", cwd=home, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    results = [json.loads(p.read_text()) for p in (home / "runs").glob("*/result.json")]
    assert {r["agg"] for r in results} == {"mean", "max"}
    assert {r["encoder"] for r in results} == {SPEC}
    assert sorted(r["cost"]["encoder_passes"] for r in results) == [0, 36]


def test_the_check_and_what_is_wrong_in_one_line(home):
    done = call("tune.encoders", "check", SPEC, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "layers 0 to 1 of 64/128 values, 50 states a second, 24000 Hz" in done.stdout
    assert "bf16 = float32" in done.stdout
    assert "fit for use" in done.stdout
    for spec, said in (
        ("own_encoder.py:Band", "own_encoder.py has no 'Band'"),
        ("own_encoders.py:Bands", "own_encoders.py can't be read"),
    ):
        done = call("train_probe.py", *PROBE, "--encoder", spec, cwd=home)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
