"""Flows: what ran, what was undone, what is stuck."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volctl.db import quotas, snapshots, volumes
from volctl.engine import journal
from volctl.errors import AmbiguousError, ConflictError, NotFoundError, VolctlError
from volctl.flows import image_cache, refs
from volctl.model import FlowDetails, FlowRun, Status
from volctl.service.session import Session

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping

DEFAULT_LIMIT = 50
IN_BETWEEN = tuple(set(Status) - {Status.AVAILABLE, Status.IN_USE, Status.ERROR, Status.ERROR_DELETING})


def list_(session: Session, *, limit: int | None = None, all_: bool = False) -> list[FlowRun]:
    """Newest first, the last fifty unless told otherwise."""
    with session.store.read() as tx:
        return journal.list_runs(tx, limit if limit is not None else None if all_ else DEFAULT_LIMIT)


def show(session: Session, ref: str) -> FlowDetails:
    """A flow by its id, or the newest flow of a volume, snapshot or image."""
    with session.store.read() as tx:
        return journal.as_details(tx, _find(session, tx, ref))


def _find(session: Session, tx: Connection, ref: str) -> RowMapping:
    prefix = ref.lower()
    found = journal.find(tx, prefix) if len(prefix) >= refs.SHORTEST_PREFIX else []
    if not found and (object_id := _object(session, tx, ref)):
        found = journal.find(tx, object_id)
    if not found:
        raise NotFoundError(f"there is no flow {ref!r}", hint="volctl flow list shows them")
    if len(found) > 1:
        raise AmbiguousError(f"{ref!r} is the beginning of several flows: {', '.join(row['id'] for row in found)}")
    return found[0]


def _object(session: Session, tx: Connection, ref: str) -> str | None:
    for find in (refs.volume, refs.snapshot):
        try:
            return find(tx, session.project, ref).id
        except NotFoundError:
            continue
    try:
        return refs.image(tx, ref).id
    except NotFoundError:
        return None


def retry(session: Session, ref: str) -> FlowRun:
    """Undo or complete an unfinished flow now; its error if it is stuck again.

    One that has ended well is success: the settling before this command may have been faster.
    """
    with session.store.read() as tx:
        row = _find(session, tx, ref)
    if row["phase"] in (journal.DONE, journal.UNDONE):
        return journal.as_run(row)
    _refuse_ended(row)
    with session.locked(row["locks"]):
        said = session.engine.resume(row["id"])
    if said:
        session.watcher.warn(said)
    run = _run(session, row["id"])
    if run.ended_at is None:
        raise _still(run)
    return run


def _still(run: FlowRun) -> VolctlError:
    reason = f": {run.cause.message}" if run.cause else ""
    return ConflictError(f"flow {run.id} is {run.phase} again{reason}", hint=f"volctl flow abandon {run.id} ends it")


def abandon(session: Session, ref: str) -> FlowRun:
    """End an unfinished flow as it is; what it left on its backend is the operator's from now on."""
    row = _open(session, ref)
    with session.locked(row["locks"]):
        session.engine.abandon(row["id"], _by_operator)
    return _run(session, row["id"])


def _by_operator(tx: Connection, row: RowMapping) -> None:
    close(tx, row, f"flow {row['id']} ({row['name']}) was abandoned by the operator")


def close(tx: Connection, row: RowMapping, why: str, code: str = "conflict") -> None:
    """What was in the middle of something is in `error`; a reservation of the flow is given back."""
    quotas.release(tx, row["state"].get("reservation"))
    image_cache.close(tx, row["object_id"])
    fault = {"code": code, "message": why}
    volume, snapshot = volumes.find(tx, row["object_id"]), snapshots.find(tx, row["object_id"])
    if volume is not None and volume.status in IN_BETWEEN:
        volumes.transition(tx, volume.id, IN_BETWEEN, Status.ERROR, row["request"], fault=fault, promised=0)
    if snapshot is not None and snapshot.status in IN_BETWEEN:
        snapshots.transition(tx, snapshot.id, IN_BETWEEN, Status.ERROR, row["request"], fault=fault)


def _open(session: Session, ref: str) -> RowMapping:
    with session.store.read() as tx:
        row = _find(session, tx, ref)
    _refuse_ended(row)
    return row


def _refuse_ended(row: RowMapping) -> None:
    if row["ended_at"]:
        raise ConflictError(f"flow {row['id']} has ended ({row['phase']})")


def _run(session: Session, flow_id: str) -> FlowRun:
    with session.store.read() as tx:
        row = journal.load(tx, flow_id)
    if row is None:
        raise NotFoundError(f"flow {flow_id} is gone")
    return journal.as_run(row)
