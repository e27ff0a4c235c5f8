"""When images are cached, cloned from the cache, and let go of (SPEC, sections 4 and 8).

A fill and an eviction are flows of their own that a create runs beside its own flow, under locks of
their own: the create may be undone and the entry stays, and the other way round. Order of locks: the
create's own, then one for the content that is filled, then the entry's. An entry's lock is held shared
while a volume is cloned from it, exclusively while it is deleted, and for that nobody waits.

Nothing here makes a create fail, but what would make it fail without a cache: a fault of the image, a
signal, the deadline.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from typing import TYPE_CHECKING

from volctl.backend import Backend
from volctl.db import image_cache
from volctl.db.image_cache import AVAILABLE, FILLING, CachedImage
from volctl.engine import journal
from volctl.engine.locks import EXCLUSIVE, SHARED
from volctl.engine.run import Engine
from volctl.errors import BackendError, ConflictError, Failure, ImageError, NoSpaceError
from volctl.flows import pools
from volctl.flows.context import Context
from volctl.flows.image_cache import EvictState, FillState, excess
from volctl.model import GiB, round_up

if TYPE_CHECKING:
    from volctl.flows.create import CreateRun, CreateState
    from volctl.images.gate import CheckedImage

TRIES = 3  # an entry may be evicted before it is cloned from, where the cache is too small for what is asked of it


def unused(env: Context, backend: Backend) -> str | None:
    """Why images are not cached on this backend; None if they are."""
    limits = env.config.image_cache
    if not (limits["max_count"] and limits["max_gigabytes"]):
        return "it is off: max_count or max_gigabytes of [image_cache] is 0"
    if not backend.capabilities.constant_time_clone:
        return "clones are copies here, so an image would be copied twice"
    return None


def clone(run: CreateRun, backend: Backend, image: CheckedImage) -> bool:
    """Clone the volume from the cache, which is filled first if need be. False: it must be made directly."""
    env, state = run.env, run.state
    state.cached = None
    if not state.content or unused(env, backend):
        return False
    size = round_up(image.virtual_size, backend.capabilities.granule)
    if size > env.config.image_cache["max_gigabytes"] * GiB:
        return False
    try:
        for _ in range(TRIES):
            if _clone(run, backend) or not _filled(run, backend, image, size):
                break
    except ImageError:
        raise
    except Failure as error:
        env.warn(f"the image cache of backend {backend.name} could not be used: {error.message}")
        if isinstance(error, NoSpaceError):
            free(run.engine, backend.name)
    return state.cached is not None


def _clone(run: CreateRun, backend: Backend) -> bool:
    """From the entry that is there. One that is broken is dropped."""
    if (entry := _entry(run, backend)) is None:
        return False
    try:
        return _clone_from(run, backend, entry)
    except NoSpaceError:
        raise
    except Failure:
        evict(run.engine, entry)
        raise


def _clone_from(run: CreateRun, backend: Backend, entry: CachedImage) -> bool:
    """False if it is being evicted."""
    state, env = run.state, run.env
    held = run.engine.locks.try_acquire({entry.id: SHARED})
    if held is None:
        return False
    with held:
        still = _entry(run, backend)
        if still is None or still.id != entry.id:
            return False
        found = backend.inspect(entry.object)
        if found is None or found.size != entry.size:
            raise BackendError(f"{entry.object.name} is {'gone' if found is None else f'of {found.size} bytes'}")
        backend.clone(entry.object, state.object, state.size, lambda done, total: env.progress("copy", done, total))
    state.cached = entry.id
    return True


def _entry(run: CreateRun, backend: Backend) -> CachedImage | None:
    with run.env.store.read() as tx:
        found = image_cache.holding(tx, run.state.content)
    return next((entry for entry in found if (entry.backend, entry.status) == (backend.name, AVAILABLE)), None)


def _filled(run: CreateRun, backend: Backend, image: CheckedImage, size: int) -> bool:
    """Fill the cache, or wait for the command that does. False if it has no room."""
    engine, key = run.engine, run.state.content[0]
    with engine.locks.acquire({_lock(backend, key): EXCLUSIVE}, math.inf) as locks:
        if _entry(run, backend):
            return True
        _settle(engine, backend, key)
        if not _make_room(engine, backend, size):
            return False
        fill = _fill_state(run.state, backend, image, size)
        engine.start("image_cache_fill", fill, object_id=fill.entry_id, locks=locks, request=run.request)
    return True


def _fill_state(state: CreateState, backend: Backend, image: CheckedImage, size: int) -> FillState:
    assert state.image is not None
    entry_id = str(uuid.uuid4())
    entry = {
        "id": entry_id,
        "backend": backend.name,
        "key": state.content[0],
        "identity": state.content[-1],
        "location": image.path,
        "format": image.format,
        "packed": image.packed,
        "virtual_size": image.virtual_size,
        "data_size": image.data_size,
        "size": size,
    }
    return FillState(entry_id, backend.name, state.image, entry)


def _lock(backend: Backend, key: str) -> str:
    """One command at a time fills this content into this backend's cache."""
    return f"fill-{hashlib.sha256(f'{backend.name}/{key}'.encode()).hexdigest()[:32]}"


