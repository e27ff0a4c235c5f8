"""Does a qcow2 file reach as far as what it holds? One that was cut reads as zeros there, and nobody says so.

First what its reference counts say of clusters that would begin at its end or later: two short reads. A program
that was killed leaves such counts as well, for what it had not written yet. So only what the tables refer to makes
a file a cut one, and those are read only then, or where the counts are not kept (lazy_refcounts, not closed).
QEMU writes the tables whole, and first what it lets them refer to: so a file may be written meanwhile. Of the last
cluster of data the end may be missing.

Source: docs/interop/qcow2.txt in QEMU's source.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator

from volctl import interrupt
from volctl.records import record

_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED, _ZERO = 1 << 62, 1
_LOOK = 64 * 1024  # bytes of counts, or of a table of them: behind the end of a cut file they soon begin


@record
class Tables:
    """Where they are, by the header; sizes in bytes. `dirty`: the counts may lag behind."""

    cluster_bits: int
    extended: bool
    dirty: bool
    l1_offset: int
    l1_size: int
    counts_offset: int
    counts_size: int
    count_order: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits


def lacking(fd: int, tables: Tables) -> int:
    """If the open file ends before something that it holds begins, the size that would do, in bytes; else 0."""
    if not (tables.dirty or _is_counted_on(fd, tables)):
        return 0
    needed = max(_needed(fd, tables))
    return -(-needed // tables.cluster) * tables.cluster if os.fstat(fd).st_size < needed else 0


def _is_counted_on(fd: int, tables: Tables) -> bool:
    """Is a cluster in use, by the counts, that begins at the end of the file or later?"""
    in_block = tables.cluster_bits + 3 - tables.count_order  # bits of the number of a count in its block
    first = -(-os.fstat(fd).st_size // tables.cluster)
    number, entry = first >> in_block, first & ((1 << in_block) - 1)
    left = tables.counts_size - number * 8
    if left <= 0:
        return False
    blocks = _words(os.pread(fd, min(left, _LOOK), tables.counts_offset + number * 8))
    if not blocks or any(blocks[1:]):
        return True
    if not blocks[0]:
        return False
    at, bit = divmod(entry << tables.count_order, 8)  # several of less than a byte begin at its lowest bit
    length = min(tables.cluster - at, _LOOK)
    counts = os.pread(fd, length, blocks[0] + at)
    return len(counts) < length or counts[0] >> bit > 0 or counts[1:] != bytes(length - 1)


def _needed(fd: int, tables: Tables) -> Iterator[int]:
    """Offsets that the file must reach; what they were read from was written after it."""
    yield max(tables.l1_offset + tables.l1_size, tables.counts_offset + tables.counts_size)
    for block in _words(os.pread(fd, tables.counts_size, tables.counts_offset)):
        if block:
            yield block + tables.cluster
    for entry in _words(os.pread(fd, tables.l1_size, tables.l1_offset)):
        if table := entry & _OFFSET:
            interrupt.check()
            yield table + tables.cluster
            yield _of_table(_words(os.pread(fd, tables.cluster, table)), tables)


def _of_table(entries: array[int], tables: Tables) -> int:
    """The first byte of the last cluster that an L2 table refers to for what is in it, and one more."""
    packed = (1 << 62 - (tables.cluster_bits - 8)) - 1
    if tables.extended:  # each with a bitmap, whose lower half says which subclusters are there
        entries = array("Q", (e for e, there in zip(entries[::2], entries[1::2], strict=False)
                              if e & _COMPRESSED or there & 0xFFFFFFFF))  # fmt: skip
    plain = max((e & _OFFSET for e in entries if not e & (_COMPRESSED | _ZERO)), default=0)
    return max(plain, max((e & packed for e in entries if e & _COMPRESSED), default=0)) + 1


def _words(raw: bytes) -> array[int]:
    found = array("Q", raw[: len(raw) // 8 * 8])
    found.byteswap()
    return found
