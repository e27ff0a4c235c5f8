"""Driving a flow forward, undoing it from what is persisted, and settling what others left.

An ordinary failure takes the same road back as a crash: undo reads the journal, never memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Generic, cast

from sqlalchemy import Connection, RowMapping

from volctl import interrupt
from volctl.db import store as db
from volctl.engine import journal
from volctl.engine.locks import LockDirectory, LockSet
from volctl.engine.running import Run
from volctl.engine.task import DIED, Cause, Direction, E, Flow, S, Task
from volctl.errors import INTERRUPTIONS, ConflictError, InternalError, NoSpaceError, TimedOut, VolctlError
from volctl.model import now


class Engine(Generic[E]):
    """Runs the flows of one command. `tell(flow, task, what)` hears each step, `warn` sentences."""

    def __init__(
        self,
        store: db.Store,
        locks: LockDirectory,
        flows: Mapping[str, Flow[E, Any]],
        env: E,
        tell: Callable[[str, str, str], None] = lambda flow, task, what: None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store = store
        self.locks = locks
        self.flows = flows
        self.env = env
        self.tell = tell
        self.warn = warn

    @interrupt.work()
    def start(self, name: str, state: S, *, object_id: str | None, locks: LockSet, request: str | None = None) -> S:
        """Run a flow, and those it casts, to the end; the last one's state.

        Raises the error of what failed, after everything was undone or put down as stuck.
        """
        request = request or str(uuid.uuid4())
        run: Run[E, Any] | None = Run(self, self.flows[name], state, request, object_id, locks.names)
        failed: BaseException | None = None
        while run is not None:
            last = run
            failed = self._attempt(run)
            run = run.next
        if failed is not None:
            raise failed
        return cast(S, last.state)

    def _attempt(self, run: Run[E, Any]) -> BaseException | None:
        """One flow forward, or back; the error that stands if nothing was cast instead."""
        try:
            self._forward(run, 0)
        except Exception as error:
            with interrupt.undoing():
                return self._failed_in_time(run, error)
        return None

    def _failed_in_time(self, run: Run[E, Any], error: Exception) -> BaseException | None:
        """A command that a signal or the deadline ends says so, also if no time was left to undo it all."""
        try:
            return self._failed(run, error)
        except TimedOut as late:
            if not isinstance(error, INTERRUPTIONS):
                raise
            self.warn(f"{late.message}: the next command ends what {run.flow.name} of {run.object_id} began")
            run.next = None
            return error

    def _failed(self, run: Run[E, Any], error: Exception) -> BaseException | None:
        phase = self._phase(run.id)
        if phase is None:
            run.next = None
            return error  # nothing of it was written
        if phase == journal.DONE:
            return None  # what failed came after the last commit
        self._fail(run, error)
        return None if run.next else error

    def _phase(self, flow_id: str) -> str | None:
        with self.store.read() as tx:
            row = journal.load(tx, flow_id)
        return row["phase"] if row else None

    def _forward(self, run: Run[E, Any], position: int) -> None:
        """From `position` to the end. A task's rows wait for the next transaction, which saves commits."""
        pending: list[tuple[int, str, str, bool]] = []
        for number, task in enumerate(run.flow.tasks[position:], position):
            interrupt.check()
            self.tell(run.flow.name, task.name, journal.BEGUN)
            started = now()
            task.gather(run)
            if task.effects:
                self._write_ahead(run, pending, number, task)
                pending = []
                db.probe(f"before {task.name}")
                task.execute(run)
                db.probe(f"after {task.name}")
            pending.append((number, task.name, started, task.effects))
        with interrupt.closing():
            with self.store.write() as tx:
                self._record(tx, run, pending)
                run.save(tx, journal.DONE)
                journal.finish(tx, run.id, pending)
            if run.next is None and not run.resumed:
                interrupt.finished()
        self._told(run, pending)

    def _write_ahead(
        self, run: Run[E, Any], pending: list[tuple[int, str, str, bool]], number: int, task: Task[E, Any]
    ) -> None:
        interrupt.check()
        with self.store.write() as tx:
            self._record(tx, run, pending)
            run.save(tx, journal.RUNNING)
            journal.finish(tx, run.id, pending)
            journal.begin(tx, run.id, number, task.name, task.plan(run))
        self._told(run, pending)

    def _record(self, tx: Connection, run: Run[E, Any], pending: list[tuple[int, str, str, bool]]) -> None:
        for number, *_ in pending:
            run.flow.tasks[number].record(tx, run)

    def _told(self, run: Run[E, Any], pending: list[tuple[int, str, str, bool]]) -> None:
        for _, name, *_ in pending:
            self.tell(run.flow.name, name, journal.DONE)

    def _fail(self, run: Run[E, Any], error: Exception) -> None:
        """An ordinary failure of a flow that is on disk."""
        run.error, run.next, cause = error, None, Cause.of(error)
        if run.flow.direction is Direction.UNDO or not self._touched(run) or _untouched(run.error):
            self._undo(run, cause)
        elif isinstance(run.error, INTERRUPTIONS):
            self.warn(f"what {run.flow.name} of {run.object_id} began is completed by the next command")
        else:
            self._stick(run, cause)

    def _touched(self, run: Run[E, Any]) -> bool:
        """Did outside work begin?"""
        with self.store.read() as tx:
            return any(run.flow.tasks[line.position].effects for line in journal.lines(tx, run.id))

    def _undo(self, run: Run[E, Any], cause: Cause) -> None:
        """Back from what the journal holds; `run.next` is set if the request was cast again."""
        try:
            lines = self._begin_undo(run, cause)
        except NoSpaceError:  # what the flow made may be what fills the journal's disk
            with self.store.read() as tx:
                lines = journal.lines(tx, run.id)
            self._revert(run, lines)
            lines = self._begin_undo(run, cause)
        failed = self._revert(run, lines)
        with self.store.write() as tx:
            self._close(tx, run, lines, failed)
        for name in failed.values():
            self.warn(f"{name} could not be undone; it is kept as stuck flow {run.id}")

    def _begin_undo(self, run: Run[E, Any], cause: Cause) -> list[journal.Line]:
        with self.store.write() as tx:
            row = journal.load(tx, run.id)
            if row is None:
                raise InternalError(f"flow {run.id} has vanished")
            run.state = run.flow.state(**row["state"])
            run.cause = journal.cause_of(row) or cause
            if cause is DIED:
                run.cause = replace(run.cause, retryable=False)
            phase = journal.STUCK if run.again else journal.UNDOING
            journal.update_flow(tx, run.id, phase=phase, cause=journal.cause_json(run.cause))
            return journal.lines(tx, run.id)

    def _revert(self, run: Run[E, Any], lines: list[journal.Line]) -> dict[int, str]:
        """Every outer half, newest first. Those that fail, by position; the rest is still undone."""
        failed: dict[int, str] = {}
        for line in reversed(lines):
            task = run.flow.tasks[line.position]
            if not task.effects or line.state == journal.UNDONE:
                continue
            try:
                db.probe(f"before undo of {task.name}")
                task.revert(run)
                db.probe(f"after undo of {task.name}")
                self.tell(run.flow.name, task.name, journal.UNDONE)
            except INTERRUPTIONS:
                raise
            except Exception as error:
                self.warn(f"undoing {task.name}: {error}")
                failed[line.position] = task.name
        return failed

    def _close(self, tx: Connection, run: Run[E, Any], lines: list[journal.Line], failed: dict[int, str]) -> None:
        """The closing transaction: rows back, lines marked, and the end of the flow (or `stuck`)."""
        assert run.cause is not None
        if failed:
            run.cause = Cause(run.cause.code, run.cause.message)
        for line in reversed(lines):
            if line.position in failed:
                journal.mark(tx, run.id, line.position, journal.FAILED)
                continue
            if line.state == journal.DONE:
                run.flow.tasks[line.position].unrecord(tx, run)
            if line.state != journal.UNDONE:
                journal.mark(tx, run.id, line.position, journal.UNDONE)
        if run.cause.erase:
            self._undo_parents(tx, run)
        elif run.next is None and not any(line.state == journal.FAILED for line in lines):
            run.flow.on_undone(tx, run)
        if failed:
            self._mark_stuck(tx, run)
        else:
            run.save(tx, journal.UNDONE)

    def _undo_parents(self, tx: Connection, run: Run[E, Any]) -> None:
        """A cancelled request leaves nothing: the flows that cast this one are undone with it."""
        parent_id = run.parent_id
        while parent_id and (row := journal.load(tx, parent_id)):
            parent = self._restore(row)
            parent.cause = run.cause
            for line in reversed(journal.lines(tx, parent.id)):
                if line.state == journal.DONE:
                    parent.flow.tasks[line.position].unrecord(tx, parent)
                    journal.mark(tx, parent.id, line.position, journal.UNDONE)
            parent.save(tx, journal.UNDONE)
            parent_id = parent.parent_id

    def _stick(self, run: Run[E, Any], cause: Cause) -> None:
        """Work that must be completed failed: keep it, and try again later."""
        with self.store.write() as tx:
            row = journal.load(tx, run.id)
            run.cause = cause
            self._mark_stuck(tx, run)
            if row is not None and row["phase"] != journal.STUCK:
                run.flow.on_stuck(tx, run)

    def _mark_stuck(self, tx: Connection, run: Run[E, Any]) -> None:
        row = journal.load(tx, run.id)
        tries = row["tries"] + 1 if row else 1
        cause = journal.cause_json(run.cause) if run.cause else None
        values = {"phase": journal.STUCK, "tries": tries, "next_try": journal.next_try(tries), "cause": cause}
        journal.update_flow(tx, run.id, **values)

    # -- what others left

    def settle(self) -> list[str]:
        """Undo or complete every flow whose command is gone; one sentence for each."""
        with self.store.read() as tx:
            rows = journal.unfinished(tx)
        said = []
        for row in rows:
            interrupt.check()
            locks = self.locks.try_acquire(row["locks"])
            if locks is None:
                continue  # its owner lives
            with locks:
                said.append(self.resume(row["id"]))
        self.locks.sweep()
        return [line for line in said if line]

    def resume(self, flow_id: str) -> str:
        """Undo or complete one flow whose locks the caller holds; a sentence about it, or nothing."""
        with self.store.read() as tx:
            row = journal.load(tx, flow_id)
        if row is None or row["ended_at"]:
            return ""
        what = f"{row['name']} of {row['object_id']}"
        if not self._known(row):
            return f"{what} was begun by another version and is left alone; `volctl flow abandon {flow_id}` ends it"
        run = self._restore(row)
        run.again = row["phase"] == journal.STUCK
        try:
            self._take_up(run, row)
        except INTERRUPTIONS:
            raise
        except Exception as error:
            self._put_aside(run, error)
        phase = self._phase(flow_id)
        if phase == journal.ABANDONED:
            return f"{what} was overtaken by a later flow"
        if phase == journal.STUCK:
            return "" if run.again else f"{what} could not be settled: {run.error}; it is stuck flow {flow_id}"
        return f"{what} was {'completed' if phase == journal.DONE else 'undone'}"

    def _take_up(self, run: Run[E, Any], row: RowMapping) -> None:
        with self.store.read() as tx:
            lines = journal.lines(tx, run.id)
        touched = any(run.flow.tasks[line.position].effects for line in lines)
        if run.flow.direction is Direction.UNDO or not touched or row["phase"] == journal.UNDOING:
            self._undo(run, DIED)
        elif not self._overtaken(run, row):
            self._complete(run, min(line.position for line in lines if line.state != journal.DONE))

    def _complete(self, run: Run[E, Any], position: int) -> None:
        try:
            self._forward(run, position)
        except INTERRUPTIONS:
            raise
        except Exception as error:
            self._fail(run, error)

    def _overtaken(self, run: Run[E, Any], row: RowMapping) -> bool:
        """A stuck flow whose object a later flow finished with has nothing left to complete."""
        with self.store.write() as tx:
            later = run.again and journal.done_later(tx, run.object_id, row["number"], run.flow.beside)
            if later:
                journal.abandon(tx, run.id)
        return later

    def _put_aside(self, run: Run[E, Any], error: Exception) -> None:
        """What cannot even be settled must not keep every other command from its work."""
        run.error = error
        with self.store.write() as tx:
            run.cause = run.cause or Cause.of(error)
            self._mark_stuck(tx, run)

    def _known(self, row: RowMapping) -> bool:
        """Are this flow's task list and state still those of this version?"""
        flow = self.flows.get(row["name"])
        if flow is None or flow.task_names != row["tasks"]:
            return False
        return set(row["state"]) == {field.name for field in fields(flow.state)}

    def _restore(self, row: RowMapping) -> Run[E, Any]:
        flow = self.flows[row["name"]]
        run = Run(self, flow, flow.state(**row["state"]), row["request"], row["object_id"], row["locks"])
        run.id, run.parent_id, run.persisted, run.resumed = row["id"], row["parent_id"], True, True
        run.cause = journal.cause_of(row)
        return run

    def abandon(self, flow_id: str, close: Callable[[Connection, RowMapping], None]) -> None:
        """End a flow without undoing or completing it; its lines stay. `close` puts the object's rows right."""
        with self.store.write() as tx:
            row = journal.load(tx, flow_id)
            if row is None or row["ended_at"]:
                raise ConflictError(f"flow {flow_id} has ended already")
            close(tx, row)
            journal.abandon(tx, flow_id)


def _untouched(error: BaseException | None) -> bool:
    return isinstance(error, VolctlError) and error.untouched
