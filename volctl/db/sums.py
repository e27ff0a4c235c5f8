"""Sums of bytes that fit no integer of the database: of whole MiB and of the rest, put together here."""

from __future__ import annotations

from sqlalchemy import Column, ColumnElement, func

from volctl.model import MiB


def parts(column: Column[int]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """To select; 0 where there is nothing to sum."""
    return func.coalesce(func.sum(column // MiB), 0), func.coalesce(func.sum(column % MiB), 0)


def whole(mebibytes: int, rest: int) -> int:
    """Bytes, of the two that were selected."""
    return int(mebibytes) * MiB + int(rest)
