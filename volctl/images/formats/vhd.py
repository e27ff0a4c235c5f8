"""VHD (`vpc` in QEMU), fixed and dynamic: Microsoft's "Virtual Hard Disk Image Format Specification"."""

from __future__ import annotations

import struct

from volctl.images.formats.layout import Layout
from volctl.images.reader import Reader

FOOTER = 512
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
UNUSED = 0xFFFFFFFF


def inspect(reader: Reader) -> Layout:
    """Refuses differencing images and what does not reach its last block and the footer behind it."""
    head = reader.read(0, FOOTER, "header")
    dynamic = head.startswith(b"conectix")
    footer = head if dynamic else reader.read(reader.size - FOOTER, FOOTER, "footer")
    (kind,) = struct.unpack_from(">I", footer, 60)
    _checksum(reader, footer, 64, "footer")
    if kind == DIFFERENCING:
        raise reader.unsafe("it has a parent (a differencing VHD), so it is not whole by itself")
    if kind != (DYNAMIC if dynamic else FIXED):
        raise reader.corrupt(f"type {kind} in its footer does not fit its layout")
    if dynamic:
        return Layout(None, _dynamic(reader, footer), check=False)
    (size,) = struct.unpack_from(">Q", footer, 48)
    reader.reaches(size + FOOTER, "disk and footer")
    return Layout(None, size, check=False, footer=FOOTER)


def _checksum(reader: Reader, raw: bytes, at: int, what: str) -> None:
    """The one's complement of the sum of all bytes but the checksum's own."""
    (stored,) = struct.unpack_from(">I", raw, at)
    if stored != ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFFFFFF:
        raise reader.corrupt(f"the checksum of its {what} is wrong")


def _dynamic(reader: Reader, footer: bytes) -> int:
    """The bytes of guest data behind the block allocation table."""
    (size,) = struct.unpack_from(">Q", footer, 48)
    (offset,) = struct.unpack_from(">Q", footer, 16)
    header = reader.read(offset, 1024, "dynamic header")
    entries: int
    block: int
    table, _, entries, block = struct.unpack_from(">QIII", header, 16)
    _checksum(reader, header, 36, "dynamic header")
    if not header.startswith(b"cxsparse") or block < 512 or block & (block - 1) or entries * block < size:
        raise reader.corrupt(f"{entries} blocks of {block} bytes do not fit a disk of {size} bytes")
    stored, end = _blocks(reader, table, entries, block)
    reader.reaches(end + FOOTER, "last block and footer")
    reader.holds(stored * block, 0)
    if not reader.read(reader.size - FOOTER, FOOTER, "footer").startswith(b"conectix"):
        raise reader.corrupt("it is cut off: a VHD ends in a footer, this one does not")
    return min(stored * block, entries * block)


def _blocks(reader: Reader, table: int, entries: int, block: int) -> tuple[int, int]:
    """How many blocks are stored, and where the last one ends; each has a bitmap before it."""
    bitmap = -(-(block // 512 // 8) // 512) * 512
    stored, end = 0, 0
    for piece in reader.words("I", table, entries, "block allocation table", big=True):
        if there := [sector for sector in piece if sector != UNUSED]:
            stored += len(there)
            end = max(end, max(there) * 512 + bitmap + block)
    return stored, end
