"""Search by segments: passages find their song and their place, by MaxSim and by alignment."""

import numpy as np
import pytest
import soundfile

import tune
from tune.demo.synth import SAMPLE_RATE
from tune.demo.tasks import make_track
from tune.embeddings import file_formats as files
from tune.embeddings import segment_search as search
from tune.embeddings import similar
from tune.embeddings.columns import SEGMENTS, TRACKS
from tune.embeddings.embedder import Embedder
from tune.embeddings.strategy import Strategy
from tune.embeddings.track_table import segment_rows

SEG_S, N_SONGS, SONG_S = 2.0, 6, 30


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Six demo songs of different styles, and the table of their segments."""
    folder = tmp_path_factory.mktemp("songs")
    paths = []
    for index in range(N_SONGS):
        name, _, wave = make_track("demo", index)
        paths.append(str(folder / f"{name}.flac"))
        soundfile.write(paths[-1], wave[: SONG_S * SAMPLE_RATE], SAMPLE_RATE)
    strategy = Strategy(encoder="muq-nano", seg=(f"{SEG_S:g}",))
    embedder = Embedder(strategy, store=folder / "store", device="cpu")
    tracks, _, _ = embedder.encode(paths)
    meta = embedder.describe(embedder.aggregator(tracks))
    made = files.Embeddings(segment_rows(embedder, tracks), meta, {})
    files.write(folder / "segments.parquet", made)
    return folder, paths, made, embedder


@pytest.mark.parametrize("align", [False, True])
def test_a_passage_finds_its_song_and_its_place(songs, align):
    folder, paths, made, embedder = songs
    rng = np.random.default_rng(5)
    for i, path in enumerate(paths):
        wave, rate = soundfile.read(path)
        at = rng.uniform(0, len(wave) / rate - 10)
        passage = folder / f"passage {i} {align}.wav"
        soundfile.write(passage, 0.5 * wave[round(at * rate) : round((at + 10) * rate)], rate)
        found = search.nearest_by_segment(made, str(passage), 3, align=align, embedder=embedder)
        assert found[0]["path"] == path
        assert found[0]["start_s"] == pytest.approx(at, abs=SEG_S)
        assert found[0]["end_s"] == pytest.approx(at + 10, abs=SEG_S)
        assert (found[0]["query_start_s"], found[0]["query_end_s"]) == (0, 10)
        assert found[0]["distance"] < found[1]["distance"] <= found[2]["distance"]


def test_a_passage_of_a_long_file(songs):
    folder, paths, made, embedder = songs
    waves = [soundfile.read(path)[0][: 16 * SAMPLE_RATE] for path in paths[:3]]
    soundfile.write(folder / "mix.wav", np.concatenate(waves), SAMPLE_RATE)
    for i, path in enumerate(paths[:3]):
        item, _ = search.nearest_by_segment(
            made, str(folder / "mix.wav"), 2, at=16 * i + 4, seconds=8, embedder=embedder
        )
        assert item["path"] == path
        assert (item["start_s"], item["end_s"]) == (4, 12)
        assert (item["query_start_s"], item["query_end_s"]) == (16 * i + 4, 16 * i + 12)


def test_the_command_searches_segments(songs, capsys, tmp_path, monkeypatch):
    folder, paths, _, _ = songs
    monkeypatch.chdir(folder)
    table, name = "segments.parquet", paths[2].rsplit("/", 1)[1]
    argv = [table, name, "--by=segment", "--at=8", "-k=2", f"--m3u={tmp_path / 'l.m3u'}"]
    similar.main(argv)
    out = capsys.readouterr().out
    assert f"most similar to {name}, 0:08 to 0:18" in out
    found = tune.search(table, name, 2, at=8)
    assert all(item["path"] in out for item in found)
    lines = (tmp_path / "l.m3u").read_text().splitlines()
    assert lines[1].startswith("#EXTINF:30,")  # true lengths, which no segment says
    assert [line.rsplit("/", 1)[1] for line in lines[2::2]] == [
        name,
        *(item["path"].rsplit("/", 1)[1] for item in found),
    ]
    for flags, message in (
        (["--by=track"], "holds segments"),
        (["--seconds=5"], "say where it begins by --at"),
        (["--at=400"], "has no segment there, its segments lie between 0 and 30 s"),
        (["--mutual_proximity"], "leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            similar.main([table, name, *flags])


def table_of(tracks, rule="1"):
    """A table of segments of a second: {path: vectors}."""
    rows = [(path, i, v) for path, vectors in tracks.items() for i, v in enumerate(vectors)]
    columns = {
        "path": [path for path, _, _ in rows],
        "content_hash": [path for path, _, _ in rows],
        "seg": [rule] * len(rows),
        "segment": [i for _, i, _ in rows],
        "start_s": [float(i) for _, i, _ in rows],
        "end_s": [i + 1.0 for _, i, _ in rows],
        "embedding": [np.asarray(v, np.float32) for _, _, v in rows],
    }
    return files.Embeddings(files.make_table(columns, SEGMENTS, len(rows[0][2])), {}, {})


def test_max_sim_by_its_definition_and_alignment_is_exact(rng):
    made = table_of({f"{i:02d}": rng.normal(size=(3 + i % 7, 6)) + 2 for i in range(40)})
    matrix, path = made.matrix().astype(float), np.array(made.table["path"].to_pylist())
    unit = matrix - matrix.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    query = unit[path == "05"]
    by_hand = {p: (unit[path == p] @ query.T).max(0).mean() for p in {*path} - {"05"}}
    found = search.nearest_by_segment(made, "05", 39)
    assert [item["path"] for item in found] == sorted(by_hand, key=by_hand.get, reverse=True)
    for item in found:
        assert 1 - item["distance"] == pytest.approx(by_hand[item["path"]], abs=1e-5)
    every = search.nearest_by_segment(made, "05", 39, align=True)
    few = search.nearest_by_segment(made, "05", 4, align=True)  # most aren't aligned at all
    assert few == every[:4]
    for item in every:
        assert item["distance"] >= 1 - by_hand[item["path"]] - 1e-5


def test_order_matters_to_alignment_only():
    tune_of = {"a": 0, "b": 1, "c": 2, "x": 3, "y": 4}

    def melody(letters):
        return [np.eye(5)[tune_of[letter]] for letter in letters]

    tracks = {"song": melody("abc"), "cba": melody("xycbay"), "slow": melody("xaabbccy")}
    made = table_of(tracks)
    plain = {item["path"]: item for item in search.nearest_by_segment(made, "song", 2)}
    assert plain["cba"]["distance"] == pytest.approx(plain["slow"]["distance"], abs=1e-6)
    first, second = search.nearest_by_segment(made, "song", 2, align=True)
    assert (first["path"], second["path"]) == ("slow", "cba")
    assert first["distance"] == pytest.approx(0, abs=1e-6)
    assert second["distance"] > 0.3
    assert (first["start_s"], first["end_s"]) in {(1, 7), (2, 7), (1, 6), (2, 6)}


def test_what_cannot_be_searched_is_said(tmp_path):
    made = table_of({"a": np.eye(3), "b": np.eye(3)})
    mixed = made.table.set_column(2, "seg", [["1", "1", "1", "full", "full", "full"]])
    with pytest.raises(ValueError, match=r"several lengths \(1, full\)"):
        search.nearest_by_segment(files.Embeddings(mixed, {}, {}), "a", 1)
    with pytest.raises(ValueError, match="at least two tracks"):
        search.nearest_by_segment(table_of({"a": np.eye(3)}), "a", 1)
    vectors = {"path": ["a", "b"], "embedding": [np.ones(2, "f4")] * 2, "reason": [None] * 2}
    out = tmp_path / "e.parquet"
    files.write(out, files.Embeddings(files.make_table(vectors, TRACKS, 2), {}, {}))
    for flag, message in (
        ("--by=segment", "with the same settings and --segments FILE writes the segments"),
        ("--at=3", "--at needs a file of segments"),
        ("--align", "--align needs a file of segments"),
    ):
        with pytest.raises(ValueError, match=message):
            similar.main([str(out), "a", flag])
