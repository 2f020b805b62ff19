"""TensorFlow checkpoints (tensor bundles), read by their bytes: nothing is unpickled or executed.

A bundle has two files. PREFIX.index is a LevelDB table, which maps names to dtype, shape, offset,
size and CRC of a tensor; PREFIX.data-00000-of-00001 holds the raw values. The formats are described
in TensorFlow's tensor_bundle.h and tensor_bundle.proto, and in LevelDB's table_format.md.
"""

import struct
from collections.abc import Iterable, Iterator

import numpy as np

MAGIC = bytes.fromhex("57fb808b247547db")  # the last 8 bytes of a LevelDB table
FOOTER_BYTES = 48
BLOCK_END_BYTES = 5  # after a block: 0 when it isn't compressed, and the CRC
FLOAT32 = 1  # tensorflow.DT_FLOAT


def read_bundle(prefix: str, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Read float32 tensors of a checkpoint, with their checksums verified.

    Parameters
    ----------
    prefix : path of the two files, without .index and .data-00000-of-00001
    names : the tensors to read; by default all

    Returns
    -------
    dict of name to ndarray of float32

    Raises
    ------
    ValueError
        When a file is damaged, a tensor is missing, or it isn't a whole float32 tensor.
    FileNotFoundError
        When a file is missing.
    """
    with open(f"{prefix}.index", "rb") as file:
        table = file.read()
    with open(f"{prefix}.data-00000-of-00001", "rb") as file:
        data = file.read()
    try:
        entries = dict(_entries(table))
    except (IndexError, struct.error) as error:
        raise ValueError(f"{prefix}.index is damaged: {error}") from error
    header = _message(entries.pop(b"", b""))
    if header.get(1, 1) != 1 or header.get(2, 0) != 0:
        raise ValueError(f"{prefix}.index: expected one little-endian file of data")
    wanted = [key.decode() for key in entries] if names is None else names
    return {name: _tensor(name, entries, data) for name in wanted}


def masked_crc32c(data: bytes) -> int:
    """CRC-32C as LevelDB and TensorFlow store it: rotated and shifted.

    >>> hex(masked_crc32c(b"123456789"))
    '0xc78ab0e5'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli) of each byte."""
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table


CRC_TABLE = _crc_table()


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table."""
    footer = table[-FOOTER_BYTES:]
    if not footer.endswith(MAGIC):
        raise ValueError("the checkpoint's index is damaged: it doesn't end as a LevelDB table")
    _, _, at = _handle(footer, 0)  # of the metaindex, which is empty
    offset, size, _ = _handle(footer, at)
    for _, handle in _block(table, offset, size):
        offset, size, _ = _handle(handle, 0)
        yield from _block(table, offset, size)


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and the position after them."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return offset, size, at


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block: of a key only what differs from the one before is stored."""
    block = table[offset : offset + size + BLOCK_END_BYTES]
    compression, crc = struct.unpack("<BI", block[size:])
    if masked_crc32c(block[: size + 1]) != crc:
        raise ValueError("the checkpoint's index is damaged: a block's checksum differs")
    if compression:
        raise ValueError("the checkpoint's index is compressed, which is not supported")
    (n_restarts,) = struct.unpack("<I", block[size - 4 : size])
    end, at, key = size - 4 * (n_restarts + 1), 0, b""
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number stored in 7 bits a byte, and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _message(data: bytes) -> dict[int, int | list[bytes]]:
    """Fields of a protocol buffer by number; those of bytes as a list."""
    fields, at = {}, 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            fields[number], at = _varint(data, at)
        elif wire_type == 2:
            length, at = _varint(data, at)
            fields.setdefault(number, []).append(data[at : at + length])
            at += length
        elif wire_type == 5:
            (fields[number],) = struct.unpack_from("<I", data, at)
            at += 4
        else:
            raise ValueError(f"the checkpoint's index holds an unknown wire type, {wire_type}")
    return fields


def _tensor(name: str, entries: dict[bytes, bytes], data: bytes) -> np.ndarray:
    """A tensor by its entry: BundleEntryProto, whose fields are numbered as below."""
    if name.encode() not in entries:
        raise ValueError(f"the checkpoint holds no {name}")
    entry = _message(entries[name.encode()])
    dtype, offset, size, crc = (entry.get(number, 0) for number in (1, 4, 5, 6))
    dims = _message(b"".join(entry.get(2, []))).get(2, [])
    shape = [_message(dim).get(1, 0) for dim in dims]
    if dtype != FLOAT32 or 7 in entry or size != 4 * np.prod(shape, dtype=int):
        raise ValueError(f"the checkpoint's {name} is no whole float32 tensor")
    values = data[offset : offset + size]
    if masked_crc32c(values) != crc:
        raise ValueError(f"the checkpoint's {name} is damaged: its checksum differs")
    return np.frombuffer(values, "<f4").reshape(shape)
