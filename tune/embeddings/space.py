"""The space in which embeddings are compared: centred, perhaps whitened and cut, of unit length.

All music embeddings have much in common, so plain cosines are all near 1; the collection's mean is
subtracted first. A space is fitted once on a collection and stored with its table, so that a song
that comes later is compared in the same way, and so that the vectors of `embed.py --space` rank in
any database as `python -m tune.embeddings similar` ranks them.

    ready         centred
    pca:D         and cut to the D directions that vary most
    whitened      centred, all directions with the same variance (shrunk by SHRINKAGE)
    whitened:D    and cut

Everything is computed by blocks of rows: beside the matrix itself, memory doesn't grow with it.
Shapes: n rows, D values of an embedding, d of a vector in the space.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHRINKAGE = 0.1  # of the covariance that whitening divides by, towards a multiple of the identity
BLOCK = 8192  # rows that are converted to float64 at once
PAIRS = 2**24  # cosines that are held at once: 128 MB
REFERENCE = 20_000  # rows that mutual proximity takes the distribution of distances from
SPACES = "ready, pca:D, whitened or whitened:D"


@dataclass(frozen=True, eq=False)
class Space:
    """A fitted space.

    Attributes
    ----------
    name : see the module's docstring
    centre : (D,) float64, the collection's mean
    axes : (D, d) float64, or None: centred only
    """

    name: str
    centre: np.ndarray
    axes: np.ndarray | None = None

    def __call__(self, matrix: np.ndarray) -> np.ndarray:
        """Vectors of unit length: (n, D) -> (n, d) float64; a row at the centre stays zero."""
        out = matrix.astype(np.float64) - self.centre
        if self.axes is not None:
            out = out @ self.axes
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-300)
        return out

    def as_unit(self, matrix: np.ndarray) -> np.ndarray:
        """The same as float32, by blocks."""
        size = len(self.centre) if self.axes is None else self.axes.shape[1]
        out = np.empty((len(matrix), size), np.float32)
        for rows in blocks(len(matrix)):
            out[rows] = self(matrix[rows])
        return out

    def cosines(self, matrix: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Cosine of every row of a collection with one query, (n,) float64.

        Parameters
        ----------
        matrix : (n, D)
        query : (D,)
        """
        vector = self(query[None])[0]
        out = np.empty(len(matrix))
        for rows in blocks(len(matrix)):
            out[rows] = self(matrix[rows]) @ vector
        return out


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices of at most `size` rows."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def parse_space(name: str) -> tuple[bool, int | None]:
    """Whether a space is whitened, and to how many dimensions it is cut.

    Raises
    ------
    ValueError
        When there is no such space.

    Examples
    --------
    >>> parse_space("whitened:64")
    (True, 64)
    """
    match = re.fullmatch(r"(ready|whitened)|(pca|whitened):([1-9]\d*)", name)
    if match is None:
        raise ValueError(f"--space is {SPACES}, got {name!r}")
    kind = match[1] or match[2]
    return kind == "whitened", int(match[3]) if match[3] else None


def fit_space(matrix: np.ndarray, name: str = "ready") -> Space:
    """Fit a space on a collection.

    Parameters
    ----------
    matrix : (n, D), finite

    Raises
    ------
    ValueError
        When there is no such space, or it is to have more dimensions than the embeddings.
    """
    whiten, dims = parse_space(name)
    if dims and dims > matrix.shape[1]:
        raise ValueError(f"--space {name}: the embeddings have {matrix.shape[1]} dimensions only")
    centre = matrix.mean(0, dtype=np.float64)
    if not whiten and dims is None:
        return Space(name, centre)
    covariance = np.zeros((matrix.shape[1],) * 2)
    for rows in blocks(len(matrix)):
        centred = matrix[rows].astype(np.float64) - centre
        covariance += centred.T @ centred
    covariance /= len(matrix)
    values, vectors = np.linalg.eigh(covariance / max(covariance.diagonal().mean(), 1e-300))
    axes = vectors / np.sqrt(np.maximum(values, 0) + SHRINKAGE) if whiten else vectors
    return Space(name, centre, axes[:, ::-1][:, :dims])  # eigh's order is ascending


