"""Packed images are unpacked whole and in bounds, or refused: gzip, xz and zstd alike."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backports import zstd

from tests.unit import image_corpus as corpus
from volctl.errors import ChecksumError, ImageCorruptError, ImageError, ImageTooBigError, ImageUnsafeError, NoSpaceError
from volctl.images.gate import UNPACKED_LIMIT, CheckedImage, Unpacking, open_image
from volctl.images.packed import SUSPICIOUS
from volctl.model import GiB, MiB

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd.compress}
PADDING = {"gzip": bytes(3), "xz": bytes(8), "zstd": b"\x50\x2a\x4d\x18\3\0\0\0abc"}  # a skippable frame
GARBAGE = [b"garbage", b"\0garbage", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", bytes(5) + b"\xfd7zXZ\0"]
kinds = pytest.mark.parametrize("kind", PACK)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.raw(tmp_path_factory.mktemp("disk") / "disk.raw")


@pytest.fixture(scope="module")
def qcow2(disk: Path) -> bytes:
    return corpus.convert(disk, disk.with_name("disk.qcow2"), "qcow2").read_bytes()


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert os.listdir(scratch(tmp_path)) == []


def scratch(folder: Path) -> Path:
    made = folder / "scratch"
    made.mkdir(exist_ok=True)
    return made


def opened(
    folder: Path, content: bytes, *, volume: int | None = None, limit: int = UNPACKED_LIMIT, **more: str
) -> CheckedImage:
    (folder / "image").write_bytes(content)
    unpacking = Unpacking(scratch(folder), volume, limit)
    return open_image(str(folder / "image"), unpacking=unpacking, declared=more.get("declared", "auto"))


def refused(folder: Path, content: bytes, code: type[ImageError], volume: int | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        opened(folder, content, volume=volume)
    assert type(caught.value) is code, caught.value.message
    assert str(folder / "image") in caught.value.message
    return caught.value


@kinds
@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"])
def test_every_format_in_every_packing(kind: str, format: str, tmp_path: Path, disk: Path) -> None:
    plain = corpus.convert(disk, tmp_path / "plain", format).read_bytes()
    with opened(tmp_path, PACK[kind](plain)) as checked:
        assert (checked.packed, checked.format) == (kind, {"vpc": "vhd"}.get(format, format))
        assert checked.file_size == len(plain)
        assert corpus.DISK <= checked.virtual_size < corpus.DISK + MiB  # vpc counts in cylinders
        assert os.pread(checked.fd, len(plain) + 1, 0) == plain
        assert checked.identity["size"] == (tmp_path / "image").stat().st_size
        checked.verify_unchanged()


@kinds
def test_holes_stay_holes(kind: str, tmp_path: Path) -> None:
    with opened(tmp_path, PACK[kind](b"x" * 4096 + bytes(32 * MiB) + b"y" * 512 + bytes(MiB))) as checked:
        assert checked.file_size == 33 * MiB + 4608
        assert checked.data_size <= MiB


@kinds
def test_several_members(kind: str, tmp_path: Path, qcow2: bytes) -> None:
    """Strung together, padded, and cut where a piece that is read ends in the middle of a magic."""
    pack, padding = PACK[kind], PADDING[kind]
    cut = len(qcow2) // 3
    parts = [pack(qcow2[:cut]), pack(b""), padding, pack(qcow2[cut:]), padding]
    with opened(tmp_path, b"".join(parts)) as checked:
        assert os.pread(checked.fd, len(qcow2) + 1, 0) == qcow2
    for length in range(256 * 1024 - 10, 256 * 1024 + 2, 3):
        first = filled(kind, length)
        with opened(tmp_path, first + padding + pack(b"z" * 512)) as checked:
            assert os.pread(checked.fd, 512, checked.file_size - 512) == b"z" * 512


def filled(kind: str, length: int) -> bytes:
    """A packed file of about that length: what it holds does not shrink."""
    noise = random.Random(kind).randbytes(length)
    over = len(PACK[kind](noise)) - length
    return PACK[kind](noise[: length - over])


@kinds
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_behind_it(kind: str, garbage: bytes, tmp_path: Path, qcow2: bytes) -> None:
    refused(tmp_path, PACK[kind](qcow2) + garbage, ImageCorruptError)


@kinds
def test_cut_off_anywhere(kind: str, tmp_path: Path, qcow2: bytes) -> None:
    packed = PACK[kind](qcow2)
    for length in (6, 7, 18, 40, len(packed) // 2, len(packed) - 9, len(packed) - 1):
        refused(tmp_path, packed[:length], ImageCorruptError)


@pytest.mark.parametrize("kind", ["gzip", "xz"])  # of zstd a checksum is an option, and off
def test_one_bit_is_wrong(kind: str, tmp_path: Path) -> None:
    packed = bytearray(PACK[kind](random.Random(1).randbytes(MiB)))
    packed[len(packed) // 2] ^= 1
    refused(tmp_path, bytes(packed), ImageCorruptError)


@kinds
def test_it_holds_nothing(kind: str, tmp_path: Path) -> None:
    refused(tmp_path, PACK[kind](b""), ImageError)


@kinds
@pytest.mark.parametrize("inner", PACK)
def test_packed_twice(kind: str, inner: str, tmp_path: Path, qcow2: bytes) -> None:
    assert "packed twice" in refused(tmp_path, PACK[kind](PACK[inner](qcow2)), ImageError).message


def test_an_archive_in_it(tmp_path: Path, disk: Path) -> None:
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        archive.add(disk, "disk.raw")
    assert "tar inside" in refused(tmp_path, gzip.compress((tmp_path / "image.tar").read_bytes()), ImageError).message


@kinds
def test_the_gate_looks_at_what_was_unpacked(kind: str, tmp_path: Path, disk: Path) -> None:
    refused(tmp_path, PACK[kind](b"LUKS\xba\xbe" + bytes(600)), ImageUnsafeError)
    with pytest.raises(ImageError) as caught:
        opened(tmp_path, PACK[kind](disk.read_bytes()), declared="qcow2")
    assert caught.value.code == "image_format"


@kinds
def test_no_larger_than_the_volume(kind: str, tmp_path: Path, qcow2: bytes) -> None:
    """A raw disk to the byte, any other format with room for its tables."""
    packed = PACK[kind](bytes(8 * MiB))
    assert str(4 * MiB) in refused(tmp_path, packed, ImageTooBigError, volume=4 * MiB - 512).message
    opened(tmp_path, packed, volume=8 * MiB).__exit__(None, None, None)
    opened(tmp_path, PACK[kind](qcow2), volume=corpus.DISK).__exit__(None, None, None)
    refused(tmp_path, PACK[kind](qcow2[:4096] + bytes(100 * MiB)), ImageTooBigError, volume=4 * MiB)


@kinds
def test_no_larger_than_the_limit(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ImageTooBigError) as caught:
        opened(tmp_path, PACK[kind](bytes(8 * MiB)), limit=4 * MiB)
    assert "max_gigabytes" in str(caught.value.hint)


@kinds
def test_a_bomb_is_refused_early_and_taken_if_the_volume_is_so_large(kind: str, tmp_path: Path) -> None:
    bomb = PACK[kind](bytes(8 * MiB))
    many = SUSPICIOUS // (8 * MiB) + 1
    refused(tmp_path, bomb * many, ImageUnsafeError)
    with opened(tmp_path, bomb * many, volume=GiB) as checked:
        assert (checked.file_size, checked.data_size) == (many * 8 * MiB, 0)


def test_a_window_that_is_too_large(tmp_path: Path) -> None:
    of = zstd.CompressionParameter
    parameters: dict[int, int] = {of.window_log: 27, of.enable_long_distance_matching: 1}
    compressor = zstd.ZstdCompressor(options=parameters)
    wide = compressor.compress(random.Random(2).randbytes(MiB)) + compressor.flush()
    assert "memory" in refused(tmp_path, wide, ImageError).message
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 * MiB}]
    refused(tmp_path, lzma.compress(b"x" * MiB, filters=filters), ImageError)


def test_memory_is_bounded() -> None:
    """With the largest window that is taken, in a process of its own."""
    program = """
