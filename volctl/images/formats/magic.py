"""A disk image's format, told from its content and never from its name."""

from __future__ import annotations

import os

from volctl.records import record

HEAD = 1024
FOOTER = 512

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
LONGEST_MAGIC = max(map(len, COMPRESSED))
TAKEN = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"conectix": "vhd", b"vhdxfile": "vhdx"}
OTHERS = {
    b"QED\0": "qed",
    b"LUKS\xba\xbe": "luks",
    b"COWD": "vmdk (ESX sparse extent)",
    b"\xbe\xba\xfe\xca\0\0\0\0": "vmdk (SE sparse extent)",
    b"WithoutFreeSpace": "parallels",
    b"WithouFreSpacExt": "parallels",
    b"Bochs Virtual HD Image": "bochs",
    b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop": "cloop",
    b"OOOM": "user-mode-linux cow",
    b"EVF\t\r\n\xff\0": "ewf",
}
VDI_SIGNATURE = b"\x7f\x10\xda\xbe"


@record
class Magic:
    """A format's name; whether it is a compressed file or archive that must be unpacked first."""

    format: str
    compressed: bool = False


def identify(fd: int, size: int) -> Magic:
    """`raw` only if no known magic is there: what QEMU or another tool would open as something else
    must never be copied as plain bytes, nor the other way round.

    The magics are those of the `*_probe` functions of QEMU's block drivers and of file(1).
    """
    head = os.pread(fd, HEAD, 0)
    if packed := packer(head):
        return Magic(packed, compressed=True)
    return Magic(by_head(head) or _by_footer(os.pread(fd, FOOTER, max(0, size - FOOTER))) or "raw")


def packer(head: bytes) -> str | None:
    """What packed a file that begins so. A skippable frame is taken as zstd's, though lz4 has the same."""
    if head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return "zstd"
    if head[257:262] == b"ustar":
        return "tar"
    return next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)


def by_head(head: bytes) -> str | None:
    if head.startswith(b"QFI\xfb\0\0\0\x01"):
        return "qcow (version 1)"
    for magic, format in (TAKEN | OTHERS).items():
        if head.startswith(magic):
            return format
    if head[0x40:0x44] == VDI_SIGNATURE:
        return "vdi"
    return "vmdk (descriptor)" if _is_descriptor(head) else None


def _is_descriptor(head: bytes) -> bool:
    """Text that `vmdk_probe` of QEMU takes for a VMDK: comments and blanks, then `version=`."""
    if head.lstrip().lower().startswith(b"# disk descriptorfile"):
        return True
    for line in head.split(b"\n"):
        if line.strip() and not line.lstrip().startswith(b"#"):
            return line.strip().lower().startswith(b"version=")
    return False


def _by_footer(footer: bytes) -> str | None:
    if footer.startswith(b"conectix"):
        return "vhd"
    return "dmg" if footer.startswith(b"koly") else None
