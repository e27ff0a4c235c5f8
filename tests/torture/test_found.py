"""What the torture found once, at the very point."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.engine.crash import Rig, until_stopped
from tests.oracle import Content
from tests.torture.core import Budget, Tally, another, mounted, worlds
from tests.torture.full import Shortage, suffered
from tests.torture.strace import QEMU
from tests.torture.syscalls import found, hurt
from tests.torture.verbs import VERBS

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def on_loop() -> Iterator[Rig]:
    with worlds("loop") as world:
        yield world


@pytest.mark.parametrize(
    ("verb", "call", "last", "why"),
    [
        ("create", "unlink", 3, "a lock's file that stays made a create that was done fail"),
        ("attach", "ioctl", 6, "a device that could not be asked for its mark was forgotten"),
        ("detach", "ioctl", 10, "and one that should go stayed"),
        ("backup-db", "unlink", 3, "a note that stayed made a failure of a backup that was there"),
        ("backup-db", "fsync", 1, "a backup whose name may not be on the disk was told as failed, and stayed"),
        ("doctor-rebuild", "pwrite64", 8, "a new database got its name while part of it was in its log"),
    ],
    ids=lambda value: value if value in VERBS else "",
)
def test_a_call_that_fails_near_the_end(on_loop: Rig, verb: str, call: str, last: int, why: str) -> None:
    points = [point for point in found(on_loop, VERBS[verb]) if (point.call, point.action) == (call, "error=EIO")]
    tally = Tally()
    for point in points[-last:]:
        hurt(on_loop, verb, point, tally)
    assert tally.runs == last
    assert not tally.wrong, "\n".join([why, *tally.wrong])


def test_a_program_that_somebody_kills_says_nothing_of_the_image(on_loop: Rig) -> None:
    """It was refused with exit 7, as one that takes too long to look at."""
    kills = [point for point in found(on_loop, VERBS["create-image"]) if point.action == "signal=KILL"]
    tally = Tally()
    for point in [point for point in kills if (point.who, point.call) == (QEMU, "write")][:3]:
        hurt(on_loop, "create-image", point, tally)
    assert tally.runs == 3
    assert not tally.wrong, "\n".join(tally.wrong)


@pytest.mark.parametrize(
    ("kind", "what", "left", "why"),
    [
        ("ext4", "inodes", 3, "a lock that could not be made was an internal error"),
        ("ext4 of 1 KiB blocks", "blocks", 128, "SQLite's index in memory had a hole: SIGBUS"),
    ],
    ids=lambda value: value if value in ("blocks", "inodes") else "",
)
def test_no_room(on_loop: Rig, kind: str, what: str, left: int, why: str) -> None:
    with mounted(kind) as mount:
        wrong = suffered(
            on_loop, "create-volume", Shortage(kind, "everything", what, left), mount, Budget(1).random("")
        )
    assert not wrong, "\n".join([why, *wrong])


def test_a_layer_that_was_open_when_its_snapshot_went_goes_at_the_detach() -> None:
    """Also one that lies deeper than the nearest."""
    made = ("create v --size 2M", "snapshot create v s", "snapshot create v t")
    with worlds("qcow2") as world, another(world) as rig:
        for line in (*made, "attach v", "snapshot delete s -y", "detach v"):
            rig.run(*line.split(), status=0)
        assert rig.check(t=Content()) == []


def test_what_is_being_released_is_not_adopted() -> None:
    """The release may yet be undone, and then there was nothing to take back."""
    with worlds("caching") as world, another(world) as rig:
        pid = rig.start("release", "bystander", signals={"after GiveTask": signal.SIGSTOP})
        until_stopped(pid)
        told = rig.run("adopt", "a", "bystander", "v")
        os.kill(pid, signal.SIGKILL)
        rig.join(pid)
        assert (told.status, "is being released" in told.err) == (5, True), told.err
        assert rig.check() == []
        assert rig.there("bystander")["status"] == "available"