import os, sys, tempfile
from pathlib import Path
from volctl.images.gate import Unpacking
from volctl.images.packed import unpack
with tempfile.TemporaryDirectory() as folder, open(sys.argv[1], "rb") as file:
    os.close(unpack(file.fileno(), "x", "xz", Unpacking(Path(folder), 1 << 40)))
print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
    packed = lzma.compress(bytes(80 * MiB), preset=9)
    path = f"/proc/self/fd/{(fd := os.memfd_create('packed'))}"
    os.write(fd, packed)
    os.lseek(fd, 0, os.SEEK_SET)
    done = subprocess.run(
        [sys.executable, "-c", program, path], pass_fds=[fd], capture_output=True, text=True, check=True
    )
    os.close(fd)
    assert int(done.stdout) * 1024 < 110 * MiB


@kinds
def test_the_checksum_is_of_the_file_as_given(kind: str, tmp_path: Path, qcow2: bytes) -> None:
    packed = PACK[kind](qcow2)
    (tmp_path / "image").write_bytes(packed)
    digest, unpacking = hashlib.sha256(packed).hexdigest(), Unpacking(scratch(tmp_path))
    with open_image(str(tmp_path / "image"), checksum=f"sha256:{digest}", unpacking=unpacking) as checked:
        assert checked.sha256 == digest
    inner = hashlib.sha256(qcow2).hexdigest()
    with pytest.raises(ChecksumError):
        open_image(str(tmp_path / "image"), checksum=f"sha256:{inner}", unpacking=unpacking)


def test_no_room(tmp_path: Path) -> None:
    """The directory is on a file system of 1 MiB."""
    if os.geteuid():
        pytest.skip("needs root to mount")
    small = scratch(tmp_path) / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", small], check=True)
    try:
        (tmp_path / "image").write_bytes(gzip.compress(random.Random(4).randbytes(2 * MiB), 1))
        with pytest.raises(NoSpaceError):
            open_image(str(tmp_path / "image"), unpacking=Unpacking(small))
    finally:
        subprocess.run(["umount", small], check=True)
        small.rmdir()


def test_many_empty_members_are_passed_over_fast(tmp_path: Path, qcow2: bytes) -> None:
    """What is left of what was read is copied for each of them."""
    (tmp_path / "image").write_bytes(b"\x50\x2a\x4d\x18\0\0\0\0" * 125_000 + PACK["zstd"](qcow2))
    begun = time.process_time()
    with open_image(str(tmp_path / "image"), unpacking=Unpacking(scratch(tmp_path))) as checked:
        assert checked.format == "qcow2"
    assert time.process_time() - begun < 5
