"""A map of a collection: `python -m tune.embeddings map embeddings.parquet --out map.html`.

One HTML file that needs nothing else: a point a track, tracks that sound alike near each other,
coloured by group (`tune.embeddings groups`). Pointing at it names it, clicking plays it (from where
the file lies, relative to the map), and typing finds names. By UMAP (McInnes et al. 2018) where
umap-learn is installed, which keeps neighbours together, or else by principal components, which
keep large distances and are quick; the page says by which. t-SNE (--method tsne) is the third.
"""

import json
import os
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import numpy as np

from tune.cli.flags import add
from tune.cli.parser import Parser, positive_int, set_up_logging
from tune.embeddings.file_formats import Embeddings, read
from tune.embeddings.groups import find_groups
from tune.system.files import atomic_write_text

MOST = 20_000  # points that a browser draws without effort
METHODS = {"pca": "principal components", "tsne": "t-SNE", "umap": "UMAP"}
INSTALL_UMAP = "pip install umap-learn"
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>TITLE</title>
<style>
body { margin: 0; font: 15px system-ui, sans-serif; background: #fff; color: #222; }
header { display: flex; gap: 1em; align-items: center; padding: .6em 1em; flex-wrap: wrap; }
input { font: inherit; padding: .2em .5em; } audio { height: 2em; flex: 1; min-width: 240px; }
canvas { display: block; width: 100vw; height: calc(100vh - 7em); cursor: crosshair; }
#name { padding: 0 1em; height: 1.4em; overflow: hidden; white-space: nowrap; }
@media (max-width: 600px) { #name { height: 2.8em; white-space: normal; } }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } }
</style>
<header><b>TITLE</b><input id="find" type="search" placeholder="find a track"
 aria-label="find a track"><audio id="player" controls preload="none"></audio></header>
<div id="name" aria-live="polite">ABOUT</div><canvas id="map"></canvas>
<script>
const tracks = TRACKS;
const canvas = document.getElementById("map"), name = document.getElementById("name");
const find = document.getElementById("find"), player = document.getElementById("player");
const groups = Math.max(...tracks.map(t => t.g)) + 1;
const colour = g => `hsl(${Math.round(360 * g / groups)} 65% 50%)`;
let wanted = "", over = -1, playing = -1;
const place = t => [30 + t.x * (canvas.width - 60), 30 + (1 - t.y) * (canvas.height - 60)];
function draw() {
  const c = canvas.getContext("2d"), scale = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * scale; canvas.height = canvas.clientHeight * scale;
  tracks.forEach((t, i) => {
    const [x, y] = place(t), hit = wanted && t.n.toLowerCase().includes(wanted);
    c.globalAlpha = wanted && !hit ? 0.12 : 0.85;
    c.fillStyle = colour(t.g);
    c.beginPath();
    c.arc(x, y, scale * (i === playing || i === over ? 9 : hit ? 7 : 4), 0, 7);
    c.fill();
    if (i === playing) { c.lineWidth = 2 * scale; c.strokeStyle = "#888"; c.stroke(); }
  });
}
function nearest(event) {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
  let best = -1, least = (14 * scale) ** 2;
  tracks.forEach((t, i) => {
    const [x, y] = place(t), d = (x - px) ** 2 + (y - py) ** 2;
    if (d < least) { least = d; best = i; }
  });
  return best;
}
canvas.onmousemove = event => {
  const at = nearest(event);
  if (at === over) return;
  over = at;
  if (at >= 0) name.textContent = `${tracks[at].n} (group ${tracks[at].g + 1})`;
  draw();
};
canvas.onclick = event => {
  const at = nearest(event);
  if (at < 0) return;
  playing = at; player.src = tracks[at].u; player.play(); draw();
};
find.oninput = () => { wanted = find.value.trim().toLowerCase(); draw(); };
onresize = draw;
draw();
</script></html>
"""


def coordinates(unit: np.ndarray, method: str = "pca") -> np.ndarray:
    """Places on a map, (n, 2) in [0, 1].

    Parameters
    ----------
    unit : (n, d) unit vectors
    method : of `METHODS`
    """
    if method == "umap":
        import umap

        neighbours = min(15, len(unit) - 1)
        settings = dict(n_neighbors=neighbours, metric="cosine", init="pca", n_jobs=1)
        places = umap.UMAP(random_state=0, **settings).fit_transform(unit)
    elif method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, max(1.0, (len(unit) - 1) / 3))
        places = TSNE(
            2, perplexity=perplexity, metric="cosine", init="random", random_state=0
        ).fit_transform(unit)
    else:
        from sklearn.decomposition import PCA

        places = PCA(2, svd_solver="full" if len(unit) < 500 else "covariance_eigh").fit_transform(
            unit
        )
    low, high = places.min(0), places.max(0)
    return (places - low) / np.maximum(high - low, 1e-12)


def page(made: Embeddings, folder: Path, root: Path, method: str, n_groups: int | None) -> str:
    """The map as HTML.

    Parameters
    ----------
    folder : that the page will lie in; audio is named relative to it
    root : that the tracks' paths are relative to
    """
    found = find_groups(made, n_groups)
    if len(found.rows) > MOST:
        raise ValueError(f"{len(found.rows)} tracks are too many for one page: {MOST} at most")
    paths, tracks = made.table["path"].to_pylist(), []
    for row, group, (x, y) in zip(
        found.rows, found.group, coordinates(found.unit, method), strict=True
    ):
        place = os.path.relpath(root / paths[row], folder)
        where = {"x": round(float(x), 4), "y": round(float(y), 4), "g": int(group)}
        tracks.append({"n": paths[row], "u": quote(place), **where})
    text = json.dumps(tracks, ensure_ascii=False).replace("<", "\\u003c")
    about = (
        f"{len(tracks)} tracks, {len(found.medoids)} groups, by {METHODS[method]}: point at one, "
        f"click"
    )
    filled = PAGE.replace("TITLE", escape(f"{len(tracks)} tracks")).replace("ABOUT", escape(about))
    return filled.replace("TRACKS", text)


def parse_args(argv: Sequence[str] | None = None):
    """Read the command line."""
    parser = Parser(prog="python -m tune.embeddings map", description=__doc__)
    parser.add_argument("embeddings", type=Path, metavar="EMBEDDINGS", help="what embed.py wrote")
    parser.add_argument("--out", type=Path, default=Path("map.html"), metavar="FILE.html")
    parser.add_argument(
        "--method",
        choices=METHODS,
        help=f"default: umap if it is installed ({INSTALL_UMAP}), else pca",
    )
    parser.add_argument(
        "-n", "--number", type=positive_int, metavar="N", help="number of groups (default: by data)"
    )
    add(parser, "root")
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in (".html", ".htm"):
        parser.error(f"--out must end in .html, got {args.out}")
    has_umap = find_spec("umap") is not None
    if args.method == "umap" and not has_umap:
        parser.error(f"--method umap needs a package: {INSTALL_UMAP}")
    args.method = args.method or ("umap" if has_umap else "pca")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    args = parse_args(argv)
    set_up_logging(True)
    made = read(args.embeddings)
    root, folder = args.root.resolve(), args.out.resolve().parent
    atomic_write_text(args.out, page(made, folder, root, args.method, args.number))
    print(f"  map        {args.out}, by {METHODS[args.method]}")
