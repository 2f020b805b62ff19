"""The curve of quality against the seconds used, from runs with a known answer."""

import numpy as np
import pytest
from compare_runs import write_run

from tune.comparison.analysis import analyse
from tune.comparison.configurations import merge
from tune.comparison.figures import draw_all
from tune.comparison.html_report import render
from tune.comparison.tables import frame, write_markdown
from tune.runs.load import read_folders

N = 1500


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    """All of each track 0.9; 10 s of the first far worse, 20 s and more as all but for a few."""
    root, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    labels = rng.integers(0, 3, N)
    whole = np.where(rng.random((3, N)) < 0.9, labels, (labels + 1) % 3)

    def write(name, predictions, **fields):
        write_run(root, name, labels, predictions, ids=[f"{i:04d}" for i in range(N)], **fields)

    def noisy(share):
        return np.where(rng.random((3, N)) < share, (labels + 2) % 3, whole)

    write("all", whole)
    write("full", noisy(0.004), seg="full", min_tail=None)
    for pick, shares in {"first": (0.5, 0.004, 0.004), "spread": (0.5, 0.4, 0.3)}.items():
        for seconds, share in zip((10, 20, 30), shares, strict=True):
            fields = {"use_seconds": float(seconds), "pick": pick}
            write(f"{pick}-{seconds}", noisy(share), **fields)
    runs, left = read_folders([root])
    assert not left
    configurations, left = merge(runs)
    assert not left
    (found,) = analyse(configurations)
    return found


def test_the_fewest_seconds_are_the_first_that_are_shown_as_good(view):
    (curve,) = view.seconds
    assert curve.whole.label == "10 s mean"
    assert [(p.pick, p.seconds) for p in curve.points] == [
        (pick, seconds) for pick in ("first", "spread") for seconds in (10, 20, 30)
    ]
    assert [p.word for p in curve.picks["spread"]] == ["worse"] * 3
    assert curve.fewest("first").seconds == 20
    assert curve.fewest("spread") is None
    first, spread = curve.answers()
    assert first.startswith("fewest seconds as good as all, first: 20 s: ")
    assert "spread: none is shown to be as good; 30 s: worse" in spread
    assert curve.texts()[-1] == ["all", *[f"{curve.mean:.3f}"] * 2]
    assert curve.texts()[0][0] == "10 s"


def test_it_is_in_tables_and_report(view, tmp_path):
    (curve,) = view.seconds
    table = frame([view])
    used = table[table.use_seconds.notna()]
    assert sorted(set(used.pick)) == ["first", "spread"]
    assert "10 s mean (20 s first)" in set(table.strategy)
    write_markdown([view], "holm", tmp_path / "a.md")
    text = (tmp_path / "a.md").read_text()
    assert "| seconds of a track | first | spread |" in text
    page = render([view], [], correction="holm")
    assert "Fewest seconds" in page
    assert curve.answers()[0].split(" (")[0] in page


def test_the_figure_fills_points_that_are_as_good(view):
    (figure,) = [made for name, _, made, _ in draw_all([view]) if name.endswith("-fewest-seconds")]
    (axes,) = figure.axes
    faces = {line.get_gid(): line.get_markerfacecolor() for line in axes.lines if line.get_gid()}
    assert len(faces) == 6
    filled = {gid for gid, face in faces.items() if face != "white"}
    assert filled == {"seconds-first-20", "seconds-first-30"}
