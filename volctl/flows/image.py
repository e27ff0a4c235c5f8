"""image_add and image_delete: register a disk image, in place or as our own copy, and let go of it."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from volctl.db import events, images, parts, volumes
from volctl.engine.running import Run
from volctl.engine.task import Direction, Flow, Task
from volctl.errors import ConflictError, ExistsError
from volctl.flows.context import Context
from volctl.flows.refs import VOLUME_SCHEME
from volctl.images import store
from volctl.model import Json, Status, Volume, now
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection


@mutable
class ImageState:
    """An image to register. `opened` opens it through the gate; None if `location` is a volume."""

    image_id: str
    name: str | None
    location: str
    copy: bool = False
    min_disk: int = 0
    properties: dict[str, str] = field(default_factory=dict)
    opened: Json | None = None
    format: str = "raw"
    size: int | None = None
    virtual_size: int = 0
    sha256: str | None = None
    packed: str | None = None
    identity: Json = field(default_factory=dict)


ImageRun: TypeAlias = Run[Context, ImageState]


class ImageTask(Task[Context, ImageState]):
    """A task of the image add flow."""


def check_free(tx: Connection, name: str | None) -> None:
    if name is not None and images.by_name(tx, name):
        raise ExistsError(f"there is an image {name!r} already", hint="choose another name")


def check_volume(volume: Volume) -> None:
    """`ConflictError` for one that cannot be an image."""
    if volume.status not in (Status.AVAILABLE, Status.IN_USE):
        raise ConflictError(f"volume {volume.label} is {volume.status}, not available", volume=volume.id)


class CheckImageTask(ImageTask):
    """Through the gate, before anything else reads a byte."""

    def gather(self, run: ImageRun) -> None:
        state = run.state
        with run.env.store.read() as tx:
            check_free(tx, state.name)
        if state.opened is None:
            return
        image = run.env.image(**state.opened)
        state.format, state.size, state.virtual_size = image.format, image.file_size, image.virtual_size
        state.sha256, state.identity, state.packed = image.sha256, image.identity, image.packed
        if image.packed and not state.copy:
            state.copy = True
            run.env.warn(f"{state.location} is packed ({image.packed}): what it holds is kept as our own copy")


class CopyImageTask(ImageTask):
    """With --copy, or unpacked: into the image store, under the image's id. In place there is nothing to do."""

    def plan(self, run: ImageRun) -> Json:
        return {"file": run.state.image_id if run.state.copy else None}

    def execute(self, run: ImageRun) -> None:
        state, env = run.state, run.env
        if not state.copy or state.opened is None:
            return
        image = env.image(**state.opened)
        target = stored(env, state.image_id)
        store.copy_in(image.fd, target, lambda done, total: env.progress("copy", done, total))
        image.verify_unchanged()
        state.location, state.identity = str(target), store.identity(target)

    def revert(self, run: ImageRun) -> None:
        if run.state.copy:
            store.remove(stored(run.env, run.state.image_id))


class ImageEntryTask(ImageTask):
    """The row, status `available`."""

    def record(self, tx: Connection, run: ImageRun) -> None:
        from sqlalchemy.exc import IntegrityError

        state = run.state
        if state.location.startswith(VOLUME_SCHEME):  # it may be deleted or released since
            check_volume(volumes.get(tx, state.location.removeprefix(VOLUME_SCHEME)))
        try:
            images.insert_row(tx, as_row(state))
        except IntegrityError as error:
            raise ExistsError(f"there is an image {state.name!r} already") from error
        events.add(tx, "image.add", state.image_id, run.request, {"location": state.location, "format": state.format})


def as_row(state: ImageState) -> Json:
    return {
        "id": state.image_id,
        "name": state.name,
        "location": state.location,
        "format": state.format,
        "size": state.size,
        "virtual_size": state.virtual_size,
        "sha256": state.sha256,
        "min_disk": state.min_disk,
        "properties": state.properties,
        "status": "available",
        "created_at": now(),
        "identity": state.identity,
        "owned": state.copy,
        "packed": state.packed,
    }


def stored(env: Context, image_id: str) -> Path:
    """The file of an image in the store."""
    return env.places.images / image_id


def part_of(env: Context, image_id: str) -> Path:
    """What was fetched of it so far."""
    return env.places.images / f"{image_id}.part"


def new_of(env: Context, image_id: str) -> Path:
    """What is to take its place."""
    return env.places.images / f"{image_id}.new"


@mutable
class ImageDeleteState:
    """`owned`: the file is our copy and goes too; a file in place is never touched."""

    image_id: str
    owned: bool


ImageDeleteRun: TypeAlias = Run[Context, ImageDeleteState]


class ImageDeleteTask(Task[Context, ImageDeleteState]):
    """A task of the image delete flow."""


class DeleteImageFileTask(ImageDeleteTask):
    """Our own copy goes, or what of it was fetched."""

    def plan(self, run: ImageDeleteRun) -> Json:
        return {"file": run.state.image_id if run.state.owned else None}

    def execute(self, run: ImageDeleteRun) -> None:
        if run.state.owned:
            store.remove(stored(run.env, run.state.image_id))
            store.remove(part_of(run.env, run.state.image_id))
            store.remove(new_of(run.env, run.state.image_id))


class DeleteImageEntryTask(ImageDeleteTask):
    """The row is gone."""

    def record(self, tx: Connection, run: ImageDeleteRun) -> None:
        images.remove(tx, run.state.image_id)
        parts.remove(tx, run.state.image_id)
        events.add(tx, "image.delete", run.state.image_id, run.request, {})


def stuck(tx: Connection, run: ImageDeleteRun) -> None:
    """The file may be gone or not: no longer `available`, and the flow is tried again."""
    images.change(tx, run.state.image_id, status=Status.ERROR_DELETING)


ADD = Flow("image_add", ImageState, CheckImageTask(), CopyImageTask(), ImageEntryTask())
DELETE = Flow(
    "image_delete",
    ImageDeleteState,
    DeleteImageFileTask(),
    DeleteImageEntryTask(),
    direction=Direction.COMPLETE,
    on_stuck=stuck,
)
