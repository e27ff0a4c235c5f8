"""What a qcow2 file says of itself: docs/interop/qcow2.txt in QEMU's source."""

from __future__ import annotations

import os
import struct

from volctl.errors import BackendError
from volctl.model import MAX_SIZE
from volctl.qcow2.extent import Tables, lacking
from volctl.records import record

MAGIC = 0x514649FB
DIRTY, CORRUPT, DATA_FILE, EXTENDED = 1, 2, 4, 16
KNOWN = 0b11111  # incompatible features: dirty, corrupt, data file, compression type, extended L2
BACKING_FORMAT = 0xE2792ACA
LONGEST_NAME = 1023
_LARGEST_CLUSTER = 2 * 1024**2  # the name is in the first one
_MAX_L1 = 32 * 1024**2 // 8  # entries; QCOW_MAX_L1_SIZE
_MAX_COUNTS = 8 * 1024**2  # bytes; QCOW_MAX_REFTABLE_SIZE
_HEADER = struct.Struct(">IIQIIQIIQQIIQQQQII")
_EXTENSION = struct.Struct(">II")


@record
class Header:
    """`size` is the guest disk's, in bytes; `backing` and its format are as written, None for none.

    `lacks`: so many bytes the file ought to have, and ends before (`volctl.qcow2.extent`); 0 for a whole one.
    """

    size: int
    backing: str | None
    backing_format: str | None
    l1_offset: int
    l1_size: int
    lacks: int = 0

    def check_whole(self, name: str) -> None:
        """A file that was attached when the power went may lack what its guest had not flushed."""
        if self.lacks:
            hint = f"put the whole file back; or, if zeros will do for what is missing: truncate -s {self.lacks} FILE"
            raise BackendError(f"{name} is cut off: it ends before what it holds", hint=hint, details={"corrupt": True})


def read(fd: int, name: str) -> Header:
    """The header of the file `name` open at `fd`; `BackendError` if it is none that volctl makes.

    Its detail `corrupt`: it was one.
    """
    raw = os.pread(fd, _HEADER.size, 0)
    if len(raw) < _HEADER.size or raw[:4] != MAGIC.to_bytes(4, "big"):
        raise BackendError(f"{name} is not a qcow2 file")
    fields = _HEADER.unpack(raw)
    _, version, at, length, bits, size, encrypted, l1_size, l1_offset, counts, clusters, _, _, *rest = fields
    features, _, _, order, end = rest
    if version != 3 or encrypted or features & ~KNOWN or features & DATA_FILE:
        raise BackendError(f"{name} is a qcow2 file that volctl did not make (version, encryption or features)")
    if features & CORRUPT:
        hint = "look at it: qemu-img check -f qcow2 FILE"
        raise BackendError(f"{name} is marked as corrupt", hint=hint, details={"corrupt": True})
    beyond = size > MAX_SIZE or l1_size > _MAX_L1 or length > LONGEST_NAME or at > _LARGEST_CLUSTER
    odd = not 9 <= bits <= 21 or order > 6 or clusters << bits > _MAX_COUNTS
    if beyond or odd or not _HEADER.size <= end <= 4096:
        raise BackendError(f"{name} has a damaged header", details={"corrupt": True})
    extended, dirty = bool(features & EXTENDED), bool(features & DIRTY)
    lacks = lacking(fd, Tables(bits, extended, dirty, l1_offset, l1_size * 8, counts, clusters << bits, order))
    backing = os.pread(fd, length, at).decode(errors="replace") if at else None
    return Header(size, backing, _backing_format(os.pread(fd, 4096, 0), end), l1_offset, l1_size, lacks)


def glimpse(fd: int) -> Header | None:
    """Of a file that is damaged, what it lies over, of size 0; None of what is no qcow2."""
    raw = os.pread(fd, _HEADER.size, 0)
    if len(raw) < _HEADER.size or raw[:4] != MAGIC.to_bytes(4, "big"):
        return None
    _, _, at, length, *_ = _HEADER.unpack(raw)
    named = os.pread(fd, min(length, LONGEST_NAME), at).decode(errors="replace") if 0 < at <= _LARGEST_CLUSTER else None
    return Header(0, named, None, 0, 0)


def _backing_format(raw: bytes, at: int) -> str | None:
    """From the header extension that names it; extensions are padded to 8 bytes, 0 ends them."""
    while at + _EXTENSION.size <= len(raw):
        kind, length = _EXTENSION.unpack_from(raw, at)
        at += _EXTENSION.size
        if kind == BACKING_FORMAT:
            return raw[at : at + length].decode(errors="replace")
        if kind == 0:
            break
        at += -(-length // 8) * 8
    return None


def is_blank(fd: int, header: Header) -> bool:
    """Does the file itself hold nothing, neither data nor explicit zeros? (No entry in its L1 table.)"""
    raw = os.pread(fd, header.l1_size * 8, header.l1_offset)
    return len(raw) == header.l1_size * 8 and not any(raw)
