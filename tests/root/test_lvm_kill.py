"""kill -9 on real LVM: at every commit, outside action and program of every verb; then one command; then all holds.

Of a verb's points a sample is taken (see `tests.sampling`): all take hours where the processor is emulated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engine.crash import KILLED, Ended
from tests.oracle import Content, Row
from tests.root import lvm_oracle
from tests.root.counted import counted
from tests.root.lvm_crash import GROUPS, Rig
from tests.root.lvm_rig import run
from tests.sampling import sampled

Verdict = Callable[["Fate"], str | None]


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one command: the row of its object before and after, the one that died, the one that did not."""

    rig: Rig
    before: Row | None
    after: Row | None
    died: Ended
    whole: Ended

    @property
    def begun(self) -> bool:
        return self.died.commits > 0

    @property
    def finished(self) -> bool:
        return self.died.commits == self.whole.commits


@dataclass(frozen=True, slots=True)
class Case:
    """One command line on backend B. `reads_as`: what its object reads as once it is finished."""

    argv: str
    object: str
    verdict: Verdict
    reads_as: str | None = None
    order: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    attached: bool = False
    cache: str | None = None
    """What is in the image cache before: nothing (`empty`), or the image (`full`)."""

    def words(self, rig: Rig, backend: str) -> list[str]:
        return self.argv.replace("B", backend).replace("QCOW2", str(rig.root / "disk.qcow2")).split()


def made(fate: Fate) -> str | None:
    """Nothing before its row was committed, a failed one before the last commit, then all of it."""
    status = None if not fate.begun else "available" if fate.finished else "error"
    return _is(fate.after, status)


def failed(fate: Fate) -> str | None:
    """A create that fails: whatever part of its undo was done, it is in `error`."""
    return _is(fate.after, "error" if fate.begun else None)


def gone(fate: Fate) -> str | None:
    return _is(fate.after, None if fate.begun else "available")


def grown(fate: Fate) -> str | None:
    assert fate.before and fate.after
    wanted = fate.before["size"] + (4 << 20 if fate.begun else 0)
    return None if fate.after["size"] == wanted else f"{fate.after['size']} bytes, not {wanted}"


def grown_in_use(fate: Fate) -> str | None:
    return grown(fate) or _is(fate.after, "in-use")


def reverted(fate: Fate) -> str | None:
    return _is(fate.after, "available")


def attached(fate: Fate) -> str | None:
    return _is(fate.after, "in-use" if fate.finished else "available")


def detached(fate: Fate) -> str | None:
    return _is(fate.after, "available" if fate.begun else "in-use")


def _is(row: Row | None, status: str | None) -> str | None:
    found = row["status"] if row else None
    return None if found == status else f"{found}, not {status} ({row and row['fault']})"


BREAK = {"flow": "volume_create_manager", "task": "CreateVolumeFromSpecTask", "half": "execute"}
FAILS = {"inject": [BREAK | {"when": "after", "error": "backend"}]}
CASES = {
    "blank": Case("create v --size 8M --backend B", "v", made),
    "from-snapshot": Case("create v --from-snapshot snap-B --size 8M --backend B", "v", made, "then"),
    "from-volume": Case("create v --from-volume src-B --backend B", "v", made, "now"),
    "from-image": Case("create v --from-image QCOW2 --size 8M --backend B", "v", made, "image", cache="empty"),
    "from-cache": Case("create v --from-image QCOW2 --size 8M --backend B", "v", made, "image", cache="full"),
    "undone": Case("create v --size 8M --backend B --max-attempts 1", "v", failed, order=FAILS, status=8),
    "delete": Case("delete bystander-B -y", "bystander-B", gone),
    "extend": Case("extend src-B +4M", "src-B", grown),
    "extend-attached": Case("extend src-B +4M", "src-B", grown_in_use, attached=True),
    "snapshot": Case("snapshot create src-B s", "s", made, "now"),
    "snapshot-delete": Case("snapshot delete extra-B -y", "extra-B", gone),
    "revert": Case("revert src-B snap-B -y", "src-B", reverted, "then"),
    "attach": Case("attach src-B --read-only", "src-B", attached),
    "detach": Case("detach src-B", "src-B", detached, attached=True),
}
THICK = ("blank", "snapshot", "delete", "extend", "extend-attached", "revert", "snapshot-delete")
BOTH = [*((name, "thin") for name in CASES), *((name, "thick") for name in THICK)]


