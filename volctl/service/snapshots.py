"""Snapshots: take, look, change, delete."""

from __future__ import annotations

import uuid

from volctl.db import snapshots
from volctl.errors import ExistsError, UsageError
from volctl.flows import refs, words
from volctl.flows.snapshot import SnapshotState
from volctl.model import Snapshot, Status, check_name
from volctl.service.session import Session
from volctl.service.volumes import delete_snapshot, find, sort_key

SORT_KEYS = ("created_at", "name", "size", "status", "id", "volume_id")


def create(
    session: Session,
    volume: str,
    name: str | None = None,
    *,
    description: str | None = None,
    properties: tuple[str, ...] = (),
) -> Snapshot:
    """Take a snapshot of a volume."""
    found = find(session, volume)
    snapshot_id = str(uuid.uuid4())
    state = SnapshotState(
        snapshot_id,
        found.id,
        session.project,
        None if name is None else words.usage(check_name, name),
        words.description(description),
        words.properties(properties),
    )
    with session.locked_volume(found.id) as locks:
        session.engine.start("snapshot_create", state, object_id=snapshot_id, locks=locks)
    return show(session, snapshot_id)


def list_(
    session: Session,
    *,
    volume: str | None = None,
    status: str | None = None,
    all_projects: bool = False,
    sort: str = "created_at",
    limit: int | None = None,
) -> list[Snapshot]:
    """Snapshots of the project, or of one volume."""
    key, descending = sort_key(sort, SORT_KEYS)
    if status is not None and status not in set(Status):
        raise UsageError(f"{status!r} is not a status", hint=f"one of {', '.join(Status)}")
    with session.store.read() as tx:
        equal = {"status": status} if status else {}
        if volume is not None:
            equal["volume_id"] = refs.volume(tx, session.project, volume).id
        project = None if all_projects else session.project
        return snapshots.listing(tx, project=project, equal=equal, sort=key, descending=descending)[:limit]


def show(session: Session, ref: str) -> Snapshot:
    with session.store.read() as tx:
        return refs.snapshot(tx, session.project, ref)


def update(
    session: Session, ref: str, *, name: str | None, description: str | None, properties: tuple[str, ...]
) -> Snapshot:
    """Set what is given."""
    more = words.properties(properties)
    values = words.own_words(name, description)
    with session.rows() as tx:
        found = refs.snapshot(tx, session.project, ref)
        if name is not None and (other := snapshots.by_name(tx, found.project, name)) and other.id != found.id:
            raise ExistsError(f"there is a snapshot {name!r} already")
        snapshots.change(tx, found.id, properties=found.properties | more, undescribed=True, **values)
    session.changed()
    return show(session, found.id)


def delete(session: Session, ref: str) -> None:
    """Delete a snapshot; every other object keeps its content."""
    delete_snapshot(session, show(session, ref))
