"""One run of a flow, as its tasks are given it and as its row has it."""

from __future__ import annotations

import uuid
from dataclasses import asdict, field
from typing import TYPE_CHECKING, Any, Generic

from sqlalchemy import Connection

from volctl.engine import journal
from volctl.engine.task import Cause, E, Flow, S
from volctl.model import Json, now
from volctl.records import mutable

if TYPE_CHECKING:
    from volctl.engine.run import Engine


@mutable
class Run(Generic[E, S]):
    """One run of a flow: what a task is given."""

    engine: Engine[E]
    flow: Flow[E, S]
    state: S
    request: str
    object_id: str | None
    locks: dict[str, str]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    parent_id: str | None = None
    persisted: bool = False
    started_at: str = field(default_factory=now)
    cause: Cause | None = None
    error: BaseException | None = None
    next: Run[E, Any] | None = None
    found: Any = None
    """What `gather` found and `record` needs; never persisted."""
    again: bool = False
    """A stuck flow is being tried again."""
    resumed: bool = False  # taken up after the command that began it ended

    @property
    def env(self) -> E:
        return self.engine.env

    @property
    def forgiving(self) -> bool:
        """May what failed be tried elsewhere? Not for the dead, and not over storage left behind."""
        return self.cause is not None and self.cause.retryable

    def cast(self, name: str, state: object) -> None:
        """Hand over to another flow: a row of the same transaction, so it is neither lost nor doubled."""
        flow = self.engine.flows[name]
        self.next = Run(self.engine, flow, state, self.request, self.object_id, self.locks, parent_id=self.id)

    def save(self, tx: Connection, phase: str) -> None:
        """Write the flow's row: its state, and with the last phase its end."""
        values: Json = {"state": asdict(self.state), "phase": phase}  # type: ignore[call-overload]
        if phase in (journal.DONE, journal.UNDONE):
            values["ended_at"] = now()
        if self.persisted:
            journal.update_flow(tx, self.id, **values)
        else:
            self._insert(tx, values)
        if self.next is not None:
            self.next.save(tx, journal.RUNNING)

    def _insert(self, tx: Connection, values: Json) -> None:
        row = {
            "id": self.id,
            "name": self.flow.name,
            "request": self.request,
            "parent_id": self.parent_id,
            "object_id": self.object_id,
            "tasks": self.flow.task_names,
            "locks": self.locks,
            "started_at": self.started_at,
        }
        journal.insert_flow(tx, row | values)
        self.persisted = True
