"""The devices of qcow2 volumes: the contract, and what becomes of bytes while they are attached."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from backends.qcow2 import Qcow2
from tests import qcow2_files
from tests.backends.attaching import HOLD, Attaching
from tests.backends.conformance import SIZE, new, quiet, stranger
from tests.backends.test_qcow2 import OnRows, layers_in
from tests.conftest import NOBODY
from volctl.backend import Backend
from volctl.errors import BackendError, InUseError
from volctl.model import MiB, Object
from volctl.qcow2.daemon import PROGRAM, Daemon
from volctl.qcow2.export import Export

pytestmark = pytest.mark.root


class TestQcow2(OnRows, Attaching):
    least_steps = 4
    stride = 5

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, rows: None, pool: Backend, volume: Object) -> Iterator[None]:
        yield
        for name in os.listdir(pool.path(volume).parent):
            if name.startswith("volume-"):
                pool.detach(Object("volume", name.removeprefix("volume-")))
        assert not os.path.exists(Daemon(pool.setup.database, "any").disk.parent)

    def backend(self, directory: Path, database: str, **options: object) -> Qcow2:
        directory.mkdir(exist_ok=True)
        return super().backend(directory, database, **options)

    def write(self, backend: Backend, volume: Object, data: bytes) -> None:
        qcow2_files.write(backend.path(volume), 0, data)

    def reboot(self, device: str) -> None:
        daemon = daemon_of(device)
        take_away(device)
        end_daemon(daemon)

    def devices(self, backend: Backend, volume: Object) -> int:
        daemon = Daemon(backend.setup.database, volume.name)
        said = [
            path.read_text(errors="replace").strip()
            for path in (*_sys("loop*/loop/backing_file"), *_sys("nbd*/backend"))
        ]
        return max(said.count(str(daemon.disk)), len(daemon.ids()))

    def test_a_snapshot_and_a_clone_of_an_attached_volume_are_of_one_instant(
        self, pool: Backend, volume: Object
    ) -> None:
        device, snapshot, clone = pool.attach(volume, read_only=False), new("snap"), new()
        put(device, 0, b"then")
        pool.snapshot(volume, snapshot)
        put(device, 0, b"now!")
        pool.clone(volume, clone, 2 * SIZE, quiet)
        put(device, MiB, b"later")
        with open(device, "rb") as file:
            assert file.read(4) == b"now!"
        pool.detach(volume)
        seen = {each: qcow2_files.read(pool.path(each)) for each in (volume, snapshot, clone)}
        assert [seen[each][:4] for each in (snapshot, clone, volume)] == [b"then", b"now!", b"now!"]
        assert not any(seen[clone][4:]) and seen[volume][MiB : MiB + 5] == b"later" and not any(seen[snapshot][4:])

    def test_a_snapshot_of_an_attached_volume_is_undone_from_any_step(self, pool: Backend, volume: Object) -> None:
        device, written = pool.attach(volume, read_only=False), dict[int, bytes]()
        for turn, step in enumerate(self.steps("snapshot")):
            snapshot = new("snap")
            killed = self.killed_at(step, pool, lambda pool, to=snapshot: pool.snapshot(volume, to))  # type: ignore[misc]
            written[step * 512] = b"%08d" % step
            put(device, step * 512, written[step * 512])
            if not killed:
                assert (b"%08d" % step) not in qcow2_files.read(pool.path(snapshot))
            pool.delete_snapshot(volume, snapshot)
            if not killed:
                break
            if turn % 3 == 2:
                pool.detach(volume)
                self.has(pool, volume, written)
                device = pool.attach(volume, read_only=False)
        pool.detach(volume)
        self.has(pool, volume, written)
        assert step > 12 and layers_in(pool.path(volume).parent) == []

    def test_growth_can_be_killed_at_any_step_and_called_again(self, pool: Backend, volume: Object) -> None:
        device, size = pool.attach(volume, read_only=False), SIZE

        def extend(pool: Backend) -> None:
            pool.extend(volume, size)
            pool.resize_device(volume)

        for step in self.steps("growth"):  # each waits for a second: so long the kernel remembers a size
            size += MiB
            killed = self.killed_at(step, pool, extend)
            extend(pool)
            put(device, size - 8, b"%08d" % step)
            with open(device, "rb") as file:
                assert file.seek(0, os.SEEK_END) == size
            if not killed:
                break
        assert step >= 4
        pool.detach(volume)
        with pool.reading(volume) as where:
            assert where.size == size

    def test_a_device_that_was_left_by_a_killed_snapshot_grows_in_the_right_file(
        self, pool: Backend, volume: Object
    ) -> None:
        device, size = pool.attach(volume, read_only=False), SIZE
        for step in self.steps("left"):
            snapshot, size = new("snap"), size + MiB
            killed = self.killed_at(step, pool, lambda pool, to=snapshot: pool.snapshot(volume, to))  # type: ignore[misc]
            pool.delete_snapshot(volume, snapshot)
            pool.extend(volume, size)
            pool.resize_device(volume)
            info = pool.inspect(volume)
            assert info and info.size == size
            put(device, size - 8, b"%08d" % step)
            if not killed:
                break
        pool.detach(volume)

    def has(self, pool: Backend, volume: Object, written: dict[int, bytes]) -> None:
        content = qcow2_files.read(pool.path(volume))
        assert {at: content[at : at + 8] for at in written} == written

    def test_what_could_not_be_merged_while_attached_is_merged_at_the_end(self, pool: Backend, volume: Object) -> None:
        device, snapshot = pool.attach(volume, read_only=False), new("snap")
        put(device, 0, b"then")
        pool.snapshot(volume, snapshot)
        put(device, 4096, b"more")
        pool.delete_snapshot(volume, snapshot)
        directory = pool.path(volume).parent
        assert pool.inspect(snapshot) is None and len(layers_in(directory)) == 1
        put(device, 8192, b"last")
        pool.detach(volume)
        assert layers_in(directory) == []
        content = qcow2_files.read(pool.path(volume))
        assert [content[at : at + 4] for at in (0, 4096, 8192)] == [b"then", b"more", b"last"]
        qcow2_files.check(pool.path(volume))

    def test_a_file_system_on_the_device_is_whole_afterwards(self, pool: Backend, tmp_path: Path) -> None:
        volume, raw = new(), tmp_path / "raw"
        pool.create(volume, 64 * MiB)
        device = pool.attach(volume, read_only=False)
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        (tmp_path / "mnt").mkdir()
        subprocess.run(["mount", device, tmp_path / "mnt"], check=True)
        data = os.urandom(8 * MiB)
        (tmp_path / "mnt" / "file").write_bytes(data)
        with pytest.raises(InUseError, match="mounted on"):
            pool.detach(volume)
        subprocess.run(["umount", tmp_path / "mnt"], check=True)
        pool.detach(volume)
        qcow2_files.to_raw(pool.path(volume), raw)
        subprocess.run(["e2fsck", "-fn", raw], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop,ro", raw, tmp_path / "mnt"], check=True)
        same = (tmp_path / "mnt" / "file").read_bytes() == data
        subprocess.run(["umount", tmp_path / "mnt"], check=True)
        assert same

    def test_what_was_flushed_survives_the_daemon(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=False)
        put(device, 0, b"flushed")
        kill_daemon(daemon_of(device))
        assert pool.attached(volume) is None and pool.holders(volume) == []
        pool.detach(volume)
        assert qcow2_files.read(pool.path(volume)).startswith(b"flushed")

    def test_a_device_taken_away_by_hand_leaves_nobody_in_the_way(self, pool: Backend, volume: Object) -> None:
        take_away(pool.attach(volume, read_only=False))
        assert pool.attached(volume) is None and pool.holders(volume) == []
        pool.snapshot(volume, new("snap"))
        pool.extend(volume, 2 * SIZE)
        pool.delete(volume)

    def test_what_an_attach_that_died_made_first_goes(self, pool: Backend, volume: Object) -> None:
        place = Daemon(pool.setup.database, volume.name).disk.parent
        place.mkdir(parents=True)
        pool.detach(volume)
        assert not place.exists()

    def test_a_daemon_that_is_stopped_keeps_nobody_else_waiting(self, pool: Backend, volume: Object) -> None:
        """What it shows cannot be looked at until it goes on, and a wait for that cannot be ended by a signal."""
        device, other = pool.attach(volume, read_only=False), new()
        daemon = daemon_of(device)
        go_on = threading.Timer(60, signal_daemon, (daemon, signal.SIGCONT))
        go_on.start()
        signal_daemon(daemon, signal.SIGSTOP)
        try:
            pool.create(other, SIZE)
            pool.attach(other, read_only=False)
            assert set(pool.listing().devices) == {volume, other}
            pool.detach(other)
            assert pool.holders(other) == [] and pool.holders(volume) == [device]
            found = pool.attached(volume)
            assert found and found.device == device
            for refused in (pool.detach, lambda volume: pool.snapshot(volume, new("snap"))):
                with pytest.raises(BackendError, match="does not answer"):
                    refused(volume)
            assert go_on.is_alive()
        finally:
            go_on.cancel()
            signal_daemon(daemon, signal.SIGCONT)
        put(device, 0, b"after")
        pool.delete(other)
        pool.detach(volume)
        assert qcow2_files.read(pool.path(volume)).startswith(b"after")

    def test_many_ask_a_daemon_at_once(self, pool: Backend, volume: Object) -> None:
        """It answers one at a time."""
        pool.attach(volume, read_only=False)
        daemon = Daemon(pool.setup.database, volume.name)
        with ThreadPoolExecutor(12) as crowd:
            asked = [crowd.submit(daemon.size, pool.path(volume)) for _ in range(60)]
            assert {each.result() for each in asked} == {SIZE}

    def test_a_chain_is_longer_than_a_programs_arguments(self, pool: Backend, volume: Object, tmp_path: Path) -> None:
        """The daemon takes what it is told for what lies below, whatever the files say."""
        deep = tmp_path.joinpath(*["d" * 250] * 10)
        deep.mkdir(parents=True)
        chain = [deep / f"{number}" for number in range(60)]
        for path in chain:
            shutil.copyfile(pool.path(volume), path)
        daemon = Daemon(pool.setup.database, volume.name)
        export = Export(daemon, chain[0])
        try:
            device = export.attach(chain[0], chain[1:], read_only=False, sector_size=None)
            assert device.node.read_bytes().startswith(b"head")
            export.detach()
            chain[-1].write_bytes(bytes(MiB))
            with pytest.raises(BackendError, match=r"a chain of 60: .*not in qcow2 format$"):
                export.attach(chain[0], chain[1:], read_only=False, sector_size=None)
            assert daemon.ids() == []
        finally:
            export.detach()

    def test_a_process_of_another_user_that_is_named_like_the_daemon_is_none(
        self, pool: Backend, volume: Object
    ) -> None:
        pool.attach(volume, read_only=False)
        daemon = Daemon(pool.setup.database, volume.name)
        ours = daemon.ids()
        words = [PROGRAM, "-c", "cat; exit", f"socket,id=qmp,path={daemon.socket},server=on,wait=off"]
        with subprocess.Popen(words, executable="/bin/sh", stdin=subprocess.PIPE, user=NOBODY) as process:
            try:
                assert daemon.ids() == ours and len(ours) == 1
                pool.detach(volume)
                assert process.poll() is None
            finally:
                process.kill()

    def test_a_copy_of_the_pool_has_no_part_in_the_device(self, pool: Backend, volume: Object) -> None:
        """Of the same database, as a copied state directory has it: the daemon goes by the same name."""
        device, directory = pool.attach(volume, read_only=False), pool.path(volume).parent
        put(device, 0, b"before")
        copy = self.backend(directory.with_name("copy"), pool.setup.database)
        for path in directory.iterdir():
            shutil.copyfile(path, copy.path(volume).with_name(path.name))
        assert copy.attached(volume) is None and copy.holders(volume) == [] and copy.listing().devices == {}
        copy.snapshot(volume, new("snap"))
        copy.extend(volume, 2 * SIZE)
        copy.clone(volume, new(), 2 * SIZE, quiet)
        with pytest.raises(InUseError, match="another file open"):
            copy.attach(volume, read_only=False)
        copy.detach(volume)
        copy.delete(volume)
        assert pool.holders(volume) == [device]
        put(device, 0, b"after!")
        pool.detach(volume)
        assert qcow2_files.read(pool.path(volume)).startswith(b"after!")

    def test_a_file_that_was_put_in_the_place_of_an_attached_one_is_not_gone_on_with(
        self, pool: Backend, volume: Object, tmp_path: Path
    ) -> None:
        """Not even where the new one is empty over the same layer."""
        pool.snapshot(volume, new("snap"))
        shutil.copyfile(pool.path(volume), tmp_path / "new")
        device = pool.attach(volume, read_only=False)
        put(device, 0, b"before")
        (tmp_path / "new").replace(pool.path(volume))
        assert pool.attached(volume) is None and list(pool.listing().devices) == [volume]
        for refused in (
            lambda: pool.snapshot(volume, new("snap")),
            lambda: pool.extend(volume, 2 * SIZE),
            lambda: pool.attach(volume, read_only=False),
        ):
            with pytest.raises(InUseError, match="another file open"):
                refused()
        assert Path(device).read_bytes().startswith(b"before") and len(list(tmp_path.glob("pool/layer-*"))) == 1
        pool.detach(volume)
        assert self.devices(pool, volume) == 0 and qcow2_files.read(pool.path(volume)).startswith(b"head")

    def test_holders_names_the_device_and_a_stranger(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=False)
        assert pool.holders(volume) == [device]
        pool.detach(volume)
        with stranger(HOLD, str(pool.path(volume))) as pid, pytest.raises(InUseError, match=rf"\(pid {pid}\)"):
            pool.snapshot(volume, new("snap"))

    def test_a_read_only_device_is_not_written_but_grows(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=True)
        with pytest.raises(OSError):
            put(device, 0, b"changed")
        pool.extend(volume, 2 * SIZE)
        pool.resize_device(volume)
        with open(device, "rb") as file:
            assert file.seek(0, os.SEEK_END) == 2 * SIZE

    def test_the_file_below_is_the_one_of_the_rows(self, pool: Backend, volume: Object) -> None:
        """A chain whose file was swapped for one that names another is not opened."""
        pool.snapshot(volume, new("snap"))
        secret = new()
        pool.create(secret, SIZE)
        subprocess.run(
            ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", secret.name, pool.path(volume)], check=True
        )
        with pytest.raises(Exception, match="changed by somebody"):
            pool.attach(volume, read_only=False)
        assert self.devices(pool, volume) == 0
        pool.delete(secret)


def put(device: str, offset: int, data: bytes) -> None:
    with open(device, "r+b", buffering=0) as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file)


def daemon_of(device: str) -> Daemon:
    block = Path("/sys/block", os.path.basename(device))
    said = next(path for path in (block / "loop/backing_file", block / "backend") if path.exists())
    disk = Path(said.read_text().strip())
    return Daemon(disk.parent.name, disk.name)


def take_away(device: str) -> None:
    """By hand, as somebody who never heard of us."""
    words = ["losetup", "-d"] if "loop" in device else ["qemu-nbd", "-d"]
    subprocess.run([*words, device], check=True, stdout=subprocess.DEVNULL)


def _sys(pattern: str) -> list[Path]:
    return [path for path in Path("/sys/block").glob(pattern) if path.exists()]


def signal_daemon(daemon: Daemon, number: signal.Signals) -> None:
    for pid in daemon.ids():
        os.kill(pid, number)


def kill_daemon(daemon: Daemon) -> None:
    signal_daemon(daemon, signal.SIGKILL)
    while daemon.ids():
        time.sleep(0.01)


def end_daemon(daemon: Daemon) -> None:
    """As a reboot does: nothing of it is left."""
    kill_daemon(daemon)
    subprocess.run(["umount", "-l", daemon.disk], check=False, stderr=subprocess.DEVNULL)
    for path in daemon.disk.parent.glob(f"{daemon.name}*"):
        path.unlink()
    with suppress(OSError):  # it was never there, or other volumes are attached
        daemon.disk.parent.rmdir()
