"""The main job on a real image: a volume that has the guest's disk, byte for byte, and boots."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO, Volctl

GiB = 1024**3
PIECE = 4 * 1024**2


def run(*argv: str | Path) -> str:
    return subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=True).stdout


def data_extents(path: Path, start: int = 0) -> Iterator[tuple[int, int]]:
    """(first byte, first byte after) of each stretch of a file that is not a hole, from `start` on."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        while start < end:
            try:
                first = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                return
            start = os.lseek(file.fileno(), first, os.SEEK_HOLE)
            yield first, start


def is_zero(path: Path, start: int) -> bool:
    with path.open("rb") as file:
        for first, after in data_extents(path, start):
            file.seek(first)
            while first < after:
                piece = file.read(min(PIECE, after - first))
                if piece.count(0) != len(piece):
                    return False
                first += len(piece)
    return True


def same_start(volume: Path, disk: Path) -> bool:
    """Do both hold the same bytes, as far as `disk` goes? Holes are skipped where both have one."""
    size = disk.stat().st_size
    pieces = {at // PIECE for path in (volume, disk) for extent in data_extents(path) for at in steps(*extent, size)}
    with volume.open("rb") as ours, disk.open("rb") as theirs:
        return all(piece_of(ours.fileno(), piece, size) == piece_of(theirs.fileno(), piece, size) for piece in pieces)


def steps(first: int, after: int, size: int) -> range:
    return range(first - first % PIECE, min(after, size), PIECE)


def piece_of(fd: int, piece: int, size: int) -> bytes:
    at = piece * PIECE
    return os.pread(fd, min(PIECE, size - at), at)


@pytest.fixture
def volume(volctl: Volctl, debian_image: Path) -> Path:
    made = volctl("create", "debian", "--size", "10", "--from-image", debian_image, "--json").json()
    assert made["status"] == "available"
    assert made["bootable"] is True
    return Path(volctl("path", "debian").out.strip())


@pytest.fixture
def disk(debian_image: Path, tmp_path: Path) -> Path:
    """The guest's disk as qemu-img reads it, sparse."""
    target = tmp_path / "disk.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", debian_image, target)
    return target


def test_volume_is_the_image_then_zeros_and_boots(volume: Path, disk: Path, debian_image: Path) -> None:
    assert volume.stat().st_size == 10 * GiB
    assert same_start(volume, disk)
    assert is_zero(volume, disk.stat().st_size)
    assert volume.stat().st_blocks * 512 <= image_data(debian_image) * 1.01

    before = volume.stat().st_mtime_ns
    console = run(REPO / "scripts" / "boot", volume, "raw")
    assert "volctl-guest: ready" in console
    assert volume.stat().st_mtime_ns == before


def image_data(image: Path) -> int:
    """Bytes that the image itself stores, from its own map (not from the file system's figures)."""
    stretches = json.loads(run("qemu-img", "map", "--output=json", "-f", "qcow2", image))
    return sum(stretch["length"] for stretch in stretches if stretch["data"])


def test_a_wrong_byte_would_be_seen(disk: Path, tmp_path: Path) -> None:
    """The comparisons above can fail: one byte in data, one in a hole, one behind the end."""
    other = tmp_path / "other.raw"
    run("cp", "--sparse=always", disk, other)
    assert same_start(other, disk)
    with other.open("r+b") as file:
        hole = next(data_extents(other))[1]
        file.seek(hole)
        file.write(b"\1")
    assert not same_start(other, disk)
    size = disk.stat().st_size
    os.truncate(other, size + PIECE)
    assert is_zero(other, size)
    with other.open("r+b") as file:
        file.seek(size + 4097)
        file.write(b"\1")
    assert not is_zero(other, size)
