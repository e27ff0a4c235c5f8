"""What one writes: tasks of two halves, and flows that list them.

The outer half, `execute` and `revert`, works on the outside world (storage, programs) and is never
inside a transaction. The inner half, `record` and `unrecord`, works on rows, in the transaction that
writes the task's journal line. A task with an outer half gets a line with the names of what it is
about to make (`plan`) before it begins. `gather` may look at the world (a file's header, the room in
a pool) but changes nothing, so it needs no line.

    gather* → [transaction: earlier tasks' record, this task's begun line] → execute → [… record]

Undo goes from the newest line back: every `revert`, then every `unrecord` in one closing transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from volctl.errors import INTERRUPTIONS, VolctlError, is_of_the_system, of_os
from volctl.model import Json
from volctl.records import record

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from volctl.engine.running import Run

E = TypeVar("E")
S = TypeVar("S")


class Direction(Enum):
    """What becomes of a flow that failed or died: undone, or (once it touched storage) completed."""

    UNDO = "undo"
    COMPLETE = "complete"


@record
class Cause:
    """Why a flow is undone. `erase`: nothing of the request is to remain (cancelled, timed out)."""

    code: str
    message: str
    retryable: bool = False
    erase: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Cause:
        if isinstance(error, VolctlError):
            return cls(error.code, error.message, error.retryable, isinstance(error, INTERRUPTIONS))
        if isinstance(error, OSError) and is_of_the_system(error):
            return cls.of(of_os(error, "go on"))
        return cls("internal", f"{type(error).__name__}: {error}")


DIED = Cause("cancelled", "the command that ran this ended before it was done")


class Task(Generic[E, S]):
    """One step. `E` is the environment (what there is), `S` the flow's state (plain JSON values)."""

    effects = False
    """There is an outer half: a subclass that has `execute` has effects."""

    def __init_subclass__(cls) -> None:
        cls.effects = cls.execute is not Task.execute

    @property
    def name(self) -> str:
        return type(self).__name__

    def gather(self, run: Run[E, S]) -> None:
        """Look, decide, put what was found into `run.state`; changes nothing."""

    def plan(self, run: Run[E, S]) -> Json:
        """The names of what `execute` is about to make or clear."""
        return {}

    def execute(self, run: Run[E, S]) -> None:
        """Work on the outside; may be called again after it was done, half done or never begun."""

    def revert(self, run: Run[E, S]) -> None:
        """Take back what `execute` may have done; it may be complete, half done or never begun."""

    def record(self, tx: Connection, run: Run[E, S]) -> None:
        """Rows, in the transaction that says this task is done."""

    def unrecord(self, tx: Connection, run: Run[E, S]) -> None:
        """Take the rows back; `run.cause` says why."""


def nothing(tx: Connection, run: Run[Any, Any]) -> None:
    """The default of a flow's closing rows."""


class Flow(Generic[E, S]):
    """A named list of tasks over one state class.

    `on_undone` and `on_stuck` add rows to the transaction that closes an undone flow, or that leaves
    one stuck. A stuck flow is moot once another of its object is done later, but for those named in `beside`.
    """

    def __init__(
        self,
        name: str,
        state: type[S],
        *tasks: Task[E, S],
        direction: Direction = Direction.UNDO,
        on_undone: Callable[[Connection, Run[E, S]], None] = nothing,
        on_stuck: Callable[[Connection, Run[E, S]], None] = nothing,
        beside: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.state = state
        self.tasks: Sequence[Task[E, S]] = tasks
        self.direction = direction
        self.on_undone = on_undone
        self.on_stuck = on_stuck
        self.beside = beside

    @property
    def task_names(self) -> list[str]:
        return [task.name for task in self.tasks]
