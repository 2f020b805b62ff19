"""Files of embeddings: Parquet, .npy with an index, or a `datasets` folder; written atomically.

    x.parquet                  one row a track; the metadata under the key "tune"
    x.npy, x.csv, x.json       the embeddings (NaN where there is none), the other columns, metadata
    x/                         `datasets.load_from_disk("x")`; the metadata in x/tune.json

The columns are in `tune.embeddings.columns`. The same tracks give the same
bytes, whenever and by however many processes; no time and no user's name is in them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from safetensors.numpy import load, save

from tune.embeddings.columns import SEGMENTS, TRACKS
from tune.embeddings.space import Space, fit_space
from tune.system.files import atomic_write, atomic_write_text

log = logging.getLogger(__name__)

UNIT = "embedding_unit"  # the column of vectors in the stored space
MAY_DIFFER = ("versions", "git_sha", "device")  # among the machines that made the parts


@dataclass
class Embeddings:
    """Rows, the settings that made them, and the tensors to embed other tracks in the same way.

    Attributes
    ----------
    table : columns as `TRACKS` or `SEGMENTS`, sorted by path
    meta : JSON values; see `Embedder.describe`
    constants : arrays (or tensors) by name; see `tune.aggregators.TrackAggregator`
    space : that tracks are compared in, fitted on them; None where none is stored
    """

    table: pa.Table
    meta: dict
    constants: dict[str, np.ndarray]
    space: Space | None = None

    @property
    def usable(self) -> np.ndarray:
        """Mask of the rows that have an embedding, (n,) bool."""
        return _is_valid(self.table["embedding"])

    def matrix(self) -> np.ndarray:
        """The embeddings, (n, D) float32; NaN where there is none."""
        return _matrix(self.table)

    def split(self) -> tuple[Embeddings, pa.Table]:
        """The rows with an embedding, and a table of the others' paths and reasons."""
        usable = self.table["embedding"].is_valid()
        failed = self.table.filter(pc.invert(usable)).select(["path", "reason"])
        return replace(self, table=self.table.filter(usable)), failed

    def in_space(self, name: str | None) -> Embeddings:
        """The same with a space fitted on them, and with the column embedding_unit if it is named.

        Parameters
        ----------
        name : of `tune.embeddings.space.fit_space`; None: "ready", without the column
        """
        usable, matrix = self.usable, self.matrix()
        if usable.sum() < 2:
            if name:
                raise ValueError(f"--space {name} is fitted on two tracks or more")
            return self
        space = fit_space(matrix[usable], name or "ready")
        made = replace(self, space=space)
        if name is None:
            return made
        unit = space.as_unit(np.where(usable[:, None], matrix, 0))
        return replace(made, table=self.table.append_column(UNIT, _vectors(unit, ~usable)))


def make_table(columns: Mapping[str, Sequence], kinds: Mapping, size: int) -> pa.Table:
    """A table of embeddings.

    Parameters
    ----------
    columns : by name; "embedding" holds vectors (size,) or None
    kinds : TRACKS or SEGMENTS
    """
    vectors = columns["embedding"]
    missing = np.array([v is None for v in vectors], bool)
    flat = np.zeros((len(vectors), size), np.float32)
    for i, vector in enumerate(vectors):
        if vector is not None:
            flat[i] = vector
    none = [None] * len(vectors)  # a column that an older version didn't write
    arrays = {
        name: pa.array(columns.get(name, none), c.kind) for name, c in kinds.items() if c.kind
    }
    arrays["embedding"] = _vectors(flat, missing)
    return pa.table({name: arrays[name] for name in kinds})


def _vectors(matrix: np.ndarray, missing: np.ndarray) -> pa.FixedSizeListArray:
    """A column of vectors (n, D), null where missing (n,)."""
    flat = pa.array(matrix.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1], mask=pa.array(missing))


