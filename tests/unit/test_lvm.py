"""What of LVM needs no device-mapper: reports as recorded from lvm2 2.03.16, options, arithmetic, errors."""

from __future__ import annotations

import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.lvm import Lvm
from volctl import command
from volctl.backend import Setup
from volctl.errors import (
    AccessError,
    BackendError,
    ConfigError,
    ConflictError,
    ExistsError,
    InUseError,
    MissingError,
    NoSpaceError,
)
from volctl.lvm import commands, placement, prepare, report, room, settings
from volctl.lvm.commands import AbsentError, Layout, failure
from volctl.lvm.group import Session
from volctl.lvm.report import LogicalVolume
from volctl.model import MiB, Object

VG = {
    "vg_name": "my-vg", "vg_uuid": "ASlZnm-odVI", "vg_tags": "a,volctl-db-1", "vg_extent_size": "1048576",
    "vg_size": "627048448", "vg_free": "309329920", "vg_exported": "", "vg_partial": "", "vg_clustered": "",
    "vg_shared": "", "vg_permissions": "writeable", "vg_missing_pv_count": "0",
}  # fmt: skip
PV = {
    "pv_name": "/dev/vdb", "pv_size": "313524224", "pv_free": "309329920", "pv_tags": "ssd", "pv_missing": "",
    "pv_allocatable": "allocatable",
}  # fmt: skip
LV = {
    "lv_name": "snap-a", "lv_size": "8388608", "lv_tags": "volctl", "lv_attr": "Vwi---tz-k", "origin": "volume-a",
    "origin_size": "", "pool_lv": "pool", "data_percent": "", "metadata_percent": "", "lv_metadata_size": "",
    "lv_active": "", "lv_device_open": "unknown", "lv_suspended": "unknown", "lv_kernel_major": "-1",
    "lv_kernel_minor": "-1", "lv_when_full": "", "lv_health_status": "",
}  # fmt: skip
POOL = LV | {
    "lv_name": "pool", "lv_attr": "twi-aotz--", "origin": "", "pool_lv": "", "data_percent": "0.67",
    "metadata_percent": "11.91", "lv_metadata_size": "2097152", "lv_active": "active", "lv_device_open": "open",
    "lv_suspended": "", "lv_kernel_major": "253", "lv_kernel_minor": "2", "lv_when_full": "error",
    "lv_size": "313524224", "lv_tags": "",
}  # fmt: skip
COW = LV | {
    "lv_name": "snap-t", "lv_attr": "swi-a-s--k", "origin": "volume-t", "origin_size": "12582912", "pool_lv": "",
    "data_percent": "50.29", "lv_active": "active", "lv_device_open": "", "lv_suspended": "",
}  # fmt: skip


def group(*lvs: dict[str, str], **changes: str) -> report.VolumeGroup:
    seg = [{"lv_name": lv["lv_name"], "seg_monitor": "monitored"} for lv in lvs if lv is POOL]
    part: dict[str, Any] = {"vg": [VG | changes], "pv": [PV], "lv": list(lvs), "pvseg": [], "seg": seg}
    found = report.parse(json.dumps({"report": [part]}))
    assert found
    return found


def lv(row: dict[str, str]) -> LogicalVolume:
    return group(row).lvs[0]


def test_a_report_becomes_a_group() -> None:
    found = group(POOL, LV, COW)
    assert (found.name, found.extent, found.size, found.free) == ("my-vg", MiB, 627048448, 309329920)
    assert found.tags == {"a", "volctl-db-1"} and found.writable and not (found.exported or found.partial)
    assert found.pvs[0].tags == {"ssd"} and found.pvs[0].allocatable and not found.pvs[0].missing
    assert found.snapshots("volume-t") == [found.lv("snap-t")]


def test_a_thin_snapshot_that_is_not_active_knows_no_percentage() -> None:
    snapshot = lv(LV)
    assert snapshot.is_thin and not snapshot.is_cow and (snapshot.origin, snapshot.pool) == ("volume-a", "pool")
    assert (snapshot.data_percent, snapshot.device, snapshot.active, snapshot.suspended) == (None, None, False, False)


