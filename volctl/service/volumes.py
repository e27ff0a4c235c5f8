"""Volumes: create, look, change, delete."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator
from contextlib import suppress

from volctl import interrupt
from volctl.db import snapshots, volumes
from volctl.errors import ConflictError, ExistsError, NotFoundError, UsageError
from volctl.flows import refs, words
from volctl.flows.attached import as_found
from volctl.flows.delete import DeleteState, check_deletable, check_holders
from volctl.flows.extend import ExtendState
from volctl.flows.revert import RevertState
from volctl.flows.snapshot_delete import SnapshotDeleteState
from volctl.model import (
    Object,
    Snapshot,
    Status,
    Volume,
    VolumeDetails,
    exact_size,
    parse_size,
)
from volctl.service.session import Session, tell_rounding

GONE = ("deleted", "gone")


def list_(
    session: Session,
    *,
    status: str | None = None,
    type: str | None = None,
    backend: str | None = None,
    name: str | None = None,
    sort: str = "created_at",
    limit: int | None = None,
    all_projects: bool = False,
) -> list[Volume]:
    """Volumes of the project; `name` is a glob, `sort` is `KEY` or `KEY:desc`."""
    equal = {"status": status, "type": type, "backend": backend}
    key, descending = sort_key(sort, ("created_at", "name", "size", "status", "type", "backend", "id", "updated_at"))
    if status is not None and status not in set(Status):
        raise UsageError(f"{status!r} is not a status", hint=f"one of {', '.join(Status)}")
    attached_as_found(session)
    with session.store.read() as tx:
        found: Iterator[Volume] = volumes.listing(
            tx,
            project=None if all_projects else session.project,
            equal={column: value for column, value in equal.items() if value is not None},
            sort=key,
            descending=descending,
        )
        if name is not None:
            found = (volume for volume in found if fnmatch.fnmatchcase(volume.name or "", name))
        return list(itertools.islice(found, limit))


def sort_key(text: str, known: tuple[str, ...]) -> tuple[str, bool]:
    """`KEY`, `KEY:asc` or `KEY:desc`."""
    key, _, direction = text.partition(":")
    if key not in known or direction not in ("", "asc", "desc"):
        raise UsageError(f"cannot sort by {text!r}", hint=f"KEY or KEY:desc, KEY one of {', '.join(known)}")
    return key, direction == "desc"


def attached_as_found(session: Session) -> None:
    """Ask the system after every attached volume."""
    with session.store.read() as tx:
        attached = volumes.in_status(tx, Status.IN_USE)
    for volume in attached:
        with suppress(NotFoundError):  # deleted since
            as_found(session.env, volume)


def find(session: Session, ref: str) -> Volume:
    """The row of a reference, with its attachment as the system has it."""
    with session.store.read() as tx:
        volume = refs.volume(tx, session.project, ref)
    return as_found(session.env, volume)


def show(session: Session, ref: str) -> VolumeDetails:
    """The volume and the scheduler's explanation."""
    volume_id = find(session, ref).id
    with session.store.read() as tx:
        return volumes.details(tx, volume_id)


def path(session: Session, ref: str) -> str:
    """The file of the volume, or its device path."""
    volume = find(session, ref)
    if volume.status not in (Status.AVAILABLE, Status.IN_USE):
        raise ConflictError(f"volume {volume.label} is {volume.status}, not available", volume=volume.id)
    return str(session.env.backends.get(volume.backend).path(Object("volume", volume.id)))


def extend(session: Session, ref: str, size: str) -> Volume:
    """Grow to SIZE, or by +SIZE."""
    volume, by, text = find(session, ref), size.startswith("+"), size.removeprefix("+")
    state = ExtendState(volume.id, words.usage(parse_size, text), by=by)
    with session.locked_volume(volume.id) as locks:
        session.engine.start("volume_extend", state, object_id=volume.id, locks=locks)
    made = find(session, volume.id)
    tell_rounding(session, made, exact_size(text) + (volume.size if by else 0))
    return made


def update(
    session: Session, ref: str, *, name: str | None, description: str | None, properties: tuple[str, ...]
) -> Volume:
    """Set what is given."""
    more = words.properties(properties)
    values = words.own_words(name, description)
    with session.rows() as tx:
        volume = refs.volume(tx, session.project, ref)
        if name is not None and (other := volumes.by_name(tx, volume.project, name)) and other.id != volume.id:
            raise ExistsError(f"there is a volume {name!r} already", volume=other.id)
        volumes.change(tx, volume.id, properties=volume.properties | more, undescribed=True, **values)
    return _told(session, volume.id)


