"""The viewer of attention's weights, on weights whose answer is known."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, run

from tune.comparison import attention_weights
from tune.comparison.attention_weights import find_track, load_tracks, main

# Two seeds, tokens of 10 s and a tail. "b/even" comes first in the file, "c/one" has one token.
WEIGHTS = {
    "b/even.wav": [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]],
    "a/peak.wav": [[0.1, 0.8, 0.1], [0.1, 0.6, 0.3]],
    "c/one.wav": [[1.0], [1.0]],
}
ENDS = {"b/even.wav": 35.0, "a/peak.wav": 70.0, "c/one.wav": 4.0}


def columns(weights=WEIGHTS) -> dict:
    """Columns as tune.aggregators.trainable writes them."""
    out = {name: [] for name in (*attention_weights.COLUMNS, "head_0")}
    for seed in range(2):
        for track, each in weights.items():
            size = 10 if track != "a/peak.wav" else 30
            for token, weight in enumerate(each[seed]):
                end = min(size * (token + 1.0), ENDS[track])
                row = (1234 + seed, track, token, token * float(size), end, weight, weight)
                for column, value in zip(out.values(), row, strict=True):
                    column.append(value)
    return out


@pytest.fixture
def folder(tmp_path):
    """A run's folder with attention.parquet."""
    (tmp_path / "run").mkdir()
    pq.write_table(pa.table(columns()), tmp_path / "run" / "attention.parquet")
    return tmp_path / "run"


def test_most_uneven_track_comes_first(folder):
    tracks = load_tracks(folder)
    assert [t.id for t in tracks] == ["a/peak.wav", "b/even.wav", "c/one.wav"]
    p = np.array([0.1, 0.7, 0.2])
    assert tracks[0].mean == pytest.approx(p)
    assert tracks[0].evenness == pytest.approx(-(p * np.log(p)).sum() / np.log(3))
    assert [t.evenness for t in tracks[1:]] == [1, 1]
    assert tracks[0].times.tolist() == [[0, 30], [30, 60], [60, 70]]


def test_all_weight_on_one_token_is_not_even_at_all():
    track = attention_weights.Track("x", np.zeros((3, 2)), np.array([[0.0, 1.0, 0.0]]))
    assert track.evenness == 0


def test_order_of_the_rows_does_not_matter(folder, rng):
    before = load_tracks(folder)
    table = pa.table(columns())
    shuffled = table.take(pa.array(rng.permutation(len(table))))
    pq.write_table(shuffled, folder / "attention.parquet")
    after = {t.id: t for t in load_tracks(folder)}
    for track in before:
        assert np.array_equal(after[track.id].weights, track.weights)
        assert np.array_equal(after[track.id].times, track.times)