def test_a_pool_knows_how_full_it_is_and_what_it_does_then() -> None:
    pool = lv(POOL)
    assert pool.is_pool and pool.zeroes and pool.monitored and pool.when_full == "error"
    assert (pool.data_percent, pool.metadata_percent, pool.device) == (0.67, 11.91, "253:2")


def test_the_size_of_a_thick_snapshot_is_what_one_reads() -> None:
    snapshot = lv(COW)
    assert (snapshot.size, snapshot.taken, snapshot.is_cow) == (12582912, 8388608, True)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("vg_exported", "exported", "exported"), ("vg_missing_pv_count", "1", "partial"),
     ("vg_shared", "shared", "shared"), ("vg_clustered", "clustered", "shared"),
     ("vg_permissions", "read-only", "writable")],
)  # fmt: skip
def test_the_state_of_a_group_is_seen(field: str, value: str, says: str) -> None:
    assert getattr(group(**{field: value}), says) is not getattr(group(), says)


def test_no_group_is_none() -> None:
    assert report.parse('{"report": []}') is None


# room


def fits(frees: list[int], areas: int, size: int) -> bool:
    return sum(min(free, size) for free in frees) >= areas * size


@given(st.lists(st.integers(0, 60), max_size=7), st.integers(1, 5))
def test_areas_side_by_side_are_as_large_as_they_can_be(frees: list[int], areas: int) -> None:
    best = max((size for size in range(sum(frees) + 1) if len(frees) >= areas and fits(frees, areas, size)), default=0)
    assert room.largest(frees, areas) == best


def test_the_room_of_a_mirror_is_what_its_smaller_disk_has() -> None:
    found = group()
    small = report.PhysicalVolume("/dev/vdc", 100 * MiB, 50 * MiB, frozenset(), False, True)
    stats = room.thick(found, [*found.pvs, small], copies=2, stripes=1, ours="x")
    assert (stats.total, stats.free) == (99 * MiB, 49 * MiB)


def test_two_foreign_lvs_do_not_take_a_mirror_twice() -> None:
    """One on each leg: both take the same room of it."""
    others = [LV | {"lv_name": name, "lv_tags": "", "pool_lv": "", "lv_size": str(60 * MiB)} for name in "ab"]
    pvs = [report.PhysicalVolume(name, 100 * MiB, 40 * MiB, frozenset(), False, True) for name in ("b", "c")]
    stats = room.thick(group(*others), pvs, copies=2, stripes=1, ours="volctl")
    assert (stats.total, stats.free, stats.foreign) == (99 * MiB, 39 * MiB, 60 * MiB)


def test_foreign_lvs_count() -> None:
    pvs, ours = group().pvs, LV | {"pool_lv": "", "lv_size": str(3 * MiB)}
    assert room.thick(group(), pvs, copies=1, stripes=1, ours="volctl").foreign == 4 * MiB
    assert room.thick(group(ours), pvs, copies=1, stripes=1, ours="volctl").foreign == MiB
    thin = room.thin(group(POOL, LV), lv(POOL), ours="volctl-db-2")
    assert thin.foreign == int(LV["lv_size"]) and thin.free == int(313524224 * (100 - 0.67) / 100)


