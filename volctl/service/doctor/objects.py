"""Differences between rows and what lies on the backends: objects, leftovers, devices."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING

from volctl import files
from volctl.backend import Backend
from volctl.db import image_cache, snapshots, volumes
from volctl.engine import journal
from volctl.engine.locks import LockSet
from volctl.flows.extend import ExtendState
from volctl.flows.image_cache import EvictState
from volctl.flows.orphan import Noted, OrphanState, doubt, noted
from volctl.model import Json, Object, Status, Volume, format_size, round_up
from volctl.records import mutable
from volctl.service.doctor.difference import (
    DRIFT,
    HOLDING,
    RESTING,
    Difference,
    backend_of,
    set_status,
    size_of,
    snapshot_of,
    volume_of,
    worked_on,
)
from volctl.service.doctor.rebuild import lost_image

if TYPE_CHECKING:
    from volctl.service.session import Session


@mutable
class VolumeObject(Difference):
    """A volume's object is gone, or has another size than its row."""

    kind = "volume_object"
    size: int | None = field(default=None, init=False)

    def look(self, session: Session) -> bool:
        volume = volume_of(session, self.id)
        if volume is None or volume.status not in HOLDING or volume.backend is None:
            return False
        self.size = size_of(session.env.backends.get(volume.backend), Object("volume", volume.id))
        self.fix = "set it to error"
        if self.size is None:
            self.problem = f"it is {volume.status}, but {self.object} is not there"
        elif self.size < volume.size:
            self.problem = f"{self.object} has {self.size} bytes, cut from {volume.size}"
        elif self.size > volume.size:
            self.problem = f"{self.object} has {self.size} bytes, its row says {volume.size}"
            self.fix = f"extend it to {format_size(self._grown(session, volume))}, within the quota"
        return self.size != volume.size

    def _grown(self, session: Session, volume: Volume) -> int:
        return round_up(self.size or 0, session.env.backends.get(volume.backend).capabilities.granule)

    def repair(self, session: Session, locks: LockSet) -> None:
        volume = volume_of(session, self.id)
        assert volume is not None
        if self.size is not None and self.size > volume.size:
            state = ExtendState(volume.id, self._grown(session, volume))
            session.engine.start("volume_extend", state, object_id=volume.id, locks=locks)
            return
        gone: Json = {"attachments": []} if self.size is None else {}
        fault = {"code": DRIFT, "message": self.problem}
        set_status(session, Object("volume", volume.id), HOLDING, Status.ERROR, fault=fault, **gone)


@mutable
class SnapshotObject(Difference):
    """A snapshot's object is gone, or has another size than its row."""

    kind = "snapshot_object"

    def look(self, session: Session) -> bool:
        snapshot = snapshot_of(session, self.id)
        if snapshot is None or snapshot.status is not Status.AVAILABLE or self.backend is None:
            return False
        size = size_of(backend_of(session, self.backend), Object("snap", snapshot.id))
        if size is None:
            self.problem = f"it is available, but {self.object} is not there"
        else:
            self.problem = f"{self.object} has {size} bytes, its row says {snapshot.size}"
        self.fix = "set it to error"
        return size != snapshot.size

    def repair(self, session: Session, locks: LockSet) -> None:
        assert self.id is not None
        fault = {"code": DRIFT, "message": self.problem}
        set_status(session, Object("snap", self.id), (Status.AVAILABLE,), Status.ERROR, fault=fault)


