"""Where new volumes go (a thin pool, or extents of their own on which disks) and what is wrong there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from volctl.backend import NEARLY_FULL, Problem, Stats
from volctl.errors import BackendError, NoSpaceError, VolctlError
from volctl.lvm import room
from volctl.lvm.commands import Layout
from volctl.lvm.report import LogicalVolume, VolumeGroup
from volctl.lvm.settings import Settings

FULL = 99.0
"""Percent of its metadata from which on a pool that stopped is taken to have filled."""
MORE_DATA, MORE_METADATA = "lvextend --size +10G {}", "lvextend --poolmetadatasize +1G {}"


def pool_of(options: Settings, group: VolumeGroup) -> LogicalVolume | None:
    """The thin pool; None if new volumes are thick. `BackendError` if there is to be one and is not."""
    found = group.lv(options.pool)
    if options.provisioning != "thick" and found and found.is_pool:
        return found
    if options.provisioning != "thin":
        return None
    said = f"there is no thin pool {group.name}/{options.pool}"
    raise BackendError(said, hint=f"make it: volctl backend init {options.backend}")


def layout_of(options: Settings, group: VolumeGroup) -> Layout:
    """How thick LVs lie. `BackendError` if no disk has one of the tags that are wanted."""
    if not options.pv_tags:
        return Layout(options.mirrors, options.stripes)
    names = tuple(pv.name for pv in room.usable(group.pvs, options.pv_tags))
    if not names:
        raise BackendError(f"no disk of {group.name} has one of the tags {', '.join(sorted(options.pv_tags))}")
    return Layout(options.mirrors, options.stripes, names)


def explained(options: Settings, group: VolumeGroup, error: VolctlError) -> VolctlError:
    """What an error of a thin pool comes from: writers only hear of I/O errors, and LVM calls a failed pool full."""
    pool = group.lv(options.pool)
    if pool is None or not pool.health or not isinstance(error, BackendError | NoSpaceError):
        return error
    name = f"{group.name}/{pool.name}"
    if pool.health == "metadata_read_only" and (pool.metadata_percent or 0) >= FULL:
        said = f"the metadata of thin pool {name} are full: {error.message}"
        return NoSpaceError(said, hint=MORE_METADATA.format(name))
    if pool.health.startswith("out_of_data"):
        return NoSpaceError(f"thin pool {name} is full: {error.message}", hint=MORE_DATA.format(name))
    state = pool.health.replace("_", " ")
    return BackendError(f"thin pool {name} is {state}: {error.message}", hint="see lvmthin(7)")


def stats(options: Settings, group: VolumeGroup, mark: str) -> Stats:
    if pool := pool_of(options, group):
        return room.thin(group, pool, mark)
    disks = room.usable(group.pvs, options.pv_tags)
    return room.thick(group, disks, 1 + options.mirrors, options.stripes, mark)


def problems(options: Settings, group: VolumeGroup) -> list[Problem]:
    """Of the pool, what it would do when it is full included."""
    pool = pool_of(options, group)
    if pool is None:
        layout_of(options, group)
        return []
    where = f"thin pool {group.name}/{pool.name}"
    name = f"{group.name}/{pool.name}"
    found = [
        (not pool.zeroes, f"{where} does not zero new blocks", f"lvchange -Zy {name}", True),
        (bool(pool.health), f"{where}: {pool.health.replace('_', ' ')}", "see lvmthin(7)", True),
        (not _installed("thin_check"), "thin_check is not installed", "install thin-provisioning-tools", False),
        (
            pool.when_full == "queue",
            f"writers wait {_patience()} when {where} is full",
            f"lvchange --errorwhenfull y {name}",
            False,
        ),
        (not pool.monitored, f"{where} is not monitored, nobody extends it", f"lvchange --monitor y {name}", False),
        _nearly_full(f"{where} is", pool.data_percent, MORE_DATA.format(name)),
        _nearly_full(f"the metadata of {where} are", pool.metadata_percent, MORE_METADATA.format(name)),
    ]
    return [Problem(message, hint, fatal) for bad, message, hint, fatal in found if bad]


def _nearly_full(what: str, percent: float | None, hint: str) -> tuple[bool, str, str, bool]:
    return (percent or 0) >= NEARLY_FULL, f"{what} {percent or 0:g} % full", hint, False


def details(options: Settings, group: VolumeGroup, autoextend: dict[str, str]) -> dict[str, Any]:
    """The group, its pool, and what LVM does by itself when they fill: at 100 % (its default) nothing."""
    pool = pool_of(options, group)
    thresholds = {name: int(percent) for name, percent in autoextend.items() if percent.isdigit()}
    found: dict[str, Any] = {"volume_group": group.name, "extent_size": group.extent, "provisioning": "thick"}
    if pool:
        found |= {
            "provisioning": "thin",
            "pool": pool.name,
            "data_percent": pool.data_percent,
            "metadata_percent": pool.metadata_percent,
            "when_full": pool.when_full,
            "monitored": pool.monitored,
        }
    return found | thresholds


def _patience() -> str:
    """How long the kernel lets a queueing pool keep its writers; they cannot be killed meanwhile."""
    try:
        seconds = int(Path("/sys/module/dm_thin_pool/parameters/no_space_timeout").read_text())
    except (OSError, ValueError):
        seconds = 60
    return f"for {seconds} s" if seconds else "for ever"


def _installed(program: str) -> bool:
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin") is not None
