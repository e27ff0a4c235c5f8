"""Which backend gets a volume: filters refuse, weighers rank, everything is explained.

Pure functions over data: the caller brings pools and a request, takes away an `Explanation`. The shape
is Cinder's filter scheduler (cinder/scheduler/filter_scheduler.py); the rules are in `filters`,
`weighers`, `specs` and `expressions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field, replace

from volctl.errors import ConfigError
from volctl.model import Explanation, Verdict
from volctl.records import record
from volctl.scheduler import filters, weighers
from volctl.scheduler.filters import Filter
from volctl.scheduler.pools import Pool, Request, reported
from volctl.scheduler.specs import backend_names, check_specs, match, size_bounds
from volctl.scheduler.weighers import Weigher

__all__ = [
    "Filter",
    "Policy",
    "Pool",
    "Request",
    "Weigher",
    "check_expression",
    "check_policy",
    "check_specs",
    "choose",
    "size_bounds",
]


@record
class Policy:
    """Names of the configurable filters in order, each weigher's multiplier, the seed of ChanceWeigher."""

    filters: tuple[str, ...] = tuple(kind.__name__ for kind in filters.CONFIGURABLE)
    weighers: dict[str, float] = field(default_factory=lambda: {"CapacityWeigher": 1.0})
    seed: int | None = None


def choose(pools: Sequence[Pool], request: Request, policy: Policy) -> Explanation:
    """Judge every pool, in the order of the configuration; `chosen` is the best that passed, or None.

    The filters that are always on come first; the first that refuses is named. Ties go to the pool
    that is configured first. `ConfigError` for a policy or an expression that cannot be read.
    """
    request = _unpinned(pools, request)
    chain = _filters(policy)
    refusals = [_refusal(pool, request, chain) for pool in pools]
    passed = [pool for pool, refusal in zip(pools, refusals, strict=True) if refusal is None]
    ranked = iter(_weigh(passed, request, policy))
    verdicts = tuple(refusal or next(ranked) for refusal in refusals)
    best = max((verdict for verdict in verdicts if verdict.passed), key=_total, default=None)
    return Explanation(request.size, request.type, best.name if best else None, verdicts)


def _total(verdict: Verdict) -> float:
    return verdict.total or 0.0


def _unpinned(pools: Sequence[Pool], request: Request) -> Request:
    """Let go of the source's backend if the type names another."""
    wanted = backend_names(request.specs)
    named = next((reported(pool) for pool in pools if pool.name == request.source_backend), {})
    name = named.get("volume_backend_name", request.source_backend)
    if all(match(name, requirement) for requirement in wanted):
        return request
    return replace(request, source_backend=None)


def _refusal(pool: Pool, request: Request, chain: Sequence[tuple[str, Filter]]) -> Verdict | None:
    for name, judge in chain:
        if reason := judge.refuse(pool, request):
            return Verdict(pool.name, False, name, reason)
    return None


def _weigh(pools: Sequence[Pool], request: Request, policy: Policy) -> list[Verdict]:
    parts = {
        name: weighers.normalise([weigher.weigh(pool, request) for pool in pools], multiplier)
        for name, weigher, multiplier in _weighers(policy)
    }
    weights = [{name: part[index] for name, part in parts.items()} for index in range(len(pools))]
    return [
        Verdict(pool.name, True, weights=mine, total=math.fsum(mine.values()))
        for pool, mine in zip(pools, weights, strict=True)
    ]


def _filters(policy: Policy) -> list[tuple[str, Filter]]:
    always = [kind.__name__ for kind in filters.ALWAYS]
    names = dict.fromkeys((*always, *policy.filters))
    return [(name, filters.find(name)()) for name in names]


def _weighers(policy: Policy) -> list[tuple[str, Weigher, float]]:
    return [(name, weighers.find(name)(policy.seed), multiplier) for name, multiplier in policy.weighers.items()]


def check_policy(policy: Policy) -> None:
    """`ConfigError` for an unknown filter or weigher (with the nearest known name) or multiplier."""
    _filters(policy)
    for name, _, multiplier in _weighers(policy):
        if not math.isfinite(multiplier):
            raise ConfigError(f"the multiplier of {name} is {multiplier}, not a finite number")


def check_expression(text: str, what: str) -> None:
    """`ConfigError` with the position, from 1, for an expression that cannot be read.

    `what` names it in the message, such as `filter_function of backend 'fast'`.
    """
    from volctl.scheduler import expressions

    expressions.parse(text, what)
