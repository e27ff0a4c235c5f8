"""`doctor` on real LVM: damage done by hand is named and put right; what is not ours, or lives, is left alone."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.backends.conformance import stranger
from tests.root import lvm_oracle
from tests.root.lvm_rig import lvs, run, volume_group, words
from tests.root.warm import Warm, digest, foreign, image, new_volume

GROUP = "doctor-group"
AWAKE = "lv_active=active && lv_name=~^(volume|snap|image|revert)"


@pytest.fixture(params=["thin", "thick"])
def on(request: pytest.FixtureRequest, warm: Warm, disks: list[Path]) -> Iterator[Warm]:
    """A prepared group with LVs of others in it: `home` is active, one is a volume of another database."""
    with volume_group(disks[:2], GROUP):
        foreign(GROUP)
        sized: dict[str, Any] = {"pool_size": "300M"} if request.param == "thin" else {}
        warm.configure(GROUP, cached=50, provisioning=request.param, **sized)
        make_lv(f"volume-{uuid.uuid4()}", "--addtag", f"volctl-db-{uuid.uuid4()}", "--addtag", "volctl")
        yield warm


def make_lv(name: str, *args: str) -> None:
    run("lvcreate", "-y", "-an", "-Wn", "-Zn", "-L", "4m", "-n", name, *args, GROUP)


def doctor(on: Warm, *args: str, status: int = 0) -> Any:
    return on("doctor", "--json", *args, status=status).json()


def told(findings: Sequence[Any]) -> set[tuple[str, str]]:
    return {(finding["kind"], finding["object"]) for finding in findings}


@dataclass(frozen=True, slots=True)
class Victim:
    """A volume for one kind of damage. `other` is its snapshot's id, or that of the cached image it was made from."""

    warm: Warm
    id: str
    other: str = ""

    @property
    def name(self) -> str:
        return f"volume-{self.id}"

    @property
    def lv(self) -> str:
        return f"{GROUP}/{self.name}"

    def tags(self, kind: str, number: str) -> list[str]:
        """Options that make an LV an object of ours."""
        tags = ("volctl", self.mark, f"volctl-{kind}", f"volctl-id-{number}")
        return [word for tag in tags for word in ("--addtag", tag)]

    @property
    def mark(self) -> str:
        return words("vgs", "--noheadings", "-o", "vg_tags", GROUP)[0]

    def sql(self, text: str) -> None:
        with closing(sqlite3.connect(self.warm.database)) as db, db:
            db.execute("PRAGMA foreign_keys = OFF")
            db.execute(text, {"id": self.id, "other": self.other, "fault": '{"code": "backend", "message": "x"}'})


Damage = Callable[[Victim], list[str]]
"""Does it, and gives the names of the objects that findings of its kind must be about."""
DAMAGES: list[tuple[str, str, bool, Damage]] = []


def damage(kind: str, needs: str = "", *, thick: bool = False) -> Callable[[Damage], Damage]:
    """All are done on thin, and on `thick` what LVM does in another way there."""

    def keep(function: Damage) -> Damage:
        DAMAGES.append((kind, needs, thick, function))
        return function

    return keep


@damage("volume_object", thick=True)
def its_lv_is_removed(at: Victim) -> list[str]:
    run("lvremove", "-y", at.lv)
    return [at.name]


@damage("volume_object", thick=True)
def its_lv_is_cut(at: Victim) -> list[str]:
    run("lvreduce", "-y", "-f", "-L", "2m", at.lv)
    return [at.name]


@damage("volume_object", thick=True)
def its_lv_has_grown(at: Victim) -> list[str]:
    run("lvextend", "-y", "-L", "+4m", at.lv)
    return [at.name]


@damage("volume_object")
def its_lv_is_renamed(at: Victim) -> list[str]:
    run("lvrename", at.lv, "away")
    return [at.name]


@damage("volume_object")
def its_lv_lost_the_mark(at: Victim) -> list[str]:
    run("lvchange", "--deltag", at.mark, at.lv)
    return [at.name]


@damage("volume_object", needs="attached")
def its_lv_is_removed_while_it_is_attached(at: Victim) -> list[str]:
    run("lvremove", "-y", at.lv)
    return [at.name]


@damage("snapshot_object", needs="snapshot", thick=True)
def the_lv_of_its_snapshot_is_removed(at: Victim) -> list[str]:
    run("lvremove", "-y", f"{GROUP}/snap-{at.other}")
    return [f"snap-{at.other}"]


@damage("orphan")
def its_row_is_deleted(at: Victim) -> list[str]:
    at.sql("DELETE FROM volumes WHERE id = :id")
    return [at.name]


@damage("orphan", needs="snapshot", thick=True)
def the_row_of_its_snapshot_is_deleted(at: Victim) -> list[str]:
    at.sql("DELETE FROM snapshots WHERE id = :other")
    return [f"snap-{at.other}"]


