"""The gate takes what is whole and safe, and refuses the rest with the right code."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import without_root
from tests.unit import attack_corpus as attacks
from tests.unit import image_corpus as corpus
from volctl.errors import (
    AccessError,
    ChecksumError,
    ImageCorruptError,
    ImageError,
    ImageTooBigError,
    ImageUnsafeError,
    InUseError,
    NotFoundError,
    UsageError,
)
from volctl.images.gate import check_fits, open_image
from volctl.model import MiB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.raw(tmp_path_factory.mktemp("disk") / "disk.raw")


@pytest.fixture
def folder(tmp_path: Path, disk: Path) -> Path:
    (tmp_path / "disk.raw").symlink_to(disk)
    return tmp_path


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("name", corpus.ACCEPTED)
def test_accepted(name: str, folder: Path, disk: Path) -> None:
    image = corpus.convert(disk, folder / "image", *corpus.ACCEPTED[name])
    with open_image(str(image)) as checked:
        assert checked.format == name.split("-")[0]
        assert checked.virtual_size == corpus.DISK
        assert checked.file_size == image.stat().st_size
        assert 560_000 <= checked.data_size <= corpus.DISK
        assert checked.sha256 is None
        checked.verify_unchanged()


@pytest.mark.parametrize("name", corpus.REFUSED)
def test_refused(name: str, folder: Path) -> None:
    make, code = corpus.REFUSED[name]
    image = make(folder)
    start = time.process_time()
    with pytest.raises(ImageError) as caught:
        open_image(str(image))
    assert caught.value.code == code, caught.value.message
    assert caught.value.exit == 7
    assert str(image) in caught.value.message
    assert "/dev/fd" not in caught.value.message
    assert time.process_time() - start < 2


LAST_EXTENT = ("qcow2-0.10", "qcow2-1.1", "qcow2-zlib", "qcow2-zstd", "qcow2-512", "vmdk-sparse", "vmdk-stream")
ALL_CUT = (*LAST_EXTENT, "vdi", "vdi-static", "vhd-dynamic", "vhd-fixed", "vhdx")


@pytest.mark.parametrize("name", ALL_CUT)
def test_truncated(name: str, folder: Path, disk: Path) -> None:
    """Cut at many points, down to a byte, a sector and less than a cluster before the end."""
    image = corpus.convert(disk, folder / "image", *corpus.ACCEPTED[name])
    length = image.stat().st_size
    if name == "vmdk-stream":
        length = len(image.read_bytes().rstrip(b"\0"))  # qemu-img fills up the last grain with zeros
    points = [length - 1, length - 512, length - 4096, length - 30_000, length // 2, length // 10, 70_000, 600]
    for point in sorted({point for point in points if 0 < point < length}, reverse=True):
        corpus.cut(image, point)
        with pytest.raises(ImageError) as caught:
            open_image(str(image), declared="vhd" if name == "vhd-fixed" else "auto")  # else it is raw
        wanted = ImageError if name == "vhd-fixed" else ImageCorruptError
        assert isinstance(caught.value, wanted), (point, caught.value)


def test_stream_with_footer(folder: Path, disk: Path) -> None:
    image = corpus.stream_with_footer(disk, folder / "image.vmdk")
    with open_image(str(image)) as checked:
        assert checked.virtual_size == corpus.DISK
    length = image.stat().st_size
    for point in (length - 1, length - 512, length - 1536, length // 2):
        with pytest.raises(ImageCorruptError):
            open_image(str(corpus.cut(image, point)))


def test_truncated_tells_both_lengths(folder: Path, disk: Path) -> None:
    image = corpus.convert(disk, folder / "image", "qcow2")
    length = image.stat().st_size
    with pytest.raises(ImageCorruptError) as caught:
        open_image(str(corpus.cut(image, length - 1)))
    assert caught.value.details == {"needed": length, "actual": length - 1}


def test_harmless_internal_snapshot(folder: Path, disk: Path) -> None:
    image = corpus.convert(disk, folder / "image", "qcow2")
    corpus.qemu_img("snapshot", "-c", "before", image)
    with open_image(str(image)) as checked:
        assert checked.virtual_size == corpus.DISK


def test_harmless_leak_and_dirty(folder: Path, disk: Path) -> None:
    """Lost clusters waste space; with the dirty bit the refcounts are old, the data is not."""
    image = corpus.convert(disk, folder / "image", "qcow2", "-o", "lazy_refcounts=on")
    corpus.patch(image, 72, (1).to_bytes(8, "big"))
    with open_image(str(image)) as checked:
        assert checked.format == "qcow2"


@pytest.mark.parametrize(
    "head",
    [b"\xfa\xeb\x5e".ljust(510, b"\0") + b"\x55\xaa", bytes(512) + b"EFI PART", bytes(32769) + b"CD001", b"plain"],
    ids=["mbr", "gpt", "iso", "text"],
)
def test_raw(head: bytes, folder: Path) -> None:
    image = corpus.text(folder / "x.qcow2", head + b"\1" * 5000)
    with open_image(str(image)) as checked:
        assert (checked.format, checked.virtual_size) == ("raw", len(head) + 5000)


@pytest.mark.parametrize("name", ["a:b", "json:{}", "--help", "-f", "nbd:x,y", "a b'\"", "ü", "line\nbreak"])
def test_names(name: str, folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.convert(disk, folder / "image", "qcow2").rename(folder / name)
    monkeypatch.chdir(folder)
    with open_image(name) as checked:
        assert checked.path == str(folder / name)


def test_symlink_and_unlinked(folder: Path, disk: Path) -> None:
    image = corpus.convert(disk, folder / "image", "qcow2")
    (folder / "link").symlink_to(image)
    with open_image(str(folder / "link")) as checked:
        assert checked.identity["inode"] == image.stat().st_ino


def test_sparse_raw_data(folder: Path, disk: Path) -> None:
    with open_image(str(disk)) as checked:
        assert checked.data_size < 1024**2
        assert checked.virtual_size == corpus.DISK


@pytest.mark.parametrize("dirty", [False, True])
def test_shared_clusters_are_a_bomb(dirty: bool, folder: Path) -> None:
    """One stored cluster could stand for any number of them, also where the dirty bit keeps refcounts from telling."""
    image = attacks.shared_clusters(folder)
    if dirty:
        corpus.patch(image, 72, (1).to_bytes(8, "big"))
    start = time.process_time()
    with pytest.raises(ImageCorruptError, match="refer to"):
        open_image(str(image))
    assert time.process_time() - start < 1


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "device", "missing", "under a file"])
def test_not_a_file(kind: str, folder: Path) -> None:
    path = folder / "it"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "under a file":
        path = corpus.text(path, "x") / "image"
    wanted = NotFoundError if kind in ("missing", "under a file") else ImageError
    with pytest.raises(wanted):
        open_image(str(path))


@pytest.mark.parametrize("path", ["a\0b", "x" * 300])
def test_impossible_names(path: str) -> None:
    with pytest.raises((UsageError, ImageError)):
        open_image(path)


def test_no_permission(folder: Path) -> None:
    corpus.text(folder / "i", "x").chmod(0)
    with without_root(), pytest.raises(AccessError):
        open_image(str(folder / "i"))


def test_declared(folder: Path, disk: Path) -> None:
    vhd = corpus.convert(disk, folder / "image", "vpc")
    for name in ("vhd", "vpc", "auto"):
        open_image(str(vhd), declared=name).__exit__(None, None, None)
    for path, name in ((vhd, "raw"), (vhd, "qcow2"), (disk, "qcow2")):
        with pytest.raises(ImageError) as caught:
            open_image(str(path), declared=name)
        assert caught.value.code == "image_format"
    with pytest.raises(UsageError) as usage:
        open_image(str(disk), declared="qed")
    assert "vhdx" in str(usage.value.hint)


def test_checksum(folder: Path, disk: Path) -> None:
    content = disk.read_bytes()
    good = hashlib.sha256(content).hexdigest()
    with open_image(str(disk), checksum=f"sha256:{good.upper()}") as checked:
        assert checked.sha256 == good
    with open_image(str(disk), checksum=f"sha512:{hashlib.sha512(content).hexdigest()}") as checked:
        assert checked.sha256 is None
    with pytest.raises(ChecksumError) as caught:
        open_image(str(disk), checksum="sha256:" + "0" * 64)
    assert good in caught.value.message and "0" * 64 in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "sha256:", "md5:" + "0" * 32, "sha256:" + "g" * 64, "sha512:" + "0" * 64, "0" * 64]
)
def test_malformed_checksum(text: str, disk: Path) -> None:
    with pytest.raises(UsageError):
        open_image(str(disk), checksum=text)


def test_changed_after_the_check(folder: Path, disk: Path) -> None:
    image = corpus.convert(disk, folder / "image", "qcow2")
    with open_image(str(image)) as checked:
        corpus.patch(image, -1, b"x")
        with pytest.raises(ImageUnsafeError):
            checked.verify_unchanged()


def test_written_by_another_program(folder: Path, disk: Path) -> None:
    image = corpus.convert(disk, folder / "image", "qcow2")
    holder = subprocess.Popen(["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin and holder.stdout
    try:
        holder.stdout.read(1)  # its prompt: the image is open
        with pytest.raises(InUseError):
            open_image(str(image))
    finally:
        holder.communicate(b"quit\n")


def test_check_fits(disk: Path) -> None:
    with open_image(str(disk)) as checked:
        check_fits(checked, corpus.DISK)
        with pytest.raises(ImageTooBigError) as caught:
            check_fits(checked, corpus.DISK - 1)
    assert str(corpus.DISK) in caught.value.message and str(corpus.DISK - 1) in caught.value.message
    assert "24 MiB" in caught.value.message


@pytest.mark.parametrize("name", ["qcow2-1.1", "qcow2-extended-l2", "vmdk-sparse", "vdi", "vhd-dynamic", "vhdx"])
def test_bent_metadata_is_taken_or_refused_but_never_a_crash(name: str, folder: Path, disk: Path) -> None:
    image = corpus.convert(disk, folder / "image", *corpus.ACCEPTED[name])
    good = image.read_bytes()
    numbers = random.Random(name)
    for _ in range(25):
        bent = bytearray(good)
        for _ in range(numbers.choice((1, 3, 20))):
            start = numbers.choice([at for at in (0, 512, 65536, 196608, 262144, 2 * corpus.MiB) if at < len(good)])
            at = numbers.randrange(start, min(start + 1024, len(bent)))
            bent[at] = numbers.choice((0, 1, 0x7F, 0xFF, numbers.randrange(256)))
        corpus.text(image, bytes(bent))
        with contextlib.suppress(ImageError), open_image(str(image)) as checked:
            assert checked.virtual_size > 0


def test_a_fixed_vhd_is_as_long_as_qemu_reads_it(folder: Path, disk: Path) -> None:
    """By the geometry in its footer, whatever that says of the present size."""
    image = corpus.convert(disk, folder / "image", "vpc", "-o", "subformat=fixed")
    footer = bytearray(image.read_bytes()[-512:])
    footer[48:56] = MiB.to_bytes(8, "big")
    footer[64:68] = bytes(4)
    footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
    image.write_bytes(bytes(MiB) + footer)
    with pytest.raises(ImageCorruptError):
        open_image(str(image), declared="vhd")
