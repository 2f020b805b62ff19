# %% [markdown]
# # Tracks that sound alike
#
# A few short pieces are composed (nothing is downloaded), each becomes one embedding, and the
# embeddings say which pieces are alike. Run it as a script, or cell by cell in an editor that knows
# `# %%`. For your own music, put its paths into `paths` and leave the composing out.

# %%
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

import tune
from tune.demo.synth import SAMPLE_RATE
from tune.demo.tasks import make_track, style_indices
from tune.embeddings.space import distances

STYLES = ("ambient", "chiptune", "metal")
SECONDS = 15

# %% [markdown]
# Three pieces of each of three styles, the first 15 seconds of each.

# %%
folder = Path(tempfile.mkdtemp(prefix="tune-example-"))
paths = []
for style in STYLES:
    for index in style_indices("demo", style)[:3]:
        name, _, audio = make_track("demo", index)
        paths.append(folder / f"{name}.wav")
        soundfile.write(paths[-1], audio[: SECONDS * SAMPLE_RATE], SAMPLE_RATE)
names = [path.stem for path in paths]
styles = np.array([name.split(".")[0] for name in names])

# %% [markdown]
# One embedding a piece: cut into segments of 5 s, encoded by the demo encoder, averaged. The first
# call loads the encoder; segments that were encoded before are read from the store (without
# `store=` the one that all scripts share).

# %%
store = folder / "store"
embeddings = tune.embed(paths, seg=5, agg="mean", encoder="muq-nano", store=store)  # (9, D)
print(f"{len(paths)} pieces, {embeddings.shape[1]} values each")

# %% [markdown]
# The distance of two pieces is 1 minus the cosine of their embeddings, after what all pieces share
# (the mean) is taken away.

# %%
table = Table("piece", "most like", "distance", "same style")
hits = []
for i, name in enumerate(names):
    away = distances(embeddings, embeddings[i])
    away[i] = np.inf  # itself
    nearest = int(away.argmin())
    hits.append(styles[nearest] == styles[i])
    table.add_row(name, names[nearest], f"{away[nearest]:.3f}", "yes" if hits[-1] else "no")
Console().print(table)
print(
    f"{sum(hits)} of {len(hits)} have a piece of their own style nearest; by chance "
    f"{len(hits) * 2 / 8:.1f} would"
)

# %% [markdown]
# Every segment that was encoded, as a `datasets.Dataset`:

# %%
print(tune.store.open(store).to_dataset())