@mutable
class CachedImageObject(Difference):
    """An image-volume of the cache is gone, has another size than its row, or was left in the middle of something."""

    kind = "cached_image"
    status: str = field(default="", init=False)
    needed: bool = field(default=False, init=False)

    def look(self, session: Session) -> bool:
        with session.store.read() as tx:
            entry = image_cache.find(tx, self.id or "")
            busy = journal.is_open_for(tx, self.id or "")  # in one view: whoever fills it does not hold its lock
        if entry is None or busy:
            return False
        backend = backend_of(session, entry.backend)
        size = size_of(backend, entry.object)
        self.needed = size == entry.size and _is_base(session, backend, entry.object)
        self.status, self.fix = entry.status, "set it to available" if self.needed else "let go of it"
        if entry.status != image_cache.AVAILABLE:
            self.problem = f"cached image {self.object} is {entry.status}, but nothing is done to it"
        elif size is None:
            self.problem = f"cached image {self.object} is not there"
        else:
            self.problem = f"cached image {self.object} has {size} bytes, its row says {entry.size}"
        return (entry.status, size) != (image_cache.AVAILABLE, entry.size)

    def repair(self, session: Session, locks: LockSet) -> None:
        if self.needed:
            with session.store.write() as tx:
                image_cache.transition(tx, self.id or "", (self.status,), image_cache.AVAILABLE)
            return
        state = EvictState(self.id or "", self.backend or "", self.status)
        session.engine.start("image_cache_evict", state, object_id=self.id, locks=locks)


@mutable
class CachedImageAlone(Difference):
    """An image-volume without a row, which volumes with one lie over."""

    kind = "cached_image"
    target: Object = field(kw_only=True)

    def look(self, session: Session) -> bool:
        with session.store.read() as tx:
            known = noted(tx, self.target) or journal.is_open_for(tx, self.target.id)
        self.problem = f"cached image {self.object} has no row, and volumes lie over it"
        self.fix = "note it again; of which image it is, nobody knows"
        return not known and _is_base(session, backend_of(session, self.backend), self.target)

    def repair(self, session: Session, locks: LockSet) -> None:
        size = size_of(backend_of(session, self.backend), self.target)
        with session.store.write() as tx:
            image_cache.insert_entry(tx, lost_image(self.target, self.backend or "", size or 0))


def _is_base(session: Session, backend: Backend, image: Object) -> bool:
    """Is it whole, and does what has a row lie over it? Only what is whole is cloned."""
    if not backend.capabilities.clones_need_source:
        return False
    listing = backend.listing()
    over, found = {image.name}, listing.objects.get(image)
    while more := {name for name, below in listing.links.items() if below in over} - over:
        over |= more
    if len(over) == 1 or not (found and found.size) or image.name in listing.damaged:
        return False
    with session.store.read() as tx:
        rows = [noted(tx, target) for target in map(files.object_named, over - {image.name}) if target]
    return any(row and row.counts_on(backend.name) for row in rows)


@mutable
class Orphan(Difference):
    """An object with our mark and no row, or with the row of a create that failed, or of another backend."""

    kind = "orphan"
    deletes = True
    target: Object = field(kw_only=True)

    def look(self, session: Session) -> bool:
        backend = backend_of(session, self.backend)
        with session.store.read() as tx:
            row, busy = noted(tx, self.target), journal.is_open_for(tx, self.target.id)
            volume = volumes.find(tx, self.target.id)
        busy = busy or (volume is not None and volume.status not in RESTING)
        if busy or (row and row.counts_on(backend.name)) or (found := backend.inspect(self.target)) is None:
            return False
        if row is None and self.target.kind == "image" and _is_base(session, backend, self.target):
            return False
        why = doubt(session.env, self.target, row, backend.name) if row else None
        if why and row and row.backend == backend.name:
            return False  # it may be made available (`returned`)
        self.problem = f"{self.target.name} ({format_size(found.size)}) {self._why(session, row)}"
        self.fix = f"delete it from backend {backend.name}"
        if why:
            self.problem += f"; {why}"
            if row and row.backend:
                self.problem += ". Give each backend the name that it had in the configuration"
            self.fix = None
        return True

    def _why(self, session: Session, row: Noted | None) -> str:
        if row is None:
            of_none = self.target.kind == "snap" and snapshot_of(session, self.target.id)
            return "is of a volume without a row" if of_none else "has no row"
        return "is what a failed create left" if row.never else f"is on backend {self.backend}"

    def repair(self, session: Session, locks: LockSet) -> None:
        snapshot = snapshot_of(session, self.target.id) if self.target.kind == "snap" else None
        volume_id = snapshot.volume_id if snapshot else self.target.id
        state = OrphanState(self.backend or "", self.target.kind, self.target.id, volume_id)
        session.engine.start("orphan_delete", state, object_id=self.target.id, locks=locks)


