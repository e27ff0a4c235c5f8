"""What the scheduler looks at: pools and a request, as plain data. All sizes are in bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any

from volctl.backend import Capabilities, Problem, Stats
from volctl.model import GiB, format_size, round_up
from volctl.records import record


@record
class Pool:
    """One configured backend as it stands now.

    `provisioned` is the sum of our live rows there, `volumes` their number, `promised` what live
    requests were promised on this `free_space_key` and have not written yet. `full_at` is a
    percentage of data or metadata above which nothing new is put there.
    """

    name: str
    kind: str
    enabled: bool
    availability_zone: str
    capabilities: Capabilities
    stats: Stats | None
    problems: tuple[Problem, ...]
    pool_key: str
    free_space_key: str
    provisioned: int
    volumes: int
    promised: int
    reserved_percentage: int = 0
    max_over_subscription_ratio: float = 20.0
    full_at: int = 95
    filter_function: str | None = None
    goodness_function: str | None = None


@record
class Request:
    """A volume that looks for a pool.

    `physical` is what this create will write at once, `backend` the one asked for by name,
    `source_backend` the one that holds the source, `excluded` those that were tried and failed,
    `same_backend` and `different_backend` those that the hints lead to, `held_by` those that hold the
    image and only share its blocks.
    """

    size: int
    physical: int = 0
    type: str | None = None
    specs: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    availability_zone: str | None = None
    backend: str | None = None
    source_backend: str | None = None
    excluded: tuple[str, ...] = ()
    same_backend: tuple[str, ...] = ()
    different_backend: tuple[str, ...] = ()
    held_by: tuple[str, ...] = ()
    name: str | None = None


def size_on(pool: Pool, request: Request) -> int:
    """The size that the volume would have on this pool: rounded up to its granule."""
    return round_up(request.size, pool.capabilities.granule)


def is_thin(pool: Pool, request: Request) -> bool:
    """Whether the request counts as thin there; `provisioning:type=thick` counts as thick anywhere."""
    return pool.capabilities.thin and request.specs.get("provisioning:type") != "thick"


def available(pool: Pool) -> float | None:
    """total - floor(total x reserved_percentage / 100), at least 0; None if it cannot be known.

    All reserved is 0 whatever the total. An infinite total stays infinite. An unknown total is unknown.
    """
    if pool.reserved_percentage >= 100:
        return 0
    total = pool.stats.total if pool.stats else None
    if total is None or math.isnan(total) or math.isinf(total):
        return None if total is None or math.isnan(total) else total
    return max(0, int(total) - int(total) * pool.reserved_percentage // 100)


def provisioned(pool: Pool) -> int:
    """Ours and what others have allocated in the same pool."""
    return pool.provisioned + (pool.stats.foreign if pool.stats else 0)


def free(pool: Pool) -> float | None:
    """Free space less what live requests were promised, at least 0; None if it is unknown."""
    if pool.stats is None or pool.stats.free is None or math.isnan(pool.stats.free):
        return None
    return max(0, pool.stats.free - pool.promised)


def ceiling(pool: Pool) -> float | None:
    """What may be provisioned in all on a thin pool: available x max_over_subscription_ratio.

    A ratio below 1 is taken as it stands: only that part of the room is promised (Cinder refuses such
    a backend). One that is not above 0 promises nothing.
    """
    room, ratio = available(pool), pool.max_over_subscription_ratio
    if not ratio > 0 or room == 0:
        return 0
    return None if room is None else room * ratio


def virtual_free(pool: Pool, request: Request) -> float | None:
    """Room by the rule that CapacityFilter judges by, may be negative; None if a figure is missing."""
    if is_thin(pool, request):
        limit = ceiling(pool)
        return None if limit is None else limit - provisioned(pool)
    room, unused = available(pool), free(pool)
    if room is None or unused is None:
        return None
    return min(room - provisioned(pool), unused)


def figures(pool: Pool) -> dict[str, Any]:
    """`stats` of an expression: bytes by our names, GiB by Cinder's. None is unknown."""
    stats = pool.stats or Stats(None, None)
    return {
        "total": stats.total,
        "free": free(pool),
        "foreign": stats.foreign,
        "data_percent": stats.data_percent,
        "metadata_percent": stats.metadata_percent,
        "available": available(pool),
        "provisioned": provisioned(pool),
        "promised": pool.promised,
        "volumes": pool.volumes,
        **_cinder_figures(pool, stats),
    }


def _cinder_figures(pool: Pool, stats: Stats) -> dict[str, Any]:
    return {
        "total_capacity_gb": _gib(stats.total),
        "free_capacity_gb": _gib(free(pool)),
        "provisioned_capacity_gb": _gib(provisioned(pool)),
        "allocated_capacity_gb": _gib(pool.provisioned),
        "reserved_percentage": pool.reserved_percentage,
        "max_over_subscription_ratio": pool.max_over_subscription_ratio,
        "total_volumes": pool.volumes,
    }


def _gib(size: float | None) -> float | None:
    return None if size is None else size / GiB


def reported(pool: Pool) -> dict[str, Any]:
    """What extra specs and expressions see as the pool's capabilities.

    The fields of `Capabilities`, what Cinder's host state has, and what the configuration adds;
    the last wins, so that several backends may share a `volume_backend_name`.
    """
    own = {f.name: getattr(pool.capabilities, f.name) for f in fields(Capabilities) if f.name != "extra"}
    state = {
        "volume_backend_name": pool.name,
        "kind": pool.kind,
        "availability_zone": pool.availability_zone,
        "thin_provisioning_support": pool.capabilities.thin,
        "thick_provisioning_support": not pool.capabilities.thin,
    }
    return own | state | _cinder_figures(pool, pool.stats or Stats(None, None)) | dict(pool.capabilities.extra)


FIELDS = {
    "stats": (
        "total",
        "free",
        "foreign",
        "data_percent",
        "metadata_percent",
        "available",
        "provisioned",
        "promised",
        "volumes",
        "total_capacity_gb",
        "free_capacity_gb",
        "provisioned_capacity_gb",
        "allocated_capacity_gb",
        "reserved_percentage",
        "max_over_subscription_ratio",
        "total_volumes",
    ),
    "volume": ("size", "size_gb", "physical", "name", "type", "availability_zone", "properties"),
}
"""What an expression may name after `stats` and `volume`."""


def scope(pool: Pool, request: Request) -> dict[str, Mapping[str, Any]]:
    """What an expression can name. `volume.size` is in bytes, `volume.size_gb` in GiB."""
    size = size_on(pool, request)
    volume = {
        "size": size,
        "size_gb": size / GiB,
        "physical": request.physical,
        "name": request.name or "",
        "type": request.type or "",
        "availability_zone": request.availability_zone or "",
        "properties": request.properties,
    }
    return {"stats": figures(pool), "capabilities": reported(pool), "volume": volume, "extra": request.specs}


def amount(size: float | None) -> str:
    """A size for a reason: `10 GiB`, `unknown`, `infinite`."""
    if size is None:
        return "unknown"
    return "infinite" if math.isinf(size) else format_size(int(size))


def apart(first: float, second: float) -> tuple[str, str]:
    """Two sizes, in bytes if they would otherwise read the same and are not."""
    texts = amount(first), amount(second)
    return texts if texts[0] != texts[1] or first == second else (f"{int(first)} bytes", f"{int(second)} bytes")
