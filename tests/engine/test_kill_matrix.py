"""kill -9 at every instant of every verb, then one command, then all of SPEC section 11 holds.

The instants: before and after every commit and every outside action, of going forward and of undoing,
and before each file that is made, renamed, cut, locked or removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.engine.crash import KILLED, Ended, Rig, Zygote, scratch
from tests.oracle import Content
from tests.sampling import numbers, sampled, stride

Verdict = Callable[[Rig, Ended, Ended], str | None]
"""(the world after one more command, the command that died, the same one that did not) → what is wrong."""


@dataclass(frozen=True, slots=True)
class Case:
    """One command line in one world. `least` kill points, so that the check cannot pass emptily."""

    argv: str
    verdict: Verdict
    least: int
    prepare: Callable[[Rig], None] = lambda rig: None
    order: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    reads_as: dict[str, str] = field(default_factory=dict)
    """What objects read as at the end, other than at the beginning."""
    ignores: str | None = None
    """What the oracle says of damage that was done by hand, and that a command which died did not come to see."""

    def words(self, rig: Rig) -> list[str]:
        return rig.words(self.argv)

    def contents(self, rig: Rig) -> dict[str, Content]:
        return {name: rig.contents[what] for name, what in self.reads_as.items()}


# -- what must have become of it


def made(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """A create: nothing before its row was committed, a failed volume before the last commit, then all of it."""
    return _created(rig.volume("v"), died, whole, ("cancelled",))


def made_elsewhere(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """The same where the first backend failed: death in its undo leaves the backend's reason."""
    return _created(rig.volume("v"), died, whole, ("cancelled", "backend"))


def snapshot_made(rig: Rig, died: Ended, whole: Ended) -> str | None:
    return _created(rig.snapshot("s"), died, whole, ("cancelled",))


def _created(row: dict[str, Any] | None, died: Ended, whole: Ended, codes: tuple[str, ...]) -> str | None:
    if died.commits == 0:
        return f"not committed, but there is {row}" if row else None
    if row is None:
        return "committed, but there is no row"
    status = "available" if died.commits == whole.commits else "error"
    if row["status"] != status:
        return f"{row['status']}, not {status}, after {died.commits} of {whole.commits} commits"
    if status == "error" and row["fault"]["code"] not in codes:
        return f"fault {row['fault']}"
    return None