def _told(session: Session, volume_id: str) -> Volume:
    """A volume whose row was changed, and its object told of it."""
    session.changed()
    with session.store.read() as tx:
        return volumes.get(tx, volume_id)


def unset(session: Session, ref: str, *, name: bool, description: bool, properties: tuple[str, ...]) -> Volume:
    """Take away what is named; what is not there is no error."""
    values = ({"name": None} if name else {}) | ({"description": None} if description else {})
    with session.rows() as tx:
        volume = refs.volume(tx, session.project, ref)
        left = {key: value for key, value in volume.properties.items() if key not in properties}
        volumes.change(tx, volume.id, properties=left, undescribed=True, **values)
    return _told(session, volume.id)


def protect(session: Session, ref: str, on: bool) -> Volume:
    """A protected volume is not deleted."""
    with session.rows() as tx:
        volume = refs.volume(tx, session.project, ref)
        if on and volume.status is Status.DELETING:
            raise ConflictError(f"volume {volume.label} is being deleted", volume=volume.id)
        volumes.change(tx, volume.id, protected=on, undescribed=True)
    return _told(session, volume.id)


def delete(session: Session, ref: str, *, cascade: bool = False, force: bool = False) -> None:
    """Delete a volume; `cascade` its snapshots, too, `force` from any `error` status."""
    volume = find(session, ref)
    own = _checked(session, volume.id, force=force) if cascade else []
    for snapshot in own:
        delete_snapshot(session, snapshot, force=force)
    remove(session, volume, force=force)


def _checked(session: Session, volume_id: str, *, force: bool) -> list[Snapshot]:
    """The snapshots of a volume that may be deleted: before the first of them goes."""
    with session.locked_volume(volume_id):
        with session.store.read() as tx:
            volume, own = volumes.get(tx, volume_id), snapshots.of_volume(tx, volume_id)
        check_deletable(volume, force=force)
        check_holders(session.env, volume, force=force)
    return own


def remove(session: Session, volume: Volume, *, force: bool) -> None:
    """Delete a volume that was found."""
    with session.locked_volume(volume.id) as locks:
        session.engine.start("volume_delete", DeleteState(volume.id, force), object_id=volume.id, locks=locks)


def delete_snapshot(session: Session, snapshot: Snapshot, *, force: bool = False) -> None:
    with session.locked_volume(snapshot.volume_id) as locks:
        with session.store.read() as tx:
            volume = volumes.get(tx, snapshot.volume_id)
        state = SnapshotDeleteState(snapshot.id, volume.id, volume.backend, force)
        session.engine.start("snapshot_delete", state, object_id=snapshot.id, locks=locks)


def revert(session: Session, ref: str, snapshot: str) -> Volume:
    """Make the volume read as its snapshot; its size stays."""
    volume = find(session, ref)
    with session.store.read() as tx:
        found = refs.snapshot(tx, session.project, snapshot)
    state = RevertState(volume.id, found.id)
    with session.locked_volume(volume.id) as locks:
        session.engine.start("volume_revert", state, object_id=volume.id, locks=locks)
    return find(session, volume.id)


def wait(session: Session, ref: str, status: str = "available") -> Volume | None:
    """Until the volume has that status (`deleted`: until it is gone, then None).

    `ConflictError` when it cannot come any more: it is in `error` and something else was waited for.
    """
    if status not in {*Status, *GONE}:
        raise UsageError(f"{status!r} is not a status", hint=f"one of {', '.join([*Status, *GONE])}")
    try:
        volume_id = find(session, ref).id
    except NotFoundError:
        if status in GONE:
            return None
        raise
    while True:
        with session.store.read() as tx:
            volume = volumes.find(tx, volume_id)
        if volume is None and status in GONE:
            return None
        if volume is None:
            raise NotFoundError(f"volume {ref} is gone", volume=volume_id)
        if volume.status == status:
            return volume
        if volume.status in (Status.ERROR, Status.ERROR_DELETING) and status not in GONE:
            raise ConflictError(f"volume {volume.label} is {volume.status}", volume=volume.id)
        for line in session.engine.settle():
            session.watcher.warn(f"settled: {line}")
        interrupt.pause(0.1)
