"""Signals, deadlines, and commands that die with a child still at work."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.crash import KILLED, Ended, MiB, Rig
from tests.engine.zygote import EXPIRE
from tests.flows.test_every_task import told
from tests.oracle import Content

SOON = 300.0  # seconds; what is interrupted here would take 600, and a busy machine is slow
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def wait_for(what: Callable[[], Any], limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def slow(rig: Rig, tmp_path: Path) -> Iterator[Rig]:
    """A world whose qemu-img copies, then makes the file `begun` and takes until `go`."""
    real = shutil.which("qemu-img")
    assert real
    os.mkfifo(tmp_path / "go")
    script = tmp_path / "bin" / "qemu-img"
    script.parent.mkdir()
    script.write_text(
        f"""#!/bin/sh
test "$1" = convert || exec {real} "$@"
{real} "$@" || exit
echo $$ > {tmp_path}/begun.new
mv {tmp_path}/begun.new {tmp_path}/begun
read line < {tmp_path}/go
"""
    )
    script.chmod(0o755)
    rig.configure("confine_qemu = false")
    yield replace(rig, path=f"{script.parent}:{os.environ['PATH']}")
    go(tmp_path)


def go(tmp_path: Path) -> None:
    """Let the slow qemu-img end, if it is still there."""
    with suppress(OSError):
        os.close(os.open(tmp_path / "go", os.O_WRONLY | os.O_NONBLOCK))


def copying(slow: Rig, tmp_path: Path, *words: str) -> int:
    """Begin a create from an image; the command's pid once its qemu-img is at work."""
    source = slow.contents["image"].source
    assert source
    image = str(source.with_name("disk.qcow2"))
    pid = slow.start("create", "v", "--from-image", image, "--size", "3M", "--json", *words)
    wait_for((tmp_path / "begun").exists)
    return pid


def worker(tmp_path: Path) -> int:
    return int((tmp_path / "begun").read_text())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def nothing_left(rig: Rig) -> None:
    """After one more command."""
    assert rig.check() == []
    assert rig.volume("v") is None


# -- signals


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_the_copy_and_its_child_and_leaves_nothing(slow: Rig, tmp_path: Path, signum: int) -> None:
    pid = copying(slow, tmp_path)
    begun = time.monotonic()
    os.kill(pid, signum)
    done = slow.join(pid)
    assert time.monotonic() - begun < SOON
    assert done.status == 128 + signum and told(done)["code"] == "cancelled"
    assert f"signal {signum}" in done.err
    assert not alive(worker(tmp_path))
    assert slow.volume("v") is None, "gone before any other command"
    nothing_left(slow)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_work_without_a_child_too(rig: Rig, signum: int) -> None:
    rig.order("a", create={"pause": 600, "after": True})
    before = rig.held("a")
    pid = rig.start("create", "v", "--size", "3M", "--json")
    wait_for(lambda: rig.held("a") != before)
    os.kill(pid, signum)
    assert rig.join(pid).status == 128 + signum
    nothing_left(rig)


def test_a_second_signal_leaves_the_undo_to_the_next_command(rig: Rig) -> None:
    rig.order("a", create={"pause": 600, "after": True}, delete={"pause": 600})
    before = rig.held("a")
    pid = rig.start("create", "v", "--size", "3M")
    wait_for(lambda: rig.held("a") != before)
    os.kill(pid, signal.SIGINT)
    wait_for(lambda: [row for row in rig.flows() if row["phase"] == "undoing"])
    os.kill(pid, signal.SIGTERM)
    begun = time.monotonic()
    done = rig.join(pid)
    assert time.monotonic() - begun < SOON
    assert done.status == 128 + signal.SIGTERM and "next command" in done.err
    rig.order("a")
    assert "settled" in rig.run("list", status=0).err
    nothing_left(rig)


def test_a_second_signal_ends_the_child_as_well(slow: Rig, tmp_path: Path) -> None:
    slow.order("a", delete={"pause": 600})
    pid = copying(slow, tmp_path)
    os.kill(pid, signal.SIGINT)
    wait_for(lambda: [row for row in slow.flows() if row["phase"] == "undoing"])
    os.kill(pid, signal.SIGINT)
    assert slow.join(pid).status == 130
    wait_for(lambda: not alive(worker(tmp_path)))
    slow.order("a")
    nothing_left(slow)


