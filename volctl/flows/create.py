"""What the three create flows share: the state that travels from one to the next, and their tasks' base."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, TypeAlias

from volctl.engine.running import Run
from volctl.engine.task import Task
from volctl.flows import fault
from volctl.flows.context import Context
from volctl.model import Json, Object, SourceKind, Status
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection

IN_FLIGHT = (Status.CREATING, Status.DOWNLOADING)


@mutable
class CreateState:
    """The request spec: what was asked, what was made of it, what was tried. Sizes in bytes.

    `about` is what the object is to carry, while it is made; `tree` the volume whose lock its files need,
    too. `image` holds what opens the image again (path, declared, checksum, allow_device, signature), `content`
    what its content is called in the image cache, best name first, and `cached` the entry there that the
    volume was cloned from. `physical` is what the create writes at once. `failures` are attempts: backend, error,
    code, exit.
    """

    volume_id: str
    project: str
    request: Json
    source: Json
    name: str | None = None
    description: str | None = None
    size: int = 0
    physical: int = 0
    type: str | None = None
    specs: dict[str, str] = field(default_factory=dict)
    zone: str | None = None
    source_backend: str | None = None
    bootable: bool = False
    properties: dict[str, str] = field(default_factory=dict)
    image: Json | None = None
    content: list[str] = field(default_factory=list)
    cached: str | None = None
    reservation: str | None = None
    hints: dict[str, list[str]] = field(default_factory=dict)
    max_attempts: int = 1
    failures: list[Json] = field(default_factory=list)
    backend: str | None = None
    tree: str | None = None
    about: Json | None = None

    @property
    def kind(self) -> SourceKind:
        return SourceKind(self.source["kind"])

    @property
    def object(self) -> Object:
        """The volume as its backend knows it."""
        return Object("volume", self.volume_id, self.about)


CreateRun: TypeAlias = Run[Context, CreateState]


class CreateTask(Task[Context, CreateState]):
    """A task of the create flows."""


def fail_volume(tx: Connection, run: CreateRun) -> None:
    """The closing rows of a create that nobody takes up again: status `error` and the reason."""
    fault.keep(tx, run, IN_FLIGHT, Status.ERROR, "create.error", promised=0)
