"""What is particular to LVs of their own extents: those may hold anybody's bytes, and are copied."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from volctl import interrupt
from volctl.errors import BackendError, InUseError, VolctlError
from volctl.lvm import blocks
from volctl.lvm.group import AWAY, Session
from volctl.lvm.report import LogicalVolume, VolumeGroup
from volctl.model import MiB, round_up

TAIL = "volctl-tail-"
"""Tag of a volume that grew and is not known to read as zeros from this byte on."""


def cow_size(origin: int, percent: int, extent: int) -> int:
    """Bytes of a snapshot's area: of each 4 KiB kept, 16 bytes say where it belongs."""
    return round_up(origin * percent // 100 * 257 // 256 + MiB, extent)


def check_whole(lv: LogicalVolume, fd: int) -> None:
    """`BackendError` for a snapshot whose area became full: the kernel then fails every read of it."""
    if not lv.is_cow:
        return
    import mmap

    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:  # aligned, so O_DIRECT takes it
            os.preadv(fd, [page], 0)
    except OSError as error:
        said = f"snapshot {lv.name} is lost, or its disk fails: its area of {lv.taken} bytes cannot be read"
        lost = BackendError(said, hint="delete it; an area of snapshot_percentage = 100 never fills")
        lost.untouched = True
        raise lost from error


def extend(session: Session, group: VolumeGroup, lv: LogicalVolume, size: int, pvs: Sequence[str]) -> None:
    """Grow, then write zeros over the tail; a crash between leaves tags, and whoever calls again finishes.

    LVM grows an origin of snapshots only while it is inactive; it is active again whatever comes.
    """
    if lv.read_only:
        raise InUseError(f"{lv.name} is attached read-only, and its new end must be zeroed", hint="detach it first")
    tail = min((int(tag.removeprefix(TAIL)) for tag in lv.tags if tag.startswith(TAIL)), default=lv.size)
    away = AWAY in lv.tags or (lv.active and size > lv.size and bool(group.snapshots(lv.name)))
    notes = {f"{TAIL}{tail}"} | ({AWAY} if away else set())
    if size > lv.size:
        if not notes <= lv.tags:
            session.change(lambda verbs: verbs.tag(lv.name, add=notes - lv.tags))
        try:
            if away and lv.active:
                session.hide(lv.name, f"{lv.name} has snapshots and is in use, so LVM cannot extend it now")
            session.change(lambda verbs: verbs.extend(lv.name, size, pvs))
        except BaseException:
            if away:
                with suppress(VolctlError), interrupt.undoing():
                    _back(session, lv.name)
            raise
    if away:
        session.change(lambda verbs: verbs.activate(lv.name))
        group = session.see()
    if tail < size:
        with session.opened(lv.name, os.O_RDWR, group) as fd:
            blocks.zero(fd, tail, size)
    if tail < size or notes & lv.tags:
        session.change(lambda verbs: verbs.tag(lv.name, drop=notes))


def _back(session: Session, name: str) -> None:
    """As it was: who has it attached can open it."""
    session.change(lambda verbs: verbs.activate(name))
    session.change(lambda verbs: verbs.tag(name, drop={AWAY}))


def copy_back(session: Session, group: VolumeGroup, name: str, past: LogicalVolume, size: int) -> None:
    """Make a volume read as its snapshot by writing over what differs, so it may be done again.

    What differs is in the snapshot's area already, so that takes no more room; merging would
    consume the snapshot. LVM activates an origin with its snapshot, and keeps it active as long.
    """
    flags = os.O_RDWR | os.O_DIRECT | os.O_EXCL
    with session.opened(past.name, os.O_RDONLY | os.O_DIRECT, group) as source:
        check_whole(past, source)
        mine = past.origin == name
        with blocks.device(session.path(name), flags) if mine else session.opened(name, flags, group) as fd:
            blocks.make_equal(source, fd, past.size)
            blocks.zero(fd, past.size, size)
