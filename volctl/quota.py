"""Quota: limits per project, checked in the transaction that reserves.

Resources: `volumes`, `gigabytes`, `snapshots`, `per_volume_gigabytes`, and the first three with
`_<type>`. A limit is a count or GiB, -1 is none; use is compared in bytes. Source of the names:
cinder/quota.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from volctl.db import quotas
from volctl.db.quotas import Usage
from volctl.errors import QuotaError
from volctl.model import GiB, Json, QuotaLine, format_size
from volctl.records import record

if TYPE_CHECKING:
    from sqlalchemy import Connection

RESOURCES = ("gigabytes", "volumes", "snapshots")  # the order in which an excess is told
PER_VOLUME = "per_volume_gigabytes"
UNLIMITED = -1


@record
class Quota:
    """The rules of one project: the configuration's defaults and whether snapshots count gigabytes."""

    project: str
    defaults: Mapping[str, int]
    snapshot_gigabytes: bool = True

    def limits(self, tx: Connection) -> dict[str, int]:
        return dict(self.defaults) | quotas.limits(tx, self.project)

    def check_size(self, tx: Connection, size: int) -> None:
        """`QuotaError` if one volume may not be this big (bytes)."""
        limit = self.limits(tx).get(PER_VOLUME, UNLIMITED)
        if limit != UNLIMITED and size > limit * GiB:
            raise _exceeded(PER_VOLUME, limit, 0, size, self.project)

    def check(self, tx: Connection, asked: Usage, type_name: str | None) -> None:
        """`QuotaError` with limit, use and request if `asked` does not fit."""
        limits = self.limits(tx)
        for wanted in (None, type_name) if type_name else (None,):
            self._check_type(tx, limits, asked, wanted)

    def _check_type(self, tx: Connection, limits: dict[str, int], asked: Usage, type_name: str | None) -> None:
        suffix = f"_{type_name}" if type_name else ""
        bounded = [name for name in RESOURCES if limits.get(name + suffix, UNLIMITED) != UNLIMITED]
        bounded = [name for name in bounded if getattr(asked, name) > 0]
        if not bounded:
            return
        use = self._use(tx, type_name)
        for name in bounded:
            limit, now, more = limits[name + suffix], getattr(use, name), getattr(asked, name)
            if now + more > limit * (GiB if name == "gigabytes" else 1):
                raise _exceeded(name + suffix, limit, now, more, self.project)

    def _use(self, tx: Connection, type_name: str | None) -> Usage:
        used = quotas.used(tx, self.project, type_name, snapshot_gigabytes=self.snapshot_gigabytes)
        return used + quotas.reserved(tx, self.project, type_name)

    def reserve(self, tx: Connection, asked: Usage, type_name: str | None, object_id: str | None) -> str:
        """Check and reserve; the reservation's id. `object_id` is the new object, None for a growth."""
        self.check(tx, asked, type_name)
        reservation = str(uuid.uuid4())
        row: Json = {"id": reservation, "project": self.project, "type": type_name, "object_id": object_id}
        row |= {"volumes": asked.volumes, "snapshots": asked.snapshots, "gigabytes": asked.gigabytes}
        quotas.reserve(tx, row)
        return reservation

    def report(self, tx: Connection) -> list[QuotaLine]:
        """Every resource with its limit and use; gigabytes in bytes."""
        limits = self.limits(tx)
        lines = self._report_type(tx, limits, None)
        lines.append(QuotaLine(PER_VOLUME, _in_bytes(PER_VOLUME, limits.get(PER_VOLUME, UNLIMITED)), 0, 0))
        suffixes = {name.partition("_")[2] for name in limits if name != PER_VOLUME and "_" in name}
        for type_name in sorted(suffixes):
            lines += self._report_type(tx, limits, type_name)
        return lines

    def _report_type(self, tx: Connection, limits: dict[str, int], type_name: str | None) -> list[QuotaLine]:
        suffix = f"_{type_name}" if type_name else ""
        used = quotas.used(tx, self.project, type_name, snapshot_gigabytes=self.snapshot_gigabytes)
        reserved = quotas.reserved(tx, self.project, type_name)
        return [
            QuotaLine(
                name + suffix,
                _in_bytes(name, limits.get(name + suffix, UNLIMITED)),
                getattr(used, name),
                getattr(reserved, name),
            )
            for name in ("volumes", "gigabytes", "snapshots")
        ]


def _is_bytes(resource: str) -> bool:
    return resource == PER_VOLUME or resource.partition("_")[0] == "gigabytes"


def _in_bytes(resource: str, limit: int) -> int:
    return limit * GiB if _is_bytes(resource) and limit != UNLIMITED else limit


def _exceeded(resource: str, limit: int, used: int, asked: int, project: str) -> QuotaError:
    size = _is_bytes(resource)
    text = [format_size(value) if size else str(value) for value in (limit * GiB if size else limit, used, asked)]
    return QuotaError(
        f"quota {resource} of project {project} exceeded: limit {text[0]}, in use {text[1]}, asked for {text[2]}",
        hint="delete something, or raise it with `volctl quota set`",
        details={"resource": resource, "limit": _in_bytes(resource, limit), "in_use": used, "requested": asked},
    )