def check_out(out: str | Path, overwrite: bool, flag: str = "--out") -> Path:
    """Check early that a file of embeddings can be written.

    Raises
    ------
    ValueError
        When the ending is unknown, or another file exists: embed.py's own files are replaced,
        others only with `overwrite`.
    """
    out = Path(out)
    if out.suffix not in (".parquet", ".npy", ""):
        raise ValueError(
            f"{flag} must end in .parquet or .npy, or be a folder without an ending, got {out}"
        )
    for path in _parts(out):
        if not path.exists():
            continue
        if (path.is_dir()) != (out.suffix == ""):
            raise ValueError(f"{flag} {path} is {'a folder' if path.is_dir() else 'a file'}")
        empty = path.is_dir() and not any(path.iterdir())
        if not (overwrite or empty or _is_ours(out)):
            raise ValueError(
                f"{flag} {path} wasn't made by embed.py: choose another name, or --overwrite"
            )
    return out


def write(out: Path, made: Embeddings) -> None:
    """Write embeddings in the format given by the ending, replacing an existing file."""
    text = json.dumps(made.meta, ensure_ascii=False, sort_keys=True)
    raw = save({k: np.asarray(v) for k, v in made.constants.items()}) if made.constants else b""
    space = _save_space(made.space)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".parquet":
        raws = {"tune_constants": raw, "tune_space": space}
        # As text: Parquet's metadata is UTF-8, and Polars refuses anything else.
        meta = {"tune": text} | {k: base64.b64encode(v) for k, v in raws.items() if v}
        table = made.table.replace_schema_metadata(meta)
        atomic_write(out, lambda aside: pq.write_table(table, aside, compression="zstd"))
        return
    raws = {"constants": raw, "space": space}
    kept = made.meta | {k: base64.b64encode(v).decode() for k, v in raws.items() if v}
    text = json.dumps(kept, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    if out.suffix == ".npy":
        _, index, info = _parts(out)
        out.unlink(missing_ok=True)  # written last: with it the three are complete
        rest = made.table.drop_columns([n for n in made.table.schema.names if "embedding" in n])
        atomic_write_text(info, text)
        atomic_write(index, lambda aside: pyarrow.csv.write_csv(rest, aside))
        atomic_write(out, lambda aside: _save_npy(aside, made.matrix()))
    else:
        _write_folder(out, made, text)


def read(path: str | Path, columns: Sequence[str] | None = None) -> Embeddings:
    """Read a file of embeddings, of any of the three formats.

    Parameters
    ----------
    columns : the only ones needed, as far as there are such; None is all

    Raises
    ------
    ValueError
        When there is none, it is damaged, or it wasn't made by embed.py.
    """
    path = Path(path)
    try:
        if path.is_dir():
            from datasets import load_from_disk

            table = load_from_disk(str(path)).data.table
            meta = json.loads((path / "tune.json").read_text(encoding="utf-8"))
        elif path.suffix == ".npy":
            table, meta = _read_npy(path)
        else:
            with pq.ParquetFile(path, memory_map=True) as file:
                schema = file.schema_arrow
                names = [n for n in schema.names if columns is None or n in columns]
                table = file.read(names, use_threads=False)  # threads cost more than they save
            found = schema.metadata or {}
            meta = json.loads(found[b"tune"])
            raws = (_as_bytes(found.get(key, b"")) for key in (b"tune_constants", b"tune_space"))
            return Embeddings(table, meta, _load(next(raws)), _load_space(next(raws)))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file of embeddings ({error.filename or path})") from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is no file of embeddings that embed.py made ({type(error).__name__}: {error})"
        ) from error
    raw, space = (base64.b64decode(meta.pop(key, "")) for key in ("constants", "space"))
    return Embeddings(table, meta, _load(raw), _load_space(space))


def write_failed(path: Path, failed: pa.Table) -> None:
    """Write the files that can't be used, with the reasons, as CSV."""
    atomic_write(path, lambda aside: pyarrow.csv.write_csv(failed, aside))


