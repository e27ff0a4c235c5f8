"""What LVM says of a volume group, its PVs and its LVs: one `lvm fullreport` in JSON, sizes in bytes.

Sources: lvm-fullreport(8), lvmreport(7), lvs(8) for the letters of `lv_attr`.
"""

from __future__ import annotations

import json
from typing import Any

from volctl.records import record

VG_FIELDS = (
    "vg_name,vg_uuid,vg_tags,vg_extent_size,vg_size,vg_free,vg_exported,vg_partial,vg_clustered,vg_shared,"
    "vg_permissions,vg_missing_pv_count"
)
PV_FIELDS = "pv_name,pv_size,pv_free,pv_tags,pv_missing,pv_allocatable"
LV_FIELDS = (
    "lv_name,lv_size,lv_tags,lv_attr,origin,origin_size,pool_lv,data_percent,metadata_percent,lv_metadata_size,"
    "lv_active,lv_device_open,lv_suspended,lv_kernel_major,lv_kernel_minor,lv_when_full,lv_health_status"
)
SEG_FIELDS = "lv_name,seg_monitor"
ARGUMENTS = (
    "--reportformat", "json", "--units", "b", "--nosuffix",
    "--configreport", "vg", "-o", VG_FIELDS,
    "--configreport", "pv", "-o", PV_FIELDS,
    "--configreport", "lv", "-o", LV_FIELDS,
    "--configreport", "seg", "-o", SEG_FIELDS,
    "--configreport", "pvseg", "-o", "pvseg_start",
)  # fmt: skip


@record
class PhysicalVolume:
    """A disk of the group; `name` is its device path, sizes are in bytes."""

    name: str
    size: int
    free: int
    tags: frozenset[str]
    missing: bool
    allocatable: bool


@record
class LogicalVolume:
    """`size` is what a reader of the device gets, in bytes; of a COW snapshot its origin's.

    `origin` and `pool` are names, None without one. The percentages are known of active LVs only.
    `device` is `major:minor` while it is active.
    """

    name: str
    size: int
    tags: frozenset[str]
    attr: str
    origin: str | None
    origin_size: int | None
    taken: int
    """Bytes of the group or pool: of a COW snapshot its own area."""
    pool: str | None
    data_percent: float | None
    metadata_percent: float | None
    metadata_size: int | None
    active: bool
    open: bool
    suspended: bool
    device: str | None
    when_full: str
    health: str
    monitored: bool

    @property
    def is_thin(self) -> bool:
        return self.attr.startswith("V")

    @property
    def is_pool(self) -> bool:
        return self.attr.startswith("t")

    @property
    def is_cow(self) -> bool:
        """A thick snapshot."""
        return self.attr[:1] in ("s", "S")

    @property
    def read_only(self) -> bool:
        return self.attr[1:2] in ("r", "R")

    @property
    def zeroes(self) -> bool:
        """Of a pool: new blocks are zeroed before they are used."""
        return self.attr[7:8] == "z"


@record
class VolumeGroup:
    """A volume group as it was at one instant. Sizes are in bytes."""

    name: str
    uuid: str
    tags: frozenset[str]
    extent: int
    size: int
    free: int
    exported: bool
    partial: bool
    shared: bool
    writable: bool
    pvs: tuple[PhysicalVolume, ...]
    lvs: tuple[LogicalVolume, ...]

    def lv(self, name: str) -> LogicalVolume | None:
        return next((lv for lv in self.lvs if lv.name == name), None)

    def snapshots(self, name: str) -> list[LogicalVolume]:
        """Thick snapshots of an LV."""
        return [lv for lv in self.lvs if lv.is_cow and lv.origin == name]


def parse(text: str) -> VolumeGroup | None:
    """The first group of a report; None if there is none. ValueError for what is no report."""
    reports = json.loads(text)["report"]
    for part in reports:
        if part.get("vg"):
            return _group(part)
    return None


def _group(part: dict[str, list[dict[str, str]]]) -> VolumeGroup:
    row = part["vg"][0]
    monitored = {seg["lv_name"] for seg in part.get("seg", ()) if seg["seg_monitor"] == "monitored"}
    return VolumeGroup(
        name=row["vg_name"],
        uuid=row["vg_uuid"],
        tags=_tags(row["vg_tags"]),
        extent=int(row["vg_extent_size"]),
        size=int(row["vg_size"]),
        free=int(row["vg_free"]),
        exported=bool(row["vg_exported"]),
        partial=bool(row["vg_partial"]) or row["vg_missing_pv_count"] not in ("", "0"),
        shared=bool(row["vg_shared"] or row["vg_clustered"]),
        writable=row["vg_permissions"] != "read-only",
        pvs=tuple(map(_pv, part.get("pv", ()))),
        lvs=tuple(_lv(lv, monitored) for lv in part.get("lv", ())),
    )


def _pv(row: dict[str, str]) -> PhysicalVolume:
    return PhysicalVolume(
        name=row["pv_name"],
        size=int(row["pv_size"]),
        free=int(row["pv_free"]),
        tags=_tags(row["pv_tags"]),
        missing=bool(row["pv_missing"]),
        allocatable=bool(row["pv_allocatable"]),
    )


def _lv(row: dict[str, str], monitored: set[str]) -> LogicalVolume:
    size, origin_size = int(row["lv_size"]), _number(row["origin_size"], int)
    cow = row["lv_attr"][:1] in ("s", "S")
    major, minor = row["lv_kernel_major"], row["lv_kernel_minor"]
    return LogicalVolume(
        name=row["lv_name"],
        size=origin_size if cow and origin_size else size,
        tags=_tags(row["lv_tags"]),
        attr=row["lv_attr"],
        origin=row["origin"] or None,
        origin_size=origin_size,
        taken=size,
        pool=row["pool_lv"] or None,
        data_percent=_number(row["data_percent"], float),
        metadata_percent=_number(row["metadata_percent"], float),
        metadata_size=_number(row["lv_metadata_size"], int),
        active=row["lv_active"].startswith("active"),
        open=row["lv_device_open"] == "open",
        suspended=row["lv_suspended"] == "suspended",
        device=f"{major}:{minor}" if major not in ("", "-1") else None,
        when_full=row["lv_when_full"],
        health=row["lv_health_status"],
        monitored=row["lv_name"] in monitored,
    )


def _tags(text: str) -> frozenset[str]:
    return frozenset(filter(None, text.split(",")))


def _number(text: str, kind: Any) -> Any:
    return kind(text) if text else None
