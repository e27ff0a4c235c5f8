"""Adopt and release: what is there becomes a volume in place, and a volume is let go of."""

from __future__ import annotations

import uuid

from volctl.engine.locks import EXCLUSIVE
from volctl.flows import words
from volctl.flows.adopt import AdoptState
from volctl.model import Json, MiB, Volume, check_name
from volctl.service.session import Session
from volctl.service.volumes import find


def adopt(
    session: Session,
    backend: str,
    source: str,
    name: str | None = None,
    *,
    description: str | None = None,
    properties: tuple[str, ...] = (),
) -> Volume:
    """Take a file or an LV that is on the backend already under management; no byte of it is touched."""
    session.env.backends.ask(backend)
    named = None if name is None else words.usage(check_name, name)
    text, pairs = words.description(description), words.properties(properties)
    state = AdoptState(str(uuid.uuid4()), backend, session.project, words.path(source), "", "", named, text, pairs)
    with session.locked({state.volume_id: EXCLUSIVE}) as locks:
        session.engine.start("volume_adopt", state, object_id=state.volume_id, locks=locks)
    made = find(session, state.volume_id)
    if made.size % MiB:
        session.watcher.warn(
            f"its size of {made.size} bytes is no whole number of MiB; it stays so until it is extended"
        )
    return made


def release(session: Session, ref: str) -> Json:
    """Let go of a volume; it keeps its bytes under a name of its own: `path`."""
    volume = find(session, ref)
    state = AdoptState(volume.id, volume.backend or "")
    with session.locked_volume(volume.id) as locks:
        final = session.engine.start("volume_release", state, object_id=volume.id, locks=locks)
    return {"id": volume.id, "name": volume.name, "backend": final.backend, "path": final.path}