# options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "volume_group = None"),
        ({"volume_group": "../etc"}, "a name that LVM takes"),
        ({"volume_group": "-vg"}, "a name that LVM takes"),
        ({"volume_group": "vg0", "provisioning": "thinn"}, "did you mean thin?"),
        ({"volume_group": "vg0", "pol": "x"}, "did you mean pool?"),
        ({"volume_group": "vg0", "pool": "pvmove0"}, "a name that LVM takes"),
        ({"volume_group": "vg0", "clear": "shred"}, "one of zero, discard, none"),
        ({"volume_group": "vg0", "mirrors": True}, "a whole number"),
        ({"volume_group": "vg0", "mirrors": 1, "provisioning": "thin"}, "thick volumes"),
        ({"volume_group": "vg0", "stripes": 0}, "from 1 to 128"),
        ({"volume_group": "vg0", "snapshot_percentage": 0}, "from 1 to 100"),
        ({"volume_group": "vg0", "pool_size": "12 parsecs"}, "a size"),
        ({"volume_group": "vg0", "pv_tags": "ssd"}, "a list of tags"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Lvm(Setup("fast", options, str(uuid.uuid4())))
    assert says in f"{error.value.message} {error.value.hint}" and "fast" in error.value.message


def test_an_owner_that_is_unknown_is_named() -> None:
    with pytest.raises(ConfigError, match="no-such-user"):
        Lvm(Setup("fast", {"volume_group": "vg0", "owner": "no-such-user"}, str(uuid.uuid4())))


def test_making_a_backend_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "on_run", lambda line: pytest.fail(line))
    pool = Lvm(Setup("fast", {"volume_group": "vg0", "capabilities": {"ssd": True}}, str(uuid.uuid4())))
    volume = Object("volume", str(uuid.uuid4()))
    assert pool.pool() == "vg0" and str(pool.path(volume)) == f"/dev/vg0/{volume.name}"
    assert pool.attached(volume) is None


def test_copies_and_stripes_become_a_segment_type() -> None:
    assert Layout().arguments == []
    assert Layout(mirrors=1).arguments == ["--type", "raid1", "--mirrors", "1"]
    assert Layout(stripes=2).arguments == ["--type", "striped", "--stripes", "2"]
    assert Layout(mirrors=1, stripes=2).arguments[:2] == ["--type", "raid10"]


# init


def steps(found: report.VolumeGroup, **options: Any) -> list[str]:
    setup = Setup("fast", {"volume_group": "my-vg", **options}, "1")
    session = Session("my-vg", "fast", "1")
    return [f"{step.todo} {step.what}" for step in prepare.plan(session, found, settings.settings(setup), Layout())]


def test_init_of_an_empty_group_makes_the_pool_and_marks() -> None:
    assert steps(group(vg_tags="")) == [
        "make the thin pool my-vg/volctl of 95 % of 598 MiB",
        "set my-vg/volctl to fail writes at once when it is full",
        "mark volume group my-vg as a pool of this database",
    ]
    assert steps(group(vg_tags=""), provisioning="thick") == ["mark volume group my-vg as a pool of this database"]
    assert steps(group(vg_tags="volctl-db-1"), provisioning="thick") == []


def test_init_takes_another_pool_as_it_is() -> None:
    queueing = POOL | {"lv_when_full": "queue"}
    assert steps(group(queueing, vg_tags=""), pool="pool") == ["mark volume group my-vg as a pool of this database"]
    ours = queueing | {"lv_tags": "volctl,volctl-db-1,volctl-pool"}
    assert len(steps(group(ours, vg_tags="volctl-db-1"), pool="pool")) == 1


