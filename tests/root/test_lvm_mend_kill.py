"""kill -9 of what mends and of what takes over, on real LVM: doctor --fix, doctor --rebuild, adopt and release."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.crash import KILLED, Ended
from tests.root import lvm_oracle
from tests.root.counted import counted
from tests.root.lvm_crash import GROUPS, SIZE, Rig, alone
from tests.root.lvm_rig import lvs, run, words
from tests.root.test_lvm_kill import taken


def few(whole: Ended, name: str) -> Sequence[int]:
    """A case here takes twice as long as one of `test_lvm_kill`, so there are fewer, unless all are wanted."""
    return taken(whole, name, 80)


@pytest.mark.parametrize("backend", GROUPS)
def test_what_a_killed_doctor_began_is_done_by_the_next(rig: Rig, backend: str) -> None:
    fix, wrong = ("doctor", "--fix", "--yes", "--json"), {}
    damage(rig, backend)
    whole = rig.run(*fix, programs=True, status=0)
    assert len(whole.json()) == 3 and rig.settled(backend) == []
    points = few(whole, f"doctor {backend}")
    for number in points:
        damage(rig, backend)
        died = rig.run(*fix, programs=True, die_at=number)
        rig.run(*fix, status=0)
        if found := rig.settled(backend):
            wrong[f"{number}: {died.points[-1]}"] = found
    counted(f"kills on {backend}", len(points), len(whole.points))
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())


def damage(rig: Rig, backend: str) -> None:
    """An LV that no row knows, what a revert left, and an LV that is active."""
    group, source = GROUPS[backend], rig.there(f"src-{backend}")["id"]
    mark = words("vgs", "--noheadings", "-o", "vg_tags", group)[0]
    for name in (f"volume-{uuid.uuid4()}", f"revert-{source}"):
        run("lvcreate", "-y", "-an", "-Wn", "-L", "4m", "-n", name, "--addtag", mark, "--addtag", "volctl", group)
    run("lvchange", "-ay", "-K", f"{group}/volume-{source}")


def test_a_killed_rebuild_is_made_by_the_next(rig: Rig) -> None:
    """Until it is whole there is no database, and after it all is as it was."""
    rebuild, wrong = ("doctor", "--rebuild", "--yes"), {}
    before = told(rig)
    lose(rig)
    whole = rig.run(*rebuild, programs=True, status=0)
    assert told(rig) == before and rig.settled(*GROUPS) == []
    points = few(whole, "rebuild")
    for number in points:
        lose(rig)
        died = rig.run(*rebuild, programs=True, die_at=number)
        there = (rig.state / "volctl.db").exists()
        assert rig.run("list").status == (0 if there else 11)
        rig.run(*rebuild, status=5 if there else 0)
        if (found := rig.settled()) or told(rig) != before:
            wrong[f"{number}: {died.points[-1]}"] = found or told(rig)
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())


def lose(rig: Rig) -> None:
    for path in rig.state.glob("volctl.db*"):
        path.unlink()


def told(rig: Rig) -> list[str]:
    """Of each volume and snapshot what does not depend on when the row was made."""
    kept = ("id", "name", "size", "status", "properties", "created_at")
    rows = [*rig.run("list", "--json", status=0).json(), *rig.run("snapshot", "list", "--json", status=0).json()]
    return sorted(json.dumps({key: row[key] for key in kept}) for row in rows)


@pytest.fixture
def stray(rig: Rig) -> Iterator[Rig]:
    """Each group has an LV `stray` of somebody, which reads as `then` and after that as zeros."""
    names = [f"{group}/stray" for group in GROUPS.values()]
    for backend, group in GROUPS.items():
        where = ["-V", f"{SIZE}b", "--thinpool", "volctl"] if backend == "thin" else ["-L", f"{SIZE}b"]
        run("lvcreate", "-y", "-Wn", *where, "-n", "stray", group)
        Path("/dev", group, "stray").write_bytes(content(rig))
        run("udevadm", "settle")
        run("lvchange", "-an", f"{group}/stray")
    released = [f"{group}/v" for group in GROUPS.values()]
    yield replace(rig, foreign={**rig.foreign, **dict.fromkeys([*names, *released], ())})
    run("lvremove", "-y", *names)


def content(rig: Rig) -> bytes:
    source = rig.contents["then"].source
    assert source
    return source.read_bytes().ljust(SIZE, b"\0")


@pytest.mark.parametrize("verb", ["adopt", "release"])
@pytest.mark.parametrize("backend", GROUPS)
def test_what_is_taken_over_or_let_go_of_is_one_or_the_other(stray: Rig, backend: str, verb: str) -> None:
    """A volume, or somebody's LV without a tag of ours; never both, never neither, and the same bytes."""
    rig, wrong = stray, {}
    adopt, release = ("adopt", backend, "stray", "v"), ("release", "v")
    whole = both(rig, adopt, release)[verb]
    back(rig, backend)
    points = few(whole, f"{verb} {backend}")
    for number in points:
        if verb == "release":
            rig.run(*adopt, status=0)
        died = rig.run(*(adopt if verb == "adopt" else release), programs=True, die_at=number)
        assert died.status in (KILLED, 0), died.err
        if (found := rig.settled()) or (found := one_of_both(rig, backend)):
            wrong[f"{number}: {died.points[-1]}"] = found
        back(rig, backend)
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())


def both(rig: Rig, adopt: tuple[str, ...], release: tuple[str, ...]) -> dict[str, Ended]:
    """How each goes when nothing kills it."""
    return {argv[0]: rig.run(*argv, programs=True, status=0) for argv in (adopt, release)}


def one_of_both(rig: Rig, backend: str) -> list[str]:
    group, row = GROUPS[backend], rig.row("v")
    there = {"stray", "v"} & set(lvs(group))
    if (row is None) != (len(there) == 1) or (row and row["status"] != "available"):
        return [f"row {row}, LVs {there}"]
    name = f"{group}/volume-{row['id']}" if row else f"{group}/{there.pop()}"
    tags = words("lvs", "--noheadings", "-o", "lv_tags", name)
    with lvm_oracle.awake([name]):
        same = Path("/dev", name).read_bytes() == content(rig)
    return [f"{name} (tags {tags}), same bytes: {same}"] if not same or (tags and not row) else []


def back(rig: Rig, backend: str) -> None:
    """`stray` is somebody's again."""
    if rig.row("v"):
        rig.run("release", "v", status=0)
    alone(rig.state)
    if "v" in lvs(GROUPS[backend]):
        run("lvrename", GROUPS[backend], "v", "stray")
