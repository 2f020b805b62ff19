"""Check that stored rows match the encoder: one stored segment is encoded again and compared.

An encoder's fingerprint covers its file and state, but not everything that code can depend on: an
installed package, a file that it reads, randomness. So a plug-in encoder is checked once for each
collection whose rows are read; built-in encoders are not.
"""

import logging

import numpy as np

from tune.audio.decode import AudioError, read_audio
from tune.encoders.base import Encoder, NonFiniteError
from tune.store.collection import Collection, Row

log = logging.getLogger(__name__)

# Of the largest value. A batch of another size rounds otherwise, half precision more so.
TOLERANCE = {"no": 1e-3, "fp16": 0.05, "bf16": 0.05}


def is_due(encoder: Encoder, collection: Collection) -> bool:
    """Whether the collection's rows are still to be compared with the encoder."""
    return encoder.own_code and str(collection.folder) not in encoder.compared


def compare_row(
    path: str,
    row: Row,
    encoder: Encoder,
    collection: Collection,
    encode_segments,
    frame_rate: float | None,
) -> None:
    """Encode a row's shortest segment again.

    Parameters
    ----------
    path : the row's audio file
    encode_segments : `tune.store.encode.encode_segments`

    Raises
    ------
    ValueError
        When what is stored differs by more than rounding.
    """
    encoder.compared.add(str(collection.folder))
    index = min(range(len(row.spans)), key=lambda i: row.spans[i][1] - row.spans[i][0])
    start, end = row.spans[index]
    first = sum(row.counts[:index])
    stored = row.tokens[first : first + row.counts[index]]  # (P, L, D)
    try:
        channels = collection.key["channels"]
        samples = read_audio(path, encoder.sample_rate, channels=channels)
    except AudioError as error:
        log.warning("%s can't be compared with its stored row: %s", path, error)
        return
    if end > len(samples):  # another decoder, another length
        return
    passes, redone = encoder.passes, encoder.redone
    try:
        found, _ = encode_segments(samples, [(start, end)], encoder, collection.layers, frame_rate)
    except NonFiniteError as error:
        raise ValueError(f"{path}: {error}") from error
    encoder.passes, encoder.redone = passes, redone  # no pass of the run's
    off = _difference(stored, found)
    if off > TOLERANCE[encoder.precision]:
        raise ValueError(
            f"{encoder.name} no longer reproduces the stored row of {path} (difference "
            f"{off:.2g} of the largest value): something besides its file has changed, such as a "
            f"package or a file that it reads, or it isn't deterministic; use a fresh --store, or "
            f"delete {collection.folder.parent}"
        )


def _difference(stored: np.ndarray, found: np.ndarray) -> float:
    """The largest difference as a share of the largest value; infinite for another shape."""
    if stored.shape != found.shape:
        return float("inf")
    largest = max(float(np.abs(stored).max()), float(np.abs(found).max()), 1e-12)
    return float(np.abs(stored - found).max()) / largest
