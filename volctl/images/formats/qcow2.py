"""qcow2, versions 2 (`compat=0.10`) and 3 (`1.1`): docs/interop/qcow2.txt in QEMU's source."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator

from volctl.images.formats.layout import Layout
from volctl.images.reader import Reader, unpack
from volctl.records import record

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
KNOWN = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2
OFFSET = 0x00FFFFFFFFFFFE00
COMPRESSED = 1 << 62
ZERO = 1
LEAST = 16  # bytes that a compressed cluster takes, and more
MAX_L1 = 32 * 1024**2 // 8  # entries; QCOW_MAX_L1_SIZE
HEADER = struct.Struct(">IQIIQIIQ")  # from the version on


@record
class Header:
    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_offset: int
    features: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def per_table(self) -> int:
        """Guest clusters that one L2 table maps."""
        return self.cluster // (16 if self.features & EXTENDED_L2 else 8)


def inspect(reader: Reader) -> Layout:
    """Refuses what names other files, what is encrypted, unknown, corrupt or cut off."""
    header = _header(reader)
    data, stored, last = 0, 0, header.size // header.cluster // header.per_table
    for index, table in enumerate(_tables(reader, header)):
        if table:
            plain, packed = _table(reader, header, table, index == last)
            data, stored = data + plain + packed * header.cluster, stored + plain + packed * LEAST
            reader.holds(stored, header.cluster)
    return Layout(header.size, min(data, header.size), check=not header.features & DIRTY)


def _header(reader: Reader) -> Header:
    raw = reader.read(0, 72, "header")
    version, backing, _, bits, size, crypt, l1_size, l1_offset = HEADER.unpack_from(raw, 4)
    if version not in (2, 3):
        raise reader.unsafe(f"qcow2 version {version} is unknown")
    if backing:
        raise reader.unsafe("it has a backing file, so it is not whole by itself")
    if crypt:
        raise reader.unsafe("it is encrypted")
    features = _features(reader) if version == 3 else 0
    if not 9 <= bits <= 21:
        raise reader.corrupt(f"its cluster size, 2^{bits} bytes, is none")
    header = Header(version, bits, size, l1_size, l1_offset, features)
    if not -(-size // (header.cluster * header.per_table)) <= l1_size <= MAX_L1:
        raise reader.corrupt(f"an L1 table of {l1_size} entries does not fit a disk of {size} bytes")
    return header


def _features(reader: Reader) -> int:
    features, _, _, _, length = struct.unpack(">QQQII", reader.read(72, 32, "header"))
    if unknown := features & ~KNOWN:
        raise reader.unsafe(f"it needs features unknown here (incompatible bits {unknown:#x})")
    if features & DATA_FILE:
        raise reader.unsafe("its data is in another file (external data file)")
    if features & CORRUPT:
        raise reader.corrupt("it is marked so (corrupt bit); `qemu-img check -r all` may repair a copy")
    if features & COMPRESSION and (length <= 104 or reader.read(104, 1, "header")[0] > 1):
        raise reader.unsafe("its compression is neither zlib nor zstd")
    return int(features)


def _tables(reader: Reader, header: Header) -> Iterator[int]:
    """The offsets of the L2 tables that the guest disk needs, 0 for none."""
    count = -(-header.size // (header.cluster * header.per_table))
    for piece in reader.words("Q", header.l1_offset, count, "L1 table", big=True):
        for entry in piece:
            yield entry & OFFSET


def _table(reader: Reader, header: Header, offset: int, last: bool) -> tuple[int, int]:
    """What is behind one L2 table, all inside the file: bytes of plain data, and compressed clusters."""
    raw = reader.read(offset, header.cluster, "L2 table")
    if raw.count(0) == len(raw):
        return 0, 0
    entries = unpack("Q", raw, big=True)
    if header.features & EXTENDED_L2:
        return _extended(reader, header, entries)
    partial = header.size // header.cluster % header.per_table if last and header.size % header.cluster else None
    return _standard(reader, header, entries, partial)


def _standard(reader: Reader, header: Header, entries: array[int], partial: int | None) -> tuple[int, int]:
    """`partial` is the entry of the disk's last cluster if the disk ends inside it."""
    zero = ZERO if header.version == 3 else 0
    if partial is not None and not entries[partial] & (COMPRESSED | zero):
        host = entries[partial] & OFFSET
        reader.reaches(host + header.size % header.cluster if host else 0, "last cluster")
        entries[partial] = min(host, header.cluster)  # still counts, and lies inside
    plain = [entry & OFFSET for entry in entries if not entry & (COMPRESSED | zero)]
    count = len(plain) - plain.count(0)
    if count:
        reader.reaches(max(plain) + header.cluster, "last cluster")
    return count * header.cluster, _compressed(reader, header, entries)


def _compressed(reader: Reader, header: Header, entries: array[int]) -> int:
    """How many compressed clusters there are; each is a host offset and a count of 512-byte sectors."""
    shift = 62 - (header.cluster_bits - 8)
    offset, sectors = (1 << shift) - 1, (1 << (62 - shift)) - 1
    ends = [(e & offset & ~511) + ((e >> shift & sectors) + 1) * 512 for e in entries if e & COMPRESSED]
    if ends:
        reader.reaches(max(ends), "last compressed cluster")
    return len(ends)


def _extended(reader: Reader, header: Header, entries: array[int]) -> tuple[int, int]:
    """Subclusters: of 32 in a cluster, those whose bit is set are there; the file may end after them."""
    data, end, part = 0, 0, header.cluster // 32
    for entry, bitmap in zip(entries[::2], entries[1::2], strict=True):
        if not entry & COMPRESSED and (there := bitmap & 0xFFFFFFFF):
            end = max(end, (entry & OFFSET) + there.bit_length() * part)
            data += there.bit_count() * part
    reader.reaches(end, "last cluster")
    return data, _compressed(reader, header, entries[::2])
