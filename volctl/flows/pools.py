"""The configured backends as the scheduler's pools, surveyed outside a transaction, summed inside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from volctl.backend import NEARLY_FULL, Capabilities, Problem, Stats
from volctl.config import BackendConfig
from volctl.db import image_cache, volumes
from volctl.db.image_cache import CachedImage
from volctl.errors import BackendError, Failure, NoBackendError, NoSpaceError, VolctlError
from volctl.flows.context import Context
from volctl.flows.create import CreateState
from volctl.model import Explanation, format_size, to_json
from volctl.records import record
from volctl.scheduler import Policy, Pool, Request, check_expression, check_policy
from volctl.scheduler import choose as schedule

if TYPE_CHECKING:
    from sqlalchemy import Connection


@record
class Seen:
    """One backend as it was seen: what it can, its room, what it lacks."""

    config: BackendConfig
    capabilities: Capabilities
    stats: Stats | None
    problems: tuple[Problem, ...]
    pool_key: str
    free_space_key: str


@record
class Survey:
    """All backends as they were seen a moment ago."""

    seen: tuple[Seen, ...]

    def of(self, name: str) -> Seen:
        return next(seen for seen in self.seen if seen.config.name == name)

    def granule(self, name: str) -> int:
        return self.of(name).capabilities.granule

    def zone(self, name: str) -> str:
        return self.of(name).config.availability_zone

    def nearly_full(self, name: str) -> str | None:
        """What to say of a backend that will soon take nothing new."""
        seen = self.of(name)
        figures = (seen.stats.data_percent, seen.stats.metadata_percent) if seen.stats else ()
        high = [
            f"its {what} {percent:g} % full"
            for what, percent in zip(("data are", "metadata are"), figures, strict=False)
            if percent is not None and percent >= NEARLY_FULL
        ]
        limit = f"above {seen.config.full_at} % (full_at) it takes nothing new"
        return f"backend {name} is nearly full ({', '.join(high)}): {limit}" if high else None


def survey(env: Context) -> Survey:
    """Look at every backend; one that cannot be looked at is a problem of its own."""
    return Survey(tuple(_look(env, config) for config in _configs(env)))


def _configs(env: Context) -> list[BackendConfig]:
    env.backends.all()
    return env.backends.configs


def _look(env: Context, config: BackendConfig) -> Seen:
    backend = env.backends.get(config.name)
    problems = tuple(backend.check()) if config.enabled else ()
    usable = config.enabled and not any(problem.fatal for problem in problems)
    stats = None
    try:
        stats = backend.stats() if usable else None
    except Failure as error:
        problems += (Problem(error.message, error.hint),)
    capabilities = backend.capabilities if usable else Capabilities()
    keys = (backend.pool(), backend.free_space_key() if usable else backend.pool())
    return Seen(config, capabilities, stats, problems, *keys)


def pools(tx: Connection, found: Survey) -> list[Pool]:
    """With the sums over our rows, as they are in this transaction."""
    sums, cached = volumes.sums_by_backend(tx), image_cache.sizes_by_backend(tx)
    promised: dict[str, int] = {}
    for seen in found.seen:
        more = sums.get(seen.config.name, (0, 0, 0))[2]
        promised[seen.free_space_key] = promised.get(seen.free_space_key, 0) + more
    return [
        _pool(
            seen,
            provisioned=sums.get(seen.config.name, (0, 0, 0))[0] + cached.get(seen.config.name, 0),
            volumes=sums.get(seen.config.name, (0, 0, 0))[1],
            promised=promised[seen.free_space_key],
        )
        for seen in found.seen
    ]


def _pool(seen: Seen, *, provisioned: int, volumes: int, promised: int) -> Pool:
    config = seen.config
    return Pool(
        name=config.name,
        kind=config.kind,
        enabled=config.enabled,
        availability_zone=config.availability_zone,
        capabilities=seen.capabilities,
        stats=seen.stats,
        problems=seen.problems,
        pool_key=seen.pool_key,
        free_space_key=seen.free_space_key,
        provisioned=provisioned,
        volumes=volumes,
        promised=promised,
        reserved_percentage=config.reserved_percentage,
        max_over_subscription_ratio=config.max_over_subscription_ratio,
        full_at=config.full_at,
        filter_function=config.filter_function,
        goodness_function=config.goodness_function,
    )


def emptied(tx: Connection, found: list[Pool]) -> list[Pool]:
    """The same pools as if nothing were cached there that could be evicted."""
    entries = image_cache.listing(tx)
    return [_emptied(pool, [entry for entry in entries if entry.backend == pool.name]) for pool in found]


def _emptied(pool: Pool, entries: list[CachedImage]) -> Pool:
    if pool.stats is None or pool.capabilities.clones_need_source:
        return pool
    free = None if pool.stats.free is None else pool.stats.free + sum(entry.data_size for entry in entries)
    provisioned = pool.provisioned - sum(entry.size for entry in entries)
    return replace(pool, stats=replace(pool.stats, free=free), provisioned=provisioned)


def policy(env: Context) -> Policy:
    return Policy(env.config.filters, dict(env.config.weighers))


def check(env: Context) -> None:
    """`ConfigError` for what every choice would stumble over, before there is a row that it could fail."""
    env.backends.all()
    check_policy(policy(env))
    for config in env.backends.configs:
        check_functions(config)


def check_functions(config: BackendConfig) -> None:
    """`ConfigError` with the position for an expression that cannot be read."""
    for key in ("filter_function", "goodness_function"):
        if (text := getattr(config, key)) is not None:
            check_expression(text, f"{key} of backend {config.name!r}")


def choose(
    tx: Connection, env: Context, found: Survey, state: CreateState, *, without_cache: bool = False
) -> Explanation:
    """The scheduler's choice for a request spec, from pools as they are in this transaction.

    `without_cache`: as they would be if nothing were cached there.
    """
    request = Request(
        size=state.size,
        physical=state.physical,
        type=state.type,
        specs=state.specs,
        properties=state.properties,
        availability_zone=state.zone,
        backend=state.request["backend"],
        source_backend=state.source_backend,
        excluded=tuple(failure["backend"] for failure in state.failures),
        same_backend=tuple(state.hints.get("same-backend", ())),
        different_backend=tuple(state.hints.get("different-backend", ())),
        held_by=_holders(tx, state),
        name=state.name,
    )
    now = pools(tx, found)
    return schedule(emptied(tx, now) if without_cache else now, request, policy(env))


def foresee(tx: Connection, env: Context, found: Survey, state: CreateState) -> Explanation:
    """What a create would get, which evicts from the image cache where that helps."""
    explanation = choose(tx, env, found, state)
    if explanation.chosen is not None:
        return explanation
    evicting = choose(tx, env, found, state, without_cache=True)
    return evicting if evicting.chosen is not None else explanation


def _holders(tx: Connection, state: CreateState) -> tuple[str, ...]:
    """The backends whose image cache has what is asked for."""
    entries = image_cache.holding(tx, state.content) if state.content else []
    return tuple(entry.backend for entry in entries if entry.status == image_cache.AVAILABLE)


def promise(tx: Connection, found: Survey, state: CreateState) -> int:
    """Bytes that this create will write to its backend and has not written yet."""
    assert state.backend is not None
    if not found.of(state.backend).capabilities.thin:
        return state.size
    return 0 if state.backend in _holders(tx, state) else state.physical


def has_room(env: Context, name: str, size: int, *, without_cache: bool = False) -> bool:
    """Would CapacityFilter let that many bytes more be provisioned on this backend?"""
    found = Survey((_look(env, next(config for config in env.backends.configs if config.name == name)),))
    with env.store.read() as tx:
        now = pools(tx, found)
        considered = emptied(tx, now) if without_cache else now
    return schedule(considered, Request(size=size), only_capacity()).chosen is not None


def refusal(explanation: Explanation, state: CreateState) -> VolctlError:
    """What a create without a backend fails with: the last attempt's error where there was one."""
    details = {"explanation": to_json(explanation)}
    if not state.failures:
        return NoBackendError(no_backend(explanation), hint="`volctl explain` shows every filter", details=details)
    last = state.failures[-1]
    kind: type[VolctlError] = NoSpaceError if last["code"] == NoSpaceError.code else BackendError
    tried = "; ".join(f"{failure['backend']}: {failure['error']}" for failure in state.failures)
    return kind(f"no backend is left after {len(state.failures)} failed ({tried})", details=details)


def no_backend(explanation: Explanation) -> str:
    """One sentence with each backend's reason."""
    reasons = "; ".join(f"{verdict.name}: {verdict.filter}: {verdict.reason}" for verdict in explanation.backends)
    return f"no backend takes {format_size(explanation.size)}: {reasons or 'none is configured'}"


def only_capacity() -> Policy:
    """For a volume that grows where it is."""
    return Policy(("CapacityFilter",), {})
