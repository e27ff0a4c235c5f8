"""Copies between block devices, on real loop devices: what differs, what is zero, what fails."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from volctl import interrupt
from volctl.errors import BackendError, InUseError, TimedOut
from volctl.lvm import blocks
from volctl.model import MiB

SIZE = 9 * MiB
DIRECT = os.O_RDWR | os.O_DIRECT

pytestmark = pytest.mark.root


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    made = []
    for name in ("source", "target"):
        (tmp_path / name).write_bytes(os.urandom(SIZE))
        attach = ["losetup", "-f", "--show", str(tmp_path / name)]
        made.append(Path(subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()))
    yield made[0], made[1]
    for device in made:
        subprocess.run(["losetup", "-d", str(device)], check=True)


def test_a_copy_is_whole_and_tells_how_far_it_is(devices: tuple[Path, Path]) -> None:
    told: list[tuple[int, int]] = []
    with blocks.device(devices[0]) as size, blocks.device(devices[1], DIRECT) as target:
        assert blocks.size(size) == SIZE
        with blocks.device(devices[0], os.O_RDONLY | os.O_DIRECT) as source:
            blocks.copy(source, target, SIZE - MiB, lambda *now: told.append(now))
        blocks.zero(target, SIZE - MiB, SIZE)
    assert devices[1].read_bytes() == devices[0].read_bytes()[: SIZE - MiB] + bytes(MiB)
    assert told == [(4 * MiB, 8 * MiB), (8 * MiB, 8 * MiB)]


def test_only_what_differs_is_written(devices: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes((tmp_path / "source").read_bytes())
    with devices[1].open("r+b") as file:
        file.seek(5 * MiB + 100)
        file.write(b"changed")
    reader = os.open(devices[1], os.O_RDONLY | os.O_DIRECT)
    try:
        with blocks.device(devices[0], os.O_RDONLY | os.O_DIRECT) as source, pytest.raises(BackendError):
            blocks.make_equal(source, reader, SIZE)  # it would have to write
    finally:
        os.close(reader)
    with blocks.device(devices[0], os.O_RDONLY | os.O_DIRECT) as source, blocks.device(devices[1], DIRECT) as target:
        blocks.make_equal(source, target, SIZE)
    assert devices[1].read_bytes() == devices[0].read_bytes()
    reader = os.open(devices[1], os.O_RDONLY | os.O_DIRECT)
    try:
        with blocks.device(devices[0], os.O_RDONLY | os.O_DIRECT) as source:
            blocks.make_equal(source, reader, SIZE)  # nothing is written
    finally:
        os.close(reader)


def test_errors_have_a_kind_and_the_callers_own_pass(devices: tuple[Path, Path]) -> None:
    with blocks.device(devices[0], os.O_RDWR | os.O_EXCL), pytest.raises(InUseError, match=devices[0].name):
        blocks.device(devices[0], os.O_RDWR | os.O_EXCL).__enter__()
    with pytest.raises(BackendError, match="No such file"):
        blocks.device(Path("/dev/no-such-device")).__enter__()
    device = blocks.device
    with device(devices[0], DIRECT) as source, device(devices[1], DIRECT) as target, pytest.raises(BackendError):
        blocks.copy(source, target, SIZE + MiB, lambda done, total: None)
    with pytest.raises(OSError, match="the caller's") as error, blocks.device(devices[0], os.O_RDWR):
        raise OSError(errno.ENOSPC, "the caller's")
    assert error.type is OSError


def test_the_deadline_is_heard(devices: tuple[Path, Path]) -> None:
    with blocks.device(devices[1], os.O_RDWR) as target, pytest.raises(TimedOut), interrupt.budget(-1):
        blocks.zero(target, 0, SIZE)


def test_a_discard_is_never_an_error(devices: tuple[Path, Path]) -> None:
    with blocks.device(devices[1], os.O_RDWR) as target:
        blocks.discard(target, 0, SIZE)
