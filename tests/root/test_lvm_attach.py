"""Attach and detach on real LVM, thin and thick: the contract, and what only the kernel can say."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.backends.attaching import HOLD, Attaching
from tests.backends.conformance import SIZE, new, stranger
from tests.engine.zygote import Points, listen_to_programs
from tests.forked import forked, was_killed
from tests.root.lvm_rig import active, lvs, make, run, volume_group, words
from tests.sampling import numbers
from volctl.backend import Attached, Backend
from volctl.errors import InUseError
from volctl.model import MiB, Object

GROUP = "attach-group"
STRIDE = 4


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Killed before a program or while it runs, in a child; the program goes on. False if it came to its end."""

    def counted() -> None:
        listen_to_programs(Points(os.open(os.devnull, os.O_WRONLY), number, {}))
        act()

    return was_killed(forked(counted))


class Suite(Attaching):
    options: ClassVar[dict[str, object]]

    @pytest.fixture(scope="class")
    @classmethod
    def group(cls, disks: list[Path]) -> Iterator[str]:
        with volume_group(disks[:1], GROUP):
            yield GROUP

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls, group: str) -> Backend:
        """One for all tests: to make it takes seconds."""
        pool = make(group, str(uuid.uuid4()), **cls.options)
        pool.init()
        return pool

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, pool: Backend) -> Iterator[None]:
        yield
        run("udevadm", "settle")
        assert pool.objects() == []

    def write(self, backend: Backend, volume: Object, data: bytes) -> None:
        with active(backend, volume) as path, path.open("r+b") as file:
            file.write(data)

    def reboot(self, device: str) -> None:
        run("lvchange", "-an", Path(device).relative_to("/dev"))

    def devices(self, backend: Backend, volume: Object) -> int:
        mapped = [name.replace("--", "-") for name in words("dmsetup", "ls")]
        return mapped.count(f"{GROUP}-{volume.name}")

    def test_both_can_be_killed_at_any_step_and_called_again(self, pool: Backend, volume: Object) -> None:
        for turn, number in enumerate(numbers("attach", STRIDE, 5)):
            if not killed_at(number, lambda: pool.attach(volume, read_only=True)):
                break
            if turn % 2:  # completed
                found = pool.attached(volume, pool.attach(volume, read_only=True))
                assert found and found.read_only
            pool.detach(volume)  # or undone
            assert self.devices(pool, volume) == 0
        assert number > 5
        pool.attach(volume, read_only=True)
        for number in numbers("detach", STRIDE, 2):
            if not killed_at(number, lambda: pool.detach(volume)):
                break
            assert isinstance(pool.attached(volume), Attached | None)
            pool.detach(volume)
            assert self.devices(pool, volume) == 0
            pool.attach(volume, read_only=True)
        assert number > 2

    def test_an_attached_volume_is_worked_on_and_stays_attached(self, pool: Backend, volume: Object) -> None:
        device, snapshot, copy = pool.attach(volume, read_only=False), new("snap"), new()
        pool.snapshot(volume, snapshot)
        pool.clone(snapshot, copy, SIZE, lambda done, total: None)
        for target in (volume, snapshot, copy):
            with pool.reading(target) as where:
                assert where.path.read_bytes()[:4] == b"head"
        found = pool.attached(volume)
        assert found and found.device == device and pool.attached(copy) is None
        pool.delete_snapshot(volume, snapshot)
        pool.delete(copy)
        assert pool.attached(volume) == found

    def test_read_only_is_what_the_kernel_enforces(self, pool: Backend, volume: Object) -> None:
        with open(pool.attach(volume, read_only=True), "r+b", buffering=0) as file, pytest.raises(PermissionError):
            file.write(b"tail")
        with open(pool.attach(volume, read_only=False), "r+b", buffering=0) as file:
            file.write(b"tail")


class TestThin(Suite):
    options: ClassVar[dict[str, object]] = {"provisioning": "thin", "pool_size": "256M"}

    def test_who_holds_it_without_attach_is_named(self, pool: Backend, volume: Object, tmp_path: Path) -> None:
        with active(pool, volume) as path:
            with stranger(HOLD, str(path)) as pid, pytest.raises(InUseError, match=rf"\(pid {pid}\)"):
                pool.detach(volume)
            run("mkfs.ext4", "-q", path)
            run("mount", path, tmp_path)
            try:
                assert any(str(tmp_path) in holder for holder in pool.holders(volume))
                with pytest.raises(InUseError, match=str(tmp_path)):
                    pool.detach(volume)
            finally:
                run("umount", tmp_path)


class TestThick(Suite):
    options: ClassVar[dict[str, object]] = {"provisioning": "thick"}

    def test_the_origin_of_a_snapshot_grows_only_while_nobody_has_it_open(self, pool: Backend, volume: Object) -> None:
        device, snapshot = pool.attach(volume, read_only=False), new("snap")
        pool.snapshot(volume, snapshot)
        with stranger(HOLD, device) as pid, pytest.raises(InUseError, match=rf"\(pid {pid}\)"):
            pool.extend(volume, SIZE + MiB)
        pool.extend(volume, SIZE + MiB)
        with open(device, "rb") as file:
            assert file.seek(0, os.SEEK_END) == SIZE + MiB
        pool.delete_snapshot(volume, snapshot)
        assert lvs(GROUP) == [volume.name]
