"""The image cache: what it holds, and letting go of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from volctl import interrupt
from volctl.db import image_cache, images
from volctl.db.image_cache import AVAILABLE, ERROR, CachedImage
from volctl.errors import INTERRUPTIONS, Failure
from volctl.flows import cache
from volctl.images import content, store
from volctl.model import GiB, Json
from volctl.service.session import Session

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from volctl.backend import Backend


def list_(session: Session, *, backend: str | None = None) -> list[CachedImage]:
    """Least recently used first."""
    if backend is not None:
        session.env.backends.ask(backend)
    with session.store.read() as tx:
        return image_cache.listing(tx, backend)


def prune(
    session: Session, *, backend: str | None = None, all_: bool = False
) -> tuple[list[CachedImage], list[CachedImage]]:
    """Delete what is of no use any more, or with `all_` whatever no volume needs; what was deleted, and what failed.

    Of no use: the image file has gone or changed, the image-volume is broken, the backend's clones
    are copies now, or the cache is above its limits.
    """
    removed, failed = [], []
    for entry in list_(session, backend=backend):
        if entry.status not in (AVAILABLE, ERROR):
            continue  # another command works on it
        if not session.env.backends.has(entry.backend):
            session.watcher.warn(f"cached image {entry.id}: backend {entry.backend} is not configured")
        elif all_ or _useless(session, entry):
            try:
                if cache.delete(session.engine, entry):
                    removed.append(entry)
            except Failure as error:
                session.watcher.warn(f"cached image {entry.id}: {error.message}")
                failed.append(entry)
    return removed, failed


def _useless(session: Session, entry: CachedImage) -> bool:
    env = session.env
    backend = env.backends.get(entry.backend)
    if entry.status == ERROR or cache.unused(env, backend) or cache.above_limits(env, entry.backend):
        return True
    found = backend.inspect(entry.object)
    return found is None or found.size != entry.size or _is_stale(session, entry)


def _is_stale(session: Session, entry: CachedImage) -> bool:
    """Is there no file and no registered image of this content?"""
    moved = session.env.places.images / os.path.basename(entry.location)  # with the state directory, since then
    for path in (entry.location, moved):
        with suppress(OSError):  # the file is gone
            if content.of_file(store.identity_of(os.stat(path))) == entry.identity:
                return False
    with session.store.read() as tx:
        return not _is_registered(tx, entry)


def _is_registered(tx: Connection, entry: CachedImage) -> bool:
    digest = content.digest_of(entry.key)
    return digest is not None and any(image.sha256 == digest for image in images.listing(tx))


def forget(session: Session, identity: Mapping[str, int]) -> None:
    """Let go of what was cached of a file that is no longer what it was.

    What the command was for is done: a signal or the deadline ends only this.
    """
    if not identity:
        return  # the image is a volume
    with session.store.read() as tx:
        entries = image_cache.holding(tx, [content.of_file(identity)])
    try:
        for entry in entries:
            if entry.status == AVAILABLE and session.env.backends.has(entry.backend) and _is_stale(session, entry):
                cache.evict(session.engine, entry)
    except INTERRUPTIONS:
        session.watcher.warn("what is cached of it is still there; volctl image cache prune lets go of it")
    interrupt.finished()


def state_of(session: Session, backend: Backend) -> Json:
    """What `backend show` says: whether images are cached there, or why not; how many, and their bytes."""
    with session.store.read() as tx:
        entries = image_cache.listing(tx, backend.name)
    limits = session.env.config.image_cache
    reason = cache.unused(session.env, backend)
    return {
        "used": reason is None,
        "reason": reason,
        "images": len(entries),
        "size": sum(entry.size for entry in entries),
        "max_count": limits["max_count"],
        "max_size": limits["max_gigabytes"] * GiB,
    }
