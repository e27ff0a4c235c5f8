"""VHDX: Microsoft's MS-VHDX, sections 2.5 (block allocation table) and 2.6 (metadata)."""

from __future__ import annotations

import struct
from array import array
from uuid import UUID

from volctl.images.formats.layout import Layout
from volctl.images.reader import Reader
from volctl.records import record

REGIONS = 192 * 1024
BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
HAS_PARENT = 2
PRESENT, PARTIAL = 6, 7
MAX_ENTRIES = 2047


@record
class Disk:
    size: int
    block: int
    sector: int

    @property
    def chunk(self) -> int:
        """Payload entries between two sector bitmap entries of the table."""
        return (self.sector << 23) // self.block

    @property
    def entries(self) -> int:
        payload = -(-self.size // self.block)
        return payload + (payload - 1) // self.chunk


def inspect(reader: Reader) -> Layout:
    """Refuses differencing images and what does not reach the end of its last block."""
    regions = _entries(reader, REGIONS, b"regi", 8, 16, "region table")
    if BAT not in regions or METADATA not in regions:
        raise reader.corrupt("its region table lacks the metadata or the block allocation table")
    disk = _disk(reader, regions[METADATA])
    data, index = 0, 0
    for piece in reader.words("Q", regions[BAT], disk.entries, "block allocation table"):
        data += _stored(reader, disk, piece, index) * disk.block
        index += len(piece)
        reader.holds(data, 0)
    return Layout(disk.size, min(data, disk.size))


def _entries(reader: Reader, offset: int, signature: bytes, count_at: int, first: int, what: str) -> dict[bytes, int]:
    """The GUIDs of a table of 32-byte entries with what follows each: an offset in bytes."""
    wide = signature == b"regi"
    head = reader.read(offset, 32, what)
    (count,) = struct.unpack_from("<I" if wide else "<H", head, count_at)
    if not head.startswith(signature) or count > MAX_ENTRIES:
        raise reader.corrupt(f"its {what} is none")
    raw = reader.read(offset + first, count * 32, what)
    return {
        raw[at : at + 16]: struct.unpack_from("<Q" if wide else "<I", raw, at + 16)[0] for at in range(0, len(raw), 32)
    }


def _disk(reader: Reader, metadata: int) -> Disk:
    items = _entries(reader, metadata, b"metadata", 10, 32, "metadata table")
    if missing := {PARAMETERS, DISK_SIZE, SECTOR_SIZE} - items.keys():
        raise reader.corrupt(f"its metadata lacks {len(missing)} required items")
    block, flags = struct.unpack("<II", reader.read(metadata + items[PARAMETERS], 8, "file parameters"))
    (size,) = struct.unpack("<Q", reader.read(metadata + items[DISK_SIZE], 8, "disk size"))
    (sector,) = struct.unpack("<I", reader.read(metadata + items[SECTOR_SIZE], 4, "sector size"))
    if flags & HAS_PARENT:
        raise reader.unsafe("it has a parent (a differencing VHDX), so it is not whole by itself")
    if not 1 << 20 <= block <= 256 << 20 or block & (block - 1) or sector not in (512, 4096) or size > 64 << 40:
        raise reader.corrupt(f"its geometry is none: {size} bytes in blocks of {block}, sectors of {sector}")
    return Disk(size, block, sector)


def _stored(reader: Reader, disk: Disk, piece: array[int], index: int) -> int:
    """How many payload blocks of a piece of the table are stored; all of them lie inside the file."""
    payload = [entry for at, entry in enumerate(piece, index) if at % (disk.chunk + 1) != disk.chunk]
    if any(entry & 7 == PARTIAL for entry in payload):
        raise reader.unsafe("it has blocks of a parent (a differencing VHDX), so it is not whole by itself")
    there = [entry >> 20 << 20 for entry in payload if entry & 7 == PRESENT]
    if there:
        reader.reaches(max(there) + disk.block, "last block")
    return len(there)
