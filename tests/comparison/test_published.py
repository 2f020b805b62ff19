"""Published figures: complete, as in the docs, and beside ours with the interval's verdict."""

import io

import numpy as np
import pytest
from compare_runs import write_grid, write_run
from conftest import ROOT
from rich.console import Console

from tune.comparison import tables
from tune.comparison.analysis import analyse
from tune.comparison.configurations import merge
from tune.comparison.html_report import render
from tune.comparison.published_results import SOURCES, published_table
from tune.runs.load import read_folders
from tune.tasks.label_kinds import label_kind
from tune.tasks.registry import TASKS

PUBLIC = [name for name in TASKS if not name.startswith("demo")]


@pytest.fixture
def gtzan(tmp_path, rng):
    """A run on GTZAN's name that is right on 85 of 100 tracks, another encoder's on 30."""
    labels = np.arange(100) % 3
    for encoder, right in (("muq", 85), ("mel", 30)):
        guess = np.where(np.arange(100) < right, labels, (labels + 1) % 3)[None]
        write_run(tmp_path, encoder, labels, guess, task="gtzan", encoder=encoder)
    (view,) = analyse(merge(read_folders([tmp_path])[0])[0])
    return view


@pytest.mark.parametrize("task", PUBLIC)
def test_every_public_task_has_figures_of_its_metrics(task):
    found = published_table(task, [], None)
    known = {"numbers": {"r2_valence", "r2_arousal"}}.get(
        TASKS[task].kind, {label_kind(TASKS[task].kind).recipe.main_metric, "average_precision"}
    )
    for line in found.lines:
        assert set(line.figures) <= known
        assert all(0 < value < 1 for value, _ in line.figures.values())
        assert line.source
        assert line.protocol


def test_sources_have_a_figure_for_each_encoder():
    for source in SOURCES:
        for metrics in source.figures.values():
            assert {len(values) for values in metrics.values()} == {len(source.encoders)}
        for each in (source.settings or {}).values():
            assert each.keys() == source.figures.keys()


def test_ours_against_the_published_figures(gtzan):
    lines = {(line.name, line.source): line for line in gtzan.published.lines}
    words = {
        key: {c.result["encoder"]: word["accuracy"] for c, word in line.ours.items()}
        for key, line in lines.items()
    }
    # 85 of 100: 0.78 to 0.92
    assert words["MuQ (160k h, in-house weights)", "MuQ paper"] == {"muq": "inside", "mel": "above"}
    assert words["MERT-Large", "MERT-v2's card, others"]["muq"] == "below"
    assert lines["MERT-v2-30s", "MERT-v2's card"].protocol == "layer 23, lr 5e-3"
    assert gtzan.published.spread["MuQ"]["accuracy"] == (0.838, 0.855)
    assert gtzan.published.spread.keys() == {"MERT", "MusicFM", "MuQ"}  # in several sources


def test_terminal_markdown_and_report_show_them(gtzan, tmp_path):
    console = Console(width=200, record=True, file=io.StringIO())
    tables.print_views([gtzan], [], "holm", console)
    tables.write_markdown([gtzan], "holm", tmp_path / "a.md")
    page = render([gtzan], [], correction="holm")
    for text in (console.export_text(), (tmp_path / "a.md").read_text(), page):
        assert "0.855 ± 0.009" in text
        assert "(above)" in text  # mel is another encoder
        assert "protocol spread, MuQ: accuracy 0.838 to 0.855 (1.7 points)" in text


def test_own_tasks_have_none(tmp_path, rng):
    write_grid(tmp_path, rng)
    (view,) = analyse(merge(read_folders([tmp_path])[0])[0])
    assert view.published is None


def test_the_docs_tables_are_those_of_the_code():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    shown, heads = {}, []
    for line in text.split("## Published results")[1].split("\n## ")[0].splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if cells[0] == "encoder":
            heads = cells
        elif line.startswith("|") and not line.startswith("|--"):
            found = zip(heads[2:], cells[2:], strict=True)
            shown |= {(cells[0], cells[1], task): text for task, text in found if text != "-"}
    wanted = {}
    for task in PUBLIC:
        for line in published_table(task, [], None).lines:
            figures = (
                f"{100 * value:.2f}".removesuffix("0") + (f" ± {100 * std:.1g}" if std else "")
                for value, std in line.figures.values()
            )
            wanted[line.name, line.source, task] = " / ".join(figures)
    assert shown == wanted
