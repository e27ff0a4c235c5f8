"""image_cache_fill and image_cache_evict: make an image-volume to clone from, and let go of one.

A fill that fails or dies is undone, an eviction that began is completed. `volctl.flows.cache` says
when they are run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from volctl.db import events, image_cache
from volctl.db.image_cache import AVAILABLE, DELETING, ERROR, FILLING, CachedImage
from volctl.engine.running import Run
from volctl.engine.task import Direction, Flow, Task
from volctl.errors import NoSpaceError
from volctl.flows.context import Context
from volctl.model import GiB, Json, Object, now
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection


@mutable
class FillState:
    """An image-volume to make. `image` opens the image; `entry` is its row but for status and times."""

    entry_id: str
    backend: str
    image: Json
    entry: Json

    @property
    def object(self) -> Object:
        return Object("image", self.entry_id)


FillRun: TypeAlias = Run[Context, FillState]


class FillTask(Task[Context, FillState]):
    """A task of the fill flow."""


class ReserveCacheTask(FillTask):
    """The row, within the limits of the cache as they are in this transaction."""

    def record(self, tx: Connection, run: FillRun) -> None:
        state, time = run.state, now()
        entry = CachedImage(**state.entry, status=FILLING, created_at=time, used_at=time)
        if excess(image_cache.listing(tx, state.backend), entry.size, run.env):
            raise NoSpaceError(f"the image cache of backend {state.backend} is full")
        image_cache.insert_entry(tx, entry)

    def unrecord(self, tx: Connection, run: FillRun) -> None:
        image_cache.remove(tx, run.state.entry_id)


class FillCacheTask(FillTask):
    """The image's disk into an image-volume that is no larger than it must be."""

    def plan(self, run: FillRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: FillRun) -> None:
        from volctl.images.convert import copy_image

        state, env = run.state, run.env
        size: int = state.entry["size"]
        image, backend = env.image(**state.image, size=size), env.backends.get(state.backend)
        with backend.writing(state.object, size) as target:
            copy_image(image, target, lambda done, total: env.progress("convert", done, total))
        backend.verify(state.object, size)

    def revert(self, run: FillRun) -> None:
        run.env.backends.get(run.state.backend).delete(run.state.object)


class FinishCacheTask(FillTask):
    """Volumes may be cloned from it."""

    def record(self, tx: Connection, run: FillRun) -> None:
        state = run.state
        image_cache.transition(tx, state.entry_id, (FILLING,), AVAILABLE)
        payload = {"backend": state.backend, "location": state.entry["location"]}
        events.add(tx, "image_cache.fill", state.entry_id, run.request, payload)


def excess(entries: list[CachedImage], size: int, env: Context) -> bool:
    """Would one more of `size` bytes be more than a backend's cache may hold?"""
    limits = env.config.image_cache
    taken = sum(entry.size for entry in entries) + size
    return len(entries) >= limits["max_count"] or taken > limits["max_gigabytes"] * GiB


@mutable
class EvictState:
    entry_id: str
    backend: str
    status: str = AVAILABLE

    @property
    def object(self) -> Object:
        return Object("image", self.entry_id)


EvictRun: TypeAlias = Run[Context, EvictState]


class EvictTask(Task[Context, EvictState]):
    """A task of the evict flow."""


class CheckEvictTask(EvictTask):
    """Nothing new is cloned from it."""

    def record(self, tx: Connection, run: EvictRun) -> None:
        image_cache.transition(tx, run.state.entry_id, (run.state.status,), DELETING)

    def unrecord(self, tx: Connection, run: EvictRun) -> None:
        image_cache.transition(tx, run.state.entry_id, (DELETING,), run.state.status)


class DeleteCachedImageTask(EvictTask):
    """The backend deletes it, or says that overlays need it (`InUseError`), which changes nothing."""

    def plan(self, run: EvictRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: EvictRun) -> None:
        run.env.backends.get(run.state.backend).delete(run.state.object)


class DeleteCacheEntryTask(EvictTask):
    """The row is gone."""

    def record(self, tx: Connection, run: EvictRun) -> None:
        image_cache.remove(tx, run.state.entry_id)
        payload = {"backend": run.state.backend}
        events.add(tx, "image_cache.evict", run.state.entry_id, run.request, payload)


def close(tx: Connection, entry_id: str | None) -> None:
    """The row of an eviction that an operator abandoned: what may be there is of no use."""
    if entry_id is not None and (found := image_cache.find(tx, entry_id)) and found.status != AVAILABLE:
        image_cache.change(tx, entry_id, status=ERROR)


FILL = Flow("image_cache_fill", FillState, ReserveCacheTask(), FillCacheTask(), FinishCacheTask())
EVICT = Flow(
    "image_cache_evict",
    EvictState,
    CheckEvictTask(),
    DeleteCachedImageTask(),
    DeleteCacheEntryTask(),
    direction=Direction.COMPLETE,
)
