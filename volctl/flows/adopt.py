"""volume_adopt and volume_release: what is there becomes a volume in place, and a volume becomes nobody's.

Neither touches a byte. Both are undone if they fail or die: the name goes back, and an adopted volume's row goes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import field
from typing import TYPE_CHECKING, TypeAlias

from volctl import files
from volctl.adoption import Adoption, Found
from volctl.db import events, image_cache, images, snapshots, volumes
from volctl.db.quotas import Usage
from volctl.engine import journal
from volctl.engine.running import Run
from volctl.engine.task import Flow, Task
from volctl.errors import ConflictError, ExistsError, ImageError, MissingError, NotFoundError
from volctl.flows import about, fault
from volctl.flows.context import Context
from volctl.flows.delete import check_deletable, check_holders
from volctl.flows.refs import VOLUME_SCHEME
from volctl.images.formats.magic import identify
from volctl.images.gate import check_whole
from volctl.model import Image, Json, Object, SourceKind, Status, now
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection

RELEASABLE = (Status.AVAILABLE, Status.ERROR)


@mutable
class AdoptState:
    """`thing` is the name that it has on the backend without us, `path` that for people; `size` in bytes.

    `identity` is that of what is adopted, as it was looked at.
    """

    volume_id: str
    backend: str
    project: str = ""
    source: str = ""
    thing: str = ""
    path: str = ""
    name: str | None = None
    description: str | None = None
    properties: dict[str, str] = field(default_factory=dict)
    size: int = 0
    status: str = ""
    identity: str | None = None

    @property
    def object(self) -> Object:
        return Object("volume", self.volume_id)


AdoptRun: TypeAlias = Run[Context, AdoptState]


class AdoptTask(Task[Context, AdoptState]):
    """A task of the adopt and release flows."""


class CheckAdoptTask(AdoptTask):
    """The name is free; it is there, fit, not held, not a volume's or an image's, and of the backend's format."""

    def gather(self, run: AdoptRun) -> None:
        state, env = run.state, run.env
        with env.store.read() as tx:
            _refuse_name(tx, state)
            _refuse_ours(tx, os.path.basename(state.source))
        found = adoption(env, state.backend).look(state.source)
        with env.store.read() as tx:
            _refuse_image(tx, found.path)
        _check_format(found, adoption(env, state.backend).format)
        state.thing, state.path, state.size, state.identity = found.name, found.path, found.size, found.identity

    def record(self, tx: Connection, run: AdoptRun) -> None:
        """Quota, and the row, status `creating`."""
        state = run.state
        quota = run.env.quota(state.project)
        quota.check_size(tx, state.size)
        quota.check(tx, Usage(volumes=1, gigabytes=state.size), None)
        _refuse_name(tx, state)
        _refuse_moving(tx, run)
        volumes.insert_row(tx, _as_row(run))
        events.add(tx, "volume.status", state.volume_id, run.request, {"from": None, "to": Status.CREATING})

    def unrecord(self, tx: Connection, run: AdoptRun) -> None:
        """Without a row, what could not be given back would be an orphan, and somebody's bytes deleted."""
        if any(line.state == journal.FAILED for line in journal.lines(tx, run.id)):
            fault.keep(tx, run, (Status.CREATING,), Status.ERROR)
        else:
            volumes.remove(tx, run.state.volume_id)


class TakeTask(AdoptTask):
    """The backend gives it our name and mark. Undone, it has its own again."""

    def plan(self, run: AdoptRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name, "from": run.state.thing}

    def execute(self, run: AdoptRun) -> None:
        state, target = run.state, about.volume(run.env, run.state.volume_id)
        adoption(run.env, state.backend).take(state.thing, target, state.identity)

    def revert(self, run: AdoptRun) -> None:
        state = run.state
        with suppress(NotFoundError):  # nor is it under its own name: there is nothing to give back
            adoption(run.env, state.backend).give(state.object, state.thing, state.identity)


class FinishAdoptTask(AdoptTask):
    """Status `available`."""

    def record(self, tx: Connection, run: AdoptRun) -> None:
        state, creating = run.state, (Status.CREATING,)
        volumes.transition(tx, state.volume_id, creating, Status.AVAILABLE, run.request, available_at=now())
        events.add(tx, "adopt.end", state.volume_id, run.request, {"path": state.path, "backend": state.backend})


class CheckReleaseTask(AdoptTask):
    """Not protected, attached, held or a registered image, no snapshots; a name is free for it."""

    def gather(self, run: AdoptRun) -> None:
        state, env = run.state, run.env
        with env.store.read() as tx:
            volume = volumes.get(tx, state.volume_id)
            taken = snapshots.of_volume(tx, volume.id)
        check_deletable(volume, force=False)
        if taken:
            names = ", ".join(snapshot.label for snapshot in taken)
            raise ConflictError(
                f"volume {volume.label} has snapshots: {names}", hint="delete them first", volume=volume.id
            )
        backend = env.backends.get(volume.backend) if volume.backend is not None else None
        if backend is None or backend.inspect(state.object) is None:
            where = f"backend {backend.name}" if backend else "any backend"
            raise ConflictError(f"volume {volume.label} has nothing on {where}", volume=volume.id)
        check_holders(env, volume)
        with env.store.read() as tx:
            _refuse_image(tx, str(backend.path(state.object)), volume.id)
        state.backend, state.status, state.name = backend.name, volume.status, volume.name
        state.thing = adoption(env, state.backend).free(volume.name or f"released-{volume.id}")
        state.path = adoption(env, state.backend).path(state.thing)

    def record(self, tx: Connection, run: AdoptRun) -> None:
        """Looks again at what needs no lock: to protect it, and to register it as an image."""
        check_deletable(volumes.get(tx, run.state.volume_id), force=False)
        if since := images.at_location(tx, f"{VOLUME_SCHEME}{run.state.volume_id}"):
            raise _is_image(f"volume {run.state.volume_id}", since[0], run.state.volume_id)
        _refuse_moving(tx, run)
        volumes.transition(tx, run.state.volume_id, RELEASABLE, Status.DELETING, run.request)

    def unrecord(self, tx: Connection, run: AdoptRun) -> None:
        status = Status(run.state.status)
        volumes.transition(tx, run.state.volume_id, (Status.DELETING,), status, run.request)


