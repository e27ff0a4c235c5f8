"""Objects as their backends are to know them, and told again when their rows were changed (`volctl.db.about`)."""

from __future__ import annotations

from volctl.db import about, volumes
from volctl.errors import Failure, VolctlError
from volctl.flows.context import Context
from volctl.model import Object


def volume(env: Context, volume_id: str) -> Object:
    """A volume as its backend is to know it."""
    return _object(env, Object("volume", volume_id))


def snapshot(env: Context, snapshot_id: str) -> Object:
    return _object(env, Object("snap", snapshot_id))


def _object(env: Context, target: Object) -> Object:
    with env.store.read() as tx:
        return about.describe(tx, target)


def catch_up(env: Context, target: Object, backend: str | None) -> VolctlError | None:
    """Let an object carry what its row says now. The caller holds its volume's lock. What went wrong, if it did.

    Not what was never available: it may be half made, and whoever carries something is whole.
    """
    with env.store.read() as tx:
        told = about.describe(tx, target)
        volume = volumes.find(tx, target.id) if target.kind == "volume" else None
    if volume is not None and volume.available_at is None:
        backend = None
    try:
        where = env.backends.get(backend) if told.about is not None and backend is not None else None
        if where is not None and where.inspect(target) is not None:
            where.describe(told)
    except Failure as error:
        return error
    with env.store.write() as tx:
        about.caught_up(tx, told)
    return None
