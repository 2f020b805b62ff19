"""The report: escaped, self-contained, and shown by a real browser."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compare_runs import guesses, write_grid, write_run

from tune.comparison.analysis import analyse
from tune.comparison.configurations import merge
from tune.comparison.figures import front_figure, seconds_figure
from tune.comparison.html_report import render
from tune.comparison.recommend import Limits
from tune.runs.load import SkippedRun, read_folders

EVIL = '<script>document.title="owned"</script>'
CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        ),
    ),
    None,
)


class Tags(HTMLParser):
    """Collects tags, their attributes, the tags around them, and what is never closed."""

    VOID = {"meta", "link", "br", "img", "path", "use", "input"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.around = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.around.append(list(self.open))
        if tag not in self.VOID:
            self.open.append(f"{tag}.{dict(attrs).get('class', '')}")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.around.append(list(self.open))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop().split(".")[0] == tag


def parse(page, around=False):
    """A page's tags, or each tag with those around it (table.sortable); every one is closed."""
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    if around:
        return list(zip((tag for tag, _ in parser.tags), parser.around, strict=True))
    return parser.tags


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with all that it can show, from runs whose every name is hostile."""
    tmp_path, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(1234)
    classes = [EVIL, "b$x$", "c&d"]
    ids = [f"{EVIL}{i:02d}" for i in range(40)]
    labels, _ = write_grid(tmp_path / "runs", rng, task=f"t{EVIL}", classes=classes, ids=ids)
    write_run(
        tmp_path / "runs",
        "60",
        labels,
        guesses(rng, labels, 0.5),
        seg="60",
        task=f"t{EVIL}",
        degenerate="equals full",
        classes=classes,
        ids=ids,
    )
    write_run(
        tmp_path / "runs",
        "mel",
        labels,
        guesses(rng, labels, 0.5),
        encoder=EVIL,
        task=f"t{EVIL}",
        classes=classes,
        ids=ids,
    )
    numbers = rng.normal(0, 1, (30, 2))
    for agg in ("mean", "attention"):
        folder = write_run(
            tmp_path / "runs",
            f"emo-{agg}",
            numbers,
            numbers + rng.normal(0, 0.6, (3, 30, 2)),
            task="emo",
            agg=agg,
            targets=("arousal", "valence"),
        )
    columns = {
        "seed": [0, 0],
        "id": [EVIL] * 2,
        "token": [0, 1],
        "start_s": [0.0, 10.0],
        "end_s": [10.0, 15.0],
        "weight": [0.8, 0.2],
    }
    pq.write_table(pa.table(columns), folder / "attention.parquet")
    views = analyse(merge(read_folders([tmp_path / "runs"])[0])[0], limits=Limits(2 * 10**9, 1.0))
    return render(views, [SkippedRun(EVIL, f"because {EVIL}")], correction="holm", command=EVIL)


def test_every_string_is_escaped(page):
    tags = parse(page)
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert not any(name.startswith("on") for _, attrs in tags for name in attrs)


def test_the_page_is_self_contained(page):
    tags = parse(page)
    for tag, attrs in tags:
        for name in ("src", "href", "xlink:href", "data", "action", "poster"):
            if attrs.get(name):
                assert attrs[name].startswith(("#", "data:")), (tag, attrs)
    assert "@import" not in page
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_unique_and_links_lead_somewhere(page):
    tags = parse(page)
    ids = Counter(attrs["id"] for _, attrs in tags if "id" in attrs)
    assert max(ids.values()) == 1
    links = [
        attrs[n][1:]
        for _, attrs in tags
        for n in ("href", "xlink:href")
        if attrs.get(n, "").startswith("#")
    ]
    assert links
    assert set(links) <= set(ids)


def test_only_our_script_may_run(page):
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_what_the_page_says(page):
    text = re.sub(r"<[^>]+>", " ", page)
    for part in (
        "best balance",
        "Effect of segments",
        "Effect of aggregator",
        "Left out",
        "Beside the original",
        "Attention weights",
        "disagree most",
        "MuQ iter",
        "= full mean",
        "within 2 GB and 1 s a track",
        "R² valence",
        "margin 0.02; 8 comparisons, corrected over all (Holm); each word is one-sided at 2.5 %",
        "tracks show differences from 0.",
        "more that can&#39;t be told",
        "as good as full mean",
    ):
        assert part in text, part
    words = set(re.findall(r'class="pill ([^"]*)"', page))
    assert {"better", "cant-tell", "baseline"} <= words
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert all(f".pill.{word} " in style for word in words)


def test_a_dominated_cell_is_grey(page):
    assert page.count('<tr class="dominated">') >= 3


def chromium(*args, timeout=120):
    """Run the browser; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("Chromium isn't installed")
    return subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--hide-scrollbars",
            *args,
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# Runs in the page after its own script: sorts, points at a dot, and leaves what it saw.
PROBE = """<script>
const table = document.querySelector("table.sortable");
const heads = [...table.tHead.rows[0].cells];
const column = heads.findIndex((head) => head.hasAttribute("aria-sort"));
const values = () => [...table.tBodies[0].rows].map((r) => Number(r.cells[column].dataset.v));
const button = heads[column].querySelector("button");
button.click(); const first = values(); button.click(); const second = values();
document.querySelector("figure [data-tip]").dispatchEvent(
  new PointerEvent("pointerover", { bubbles: true }));
const seen = { first, second, tip: document.getElementById("tip").textContent,
  wide: document.documentElement.scrollWidth, width: innerWidth, title: document.title,
  requests: performance.getEntriesByType("resource").map((r) => r.name) };
document.body.innerHTML = "";
document.body.textContent = "SEEN" + JSON.stringify(seen) + "SEEN";
</script>"""


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(page, tmp_path, width):
    # The probe is a second script, which the page's own policy would stop.
    policy = re.search(r"<meta http-equiv=.*?>", page)[0]
    path = tmp_path / "probe.html"
    path.write_text(page.replace(policy, "").replace("</body>", PROBE + "</body>"), "utf-8")
    size = f"--window-size={width},900"
    done = chromium("--dump-dom", size, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri())
    assert "SEEN" in done.stdout, done.stderr
    seen = json.loads(html.unescape(done.stdout.split("SEEN")[1]))
    first, second = seen["first"], seen["second"]
    assert len(set(first)) > 1
    assert first == sorted(first)
    assert second == sorted(first, reverse=True)
    assert seen["tip"]
    assert seen["wide"] <= seen["width"]  # only tables scroll sideways
    assert seen["requests"] == []
    assert seen["title"] == "TUNE: which strategy?"