@damage("orphan", needs="snapshot", thick=True)
def its_row_is_deleted_and_it_has_a_snapshot(at: Victim) -> list[str]:
    at.sql("DELETE FROM volumes WHERE id = :id")
    return [at.name, f"snap-{at.other}"]


@damage("orphan", needs="attached")
def its_row_is_deleted_while_it_is_attached(at: Victim) -> list[str]:
    at.sql("DELETE FROM volumes WHERE id = :id")
    return [at.name]


@damage("orphan")
def lvs_of_ours_that_nobody_knows(at: Victim) -> list[str]:
    names = [f"{kind}-{uuid.uuid4()}" for kind in ("volume", "snap", "image")]
    for name in names:
        kind, _, number = name.partition("-")
        make_lv(name, *at.tags(kind, number))
    return names


@damage("orphan")
def what_a_failed_create_left(at: Victim) -> list[str]:
    at.sql("UPDATE volumes SET status = 'error', available_at = NULL, fault = :fault WHERE id = :id")
    return [at.name]


@damage("device", thick=True)
def its_lv_is_active(at: Victim) -> list[str]:
    run("lvchange", "-ay", "-K", at.lv)
    return [at.name]


@damage("device", thick=True)
def its_device_is_suspended(at: Victim) -> list[str]:
    run("lvchange", "-ay", "-K", at.lv)
    run("udevadm", "settle")
    run("dmsetup", "suspend", f"/dev/{at.lv}")
    return [at.name]


@damage("device", needs="attached")
def its_device_waits_while_it_is_attached(at: Victim) -> list[str]:
    run("dmsetup", "suspend", f"/dev/{at.lv}")
    return [at.name]


@damage("attachment", needs="attached")
def its_device_is_gone(at: Victim) -> list[str]:
    run("lvchange", "-an", at.lv)
    return [at.name]


@damage("attachment", needs="attached")
def its_device_is_read_only(at: Victim) -> list[str]:
    run("lvchange", "-pr", at.lv)
    return [at.name]


@damage("leftover")
def half_a_revert(at: Victim) -> list[str]:
    make_lv(f"revert-{at.id}", *at.tags("volume", at.id))
    return [f"revert-{at.id}"]


@damage("status")
def it_is_creating_for_ever(at: Victim) -> list[str]:
    at.sql("UPDATE volumes SET status = 'creating' WHERE id = :id")
    return [at.name]


@damage("cached_image", needs="image")
def the_cached_image_is_removed(at: Victim) -> list[str]:
    run("lvremove", "-y", f"{GROUP}/image-{at.other}")
    return [f"image-{at.other}"]


@damage("cached_image", needs="image")
def the_cached_image_is_cut(at: Victim) -> list[str]:
    run("lvreduce", "-y", "-f", "-L", "2m", f"{GROUP}/image-{at.other}")
    return [f"image-{at.other}"]


def victims(on: Warm, tmp_path: Path, thin: bool) -> Iterator[tuple[str, Damage, Victim]]:
    """A volume for each damage that can be done here, with what it needs."""
    damages = [(kind, needs, act) for kind, needs, thick, act in DAMAGES if thin or thick]
    plain = on("create", "v", "--size", "4M", "--count", str(len(damages)), "--json").json()
    for (kind, needs, act), volume in zip(damages, plain, strict=True):
        other = ""
        if needs == "attached":
            on("attach", volume["id"])
        elif needs == "snapshot":
            other = on("snapshot", "create", volume["id"], "--json").json()["id"]
        elif needs == "image":
            on("create", "--from-image", image(tmp_path / act.__name__, 4), "-q")
            other = on("image", "cache", "list", "--json").json()[-1]["id"]
        yield kind, act, Victim(on, volume["id"], other)


def test_damage_is_named_and_put_right(on: Warm, tmp_path: Path) -> None:
    """All of it at once: nothing is named that was not damaged, nothing is missed, and nothing of others is touched."""
    thin = "volctl" in lvs(GROUP)
    prepared = list(victims(on, tmp_path, thin))
    assert doctor(on) == []
    theirs = lvm_oracle.marks([f"{GROUP}/home"])
    foreign_before = {finding["object"] for finding in doctor(on, "--foreign")}
    wanted = {(kind, name) for kind, act, victim in prepared for name in act(victim)}
    assert told(doctor(on, status=12)) == wanted
    fixed = doctor(on, "--fix", "--yes")
    assert told(fixed) == wanted and [finding for finding in fixed if not finding["fixed"]] == []
    now_foreign = {finding["object"] for finding in doctor(on, "--foreign")} - foreign_before
    unmarked = {victim.name for _, act, victim in prepared if act is its_lv_lost_the_mark}
    assert now_foreign == (unmarked | {"away"} if thin else set())
    assert len(bury(on, now_foreign)) == (7 if thin else 2)
    known = dict.fromkeys((f"{GROUP}/{name}" for name in foreign_before), ())
    quota = on("quota", "show", "--json").json()
    world = lvm_oracle.World(on.home / "state", {"fast": GROUP}, foreign={**known, **theirs}, quota=quota)
    assert [line for line in lvm_oracle.check(world) if not line.startswith("event ")] == []  # some rows were changed
    assert lvm_oracle.marks([f"{GROUP}/home"]) == theirs