def failed(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """A create that fails everywhere: never anything but `error`, with an attempt for each undo that was done."""
    row = rig.volume("v")
    if died.commits == 0:
        return f"not committed, but there is {row}" if row else None
    return None if row and row["status"] == "error" else f"there is {row}"


def each_for_itself(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """Of several, at most one is in `error`: the last that was begun."""
    states = [row["status"] for name in ("v-1", "v-2") if (row := rig.volume(name))]
    allowed: tuple[list[str], ...] = [], ["error"], ["available"], ["available", "error"], ["available", "available"]
    return None if states in allowed else f"there are {states}"


def cancelled(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """A create that was cancelled leaves nothing once its undo was begun; before, it died like any other."""
    row = rig.volume("v")
    if died.commits == 0 or any(point.startswith("before undo") for point in died.points):
        return f"cancelled, but there is {row}" if row else None
    return None if row is None or row["status"] == "error" else f"there is {row['status']}"


def deleted(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """A delete: as before until its first commit, gone after one more command since."""
    row = rig.volume("bystander")
    if died.commits == 0:
        return None if row and row["status"] == "available" else f"not committed, but there is {row}"
    return f"committed, but there is {row}" if row else None


def cascaded(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """Snapshots one by one, then the volume: what was not begun is untouched."""
    tables = oracle.load(rig.state)
    faults = [row for row in (*tables["volumes"], *tables["snapshots"]) if row["status"] != "available"]
    if died.commits == whole.commits and rig.volume("src"):
        return "the volume is still there"
    if died.commits == 0 and len(tables["snapshots"]) != 2:
        return "nothing was committed, but snapshots are gone"
    return f"not available: {faults}" if faults else None


def snapshot_deleted(rig: Rig, died: Ended, whole: Ended) -> str | None:
    there = rig.snapshot("snap") is not None
    return None if there == (died.commits == 0) else f"after {died.commits} commits the snapshot is there: {there}"


def extended(rig: Rig, died: Ended, whole: Ended) -> str | None:
    size = rig.there("src")["size"]
    wanted = 2 * 1024**2 if died.commits == 0 else 5 * 1024**2
    return None if size == wanted else f"{size} bytes after {died.commits} commits"


def reverted(rig: Rig, died: Ended, whole: Ended) -> str | None:
    wanted = rig.contents["src" if died.commits == 0 else "then"]
    return rig.differs("src", wanted)


def attached(rig: Rig, died: Ended, whole: Ended) -> str | None:
    return _is_in_use(rig, died.commits == whole.commits)


def detached(rig: Rig, died: Ended, whole: Ended) -> str | None:
    return _is_in_use(rig, died.commits == 0)


def _is_in_use(rig: Rig, wanted: bool) -> str | None:
    row = rig.there("src")
    there = any(rig.pools[row["backend"]].glob(f"device-*{row['id']}"))
    right = (row["status"], bool(row["attachments"]), there) == ("in-use" if wanted else "available", wanted, wanted)
    return None if right else f"{row['status']} at {row['attachments']}, a device is there: {there}"


def grown_in_use(rig: Rig, died: Ended, whole: Ended) -> str | None:
    return extended(rig, died, whole) or _is_in_use(rig, True)


def image_added(rig: Rig, died: Ended, whole: Ended) -> str | None:
    there = any(row["name"] == "i" for row in oracle.load(rig.state)["images"])
    done = died.commits == whole.commits
    return None if there == done else f"after {died.commits} of {whole.commits} commits the image is there: {there}"


def fetched_and_made(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """Nothing, a failed volume, or all of it; and the same command succeeds whatever is left to go on with."""
    row = rig.volume("v")
    if row and row["status"] != ("available" if died.commits == whole.commits else "error"):
        return f"{row['status']} after {died.commits} of {whole.commits} commits"
    again = rig.run("create", "again", "--from-image", rig.page, "--size", "3M")
    found = rig.check(again=rig.contents["image"], v=rig.contents["image"])
    return f"again: exit {again.status}, {again.err}, {found}" if again.status or found else None


def image_deleted(rig: Rig, died: Ended, whole: Ended) -> str | None:
    there = bool(oracle.load(rig.state)["images"])
    return None if there == (died.commits == 0) else f"after {died.commits} commits the image is there: {there}"


def image_renewed(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """As it was, or as the server has it, and only that is taken for good; the same command succeeds."""
    before = rig.run("create", "v", "--from-image", "i", "--size", "3M")
    if before.status and died.commits == whole.commits:
        return f"after {died.commits} of {whole.commits} commits a create ends with {before.status}: {before.err}"
    again = rig.run("image", "refresh", "i")
    made = rig.run("create", "again", "--from-image", "i", "--size", "3M")
    found = rig.check(again=rig.contents["image"], v=rig.contents["image"])
    stored = len(os.listdir(rig.state / "images"))
    wrong = again.status or made.status or found or stored != 2
    return f"again: exit {again.status}, {again.err}, {made.err}, {found}, {stored} files" if wrong else None


def image_saved(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """Whole under its name or not there, and nothing beside it."""
    file, done = rig.root / "saved", died.commits == whole.commits
    if left := [name for name in os.listdir(rig.root) if name.startswith(".volctl")]:
        return f"{left} are left"
    if file.exists() != done:
        return f"after {died.commits} of {whole.commits} commits the file is there: {file.exists()}"
    return oracle.differs(file, rig.contents["src"]) if done else None


def image_replaced(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """The old file or the new one."""
    file = rig.root / "saved"
    if left := [name for name in os.listdir(rig.root) if name.startswith(".volctl")]:
        return f"{left} are left"
    if died.commits < whole.commits and file.read_bytes() == b"before":
        return None
    return oracle.differs(file, rig.contents["then"])


# -- the worlds


def is_taken(rig: Rig) -> None:
    (rig.root / "saved").write_bytes(b"before")


def is_damaged(rig: Rig) -> None:
    """An image of a URL whose file is not what was fetched any more."""
    rig.run("image", "add", "i", rig.page, status=0)
    (row,) = [row for row in oracle.load(rig.state)["images"] if row["name"] == "i"]
    Path(row["location"]).write_bytes(b"damaged")


def is_attached(rig: Rig) -> None:
    rig.run("attach", "src", status=0)


def a_fails(rig: Rig) -> None:
    rig.order("a", create="no such luck")


def a_fails_late(rig: Rig) -> None:
    rig.order("a", clone={"error": "no_space", "message": "full", "after": True})


def both_fail(rig: Rig) -> None:
    rig.order("a", create="no such luck")
    rig.order("b", create={"message": "nor here", "after": True})


INTERRUPT = {"signals": {"before CreateVolumeFromSpecTask": 2}}
EXPIRE = {"signals": {"before CreateVolumeFromSpecTask": "expire"}}
CASES = {
    "blank": Case("create v --size 3M", made, 14),
    "from-snapshot": Case("create v --from-snapshot snap --size 3M", made, 15, reads_as={"v": "then"}),
    "from-volume": Case("create v --from-volume src", made, 15, reads_as={"v": "src"}),
    "from-image": Case("create v --from-image QCOW2 --size 3M", made, 15, reads_as={"v": "image"}),
    "from-registered": Case("create v --from-image registered", made, 15, reads_as={"v": "image"}),
    "from-url": Case("create v --from-image URL --size 3M", fetched_and_made, 40, reads_as={"v": "image"}),
    "across": Case("create v --from-snapshot snap --backend b --size 3M", made, 15, reads_as={"v": "then"}),
    "rescheduled": Case("create v --size 3M", made_elsewhere, 28, a_fails),
    "failed": Case("create v --size 3M", failed, 42, both_fail, status=8),
    "one-attempt": Case("create v --size 3M --max-attempts 1", failed, 18, a_fails, status=8),
    "clone-fails": Case("create v --from-volume src", failed, 28, a_fails_late, status=6),
    "interrupted": Case("create v --size 3M", cancelled, 16, order=INTERRUPT, status=130),
    "timed-out": Case("create v --size 3M", cancelled, 16, order=EXPIRE, status=124),
    "several": Case("create v --size 3M --count 2", each_for_itself, 28),
    "delete": Case("delete bystander -y", deleted, 9),
    "delete-cascade": Case("delete src --cascade -y", cascaded, 24),
    "extend": Case("extend src 5M", extended, 7),
    "snapshot": Case("snapshot create src s", snapshot_made, 10, reads_as={"s": "src"}),
    "snapshot-delete": Case("snapshot delete snap -y", snapshot_deleted, 8),
    "revert": Case("revert src snap -y", reverted, 10),
    "attach": Case("attach src --read-only", attached, 8),
    "detach": Case("detach src", detached, 8, is_attached),
    "extend-attached": Case("extend src 5M", grown_in_use, 7, is_attached),
    "image-add": Case("image add i RAW --copy", image_added, 9),
    "image-refresh": Case("image refresh i", image_renewed, 40, is_damaged, ignores="image i has 7 bytes"),
    "image-save": Case("image save src ROOT/saved", image_saved, 15),
    "image-replace": Case("image save snap ROOT/saved --force", image_replaced, 15, is_taken),
    "image-delete": Case("image delete registered -y", image_deleted, 8),
}


USUAL, SETTLED = 6, 3  # of so many points one is taken

SETTLES = {"blank": 18, "rescheduled": 40, "interrupted": 22, "delete": 14, "extend": 14, "revert": 14}
"""The cases whose settle is killed, too, and how many kills there are at least."""


@contextmanager
def prepared(world: Rig, case: Case) -> Iterator[Rig]:
    with world.copy() as rig:
        case.prepare(rig)
        yield rig


def uncut(world: Rig, case: Case) -> Ended:
    """The command that nobody kills: it must do its work, and say how many points there are."""
    with prepared(world, case) as rig:
        whole = rig.run(*case.words(rig), files=True, status=case.status, **case.order)
        assert after(rig, case, whole, whole) == []
    assert len(whole.points) >= case.least, whole.points
    return whole


def after(rig: Rig, case: Case, died: Ended, whole: Ended) -> list[str]:
    """One more command, the oracle, and what must have become of this very case."""
    contents = case.contents(rig)
    if case.verdict is reverted and died.commits:
        contents["src"] = rig.contents["then"]
    found = [line for line in rig.check(**contents) if case.ignores is None or case.ignores not in line]
    wrong = case.verdict(rig, died, whole)
    return found + ([wrong] if wrong else [])


@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_point_the_next_command_finds_no_leak(world: Rig, name: str) -> None:
    kill_everywhere(world, CASES[name], name)


@pytest.mark.parametrize("name", ["from-volume", "from-image", "delete", "extend", "snapshot", "revert"])
def test_the_same_on_loop_files(loop_world: Rig, name: str) -> None:
    kill_everywhere(loop_world, CASES[name], f"{name} on loop")


ON_QCOW2 = [
    *("from-snapshot", "from-volume", "from-image", "across", "snapshot", "snapshot-delete"),
    *("delete", "delete-cascade", "extend", "revert"),
]


@pytest.mark.parametrize("name", ON_QCOW2)
def test_the_same_on_qcow2_files(qcow2_world: Rig, name: str) -> None:
    kill_everywhere(qcow2_world, CASES[name], f"{name} on qcow2")


def kill_everywhere(world: Rig, case: Case, name: str) -> None:
    """At a sample of its points: `make torture` takes all."""
    _, wrong = killed_everywhere(world, case, name, USUAL)
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())


def killed_everywhere(
    world: Rig, case: Case, name: str, usual: int, first: bool = False
) -> tuple[int, dict[str, list[str]]]:
    """How many points there are, and what was wrong after which of the sample; `first` stops there."""
    whole = uncut(world, case)
    wrong: dict[str, list[str]] = {}
    for number in sampled(range(1, len(whole.points) + 1), name, usual):
        with prepared(world, case) as rig:
            died = rig.run(*case.words(rig), files=True, die_at=number, status=KILLED, **case.order)
            if found := after(rig, case, died, whole):
                wrong[f"{number}: {died.points[-1]}"] = found
        if wrong and first:
            break
    return len(whole.points), wrong


@pytest.mark.parametrize(("name", "least"), SETTLES.items())
def test_a_settle_that_is_killed_is_settled_by_the_next(world: Rig, name: str, least: int) -> None:
    """Killed after each commit and outside action, and then before and after each of the settle."""
    settle_killed_everywhere(world, CASES[name], name, least)


def settle_killed_everywhere(world: Rig, case: Case, name: str, least: int) -> None:
    """At a sample of both points; `least` is how many pairs there are in all."""
    whole = uncut(world, case)
    wrong, cases = {}, 0
    deaths = [number for number, point in enumerate(whole.points, 1) if point.startswith("after")]
    for number in sampled(deaths, f"{name} first", SETTLED):
        for second in numbers(f"{name} {number} second", SETTLED):
            with prepared(world, case) as rig:
                died = rig.run(*case.words(rig), files=True, die_at=number, status=KILLED, **case.order)
                settling = rig.run("list", "--json", die_at=second)
                if settling.status != KILLED:
                    break
                cases += 1
                if found := after(rig, case, died, whole):
                    wrong[f"{died.points[-1]}, then {settling.points[-1]}"] = found
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())
    assert cases >= least // (2 * stride(SETTLED) ** 2)


def test_a_first_run_that_is_killed_is_begun_again_by_the_next(zygote: Zygote) -> None:
    """No state directory, no configuration: the database, the built-in loop backend, the volume."""
    with scratch() as root:
        (root / "empty.toml").touch()
        wrong = {}
        for number in numbers("first run", USUAL, 25):
            first = Rig(zygote, root / str(number), {}, names=("local",))
            died = first.bare(root / "empty.toml", "create", "v", "--size", "3M", files=True, die_at=number)
            if died.status != KILLED:
                break
            if found := _first_run(first, root / "empty.toml", died):
                wrong[f"{number}: {died.points[-1]}"] = found
        assert died.status == 0 and number > 25
        assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())


def _first_run(rig: Rig, config: Path, died: Ended) -> list[str]:
    again = rig.bare(config, "create", "v", "--size", "3M", "--if-absent", "--json")
    if again.status:
        return [f"exit {again.status}: {again.err}"]
    found = oracle.check(oracle.World(rig.state, {"local": rig.state / "volumes"}))
    return found if again.json()["status"] == "available" else [*found, again.out]
