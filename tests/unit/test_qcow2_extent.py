"""A qcow2 file that was cut is told from a whole one, however QEMU wrote it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests import qcow2_files
from volctl.errors import BackendError
from volctl.files import os_open
from volctl.model import KiB, MiB
from volctl.qcow2.header import read

LAYOUTS = [
    "cluster_size=64K,extended_l2=on",
    "cluster_size=64K,extended_l2=on,lazy_refcounts=on,preallocation=metadata",
    "cluster_size=4K",
    "cluster_size=4K,preallocation=metadata",
    "cluster_size=2M,extended_l2=on",
    "cluster_size=64K,refcount_bits=1",
    "cluster_size=64K,refcount_bits=64",
]
DATA = b"data" * 5000


def is_whole(file: Path) -> bool:
    with os_open(file, os.O_RDONLY) as fd:
        try:
            read(fd, file.name).check_whole(file.name)
        except BackendError as error:
            assert "cut off" in error.message
            return False
    return True


def img(*words: str | Path | int) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_and_cut(layout: str, tmp_path: Path) -> None:
    below, file = tmp_path / "below", tmp_path / "file"
    plain = layout.replace(",preallocation=metadata", "")
    img("create", "-f", "qcow2", "-o", layout, below, "32M")
    img("create", "-f", "qcow2", "-o", plain, "-F", "qcow2", "-b", below, file, "40M")
    assert is_whole(below) and is_whole(file)
    for at in (31 * MiB + 512, 5 * MiB, 17 * MiB):
        qcow2_files.write(file, at, DATA)
        assert is_whole(file)
    img("commit", "-f", "qcow2", "-d", file)
    img("resize", "-f", "qcow2", below, "9G")
    img("rebase", "-f", "qcow2", "-b", "", file)
    assert is_whole(below) and is_whole(file)
    check_cuts(file)
    check_cuts(below)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_compressed(kind: str, tmp_path: Path) -> None:
    raw, file = tmp_path / "raw", tmp_path / "file"
    raw.write_bytes(os.urandom(MiB) + DATA * 100)
    img("convert", "-c", "-W", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}", raw, file)
    assert is_whole(file)
    check_cuts(file)


def check_cuts(file: Path) -> None:
    """Wherever it was: all that is missing is more than the end of one cluster of data."""
    size, cluster = file.stat().st_size, 1 << int.from_bytes(file.read_bytes()[20:24])
    for least in range(0, size - 2 * cluster - KiB, max(cluster, size // 30)):
        os.truncate(file, size - 2 * cluster - least)
        assert not is_whole(file)


def test_counts_of_what_a_killed_program_had_not_written(tmp_path: Path) -> None:
    """They tell of clusters behind the end that nothing refers to."""
    file = tmp_path / "file"
    img("create", "-f", "qcow2", file, "32M")
    qcow2_files.write(file, 0, DATA)
    with file.open("r+b") as disk:
        disk.seek(2 * 64 * KiB + 2 * 20)  # of cluster 20, in the first block of counts
        disk.write(b"\0\1")
    assert is_whole(file)


def test_a_file_that_was_not_closed(tmp_path: Path) -> None:
    """Its counts lag behind."""
    file = tmp_path / "file"
    img("create", "-f", "qcow2", "-o", "lazy_refcounts=on", file, "32M")
    order = ("-c", "write 0 4M", "-c", "flush", "-c", "abort")
    done = subprocess.run(["qemu-io", "-f", "qcow2", *order, str(file)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGABRT and is_whole(file)
    os.truncate(file, 2 * MiB)
    assert not is_whole(file)