def test_table_and_bars_show_the_numbers(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    main([str(folder), "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert "the 2 most uneven of 3 test tracks" in lines[0]
    (row,) = [line for line in lines if line.startswith("│ a/peak.wav")]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["a/peak.wav", "3", "0:30 - 1:00", "0.700", "2.10", "0.730"]
    assert not any("c/one.wav" in line for line in lines)
    bars = lines[lines.index(next(line for line in lines if "3 tokens, 2 seeds" in line)) + 2 :]
    assert [line.split()[:5] for line in bars] == [
        ["0:00", "-", "0:30", "0.100", "0.000"],
        ["0:30", "-", "1:00", "0.700", "0.141"],  # deviation of 0.8 and 0.6
        ["1:00", "-", "1:10", "0.200", "0.141"],
    ]
    assert [line.count("█") for line in bars] == [6, 40, 11]  # 40 x 1/7, 40, 40 x 2/7


@pytest.mark.parametrize("name", ["b/even.wav", "even"])
def test_track_is_found_by_its_id_or_a_part_of_it(folder, capsys, name):
    main([str(folder), "--track", name])
    assert "b/even.wav: 4 tokens, 2 seeds" in capsys.readouterr().out


def test_id_that_is_part_of_another_is_found():
    tracks = [
        attention_weights.Track(name, np.zeros((1, 2)), np.ones((1, 1)))
        for name in ("a.wav", "aa.wav")
    ]
    assert find_track(tracks, "a.wav").id == "a.wav"


@pytest.mark.parametrize(("name", "n"), [("nothing", "no"), ("wav", "3")])
def test_track_that_is_not_one_is_answered_with_ids(folder, name, n):
    with pytest.raises(ValueError, match=f"--track {name}: {n} tracks fit; ids are such as a/peak"):
        main([str(folder), "--track", name])


def test_many_tokens_are_shown_in_groups(capsys):
    times = np.stack([np.arange(100), np.arange(100) + 1.0], 1)
    track = attention_weights.Track("x", times, np.full((2, 100), 0.01))
    grouped = track.grouped(48)
    assert grouped.times[0].tolist() == [0, 3]
    assert grouped.times[-1].tolist() == [99, 100]
    assert grouped.weights.sum(1) == pytest.approx([1, 1])
    assert grouped.mean[:-1] == pytest.approx([0.03] * 33)
    assert attention_weights.tokens_table(track).title == "x: 34 groups of 3 tokens, 2 seeds"


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([[0, 10], [10, 19.6]], "0:10 - 0:20"),
        ([[0, 1], [1, 1.55]], "0:01.0 - 0:01.6"),
        ([[59.96, 60], [60, 60.04]], "1:00.00 - 1:00.04"),
    ],
)
def test_times_are_as_exact_as_tokens_are_short(times, expected):
    assert attention_weights.span(np.array(times), 1) == expected


def test_picture_has_a_row_a_track_against_an_even_share(folder, tmp_path, monkeypatch, capsys):
    from matplotlib.axes import Axes

    drawn = []
    plain = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda *a, **k: drawn.append(a[1]) or plain(*a, **k))
    main([str(folder), "--plot", str(tmp_path / "a.png")])
    assert f"drawn to {tmp_path / 'a.png'} (3 of 3 tracks)" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (picture,) = drawn
    assert picture.shape[0] == 3
    n = picture.shape[1]
    at = [int(n * s / 70) for s in (10, 45, 65)]
    np.testing.assert_allclose(picture[0, at], [0.3, 2.1, 0.6])
    assert set(picture[1, : int(n * 34.9 / 70)]) == {1.0}
    assert np.isnan(picture[1, int(n * 35.1 / 70) :]).all()


def test_where_segments_overlap_the_picture_has_their_average(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plain = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda *a, **k: drawn.append(a[1]) or plain(*a, **k))
    times = np.array([[0.0, 10], [5, 15], [20, 30]])
    attention_weights.draw(
        [attention_weights.Track("x", times, np.array([[0.5, 0.2, 0.3]]))], "r", tmp_path / "a.svg"
    )
    at = (np.array([2, 7, 12, 17, 25]) / 30 * drawn[0].shape[1]).astype(int)
    np.testing.assert_allclose(drawn[0][0, at], [1.5, 1.05, 0.6, np.nan, 0.9])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty holds no attention.parquet: only --agg attention writes one"),
        (["broken"], "attention.parquet can't be read: "),
        (["other"], "attention.parquet can't be read: "),
    ],
)
def test_run_without_weights_says_why(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "attention.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other" / "attention.parquet")
    with pytest.raises(ValueError, match=message):
        main(args)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plot", "a.jpg"], "--plot must end in .png, .svg or .pdf, got 'a.jpg'"),
        (["--plot", "no/a.png"], "--plot no/a.png: a file in a folder that exists is needed"),
        (["--top", "0"], "expected a whole number above 0"),
    ],
)
def test_wrong_flag_ends_in_one_line(folder, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        main([str(folder), *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_plot_without_matplotlib_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main([str(folder), "--plot", "a.png"])
    assert "--plot needs matplotlib: pip install matplotlib" in capsys.readouterr().err


def test_it_runs_as_its_users_run_it(folder):
    env = {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "PYTHONUTF8": "1"}
    done = run("-m", "tune.comparison", "attention", folder, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    assert "a/peak.wav: 3 tokens, 2 seeds" in done.stdout
    (folder / "attention.parquet").unlink()
    done = run("-m", "tune.comparison", "attention", folder, cwd=folder, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {folder} holds no attention.parquet: only --agg attention writes one\n"
    )
