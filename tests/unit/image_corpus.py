"""Builders of disk images for tests, good and bad, made by qemu-img and then bent by hand."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from array import array
from collections.abc import Callable
from pathlib import Path

MiB = 1024**2
DISK = 24 * MiB

ACCEPTED: dict[str, tuple[str, ...]] = {
    "qcow2-0.10": ("qcow2", "-o", "compat=0.10"),
    "qcow2-1.1": ("qcow2", "-o", "compat=1.1"),
    "qcow2-zlib": ("qcow2", "-c"),
    "qcow2-zstd": ("qcow2", "-c", "-o", "compression_type=zstd"),
    "qcow2-512": ("qcow2", "-o", "cluster_size=512"),
    "qcow2-2M": ("qcow2", "-o", "cluster_size=2M"),
    "qcow2-extended-l2": ("qcow2", "-o", "extended_l2=on"),
    "qcow2-lazy": ("qcow2", "-o", "lazy_refcounts=on"),
    "qcow2-metadata": ("qcow2", "-o", "preallocation=metadata"),
    "vmdk-sparse": ("vmdk",),
    "vmdk-stream": ("vmdk", "-o", "subformat=streamOptimized"),
    "vdi": ("vdi",),
    "vdi-static": ("vdi", "-o", "static=on"),
    "vhd-dynamic": ("vpc", "-o", "force_size=on"),
    "vhd-fixed": ("vpc", "-o", "subformat=fixed,force_size=on"),
    "vhdx": ("vhdx",),
    "vhdx-fixed": ("vhdx", "-o", "subformat=fixed"),
}
"""Name → arguments after `-O` of `qemu-img convert`; the name up to the first `-` is our format."""


def qemu_img(*args: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, args)], check=True, capture_output=True)


def raw(path: Path, size: int = DISK) -> Path:
    """A sparse disk: data that compresses to about a half at its start, inside and at its end."""
    numbers = random.Random(7)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in ((0, 300_000), (9 * MiB, 200_000), (size - 70_000, 70_000)):
            file.seek(offset)
            file.write(numbers.randbytes(length // 2).hex().encode())
    return path


def convert(source: Path, target: Path, format: str, *options: str) -> Path:
    qemu_img("convert", "-f", "raw", "-O", format, *options, source, target)
    return target


def patch(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        file.write(data)
    return path


def cut(path: Path, length: int) -> Path:
    os.truncate(path, length)
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def stream_with_footer(source: Path, target: Path) -> Path:
    """What VMware and VirtualBox write: the header leaves its grain directory to a footer at the end."""
    convert(source, target, "vmdk", "-o", "subformat=streamOptimized")
    content = target.read_bytes()
    content += bytes(-len(content) % 512)
    marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    head = content[:56] + b"\xff" * 8 + content[64:]
    return text(target, head + marker + content[:512] + bytes(512))


Make = Callable[[Path], Path]
"""Makes a file in an empty directory that also holds `disk.raw`."""


def _qcow2(where: Path, *options: str) -> Path:
    return convert(where / "disk.raw", where / "image.qcow2", "qcow2", *options)


def _backed(name: str) -> Make:
    def make(where: Path) -> Path:
        image = where / "image.qcow2"
        qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", name, image, "24M")
        return image

    return make


def _data_file(where: Path) -> Path:
    image = where / "image.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={where}/data.raw", image, "24M")
    return image


def _vmdk(subformat: str) -> Make:
    def make(where: Path) -> Path:
        return convert(where / "disk.raw", where / "image.vmdk", "vmdk", "-o", f"subformat={subformat}")

    return make


def _descriptor(where: Path) -> Path:
    """The 194 bytes that make a plain `qemu-img convert` copy a host file."""
    lines = ("# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff", 'createType="monolithicFlat"')
    return text(where / "image.vmdk", "\n".join([*lines, 'RW 8 FLAT "/etc/passwd" 0', ""]))


def _vmdk_descriptor(old: bytes, new: bytes) -> Make:
    def make(where: Path) -> Path:
        image = _vmdk("monolithicSparse")(where)
        content = image.read_bytes()
        assert old in content[:8192]
        return text(image, content[:8192].replace(old, new.ljust(len(old)), 1) + content[8192:])

    return make


def _vmdk_without_capacity(where: Path) -> Path:
    return patch(_vmdk("monolithicSparse")(where), 12, bytes(8))


def _vhd_differencing(where: Path) -> Path:
    image = convert(where / "disk.raw", where / "image.vhd", "vpc")
    footer = bytearray(image.read_bytes()[:512])
    struct.pack_into(">I", footer, 60, 4)
    struct.pack_into(">I", footer, 64, 0)
    struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
    return patch(patch(image, 0, bytes(footer)), -512, bytes(footer))


def _vdi_parent(where: Path) -> Path:
    return patch(convert(where / "disk.raw", where / "image.vdi", "vdi"), 0x1B8, b"parent-uuid-here")


def _vhdx_parent(where: Path) -> Path:
    """Sets `HasParent` in the file parameters, found by their GUID in the metadata table."""
    image = convert(where / "disk.raw", where / "image.vhdx", "vhdx")
    content = image.read_bytes()
    table = content.index(b"metadata")
    entry = content.index(bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b"), table)
    (offset,) = struct.unpack_from("<I", content, entry + 16)
    return patch(image, table + offset + 4, b"\x02")


def _huge(where: Path) -> Path:
    return patch(_qcow2(where), 24, struct.pack(">Q", 1024**6))


def _bomb(where: Path) -> Path:
    """A small file with an L1 table of the largest size, each entry an L2 table of its own in a hole."""
    image = _qcow2(where, "-o", "cluster_size=512")
    count = 2**22
    l1 = -(-os.path.getsize(image) // 512) * 512
    tables = l1 + count * 8
    entries = array("Q", range(tables, tables + count * 512, 512))
    entries.byteswap()
    patch(image, l1, entries.tobytes())
    patch(image, 24, struct.pack(">QIIQ", count * 512 * 64, 0, count, l1))
    return cut(image, tables + count * 512)


REFUSED: dict[str, tuple[Make, str]] = {
    "backing file, absolute": (_backed("/etc/passwd"), "image_unsafe"),
    "backing file, relative": (_backed("disk.raw"), "image_unsafe"),
    "backing file, json": (_backed('json:{"driver":"raw","file.filename":"/etc/passwd"}'), "image_unsafe"),
    "data file": (_data_file, "image_unsafe"),
    "encrypted, AES": (lambda d: patch(_qcow2(d), 32, struct.pack(">I", 1)), "image_unsafe"),
    "encrypted, LUKS": (lambda d: patch(_qcow2(d), 32, struct.pack(">I", 2)), "image_unsafe"),
    "luks": (lambda d: text(d / "i", b"LUKS\xba\xbe\0\x02" + bytes(4096)), "image_unsafe"),
    "unknown feature": (lambda d: patch(_qcow2(d), 72, struct.pack(">Q", 1 << 40)), "image_unsafe"),
    "unknown compression": (lambda d: patch(patch(_qcow2(d), 72, struct.pack(">Q", 8)), 104, b"\x07"), "image_unsafe"),
    "qcow2 version 9": (lambda d: patch(_qcow2(d), 4, struct.pack(">I", 9)), "image_unsafe"),
    "corrupt bit": (lambda d: patch(_qcow2(d), 72, struct.pack(">Q", 2)), "image_corrupt"),
    "refcounts of zero": (lambda d: patch(_qcow2(d), 0x20000, bytes(4096)), "image_corrupt"),
    "1 EiB header": (_huge, "image_corrupt"),
    "100 bytes of qcow2": (lambda d: cut(_qcow2(d), 100), "image_corrupt"),
    "4 bytes of qcow2": (lambda d: cut(_qcow2(d), 4), "image_corrupt"),
    "cluster bits": (lambda d: patch(_qcow2(d), 20, struct.pack(">I", 40)), "image_corrupt"),
    "L1 table far away": (lambda d: patch(_qcow2(d), 40, struct.pack(">Q", 1 << 62)), "image_corrupt"),
    "vmdk descriptor": (_descriptor, "image_unsafe"),
    "vmdk flat": (_vmdk("monolithicFlat"), "image_unsafe"),
    "vmdk split": (_vmdk("twoGbMaxExtentSparse"), "image_unsafe"),
    "vmdk type": (_vmdk_descriptor(b'"monolithicSparse"', b'"custom"'), "image_unsafe"),
    "vmdk without capacity": (_vmdk_without_capacity, "image_unsafe"),
    "vmdk parent": (_vmdk_descriptor(b"parentCID=ffffffff", b"parentCID=12345678"), "image_unsafe"),
    "vmdk parent's name": (
        _vmdk_descriptor(b"# Extent description", b'parentFileNameHint="'),
        "image_unsafe",
    ),
    "vhd with a parent": (_vhd_differencing, "image_unsafe"),
    "vdi with a parent": (_vdi_parent, "image_unsafe"),
    "vhdx with a parent": (_vhdx_parent, "image_unsafe"),
    "vhd checksum": (lambda d: patch(convert(d / "disk.raw", d / "i.vhd", "vpc"), 100, b"x"), "image_corrupt"),
    "gzip": (lambda d: text(d / "i.gz", b"\x1f\x8b\x08" + bytes(600)), "image_format"),
    "xz": (lambda d: text(d / "i.xz", b"\xfd7zXZ\0" + bytes(600)), "image_format"),
    "zstd": (lambda d: text(d / "i.zst", b"\x28\xb5\x2f\xfd" + bytes(600)), "image_format"),
    "qcow version 1": (lambda d: text(d / "i", b"QFI\xfb\0\0\0\x01" + bytes(600)), "image_format"),
    "qed": (lambda d: text(d / "i", b"QED\0" + bytes(600)), "image_format"),
    "vmdk cowd": (lambda d: text(d / "i", b"COWD" + bytes(600)), "image_format"),
    "parallels": (lambda d: text(d / "i", b"WithouFreSpacExt" + bytes(600)), "image_format"),
    "bochs": (lambda d: text(d / "i", b"Bochs Virtual HD Image" + bytes(600)), "image_format"),
    "dmg": (lambda d: text(d / "i", bytes(1024) + b"koly" + bytes(508)), "image_format"),
    "vdi signature on a raw disk": (
        lambda d: text(d / "i", bytes(64) + b"\x7f\x10\xda\xbe" + bytes(4096)),
        "image_corrupt",
    ),
    "vhd footer on a raw disk": (lambda d: text(d / "i", bytes(4096) + b"conectix" + bytes(504)), "image_corrupt"),
    "empty": (lambda d: text(d / "i", b""), "image_format"),
    "too large to check": (_bomb, "image_unsafe"),
}