def test_a_second_signal_kills_a_child_that_is_deaf(slow: Rig, tmp_path: Path) -> None:
    """It would keep the lock, and the volume as it is, for ever."""
    script = tmp_path / "bin" / "qemu-img"
    script.write_text(script.read_text().replace("#!/bin/sh\n", "#!/bin/sh\ntrap '' TERM INT HUP\n"))
    pid = copying(slow, tmp_path)
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, signum)
    done = slow.join(pid)
    assert done.status == 128 + signal.SIGTERM and "second signal" in done.err
    assert not alive(worker(tmp_path))
    assert slow.check() == []
    assert (slow.volume("v") or {}).get("status") == "error"


@pytest.mark.parametrize("what", [signal.SIGINT, "expire"])
@pytest.mark.parametrize(
    ("argv", "task"),
    [
        ("delete bystander -y", "DeleteStorageTask"),
        ("snapshot delete snap -y", "DeleteSnapshotStorageTask"),
        ("extend src 5M", "ExtendStorageTask"),
        ("revert src snap -y", "RevertStorageTask"),
    ],
)
def test_what_must_be_completed_is_completed_by_the_next_command(rig: Rig, what: Any, argv: str, task: str) -> None:
    done = rig.run(*argv.split(), signals={f"after {task}": what})
    assert done.status in (130, 124, 0), done.err
    if done.status:
        assert "completed by the next command" in done.err
        assert rig.flows(ended_at=None)  # type: ignore[arg-type]
    changed = {"src": rig.contents["then"]} if "revert" in argv else {}
    assert rig.check(**changed) == []
    assert rig.volume("bystander") is None or "bystander" not in argv
    assert rig.snapshot("snap") is None or "snapshot" not in argv
    assert rig.there("src")["size"] == (5 if "extend" in argv else 2) * MiB


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("look", [{"pause": 7}, {"message": "broken"}])
def test_an_extend_that_a_signal_ends_says_so_whatever_is_seen_then(rig: Rig, look: Any, after: bool) -> None:
    """Its look for what was done may fail, or last too long: then the next command completes it."""
    rig.order("a", extend={"pause": 600, "after": after}, inspect={"skip": 1} | look)
    pid = rig.start("extend", "src", "5M")
    wait_for(lambda: '"extend"' in (rig.pools["a"] / "calls").read_text().splitlines()[-1])
    os.kill(pid, signal.SIGTERM)
    ended = rig.join(pid)
    assert ended.status == 143, ended.err
    assert "completed by the next command" in ended.err
    rig.order("a")
    assert rig.check() == []
    row = rig.there("src")
    assert (row["status"], row["size"]) == ("available", 5 * MiB)


@pytest.mark.parametrize("line", ["extend src 5M", "create v --size 1M"])
def test_a_signal_is_no_failure_of_a_backend(rig: Rig, line: str) -> None:
    """A survey goes on without a backend that fails, but not after a signal."""
    rig.order("a", stats={"pause": 600})
    calls = rig.pools["a"] / "calls"
    before = calls.read_text()
    pid = rig.start(*line.split())
    wait_for(lambda: "stats" in calls.read_text()[len(before) :])
    os.kill(pid, signal.SIGINT)
    ended = rig.join(pid)
    assert ended.status == 130 and "cancelled" in ended.err
    rig.order("a")
    assert rig.check() == []


def test_a_signal_before_storage_was_touched_leaves_all_as_it_was(rig: Rig) -> None:
    rig.order("a", holders={"pause": 600})
    pid = rig.start("delete", "bystander", "-y")
    wait_for(lambda: '"holders"' in (rig.pools["a"] / "calls").read_text().splitlines()[-1])
    os.kill(pid, signal.SIGINT)
    assert rig.join(pid).status == 130
    rig.order("a")
    assert rig.there("bystander")["status"] == "available"
    assert rig.check() == []


# -- the deadline


def test_a_timeout_undoes_and_leaves_no_row(rig: Rig) -> None:
    rig.order("a", create={"pause": 600, "after": True})
    begun = time.monotonic()
    done = rig.run("create", "v", "--size", "3M", "--timeout", "300ms", "--json", status=124)
    assert time.monotonic() - begun < SOON
    assert told(done)["code"] == "timeout"
    nothing_left(rig)


def test_a_timeout_ends_the_child(slow: Rig, tmp_path: Path) -> None:
    pid = copying(slow, tmp_path)
    os.kill(pid, EXPIRE)
    assert slow.join(pid).status == 124
    assert not alive(worker(tmp_path))
    nothing_left(slow)


