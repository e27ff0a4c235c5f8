"""The two tables of the journal: `flows`, one row a run, and `journal`, one line a task.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from volctl.db.made import of_cells
from volctl.db.tables import flows, journal
from volctl.engine.task import Cause
from volctl.model import Fault, FlowDetails, FlowRun, Json, TaskRun, now
from volctl.records import record

RUNNING, UNDOING, STUCK, DONE, UNDONE, ABANDONED = "running", "undoing", "stuck", "done", "undone", "abandoned"
BEGUN, FAILED = "begun", "failed"  # of a line, beside DONE and UNDONE
LONGEST_PAUSE = 3600  # seconds between tries of a stuck flow


@record
class Line:
    """One task of one run."""

    position: int
    task: str
    state: str
    plan: Json


def insert_flow(tx: Connection, row: Json) -> None:
    tx.execute(insert(flows), row)


def update_flow(tx: Connection, flow_id: str, **values: Any) -> None:
    tx.execute(update(flows).where(flows.c.id == flow_id).values(**values))


def load(tx: Connection, flow_id: str) -> RowMapping | None:
    return tx.execute(select(flows).where(flows.c.id == flow_id)).mappings().one_or_none()


def lines(tx: Connection, flow_id: str) -> list[Line]:
    """Oldest first."""
    columns = (journal.c.position, journal.c.task, journal.c.state, journal.c.plan)
    rows = tx.execute(select(*columns).where(journal.c.flow_id == flow_id).order_by(journal.c.position))
    return [Line(*row) for row in rows]


def begin(tx: Connection, flow_id: str, position: int, task: str, plan: Json) -> None:
    """Write ahead: this task is about to touch the outside. Again, for a completed run, is no change."""
    if _exists(tx, flow_id, position):
        return
    line = {"flow_id": flow_id, "position": position, "task": task, "state": BEGUN, "plan": plan, "started_at": now()}
    tx.execute(insert(journal), line)


def _exists(tx: Connection, flow_id: str, position: int) -> bool:
    line = select(journal.c.position).where(journal.c.flow_id == flow_id, journal.c.position == position)
    return tx.execute(line).first() is not None


def finish(tx: Connection, flow_id: str, done: Iterable[tuple[int, str, str, bool]]) -> None:
    """Lines (position, task, started_at, begun) are done: those that begun say are there already."""
    time = now()
    fresh = []
    for position, task, started_at, begun in done:
        if begun:
            mark(tx, flow_id, position, DONE)
        else:
            line = {"flow_id": flow_id, "position": position, "task": task, "state": DONE, "plan": {}}
            fresh.append(line | {"started_at": started_at, "ended_at": time})
    if fresh:
        tx.execute(insert(journal), fresh)


def mark(tx: Connection, flow_id: str, position: int, state: str) -> None:
    line = update(journal).where(journal.c.flow_id == flow_id, journal.c.position == position)
    tx.execute(line.values(state=state, ended_at=now()))


def unfinished(tx: Connection, *, all_: bool = False) -> Sequence[RowMapping]:
    """Open flows whose turn it is, oldest first; a stuck one only when its pause is over, or with `all_`."""
    columns = (flows.c.id, flows.c.name, flows.c.locks, flows.c.phase, flows.c.next_try, flows.c.object_id)
    rows = tx.execute(select(*columns).where(flows.c.ended_at.is_(None)).order_by(flows.c.number)).mappings()
    time = now()
    return [row for row in rows if all_ or row["next_try"] is None or row["next_try"] <= time]


def next_try(tries: int) -> str:
    """When a stuck flow is tried again: after 1, 2, 4 … seconds, at most an hour."""
    pause = min(2 ** min(tries, 20), LONGEST_PAUSE)
    return (datetime.now(UTC) + timedelta(seconds=pause)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def reservations(tx: Connection) -> set[str]:
    """What flows that have not ended hold reserved."""
    states = tx.execute(select(flows.c.state).where(flows.c.ended_at.is_(None))).scalars()
    return {state["reservation"] for state in states if state.get("reservation")}


def is_open_for(tx: Connection, object_id: str) -> bool:
    """Is there a flow of this object that has not ended?"""
    return bool(open_of(tx, object_id))


def open_of(tx: Connection, object_id: str) -> Sequence[str]:
    """The ids of the object's flows that have not ended."""
    query = select(flows.c.id).where(flows.c.object_id == object_id, flows.c.ended_at.is_(None))
    return tx.execute(query).scalars().all()


def abandon(tx: Connection, flow_id: str) -> None:
    """It ends as it is."""
    update_flow(tx, flow_id, phase=ABANDONED, ended_at=now())


def done_later(tx: Connection, object_id: str | None, number: int, beside: Sequence[str] = ()) -> bool:
    """Was a flow of this object, and none of those names, begun after flow `number`, and done?"""
    later = select(flows.c.id).where(flows.c.object_id == object_id, flows.c.number > number, flows.c.phase == DONE)
    if beside:
        later = later.where(flows.c.name.not_in(beside))
    return tx.execute(later.limit(1)).first() is not None


def has_older(tx: Connection, before: str) -> bool:
    return tx.execute(select(flows.c.id).where(flows.c.ended_at < before).limit(1)).first() is not None


def prune(tx: Connection, before: str, limit: int = 1000) -> int:
    """Forget runs that ended before that time; the count of those forgotten."""
    old = select(flows.c.id).where(flows.c.ended_at < before).limit(limit)
    return tx.execute(delete(flows).where(flows.c.id.in_(old))).rowcount


def cause_json(cause: Cause) -> Json:
    return asdict(cause)


@of_cells
def cause_of(row: RowMapping) -> Cause | None:
    return Cause(**row["cause"]) if row["cause"] else None


def as_run(row: RowMapping) -> FlowRun:
    cause = cause_of(row)
    fault = Fault(cause.code, cause.message) if cause else None
    fields = (row["id"], row["name"], row["request"], row["object_id"], row["phase"])
    return FlowRun(*fields, fault, row["started_at"], row["ended_at"])


def as_details(tx: Connection, row: RowMapping) -> FlowDetails:
    columns = (journal.c.task, journal.c.state, journal.c.started_at, journal.c.ended_at)
    found = tx.execute(select(*columns).where(journal.c.flow_id == row["id"]).order_by(journal.c.position))
    run = as_run(row)
    parts = (run.id, run.name, run.request, run.object, run.phase, run.cause, run.started_at, run.ended_at)
    return FlowDetails(*parts, tasks=tuple(TaskRun(*line) for line in found))


def list_runs(tx: Connection, limit: int | None) -> list[FlowRun]:
    """Newest first."""
    rows = tx.execute(select(flows).order_by(flows.c.number.desc()).limit(limit)).mappings()
    return [as_run(row) for row in rows]


def find(tx: Connection, ref: str) -> Sequence[RowMapping]:
    """Runs whose id begins with `ref`, or the newest run of the object with that id."""
    by_id = tx.execute(select(flows).where(flows.c.id >= ref, flows.c.id < ref + "g").limit(3)).mappings().all()
    if by_id:
        return by_id
    newest = select(flows).where(flows.c.object_id == ref).order_by(flows.c.number.desc()).limit(1)
    return tx.execute(newest).mappings().all()
