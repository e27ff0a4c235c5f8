"""Events: what happened to volumes, snapshots and images, in order."""

from __future__ import annotations

from volctl.db import events
from volctl.errors import AmbiguousError, NotFoundError
from volctl.flows import refs
from volctl.model import Event
from volctl.service.session import Session


def list_(session: Session, ref: str | None = None, *, after: int = 0, limit: int | None = None) -> list[Event]:
    """Oldest first, numbers above `after`; `ref` may be of a volume or snapshot that is gone."""
    object_id = None if ref is None else _object(session, ref)
    with session.store.read() as tx:
        return events.listing(tx, object_id, after, limit)


def _object(session: Session, ref: str) -> str:
    with session.store.read() as tx:
        for find in (refs.volume, refs.snapshot):
            try:
                return find(tx, session.project, ref).id
            except NotFoundError:
                continue
        gone = events.latest_object(tx, ref.lower()) if len(ref) >= refs.SHORTEST_PREFIX else []
    if len(gone) > 1:
        raise AmbiguousError(f"{ref!r} is the beginning of several ids: {', '.join(gone)}")
    if not gone:
        raise NotFoundError(f"nothing is known of {ref!r}")
    return gone[0]