class GiveTask(AdoptTask):
    """The backend gives it a name of its own and takes our mark away. Undone, it is the volume again."""

    def plan(self, run: AdoptRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name, "to": run.state.thing}

    def execute(self, run: AdoptRun) -> None:
        adoption(run.env, run.state.backend).give(run.state.object, run.state.thing)

    def revert(self, run: AdoptRun) -> None:
        adoption(run.env, run.state.backend).take(run.state.thing, about.volume(run.env, run.state.volume_id))


class FinishReleaseTask(AdoptTask):
    """The row is gone, and with it the use of quota."""

    def record(self, tx: Connection, run: AdoptRun) -> None:
        volumes.remove(tx, run.state.volume_id)
        events.add(tx, "release.end", run.state.volume_id, run.request, {"path": run.state.path})


def adoption(env: Context, backend: str) -> Adoption:
    """`MissingError` for a backend that cannot."""
    found = env.backends.get(backend).adopting()
    if found is None:
        raise MissingError(f"backend {backend} can neither adopt nor release")
    return found


def _refuse_name(tx: Connection, state: AdoptState) -> None:
    if state.name is not None and (other := volumes.by_name(tx, state.project, state.name)):
        raise ExistsError(f"there is a volume {state.name!r} already", volume=other.id)


def _refuse_ours(tx: Connection, name: str) -> None:
    if (target := files.object_named(name)) is None:
        return
    if image_cache.find(tx, target.id):
        raise ConflictError(f"{name} is an image of the cache", hint="volctl image cache list")
    if row := volumes.find(tx, target.id) or snapshots.find(tx, target.id):
        raise ConflictError(f"{name} is {row.label} already", volume=row.id)


def _refuse_moving(tx: Connection, run: AdoptRun) -> None:
    """Until the last row of an adoption or a release is written, what has or had its name may yet be moved back."""
    state, doing = run.state, {ADOPT.name: "adopted", RELEASE.name: "released"}
    for row in journal.unfinished(tx, all_=True):
        flow = journal.load(tx, row["id"]) if row["name"] in doing and row["id"] != run.id else None
        if flow and (flow["state"]["backend"], flow["state"]["thing"]) == (state.backend, state.thing):
            raise ConflictError(f"{state.thing} is being {doing[row['name']]}", volume=row["object_id"])


def _refuse_image(tx: Connection, path: str, volume_id: str | None = None) -> None:
    """`ConflictError` for what is registered as an image, as a volume or in place: it would not be there any more."""
    for image in images.listing(tx):
        if image.location == f"{VOLUME_SCHEME}{volume_id}" or _is_at(path, image.location):
            raise _is_image(f"volume {volume_id}" if volume_id else path, image, volume_id)


def _is_image(what: str, image: Image, volume_id: str | None) -> ConflictError:
    hint = f"forget the image first: volctl image delete {image.label}"
    return ConflictError(f"{what} is the registered image {image.label}", hint=hint, volume=volume_id)


def _is_at(path: str, location: str) -> bool:
    """Is it the same file, however its path is spelt?"""
    try:
        return path == location or os.path.samefile(path, location)
    except OSError:
        return False


def _check_format(found: Found, wanted: str) -> None:
    """`ImageError` for a file that is not whole, or holds an image of another format: a guest would read its header."""
    if found.file is None:
        return
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with files.translated(f"look at {found.path}"), files.os_open(found.file, flags) as fd:
        if (there := identify(fd, os.fstat(fd).st_size).format) == wanted:
            check_whole(fd, found.path, wanted)
            return
    hint = f"volctl create --from-image {found.path}"
    raise ImageError(f"{found.path} holds {there}, and volumes of this backend are {wanted}", hint=hint)


def _as_row(run: AdoptRun) -> Json:
    state = run.state
    zone = next(config.availability_zone for config in run.env.backends.configs if config.name == state.backend)
    return {
        "id": state.volume_id,
        "name": state.name,
        "project": state.project,
        "description": state.description,
        "size": state.size,
        "status": Status.CREATING,
        "backend": state.backend,
        "availability_zone": zone,
        "bootable": False,
        "properties": state.properties,
        "source_kind": SourceKind.IMAGE,
        "source_name": state.path,
        "requested": {"size": state.size, "type": None, "source": [SourceKind.IMAGE, state.path]},
        "available_at": now(),  # it holds something from the first: in `error` it is not what a failed create left
    }


ADOPT = Flow("volume_adopt", AdoptState, CheckAdoptTask(), TakeTask(), FinishAdoptTask())
RELEASE = Flow("volume_release", AdoptState, CheckReleaseTask(), GiveTask(), FinishReleaseTask())
