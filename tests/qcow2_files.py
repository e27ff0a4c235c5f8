"""What is in qcow2 files, read and written by QEMU's own programs; shares no code with volctl."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tempfile
from array import array
from pathlib import Path
from typing import Any


def write(path: Path, offset: int, data: bytes) -> None:
    """As a guest would, into the disk."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        order = f"write -s {file.name} {offset} {len(data)}"
        _run("qemu-io", "-f", "qcow2", "-c", order, str(path))


def resize(path: Path, size: int) -> None:
    """To so many bytes."""
    _run("qemu-img", "resize", "-f", "qcow2", str(path), str(size))


def read(path: Path) -> bytes:
    """The whole disk, small ones only. Walks the tables itself: a program for each look would take too long."""
    with open(path, "rb") as file:
        header = file.read(112)
        version, at, length, bits, size, _, l1_size, l1_at = struct.unpack_from(">IQIIQIIQ", header, 4)
        (features,) = struct.unpack_from(">Q", header, 72)
        assert header[:4] == b"QFI\xfb" and version == 3, f"{path} is no qcow2 file"
        extended = bool(features & 16)
        if features & ~17:
            return _read_by_qemu(path)
        below = bytearray(read(path.parent / os.pread(file.fileno(), length, at).decode())) if at else bytearray()
        disk = below[:size].ljust(size, b"\0")
        for number, table in enumerate(_entries(file.fileno(), l1_at, l1_size)):
            if table & _OFFSET:
                start = number << (2 * bits - (4 if extended else 3))
                read_table = _read_extended if extended else _read_table
                read_table(file.fileno(), table & _OFFSET, start, 1 << bits, disk)
    return bytes(disk)


def virtual_size(path: Path) -> int:
    with open(path, "rb") as file:
        header = file.read(32)
    assert header[:4] == b"QFI\xfb", f"{path} is no qcow2 file"
    return int.from_bytes(header[24:32], "big")


def backing(path: Path) -> str | None:
    """The name of the file below."""
    with open(path, "rb") as file:
        at, length = struct.unpack_from(">QI", file.read(72), 8)
        return os.pread(file.fileno(), length, at).decode() if at else None


_OFFSET = 0x00FFFFFFFFFFFE00


def _entries(fd: int, at: int, count: int) -> array[int]:
    words = array("Q", os.pread(fd, count * 8, at))
    words.byteswap()
    return words


def _read_table(fd: int, table: int, start: int, cluster: int, disk: bytearray) -> None:
    for number, entry in enumerate(_entries(fd, table, cluster // 8)):
        at = start + number * cluster
        assert not entry & 1 << 62, "compressed"
        if entry and at < len(disk):
            data = bytes(cluster) if entry & 1 else os.pread(fd, cluster, entry & _OFFSET).ljust(cluster, b"\0")
            disk[at : at + cluster] = data[: len(disk) - at]


def _read_extended(fd: int, table: int, start: int, cluster: int, disk: bytearray) -> None:
    """Of 32 subclusters in each cluster: the low half of a bitmap says which are there, the high one which are zero."""
    words, part = _entries(fd, table, cluster // 8), cluster // 32
    for number, (entry, bitmap) in enumerate(zip(words[::2], words[1::2], strict=True)):
        assert not entry & 1 << 62, "compressed"
        for bit in range(32) if bitmap else ():
            at = start + number * cluster + bit * part
            if at < len(disk) and bitmap >> bit & (1 | 1 << 32):
                data = os.pread(fd, part, (entry & _OFFSET) + bit * part) if bitmap >> bit & 1 else b""
                disk[at : at + part] = data.ljust(part, b"\0")[: len(disk) - at]


def _read_by_qemu(path: Path) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        to_raw(path, Path(file.name))
        return Path(file.name).read_bytes()


def to_raw(path: Path, target: Path) -> None:
    _run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(target))


def info(path: Path) -> dict[str, Any]:
    """What `qemu-img info` says of the one file: `virtual-size`, `backing-filename` …"""
    said: dict[str, Any] = json.loads(_run("qemu-img", "info", "-U", "-f", "qcow2", "--output", "json", str(path)))
    return said


def check(path: Path) -> None:
    """AssertionError if its tables are not in order."""
    _run("qemu-img", "check", "-q", "-f", "qcow2", str(path))


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "failed" not in done.stdout, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout
