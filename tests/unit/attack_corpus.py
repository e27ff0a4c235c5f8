"""Images that mean harm, by kind, each kind with relatives that do not. Made here: no stranger's file.

`ATTACKS` is group → name → (how it is made, the code it is refused with); `HARMLESS` the same groups
with images that must be taken and read as the disk. A maker gets an empty directory that also holds
`disk.raw`, the disk of all good images.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from backports import zstd

from tests.unit import image_corpus as corpus
from tests.unit.image_corpus import Make, MiB, cut, patch, qemu_img, text

Group = dict[str, tuple[Make, str]]
Good = dict[str, Make]
UNSAFE, CORRUPT, FORMAT, TOO_BIG = "image_unsafe", "image_corrupt", "image_format", "image_too_big"


def made(name: str, *options: str) -> Make:
    """The disk as an image: a name of `corpus.ACCEPTED`, and more options."""

    def make(where: Path) -> Path:
        return corpus.convert(where / "disk.raw", where / "image", *corpus.ACCEPTED[name], *options)

    return make


qcow2, vmdk, vdi, vhd, vhdx = (made(name) for name in ("qcow2-1.1", "vmdk-sparse", "vdi", "vhd-dynamic", "vhdx"))


def patched(make: Make, offset: int, data: bytes) -> Make:
    return lambda where: patch(make(where), offset, data)


def big(code: str, value: int) -> bytes:
    return struct.pack(f">{code}", value)


def little(code: str, value: int) -> bytes:
    return struct.pack(f"<{code}", value)


def found(attack: str) -> tuple[Make, str]:
    """One that the tests of the gate itself have already."""
    return corpus.REFUSED[attack]


# -- images that name other files


def backed(name: str, *options: str) -> Make:
    def make(where: Path) -> Path:
        qemu_img("create", "-u", "-f", "qcow2", *options, "-b", name, where / "image", "24M")
        return where / "image"

    return make


def backed_by_itself(where: Path) -> Path:
    name = str(where / "image")
    image = backed("-" * len(name), "-F", "qcow2")(where)
    return text(image, image.read_bytes().replace(b"-" * len(name), name.encode()))


def long_chain(where: Path) -> Path:
    """A thousand overlays, each upon the next: opening the first opens them all."""
    first = backed("link-0000", "-F", "qcow2", "-o", "cluster_size=512")(where).read_bytes()
    for number in range(1000):
        text(where / f"link-{number:04}", first.replace(b"link-0000", f"link-{number + 1:04}".encode()))
    shutil.copy(where / "disk.raw", where / "link-1000")
    return where / "link-0000"


def data_file(*options: str) -> Make:
    def make(where: Path) -> Path:
        qemu_img("create", "-f", "qcow2", "-o", ",".join([f"data_file={where}/data.raw", *options]), where / "i", "24M")
        return where / "i"

    return make


EXTENTS = ("FLAT", "SPARSE", "ZERO", "VMFS", "VMFSSPARSE", "VMFSRDM", "VMFSRAW", "SESPARSE")
TYPES = (
    "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "fullDevice", "partitionedDevice", "vmfs",
    "vmfsSparse", "vmfsThin", "vmfsRaw", "vmfsRDM", "seSparse", "custom", "vmfsEagerZeroedThick",
)  # fmt: skip


def descriptor(kind: str, extent: str) -> Make:
    def make(where: Path) -> Path:
        head = ("# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff", f'createType="{kind}"')
        return text(where / "image.vmdk", "\n".join([*head, f'RW 8 {extent} "/etc/passwd" 0', ""]))

    return make


def bent_descriptor(old: bytes, new: bytes) -> Make:
    """A monolithicSparse VMDK with another word in its embedded descriptor."""

    def make(where: Path) -> Path:
        image = vmdk(where)
        content = image.read_bytes()
        head = content[:20480]
        assert old in head
        length = len(head)
        return text(image, head.replace(old, new, 1)[:length].ljust(length, b"\0") + content[length:])

    return make


def differencing_vdi(where: Path) -> Path:
    return patch(vdi(where), 0x4C, little("I", 4))


def qed_with_backing(where: Path) -> Path:
    head = struct.pack("<4sIIIQQQQQII", b"QED\0", 65536, 4, 1, 1, 0, 0, 65536, 24 * MiB, 80, 11)
    return text(where / "image.qed", head.ljust(80, b"\0") + b"/etc/passwd" + bytes(262144))


def qcow1_with_backing(where: Path) -> Path:
    return text(where / "i", struct.pack(">4sIQII", b"QFI\xfb", 1, 48, 11, 0) + bytes(24) + b"/etc/passwd" + bytes(600))


REFERENCES: Group = {
    "qcow2, backing file, absolute": (backed("/etc/passwd", "-F", "raw"), UNSAFE),
    "qcow2, backing file, relative": (backed("disk.raw", "-F", "raw"), UNSAFE),
    "qcow2, backing file, format not said": (patched(backed("disk.raw", "-F", "raw"), 112, bytes(4)), UNSAFE),
    "qcow2, backing file, json:": (
        backed('json:{"driver":"raw","file.filename":"/etc/passwd"}', "-F", "raw"), UNSAFE,
    ),
    "qcow2, backing file, nbd:": (backed("nbd:127.0.0.1:10809", "-F", "raw"), UNSAFE),
    "qcow2, backing file, nbd+unix:": (backed("nbd+unix:///disk?socket=/run/nbd", "-F", "raw"), UNSAFE),
    "qcow2, backing file, http:": (backed("http://127.0.0.1/disk", "-F", "raw"), UNSAFE),
    "qcow2, backing file, ssh:": (backed("ssh://root@127.0.0.1/disk", "-F", "raw"), UNSAFE),
    "qcow2, backing file, itself": (backed_by_itself, UNSAFE),
    "qcow2, backing file, /dev/stdin": (backed("/dev/stdin", "-F", "raw"), UNSAFE),
    "qcow2, backing file, missing": (backed("/nowhere", "-F", "raw"), UNSAFE),
    "qcow2, a chain of 1,000 backing files": (long_chain, UNSAFE),
    "qcow2 0.10, backing file": (backed("/etc/passwd", "-F", "raw", "-o", "compat=0.10"), UNSAFE),
    "qcow2, data file": (data_file(), UNSAFE),
    "qcow2, data file, raw": (data_file("data_file_raw=on"), UNSAFE),
    "qcow2, data file bit alone": (patched(qcow2, 72, big("Q", 4)), UNSAFE),
    "qcow version 1, backing file": (qcow1_with_backing, FORMAT),
    "qed, backing file": (qed_with_backing, FORMAT),
    **{f"vmdk descriptor, extent {kind}": (descriptor("monolithicFlat", kind), UNSAFE) for kind in EXTENTS},
    **{f"vmdk descriptor, type {kind}": (descriptor(kind, "FLAT"), UNSAFE) for kind in TYPES},
    **{
        f"vmdk with a header, type {kind}": (bent_descriptor(b'"monolithicSparse"', f'"{kind}"'.encode()), UNSAFE)
        for kind in TYPES
    },
    "vmdk, a second extent": (
        bent_descriptor(b"\n# The Disk Data Base", b'\nRW 8 FLAT "/etc/passwd" 0\n# The Disk'), UNSAFE,
    ),
    "vmdk, parent's id": found("vmdk parent"),
    "vmdk, parent's name": found("vmdk parent's name"),
    "vmdk without capacity": found("vmdk without capacity"),
    "vmdk, comments before the descriptor": (
        lambda d: text(d / "i", b"# a\n\n#b\n" + descriptor("monolithicFlat", "FLAT")(d).read_bytes()), UNSAFE,
    ),
    "vmdk, flat, as qemu-img makes it": found("vmdk flat"),
    "vmdk, split, as qemu-img makes it": found("vmdk split"),
    "vhd with a parent": found("vhd with a parent"),
    "vhdx with a parent": found("vhdx with a parent"),
    "vdi with a parent": found("vdi with a parent"),
    "vdi, type differencing": (differencing_vdi, UNSAFE),
}  # fmt: skip


# -- what is unknown, secret, or another format


UNKNOWN: Group = {
    "qcow2, unknown incompatible feature": found("unknown feature"),
    "qcow2, all features": (patched(qcow2, 72, b"\xff" * 8), UNSAFE),
    "qcow2, unknown compression": found("unknown compression"),
    "qcow2 version 9": found("qcow2 version 9"),
    "qcow2, encrypted, AES": found("encrypted, AES"),
    "qcow2, encrypted, LUKS": found("encrypted, LUKS"),
    "qcow2, encryption unknown": (patched(qcow2, 32, big("I", 77)), UNSAFE),
    "luks": found("luks"),
    "vdi, unknown version": (patched(vdi, 0x44, little("I", 0x20001)), CORRUPT),
    "vdi, unknown type": (patched(vdi, 0x4C, little("I", 3)), UNSAFE),
    "vhd, unknown type": (patched(vhd, 60, big("I", 9)), CORRUPT),
    "vmdk, version 9": (patched(vmdk, 4, little("I", 9)), CORRUPT),
    **{name: found(name) for name in ("qed", "vmdk cowd", "parallels", "bochs", "dmg", "qcow version 1")},
    "vmdk, sesparse": (lambda d: text(d / "i", little("Q", 0xCAFEBABE) + bytes(4096)), FORMAT),
    "cloop": (lambda d: text(d / "i", b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop" + bytes(600)), FORMAT),
    "bzip2": (lambda d: text(d / "i.bz2", bz2.compress(qcow2(d).read_bytes())), FORMAT),
    "zip": (lambda d: text(d / "i.zip", b"PK\x03\x04" + bytes(600)), FORMAT),
    "tar": (lambda d: text(d / "i.tar", bytes(257) + b"ustar" + bytes(2000)), FORMAT),
}


# -- corrupt, cut off, extremes


def cut_to(make: Make, length: Callable[[int], int]) -> Make:
    def shorter(where: Path) -> Path:
        image = make(where)
        return cut(image, length(image.stat().st_size))

    return shorter


WHOLE = {"qcow2": qcow2, "qcow2, compressed": made("qcow2-zlib"), "vdi": vdi, "vhd": vhd, "vhdx": vhdx, "vmdk": vmdk}
POINTS: dict[str, Callable[[int], int]] = {
    "one byte less": lambda size: size - 1,
    "half of it": lambda size: size // 2,
    "600 bytes of it": lambda size: 600,
}

DAMAGED: Group = {
    **{
        f"{name}, {where}": (cut_to(make, point), CORRUPT)
        for name, make in WHOLE.items()
        for where, point in POINTS.items()
    },
    "qcow2, 100 bytes of it": found("100 bytes of qcow2"),
    "qcow2, 4 bytes of it": found("4 bytes of qcow2"),
    "qcow2, corrupt bit": found("corrupt bit"),
    "qcow2, refcounts of zero": found("refcounts of zero"),
    "qcow2, refcounts of 2^7 bits": (patched(qcow2, 96, big("I", 7)), CORRUPT),
    "qcow2, refcounts of 2^31 bits": (patched(qcow2, 96, big("I", 31)), CORRUPT),
    "qcow2, refcount table far away": (patched(qcow2, 48, big("Q", 1 << 60)), CORRUPT),
    "qcow2, refcount table of 4 billion clusters": (patched(qcow2, 56, big("I", 0xFFFFFFFF)), CORRUPT),
    "qcow2, clusters of 2^8 bytes": (patched(qcow2, 20, big("I", 8)), CORRUPT),
    "qcow2, clusters of 2^22 bytes": (patched(qcow2, 20, big("I", 22)), CORRUPT),
    "qcow2, clusters of 2^40 bytes": found("cluster bits"),
    "qcow2, clusters of 2^0 bytes": (patched(qcow2, 20, big("I", 0)), CORRUPT),
    "qcow2, L1 table far away": found("L1 table far away"),
    "qcow2, L1 table of 4 billion entries": (patched(qcow2, 36, big("I", 0xFFFFFFFF)), CORRUPT),
    "qcow2, L1 table over its header": (patched(qcow2, 40, big("Q", 0)), CORRUPT),
    "qcow2, header of 4 GiB": (patched(qcow2, 100, big("I", 0xFFFFFFFF)), CORRUPT),
    "qcow2, snapshots, 4 billion": (patched(qcow2, 60, big("I", 0xFFFFFFFF)), CORRUPT),
    "qcow2, snapshots far away": (patched(patched(qcow2, 60, big("I", 3)), 64, big("Q", 1 << 62)), CORRUPT),
    "vhd, checksum": found("vhd checksum"),
    "vdi, blocks of 0 bytes": (patched(vdi, 0x178, bytes(4)), CORRUPT),
    "vdi, map of no blocks": (patched(vdi, 0x180, bytes(4)), CORRUPT),
    "vdi, map far away": (patched(vdi, 0x154, b"\xff" * 4), CORRUPT),
    "vmdk, grains of 0 bytes": (patched(vmdk, 20, bytes(8)), CORRUPT),
    "vmdk, grains of 2^60 bytes": (patched(vmdk, 20, little("Q", 1 << 51)), CORRUPT),
    "vmdk, tables of 4 billion grains": (patched(vmdk, 44, b"\xff" * 4), CORRUPT),
    "vmdk, descriptor far away": (patched(vmdk, 28, little("Q", 1 << 50)), CORRUPT),
    "vmdk, descriptor of 2^60 bytes": (patched(vmdk, 36, little("Q", 1 << 51)), UNSAFE),
    "vhdx, no region table": (patched(vhdx, 192 * 1024, bytes(64)), CORRUPT),
    "vhdx, headers of zeros": (patched(vhdx, 65536, bytes(128 * 1024)), CORRUPT),
    "vdi signature on a raw disk": found("vdi signature on a raw disk"),
    "vhd footer on a raw disk": found("vhd footer on a raw disk"),
    "empty": found("empty"),
}  # fmt: skip


# -- sizes and bombs


def packed_bomb(pack: Callable[[bytes], bytes]) -> Make:
    """Zeros as members strung together: some 700 KiB and less that become 700 MiB."""

    def make(where: Path) -> Path:
        return text(where / "image", pack(bytes(32 * MiB)) * 22)

    return make


def shared_clusters(where: Path) -> Path:
    """A file of 320 KiB whose tables refer to one cluster 2^20 times: a copy would write 64 GiB."""
    image = where / "image"
    qemu_img("create", "-f", "qcow2", image, "64G")
    l1 = int.from_bytes(image.read_bytes()[40:48], "big")
    data = -(-image.stat().st_size // 65536) * 65536
    patch(image, l1, big("Q", data) * 128)
    patch(image, data, big("Q", data + 65536) * 8192)
    return patch(image, data + 65536, b"x" * 65536)


def one_eib(where: Path) -> Path:
    """A whole and honest qcow2 that says it is 1 EiB: clusters of 2 MiB, an L1 table of 16 MiB in a hole."""
    image = made("qcow2-2M")(where)
    size = os.path.getsize(image)
    entries = 2**60 // (2 * MiB * (2 * MiB // 8))
    return cut(patch(patch(image, 24, big("Q", 2**60)), 36, big("I", entries)), size + entries * 8)


BOMBS: Group = {
    "qcow2 of 1 EiB, tables too short": found("1 EiB header"),
    "qcow2 of 1 EiB": (one_eib, CORRUPT),
    "qcow2 of 16 EiB - 1": (patched(qcow2, 24, b"\xff" * 8), CORRUPT),
    "qcow2 with tables of 32 GiB in holes": found("too large to check"),
    "qcow2 that refers to one cluster a million times": (shared_clusters, CORRUPT),
    "vdi of 16 EiB": (patched(vdi, 0x170, b"\xff" * 8), CORRUPT),
    "vhdx of 16 EiB": (lambda d: _vhdx_size(d, 2**64 - 1), CORRUPT),
    "vmdk of 2^63 sectors": (patched(vmdk, 12, little("Q", 1 << 63)), CORRUPT),
    "gzip bomb": (packed_bomb(gzip.compress), UNSAFE),
    "xz bomb": (packed_bomb(lzma.compress), UNSAFE),
    "zstd bomb": (packed_bomb(zstd.compress), UNSAFE),
}


def _vhdx_size(where: Path, size: int) -> Path:
    image = vhdx(where)
    content = image.read_bytes()
    table = content.index(b"metadata")
    entry = content.index(bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8"), table)
    (offset,) = struct.unpack_from("<I", content, entry + 16)
    return patch(image, table + offset, little("Q", size))


# -- one format inside another


VHD_FOOTER = b"conectix" + bytes(504)


def packed(make: Make) -> Make:
    return lambda where: text(where / "image.gz", gzip.compress(make(where).read_bytes()))


def guest_wrote_a_header(where: Path) -> Path:
    """A raw disk into whose first sector its guest wrote a qcow2 header that names a host's file."""
    trap = backed("/etc/passwd", "-F", "raw")(where).read_bytes()
    disk = (where / "disk.raw").read_bytes()
    return text(where / "guest.raw", trap[:4096] + disk[4096:])


