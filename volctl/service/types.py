"""Volume types: named sets of extra specs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volctl.db import about, quotas, types, volumes
from volctl.errors import ConflictError, ExistsError, NotFoundError
from volctl.flows import words
from volctl.model import VolumeType, check_name
from volctl.scheduler import check_specs
from volctl.service.session import Session

if TYPE_CHECKING:
    from sqlalchemy import Connection


def create(session: Session, name: str, specs: tuple[str, ...], description: str | None = None) -> VolumeType:
    """`specs` as `KEY=VALUE`; one that can never match is a `UsageError`."""
    words.usage(check_name, name)
    found = words.properties(specs)
    check_specs(found)
    with session.rows() as tx:
        if types.find(tx, name):
            raise ExistsError(f"there is a volume type {name!r} already", hint="volctl type set changes it")
        types.add(tx, name, found, words.description(description))
    return show(session, name)


def list_(session: Session) -> list[VolumeType]:
    with session.store.read() as tx:
        return types.listing(tx)


def show(session: Session, name: str) -> VolumeType:
    with session.store.read() as tx:
        return _found(tx, name)


def _found(tx: Connection, name: str) -> VolumeType:
    found = types.find(tx, name)
    if found is None:
        raise NotFoundError(f"there is no volume type {name!r}", hint="volctl type list shows them")
    return found


def set_(session: Session, name: str, specs: tuple[str, ...], description: str | None = None) -> VolumeType:
    """Add or change specs; volumes that are there stay where they are."""
    more = words.properties(specs)
    with session.rows() as tx:
        found = _found(tx, name)
        check_specs(found.specs | more)
        text = found.description if description is None else words.description(description)
        types.change(tx, name, specs=found.specs | more, description=text)
        about.outdate_type(tx, name)
    session.changed()
    return show(session, name)


def unset(session: Session, name: str, keys: tuple[str, ...]) -> VolumeType:
    """Take specs away; one that is not there is no error."""
    with session.rows() as tx:
        left = {key: value for key, value in _found(tx, name).specs.items() if key not in keys}
        check_specs(left)
        types.change(tx, name, specs=left)
        about.outdate_type(tx, name)
    session.changed()
    return show(session, name)


def delete(session: Session, name: str) -> None:
    """`ConflictError` while a volume has it."""
    with session.rows() as tx:
        _found(tx, name)
        if volumes.uses_type(tx, name):
            raise ConflictError(f"volume type {name!r} is in use", hint="volctl list --type shows by which volumes")
        types.remove(tx, name)
        quotas.forget_type(tx, name)
