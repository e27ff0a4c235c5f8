"""Loop devices as root: the contract, and what only the kernel can say."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.loop import Loop
from tests.backends.attaching import Attaching
from tests.backends.conformance import SIZE, new
from tests.conftest import without_root
from volctl.backend import Backend, Setup
from volctl.errors import AccessError, InUseError
from volctl.files import holders, os_open
from volctl.model import MiB, Object

pytestmark = pytest.mark.root


def losetup(*args: str | Path) -> str:
    return subprocess.run(["losetup", *args], check=True, capture_output=True, text=True).stdout.strip()


def over(path: Path) -> list[dict[str, object]]:
    """The loop devices over a file, as losetup tells them."""
    text = losetup("--json", "-O", "NAME,BACK-FILE,RO,DIO,LOG-SEC,AUTOCLEAR", "-j", path)
    found: list[dict[str, object]] = json.loads(text)["loopdevices"] if text else []
    return found


class TestLoop(Attaching):
    def backend(self, directory: Path, database: str) -> Backend:
        directory.mkdir()
        return Loop(Setup("files", {"directory": str(directory)}, database))

    def reboot(self, device: str) -> None:
        losetup("-d", device)

    def devices(self, backend: Backend, volume: Object) -> int:
        return len(over(backend.path(volume)))

    def test_it_is_direct_and_stays(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=False)
        (found,) = over(pool.path(volume))
        assert found == {
            "name": device,
            "back-file": str(pool.path(volume)),
            "ro": False,
            "dio": True,
            "log-sec": 512,
            "autoclear": False,
        }

    @pytest.mark.parametrize("size", [512, 4096])
    def test_sectors(self, pool: Backend, volume: Object, size: int) -> None:
        device = pool.attach(volume, read_only=False, sector_size=size)
        told = subprocess.run(["blockdev", "--getss", device], check=True, capture_output=True, text=True)
        found = pool.attached(volume)
        assert int(told.stdout) == size and found and found.sector_size == size
        assert pool.attach(volume, read_only=False) == device
        pool.attach(volume, read_only=False, sector_size=4608 - size)
        assert [device["log-sec"] for device in over(pool.path(volume))] == [4608 - size]

    def test_nobody_writes_to_what_is_read_only(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=True)
        with pytest.raises(PermissionError), open(device, "r+b", buffering=0) as file:
            file.write(bytes(512))

    def test_a_file_system_that_cannot_be_direct(self, tmp_path: Path) -> None:
        """A mount point of its own kind; overlays and FUSE fall back, tmpfs can since Linux 6.6."""
        subprocess.run(["mount", "-t", "tmpfs", "volctl-test", str(tmp_path)], check=True)
        try:
            pool = self.backend(tmp_path / "pool", "db")
            pool.init()
            volume = new()
            pool.create(volume, SIZE)
            with open(pool.attach(volume, read_only=False), "rb") as file:
                assert file.seek(0, os.SEEK_END) == SIZE
            pool.detach(volume)
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)

    def test_strangers_devices_are_neither_taken_nor_detached(self, pool: Backend, volume: Object) -> None:
        strange = losetup("-f", "--show", pool.path(volume))
        try:
            assert pool.attached(volume) is None
            assert pool.holders(volume) == [strange]
            device = pool.attach(volume, read_only=False)
            assert device != strange
            found = pool.attached(volume, strange)
            assert found and found.device == device
            pool.detach(volume)
            assert [found["name"] for found in over(pool.path(volume))] == [strange]
        finally:
            losetup("-d", strange)

    @pytest.mark.parametrize("whole", [True, False])
    def test_a_device_made_in_a_container_holds_its_file(
        self, pool: Backend, volume: Object, whole: bool, tmp_path: Path
    ) -> None:
        """Its path leads to nothing here. Without the right to ask for the inode, the name tells, if it is the same."""
        path, jail = pool.path(volume), tmp_path / "jail"
        jail.mkdir()
        inside = jail / path.name if whole else jail / "disk"
        bind = f"mount --bind {path.parent} {jail}" if whole else f"touch {inside} && mount --bind {path} {inside}"
        script = f"mount -t tmpfs t {jail} && {bind} && losetup -f --show {inside}"
        made = subprocess.run(["unshare", "-m", "sh", "-c", script], check=True, capture_output=True, text=True)
        device = made.stdout.strip()
        try:
            assert not inside.exists() and pool.holders(volume) == [device]
            with os_open(path, os.O_RDONLY) as fd, without_root():
                assert holders(path, fd) == ([device] if whole else [])
            assert pool.attached(volume) is None
        finally:
            losetup("-d", device)

    def test_a_mounted_device_is_kept_also_when_unmounted_later(
        self, pool: Backend, volume: Object, tmp_path: Path
    ) -> None:
        pool.extend(volume, 16 * MiB)
        device = pool.attach(volume, read_only=False)
        with mounted(device, tmp_path / "a mount"), pytest.raises(InUseError, match=r"mounted on .*/a mount"):
            pool.detach(volume)
        assert [found["autoclear"] for found in over(pool.path(volume))] == [False]

    def test_one_that_is_open_where_nobody_can_see_is_kept_when_that_closes(
        self, pool: Backend, volume: Object
    ) -> None:
        """This process stands for it: its own descriptors are no holders."""
        with open(pool.attach(volume, read_only=False), "rb"), pytest.raises(InUseError, match="cannot be seen"):
            pool.detach(volume)
        assert [found["autoclear"] for found in over(pool.path(volume))] == [False]

    def test_a_mount_of_another_namespace_is_named(self, pool: Backend, volume: Object, tmp_path: Path) -> None:
        pool.extend(volume, 16 * MiB)
        device = pool.attach(volume, read_only=False)
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        script = f"mount {device} {tmp_path} && echo ready && exec cat"
        inside = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert inside.stdout and inside.stdout.readline() == "ready\n"
        with pytest.raises(InUseError, match=f"mounted on {tmp_path}"):
            pool.detach(volume)
        inside.communicate()

    def test_a_device_that_another_device_uses_is_kept(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=False)
        above = losetup("-f", "--show", device)
        try:
            with pytest.raises(InUseError, match=f"held by {above}"):
                pool.detach(volume)
        finally:
            losetup("-d", above)
        assert pool.attached(volume) is not None

    def test_an_ordinary_user_sees_but_may_not(self, pool: Backend, volume: Object, tmp_path: Path) -> None:
        device = pool.attach(volume, read_only=True, sector_size=4096)
        for directory in (*reversed(tmp_path.parents), tmp_path, tmp_path / "pool"):
            if directory.stat().st_uid == 0 and directory.is_relative_to(tmp_path.parents[2]):
                directory.chmod(0o755)
        os.chown(pool.path(volume), 65534, 65534)
        with without_root():
            found = pool.attached(volume)
            assert found and (found.device, found.read_only, found.sector_size) == (device, True, 4096)
            with pytest.raises(AccessError):
                pool.detach(volume)
        pool.detach(volume)
        with without_root(), pytest.raises(AccessError):
            pool.attach(volume, read_only=False)


@contextmanager
def mounted(device: str, where: Path) -> Iterator[None]:
    where.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    subprocess.run(["mount", device, str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)