def test_the_oracle_sees_what_is_wrong(rig: Rig) -> None:
    """Each thing that a crash might leave, made by hand."""
    group, row = GROUPS["thin"], rig.there("src-thin")
    name, lost = f"{group}/volume-{row['id']}", "volume-00000000-0000-4000-8000-000000000000"
    run("lvcreate", "-y", "-an", "-L", "4m", "-n", lost, "--addtag", "volctl", group)
    assert [line.split(" (")[0] for line in rig.settled()] == [f"{group}/{lost} has no row"]
    run("lvremove", "-y", f"{group}/{lost}")
    run("lvchange", "-ay", "-K", name)
    assert rig.settled() == [f"{name} (src-thin) is active, and not attached"]
    run("dmsetup", "suspend", f"/dev/{name}")
    assert any("is suspended" in line for line in rig.settled())
    run("dmsetup", "resume", f"/dev/{name}")
    with Path("/dev", name).open("r+b") as file:
        file.write(b"changed")
    run("lvchange", "-an", name)
    assert rig.settled("thin") == [f"{name} (src-thin) differs from its source at 0"]
    rig.write("src-thin", "now")
    home = rig.foreign[f"{group}/home"]
    Path("/dev", group, "home").write_bytes(b"changed")
    assert rig.settled("thin") == [f"{group}/home is not ours and was changed"]
    Path("/dev", group, "home").write_bytes((rig.root / "now").read_bytes()[::-1])
    assert lvm_oracle.marks([f"{group}/home"]) == {f"{group}/home": home}
    run("lvrename", name, f"{group}/away")
    assert f"{name} (src-thin) is available, but there is no such LV" in rig.settled()
    run("lvrename", f"{group}/away", name)
    assert rig.settled("thin") == []


@pytest.mark.parametrize(("name", "backend"), BOTH)
def test_killed_at_any_point_the_next_command_finds_no_leak(rig: Rig, name: str, backend: str) -> None:
    case = CASES[name]
    whole, found = one(rig, case, backend, None, None)
    assert (whole.status, found) == (case.status, []), whole.err
    points, wrong = taken(whole, f"{name} {backend}"), {}
    for number in points:
        died, found = one(rig, case, backend, number, whole)
        assert died.status in (KILLED, case.status), died.err
        if found:
            wrong[f"{number}: {died.points[-1]}"] = found
    counted(f"kills on {backend}", len(points), len(whole.points))
    rig.put_back(backend, attached=False)
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())


def taken(whole: Ended, name: str, usual: int = 31) -> Sequence[int]:
    """The numbers of the points at which to kill it."""
    return sampled(range(1, len(whole.points) + 1), name, usual)


def one(rig: Rig, case: Case, backend: str, number: int | None, whole: Ended | None) -> tuple[Ended, list[str]]:
    """The command, killed at a point; one more; and what is wrong then."""
    rig.put_back(backend, case.attached, case.cache)
    name = case.object.replace("B", backend)
    before = rig.row(name)
    died = rig.run(*case.words(rig, backend), programs=True, die_at=number, **case.order)
    return died, after(rig, case, backend, before, died, whole or died)


def after(rig: Rig, case: Case, backend: str, before: Row | None, died: Ended, whole: Ended) -> list[str]:
    name = case.object.replace("B", backend)
    contents: dict[str, Content] = {name: rig.contents[case.reads_as]} if case.reads_as else {}
    if case.verdict is reverted and died.commits == 0:
        contents = {}
    found = rig.settled(backend, **contents)
    wrong = case.verdict(Fate(rig, before, rig.row(name), died, whole))
    if case.verdict is reverted and died.commits:
        rig.write(name, "now")
    return found + ([wrong] if wrong else [])
