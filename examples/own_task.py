"""A task of your own: a function that gives the rows, here the tracks in folders named by genre.

    accelerate launch train_probe.py --task examples/own_task.py:genres --encoder muq
    python -m tune.tasks check examples/own_task.py:genres

Without `split` in the rows a split is made, stratified, from a fixed seed.
"""

from pathlib import Path

MUSIC = Path(__file__).parent / "music"  # music/GENRE/TRACK.wav


def genres():
    """Rows: an audio file (or `audio`, samples and their rate) and its label."""
    for path in sorted(MUSIC.glob("*/*.wav")):
        yield {"path": path, "label": path.parent.name}