def _settle(engine: Engine[Context], backend: Backend, key: str) -> None:
    """Undo what a command left that died while it filled: we hold its lock."""
    with engine.store.read() as tx:
        dead = [entry for entry in image_cache.holding(tx, [key]) if (entry.key, entry.status) == (key, FILLING)]
        flows = [flow for entry in dead if entry.backend == backend.name for flow in journal.open_of(tx, entry.id)]
    for flow in flows:
        if said := engine.resume(flow):
            engine.warn(f"settled: {said}")


def _make_room(engine: Engine[Context], backend: Backend, size: int) -> bool:
    """Evict, least recently used first, until one more fits the limits of the cache and the backend's room."""
    env = engine.env
    if not pools.has_room(env, backend.name, size, without_cache=True):
        return False
    for victim in (*idle(env, backend.name), None):
        with env.store.read() as tx:
            full = excess(image_cache.listing(tx, backend.name), size, env)
        if not full and pools.has_room(env, backend.name, size):
            return True
        if victim is not None:
            evict(engine, victim)
    return False


def above_limits(env: Context, backend: str) -> bool:
    """Does a backend hold more than the configuration lets it, now?"""
    with env.store.read() as tx:
        entries = image_cache.listing(tx, backend)
    return bool(entries) and excess(entries[1:], entries[0].size, env)


def idle(env: Context, backend: str | None = None) -> list[CachedImage]:
    """Entries that may be evicted, least recently used first."""
    with env.store.read() as tx:
        return [entry for entry in image_cache.listing(tx, backend) if entry.status == AVAILABLE]


def free(engine: Engine[Context], backend: str) -> bool:
    """Evict all that nobody uses; whether that was any."""
    return sum(evict(engine, entry) for entry in idle(engine.env, backend)) > 0


def evict(engine: Engine[Context], entry: CachedImage) -> bool:
    """Delete an entry that nobody uses now. False if it is in use, or could not be deleted."""
    try:
        return delete(engine, entry)
    except Failure as error:
        engine.warn(f"cached image {entry.id} could not be deleted: {error.message}")
        return False


def delete(engine: Engine[Context], entry: CachedImage) -> bool:
    """The same, but what went wrong is raised."""
    locks = engine.locks.try_acquire({entry.id: EXCLUSIVE})
    if locks is None:
        return False
    state = EvictState(entry.id, entry.backend, entry.status)
    with locks:
        try:
            engine.start("image_cache_evict", state, object_id=entry.id, locks=locks)
        except ConflictError:
            return False  # volumes need it, or another command was faster
    return True


def survey(run: CreateRun) -> pools.Survey:
    """The backends as the scheduler sees them. Where only the cache leaves none with room, it is evicted first."""
    env, found = run.env, pools.survey(run.env)
    with env.store.read() as tx:
        foreseen = pools.foresee(tx, env, found, run.state)
    for victim in idle(env, foreseen.chosen) if foreseen.chosen else ():
        with env.store.read() as tx:
            if pools.choose(tx, env, found, run.state).chosen is not None:
                break
        if evict(run.engine, victim):
            found = pools.survey(env)
    return found