def shard_name(out: Path, shard: tuple[int, int]) -> Path:
    """The file of shard i of n: x.shard-0-of-4.parquet."""
    return out.with_name(f"{out.stem}.shard-{shard[0]}-of-{shard[1]}{out.suffix}")


def merge(paths: Sequence[str]) -> Embeddings:
    """Merge the shards of one command, as if one machine had made them all.

    Raises
    ------
    ValueError
        When one is missing or given twice, or they were made with different settings.
    """
    parts = [read(path) for path in paths]
    shards = [part.meta.get("shard") for part in parts]
    for path, shard in zip(paths, shards, strict=True):
        if shard is None:
            raise ValueError(f"{path} is no shard: it was made without --shard")
    n = shards[0][1]
    missing = sorted({(i, n) for i in range(n)} - {tuple(s) for s in shards})
    if missing or len(shards) != n:
        what = f"{missing[0][0]}/{missing[0][1]} is missing" if missing else "one is given twice"
        raise ValueError(f"{len(shards)} shards of {n} were given: {what}")
    varying = {"shard", "n_tracks", "n_failed", "n_truncated", *MAY_DIFFER}
    metas = [{k: v for k, v in part.meta.items() if k not in varying} for part in parts]
    for path, meta, part in zip(paths, metas, parts, strict=True):
        differing = sorted(k for k in {*meta, *metas[0]} if meta.get(k) != metas[0].get(k))
        if part.table.schema.names != parts[0].table.schema.names:
            differing = ["kind of rows"]
        if part.constants.keys() != parts[0].constants.keys() or differing:
            raise ValueError(
                f"{path} was made with other settings than {paths[0]}: "
                f"{differing[0] if differing else 'learned tensors'} differs"
            )
    meta = metas[0] | {
        k: sum(part.meta[k] for part in parts) for k in ("n_tracks", "n_failed", "n_truncated")
    }
    for key in MAY_DIFFER:
        values = [part.meta.get(key) for part in parts]
        different = [v for i, v in enumerate(values) if v not in values[:i]]
        if len(different) > 1:
            log.warning("the shards were made with different %s; all are kept", key)
        meta[key] = different[0] if len(different) == 1 else different
    # A new table: the one read from Parquet differs in internal field names.
    kinds = TRACKS if "reason" in parts[0].table.schema.names else SEGMENTS
    columns = {
        name: [value for part in parts for value in part.table[name].to_pylist()]
        for name, column in kinds.items()
        if column.kind and all(name in part.table.schema.names for part in parts)
    }
    vectors = np.concatenate([part.matrix() for part in parts])
    usable = np.concatenate([part.usable for part in parts])
    columns["embedding"] = [v if u else None for v, u in zip(vectors, usable, strict=True)]
    # Stable, so that a track's segments keep their order.
    order = sorted(range(len(usable)), key=columns["path"].__getitem__)
    columns = {name: [values[i] for i in order] for name, values in columns.items()}
    return Embeddings(make_table(columns, kinds, vectors.shape[1]), meta, parts[0].constants)


def _matrix(table: pa.Table) -> np.ndarray:
    """Embeddings of a table, (n, D) float32; NaN where there is none."""
    column = _one_array(table["embedding"])
    size, missing = column.type.list_size, ~_is_valid(column)
    start = column.offset * size
    flat = _as_numpy(column.values[start : start + len(column) * size], np.float32)
    out = flat.reshape(len(column), size)
    if missing.any():
        out = out.copy()
        out[missing] = np.nan
    return out


def _one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def _as_numpy(array: pa.Array, dtype) -> np.ndarray:
    """Numbers without nulls, not copied; Arrow's own `to_numpy` imports pandas, which takes 1 s."""
    array = array.cast(pa.from_numpy_dtype(dtype))
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(buffer, dtype)[array.offset : array.offset + len(array)]