def test_an_undo_that_takes_too_long_is_left_to_the_next_command(rig: Rig) -> None:
    """SPEC 11.7: the timeout and ten seconds more."""
    rig.order("a", create={"pause": 600, "after": True}, delete={"pause": 600})
    begun = time.monotonic()
    assert rig.run("create", "v", "--size", "3M", "--timeout", "200ms").status == 124
    assert time.monotonic() - begun < SOON
    rig.order("a")
    nothing_left(rig)


def dead(rig: Rig) -> None:
    """A create that died with its storage made."""
    rig.run("create", "v", "--size", "3M", signals={"after CreateVolumeFromSpecTask": 9}, status=KILLED)


def test_a_command_that_only_reads_settles_for_five_seconds(rig: Rig) -> None:
    dead(rig)
    rig.order("a", delete={"pause": 600})
    begun = time.monotonic()
    told = rig.run("list", status=0)
    assert time.monotonic() - begun < SOON
    assert "not everything was settled" in told.err and "bystander" in told.out
    rig.order("a")
    assert rig.check() == []


def test_settling_counts_against_the_timeout(rig: Rig) -> None:
    dead(rig)
    rig.order("a", delete={"pause": 600})
    begun = time.monotonic()
    rig.run("create", "w", "--size", "1M", "--timeout", "300ms", status=124)
    assert time.monotonic() - begun < SOON
    rig.order("a")
    assert rig.check() == []
    assert rig.volume("w") is None


def test_a_signal_is_heard_while_settling(rig: Rig) -> None:
    dead(rig)
    rig.order("a", delete={"pause": 600})
    pid = rig.start("create", "w", "--size", "1M")
    wait_for(lambda: [row for row in rig.flows() if row["phase"] == "undoing"])
    begun = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert rig.join(pid).status == 130
    assert time.monotonic() - begun < SOON, "nothing of its own is to be undone"
    rig.order("a")
    assert rig.check() == []
    assert rig.volume("w") is None


# -- others


def test_settle_leaves_a_living_owner_alone(rig: Rig) -> None:
    rig.order("a", create={"pause": 600, "after": True})
    before = rig.held("a")
    pid = rig.start("create", "v", "--size", "3M")
    wait_for(lambda: rig.held("a") != before)
    told = rig.run("list", "--json", status=0)
    assert "settled" not in told.err
    assert {row["name"]: row["status"] for row in told.json()}["v"] == "creating"
    assert rig.held("a") != before
    os.kill(pid, signal.SIGKILL)
    assert rig.join(pid).status == KILLED
    rig.order("a")
    assert rig.check() == []
    assert rig.fault("v")[0] == "cancelled"


