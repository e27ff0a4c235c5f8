"""What the first bytes of an image say, before the rest of it is there: nothing here is to be relied on."""

from __future__ import annotations

from volctl.errors import ImageError
from volctl.images import packed
from volctl.images.formats.magic import by_head, packer
from volctl.images.gate import PACKED

HEAD = 64 * 1024
_SIZES = {"qcow2": (24, "big", 1), "vmdk": (12, "little", 512), "vdi": (0x170, "little", 1), "vhd": (48, "big", 1)}
"""Where the disk's size is, in which byte order, and its unit in bytes."""


def virtual_size(head: bytes, length: int | None) -> int | None:
    """The size of the disk in a file of `length` bytes that begins with `head`; None if that does not show."""
    kind = packer(head)
    if kind in PACKED:
        return virtual_size(_first(head, kind), None)
    format = by_head(head)
    if format is None:
        return length
    if format not in _SIZES:
        return None
    at, order, unit = _SIZES[format]
    found = int.from_bytes(head[at : at + 8], "big" if order == "big" else "little") * unit
    return found or None


def _first(head: bytes, kind: str) -> bytes:
    try:
        return packed.beginning(head, kind)
    except ImageError:
        return b""