NESTED: Group = {
    "raw disk whose guest wrote a qcow2 header": (guest_wrote_a_header, UNSAFE),
    "gzip of a qcow2 with a backing file": (packed(backed("/etc/passwd", "-F", "raw")), UNSAFE),
    "gzip of a vmdk descriptor": (packed(descriptor("monolithicFlat", "FLAT")), UNSAFE),
    "gzip of a qcow2 that is cut off": (packed(cut_to(qcow2, lambda size: size // 2)), CORRUPT),
    "gzip in gzip": (packed(packed(qcow2)), FORMAT),
    "gzip, cut off": (cut_to(packed(qcow2), lambda size: size // 2), CORRUPT),
    "gzip, damaged": (lambda d: patch(packed(qcow2)(d), 5000, b"\xff" * 64), CORRUPT),
    "gzip, only its magic": (found("gzip")[0], CORRUPT),
    "xz, only its magic": (found("xz")[0], CORRUPT),
    "zstd, only its magic": (found("zstd")[0], CORRUPT),
    "qcow2 with a vhd footer, cut off": (
        lambda d: text(d / "i", qcow2(d).read_bytes()[:100_000] + VHD_FOOTER), CORRUPT,
    ),
    "vhd footer behind a vmdk descriptor": (
        lambda d: text(d / "i", descriptor("vmfs", "FLAT")(d).read_bytes().ljust(4096, b"\0") + VHD_FOOTER), UNSAFE,
    ),
}  # fmt: skip


# -- what is no file


def fifo(where: Path) -> Path:
    os.mkfifo(where / "fifo")
    return where / "fifo"


def bound(where: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where / "socket"))
    return where / "socket"


def directory(where: Path) -> Path:
    (where / "image.qcow2").mkdir()
    return where / "image.qcow2"


def link(to: str | Make) -> Make:
    def make(where: Path) -> Path:
        target = to if isinstance(to, str) else str(to(where))
        (where / "link").symlink_to(target)
        return where / "link"

    return make


NO_FILES: Group = {
    "FIFO": (fifo, FORMAT),
    "socket": (bound, FORMAT),
    "directory": (directory, FORMAT),
    "/dev/zero": (lambda d: Path("/dev/zero"), FORMAT),
    "/dev/null": (lambda d: Path("/dev/null"), FORMAT),
    "/dev/tty": (lambda d: Path("/dev/tty"), FORMAT),
    "/proc/self/mem": (lambda d: Path("/proc/self/mem"), FORMAT),
    "symlink to /dev/zero": (link("/dev/zero"), FORMAT),
    "symlink to a FIFO": (link(fifo), FORMAT),
    "symlink to itself": (link("link"), FORMAT),
    "symlink to a qcow2 with a backing file": (link(backed("/etc/passwd", "-F", "raw")), UNSAFE),
}


# -- names


NAMES = ("--help", "-f", "json:{}", "a:b.qcow2", "nbd:127.0.0.1:1", "line\nbreak", "a,b=c", "%s%n", "ünï", "x" * 255)


def named(make: Make, name: str) -> Make:
    return lambda where: make(where).rename(where / name)


def shown(name: str) -> str:
    return f"{name[:1]} 255 times" if len(name) == 255 else name.replace("\n", "\\n")


EVIL_NAMES: Group = {
    f"a qcow2 with a backing file, named `{shown(name)}`": (named(backed("/etc/passwd", "-F", "raw"), name), UNSAFE)
    for name in NAMES
}

ATTACKS: dict[str, Group] = {
    "Images that name other files": REFERENCES,
    "Unknown, encrypted, other formats": UNKNOWN,
    "Corrupt, cut off, extreme": DAMAGED,
    "Sizes and bombs": BOMBS,
    "One format inside another": NESTED,
    "What is no file": NO_FILES,
    "Names": EVIL_NAMES,
}


def with_snapshot(where: Path) -> Path:
    image = qcow2(where)
    qemu_img("snapshot", "-c", "before", image)
    return image


HARMLESS: dict[str, Good] = {
    "Images that name other files": {
        "raw, of the bytes that others would name": lambda d: d / "disk.raw",
        "vmdk, one sparse file": vmdk,
        "vmdk, a stream": made("vmdk-stream"),
        "vmdk, a stream with a footer": lambda d: corpus.stream_with_footer(d / "disk.raw", d / "image"),
    },
    "Unknown, encrypted, other formats": {
        "qcow2 0.10": made("qcow2-0.10"),
        "qcow2 of zstd": made("qcow2-zstd"),
        "qcow2, extended L2": made("qcow2-extended-l2"),
        "qcow2, an unknown compatible feature": patched(qcow2, 80, big("Q", 1 << 40)),
        "vdi": vdi,
        "vhd, dynamic": vhd,
        "vhd, fixed": made("vhd-fixed"),
        "vhdx": vhdx,
    },
    "Corrupt, cut off, extreme": {
        "qcow2, dirty (its refcounts are old, its data is not)": patched(made("qcow2-lazy"), 72, big("Q", 1)),
        "qcow2, internal snapshot": with_snapshot,
        "qcow2, refcounts of 64 bits": made("qcow2-1.1", "-o", "refcount_bits=64"),
        "qcow2, refcounts of 1 bit": made("qcow2-1.1", "-o", "refcount_bits=1"),
        "qcow2, clusters of 512 bytes": made("qcow2-512"),
        "qcow2, clusters of 2 MiB": made("qcow2-2M"),
        "vdi, static": made("vdi-static"),
        "vhdx, fixed": made("vhdx-fixed"),
    },
    "Sizes and bombs": {
        "qcow2, metadata for all clusters": made("qcow2-metadata"),
        "gzip of the raw disk": packed(lambda d: d / "disk.raw"),
        "xz of the raw disk": lambda d: text(d / "image.xz", lzma.compress((d / "disk.raw").read_bytes())),
    },
    "One format inside another": {
        "gzip of a qcow2": packed(qcow2),
        "raw disk with a qcow2 header in its second sector": lambda d: _second_sector(d),
    },
    "What is no file": {"symlink to a qcow2": link(qcow2)},
    "Names": {f"a qcow2 named `{shown(name)}`": named(qcow2, name) for name in NAMES},
}


def _second_sector(where: Path) -> Path:
    """Accepted as the bytes it is; the disk to compare with is changed as well."""
    trap = backed("/etc/passwd", "-F", "raw")(where).read_bytes()[:512]
    disk = where / "disk.raw"
    content = disk.read_bytes()
    disk.unlink()
    return text(disk, content[:512] + trap + content[1024:])
