"""A volume group as `doctor` compares it with the rows: objects, what work left, what is active, the rest."""

from __future__ import annotations

import re
from dataclasses import replace

from volctl.backend import Attached, Info, Listing
from volctl.lvm import about, devices
from volctl.lvm.group import Session
from volctl.lvm.report import LogicalVolume, VolumeGroup
from volctl.model import Object

_WORK = re.compile(r"revert-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def info(lv: LogicalVolume) -> Info:
    """Of an inactive thin LV nobody knows what it takes; its size is the most that it can be."""
    used = lv.data_percent if lv.is_thin else None
    return Info(lv.size, lv.taken if used is None else int(lv.taken * used / 100))


def listing(session: Session, group: VolumeGroup) -> Listing:
    """Snapshots before their origins, as they can be deleted. Of thick snapshots only the origin is a device:
    LVM activates them together."""
    mine = {lv.name: lv for lv in group.lvs if session.mine(lv)}
    objects = {target: mine[target.name] for target in session.objects(group)}
    leftovers = {name: match[1] for name in mine if (match := _WORK.fullmatch(name))}
    active = {target: lv for target, lv in objects.items() if lv.active and not lv.is_cow}
    ours = {lv.name for lv in objects.values()} | leftovers.keys()
    return Listing(
        {target: info(lv) for target, lv in objects.items()},
        leftovers,
        {target: found for target in active if (found := _attached(session, target))},
        tuple(sorted(lv.name for lv in group.lvs if lv.name not in ours and "volctl-pool" not in lv.tags)),
    )


def describe(session: Session, target: Object) -> None:
    lv = session.existing(session.see(), target.name)
    new, old = about.tags(target), about.own(lv.tags)
    if new != old:
        session.change(lambda verbs: verbs.tag(lv.name, add=new - old, drop=old - new))


def described(session: Session, group: VolumeGroup) -> list[Object]:
    tags = {lv.name: lv.tags for lv in group.lvs}
    return [replace(target, about=about.told(tags[target.name])) for target in session.objects(group)]


def _attached(session: Session, target: Object) -> Attached | None:
    return devices.attached(session.path(target.name))
