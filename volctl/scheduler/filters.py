"""Filters: each says why a pool cannot take a volume, or nothing. Names and rules are Cinder's.

One's own: a subclass of `Filter`, under its name in the entry-point group `volctl.scheduler.filters`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from volctl.scheduler import plugins, specs
from volctl.scheduler.pools import (
    Pool,
    Request,
    amount,
    apart,
    available,
    ceiling,
    free,
    is_thin,
    provisioned,
    reported,
    scope,
    size_on,
)

GROUP = "volctl.scheduler.filters"


class Filter(ABC):
    """Says of one pool at a time whether it can take the volume. Pure: looks at nothing else."""

    @abstractmethod
    def refuse(self, pool: Pool, request: Request) -> str | None:
        """A sentence with the numbers, without a full stop, if the pool cannot take it; else None."""


class RequestedBackendFilter(Filter):
    """Only the backend that was asked for by name."""

    def refuse(self, pool: Pool, request: Request) -> str | None:
        if request.backend in (None, pool.name):
            return None
        return f"backend {request.backend!r} was asked for"


class BackendStateFilter(Filter):
    """Enabled in the configuration, and with nothing missing that it needs."""

    def refuse(self, pool: Pool, request: Request) -> str | None:
        if not pool.enabled:
            return "it is disabled in the configuration (enabled = false)"
        return next((problem.message for problem in pool.problems if problem.fatal), None)


class SourceBackendFilter(Filter):
    """A source keeps its clones on its own backend, unless another is asked for."""

    def refuse(self, pool: Pool, request: Request) -> str | None:
        if request.backend or request.source_backend in (None, pool.name):
            return None
        return f"the source is on backend {request.source_backend!r}; --backend {pool.name} would copy it here"


class IgnoreAttemptedBackendsFilter(Filter):
    """Not again where this create has failed (Cinder: IgnoreAttemptedHostsFilter)."""

    def refuse(self, pool: Pool, request: Request) -> str | None:
        return "it was tried for this volume and failed" if pool.name in request.excluded else None


class SameBackendFilter(Filter):
    """Where one of the volumes of the hint `same-backend` is (cinder affinity_filter.py)."""

    def refuse(self, pool: Pool, request: Request) -> str | None:
        if not request.same_backend or pool.name in request.same_backend:
            return None
        return f"the hint same-backend leads to {_names(request.same_backend)}"


class DifferentBackendFilter(Filter):
    """Where none of the volumes of the hint `different-backend` is (cinder affinity_filter.py)."""

    def refuse(self, pool: Pool, request: Request) -> str | None:
        if pool.name not in request.different_backend:
            return None
        return f"the hint different-backend leads away from {_names(request.different_backend)}"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in dict.fromkeys(names))


class AvailabilityZoneFilter(Filter):
    """The zone that was asked for; any if none was."""

    def refuse(self, pool: Pool, request: Request) -> str | None:
        if request.availability_zone in (None, pool.availability_zone):
            return None
        return f"it is in availability zone {pool.availability_zone!r}, not {request.availability_zone!r}"


class CapacityFilter(Filter):
    """Room for the volume (cinder capacity_filter.py), each figure in bytes:

    available = total - floor(total x reserved_percentage / 100)
    thick:  size <= min(available - provisioned, free)
    thin:   provisioned + size <= available x max_over_subscription_ratio, and physical <= free

    `provisioned` includes others', `free` is less what live requests were promised; size is rounded up
    to the granule. A pool above `full_at` per cent of data or metadata, or without any metadata left,
    takes nothing. Of figures that are not numbers, Cinder's rule holds:

    - no figures at all (the pool could not be asked): refused;
    - everything reserved: refused, whatever the total;
    - free unknown or infinite: free refuses nothing, the bound by the total still holds;
    - total infinite: refuses nothing; total unknown: refuses nothing if nothing is reserved, else
      refuses, since the reserve cannot be reckoned;
    - a ratio below 1 is taken as it stands (Cinder refuses the backend), at or below 0 nothing fits.
    """

    def refuse(self, pool: Pool, request: Request) -> str | None:
        if pool.stats is None:
            return "its room is not known: the backend could not be asked"
        if full := _full(pool):
            return full
        if available(pool) is None and pool.reserved_percentage > 0:
            return f"its total is unknown, so {pool.reserved_percentage} % of it cannot be kept in reserve"
        if is_thin(pool, request):
            physical = 0 if pool.name in request.held_by else request.physical
            return _refuse_thin(pool, size_on(pool, request)) or _refuse_free(pool, physical, " at once")
        size = size_on(pool, request)
        return _refuse_thick(pool, size) or _refuse_free(pool, size, "")


def _full(pool: Pool) -> str | None:
    stats = pool.stats
    if stats is None:
        return None
    for what, percent in (("data", stats.data_percent), ("metadata", stats.metadata_percent)):
        if percent is not None and percent > pool.full_at:
            return f"its {what} is {percent:g} % full, above full_at {pool.full_at} %"
    if stats.metadata_percent is not None and stats.metadata_percent >= 100:
        return "its metadata is 100 % full"
    return None


def _refuse_thin(pool: Pool, size: int) -> str | None:
    limit, used = ceiling(pool), provisioned(pool)
    if limit is None or used + size <= limit:
        return None
    shown, wanted = apart(limit, used + size)
    total = f"{amount(used)} + {amount(size)}" if wanted == amount(used + size) else f"{used} + {size} = {wanted}"
    ratio = f"available {amount(available(pool))}{_reserve(pool)} x ratio {pool.max_over_subscription_ratio:g}"
    return f"provisioned {total} is above {shown} = {ratio}"


def _refuse_thick(pool: Pool, size: int) -> str | None:
    room = available(pool)
    if room is None or size <= room - provisioned(pool):
        return None
    left, wanted = apart(max(0, room - provisioned(pool)), size)
    used = f"available {amount(room)}{_reserve(pool)} - provisioned {amount(provisioned(pool))}"
    return f"{wanted} is above {left} = {used}"


def _reserve(pool: Pool) -> str:
    return f" ({pool.reserved_percentage} % reserved)" if pool.reserved_percentage else ""


def _refuse_free(pool: Pool, needed: int, when: str) -> str | None:
    unused = free(pool)
    if unused is None or needed <= unused:
        return None
    left, wanted = apart(unused, needed)
    promised = f" ({amount(pool.promised)} more is promised to others)" if pool.promised else ""
    return f"{wanted} is needed{when} and {left} is free{promised}"


class CapabilitiesFilter(Filter):
    """Every unscoped or `capabilities:` extra spec of the type is met (cinder capabilities_filter.py)."""

    def refuse(self, pool: Pool, request: Request) -> str | None:
        return specs.refusal(reported(pool), request.specs)


class DriverFilter(Filter):
    """The backend's own `filter_function` holds (cinder driver_filter.py); without a value it does not."""

    def refuse(self, pool: Pool, request: Request) -> str | None:
        if pool.filter_function is None:
            return None
        from volctl.scheduler import expressions  # most backends have none, and reading it costs milliseconds

        try:
            if expressions.truth(expressions.evaluate(pool.filter_function, scope(pool, request))):
                return None
        except expressions.EvaluationError as error:
            return f"filter_function {pool.filter_function!r} has no value: {error}"
        return f"filter_function {pool.filter_function!r} does not hold"


ALWAYS: tuple[type[Filter], ...] = (
    RequestedBackendFilter,
    BackendStateFilter,
    SourceBackendFilter,
    IgnoreAttemptedBackendsFilter,
    SameBackendFilter,
    DifferentBackendFilter,
)
CONFIGURABLE: tuple[type[Filter], ...] = (AvailabilityZoneFilter, CapacityFilter, CapabilitiesFilter, DriverFilter)
FILTERS: dict[str, type[Filter]] = {kind.__name__: kind for kind in (*ALWAYS, *CONFIGURABLE)}


def find(name: str) -> type[Filter]:
    """Ours, else a third party's; `ConfigError` names the nearest known one."""
    return plugins.find(name, FILTERS, Filter, GROUP)  # type: ignore[type-abstract]  # a subclass of it is found
