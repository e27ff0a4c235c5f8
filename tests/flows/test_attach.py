"""Attach and detach through the service: on the fake backend, and as root on real loop devices."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.backends.conformance import stranger
from tests.backends.test_attach_qcow2 import end_daemon
from tests.forked import forked, was_killed
from tests.sampling import numbers
from volctl.backend import Attached
from volctl.db import store
from volctl.engine import journal
from volctl.errors import AccessError, BackendError, ConflictError, InUseError, UsageError
from volctl.flows.attached import as_found
from volctl.model import CreateRequest, MiB, Object, Status, Volume
from volctl.qcow2.daemon import Daemon
from volctl.service import Options, Session, Watcher, attach, creation, open_session, snapshots, tree, volumes

HOLD = "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY)"


@dataclass(slots=True)
class World:
    """A state directory with one backend; each `open()` is one command."""

    root: Path
    kind: str
    said: list[str] = field(default_factory=list)

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    @contextmanager
    def open(self) -> Iterator[Session]:
        options = Options(str(self.root / "config.toml"), str(self.root / "state"))
        with open_session(options, Watcher(warn=self.said.append)) as session:
            yield session

    def configure(self, **options: object) -> None:
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in options.items()]
        head = f'[[backend]]\nname = "pool"\nkind = "{self.kind}"\ndirectory = "{self.pool}"\n'
        (self.root / "config.toml").write_text(head + "".join(lines))

    def devices(self, volume: Volume) -> list[str]:
        """What the system has, whatever the rows say."""
        if self.kind == "fake":
            return [str(path) for path in self.pool.glob(f"device-*{volume.id}")]
        backing = Path("/sys/block").glob("loop*/loop/backing_file")
        return [f"/dev/{path.parts[3]}" for path in backing if volume.id in path.read_text(errors="replace")]

    def reboot(self, volume: Volume) -> None:
        """The device is gone, and no command of ours did it."""
        for device in self.devices(volume):
            if self.kind == "fake":
                os.unlink(device)
            else:
                os.system(f"losetup -d {device}")
        if self.kind == "qcow2":
            with self.open() as session:
                end_daemon(Daemon(session.store.uuid, f"volume-{volume.id}"))


@contextmanager
def furnished(root: Path, kind: str) -> Iterator[World]:
    """With a volume `v` of 4 MiB."""
    made = World(root, kind)
    made.pool.mkdir()
    made.configure()
    with made.open() as session:
        session.env.backends.get("pool").init()
        creation.create(session, CreateRequest("v", "4M"))
    yield made
    with made.open() as session:
        for volume in volumes.list_(session):
            made.reboot(volume)


@pytest.fixture(params=["fake", *(pytest.param(kind, marks=pytest.mark.root) for kind in ("loop", "qcow2"))])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with furnished(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[World]:
    """Whose calls fail on order."""
    with furnished(tmp_path, "fake") as made:
        yield made


def test_attached_is_in_use_and_says_where(world: World) -> None:
    with world.open() as session:
        volume = attach.attach(session, "v")
        (attachment,) = volume.attachments
        assert volume.status is Status.IN_USE and not attachment.read_only
        assert world.devices(volume) == [attachment.device]
        assert attach.attach(session, "v") == volume == volumes.find(session, "v")
    with world.open() as session:
        volume = attach.detach(session, "v")
        assert (volume.status, volume.attachments, world.devices(volume)) == (Status.AVAILABLE, (), [])
        assert attach.detach(session, "v") == volume


def test_another_mode_is_refused(world: World) -> None:
    with world.open() as session:
        volume = attach.attach(session, "v", read_only=True)
        assert volume.attachments[0].read_only
        with pytest.raises(ConflictError, match="attached already"):
            attach.attach(session, "v")
        with pytest.raises(ConflictError, match="attached already"):
            attach.attach(session, "v", read_only=True, sector_size=8192)
        assert volumes.find(session, "v") == volume
        attach.detach(session, "v")
        with pytest.raises(UsageError, match="not of 8192"):
            attach.attach(session, "v", sector_size=8192)


def test_a_volume_that_somebody_holds_is_not_attached(world: World) -> None:
    with world.open() as session:
        path = volumes.path(session, "v")
        with stranger(HOLD, path) as pid, pytest.raises(InUseError, match=f"pid {pid}"):
            attach.attach(session, "v")
        assert volumes.find(session, "v").status is Status.AVAILABLE


def test_what_an_attached_volume_refuses_and_allows(world: World) -> None:
    with world.open() as session:
        snapshot = snapshots.create(session, "v", "s")
        attached = attach.attach(session, "v")
        for refused in (
            lambda: volumes.delete(session, "v"),
            lambda: volumes.delete(session, "v", cascade=True, force=True),
            lambda: volumes.revert(session, "v", "s"),
        ):
            with pytest.raises(ConflictError):
                refused()
        grown = volumes.extend(session, "v", "6M")
        assert (grown.size, grown.status, grown.attachments) == (6 * MiB, Status.IN_USE, attached.attachments)
        with open(attached.attachments[0].device or "", "rb") as device:
            assert device.seek(0, os.SEEK_END) == 6 * MiB
        assert [found.id for found in snapshots.list_(session)] == [snapshot.id]


def test_where_it_takes_time_no_snapshot_of_an_attached_volume_is_taken(fake: World) -> None:
    with fake.open() as session:
        attach.attach(session, "v")
        with pytest.raises(ConflictError, match="changes"):
            snapshots.create(session, "v", "t")
        with pytest.raises(ConflictError, match="changes"):
            creation.create(session, CreateRequest("c", from_volume="v"))


@pytest.mark.parametrize("kind", ["fake", pytest.param("qcow2", marks=pytest.mark.root)])
def test_where_it_takes_no_time_a_snapshot_of_an_attached_volume_is_taken(tmp_path: Path, kind: str) -> None:
    with furnished(tmp_path, kind) as world:
        if kind == "fake":
            world.configure(clone="share")
        _snapshot_of_an_attached_one(world)


def _snapshot_of_an_attached_one(world: World) -> None:
    with world.open() as session:
        attach.attach(session, "v")
        assert snapshots.create(session, "v", "s").status is Status.AVAILABLE
        assert creation.create(session, CreateRequest("c", from_volume="v")).status is Status.AVAILABLE


def test_detach_is_refused_while_the_device_is_open(world: World) -> None:
    with world.open() as session:
        volume = attach.attach(session, "v")
        device = volume.attachments[0].device or ""
        with stranger(HOLD, device) as pid, pytest.raises(InUseError, match=f"pid {pid}"):
            attach.detach(session, "v")
        assert volumes.find(session, "v") == volume and world.devices(volume) == [device]
    with world.open() as session:
        assert attach.detach(session, "v").status is Status.AVAILABLE
    assert world.said == []


def test_after_a_reboot_the_status_is_the_systems(world: World) -> None:
    with world.open() as session:
        before = attach.attach(session, "v", read_only=True)
        world.reboot(before)
        assert [volume.status for volume in volumes.list_(session, status="available")] == [Status.AVAILABLE]
        (attachment,) = volumes.show(session, "v").attachments
        assert (attachment.device, attachment.read_only) == (None, True)
        (volume_id,) = attach.remembered(session)
        after = attach.again(session, volume_id)
        assert after.attachments[0].read_only and world.devices(after) == [after.attachments[0].device]
        assert attach.again(session, volume_id) == after


@pytest.mark.parametrize("look", ["show", "list", "tree", "extend", "delete", "revert", "snapshot", "clone", "detach"])
def test_every_verb_sees_that_the_device_is_gone(world: World, look: str) -> None:
    verbs: dict[str, Callable[[Session], object]] = {
        "show": lambda session: volumes.show(session, "v"),
        "list": volumes.list_,
        "tree": lambda session: tree.tree(session, None),
        "extend": lambda session: volumes.extend(session, "v", "+1M"),
        "delete": lambda session: volumes.delete(session, "v", cascade=True),
        "revert": lambda session: volumes.revert(session, "v", "s"),
        "snapshot": lambda session: snapshots.create(session, "v", "t"),
        "clone": lambda session: creation.create(session, CreateRequest("c", from_volume="v")),
        "detach": lambda session: attach.detach(session, "v"),
    }
    with world.open() as session:
        snapshots.create(session, "v", "s")
        world.reboot(attach.attach(session, "v"))
        verbs[look](session)
        assert not [volume for volume in volumes.list_(session) if volume.status is Status.IN_USE]
        assert bool(attach.remembered(session)) == (look not in ("delete", "detach"))


def test_what_was_read_before_does_not_overwrite_what_is(world: World) -> None:
    with world.open() as session:
        before = attach.attach(session, "v")
        attach.detach(session, "v")
        now = attach.attach(session, "v", read_only=True)
        assert as_found(session.env, before) == now == volumes.find(session, "v")


def test_list_passes_over_what_is_deleted_while_it_looks(fake: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake.open() as session:
        attach.attach(session, "v")
        pool = session.env.backends.get("pool")

        def deleted_meanwhile(volume: Object, device: str | None) -> Attached | None:
            monkeypatch.undo()
            with fake.open() as other:
                attach.detach(other, "v")
                volumes.delete(other, "v")
            return pool.attached(volume, device)

        monkeypatch.setattr(pool, "attached", deleted_meanwhile)
        assert volumes.list_(session) == []


def test_create_and_attach(world: World) -> None:
    with world.open() as session:
        volume = attach.create_attached(session, CreateRequest("w", "1M"))
        assert volume.status is Status.IN_USE and world.devices(volume) == [volume.attachments[0].device]
        again = attach.create_attached(session, CreateRequest("w", "1M", if_absent=True))
        assert again == volume
        attach.detach(session, "w")


def test_an_attach_that_fails_leaves_the_volume(fake: World) -> None:
    for order in ({"error": "permission"}, {"after": True}):
        (fake.pool / "fail").write_text(json.dumps({"attach": order}))
        with fake.open() as session:
            with pytest.raises((AccessError, BackendError), match="w was created and is available, but not attached"):
                attach.create_attached(session, CreateRequest("w", "1M", if_absent=True))
            volume = volumes.find(session, "w")
            assert (volume.status, volume.attachments, fake.devices(volume)) == (Status.AVAILABLE, (), [])


def test_a_detach_that_fails_is_as_the_system_says(fake: World) -> None:
    with fake.open() as session:
        volume = attach.attach(session, "v")
        (fake.pool / "fail").write_text('{"detach": "not now"}')
        with pytest.raises(BackendError, match="not now"):
            attach.detach(session, "v")
        assert volumes.find(session, "v") == volume
        with session.store.read() as tx:
            assert journal.list_runs(tx, 1)[0].phase == journal.UNDONE
        (fake.pool / "fail").write_text('{"detach": {"after": true, "message": "too late", "times": 1}}')
        with pytest.raises(BackendError, match="too late"):
            attach.detach(session, "v")
        assert volumes.find(session, "v").status is Status.AVAILABLE
        attach.detach(session, "v")


Act = Callable[[Session], object]


def nothing(session: Session) -> object:
    return None


def attached(session: Session) -> object:
    return attach.attach(session, "v", read_only=True)


def lost(session: Session) -> object:
    """Attached, then the device went without us."""
    volume = attach.attach(session, "v", read_only=True)
    session.env.backends.get("pool").detach(Object("volume", volume.id))
    return volume


@pytest.mark.parametrize(
    ("before", "act"),
    [
        (nothing, attached),
        (lost, attached),
        (attached, lambda session: attach.detach(session, "v")),
        (attached, lambda session: volumes.extend(session, "v", "+1M")),
        (nothing, lambda session: attach.create_attached(session, CreateRequest(None, "1M"))),
    ],
    ids=["attach", "attach-again", "detach", "extend", "create"],
)
def test_killed_at_any_instant_the_next_command_puts_it_right(world: World, before: Act, act: Act) -> None:
    for point in numbers("attach", 2, 5):
        if not killed_at(point, world, before, act):
            break
        with world.open() as session:
            every = volumes.list_(session)
            for volume in every:
                assert volume.status in (Status.AVAILABLE, Status.IN_USE, Status.ERROR)
                noted = [attachment.device for attachment in volume.attachments if attachment.device]
                assert world.devices(volume) == noted == ([noted[0]] if volume.status is Status.IN_USE else [])
            with session.store.read() as tx:
                assert journal.unfinished(tx) == []
            for volume in every:
                if volume.status is not Status.ERROR:
                    attach.detach(session, volume.id)
    assert point > 5


def killed_at(point: int, world: World, before: Act, act: Act) -> bool:
    """Do it in a child that is killed at its `point`th instant; False if it came to its end."""

    def counted() -> None:
        with world.open() as session:
            before(session)
        store.probe = Countdown(point)
        with world.open() as session:
            act(session)

    return was_killed(forked(counted))


class Countdown:
    def __init__(self, point: int) -> None:
        self.left = point

    def __call__(self, name: str) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