def bury(on: Warm, lost: set[str]) -> list[str]:
    """What is in `error` can be deleted, once LVs that are nobody's are out of the way."""
    if lost:
        run("lvremove", "-y", *[f"{GROUP}/{name}" for name in lost])
    in_error: list[str] = [row["id"] for row in on("list", "--status", "error", "--json").json()]
    on("snapshot", "delete", *[row["id"] for row in on("snapshot", "list", "--json").json()], "-y")
    on("delete", *in_error, "-y")
    return in_error


def test_what_somebody_holds_is_left(on: Warm) -> None:
    volume = on("create", "v", "--size", "4M", "--json").json()["id"]
    at = Victim(on, volume)
    run("lvchange", "-ay", "-K", at.lv)
    with stranger("import sys; f = open(sys.argv[1])", f"/dev/{at.lv}") as pid:
        for _ in range(2):
            (finding,) = doctor(on, "--fix", "--yes", status=12)
            assert f"(pid {pid})" in finding["problem"] and "not put right" in finding["problem"]
            at.sql("DELETE FROM volumes")  # and then as an orphan
        assert at.name in lvs(GROUP)
    run("udevadm", "settle")
    assert told(doctor(on, "--fix", "--yes")) == {("orphan", at.name)}
    assert doctor(on) == []


def test_the_work_of_a_live_command_is_no_difference(on: Warm, tmp_path: Path) -> None:
    source = image(tmp_path / "image", 32)
    kind = "image" if "volctl" in lvs(GROUP) else "volume"
    copying = on.start("create", "v", "--from-image", source)
    volume = new_volume(GROUP, set(), kind)
    assert volume.name in lvs(GROUP)  # which waits for lvcreate to end
    run("dmsetup", "suspend", volume)
    try:
        for _ in range(2):
            assert doctor(on, "--fix", "--yes") == []
    finally:
        run("dmsetup", "resume", volume)
    done = on.join(copying)
    assert done.status == 0, done.err
    assert digest(Path(on("attach", "v", "-q").out.strip())) == digest(source)
    on("detach", "v")
    assert doctor(on) == []


Undo = Callable[[], object]


def without_mark() -> Undo:
    mark = words("vgs", "--noheadings", "-o", "vg_tags", GROUP)[0]
    run("vgchange", "--deltag", mark, GROUP)
    return lambda: run("vgchange", "--addtag", mark, GROUP)


def renamed() -> Undo:
    run("vgrename", GROUP, "elsewhere")
    return lambda: run("vgrename", "elsewhere", GROUP)


def exported() -> Undo:
    run("vgchange", "-an", GROUP)
    run("vgexport", GROUP)
    return lambda: run("vgimport", GROUP)


@pytest.mark.parametrize("on", ["thick"], indirect=True)
def test_a_group_that_cannot_be_used_is_one_difference(on: Warm) -> None:
    """What was on it is not taken for gone."""
    on("create", "v", "--size", "4M")
    for act, said in ((without_mark, "not initialised"), (renamed, "is not there"), (exported, "is exported")):
        undo = act()
        for fix in ([], ["--fix", "--yes"]):
            (finding,) = doctor(on, *fix, status=12)
            assert (finding["kind"], finding["object"], finding["fix"]) == ("backend", "fast", None)
            assert said in finding["problem"]
        undo()
        assert doctor(on) == []
    assert on.show("v")["status"] == "available"


@pytest.mark.parametrize("on", ["thin"], indirect=True)
def test_a_pool_that_is_gone_took_its_volumes_with_it(on: Warm) -> None:
    on("create", "v", "--size", "4M")
    lost = on.lv("v")
    run("lvremove", "-y", f"{GROUP}/volctl")
    assert told(doctor(on, status=12)) == {("backend", "fast"), ("volume_object", lost)}
    assert told(doctor(on, "--fix", status=12)) == {("backend", "fast"), ("volume_object", lost)}
    assert told(doctor(on, status=12)) == {("backend", "fast")}
    assert on.show("v")["fault"]["code"] == "drift"
    run("lvremove", "-y", *[f"{GROUP}/{name}" for name in lvs(GROUP, "lv_name!=home")])  # another database's
    on("backend", "init", "fast", "-y")
    on("delete", "v", "-y")
    assert doctor(on) == []