@pytest.mark.parametrize(
    ("rows", "tags", "options", "says"),
    [
        ((LV,), "", {"provisioning": "thin"}, "not empty"),
        ((LV,), "", {"provisioning": "thin", "pool": "snap-a", "pool_size": "1G"}, "no thin pool"),
        ((), "volctl-db-2", {}, "another database"),
        ((LV | {"lv_tags": "volctl,volctl-db-2"},), "", {}, "another database"),
    ],
)
def test_init_refuses(rows: tuple[dict[str, str], ...], tags: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConflictError, match=says):
        steps(group(*rows, vg_tags=tags), **options)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"zero": "-", "when_full": "error"}, ["does not zero"]),
        ({"when_full": "queue"}, ["wait for 60 s"]),
        ({"health": "out_of_data"}, ["out of data"]),
        ({"data": "79.99", "metadata": "79.99"}, []),
        ({"data": "80.00"}, ["thin pool my-vg/pool is 80 % full"]),
        ({"metadata": "93.75"}, ["the metadata of thin pool my-vg/pool are 93.75 % full"]),
    ],
)
def test_what_is_wrong_with_a_pool_is_said(changes: dict[str, str], says: list[str]) -> None:
    row = POOL | {
        "lv_attr": f"twi-aot{changes.get('zero', 'z')}--",
        "lv_when_full": changes.get("when_full", "error"),
        "lv_health_status": changes.get("health", ""),
        "data_percent": changes.get("data", "1.00"),
        "metadata_percent": changes.get("metadata", "1.00"),
    }
    part = {"vg": [VG], "pv": [PV], "lv": [row], "seg": [{"lv_name": "pool", "seg_monitor": "monitored"}]}
    found = report.parse(json.dumps({"report": [part]}))
    assert found
    options = settings.settings(Setup("fast", {"volume_group": "my-vg", "pool": "pool"}, "1"))
    problems = [problem for problem in placement.problems(options, found) if "thin_check" not in problem.message]
    assert len(problems) == len(says) and all(word in p.message for word, p in zip(says, problems, strict=True))


@pytest.mark.parametrize(
    ("health", "percent", "kind", "says"),
    [
        ("", "99.9", BackendError, "^it broke$"),
        ("metadata_read_only", "100.00", NoSpaceError, "metadata of thin pool my-vg/pool are full: it broke"),
        ("metadata_read_only", "40.00", BackendError, "thin pool my-vg/pool is metadata read only: it broke"),
        ("out_of_data", "40.00", NoSpaceError, "thin pool my-vg/pool is full: it broke"),
        ("failed", "", BackendError, "thin pool my-vg/pool is failed: it broke"),
    ],
)
@pytest.mark.parametrize("heard", [BackendError, NoSpaceError])
def test_an_error_is_explained_by_the_state_of_the_pool(
    health: str, percent: str, kind: type[Exception], says: str, heard: type[BackendError] | type[NoSpaceError]
) -> None:
    """LVM and the kernel call it full or broken as it comes."""
    options = settings.settings(Setup("fast", {"volume_group": "my-vg", "pool": "pool"}, "1"))
    pool = POOL | {"lv_health_status": health, "metadata_percent": percent}
    error = placement.explained(options, group(pool), heard("it broke"))
    assert type(error) is (kind if health else heard) and re.search(says, error.message)


# errors


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('Volume group "vg" has insufficient free space (564 extents): 102400 required.', NoSpaceError),
        ("Insufficient suitable allocatable extents for logical volume x: 3 more required", NoSpaceError),
        ("Free space in pool vg/pool is above threshold, cannot create: reached threshold.", NoSpaceError),
        ('Logical Volume "volume-a" already exists in volume group "my-vg"', ExistsError),
        ('Failed to find logical volume "my-vg/clone-a"', AbsentError),
        ("Logical volume my-vg/volume-full in use.", InUseError),
        ("Logical volume vg/x contains a filesystem in use.", InUseError),
        ("striped: Required device-mapper target(s) not detected in your kernel.", MissingError),
        ("/dev/vg: Permission denied", AccessError),
        ("Something else broke", BackendError),
    ],
)
def test_what_lvm_says_has_a_kind(said: str, kind: type[Exception]) -> None:
    text = f"  WARNING: Sum of all thin volume sizes exceeds the size\n  {said}\n  Run `lvcreate --help' for more.\n"
    error = failure("lvcreate in volume group my-vg", command.Result(5, "", text))
    assert type(error) is kind and said in error.message


def test_an_lvm_that_hangs_is_no_group_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another LVM command holds the group's lock and waits for a device, say."""
    (tmp_path / "lvm").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "lvm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(commands, "LOOK", 0.2)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(BackendError, match=r"did not end within 0\.2 s"):
        commands.Group("my-vg").report()