def test_no_error_on_the_console(page, tmp_path):
    path = tmp_path / "r.html"
    path.write_text(page, "utf-8")
    shot = tmp_path / "shot.png"
    done = chromium(
        "--window-size=1280,2000",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={shot}",
        path.as_uri(),
    )
    assert shot.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr, done.stderr


def test_nothing_is_wider_than_a_phone(page):
    """What needs more room scrolls in itself, or shrinks: by the page's tags and rules."""
    found = parse(page, around=True)
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        parse(page)
    )
    for tag, outer in found:
        assert tag != "table" or "div.wide" in outer
        assert tag != "svg" or "figure." in outer
        assert tag not in ("img", "pre", "iframe")
    screen = style.split("@media print")[0]
    rules = dict(re.findall(r"([^{}]+?) *{([^{}]*)}", re.sub(r"/\*.*?\*/", "", screen)))
    rules = {selector.strip(): body for selector, body in rules.items()}
    assert "overflow-x: auto" in rules[".wide"]
    assert "overflow-x: auto" in rules["nav ul"]
    assert "width: 100%" in rules["figure svg"]
    # Texts of any length break; a fixed width outside of tables leaves room for the margins.
    assert "overflow-wrap: anywhere" in rules["p, summary, figcaption"]
    for selector in ("h2", "h3", ".card .a", ".card .e", ".note", "footer", "code", "#tip"):
        assert "overflow-wrap: anywhere" in rules[selector]
    inside = ("td", "th", ".range", ".strip")  # of tables
    for selector, body in rules.items():
        for value in re.findall(r"(?<!max-)(?:width|minmax\(): ?([0-9.]+)rem", body):
            assert selector.startswith(inside) or float(value) * 16 <= 390 - 64, selector


def test_a_legend_covers_no_point():
    def row(encoder, dim, mean):
        configuration = SimpleNamespace(
            label="10 s mean", dim=dim, memory_bytes=None, seconds_per_track=None
        )
        return SimpleNamespace(
            configuration=configuration,
            mean=mean,
            encoder=encoder,
            fronts={"dim": True},
            metrics={"accuracy": (mean, mean, mean)},
        )

    names = ["mel", "muq-nano", "musicnn", "facebook/wav2vec2-base-a-name-as-long-as-they-come"]
    corners = [(100, 0.1), (100, 0.9), (900, 0.1), (900, 0.9)]
    rows = [row(name, *at) for name, at in zip(names, corners, strict=True)]
    encoders = [SimpleNamespace(name=name) for name in names]
    whole = SimpleNamespace(label="10 s mean")
    points = [
        SimpleNamespace(seconds=s, mean=m, as_good=True, verdict="")
        for s, m in ((5, 0.1), (50, 0.9))
    ]
    curve = SimpleNamespace(
        encoder="mel",
        whole=whole,
        low=0.1,
        high=0.9,
        mean=0.5,
        seconds=[5, 50],
        picks=dict.fromkeys(("first", "middle", "spread", "central"), points),
    )
    view = SimpleNamespace(rows=rows, encoders=encoders, metric="accuracy")
    for figure, _ in (front_figure(view, "dim"), seconds_figure(view, curve)):
        figure.draw_without_rendering()
        (axes,), (legend,) = figure.axes, figure.legends
        assert axes.get_legend() is None
        box = legend.get_window_extent()
        assert not box.overlaps(axes.get_window_extent())
        width, height = figure.canvas.get_width_height()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert axes.get_window_extent().height > height / 2


def test_points_in_one_place_are_named_together_and_decades_are_plain_numbers():
    def row(label, dim, mean, front):
        configuration = SimpleNamespace(
            label=label, dim=dim, memory_bytes=None, seconds_per_track=None
        )
        return SimpleNamespace(
            configuration=configuration,
            mean=mean,
            encoder="mel",
            fronts={"dim": front},
            metrics={"accuracy": (mean, mean - 0.1, mean + 0.1)},
        )

    rows = [
        row("5 s stats", 512, 0.63, True),
        row("10 s stats", 512, 0.63, True),
        row("5 s mean", 256, 0.50, True),
        row("5 s concat", 3084, 0.51, False),
    ]
    view = SimpleNamespace(rows=rows, encoders=[SimpleNamespace(name="mel")], metric="accuracy")
    figure, tips = front_figure(view, "dim")
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"5 s mean", "5 s stats, 10 s stats"}
    assert len(tips) == 4
    figure.canvas.draw()
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    shown = {text.get_text() for x, text in ticks if low <= x <= high}
    assert shown == {"500", "1,000", "2,000"} | ({"200"} if low <= 200 else set())
    assert not any(text.get_text() for text in axes.get_xticklabels(minor=True))
