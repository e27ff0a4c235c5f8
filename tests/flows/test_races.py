"""Commands that meet: one wins, the others are told why."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.engine.crash import KILLED, MiB, Rig, noise, until_stopped

CROWD = 8


def all_at_once(rig: Rig, *lines: str) -> list[int]:
    """The exit statuses."""
    pids = [rig.start(*line.split()) for line in lines]
    return sorted(rig.join(pid).status for pid in pids)


def test_of_adoptions_to_one_name_one_succeeds(rig: Rig) -> None:
    files = [noise(rig.pools["a"] / f"stray{number}", MiB, number).source for number in range(CROWD)]
    assert all_at_once(rig, *(f"adopt a {file} v" for file in files)) == [0] + (CROWD - 1) * [5]
    assert rig.there("v")["status"] == "available"


def test_of_deletions_of_an_image_one_finds_it(rig: Rig) -> None:
    for _ in range(5):
        rig.run(*rig.words("image add i RAW --copy"), status=0)
        assert all_at_once(rig, *["image delete i -y"] * CROWD) == [0] + (CROWD - 1) * [4]


def test_what_was_never_placed_is_neither_attached_nor_released(rig: Rig) -> None:
    rig.run("create", "v", "--size", "900T", status=6)
    assert rig.there("v")["backend"] is None
    for verb in ("attach", "release"):
        ended = rig.run(verb, "v", status=5)
        assert "backend None" not in ended.err


@pytest.mark.parametrize("verb", ["release", "delete -y"])
def test_no_image_is_a_volume_that_is_gone(rig: Rig, verb: str) -> None:
    """Either it is an image, and is not released, or it is none. To delete it takes the image along."""
    for number in range(6):
        rig.run("create", f"v{number}", "--size", "1M", status=0)
        volume = rig.there(f"v{number}")["id"]
        all_at_once(rig, *(f"image add i{number}{each} volume:{volume}" for each in range(4)), f"{verb} {volume}")
        if rig.volume(f"v{number}") is None:
            images = rig.run("image", "list", "--json", status=0).json()
            assert f"volume:{volume}" not in {image["location"] for image in images}


@contextmanager
def stopped(rig: Rig, point: str, *argv: str) -> Iterator[None]:
    """Inside, that command stands still there; then it is killed, and what it left is looked at."""
    pid = rig.start(*argv, signals={point: signal.SIGSTOP})
    until_stopped(pid)
    yield
    os.kill(pid, signal.SIGKILL)
    rig.join(pid)
    assert rig.run("doctor", "--json", status=0).json() == []


@pytest.mark.parametrize("point", ["before TakeTask", "after TakeTask"])
def test_what_is_being_adopted_is_not_adopted(rig: Rig, point: str) -> None:
    """Whoever came second could neither take it nor say what there was to give back."""
    file = noise(rig.pools["a"] / "stray", MiB, 1).source
    with stopped(rig, point, "adopt", "a", str(file), "v"):
        told = rig.run("adopt", "a", str(file), "w", status=5 if point.startswith("before") else 4)
        assert ("is being adopted" if point.startswith("before") else "there is no file") in told.err
    rig.run("adopt", "a", str(file), "w", status=0)


def test_the_name_of_what_is_being_adopted_is_not_given(rig: Rig) -> None:
    """The adoption may yet be undone, and its file needs its name again."""
    rig.run("create", "stray", "--size", "1M", status=0)
    file = noise(rig.pools["a"] / "stray", MiB, 1).source
    with stopped(rig, "after TakeTask", "adopt", "a", str(file), "v"):
        told = rig.run("release", "stray", status=5)
        assert "is being adopted" in told.err
    assert file is not None and file.exists()
    assert rig.run("release", "stray", "--json", status=0).json()["path"].endswith("stray-2")


def test_what_is_gone_before_it_was_adopted_need_not_be_given_back(rig: Rig) -> None:
    file = noise(rig.pools["a"] / "stray", MiB, 1).source
    assert file is not None
    rig.run("adopt", "a", str(file), "v", signals={"before TakeTask": signal.SIGKILL}, status=KILLED)
    file.rename(rig.root / "stray")
    assert rig.check() == []
    assert rig.volume("v") is None


@pytest.mark.parametrize(
    ("verb", "flow", "task"),
    [("delete -y", "volume_delete", "CheckDeleteTask"), ("release", "volume_release", "CheckReleaseTask")],
    ids=["delete", "release"],
)
def test_what_is_protected_while_somebody_looks_whether_it_may_go_stays(
    rig: Rig, verb: str, flow: str, task: str
) -> None:
    """Who protects it waits for no lock, and was told that it is."""
    stop = {"flow": flow, "task": task, "half": "gather", "when": "after", "error": "stop"}
    pid = rig.start(*verb.split(), "bystander", inject=[stop])
    until_stopped(pid)
    rig.run("protect", "bystander", status=0)
    os.kill(pid, signal.SIGCONT)
    ended = rig.join(pid)
    assert ended.status == 5 and "is protected" in ended.err
    assert rig.there("bystander")["status"] == "available" and rig.check() == []


def test_a_volume_that_is_worked_on_is_waited_for_before_it_is_deleted_with_its_snapshots(rig: Rig) -> None:
    rig.run("create", "v", "--size", "1M", status=0)
    rig.run("snapshot", "create", "v", "s", status=0)
    working = rig.start("extend", "v", "+1M", signals={"before ExtendStorageTask": signal.SIGSTOP})
    until_stopped(working)
    delete = ("delete", "v", "--cascade", "-y")
    rig.run(*delete, "--lock-timeout", "0", status=10)
    waiting = rig.start(*delete)
    os.kill(working, signal.SIGCONT)
    assert [rig.join(pid).status for pid in (working, waiting)] == [0, 0]
    assert rig.volume("v") is None and rig.snapshot("s") is None
