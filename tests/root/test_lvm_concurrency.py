"""Many commands on one group, and many LVs in it."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.root.lvm_rig import lvs, make, run, volume_group, words
from tests.root.warm import Warm, digest, foreign, image, lvm_calls
from volctl.model import MiB, Object

GROUP = "crowd-group"
MANY = 16
LVS = 200
VOLUME = Object("volume", str(uuid.UUID(int=1)))
BOUND = "600"  # seconds of each command; one alone takes 2 to 10 here


@pytest.fixture
def group(disks: list[Path]) -> Iterator[str]:
    with volume_group(disks[:2], GROUP):
        yield GROUP


def at_once(warm: Warm, *commands: tuple[str | Path, ...]) -> float:
    """All succeed; how long the last one took, in seconds. Who waits for each other is out of time."""
    began = time.monotonic()
    running = [warm.start(*argv, "--timeout", BOUND) for argv in commands]
    ended = [warm.join(pid) for pid in running]
    assert [done.status for done in ended] == [0] * len(commands), [done.err for done in ended if done.status]
    return time.monotonic() - began


def test_sixteen_creates_and_sixteen_deletes_at_once(warm: Warm, group: str, tmp_path: Path) -> None:
    """On thick, whose LVs are activated, zeroed and cleared outside the group's lock."""
    home = foreign(group)
    warm.configure(group, provisioning="thick")
    before = digest(home)
    names = [f"v{number}" for number in range(MANY)]
    taken = at_once(warm, *(("create", name, "--size", "8M") for name in names))
    volumes = warm("list", "--json").json()
    assert {volume["status"] for volume in volumes} == {"available"} and len(volumes) == MANY
    assert set(lvs(group)) - {"home"} == {f"volume-{volume['id']}" for volume in volumes}
    assert lvs(group, "lv_name=~^volume && lv_active=active") == []
    freed = at_once(warm, *(("delete", name, "-y") for name in names))
    print(f"{MANY} creates {taken:.1f} s, {MANY} deletes {freed:.1f} s")
    assert lvs(group) == ["home"] and digest(home) == before
    assert warm.unfinished() == [] and {line["in_use"] for line in warm("quota", "show", "--json").json()} == {0}


def test_creates_and_deletes_of_everything_at_once(warm: Warm, group: str) -> None:
    """Deletes, snapshots, clones and extends meet on one pool."""
    warm.configure(group, provisioning="thin", pool_size="400M")
    warm("create", "v", "--size", "8M", "--count", "6")
    at_once(
        warm,
        ("snapshot", "create", "v-1", "s"),
        ("create", "c", "--from-volume", "v-2"),
        ("extend", "v-3", "16M"),
        ("delete", "v-4", "-y"),
        ("attach", "v-5"),
        ("create", "w", "--size", "8M"),
    )
    assert len(lvs(group)) == 1 + 6 - 1 + 3 and warm.unfinished() == []


def test_an_lv_is_inactive_also_after_a_slow_look_of_udevs(group: str, tmp_path: Path) -> None:
    """One that takes longer than LVM's own patience of 5 s, as on a machine that has much else to do."""
    pool = make(group, "here", provisioning="thick")
    pool.init()
    prober = shutil.copy("/bin/sleep", tmp_path / "blkid")
    with pool.writing(VOLUME, 8 * MiB) as target, target.path.open("rb") as device:
        looking = subprocess.Popen([prober, "7"], stdin=device)
    assert looking.poll() == 0
    assert lvs(group, "lv_active=active") == []


@pytest.fixture
def crowded(warm: Warm, group: str) -> Warm:
    """Two hundred volumes, each an LV of one extent: the first is made, the others written into the metadata."""
    warm.configure(group, provisioning="thick")
    warm("create", "v", "--size", "1M")
    file = warm.home / "metadata"
    run("vgcfgbackup", "-q", "-f", file, group)
    ids = [str(uuid.uuid4()) for _ in range(LVS - 1)]
    file.write_text(with_copies(file.read_text(), warm.lv("v"), ids))
    run("vgcfgrestore", "-q", "-y", "-f", file, group)
    add_rows(warm, ids)
    return warm


