"""qcow2 volumes where the kernel has nbd: the contract of backends, their devices, and kill -9 at each of their points.

The rest of what is true of qcow2 needs no kernel of its own and is tested outside of the guest.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.backends import test_attach_qcow2, test_qcow2
from tests.backends.conformance import new
from tests.backends.test_attach_qcow2 import daemon_of, kill_daemon, put
from tests.engine.crash import KILLED, Ended, Rig, Zygote, empty, noise
from tests.root.lvm_crash import SETTLE, alone
from tests.root.warm import until
from tests.sampling import sampled
from volctl.backend import Backend
from volctl.errors import InUseError, MissingError
from volctl.model import MiB, Object
from volctl.qcow2 import fuse, nbd
from volctl.qcow2.daemon import Daemon

PIECE = MiB // 4


class TestQcow2(test_qcow2.TestQcow2):
    stride = 23


class TestNbd(test_attach_qcow2.TestQcow2):
    """The contract of attach, and all that is promised of FUSE, by nbd."""

    least_steps = 6

    def test_it_is_nbd_and_no_process_of_the_kernels_side_stays(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=False)
        assert device.startswith("/dev/nbd")
        (pid,) = daemon_of(device).ids()
        assert "--nbd-server" in Path("/proc", str(pid), "cmdline").read_text().split("\0")
        names = [os.readlink(link) for link in Path("/proc", str(pid), "fd").iterdir()]
        assert not [name for name in names if "/locks/" in name or name.endswith(".lock")]

    @pytest.mark.parametrize("sector_size", [512, 4096])
    def test_sectors(self, pool: Backend, volume: Object, sector_size: int) -> None:
        device = pool.attach(volume, read_only=False, sector_size=sector_size)
        found = pool.attached(volume)
        assert found and found.sector_size == sector_size
        assert subprocess.check_output(["blockdev", "--getss", device]).split() == [str(sector_size).encode()]

    def test_a_mounted_device_grows_while_it_is_written_to(self, pool: Backend, tmp_path: Path) -> None:
        """The file system sees no error, what was written is there, and writing goes on soon."""
        volume, mount = new(), tmp_path / "mnt"
        pool.create(volume, 64 * MiB)
        device = pool.attach(volume, read_only=False)
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        with mounted(device, mount), writing(mount) as written:
            for number in range(1, 4):
                pool.extend(volume, (64 + number * 32) * MiB)
                pool.resize_device(volume)
                goes_on(written)
            subprocess.run(["resize2fs", device], check=True, capture_output=True)
            assert os.statvfs(mount).f_blocks * os.statvfs(mount).f_frsize > 120 * MiB
            with pytest.raises(InUseError, match=f"mounted on {mount}"):
                pool.detach(volume)
        subprocess.run(["e2fsck", "-fn", device], check=True, capture_output=True)
        with mounted(device, mount):
            assert {len((mount / str(number)).read_bytes()) for number in written} == {PIECE}

    def test_partitions_hold_the_device_and_go_with_it(self, pool: Backend, tmp_path: Path) -> None:
        volume = new()
        pool.create(volume, 64 * MiB)
        device = pool.attach(volume, read_only=False)
        subprocess.run(["sfdisk", "-q", device], input=b"label: gpt\n,\n", check=True)
        until(Path(f"{device}p1").is_block_device)
        subprocess.run(["mkfs.ext4", "-q", f"{device}p1"], check=True)
        with mounted(f"{device}p1", tmp_path / "mnt"), pytest.raises(InUseError, match="mounted on"):
            pool.detach(volume)
        pool.detach(volume)
        assert not list(Path("/sys/block", os.path.basename(device)).glob("*/partition"))

    def test_a_server_that_is_gone_is_noticed_at_once(self, pool: Backend, volume: Object) -> None:
        device = pool.attach(volume, read_only=False)
        kill_daemon(daemon_of(device))
        began = time.monotonic()
        assert pool.attached(volume) is None and pool.attached(volume, device) is None
        other = pool.attach(volume, read_only=False)
        found = pool.attached(volume)
        assert found and found.device == other
        assert time.monotonic() - began < 20
        put(other, 0, b"again")

    def test_neither_nbd_nor_fuse_is_told(self, pool: Backend, volume: Object, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nbd, "there", lambda: False)
        monkeypatch.setattr(fuse, "there", lambda: False)
        with pytest.raises(MissingError, match="neither") as caught:
            pool.attach(volume, read_only=False)
        assert caught.value.hint and not Daemon(pool.setup.database, volume.name).disk.exists()


@contextmanager
def mounted(device: str, mount: Path) -> Iterator[None]:
    mount.mkdir(exist_ok=True)
    subprocess.run(["mount", device, mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", mount], check=True)


@contextmanager
def writing(directory: Path) -> Iterator[list[int]]:
    """Files named by numbers, one after another, each flushed; those that are whole."""
    stop, written = threading.Event(), list[int]()

    def write() -> None:
        while not stop.is_set():
            with (directory / str(len(written) % 100)).open("wb") as file:
                file.write(os.urandom(PIECE))
                os.fsync(file.fileno())
            written.append(len(written) % 100)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        stop.set()
        writer.join()


def goes_on(written: list[int]) -> None:
    enough = len(written) + 3
    until(lambda: len(written) > enough, 20)


# -- killed


Verdict = Callable[[Rig, Ended, Ended], str | None]


@dataclass(frozen=True, slots=True)
class Case:
    """One command, on a volume `src` that is attached before or not."""

    argv: str
    verdict: Verdict
    attached: bool = False


def in_use_if(wanted: Callable[[Ended, Ended], bool]) -> Verdict:
    def verdict(rig: Rig, died: Ended, whole: Ended) -> str | None:
        return is_attached(rig, wanted(died, whole))

    return verdict


def grown(rig: Rig, died: Ended, whole: Ended) -> str | None:
    row, wanted = rig.there("src"), (4 if died.commits == 0 else 5) * MiB
    if row["size"] != wanted:
        return f"{row['size']} bytes after {died.commits} commits"
    device = row["attachments"][0]["device"]
    (size,) = map(int, subprocess.check_output(["blockdev", "--getsize64", device]).split())
    return is_attached(rig, True) or (None if size == wanted else f"the device has {size} bytes, not {wanted}")


def point_made(rig: Rig, died: Ended, whole: Ended) -> str | None:
    row = rig.snapshot("s")
    if (row is None) != (died.commits == 0):
        return f"after {died.commits} commits the snapshot is {row}"
    if row and row["status"] != ("available" if died.commits == whole.commits else "error"):
        return f"the snapshot is {row['status']}"
    return is_attached(rig, True)


def is_attached(rig: Rig, wanted: bool) -> str | None:
    """Is it, and nothing else of ours by nbd?"""
    row = rig.there("src")
    marks = [path.read_text().strip().rpartition("volume-")[2] for path in Path("/sys/block").glob("nbd*/backend")]
    if (row["status"], marks) != (("in-use", [row["id"]]) if wanted else ("available", [])):
        return f"{row['status']} with the devices {marks}"
    for attachment in row["attachments"] if wanted else ():
        with open(attachment["device"], "rb") as file:
            file.read(4096)
    return None


CASES = {
    "attach": Case("attach src", in_use_if(lambda died, whole: died.commits == whole.commits)),
    "detach": Case("detach src", in_use_if(lambda died, whole: died.commits == 0), attached=True),
    "extend": Case("extend src 5M", grown, attached=True),
    "snapshot": Case("snapshot create src s", point_made, attached=True),
}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote("backends.qcow2", "sh", "volctl.cli.attach", "volctl.service.attach")
    yield made
    made.close()


@pytest.fixture
def world(zygote: Zygote, tmp_path: Path) -> Iterator[Rig]:
    with empty(zygote, "a", kind="qcow2") as made:
        rig = replace(made, contents={"src": noise(tmp_path / "now", 3 * MiB, 5)})
        rig.run("create", "src", "--size", "4M", status=0)
        rig.overwrite("src", rig.contents["src"])
        yield rig
        put_back(rig, False)
        assert not Path("/run/volctl").exists() or not [path for path in Path("/run/volctl").iterdir() if path.is_dir()]


def put_back(rig: Rig, attached: bool) -> None:
    """As before the last command, but for the size."""
    if rig.snapshot("s"):
        rig.run("snapshot", "delete", "s", "-y", status=0)
    if rig.volume("src") and (rig.there("src")["status"] == "in-use") != attached:
        rig.run("attach" if attached else "detach", "src", status=0)


def test_a_server_that_was_killed_is_told_and_attached_again(world: Rig) -> None:
    world.run("attach", "src", "--read-only", status=0)
    kill_daemon(daemon_of(world.there("src")["attachments"][0]["device"]))
    shown = world.run("show", "src", "--json", status=0).json()
    assert (shown["status"], shown["attachments"][0]["device"]) == ("available", None)
    world.run("attach", "--all", status=0)
    assert is_attached(world, True) is None
    (attachment,) = world.there("src")["attachments"]
    assert attachment["read_only"]


def test_doctor_finds_a_device_that_no_row_knows(world: Rig) -> None:
    world.run("attach", "src", status=0)
    assert world.run("doctor", status=0).out == ""
    with closing(sqlite3.connect(world.state / "volctl.db")) as database, database:
        database.execute("UPDATE volumes SET status = 'available', attachments = '[]'")
    (found,) = world.run("doctor", "--json", status=12).json()
    assert found["kind"] == "device" and world.there("src")["id"] in found["object"]
    world.run("doctor", "--fix", "-y", status=0)
    assert is_attached(world, False) is None


@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_point_the_next_command_finds_no_leak(world: Rig, name: str) -> None:
    case, wrong = CASES[name], {}
    put_back(world, case.attached)
    whole = command(world, case, None)
    assert whole.status == 0 and after(world, case, whole, whole) == [], whole.err
    numbers = sampled(range(1, len(whole.points) + 1), name, 12)
    for number in numbers:
        shrink(world)
        put_back(world, case.attached)
        died = command(world, case, number)
        assert died.status in (KILLED, 0), died.err
        if found := after(world, case, died, whole):
            wrong[f"{number}: {died.points[-1]}"] = found
    print(f"{len(numbers)} of {len(whole.points)} points")
    assert not wrong, json.dumps(wrong, indent=1)


def shrink(rig: Rig) -> None:
    """A new `src`, if it has grown."""
    if rig.there("src")["size"] != 4 * MiB:
        put_back(rig, False)
        rig.run("delete", "src", "-y", status=0)
        rig.run("create", "src", "--size", "4M", status=0)
        rig.overwrite("src", rig.contents["src"])


def command(rig: Rig, case: Case, number: int | None) -> Ended:
    done = rig.run(*case.argv.split(), files=True, programs=True, die_at=number)
    alone(rig.state)
    return done


def after(rig: Rig, case: Case, died: Ended, whole: Ended) -> list[str]:
    """One more command, what must have become of this one, and all else once it is detached: layers are merged then."""
    settling = rig.run(*SETTLE)
    if settling.status:
        return [f"the next command: exit {settling.status}: {settling.err}"]
    wrong = case.verdict(rig, died, whole)
    if rig.there("src")["status"] == "in-use":
        rig.run("detach", "src", status=0)
    found = rig.judge(rig.run(*SETTLE, status=0), s=rig.contents["src"])
    return found + ([wrong] if wrong else [])
