"""VDI of VirtualBox: QEMU's block/vdi.c and VirtualBox's VDICore.h."""

from __future__ import annotations

import struct

from volctl.images.formats.layout import Layout
from volctl.images.reader import Reader

DYNAMIC, STATIC = 1, 2
FREE = 0xFFFFFFFE  # discarded; one more is: never allocated
BLOCK = 1 << 20


def inspect(reader: Reader) -> Layout:
    """Refuses differencing images and what does not reach the end of its last block."""
    raw = reader.read(0, 512, "header")
    (version,) = struct.unpack_from("<I", raw, 0x44)
    (kind,) = struct.unpack_from("<I", raw, 0x4C)
    map_offset, data_offset = struct.unpack_from("<II", raw, 0x154)
    size, block, _, blocks = struct.unpack_from("<QIII", raw, 0x170)
    if version != 0x00010001 or block != BLOCK:
        raise reader.corrupt(f"version {version:#x} with blocks of {block} bytes is not a VDI that QEMU reads")
    if kind not in (DYNAMIC, STATIC) or any(raw[0x1A8:0x1C8]):
        raise reader.unsafe("it has a parent (a differencing VDI), so it is not whole by itself")
    if blocks < -(-size // block):
        raise reader.corrupt(f"a map of {blocks} blocks does not fit a disk of {size} bytes")
    return Layout(size, min(_blocks(reader, map_offset, data_offset, blocks) * block, size))


def _blocks(reader: Reader, map_offset: int, data_offset: int, blocks: int) -> int:
    """How many blocks are stored; all of them lie inside the file."""
    stored = 0
    for piece in reader.words("I", map_offset, blocks, "block map"):
        if there := [index for index in piece if index < FREE]:
            reader.reaches(data_offset + (max(there) + 1) * BLOCK, "last block")
            stored += len(there)
            reader.holds(stored * BLOCK, 0)
    return stored
