"""Differences within the rows, and between them, the system's devices, the image store and the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from volctl.db import images, parts, quotas, types, volumes
from volctl.engine import journal
from volctl.engine.locks import LockSet
from volctl.errors import ConflictError
from volctl.flows.attached import as_found
from volctl.flows.context import Context
from volctl.flows.image import ImageDeleteState, stored
from volctl.flows.refs import VOLUME_SCHEME
from volctl.images import content
from volctl.images.store import identity_of
from volctl.model import Image, Json, Object, Status
from volctl.records import mutable
from volctl.service.doctor.difference import (
    RESTING,
    Difference,
    set_status,
    snapshot_of,
    volume_of,
    worked_on,
)

if TYPE_CHECKING:
    from volctl.service.session import Session


@mutable
class BackendUnusable(Difference):
    """Nothing on it can be compared."""

    kind = "backend"


@mutable
class BackendUnknown(Difference):
    """A volume lies on a backend that is not in the configuration."""

    kind = "backend_unknown"


@mutable
class Halted(Difference):
    """A status in between, and nothing that works on it."""

    kind = "status"
    snapshot: bool = False

    def look(self, session: Session) -> bool:
        found = snapshot_of(session, self.id) if self.snapshot else volume_of(session, self.id)
        if found is None or found.status in RESTING or worked_on(session, self.id):
            return False
        self.problem, self.fix = f"it is {found.status}, and nothing works on it", "set it to error"
        return True

    def repair(self, session: Session, locks: LockSet) -> None:
        assert self.id is not None
        between = set(Status) - set(RESTING)
        target = Object("snap" if self.snapshot else "volume", self.id)
        fault = {"code": "conflict", "message": self.problem}
        gone: Json = {} if self.snapshot else {"promised": 0}
        set_status(session, target, between, Status.ERROR, fault=fault, **gone)


@mutable
class Attachment(Difference):
    """The row says that it is attached, the system says otherwise (a reboot, `losetup -d`)."""

    kind = "attachment"

    def look(self, session: Session) -> bool:
        volume = volume_of(session, self.id)
        if volume is None or worked_on(session, self.id):
            return False
        noted = volume.attachment
        if noted is None:
            self.problem = "it is in-use, but has no attachment"
            self.fix = "set it to available"
            return volume.status is Status.IN_USE
        found = session.env.backends.get(volume.backend).attached(Object("volume", volume.id), noted.device)
        self.problem = f"it is attached as {noted.device}, but the system has " + (found.device if found else "no such")
        self.fix = "note what the system has" if found else "set it to available; `volctl attach --all` attaches it"
        there = (found.device, found.read_only, found.sector_size) if found else None
        return there != (noted.device, noted.read_only, noted.sector_size)

    def repair(self, session: Session, locks: LockSet) -> None:
        volume = volume_of(session, self.id)
        assert volume is not None
        if volume.attachment is not None:
            as_found(session.env, volume)
            return
        set_status(session, Object("volume", volume.id), (Status.IN_USE,), Status.AVAILABLE)


@mutable
class StuckFlow(Difference):
    """A flow that has not ended, and whose command has."""

    kind = "flow"

    def look(self, session: Session) -> bool:
        with session.store.read() as tx:
            row = journal.load(tx, self.id or "")
        if row is None or row["ended_at"]:
            return False
        cause = journal.cause_of(row)
        self.problem = f"{row['name']} of {row['object_id']} is {row['phase']}" + (
            f": {cause.message}" if cause else ""
        )
        self.fix = f"try it again; `volctl flow abandon {self.id}` gives it up"
        return True

    def repair(self, session: Session, locks: LockSet) -> None:
        assert self.id is not None
        said = session.engine.resume(self.id)
        with session.store.read() as tx:
            row = journal.load(tx, self.id)
        if row is not None and row["ended_at"] is None:
            cause = journal.cause_of(row)
            raise ConflictError(said or (cause.message if cause else "it is stuck again"))


@mutable
class Reservation(Difference):
    """Quota that a flow reserved which is no more."""

    kind = "reservation"

    def look(self, session: Session) -> bool:
        with session.store.read() as tx:
            still = self.id in quotas.open_reservations(tx) and self.id not in journal.reservations(tx)
        self.problem, self.fix = "quota is reserved for a request that is no more", "give it back"
        return still

    def repair(self, session: Session, locks: LockSet) -> None:
        with session.store.write() as tx:
            quotas.release(tx, self.id)


@mutable
class TypeGone(Difference):
    """A volume has a type that is not there."""

    kind = "reference"

    def look(self, session: Session) -> bool:
        self.problem = f"volumes have type {self.object!r}, which is not there"
        self.fix = "make the type again, without extra specs"
        with session.store.read() as tx:
            return types.find(tx, self.object) is None

    def repair(self, session: Session, locks: LockSet) -> None:
        with session.store.write() as tx:
            types.add(tx, self.object, {}, None)


@mutable
class ImageFile(Difference):
    """A registered image whose file or volume is gone, or is not what was checked."""

    kind = "image"

    def look(self, session: Session) -> bool:
        with session.store.read() as tx:
            image = images.find(tx, self.id or "")
            if image is None or image.status != Status.AVAILABLE:
                return False
            known = images.internals(tx, image.id)
        self.fix = "set it to error; `volctl image refresh` takes it as it is then"
        self.problem = image_problem(session.env, image, known) or ""
        return bool(self.problem)

    def repair(self, session: Session, locks: LockSet) -> None:
        with session.store.write() as tx:
            images.change(tx, self.id or "", status=Status.ERROR)


@mutable
class StoredAlone(Difference):
    """A file in the image store that no image owns."""

    kind = "orphan"
    deletes = True

    def look(self, session: Session) -> bool:
        with session.store.read() as tx:
            known = images.find(tx, self.id or "") is not None or parts.exists(tx, self.id or "")
        self.problem, self.fix = f"{self.object} in the image store belongs to no image", "delete it"
        return stored(session.env, self.object).exists() and not known and not worked_on(session, self.id)

    def repair(self, session: Session, locks: LockSet) -> None:
        assert self.id is not None
        session.engine.start("image_delete", ImageDeleteState(self.id, True), object_id=self.id, locks=locks)


@mutable
class Temporary(Difference):
    """What a first run that was killed left in the state directory."""

    kind = "leftover"
    remove: Callable[[], None] = lambda: None

    def look(self, session: Session) -> bool:
        self.problem, self.fix = f"{self.object} is what a first run that was killed left", "remove it"
        return True

    def repair(self, session: Session, locks: LockSet) -> None:
        self.remove()


def image_problem(env: Context, image: Image, known: Json) -> str | None:
    """What is wrong with an image's file or volume; `known` is what its row keeps to itself."""
    if image.location.startswith(VOLUME_SCHEME):
        with env.store.read() as tx:
            gone = volumes.find(tx, image.location.removeprefix(VOLUME_SCHEME)) is None
        return f"its {image.location} is gone" if gone else None
    try:
        found = Path(image.location).stat()
    except OSError as error:
        return f"its file {image.location} cannot be seen: {error.strerror}"
    same = content.is_same(known["identity"], identity_of(found), owned=known["owned"])
    return None if same else f"its file {image.location} is not the one that was checked"
