"""What must always hold (SPEC, section 11) where volumes are LVs; from outside, shares no code with volctl.

To be run when no command runs and one more has run since the last one died:

    problems = check(World(state, {"fast": "vg0"}, contents={"data": Content(Path("disk.raw"))}))
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import oracle
from tests.oracle import ZEROS, Content, Row
from tests.root.lvm_rig import run

FIELDS = "vg_name,lv_name,lv_size,origin_size,lv_tags,lv_attr,lv_active,pool_lv"
MAPPED = re.compile(r"(?:volume|snap|image|revert)(?:--[0-9a-f]+){5}")
"""An LV of ours in a device-mapper name, where hyphens are doubled."""
POOL = {"volctl", "[volctl_tdata]", "[volctl_tmeta]", "[lvol0_pmspare]"}
POOL_PARTS = ("_tdata", "_tmeta")
"""Devices under a pool: seen with a table that waits after LVM's own lvremove, on a machine with much else to do."""
Marks = Mapping[str, tuple[str, ...]]
"""Of LVs that are not ours, by group/name: size, tags, digest."""


@dataclass(frozen=True, slots=True)
class World:
    """What the test knows: the group of each backend, what objects of those names read as, `marks` from before.

    Contents are read in the groups of `reads` only. `quota` is what `volctl quota show --json` printed.
    """

    state: Path
    groups: Mapping[str, str]
    contents: Mapping[str, Content] = field(default_factory=dict)
    foreign: Marks = field(default_factory=dict)
    reads: Collection[str] = ()
    quota: Sequence[Row] | None = None


def check(world: World) -> list[str]:
    """Every violation, a sentence each; empty when all holds."""
    tables, present = oracle.load(world.state), report(world.groups.values())
    found = oracle.check_rows(oracle.World(world.state, {}, quota=world.quota), tables)
    wanted = dict(_wanted(world, tables))
    found += [*_there(wanted, present), *_left(world, wanted, present), *_mapped(present), *_loops()]
    return found or list(_contents(world, wanted, present))


def report(groups: Collection[str]) -> dict[str, dict[str, Any]]:
    """LVs by group/name, hidden ones in brackets, as `lvs` tells them."""
    told = run("lvs", "-a", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", FIELDS, *groups)
    return {f"{lv['vg_name']}/{lv['lv_name']}": lv for lv in json.loads(told)["report"][0]["lv"]}


def _wanted(world: World, tables: dict[str, list[Row]]) -> Iterator[tuple[str, Row]]:
    """The rows that stand for an LV, by group/name."""
    volumes = {row["id"]: row for row in tables["volumes"]}
    rows = [("volume", row) for row in tables["volumes"]]
    rows += [("snap", row | {"backend": volumes[row["volume_id"]]["backend"]}) for row in tables["snapshots"]]
    rows += [("image", row | {"name": row["location"]}) for row in tables["cached_images"]]
    for kind, row in rows:
        if row["backend"] in world.groups and not oracle.never_was(row):
            yield f"{world.groups[row['backend']]}/{kind}-{row['id']}", row | {"kind": kind}


def _there(wanted: Mapping[str, Row], present: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    for name, row in wanted.items():
        if (lv := present.get(name)) is None:
            yield f"{name} ({row['name']}) is {row['status']}, but there is no such LV"
            continue
        cow = lv["lv_attr"][0] in "sS" and not lv["pool_lv"]
        size = int(lv["origin_size" if cow else "lv_size"])
        if size != row["size"]:
            yield f"{name} ({row['name']}) has {size} bytes, its row says {row['size']}"
        if not {"volctl", f"volctl-id-{row['id']}", f"volctl-{row['kind']}"} <= set(lv["lv_tags"].split(",")):
            yield f"{name} ({row['name']}) has the tags {lv['lv_tags']}"


def _left(world: World, wanted: Mapping[str, Row], present: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """What nobody asked for: LVs, also hidden, and active ones."""
    attached = {row["id"] for row in wanted.values() if row["status"] == "in-use"}
    known = wanted.keys() | world.foreign.keys()
    for name, lv in present.items():
        row = wanted.get(name)
        if name not in known and lv["lv_name"] not in POOL:
            yield f"{name} has no row (tags {lv['lv_tags']})"
        if row and lv["lv_active"] and not {row["id"], row.get("volume_id")} & attached:
            yield f"{name} ({row['name']}) is active, and not attached"
        if row and row["status"] == "in-use" and not os.path.exists(row["attachments"][0]["device"]):
            yield f"{name} ({row['name']}) is in-use without its device"


def _mapped(present: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    told = run("dmsetup", "info", "-c", "--noheadings", "--separator", " ", "-o", "name,attr")
    active = {lv["lv_name"] for lv in present.values() if lv["lv_active"]}
    for name, attributes in (line.split() for line in told.splitlines() if len(line.split()) == 2):
        waits = attributes[1] == "I" and not name.endswith(POOL_PARTS)
        if waits or attributes[2] == "s":
            yield f"device {name} is suspended, or has a table that waits ({attributes})"
        if (ours := MAPPED.search(name)) and ours[0].replace("--", "-") not in active:
            yield f"device {name} is of no active LV"


def _loops() -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        yield f"{backing.parent.parent.name} is attached to {backing.read_text().strip()}"


# -- what is in them


def _contents(world: World, wanted: Mapping[str, Row], present: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    read = [name for name in (*wanted, *world.foreign) if name.split("/")[0] in world.reads]
    with awake([name for name in read if not present[name]["lv_active"]]):
        for name, row in wanted.items():
            content = world.contents.get(row["name"] or "", ZEROS)
            if name in read and (difference := _differs(Path("/dev", name), content)):
                yield f"{name} ({row['name']}) {difference}"
        for name in world.foreign:
            if name in read and mark(name, present[name]) != world.foreign[name]:
                yield f"{name} is not ours and was changed"


def _differs(device: Path, content: Content) -> str | None:
    """A device that cannot be read is told with what the kernel knows of it: the guest is gone when this is seen."""
    try:
        return oracle.differs(device, content)
    except OSError as error:
        mapped = run("dmsetup", "status"), run("dmsetup", "table"), *run("dmesg").splitlines()[-12:]
        return "\n".join([f"cannot be read ({error}), it is {os.path.realpath(device)}:", *mapped])


@contextmanager
def awake(names: Sequence[str]) -> Iterator[None]:
    """LVs active, in two calls however many."""
    if names:
        run("lvchange", "-y", "-ay", "-K", *names)
    try:
        yield
    finally:
        if names:
            run("udevadm", "settle")
            run("lvchange", "-y", "-an", *names)


def mark(name: str, lv: Mapping[str, Any]) -> tuple[str, ...]:
    """Of an active LV."""
    return lv["lv_size"], lv["lv_tags"], hashlib.sha256(Path("/dev", name).read_bytes()).hexdigest()


def marks(names: Collection[str]) -> Marks:
    present = report({name.split("/")[0] for name in names})
    return {name: mark(name, present[name]) for name in names}
