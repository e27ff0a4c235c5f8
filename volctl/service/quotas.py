"""Quota of the session's project."""

from __future__ import annotations

from volctl.db import quotas, types
from volctl.errors import NotFoundError, UsageError
from volctl.model import QuotaLine
from volctl.quota import PER_VOLUME, UNLIMITED
from volctl.service.session import Session


def show(session: Session) -> list[QuotaLine]:
    """Every resource with limit, use and reservations; gigabytes in bytes."""
    with session.store.read() as tx:
        return session.env.quota(session.project).report(tx)


def set_(
    session: Session,
    *,
    volumes: int | None = None,
    gigabytes: int | None = None,
    snapshots: int | None = None,
    per_volume_gigabytes: int | None = None,
    type: str | None = None,
) -> list[QuotaLine]:
    """Set limits (gigabytes in GiB, -1 is none); with `type` those of one volume type."""
    given = {"volumes": volumes, "gigabytes": gigabytes, "snapshots": snapshots, PER_VOLUME: per_volume_gigabytes}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    if not limits:
        raise UsageError("no limit was given", hint="such as --volumes 10 or --gigabytes 500")
    if bad := [f"{name} {limit}" for name, limit in limits.items() if not UNLIMITED <= limit < 2**33]:
        raise UsageError(f"{bad[0]} is not a limit: 0 or more, or -1 for none")
    if type is not None and PER_VOLUME in limits:
        raise UsageError("--per-volume-gigabytes is not for a type", hint="use provisioning:max_vol_size of the type")
    suffix = f"_{type}" if type is not None else ""
    with session.rows() as tx:
        if type is not None and types.find(tx, type) is None:
            raise NotFoundError(f"there is no volume type {type!r}")
        for name, limit in limits.items():
            quotas.set_limit(tx, session.project, name + suffix, limit)
    return show(session)