def test_a_childs_life_keeps_the_lock_of_its_dead_parent(slow: Rig, tmp_path: Path) -> None:
    pid = copying(slow, tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert slow.join(pid).status == KILLED
    assert alive(worker(tmp_path))
    assert "settled" not in slow.run("list", status=0).err
    assert slow.there("v")["status"] == "downloading"
    assert slow.run("delete", "v", "-y", "--lock-timeout", "200ms").status == 10
    go(tmp_path)
    wait_for(lambda: not alive(worker(tmp_path)))
    wait_for(lambda: "settled" in slow.run("list", status=0).err)
    assert slow.fault("v")[0] == "cancelled"
    assert slow.check() == []


def test_two_commands_that_settle_at_once_do_it_once(rig: Rig) -> None:
    rig.order("a", create={"pause": 600, "after": True})
    before = rig.held("a")
    owners = [rig.start("create", name, "--size", "3M") for name in ("v", "w", "x")]
    wait_for(lambda: len(rig.held("a") - before) == 3)
    for pid in owners:
        os.kill(pid, signal.SIGKILL)
        assert rig.join(pid).status == KILLED
    rig.order("a", delete={"pause": 0.2})
    pids = [rig.start("quota", "set", "--volumes", "90") for _ in range(4)]  # one that reads may give up before the end
    ended: list[Ended] = [rig.join(pid) for pid in pids]
    assert [done.status for done in ended] == [0] * 4
    told = [line for done in ended for line in done.err.splitlines() if "settled" in line]
    assert len(told) == len(set(told)) == 3, told
    rig.order("a")
    assert rig.check() == []


def test_a_source_cannot_go_while_it_is_copied(rig: Rig) -> None:
    rig.order("a", clone={"pause": 600})
    pid = rig.start("create", "v", "--from-volume", "src")
    wait_for(lambda: '"clone"' in (rig.pools["a"] / "calls").read_text())
    for words in ("delete src --cascade -y", "extend src 5M", "revert src snap -y", "snapshot create src s"):
        assert rig.run(*words.split(), "--lock-timeout", "50ms").status == 10, words
    assert rig.volume("src") and rig.snapshot("snap")
    os.kill(pid, signal.SIGKILL)
    rig.join(pid)
    rig.order("a")
    rig.run("delete", "src", "--cascade", "-y", status=0)
    assert rig.check() == []


def test_two_may_copy_one_source_at_once(rig: Rig) -> None:
    rig.order("a", clone={"pause": 0.5})
    pids = [rig.start("create", name, "--from-volume", "src", "--lock-timeout", "0s") for name in ("v", "w")]
    assert [rig.join(pid).status for pid in pids] == [0, 0]
    assert rig.check(v=rig.contents["src"], w=rig.contents["src"]) == []


def test_what_died_is_made_anew_if_absent(rig: Rig) -> None:
    dead(rig)
    made = rig.run("create", "v", "--size", "3M", "--if-absent", "--json", status=0).json()
    assert made["status"] == "available"
    assert rig.check() == []


def test_a_timeout_whose_undo_fails_is_stuck_and_told(rig: Rig) -> None:
    rig.order("a", create={"pause": 600, "after": True}, delete="stays broken")
    before = rig.held("a")
    pid = rig.start("create", "v", "--size", "3M")
    wait_for(lambda: rig.held("a") != before)
    os.kill(pid, EXPIRE)
    assert rig.join(pid).status == 124
    assert rig.stuck()["object_id"] == rig.there("v")["id"]
    assert rig.fault("v")[0] == "timeout"
    assert rig.check("v") == []
    flow = rig.stuck()["id"]
    rig.order("a")
    rig.run("flow", "retry", flow, status=0)
    assert rig.check() == []


@pytest.mark.parametrize(("what", "status"), [(signal.SIGTERM, 143), ("expire", 124)])
def test_an_undo_that_lasts_too_long_is_left_to_the_next_command(rig: Rig, what: Any, status: int) -> None:
    """How it ended is told by what ended it."""
    rig.order("a", delete={"pause": 600})
    done = rig.run("create", "v", "--size", "3M", signals={"after CreateVolumeFromSpecTask": what})
    assert done.status == status, done.err
    assert "the next command ends what volume_create_manager" in done.err
    rig.order("a")
    assert rig.check() == []
    assert (rig.volume("v") or {"status": "error"})["status"] == "error"
    assert rig.flows(ended_at=None) == []  # type: ignore[arg-type]


DONE = (
    "create v --size 1M",
    "create v --from-image QCOW2",
    "image add new QCOW2 --copy",
    "image add new URL",
    "image refresh registered",
    "snapshot create src new",
    "extend src 8M",
    "delete bystander -y",
    "set src --property a=b",
    "quota set --volumes 9",
)
LATE = {
    "signal": {0: signal.SIGTERM},
    "deadline": {0: "expire"},
    "one before and one after": {-1: signal.SIGINT, 0: signal.SIGINT},
}
"""What happens at the last commit, and at the point before it."""


@pytest.mark.parametrize("line", DONE)
@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_what_comes_after_the_last_commit_makes_no_failure_of_it(world: Rig, line: str, late: dict[int, Any]) -> None:
    """Exit 0 if, and only if, it is done."""
    with world.copy() as rig:
        points = rig.run(*rig.words(line), status=0).points
    last = len(points) - points[::-1].index("after commit")
    assert points[last - 2] == "before commit"
    with world.copy() as rig:
        done = rig.run(*rig.words(line), signals={str(last + at): what for at, what in late.items()}, status=0)
        assert "undo" not in done.err
        contents = {"v": rig.contents["image"] if "QCOW2" in line else Content(), "new": rig.contents["src"]}
        assert rig.check(**contents) == []


def test_the_next_of_several_hears_it(world: Rig) -> None:
    """What is done stays, what is not begun is left."""
    with world.copy() as rig:
        points = rig.run("create", "v", "--size", "1M", status=0).points
    last = len(points) - points[::-1].index("after commit")
    with world.copy() as rig:
        words = ("create", "v", "--size", "1M", "--count", "3")
        rig.run(*words, signals={str(last): signal.SIGINT}, status=128 + signal.SIGINT)
        assert [bool(rig.volume(name)) for name in ("v-1", "v-2", "v-3")] == [True, False, False]
        assert rig.check() == []