def _is_valid(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Mask of the values that aren't null, (n,) bool."""
    return _as_numpy(_one_array(column.is_valid()), np.uint8).astype(bool)


def _parts(out: Path) -> list[Path]:
    """The files that one output consists of."""
    if out.suffix == ".npy":
        return [out, out.with_suffix(".csv"), out.with_suffix(".json")]
    return [out]


def _is_ours(out: Path) -> bool:
    """Whether an existing file was made by embed.py."""
    try:
        if out.suffix == ".parquet":
            return b"tune" in (pq.read_schema(out).metadata or {})
        info = out / "tune.json" if out.suffix == "" else out.with_suffix(".json")
        return "strategy" in json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError, pa.ArrowException):
        return False


def _save_npy(path: Path, matrix: np.ndarray) -> None:
    """np.save without its habit of adding an ending."""
    with open(path, "wb") as file:
        np.save(file, matrix)


def _read_npy(path: Path) -> tuple[pa.Table, dict]:
    """An .npy with its index and metadata."""
    _, index, info = _parts(path)
    try:
        matrix = np.load(path, allow_pickle=False)
    except ValueError as error:  # NumPy's own advice is to unpickle it
        raise ValueError("it is no array of numbers, and pickles are never loaded") from error
    meta = json.loads(info.read_text(encoding="utf-8"))
    header = index.open(encoding="utf-8").readline()
    kinds = TRACKS if "reason" in header else SEGMENTS
    options = pyarrow.csv.ConvertOptions(
        column_types={name: c.kind for name, c in kinds.items() if c.kind},
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    rest = pyarrow.csv.read_csv(
        index,
        convert_options=options,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
    )
    if len(rest) != len(matrix):
        raise ValueError(f"{index} has {len(rest)} rows, {path} has {len(matrix)}")
    columns = rest.to_pydict()
    columns["embedding"] = [None if np.isnan(row).any() else row for row in matrix]
    return make_table(columns, kinds, matrix.shape[1]), meta


def _write_folder(out: Path, made: Embeddings, text: str) -> None:
    """A `datasets` folder, made aside and renamed."""
    from datasets import Dataset, DatasetInfo, Features
    from datasets.table import InMemoryTable
    from datasets.utils import disable_progress_bars

    disable_progress_bars()
    table = made.table.replace_schema_metadata(None)
    digest = hashlib.sha256(text.encode())
    for batch in table.to_batches():
        digest.update(batch.serialize())
    info = DatasetInfo(
        description=f"Music embeddings made by TUNE's embed.py; tune.json says how: "
        f"{made.meta['command']}",
        features=Features.from_arrow_schema(table.schema),
    )
    dataset = Dataset(InMemoryTable(table), info=info, fingerprint=digest.hexdigest()[:16])
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        dataset.save_to_disk(str(aside))
        (aside / "tune.json").write_text(text, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _load(raw: bytes) -> dict[str, np.ndarray]:
    """Tensors as `write` kept them."""
    return load(raw) if raw else {}


def _as_bytes(text: bytes) -> bytes:
    """Bytes that were written as base64, or, by older versions, as they are."""
    return text if b"\0" in text else base64.b64decode(text)


def _save_space(space: Space | None) -> bytes:
    """A space as bytes, float64."""
    if space is None:
        return b""
    arrays = {"centre": space.centre} | ({} if space.axes is None else {"axes": space.axes})
    arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    return save(arrays, metadata={"name": space.name})


def _load_space(raw: bytes) -> Space | None:
    """The space that `_save_space` kept."""
    if not raw:
        return None
    length = int.from_bytes(raw[:8], "little")  # of the header of safetensors
    name = json.loads(raw[8 : 8 + length])["__metadata__"]["name"]
    arrays = load(raw)
    return Space(name, arrays["centre"], arrays.get("axes"))
