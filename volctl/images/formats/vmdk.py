"""VMDK with one embedded sparse extent: VMware's "Virtual Disk Format 5.0" and QEMU's block/vmdk.c."""

from __future__ import annotations

import re
import struct
from dataclasses import replace

from volctl.errors import ImageError
from volctl.images.formats.layout import Layout
from volctl.images.reader import Reader
from volctl.records import record

SECTOR = 512
ZERO_GRAINS, COMPRESSED, MARKERS = 1 << 2, 1 << 16, 1 << 17
AT_END = 2**64 - 1
HEADER = struct.Struct("<4sIIQQQQIQQ")
FOOTER = 3 * SECTOR  # marker, footer, end-of-stream marker
DESCRIPTOR_MAX = 1 << 20
DESCRIPTOR_READ = 20 * SECTOR  # what QEMU looks for a parent in, whatever size the header says


@record
class Header:
    """Capacity, grain, and offsets in sectors."""

    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_size: int
    per_table: int
    directory: int


def inspect(reader: Reader) -> Layout:
    """Refuses every VMDK but monolithicSparse and streamOptimized, parents, and what is cut off."""
    header = _header(reader, 0)
    _descriptor(reader, header)
    if header.directory == AT_END:
        header = _footer(reader, header)
    covered = header.grain * header.per_table
    data = 0
    for piece in reader.words("I", header.directory * SECTOR, -(-header.capacity // covered), "grain directory"):
        for table in piece:
            data += _table(reader, header, table) if table else 0
            stored = data // header.grain if header.flags & COMPRESSED else data  # a sector for each at least
            reader.holds(stored, header.grain * SECTOR)
    return Layout(header.capacity * SECTOR, min(data, header.capacity * SECTOR))


def _header(reader: Reader, offset: int) -> Header:
    magic, version, flags, capacity, grain, where, length, per_table, _, directory = HEADER.unpack(
        reader.read(offset, SECTOR, "header")[: HEADER.size]
    )
    if magic != b"KDMV" or version not in (1, 2, 3):
        raise reader.corrupt(f"its header is not a VMDK's of version 1 to 3 (version {version})")
    if not capacity:
        raise reader.unsafe("its data is in other files (a VMDK without capacity)")
    if capacity > 2**54 or not 0 < per_table <= 512 or grain not in (1 << bit for bit in range(3, 18)):
        raise reader.corrupt(f"its geometry is none: {capacity} sectors, grains of {grain}, tables of {per_table}")
    return Header(flags, capacity, grain, where, length, per_table, directory)


def _footer(reader: Reader, header: Header) -> Header:
    """The header of a stream is completed by a footer before its end; without it the end is missing."""
    try:
        footer = _header(reader, max(0, reader.size - FOOTER) + SECTOR)
    except ImageError as error:
        raise reader.corrupt("it is cut off: a streamOptimized VMDK ends in a footer, this one does not") from error
    if replace(footer, directory=AT_END) != header or footer.directory == AT_END or reader.size % SECTOR:
        raise reader.corrupt("its header and its footer disagree")
    return footer


def _descriptor(reader: Reader, header: Header) -> None:
    size = header.descriptor_size * SECTOR
    if not 0 < size <= DESCRIPTOR_MAX:
        raise reader.unsafe("it has no descriptor of its own")
    length = max(size, min(DESCRIPTOR_READ, reader.size - header.descriptor * SECTOR))
    text = reader.read(header.descriptor * SECTOR, length, "descriptor").split(b"\0")[0].decode("ascii", "replace")
    kind = re.search(r'^\s*createtype\s*=\s*"(.*?)"', text, re.IGNORECASE | re.MULTILINE)
    if not kind or kind[1].lower() not in ("monolithicsparse", "streamoptimized"):
        found = kind[1] if kind else "unknown"
        raise reader.unsafe(f"a VMDK of type {found} keeps its data in other files or is not taken")
    parent = re.search(r"^\s*parentcid\s*=\s*(\w+)", text, re.IGNORECASE | re.MULTILINE)
    if "parentfilenamehint" in text.lower() or (parent and parent[1].lower() != "ffffffff"):
        raise reader.unsafe("it has a parent, so it is not whole by itself")
    if len(re.findall(r"^\s*(?:rw|rdonly|noaccess)\b", text, re.IGNORECASE | re.MULTILINE)) != 1:
        raise reader.unsafe("it names several extents")


def _table(reader: Reader, header: Header, table: int) -> int:
    """The bytes of guest data behind one grain table, whose grains all lie inside the file."""
    grains = reader.words("I", table * SECTOR, header.per_table, "grain table")
    least = 1 if header.flags & ZERO_GRAINS else 0
    stored = [grain for piece in grains for grain in piece if grain > least]
    if stored:
        _reaches(reader, header, max(stored) * SECTOR)
    return len(stored) * header.grain * SECTOR


def _reaches(reader: Reader, header: Header, offset: int) -> None:
    if not header.flags & COMPRESSED:
        reader.reaches(offset + header.grain * SECTOR, "last grain")
    elif header.flags & MARKERS:
        _, size = struct.unpack("<QI", reader.read(offset, 12, "last grain"))
        reader.reaches(offset + 12 + size, "last grain")
    else:
        reader.reaches(offset + 1, "last grain")