def with_copies(metadata: str, name: str, ids: list[str]) -> str:
    """LVM's text of a group with copies of one of its LVs, each on the next extent."""
    found = re.search(rf"\n\t\t{re.escape(name)} {{.*?\n\t\t}}\n", metadata, re.DOTALL)
    assert found
    block, copies = found[0], ""
    own, start = (re.search(pattern, block) for pattern in (r'id = "(.*?)"', r'("pv0", )(\d+)'))
    assert own and start
    for number, each in enumerate(ids, 1):
        copy = block.replace(own[1], f"{own[1][:-4]}{number:04d}").replace(name, f"volume-{each}")
        copy = copy.replace(start[0], f"{start[1]}{int(start[2]) + number}")
        copies += copy.replace(name.removeprefix("volume-"), each)
    return metadata.replace(block, block + copies)


def add_rows(warm: Warm, ids: list[str]) -> None:
    connection = sqlite3.connect(warm.database)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(volumes)") if row[1] not in ("id", "name")]
    kept = ", ".join(columns)
    for number, each in enumerate(ids):
        connection.execute(
            f"INSERT INTO volumes (id, name, {kept}) SELECT ?, ?, {kept} FROM volumes WHERE name = 'v'",
            (each, f"v{number}"),
        )
    connection.commit()
    connection.close()


def test_two_hundred_lvs_cost_no_more_calls_than_one(crowded: Warm, tmp_path: Path) -> None:
    assert len(lvs(GROUP)) == LVS
    crowded("attach", "v")
    for command in (["list"], ["list", "--status", "in-use"], ["show", "v"]):
        done = crowded(*command, "--json", programs=True)
        assert lvm_calls(done) == [], command
    assert len(crowded("list", "--json").json()) == LVS
    assert words("lvs", "--noheadings", "-o", "lv_active", f"{GROUP}/{crowded.lv('v7')}") == []
    made = crowded("create", "w", "--size", "1M", "-q", programs=True)
    assert len(lvm_calls(made)) <= 4
    gone = crowded("delete", "v7", "-y", programs=True)
    assert len(lvs(GROUP)) == LVS
    print("create thick:", lvm_calls(made), "delete thick:", lvm_calls(gone))


def test_list_starts_no_program_at_all(crowded: Warm) -> None:
    """As the kernel sees it, one execve: the interpreter's own."""
    assert shutil.which("strace")
    log = crowded.home / "strace"
    env = environment(crowded.home, PYTHONPATH=str(Path.cwd()))
    traced = ["strace", "-f", "-qq", "-e", "trace=execve", "-o", str(log), sys.executable, "-m", "volctl", "list"]
    subprocess.run(traced, env=env, check=True, stdout=subprocess.DEVNULL)
    assert [line for line in log.read_text().splitlines() if line.endswith("= 0")][1:] == []


def test_lvm_calls_of_each_command_on_thin(warm: Warm, group: str, tmp_path: Path) -> None:
    warm.configure(group, provisioning="thin", pool_size="400M")
    source = image(tmp_path / "image", 4)
    counted: dict[str, tuple[str | Path, ...]] = {
        "blank": ("create", "a", "--size", "8M"),
        "image": ("create", "b", "--from-image", source),
        "clone": ("create", "c", "--from-volume", "b"),
        "snapshot": ("snapshot", "create", "b", "s"),
        "from snapshot": ("create", "d", "--from-snapshot", "s"),
        "extend": ("extend", "a", "16M"),
        "attach": ("attach", "a"),
        "detach": ("detach", "a"),
        "revert": ("revert", "b", "s", "-y"),
        "delete": ("delete", "a", "-y"),
    }
    calls = {what: lvm_calls(warm(*argv, programs=True)) for what, argv in counted.items()}
    for what, verbs in calls.items():
        print(f"{what}: {len(verbs)} ({', '.join(verbs)})")
    assert len(calls["blank"]) <= 4 and calls["clone"].count("lvcreate") == 1
    assert {what: verbs for what, verbs in calls.items() if len(verbs) > 6} == {}
