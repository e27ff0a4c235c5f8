"""image_save: a volume or snapshot becomes an image file, or a stream; the reverse of --from-image."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from volctl.db import events, snapshots, volumes
from volctl.engine.running import Run
from volctl.engine.task import Flow, Task
from volctl.errors import ConflictError, NotFoundError
from volctl.flows import sizes
from volctl.flows.context import Context
from volctl.images import save
from volctl.model import Json, Object, Snapshot, Status, Volume
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection


@mutable
class SaveState:
    """What is saved, and where: `file` is an absolute path, None for the stream to `descriptor`.

    `place` is the file's directory, `made` the finished file, each by what tells it from others.
    """

    kind: Literal["volume", "snap"]
    id: str
    volume_id: str
    file: str | None
    descriptor: int = 1
    format: str = "raw"
    compress: bool = False
    replace: bool = False
    backend: str | None = None
    length: int = 0
    place: Json = field(default_factory=dict)
    made: Json = field(default_factory=dict)

    @property
    def object(self) -> Object:
        return Object(self.kind, self.id)


SaveRun: TypeAlias = Run[Context, SaveState]


class SaveTask(Task[Context, SaveState]):
    """A task of the image save flow."""


class CheckSaveTask(SaveTask):
    """The source is whole and nobody writes to it, and a file can be made there."""

    def gather(self, run: SaveRun) -> None:
        state = run.state
        with run.env.store.read() as tx:
            volume = volumes.get(tx, state.volume_id)
            source: Volume | Snapshot = volume if state.kind == "volume" else snapshots.get(tx, state.id)
        state.backend, state.length = volume.backend, source.size
        if isinstance(source, Volume):
            _check_volume(run.env, source)
        elif source.status is not Status.AVAILABLE:
            raise ConflictError(f"snapshot {source.label} is {source.status}, not available")
        sizes.check(run.env.backends.get(state.backend), state.object, state.length)
        if state.file is not None:
            state.place = save.check_place(Path(state.file), run.env.places.state, replace=state.replace)


class WriteImageTask(SaveTask):
    """The content, under a name of our own beside the file's; a stream goes out at once."""

    def plan(self, run: SaveRun) -> Json:
        return {"file": str(temporary(run)) if run.state.file else None}

    def execute(self, run: SaveRun) -> None:
        state, env = run.state, run.env
        backend = env.backends.get(state.backend)
        if backend.inspect(state.object) is None:
            raise NotFoundError(f"{state.object.name} is gone from backend {backend.name}", volume=state.volume_id)

        def progress(done: int, total: int) -> None:
            env.progress("save", done, total)

        with backend.reading(state.object) as source:
            if state.file is None:
                save.stream(source, state.descriptor, env.places.images, progress)
            else:
                instead = Path(state.file) if state.replace else None
                state.made = save.write(
                    source, temporary(run), state.format, compress=state.compress, instead=instead, progress=progress
                )

    def revert(self, run: SaveRun) -> None:
        if run.state.file is not None:
            save.remove(temporary(run), run.state.place)


class PublishImageTask(SaveTask):
    """The file gets its name. Undone, it goes again, but not where it replaced another."""

    def plan(self, run: SaveRun) -> Json:
        return {"file": run.state.file}

    def execute(self, run: SaveRun) -> None:
        if run.state.file is not None:
            save.publish(temporary(run), Path(run.state.file), replace=run.state.replace)

    def revert(self, run: SaveRun) -> None:
        state = run.state
        if state.file is not None and not state.replace:
            save.remove(Path(state.file), state.place, state.made)

    def record(self, tx: Connection, run: SaveRun) -> None:
        state = run.state
        events.add(tx, "image.save", state.id, run.request, {"file": state.file, "format": state.format})


def temporary(run: SaveRun) -> Path:
    """A name that no other command has, and not longer than any file system takes."""
    return Path(run.state.file or "/").parent / f".volctl-{run.id}"


def _check_volume(env: Context, volume: Volume) -> None:
    """`ConflictError` if it is not whole, or somebody may write to it."""
    if volume.status not in (Status.AVAILABLE, Status.IN_USE):
        raise ConflictError(f"volume {volume.label} is {volume.status}, not available", volume=volume.id)
    backend = env.backends.get(volume.backend)
    holders = backend.holders(Object("volume", volume.id))
    if volume.status is Status.IN_USE or holders:
        by = f" by {', '.join(holders)}" if holders else ""
        snapshot = f"take a snapshot and save that: volctl snapshot create {volume.label}"
        raise ConflictError(
            f"volume {volume.label} is in use{by}, and would be saved while it changes",
            hint=snapshot if backend.capabilities.constant_time_clone else "stop what uses it first",
            volume=volume.id,
        )


FLOW = Flow("image_save", SaveState, CheckSaveTask(), WriteImageTask(), PublishImageTask())
