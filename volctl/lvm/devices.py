"""Attached LVs: active, with a tag that says so, since others are inactive unless in work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from volctl import udev
from volctl.backend import Attached
from volctl.lvm import blocks
from volctl.lvm.group import ATTACHED, AWAY, Session
from volctl.lvm.report import LogicalVolume

if TYPE_CHECKING:
    from volctl.files import Ownership


def attach(session: Session, lv: LogicalVolume, *, read_only: bool, ownership: Ownership | None) -> Path:
    """Active with the wanted permission, whatever a crash left; the node is there, and theirs, when it returns."""
    mode = None if lv.read_only == read_only else "r" if read_only else "rw"
    with session.changing() as verbs:
        if mode or ATTACHED not in lv.tags:
            verbs.permit(lv.name, mode, add={ATTACHED})
        verbs.activate(lv.name)
    path = session.path(lv.name)
    udev.wait_for(path)
    if ownership:
        with blocks.device(path) as fd:
            ownership.apply(fd)
    return path


def detach(session: Session, lv: LogicalVolume) -> None:
    """Inactive again; `InUseError` names the holders and leaves it as it was."""
    if lv.active:
        session.hide(lv.name, f"{lv.name} is in use")
    if ATTACHED in lv.tags or lv.read_only:
        session.change(lambda verbs: verbs.permit(lv.name, "rw" if lv.read_only else None, drop={ATTACHED, AWAY}))


def attached(path: Path) -> Attached | None:
    """What the kernel says of an active LV, from sysfs."""
    try:
        number = path.stat().st_rdev
        block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        files = ("ro", "queue/logical_block_size", "dm/suspended")
        read_only, sector, suspended = ((block / file).read_text().strip() for file in files)
    except OSError:
        return None
    return Attached(str(path), read_only == "1", int(sector), suspended == "1")
