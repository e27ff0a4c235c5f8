"""Backends: what is configured, what it can, what it lacks."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, fields

from volctl import command, confine
from volctl.command import bubblewrap, find
from volctl.errors import MissingError
from volctl.flows import pools
from volctl.model import BackendDetails, BackendState, Json
from volctl.scheduler import Pool
from volctl.service import image_cache
from volctl.service.session import Session


def list_(session: Session) -> list[BackendState]:
    """Every configured backend as it is now."""
    found = pools.survey(session.env)
    with session.store.read() as tx:
        return [_state(pool) for pool in pools.pools(tx, found)]


def show(session: Session, name: str) -> BackendDetails:
    """One backend with its options and the programs it runs."""
    backend = session.env.backends.ask(name)
    state = next(state for state in list_(session) if state.name == name)
    config = next(config for config in session.env.backends.configs if config.name == name)
    tools = tuple(_tool(program) for program in backend.tools())
    options = {key: value for key, value in asdict(config).items() if key not in ("name", "kind", "builtin", "options")}
    details = {} if state.problems and state.total is None else backend.details()
    details = {**details, "qemu_img_confined_by": confinement()}
    return BackendDetails(
        **_fields(state),
        options=options | dict(config.options),
        tools=tools,
        details=details,
        image_cache=image_cache.state_of(session, backend),
    )


def confinement() -> list[str]:
    """What keeps qemu-img from everything but its source and target on this machine."""
    return confine.in_force(bubblewrap()) if command.confined else ["nothing (confine_qemu = false)"]


def check(session: Session) -> list[BackendState]:
    """As `list_`: the caller looks at `problems`."""
    return list_(session)


def init_plan(session: Session, name: str) -> list[str]:
    """What `init` would do, in sentences."""
    return session.env.backends.ask(name).init(dry_run=True)


def init(session: Session, name: str) -> list[str]:
    """Prepare the pool, once; what was done, in sentences."""
    return session.env.backends.ask(name).init()


def _fields(state: BackendState) -> Json:
    return {column.name: getattr(state, column.name) for column in fields(state)}


def _state(pool: Pool) -> BackendState:
    stats = pool.stats
    capabilities = asdict(pool.capabilities)
    extra = capabilities.pop("extra")
    problems = tuple(map(str, pool.problems))
    return BackendState(
        name=pool.name,
        kind=pool.kind,
        availability_zone=pool.availability_zone,
        enabled=pool.enabled,
        total=_bytes(stats.total) if stats else None,
        free=_bytes(stats.free) if stats else None,
        provisioned=pool.provisioned,
        volumes=pool.volumes,
        capabilities=capabilities | dict(extra),
        problems=problems,
    )


def _bytes(figure: float | None) -> int | None:
    """Unknown and infinite are null in JSON."""
    return None if figure is None or not math.isfinite(figure) else int(figure)


def _tool(program: str) -> Json:
    try:
        path = find(program)
    except MissingError as error:
        return {"program": program, "path": None, "hint": error.hint}
    return {"program": program, "path": os.fspath(path), "hint": None}
