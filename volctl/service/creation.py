"""Volumes made: the create pipeline's way in, `--if-absent`, and the dry run.

Apart from `volumes`, so that a create does not load what only other verbs need.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, replace

from volctl import interrupt
from volctl.db import volumes
from volctl.engine import journal
from volctl.engine.locks import EXCLUSIVE, SHARED
from volctl.errors import ConflictError, ExistsError, NotFoundError, UsageError, VolctlError
from volctl.flows import pools, refs, request, words
from volctl.flows.context import Context
from volctl.flows.create import CreateState
from volctl.flows.refs import SourceRef
from volctl.model import CreateRequest, Explanation, Object, Status, Volume, check_name, exact_size
from volctl.service import sources
from volctl.service.session import Session, tell_rounding

FINAL = (Status.AVAILABLE, Status.IN_USE, Status.ERROR, Status.ERROR_DELETING)


def create(session: Session, wanted: CreateRequest) -> Volume:
    """Make a volume through the three flows. With `if_absent` the one that is there, if it is the same."""
    if not wanted.if_absent:
        return _create(session, wanted)
    if wanted.name is None:
        raise UsageError("--if-absent needs a name")
    while True:
        if (found := _present(session, wanted)) is not None:
            return found
        try:
            return _create(session, wanted)
        except ExistsError:
            interrupt.check()  # somebody was faster: judge theirs


def _create(session: Session, wanted: CreateRequest) -> Volume:
    with sources.found(session, wanted) as (asked, source):
        return _create_from(session, asked, source)


def _create_from(session: Session, wanted: CreateRequest, source: SourceRef) -> Volume:
    volume_id = str(uuid.uuid4())
    state = CreateState(volume_id, session.project, asdict(wanted), asdict(source))
    with session.locked_as(lambda: {volume_id: EXCLUSIVE} | source_lock(session.env, source)) as locks:
        try:
            session.engine.start("volume_create_api", state, object_id=volume_id, locks=locks)
        except VolctlError as error:
            error.volume = error.volume or _row_left(session, volume_id)
            raise
    with session.store.read() as tx:
        made = volumes.get(tx, volume_id)
    if wanted.size is not None:
        tell_rounding(session, made, exact_size(wanted.size))
    return made


def _row_left(session: Session, volume_id: str) -> str | None:
    with session.store.read() as tx:
        return volume_id if volumes.find(tx, volume_id) else None


def _explained(session: Session, found: Volume) -> Explanation:
    with session.store.read() as tx:
        kept = volumes.details(tx, found.id).explanation
    return kept or Explanation(found.size, found.type, found.backend, ())


def source_lock(env: Context, source: SourceRef) -> dict[str, str]:
    """The source's volume and its tree: exclusive only where a clone changes them."""
    if source.volume_id is None:
        return {}
    with env.store.read() as tx:
        volume = volumes.find(tx, source.volume_id)
        names = volumes.lock_names(tx, source.volume_id)
    if volume is not None and volume.attachment is not None:
        from volctl.flows.attached import as_found

        as_found(env, volume)
    touched = volume is not None and env.backends.has(volume.backend)
    if touched and volume is not None and env.backends.get(volume.backend).capabilities.clone_locks_source:
        return dict.fromkeys(names, EXCLUSIVE)
    return dict.fromkeys(names, SHARED)


def _present(session: Session, wanted: CreateRequest) -> Volume | None:
    """The volume of that name if it is what is wanted; None if it is to be made (anew)."""
    found = _named(session, wanted)
    while found is not None and found.status not in FINAL:
        found = _awaited(session, wanted, found)
    if found is None or _same(session, wanted, found):
        return found
    from volctl.service.volumes import remove

    remove(session, found, force=False)
    return None


def _named(session: Session, wanted: CreateRequest) -> Volume | None:
    with session.store.read() as tx:
        return volumes.by_name(tx, session.project, words.usage(check_name, wanted.name or ""))


def _awaited(session: Session, wanted: CreateRequest, busy: Volume) -> Volume | None:
    """The volume of that name when whoever works on it is done or gone."""
    with session.locked_volume(busy.id):
        pass
    for line in session.engine.settle():
        session.watcher.warn(f"settled: {line}")
    found = _named(session, wanted)
    if found is not None and (found.status, found.updated_at) == (busy.status, busy.updated_at):
        raise _in_the_way(found)
    return found


def _same(session: Session, wanted: CreateRequest, found: Volume) -> bool:
    """Is it what is wanted? False for a failed volume that may be replaced; else a `ConflictError`."""
    if found.status in (Status.ERROR, Status.ERROR_DELETING):
        _check_worthless(session, found)
        return False
    with session.store.read() as tx:
        there = volumes.column(tx, found.id, "requested") or {}
    _compare(found, there, request.wanted(wanted, _source_wanted(session, wanted, found)))
    return True


def _source_wanted(session: Session, wanted: CreateRequest, found: Volume) -> SourceRef:
    """The source as it was, if it is gone meanwhile: the command may be run again all the same."""
    try:
        with session.store.read() as tx:
            return refs.source(tx, session.project, wanted)
    except NotFoundError:
        if not refs.names_source(wanted, found.source):
            raise
        path = found.source.name if found.source.id is None else None
        return SourceRef(found.source.kind, found.source.id, path=path)


def _check_worthless(session: Session, found: Volume) -> None:
    """`ConflictError` unless it is a failed volume that never held anything: by the rows, and by what is there."""
    from volctl.flows.orphan import is_whole, never_was

    with session.store.read() as tx:
        stuck = journal.is_open_for(tx, found.id)
    if not never_was(found) or found.attachment or found.protected or stuck:
        raise _in_the_way(found)
    backends = session.env.backends
    if backends.has(found.backend) and is_whole(backends.get(found.backend), Object("volume", found.id), found.size):
        raise _in_the_way(found)


def _in_the_way(found: Volume) -> ConflictError:
    said = f"volume {found.label} is there and in status {found.status}"
    return ConflictError(said, hint=f"volctl show {found.label} says why", volume=found.id)


def _compare(found: Volume, there: dict[str, object], asked: dict[str, object]) -> None:
    size, type_name = asked["size"], asked["type"]
    different = []
    if size not in (None, there.get("size"), found.size):
        different.append(f"size {found.size}, not {size}")
    if type_name not in (None, found.type):
        different.append(f"type {found.type}, not {type_name}")
    if asked["source"] != there.get("source"):
        different.append(f"source {_source_text(there.get('source'))}, not {_source_text(asked['source'])}")
    if different:
        raise ExistsError(
            f"volume {found.label} is there, but different: {'; '.join(different)}",
            hint="choose another name",
            volume=found.id,
        )


def _source_text(source: object) -> str:
    return " ".join(str(part) for part in source if part) if isinstance(source, list) else str(source)


def plan(session: Session, wanted: CreateRequest, count: int = 1) -> Explanation:
    """What a create of `count` such volumes would get, and why; nothing is changed.

    `chosen` is None if no backend passes. With `if_absent` and the volume there, why it is where it is.
    """
    if wanted.if_absent and (found := _named(session, wanted)) is not None:
        if _same(session, wanted, found):
            return _explained(session, found)
        wanted = replace(wanted, name=None)
    state = sources.foreseen(session, wanted)
    survey = pools.survey(session.env)
    with session.store.read() as tx:
        request.check_quota(tx, session.env, state, count)
        return pools.foresee(tx, session.env, survey, state)
