"""embed.py as its users run it, tune.embed, tune.embeddings.similar, and the example."""

import importlib.util
import json
import logging
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, make_task, run, tone
from datasets import load_from_disk
from safetensors.numpy import load_file
from tiny_models import save_tiny

import tune
from tune.aggregators.transformer.pretraining_state import save_model
from tune.aggregators.transformer.recipes import RECIPES, make_config, make_model, standardisation
from tune.audio.decode import read_audio
from tune.audio.hashing import content_hash
from tune.embeddings import agreement, similar, space
from tune.embeddings import file_formats as files
from tune.encoders.registry import load_encoder
from tune.store.store import Store

BAD = {
    "broken.mp3": "can't be decoded",
    "empty.wav": "empty file",
    "short.wav": "too short",
    "sub/cut.ogg": "truncated",
}


def script(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scripts():
    """embed.py and train_probe.py, each called like a command but in this process."""
    logger = logging.getLogger("tune")
    before = logger.handlers, logger.level, logger.propagate
    modules = {name: script(name) for name in ("embed", "train_probe")}

    def call(name, *argv):
        AcceleratorState._reset_state(True)
        module = modules[name]
        return module.main(module.parse_args(list(map(str, argv))))

    yield call
    AcceleratorState._reset_state(True)
    logger.handlers, logger.level, logger.propagate = before


N = 6
GOOD = tuple(("sub/" if i % 2 else "") + f"{i}.ogg" for i in range(N))
SEGMENTS = (10, 10, 11, 11, 11, 11)  # tails of 0.3 s are dropped, 0.6 s kept
COMMON = ("--seg=2", "--min_tail=0.4", "--encoder=muq-nano", "--store=store")


def make_music(folder):
    """A folder with a subfolder, good and bad files, and a picture."""
    (folder / "sub").mkdir(parents=True)
    for i in range(N):
        wave = tone(20 + 0.3 * i, 110 * 2 ** (i / 2), rate=22_050, seed=i)
        soundfile.write(folder / ("sub" if i % 2 else "") / f"{i}.ogg", wave, 22_050)
    whole = (folder / "sub" / "1.ogg").read_bytes()
    (folder / "sub" / "cut.ogg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "broken.mp3").write_text("this is no music")
    (folder / "empty.wav").touch()
    soundfile.write(folder / "short.wav", tone(0.02, 440), 24_000)
    (folder / "cover.jpg").write_bytes(b"\xff\xd8")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A run killed while it encoded, and gone on with by two processes, below a home of its own."""
    home = tmp_path_factory.mktemp("home")
    make_music(home / "music")
    flags = [home / "music", *COMMON, "--out=e.parquet", "--segments=s.parquet"]
    victim = subprocess.Popen(
        [sys.executable, ROOT / "embed.py", *map(str, flags)],
        cwd=home,
        env={**os.environ, "HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (there := list(home.glob("store/muq-nano-*/*/*/*.safetensors"))):
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    there = {p: p.stat().st_mtime_ns for p in home.glob("store/muq-nano-*/*/*/*.safetensors")}
    assert not list(home.glob("*.parquet"))
    done = run(
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
        ROOT / "embed.py",
        *flags,
        cwd=home,
        env={"ACCELERATE_USE_CPU": "true", "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return home, done, there


def test_killed_and_resumed_by_two_processes_it_is_the_file_of_one_undisturbed_process(
    embedded, tmp_path, monkeypatch, scripts
):
    home, done, there = embedded
    assert 1 <= len(there) < N
    assert "processes  2" in done.stdout
    assert there == {path: path.stat().st_mtime_ns for path in there}  # not encoded again
    passes = int(re.search(r"(\d+) passes", done.stdout)[1])
    assert 10 <= passes < sum(SEGMENTS)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    scripts("embed", home / "music", *COMMON, "--out=e.parquet", "--segments=s.parquet")
    for name in ("e.parquet", "s.parquet"):
        assert (tmp_path / name).read_bytes() == (home / name).read_bytes()


def test_a_folder_becomes_a_table_with_bad_files_as_rows(embedded):
    home, done, _ = embedded
    table = pd.read_parquet(home / "e.parquet")
    assert list(table.columns) == list(files.TRACKS)
    names = [os.path.relpath(path, home / "music") for path in table.path]
    assert names == sorted(names)
    assert names == sorted([*GOOD, *BAD])
    table.index = names
    for name, reason in BAD.items():
        assert reason in table.reason[name]
        assert table.embedding[name] is None
        assert f"{table.path[name]}: {table.reason[name]}" in done.stderr
        assert (done.stdout + done.stderr).count(table.path[name]) == 1
    good = table[table.reason.isna()]
    assert len(good) == N
    for i, name in enumerate(GOOD):
        line = good.loc[name]
        assert line.content_hash == content_hash(home / "music" / name)
        assert line.duration_s == pytest.approx(20 + 0.3 * i, abs=1e-4)
        assert line.sample_rate == 22_050
        assert line.n_segments == SEGMENTS[i]
        assert line.embedding.dtype == np.float32
        assert line.embedding.shape == (192,)
    assert "6 embedded, 4 can't be used" in done.stdout
    assert "passed over, by their endings: 1 .jpg" in done.stderr
    assert pq.read_schema(home / "e.parquet").field("embedding").type.list_size == 192


def test_the_numbers_are_those_of_the_encoder_and_the_segments_lie_where_they_say(embedded):
    home, *_ = embedded
    tracks, segments = (pd.read_parquet(home / f"{n}.parquet") for n in "es")
    encoder = load_encoder("muq-nano")
    good = tracks[tracks.reason.isna()]
    assert set(segments.path) == set(good.path)
    for _, line in good.iterrows():
        mine = segments[segments.path == line.path]
        assert mine.segment.tolist() == list(range(int(line.n_segments)))
        assert mine.start_s.tolist() == [2.0 * i for i in range(int(line.n_segments))]
        assert mine.end_s.max() <= line.duration_s + 1e-9
        mean = np.stack(mine.embedding).astype(np.float64).mean(0)
        np.testing.assert_allclose(line.embedding, mean, rtol=0, atol=1e-6)
    samples = read_audio(good.path.iloc[0], 24_000)
    own = encoder.embed(samples[None, 48_000:96_000], [encoder.n_layers])[0, 0, 0]
    first = segments[segments.path == good.path.iloc[0]]
    np.testing.assert_allclose(first.embedding.iloc[1], own, rtol=0, atol=1e-5)


def test_the_metadata_says_how_it_was_made_and_not_by_whom(embedded):
    home, *_ = embedded
    found = pq.read_schema(home / "e.parquet").metadata
    meta = json.loads(found[b"tune"])
    encoder = load_encoder("muq-nano")
    assert meta["encoder_fingerprint"] == encoder.fingerprint
    assert meta["encoder_licence"] == "MIT, see its card"
    assert meta["strategy"] == {
        "encoder": "muq-nano",
        "layer": str(encoder.n_layers),
        "seg": ["2"],
        "hop": None,
        "min_tail": 0.4,
        "min_seg": None,
        "max_seg": None,
        "agg": "mean",
        "frame_rate": None,
        "aggregator_checkpoint": None,
        "readout": None,
        "n_tokens": None,
        "precision": "no",
        "revision": None,
    }
    assert meta["command"] == (
        "embed.py MUSIC --encoder muq-nano --seg 2 --min_tail 0.4 --agg mean"
    )
    assert meta["tune"] == tune.__version__
    assert (home / "store" / meta["collection"] / "collection.json").exists()
    assert (meta["n_tracks"], meta["n_failed"], meta["embedding_dim"]) == (10, 4, 192)
    assert str(home).encode() not in b"".join(found.values())


def test_other_readers_open_it(embedded):
    home, *_ = embedded
    polars = pytest.importorskip("polars", reason="polars isn't installed")
    assert polars.read_parquet(home / "e.parquet").schema["embedding"].shape == (192,)


@pytest.fixture
def music(embedded, tmp_path, monkeypatch):
    """The folder of the first run, copied, with its store, as the folder to work in."""
    home, *_ = embedded
    shutil.copytree(home / "music", tmp_path / "music")
    shutil.copytree(home / "store", tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_formats_hold_the_same(embedded, music, scripts, capsys):
    home, *_ = embedded
    expected = files.read(home / "e.parquet").matrix()
    for out in ("x.npy", "folder", "x.parquet"):
        scripts("embed", "music", *COMMON, "--out", out)
        assert "0 passes: everything was in the store" in capsys.readouterr().out
        made = files.read(out)
        np.testing.assert_array_equal(made.matrix(), expected)
        assert made.meta["n_failed"] == 4
    index = pd.read_csv("x.csv")
    assert len(index) == len(np.load("x.npy")) == 10
    assert np.isnan(np.load("x.npy")).all(1).tolist() == index.reason.notna().tolist()
    assert json.loads((music / "x.json").read_text())["strategy"]["seg"] == ["2"]
    data = load_from_disk("folder")
    assert data.column_names == list(files.TRACKS)
    assert data.features["embedding"].length == 192
    assert "embed.py MUSIC" in data.info.description
    tables = [files.read(f).table.to_pydict() for f in ("x.npy", "folder", "x.parquet")]
    for table in tables:
        table.pop("embedding")
    assert tables[0] == tables[1] == tables[2]
    before = {p.name: p.read_bytes() for p in (music / "folder").iterdir()}
    scripts("embed", "music", *COMMON, "--out", "folder")  # what we made is replaced
    assert before == {p.name: p.read_bytes() for p in (music / "folder").iterdir()}


def test_shards_put_together_are_the_whole(music, scripts):
    flags = (*COMMON, "--agg=stats", "--segments")
    scripts("embed", "music", *flags, "ws.parquet", "--out=w.parquet")
    for i in (2, 0, 1):
        scripts("embed", "music", *flags, "xs.parquet", "--out=x.parquet", f"--shard={i}/3")
    scripts("embed", "--merge", "x.shard-*.parquet", "--out=x.parquet")
    scripts("embed", "--merge", "xs.shard-*.parquet", "--out=xs.parquet")
    assert (music / "w.parquet").read_bytes() == (music / "x.parquet").read_bytes()
    assert (music / "ws.parquet").read_bytes() == (music / "xs.parquet").read_bytes()
    (music / "x.shard-1-of-3.parquet").unlink()
    with pytest.raises(ValueError, match="1/3 is missing"):
        scripts("embed", "--merge", "x.shard-*.parquet", "--out=y.parquet")
    scripts("embed", "music", *COMMON, "--agg=max", "--out=x.parquet", "--shard=1/3")
    with pytest.raises(ValueError, match="made with other settings than"):
        scripts("embed", "--merge", "x.shard-*.parquet", "--out=y.parquet")


def test_the_library_gives_the_rows_of_the_script(embedded, music, scripts):
    home, *_ = embedded
    table = pd.read_parquet(home / "e.parquet").dropna(subset="embedding")
    settings = {"seg": 2, "min_tail": 0.4, "encoder": "muq-nano", "store": music / "store"}
    one = tune.embed(table.path.iloc[0], **settings)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, table.embedding.iloc[0])
    several = tune.embed(table.path.tolist()[::-1], agg="mean", **settings)
    np.testing.assert_array_equal(several, np.stack(table.embedding)[::-1])
    assert tune.embeddings.embedder._loaded.cache_info().hits >= 1  # the encoder was loaded once
    for agg, size in (("concat", 11 * 192 + 11), ("whitened", 192), ("stats", 384)):
        scripts("embed", "music", *COMMON, f"--agg={agg}", "--out=a.parquet")
        made = files.read("a.parquet").matrix()
        called = tune.embed(table.path.tolist(), agg=agg, **settings)
        assert called.shape == (N, size)
        np.testing.assert_array_equal(called, made[~np.isnan(made).any(1)])
    samples = soundfile.read(table.path.iloc[0], dtype="float32")
    soundfile.write("samples.wav", *samples, subtype="FLOAT")
    both = tune.embed([samples, "samples.wav"], **settings)
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_array_equal(tune.embed(samples, **settings), both[0])
    with pytest.raises(ValueError, match=r"samples 0: .* got int64 of shape \(3,\)"):
        tune.embed((np.arange(3), 24_000), **settings)
    with pytest.raises(ValueError, match=r"empty\.wav: empty file"):
        tune.embed([*table.path, "music/empty.wav"], **settings)
    with pytest.raises(ValueError, match="give several, or from_run"):
        tune.embed(table.path.iloc[0], agg="whitened", **settings)


def test_importing_the_package_imports_no_torch(tmp_path):
    done = run(
        "-c",
        "import sys, tune; tune.store.Store; print('torch' in sys.modules)",
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "False\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tune.nothing


def test_similar_tracks_are_found_without_torch(music, scripts):
    scripts("embed", "music", *COMMON, "--agg=whitened", "--out=w.parquet")
    done = run(
        "-c",
        "import sys\nfrom tune.embeddings.similar import main\n"
        "main(['w.parquet', 'sub/1.ogg'])\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])",
        cwd=os.getcwd(),
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_distances_by_hand(rng):
    matrix = np.array([[1.0, 0], [3, 0], [2, 1], [2, -1]])  # the mean is (2, 0)
    away = space.distances(matrix, np.array([4.0, 0]))
    np.testing.assert_allclose(away, [2, 0, 1, 1], atol=1e-12)
    stretched = rng.normal(size=(200, 3)) * [3, 1, 1] + 5
    plain, white = (space.distances(stretched, stretched[0], whiten=w) for w in (False, True))
    assert plain[0] == pytest.approx(0, abs=1e-12)
    assert white[0] == pytest.approx(0, abs=1e-12)
    assert np.abs(plain - 1)[1:].mean() > np.abs(white - 1)[1:].mean() + 0.2  # one axis ruled


def test_similar_finds_tracks_and_songs_from_outside(music, scripts, capsys):
    scripts(
        "embed",
        "music",
        *COMMON,
        "--agg=whitened",
        "--out=e.parquet",
        "--like=sub/1.ogg",
        "-k",
        3,
        "--m3u=list.m3u",
    )
    shown = capsys.readouterr().out
    made = files.read("e.parquet")
    found = similar.nearest(made, "sub/1.ogg", 3)
    assert found == tune.search("e.parquet", "sub/1.ogg", 3)
    assert len(found) == 3
    assert [item["distance"] for item in found] == sorted(item["distance"] for item in found)
    assert "music/sub/1.ogg" not in {item["path"] for item in found}
    for item in found:
        assert f"{item['distance']:.3f}" in shown
        assert item["path"] in shown
    lines = (music / "list.m3u").read_text().splitlines()
    assert lines[0] == "#EXTM3U"
    assert lines[2::2] == ["music/sub/1.ogg", *(item["path"] for item in found)]
    samples, rate = soundfile.read("music/sub/1.ogg", dtype="float32")
    soundfile.write("other.wav", samples, rate, subtype="FLOAT")  # the same music, another file
    found = similar.nearest(made, "other.wav", 5, store="store")
    assert found[0]["path"] == "music/sub/1.ogg"
    assert found[0]["distance"] < 1e-4
    assert not found[0]["same_audio"]
    shutil.copy("music/sub/1.ogg", "copy.ogg")  # the same file under another name
    assert similar.find_song(made, "copy.ogg") == similar.find_song(made, "music/sub/1.ogg")
    similar.main(["e.parquet", "other.wav", "-k", "1", "--store=store"])
    assert "music/sub/1.ogg" in capsys.readouterr().out
    scripts("embed", "--like=other.wav", "--out=e.parquet", "-k", 1, "--store=store")
    assert "music/sub/1.ogg" in capsys.readouterr().out
    for song, message in (
        ("nothing.ogg", "neither a track of these embeddings nor a file"),
        ("empty.wav", "has no embedding: empty file"),
        ("music/empty.wav", "has no embedding"),
    ):
        with pytest.raises(ValueError, match=message):
            similar.nearest(made, song, 3)


def test_what_a_run_learned_embeds_as_its_probe_saw_it(tmp_path, monkeypatch, scripts):
    monkeypatch.chdir(tmp_path)
    make_task(tmp_path / "tones", n=(6, 4, 5))
    common = ("--task=tones", "--epochs=4", "--report_to=none", "--store=store", "--min_tail=0.4")
    for name, *flags in (
        ("attention", "--seg=1", "--agg=attention", "--encoder=mel"),
        ("whitened", "--seg=1", "--agg=whitened", "--encoder=mel"),
        ("gated", "--seg=1", "--agg=gated", "--encoder=mel"),
        ("prototypes", "--seg=1", "--agg=prototypes", "--encoder=mel"),
        ("hierarchical", "--seg", "1", "full", "--agg=hierarchical", "--encoder=mel"),
        ("mix", "--seg=1", "--agg=attention", "--layer=mix", "--encoder=muq-nano"),
    ):
        scripts("train_probe", *common, *flags, "--seeds", 1, 2, "--name", name)
        run_folder = tmp_path / "runs" / name
        probe = load_file(run_folder / "probe.safetensors")
        table = pq.read_table(run_folder / "predictions.parquet").to_pandas()
        table = table[table.seed == 2].set_index("id")
        scripts(
            "embed",
            "tones/audio",
            f"--from_run=runs/{name}",
            "--run_seed=2",
            "--store=store",
            "--out=e.parquet",
        )
        made = files.read("e.parquet")
        rows = dict(zip(made.table["path"].to_pylist(), made.matrix(), strict=True))
        for track, line in table.iterrows():
            hidden = np.maximum(rows[f"tones/{track}"] @ probe["seed2.w1"] + probe["seed2.b1"], 0)
            logits = (hidden @ probe["seed2.w2"] + probe["seed2.b2"])[0]
            p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            np.testing.assert_allclose(p, [line.p_high, line.p_low], atol=1e-4, err_msg=name)
        assert made.meta["from_run"] == f"{name}, seed 2"
    soundfile.write("new.wav", soundfile.read("tones/audio/001.wav")[0], 24_000, subtype="FLOAT")
    alike = similar.embed_alike(made, "new.wav", store="store")
    np.testing.assert_allclose(alike, rows["tones/audio/001.wav"], atol=1e-3)
    with pytest.raises(ValueError, match=r"has the seeds \[1, 2\], not 3"):
        scripts("embed", "tones/audio", "--from_run=runs/mix", "--run_seed=3", "--out=f.parquet")
    with pytest.raises(ValueError, match="is no run of train_probe"):
        scripts("embed", "tones/audio", "--from_run=tones", "--out=f.parquet")


def test_a_pretrained_transformer_embeds_as_the_model_does(music, scripts):
    encoder = load_encoder("muq-nano")
    (collection,) = {tune.store.open(music / "store").folder}
    contents = [row.tokens[:, 0] for *_, row in tune.store.open(music / "store").rows()]
    tokens = [torch.from_numpy(t) for t in contents]
    config = make_config(
        RECIPES["tune"],
        192,
        encoder="muq-nano",
        layer=encoder.n_layers,
        seg="2",
        hop=None,
        encoder_fingerprint=encoder.fingerprint,
        tokens="segment",
        min_tail=0.4,
        precision="no",
    )
    model = make_model(config, 3, standardisation(iter(tokens), config.standardise)).eval()
    save_model(model, music / "aggregator")
    scripts("embed", "music", *COMMON, "--agg=transformer:aggregator", "--out=e.parquet")
    made = files.read("e.parquet")
    by_content = dict(zip(made.table["content_hash"].to_pylist(), made.matrix(), strict=True))
    for content, _, row in tune.store.open(music / "store").rows():
        x = torch.from_numpy(row.tokens[:, 0])[None]
        with torch.inference_mode():
            own = model.embed(x, torch.ones(x.shape[:2], dtype=torch.bool))[0].numpy()
        np.testing.assert_allclose(by_content[content], own, atol=1e-5)
    assert len(made.meta["aggregator_fingerprint"]) == 64
    called = tune.embed(
        "music/0.ogg",
        seg=2,
        min_tail=0.4,
        encoder="muq-nano",
        store="store",
        agg="transformer:aggregator",
    )
    np.testing.assert_array_equal(called, by_content[content_hash("music/0.ogg")])
    save_model(
        make_model(config, 4, standardisation(iter(tokens), config.standardise)),
        music / "aggregator",
    )
    soundfile.write("new.wav", tone(2, 300), 24_000)
    with pytest.raises(ValueError, match="the aggregator has other weights"):
        similar.embed_alike(made, "new.wav", store="store")
    assert collection.name.startswith("layers-")


@pytest.mark.parametrize(("name", "layer"), [("ast", 3), ("clap", 0), ("wav2vec2", 1)])
def test_any_transformers_model_embeds(music, scripts, name, layer):
    save_tiny(music / "model", name)
    scripts(
        "embed",
        "music",
        "--seg=1",
        "--encoder=model",
        f"--layer={layer}",
        "--store=tiny",
        "--out=e.parquet",
        "--segments=s.parquet",
    )
    made, segments = (files.read(f"{n}.parquet") for n in "es")
    encoder = load_encoder(str(music / "model"))
    own = encoder.embed(
        read_audio("music/0.ogg", encoder.sample_rate)[None, : encoder.sample_rate], [layer]
    )[0, 0, 0]
    np.testing.assert_allclose(segments.matrix()[0], own, atol=1e-5)
    assert made.matrix().shape == (N + len(BAD), len(own))
    assert made.meta["encoder_fingerprint"] == encoder.fingerprint
    with pytest.raises(ValueError, match="--revision belongs to a model on the hub"):
        scripts("embed", "music", "--encoder=model", "--revision=main", "--out=f.parquet")


def test_lists_globs_and_files_name_tracks(music, scripts):
    (music / "list.m3u").write_bytes(
        b"\xef\xbb\xbf#EXTM3U\r\n#EXTINF:2,zero\r\nmusic/0.ogg\r\n\r\nmusic/missing.ogg\r\n"
    )
    scripts("embed", "list.m3u", "music/sub/[0-9].ogg", "./music/0.ogg", *COMMON, "--out=l.parquet")
    table = pd.read_parquet("l.parquet").set_index("path")
    assert list(table.index) == [
        "music/0.ogg",
        "music/missing.ogg",
        *(f"music/sub/{i}.ogg" for i in (1, 3, 5)),
    ]
    assert table.reason["music/missing.ogg"] == "no such file"
    assert table.reason.notna().sum() == 1
    os.rename("music/0.ogg", os.fsencode("music/") + b"caf\xe9.ogg")
    scripts("embed", "music", *COMMON, "--out=l.parquet")
    assert r"music/caf\xe9.ogg" in set(pd.read_parquet("l.parquet").dropna(subset="embedding").path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere/*.ogg", "--out=x.parquet"], "no file of that pattern"),
        (["empty", "--out=x.parquet"], "no audio file"),
        (["music", "--out=x.csv"], "must end in .parquet or .npy"),
        (["music", "--out=music"], "wasn't made by embed.py"),
        (["music", "--out=mine.parquet"], "wasn't made by embed.py"),
        (["music", "--out=x.parquet", "--strict", "--encoder=mel"], "empty.wav: empty file"),
        (["music", "--out=x.parquet", "--encoder=mel", "--min_tail=0.01"], "mel needs at least"),
        (["music", "--out=x.parquet", "--agg=attention"], "is learned with a probe"),
        (["music", "--out=x.parquet", "--layer=all"], "an embedding is made of one layer"),
        (["music", "--out=x.parquet", "--readout=cls"], "belongs to --agg transformer"),
        (["--merge", "mine.parquet", "--out=x.parquet"], "is no file of embeddings"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(music, scripts, flags, message):
    (music / "empty").mkdir()
    (music / "mine.parquet").write_bytes(b"my own")
    with pytest.raises(ValueError, match=message):
        scripts("embed", *flags)
    assert not (music / "x.parquet").exists()
    assert (music / "mine.parquet").read_bytes() == b"my own"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to embed"),
        (["m"], "--out says where"),
        (["m", "--out=x.parquet", "--shard=4/4"], "expected I/N"),
        (["m", "--out=x.npy", "--shard=0/4"], "--shard writes a part"),
        (["m", "--out=x.parquet", "--shard=0/4", "--agg=whitened"], "fitted on all tracks"),
        (["m", "--out=x.parquet", "--shard=0/4", "--agg=concat"], "the same --n_tokens"),
        (["m", "--out=x.parquet", "--seg=abc"], "a segment is a number of seconds"),
        (["--like=x.ogg", "--out=x.parquet", "--agg=max"], "--agg: without MUSIC nothing"),
        (["m", "--out=x.parquet", "--agg=median"], "--agg must be one of mean"),
        (["m", "--out=x.parquet", "--agg=mean:x"], "--agg must be one of mean"),
        (["m", "--out=x.parquet", "--from_run=r", "--seg=5"], "leave out --seg"),
    ],
)
def test_flags_that_do_not_belong_together_are_one_line(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        script("embed").parse_args(flags)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_shard_of_bad_files_only_has_rows_all_the_same(music, scripts):
    scripts("embed", "music/empty.wav", *COMMON, "--out=b.parquet", "--agg=stats")
    made = files.read("b.parquet")
    assert made.table.num_rows == 1
    assert made.matrix().shape == (1, 384)
    assert not made.usable.any()


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = runpy.run_path(str(ROOT / "examples" / "similar_tracks.py"), run_name="__main__")
    assert found["embeddings"].shape == (9, 192)
    assert sum(found["hits"]) >= 5  # by chance 2.2
    out = capsys.readouterr().out
    assert "most like" in out
    assert "num_rows: 27" in out


def test_the_store_of_a_run_is_what_the_rows_were_read_from(embedded):
    home, *_ = embedded
    data = tune.store.open(home / "store").to_dataset().to_pandas()
    segments = pd.read_parquet(home / "s.parquet")
    mine = data.set_index(["content", "segment"]).embedding
    assert len(data) == len(segments) == sum(SEGMENTS)
    for _, line in segments.iterrows():
        np.testing.assert_array_equal(mine[line.content_hash, line.segment], line.embedding)
    assert Store(home / "store").content(segments.path[0]) == segments.content_hash[0]


def test_neighbours_are_scored_against_labels_by_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vectors = [[1.0, 0], [1, 0.1], [1, -0.1], [-1, 0.3], [-1, -0.3], None]
    n = len(vectors)
    columns = {
        "path": [f"{i}.ogg" for i in range(n)],
        "content_hash": [str(i) for i in range(n)],
        "duration_s": [1.0] * n,
        "sample_rate": [24_000] * n,
        "n_segments": [1] * n,
        "embedding": vectors,
        "reason": [None] * 5 + ["bad"],
    }
    table = files.make_table(columns, files.TRACKS, 2)
    made = files.Embeddings(table, {}, {})
    for i in range(n):
        (tmp_path / f"{i}.ogg").touch()
    lines = [f"{i}.ogg,{label}" for i, label in enumerate("aabbba")]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines))
    labels = agreement.read_labels(tmp_path / "labels.csv")
    found = agreement.score(made, labels)
    # Neighbours of 0, 1, 2 are one another, 0 and 1 are a; 3 and 4 are each other's, both b.
    assert found["n"] == 5
    assert found["nearest"] == pytest.approx(4 / 5)
    assert found["chance"] == pytest.approx((2 * 1 + 3 * 2) / (5 * 4))
    assert found["low"] <= found["nearest"] <= found["high"]
    files.write(tmp_path / "e.parquet", files.Embeddings(table, {}, {}))
    agreement.main(["e.parquet", "labels.csv"])
    assert "0.800" in capsys.readouterr().out
    with pytest.raises(ValueError, match="0 tracks have an embedding and a label"):
        agreement.score(made, labels, root=tmp_path / "elsewhere")


def test_the_same_command_again_opens_only_what_is_new(music, scripts, capsys, monkeypatch):
    flags = ("music", *COMMON, "--out=e.parquet", "--space=ready")
    scripts("embed", *flags)
    first = (music / "e.parquet").read_bytes()
    opened = []
    real = tune.embeddings.embedder.Embedder.rows
    monkeypatch.setattr(
        tune.embeddings.embedder.Embedder,
        "rows",
        lambda self, path, found: opened.append(path) or real(self, path, found),
    )
    scripts("embed", *flags)
    assert (music / "e.parquet").read_bytes() == first
    assert opened == []
    assert "6 of them as they were" in capsys.readouterr().out
    (music / "music" / "0.ogg").unlink()
    shutil.copy("music/2.ogg", "music/00.ogg")
    shutil.copy("music/sub/1.ogg", "music/4.ogg")  # other music under the same name
    scripts("embed", *flags)
    assert set(opened) == {"music/00.ogg", "music/4.ogg"}
    assert "4 of them as they were, 1 that are gone left out" in capsys.readouterr().out
    again = (music / "e.parquet").read_bytes()
    scripts("embed", *flags, "--overwrite")
    assert (music / "e.parquet").read_bytes() == again
    opened.clear()
    scripts("embed", *flags, "--agg=max")  # another strategy: nothing is kept
    assert len(set(opened)) == 6
    opened.clear()
    scripts("embed", *flags, "--agg=whitened")  # fitted on all tracks
    scripts("embed", *flags, "--agg=whitened")
    assert len(opened) > 12


def test_vectors_for_databases_and_failures_beside(music, scripts, capsys):
    scripts("embed", "music", *COMMON, "--out=e.parquet", "--space=whitened:8", "--good_only")
    table = pq.read_table("e.parquet")
    assert len(table) == 6
    assert table["embedding_unit"].type.list_size == 8
    assert not table["embedding_unit"].null_count
    failed = pd.read_csv("e.failed.csv")
    assert sorted(f"music/{name}" for name in BAD) == failed.path.tolist()
    assert "e.failed.csv" in capsys.readouterr().out
    for i in range(2):
        scripts("embed", "music", *COMMON, "--out=x.parquet", f"--shard={i}/2")
    flags = ("--space=whitened:8", "--good_only")
    scripts("embed", "--merge", "x.shard-*.parquet", "--out=x.parquet", *flags)
    assert (music / "x.parquet").read_bytes() == (music / "e.parquet").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--space=white", "--out=e.parquet"], "--space is ready, pca:D"),
        (["--space=ready", "--out=e.npy"], "choose .parquet or a folder"),
        (["--space=ready", "--out=e.parquet", "--shard=0/2"], "--space goes with --merge"),
        (["--good_only", "--out=e.parquet", "--shard=0/2"], "--good_only goes with --merge"),
    ],
)
def test_flags_of_the_table_that_do_not_fit(flags, message, capsys):
    with pytest.raises(SystemExit):
        script("embed").parse_args(["music", *flags])
    assert message in capsys.readouterr().err
