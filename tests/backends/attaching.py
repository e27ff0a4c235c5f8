"""The contract of `attach`, `detach` and `attached`, a test for each sentence; for backends that have devices.

class TestTape(Attaching):
    def backend(self, directory: Path, database: str) -> Backend:
        return Tape(Setup("tapes", {"directory": str(directory)}, database))

    def reboot(self, device: str) -> None:
        ...  # take the device away, as no backend did it
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.conformance import SIZE, Act, content_of, killed_at, new, stranger
from tests.sampling import numbers
from volctl.backend import Attached, Backend
from volctl.errors import BackendError, InUseError
from volctl.files import device as devices
from volctl.model import MiB, Object

HOLD = "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY)"


class Attaching:
    least_steps = 6  # at which an operation can be killed
    stride = 2  # of so many steps one is taken

    def backend(self, directory: Path, database: str) -> Backend:
        raise NotImplementedError

    def reboot(self, device: str) -> None:
        raise NotImplementedError

    def write(self, backend: Backend, volume: Object, data: bytes) -> None:
        """At the volume's beginning, without a device."""
        with backend.path(volume).open("r+b") as file:
            file.write(data)

    def devices(self, backend: Backend, volume: Object) -> int:
        """How many devices the system has of a volume, whoever made them."""
        raise NotImplementedError

    def killed_at(self, step: int, pool: Backend, act: Act) -> bool:
        return killed_at(step, pool, act)

    def steps(self, what: str) -> Iterator[int]:
        """At which to be killed: a sample without an end."""
        return (number - 1 for number in numbers(f"{type(self).__name__} {what}", self.stride, self.least_steps))

    @pytest.fixture
    def pool(self, tmp_path: Path) -> Backend:
        pool = self.backend(tmp_path / "pool", str(uuid.uuid4()))
        pool.init()
        return pool

    @pytest.fixture
    def volume(self, pool: Backend) -> Iterator[Object]:
        volume = new()
        pool.create(volume, SIZE)
        self.write(pool, volume, b"head")
        yield volume
        pool.detach(volume)
        pool.delete(volume)

    def test_a_device_has_the_volumes_size_and_bytes(self, pool: Backend, volume: Object) -> None:
        assert pool.attached(volume) is None
        device = pool.attach(volume, read_only=False)
        fd = os.open(device, os.O_RDWR)
        assert os.lseek(fd, 0, os.SEEK_END) == SIZE and os.pread(fd, 5, 0) == b"head\0"
        os.pwrite(fd, b"tail", SIZE - 4)
        os.fsync(fd)
        os.close(fd)
        found = pool.attached(volume)
        assert found and (found.device, found.read_only) == (device, False)
        assert pool.attached(volume, device) == pool.attached(volume, "/dev/null") == found
        pool.detach(volume)
        with pool.reading(volume) as where:
            assert content_of(where)[-4:] == b"tail"

    def test_attach_twice_is_one_device(self, pool: Backend, volume: Object) -> None:
        assert pool.attach(volume, read_only=False) == pool.attach(volume, read_only=False)
        assert self.devices(pool, volume) == 1

    def test_a_device_left_in_another_mode_is_replaced(self, pool: Backend, volume: Object) -> None:
        for read_only in (False, True, False):
            device = pool.attach(volume, read_only=read_only)
            found = pool.attached(volume)
            assert found and (found.device, found.read_only) == (device, read_only)
            assert self.devices(pool, volume) == 1

    def test_detach_again_and_of_what_is_not_there(self, pool: Backend, volume: Object) -> None:
        pool.detach(volume)
        pool.attach(volume, read_only=False)
        for _again in range(2):
            pool.detach(volume)
            assert pool.attached(volume) is None and self.devices(pool, volume) == 0
        pool.detach(new())
        assert pool.attached(new()) is None
        with pytest.raises(BackendError):
            pool.attach(new(), read_only=False)

    def test_detach_is_refused_while_the_device_is_open(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=False)
        with stranger(HOLD, device) as pid, pytest.raises(InUseError, match=rf"\(pid {pid}\)"):
            pool.detach(volume)
        found = pool.attached(volume)
        assert found and found.device == device, "it left with its holder"
        pool.detach(volume)
        assert pool.attached(volume) is None

    @pytest.mark.parametrize("who", ["losetup", "python"])
    def test_a_passing_look_is_waited_for(
        self, who: str, pool: Backend, volume: Object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The former opens every device to list them, and another command of ours may."""
        monkeypatch.setattr(devices, "GLANCE", 10.0)  # seconds; the machine may be busy
        shutil.copy(str(shutil.which("sleep")), tmp_path / who)
        with open(pool.attach(volume, read_only=False), "rb") as device:
            looks = subprocess.Popen([tmp_path / who, "0.5"], stdin=device)
        pool.detach(volume)
        assert pool.attached(volume) is None
        looks.wait()

    def test_after_a_reboot_it_is_not_attached_and_can_be_again(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=True)
        self.reboot(device)
        assert pool.attached(volume) is None and pool.attached(volume, device) is None
        pool.detach(volume)
        assert pool.attached(volume, pool.attach(volume, read_only=True)) is not None

    def test_a_device_grows_with_its_volume(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=False)
        pool.extend(volume, SIZE + MiB)
        pool.resize_device(volume)
        with open(device, "rb") as file:
            assert file.seek(0, os.SEEK_END) == SIZE + MiB
        pool.detach(volume)
        pool.resize_device(volume)

    def test_volumes_have_devices_of_their_own(self, pool: Backend, volume: Object) -> None:
        other = new()
        pool.create(other, SIZE)
        devices = {pool.attach(each, read_only=False) for each in (volume, other)}
        assert len(devices) == 2
        pool.detach(other)
        assert pool.attached(volume) is not None
        pool.delete(other)

    def test_both_can_be_killed_at_any_step_and_called_again(self, pool: Backend, volume: Object) -> None:
        for turn, step in enumerate(self.steps("attach")):
            if not self.killed_at(step, pool, lambda pool: pool.attach(volume, read_only=True)):
                break
            if turn % 2:  # completed
                found = pool.attached(volume, pool.attach(volume, read_only=True))
                assert found and found.read_only
            pool.detach(volume)  # or undone
            assert self.devices(pool, volume) == 0
        assert step >= self.least_steps
        for step in self.steps("detach"):
            if not self.killed_at(step, pool, lambda pool: pool.detach(volume)):
                break
            assert isinstance(pool.attached(volume), Attached | None)
            pool.detach(volume)
            assert self.devices(pool, volume) == 0
            pool.attach(volume, read_only=False)
        assert step >= self.least_steps
