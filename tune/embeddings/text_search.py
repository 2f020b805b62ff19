"""Search by words: `similar FILE --text "slow sad piano"`, in the space that MuQ-MuLan shares.

The distance is 1 minus the plain cosine of the text's vector with a track's or segment's: the text
lies away from all music, so nothing is subtracted.
"""

import numpy as np

from tune.embeddings.file_formats import Embeddings
from tune.embeddings.nearest import top, track_item
from tune.embeddings.segment_search import Query, search_segments, track_starts
from tune.embeddings.space import Space

JOINED = ("mean", "duration_mean")  # aggregators that stay in the encoder's space
MADE = "embed.py MUSIC --encoder muq-mulan --seg 10 --agg mean"


def nearest_to_text(made: Embeddings, text: str, k: int, tower=None) -> list[dict]:
    """The k tracks that a text describes best.

    Parameters
    ----------
    made : tune.embeddings.file_formats.Embeddings of tracks or segments
    tower : the text tower, if it is loaded

    Returns
    -------
    list of dict
        as `tune.embeddings.nearest.nearest` or `nearest_by_segment` return them

    Raises
    ------
    ValueError
        When the table wasn't made by MuQ-MuLan's last layer, or its text tower can't be loaded.
    """
    strategy = made.meta["strategy"]
    tower = tower or _load_tower(made.meta)
    vector = tower(text).numpy()
    size = made.table["embedding"].type.list_size
    if len(vector) != size or not (made.of_segments or strategy["agg"] in JOINED):
        raise ValueError(
            f"--text: layer {strategy['layer']} by {strategy['agg']} isn't the space that the "
            f"encoder shares with text: {MADE}"
        )
    space = Space("plain", np.zeros(size))
    if made.of_segments:
        query = Query(vector[None], np.zeros((1, 2)))
        items = search_segments(made, track_starts(made), query, space, k)
        times = ("query_start_s", "query_end_s")
        return [{n: v for n, v in item.items() if n not in times} for item in items]
    usable = np.flatnonzero(made.usable)
    if not len(usable):
        raise ValueError("nothing to search: no track has an embedding")
    cosines = space.cosines(made.matrix()[usable], vector)
    order = top(cosines, min(k, len(usable)))
    items = [track_item(made, i) for i in usable[order].tolist()]
    return [
        {"distance": float(1 - cosines[i]), **item} for i, item in zip(order, items, strict=True)
    ]


def _load_tower(meta):
    """The text tower of the encoder that made a table."""
    from tune.encoders.base import EncoderError
    from tune.encoders.muq_mulan_text import load_text_tower

    strategy = meta["strategy"]
    try:
        return load_text_tower(strategy["encoder"], strategy.get("revision"))
    except EncoderError as error:
        raise ValueError(f"--text: {error}") from error