def distances(matrix: np.ndarray, query: np.ndarray, *, whiten: bool = False) -> np.ndarray:
    """Centred cosine distance of every row to a query.

    Parameters
    ----------
    matrix : (n, D), the collection; its mean is the centre
    query : (D,)
    whiten : divide by the collection's covariance, shrunk by `SHRINKAGE`

    Returns
    -------
    (n,) float64 in [0, 2]: 0 the same, 1 unrelated, 2 opposite

    Examples
    --------
    >>> collection = np.array([[3.0, 1.0], [1.0, 3.0]])
    >>> distances(collection, collection[0]).round(6)
    array([0., 2.])
    """
    space = fit_space(matrix, "whitened" if whiten else "ready")
    return np.clip(1 - space.cosines(matrix, query), 0, 2)


def similarities(
    unit: np.ndarray, queries: np.ndarray, proximity: "MutualProximity | None" = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """How similar rows are to all rows, a block of rows at a time.

    Parameters
    ----------
    unit : (n, d) unit vectors
    queries : (q,) numbers of rows
    proximity : of the same rows; None: cosines

    Yields
    ------
    rows : (b,) of `queries`
    similarity : (b, n) float64, -inf of a row to itself
    """
    if proximity is not None:
        spreads = proximity.of(unit)
    for part in blocks(len(queries), max(1, PAIRS // max(1, len(unit)))):
        rows = queries[part]
        similar = unit[rows] @ unit.T
        if proximity is not None:
            for i, row in enumerate(rows):
                similar[i] = together(similar[i], [s[row] for s in spreads], spreads)
        similar = similar.astype(np.float64, copy=False)
        similar[np.arange(len(rows)), rows] = -np.inf
        yield rows, similar


@dataclass(frozen=True, eq=False)
class MutualProximity:
    """Mutual proximity with normal marginals (Schnitzer et al., JMLR 13:2871, 2012).

    Some tracks, hubs, are among the nearest of very many, others of none. Here a distance becomes
    the probability that both tracks are closer to each other than to a track at random, so that a
    hub, near to everything, is near to nothing in particular. Mean and variance of a track's
    cosines follow from the mean and second moment of the collection: no pairs are computed.

    Attributes
    ----------
    mean : (d,) of the unit vectors
    second_moment : (d, d)
    """

    mean: np.ndarray
    second_moment: np.ndarray

    @classmethod
    def fit(cls, unit: np.ndarray) -> "MutualProximity":
        """Fit on unit vectors (n, d); of more than `REFERENCE`, on so many, evenly spaced."""
        unit = unit[:: -(-len(unit) // REFERENCE)]
        return cls(unit.mean(0, dtype=np.float64), unit.T @ unit / len(unit))

    def of(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each row's cosines with the collection, (n,) each."""
        mean, square = np.empty((2, len(unit)))
        for rows in blocks(len(unit)):
            block = unit[rows]
            mean[rows] = block @ self.mean
            square[rows] = np.einsum("nd,nd->n", block @ self.second_moment, block)
        return mean, np.sqrt(np.maximum(square - mean**2, 1e-12))


def together(cosines: np.ndarray, one, others) -> np.ndarray:
    """Mutual proximity of one track with others, in [0, 1]: 1 is near.

    Parameters
    ----------
    cosines : (n,) of the track with the others
    one, others : mean and standard deviation of their cosines (`MutualProximity.of`)
    """
    from scipy.special import ndtr

    return ndtr((cosines - one[0]) / one[1]) * ndtr((cosines - others[0]) / others[1])


def occurrences(unit: np.ndarray, k: int, proximity: MutualProximity | None = None) -> np.ndarray:
    """How often each row is among the k nearest of another, (n,) int: its k-occurrence."""
    counts = np.zeros(len(unit), int)
    for _, similar in similarities(unit, np.arange(len(unit)), proximity):
        nearest = np.argpartition(similar, -k, axis=1)[:, -k:]
        counts += np.bincount(nearest.ravel(), minlength=len(unit))
    return counts


def skewness(values: np.ndarray) -> float:
    """Third standardised moment: of k-occurrences, above 1 means hubs (Radovanović 2010)."""
    away = values - values.mean()
    spread = np.sqrt((away**2).mean())
    return float((away**3).mean() / spread**3) if spread else 0.0
