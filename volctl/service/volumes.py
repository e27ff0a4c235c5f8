"""Volumes: create, look, change, delete."""

from __future__ import annotations

import fnmatch
import itertools
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from volctl import interrupt
from volctl.db import snapshots, volumes
from volctl.engine import journal
from volctl.engine.locks import EXCLUSIVE, SHARED
from volctl.errors import ConflictError, ExistsError, NotFoundError, UsageError, VolctlError
from volctl.flows import pools, refs, request, words
from volctl.flows.attach import as_found, attachment
from volctl.flows.context import Context
from volctl.flows.create import CreateState
from volctl.flows.delete import DeleteState, check_deletable, check_holders
from volctl.flows.extend import ExtendState
from volctl.flows.refs import SourceRef
from volctl.flows.revert import RevertState
from volctl.flows.snapshot_delete import SnapshotDeleteState
from volctl.model import (
    CreateRequest,
    Explanation,
    Object,
    Snapshot,
    Status,
    Volume,
    VolumeDetails,
    check_name,
    exact_size,
    format_size,
    parse_size,
)
from volctl.service import sources
from volctl.service.session import Session

if TYPE_CHECKING:
    pass

FINAL = (Status.AVAILABLE, Status.IN_USE, Status.ERROR, Status.ERROR_DELETING)
GONE = ("deleted", "gone")


def create(session: Session, wanted: CreateRequest) -> Volume:
    """Make a volume through the three flows. With `if_absent` the one that is there, if it is the same."""
    if not wanted.if_absent:
        return _create(session, wanted)
    if wanted.name is None:
        raise UsageError("--if-absent needs a name")
    while True:
        if (found := _present(session, wanted)) is not None:
            return found
        try:
            return _create(session, wanted)
        except ExistsError:
            interrupt.check()  # somebody was faster: judge theirs


def _create(session: Session, wanted: CreateRequest) -> Volume:
    with sources.found(session, wanted) as (asked, source):
        return _create_from(session, asked, source)


def _create_from(session: Session, wanted: CreateRequest, source: SourceRef) -> Volume:
    volume_id = str(uuid.uuid4())
    names = {volume_id: EXCLUSIVE} | source_lock(session.env, source)
    state = CreateState(volume_id, session.project, asdict(wanted), asdict(source))
    with session.locked(names) as locks:
        try:
            session.engine.start("volume_create_api", state, object_id=volume_id, locks=locks)
        except VolctlError as error:
            error.volume = error.volume or _row_left(session, volume_id)
            raise
    with session.store.read() as tx:
        made = volumes.get(tx, volume_id)
    if wanted.size is not None:
        _tell_rounding(session, made, exact_size(wanted.size))
    return made


def _tell_rounding(session: Session, made: Volume, asked: int) -> None:
    if made.size != asked:
        session.watcher.warn(f"the size was rounded up to {made.size} bytes ({format_size(made.size)})")


def _row_left(session: Session, volume_id: str) -> str | None:
    with session.store.read() as tx:
        return volume_id if volumes.find(tx, volume_id) else None


def source_lock(env: Context, source: SourceRef) -> dict[str, str]:
    """The source's volume and its tree: exclusive only where a clone changes them."""
    if source.volume_id is None:
        return {}
    with env.store.read() as tx:
        volume = volumes.find(tx, source.volume_id)
        names = volumes.lock_names(tx, source.volume_id)
    if volume is not None:
        as_found(env, volume)
    touched = volume is not None and env.backends.has(volume.backend)
    if touched and volume is not None and env.backends.get(volume.backend).capabilities.clone_locks_source:
        return dict.fromkeys(names, EXCLUSIVE)
    return dict.fromkeys(names, SHARED)


def _present(session: Session, wanted: CreateRequest) -> Volume | None:
    """The volume of that name if it is what is wanted; None if it is to be made (anew)."""
    found = _named(session, wanted)
    while found is not None and found.status not in FINAL:
        found = _awaited(session, wanted, found)
    if found is None or _same(session, wanted, found):
        return found
    _delete(session, found, force=False)
    return None


def _named(session: Session, wanted: CreateRequest) -> Volume | None:
    with session.store.read() as tx:
        return volumes.by_name(tx, session.project, words.usage(check_name, wanted.name or ""))


def _awaited(session: Session, wanted: CreateRequest, busy: Volume) -> Volume | None:
    """The volume of that name when whoever works on it is done or gone."""
    with session.locked_volume(busy.id):
        pass
    for line in session.engine.settle():
        session.watcher.warn(f"settled: {line}")
    found = _named(session, wanted)
    if found is not None and (found.status, found.updated_at) == (busy.status, busy.updated_at):
        raise _in_the_way(found)
    return found