@mutable
class SnapshotAlone(Difference):
    """The row of a snapshot whose volume has none, and which is on no backend."""

    kind = "reference"
    deletes = True

    def look(self, session: Session) -> bool:
        snapshot = snapshot_of(session, self.id)
        self.problem, self.fix = "its volume has no row, and no backend holds it", "remove its row"
        return snapshot is not None and volume_of(session, snapshot.volume_id) is None

    def repair(self, session: Session, locks: LockSet) -> None:
        assert self.id is not None
        with session.store.write() as tx:
            snapshots.remove(tx, self.id)


@mutable
class Leftover(Difference):
    """What work left beside a volume, under a name that only such work takes."""

    kind = "leftover"
    deletes = True

    def look(self, session: Session) -> bool:
        there = self.object in backend_of(session, self.backend).listing().leftovers
        self.problem = f"{self.object} is what work that ended left"
        self.fix = f"remove it from backend {self.backend}"
        return there and not worked_on(session, self.id)

    def repair(self, session: Session, locks: LockSet) -> None:
        state = OrphanState(self.backend or "", "volume", self.id or "", self.id or "", leftover=self.object)
        session.engine.start("orphan_delete", state, object_id=self.id, locks=locks)


def is_attached(session: Session, volume: Volume, backend: str | None) -> bool:
    """To a device that works, by its row and by the system: others are to go, whatever the row says."""
    if volume.attachment is None or volume.backend != backend:
        return False
    return backend_of(session, backend).attached(Object("volume", volume.id), volume.attachment.device) is not None


@mutable
class StrayDevice(Difference):
    """A device of ours over a volume that is not attached."""

    kind = "device"
    target: Object = field(kw_only=True)

    def look(self, session: Session) -> bool:
        found = backend_of(session, self.backend).listing().devices.get(self.target)
        if found is None or worked_on(session, self.id):
            return False
        self.problem = f"{found.device} is a device of {self.object}, which {self._why()}"
        self.fix = "detach it"
        return not self._noted(session)

    def _why(self) -> str:
        return "is not attached"

    def _noted(self, session: Session) -> bool:
        volume = volume_of(session, self.id)
        return volume is not None and is_attached(session, volume, self.backend)

    def repair(self, session: Session, locks: LockSet) -> None:
        state = OrphanState(self.backend or "", self.target.kind, self.target.id, self.target.id)
        session.engine.start("device_detach", state, object_id=self.id, locks=locks)


@mutable
class SuspendedDevice(Difference):
    """The device of an attached volume waits for a program that has ended."""

    kind = "device"
    target: Object = field(kw_only=True)

    def look(self, session: Session) -> bool:
        found = backend_of(session, self.backend).attached(self.target)
        if found is None or worked_on(session, self.id):
            return False
        self.problem = f"{found.device} is suspended: whoever reads or writes it waits"
        self.fix = "let it go on"
        return found.suspended

    def repair(self, session: Session, locks: LockSet) -> None:
        state = OrphanState(self.backend or "", self.target.kind, self.target.id, self.target.id)
        session.engine.start("device_resume", state, object_id=self.id, locks=locks)


@mutable
class DeviceOverNothing(StrayDevice):
    """The same where the file is gone: what it held can be read from the device only."""

    kind = "device"
    deletes = True

    def _why(self) -> str:
        return "is gone: its last bytes are there"

    def _noted(self, session: Session) -> bool:
        return size_of(backend_of(session, self.backend), self.target) is not None