def _same(session: Session, wanted: CreateRequest, found: Volume) -> bool:
    """Is it what is wanted? False for a failed volume that may be replaced; else a `ConflictError`."""
    if found.status in (Status.ERROR, Status.ERROR_DELETING):
        _check_worthless(session, found)
        return False
    with session.store.read() as tx:
        there = volumes.column(tx, found.id, "requested") or {}
    _compare(found, there, request.wanted(wanted, _source_wanted(session, wanted, found)))
    return True


def _source_wanted(session: Session, wanted: CreateRequest, found: Volume) -> SourceRef:
    """The source as it was, if it is gone meanwhile: the command may be run again all the same."""
    try:
        with session.store.read() as tx:
            return refs.source(tx, session.project, wanted)
    except NotFoundError:
        if not refs.names_source(wanted, found.source):
            raise
        path = found.source.name if found.source.id is None else None
        return SourceRef(found.source.kind, found.source.id, path=path)


def _check_worthless(session: Session, found: Volume) -> None:
    """`ConflictError` unless it is a failed volume that never held anything."""
    with session.store.read() as tx:
        stuck = journal.is_open_for(tx, found.id)
    worthless = found.status is Status.ERROR and found.available_at is None and not attachment(found)
    if not worthless or found.protected or stuck:
        raise _in_the_way(found)


def _in_the_way(found: Volume) -> ConflictError:
    said = f"volume {found.label} is there and in status {found.status}"
    return ConflictError(said, hint=f"volctl show {found.label} says why", volume=found.id)


def _compare(found: Volume, there: dict[str, object], asked: dict[str, object]) -> None:
    size, type_name = asked["size"], asked["type"]
    different = []
    if size not in (None, there.get("size"), found.size):
        different.append(f"size {found.size}, not {size}")
    if type_name not in (None, found.type):
        different.append(f"type {found.type}, not {type_name}")
    if asked["source"] != there.get("source"):
        different.append(f"source {_source_text(there.get('source'))}, not {_source_text(asked['source'])}")
    if different:
        raise ExistsError(
            f"volume {found.label} is there, but different: {'; '.join(different)}",
            hint="choose another name",
            volume=found.id,
        )


def _source_text(source: object) -> str:
    return " ".join(str(part) for part in source if part) if isinstance(source, list) else str(source)


def plan(session: Session, wanted: CreateRequest, count: int = 1) -> Explanation:
    """What a create of `count` such volumes would get, and why; nothing is changed.

    `chosen` is None if no backend passes. With `if_absent` and the volume there, why it is where it is.
    """
    if wanted.if_absent and (found := _named(session, wanted)) is not None:
        if _same(session, wanted, found):
            return show(session, found.id).explanation or Explanation(found.size, found.type, found.backend, ())
        wanted = replace(wanted, name=None)
    state = sources.foreseen(session, wanted)
    survey = pools.survey(session.env)
    with session.store.read() as tx:
        request.check_quota(tx, session.env, state, count)
        return pools.foresee(tx, session.env, survey, state)


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
    _tell_rounding(session, made, exact_size(text) + (volume.size if by else 0))
    return made


def update(
    session: Session, ref: str, *, name: str | None, description: str | None, properties: tuple[str, ...]
) -> Volume:
    """Set what is given."""
    more = words.properties(properties)
    values = words.own_words(name, description)
    with session.store.write() as tx:
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
    with session.store.write() as tx:
        volume = refs.volume(tx, session.project, ref)
        left = {key: value for key, value in volume.properties.items() if key not in properties}
        volumes.change(tx, volume.id, properties=left, undescribed=True, **values)
    return _told(session, volume.id)


def protect(session: Session, ref: str, on: bool) -> Volume:
    """A protected volume is not deleted."""
    with session.store.write() as tx:
        volume = refs.volume(tx, session.project, ref)
        volumes.change(tx, volume.id, protected=on, undescribed=True)
    return _told(session, volume.id)


def delete(session: Session, ref: str, *, cascade: bool = False, force: bool = False) -> None:
    """Delete a volume; `cascade` its snapshots, too, `force` from any `error` status."""
    volume = find(session, ref)
    with session.store.read() as tx:
        own = snapshots.of_volume(tx, volume.id) if cascade else []
    if own:
        check_deletable(volume, force=force)
        check_holders(session.env, volume, force=force)
    for snapshot in own:
        delete_snapshot(session, snapshot, force=force)
    _delete(session, volume, force=force)


def _delete(session: Session, volume: Volume, *, force: bool) -> None:
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
    volume_id = find(session, ref).id
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
        session.engine.settle()
        interrupt.pause(0.1)
