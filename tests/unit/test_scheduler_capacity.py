"""The table of capacity cases: what is free, what was promised, and the sentence that refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

import pytest

from volctl.backend import Capabilities, Stats
from volctl.model import GiB, MiB
from volctl.scheduler import Pool, Request
from volctl.scheduler.filters import CapacityFilter
from volctl.scheduler.pools import available, size_on


def pool(
    stats: Stats | None,
    *,
    thin: bool = True,
    granule: int = MiB,
    provisioned: float = 0,
    promised: float = 0,
    reserved: int = 0,
    ratio: float = 20.0,
    full_at: int = 95,
) -> Pool:
    return Pool(
        name="a",
        kind="loop",
        enabled=True,
        availability_zone="local",
        capabilities=Capabilities(thin=thin, granule=granule),
        stats=stats,
        problems=(),
        pool_key="/a",
        free_space_key="8:1",
        provisioned=int(provisioned * GiB),
        volumes=0,
        promised=int(promised * GiB),
        reserved_percentage=reserved,
        max_over_subscription_ratio=ratio,
        full_at=full_at,
    )


def stats(
    total: float | None = 100,
    free: float | None = 100,
    *,
    foreign: float = 0,
    data: float | None = None,
    metadata: float | None = None,
) -> Stats:
    """A pool's room, given in GiB."""
    return Stats(_bytes(total), _bytes(free), int(foreign * GiB), data, metadata)


def _bytes(size: float | None) -> float | None:
    return size if size is None or size in (inf, -inf) or size != size else int(size * GiB)


@dataclass(frozen=True)
class Case:
    """A request of `size` GiB for a pool; `reason` is None if it fits."""

    what: str
    room: Stats | None
    reason: str | None
    size: float = 10
    physical: float = 0
    thick_type: bool = False
    options: dict[str, Any] = field(default_factory=dict)


THICK = [
    Case("fits to the byte", stats(100, 10), None),
    Case("free is too small", stats(100, 9), "10 GiB is needed and 9 GiB is free"),
    Case(
        "provisioned fills it",
        stats(35, 35),
        "10 GiB is above 7 GiB = available 35 GiB - provisioned 28 GiB",
        options={"provisioned": 28},
    ),
    Case("provisioned leaves just enough", stats(38, 38), None, options={"provisioned": 28}),
    Case(
        "others' allocations count",
        stats(35, 35, foreign=20),
        "10 GiB is above 7 GiB = available 35 GiB - provisioned 28 GiB",
        options={"provisioned": 8},
    ),
    Case(
        "reserved is kept",
        stats(100, 100),
        "10 GiB is above 5 GiB = available 90 GiB (10 % reserved) - provisioned 85 GiB",
        options={"provisioned": 85, "reserved": 10},
    ),
    Case(
        "promised is not free",
        stats(100, 12),
        "10 GiB is needed and 8 GiB is free (4 GiB more is promised to others)",
        options={"promised": 4},
    ),
    Case(
        "promised beyond free",
        stats(100, 3),
        "10 GiB is needed and 0 bytes is free (4 GiB more is promised to others)",
        options={"promised": 4},
    ),
    Case(
        "no ratio helps",
        stats(5, 5),
        "10 GiB is above 5 GiB = available 5 GiB - provisioned 0 bytes",
        options={"ratio": 20.0},
    ),
    Case(
        "over-provisioned already",
        stats(10, 10),
        "10 GiB is above 0 bytes = available 10 GiB - provisioned 12 GiB",
        options={"provisioned": 12},
    ),
    Case("unknown free, total bounds", stats(100, None), None),
    Case(
        "unknown free, total too small", stats(5, None), "10 GiB is above 5 GiB = available 5 GiB - provisioned 0 bytes"
    ),
    Case("unknown total, free bounds", stats(None, 9), "10 GiB is needed and 9 GiB is free"),
    Case("unknown both", stats(None, None), None),
    Case("infinite both", stats(inf, inf), None),
    Case("infinite total, free bounds", stats(inf, 9), "10 GiB is needed and 9 GiB is free"),
    Case("nan is unknown", stats(nan, nan), None),
    Case("empty pool", stats(0, 0), "10 GiB is above 0 bytes = available 0 bytes - provisioned 0 bytes"),
]

THIN = [
    Case("more than the pool has", stats(10, 1), None, size=100),
    Case("to the edge of the ratio", stats(7, 7), None, size=5, options={"provisioned": 30, "ratio": 5}),
    Case(
        "above the ratio",
        stats(7, 7),
        "provisioned 30 GiB + 10 GiB is above 35 GiB = available 7 GiB x ratio 5",
        options={"provisioned": 30, "ratio": 5},
    ),
    Case(
        "others' allocations count",
        stats(7, 7, foreign=20),
        "provisioned 30 GiB + 10 GiB is above 35 GiB = available 7 GiB x ratio 5",
        options={"provisioned": 10, "ratio": 5},
    ),
    Case(
        "reserved shrinks what is promised",
        stats(10, 10),
        "provisioned 0 bytes + 10 GiB is above 9 GiB = available 9 GiB (10 % reserved) x ratio 1",
        options={"reserved": 10, "ratio": 1},
    ),
    Case(
        "100 % reserved",
        stats(100, 100),
        "provisioned 0 bytes + 10 GiB is above 0 bytes = available 0 bytes (100 % reserved) x ratio 20",
        options={"reserved": 100},
    ),
    Case("ratio below 1, fits", stats(20, 20), None, options={"ratio": 0.5}),
    Case(
        "ratio below 1",
        stats(20, 20),
        "provisioned 1 GiB + 10 GiB is above 10 GiB = available 20 GiB x ratio 0.5",
        options={"ratio": 0.5, "provisioned": 1},
    ),
    Case(
        "ratio 0",
        stats(20, 20),
        "provisioned 0 bytes + 10 GiB is above 0 bytes = available 20 GiB x ratio 0",
        options={"ratio": 0.0},
    ),
    Case(
        "negative ratio, infinite total",
        stats(inf, inf),
        "provisioned 0 bytes + 10 GiB is above 0 bytes = available infinite x ratio -1",
        options={"ratio": -1.0},
    ),
    Case(
        "ratio is no number",
        stats(20, 20),
        "provisioned 0 bytes + 10 GiB is above 0 bytes = available 20 GiB x ratio nan",
        options={"ratio": nan},
    ),
    Case("what is written at once fits", stats(100, 3), None, physical=3),
    Case("what is written at once does not", stats(100, 3), "5 GiB is needed at once and 3 GiB is free", physical=5),
    Case(
        "promised is not free",
        stats(100, 6),
        "5 GiB is needed at once and 3 GiB is free (3 GiB more is promised to others)",
        physical=5,
        options={"promised": 3},
    ),
    Case("a blank writes nothing", stats(100, 0), None),
    Case("type asks for thick", stats(100, 3), "10 GiB is needed and 3 GiB is free", thick_type=True),
    Case("type asks for thick and it fits", stats(100, 10), None, thick_type=True),
    Case(
        "type asks for thick beyond total",
        stats(5, 5),
        "10 GiB is above 5 GiB = available 5 GiB - provisioned 0 bytes",
        thick_type=True,
    ),
    Case("unknown free", stats(100, None), None, physical=50),
    Case("unknown total", stats(None, 100), None),
    Case("unknown total, none free", stats(None, 1), "5 GiB is needed at once and 1 GiB is free", physical=5),
    Case(
        "unknown total cannot be reserved",
        stats(None, 100),
        "its total is unknown, so 5 % of it cannot be kept in reserve",
        options={"reserved": 5},
    ),
    Case(
        "unknown total, all reserved",
        stats(None, None),
        "provisioned 0 bytes + 10 GiB is above 0 bytes = available 0 bytes (100 % reserved) x ratio 20",
        options={"reserved": 100},
    ),
    Case("infinite total", stats(inf, inf), None, size=8 * 1024**3 - 1),
    Case("infinite total is reserved in vain", stats(inf, inf), None, options={"reserved": 50}),
    Case(
        "infinite total, all reserved",
        stats(inf, inf),
        "provisioned 0 bytes + 10 GiB is above 0 bytes = available 0 bytes (100 % reserved) x ratio 20",
        options={"reserved": 100},
    ),
    Case("infinite ratio", stats(1, 1), None, size=10**6, options={"ratio": inf}),
    Case("the pool could not be asked", None, "its room is not known: the backend could not be asked"),
    Case("data at full_at", stats(100, 5, data=95), None),
    Case("data above full_at", stats(100, 5, data=95.5), "its data is 95.5 % full, above full_at 95 %"),
    Case(
        "metadata above full_at", stats(100, 50, data=10, metadata=97), "its metadata is 97 % full, above full_at 95 %"
    ),
    Case(
        "full_at is configured",
        stats(100, 50, data=81),
        "its data is 81 % full, above full_at 80 %",
        options={"full_at": 80},
    ),
    Case("full_at 100 spares the data", stats(100, 0, data=100), None, options={"full_at": 100}),
    Case("no metadata left", stats(100, 50, metadata=100), "its metadata is 100 % full", options={"full_at": 100}),
]


def judged(case: Case, thin: bool) -> str | None:
    specs = {"provisioning:type": "thick"} if case.thick_type else {}
    request = Request(size=int(case.size * GiB), physical=int(case.physical * GiB), specs=specs)
    return CapacityFilter().refuse(pool(case.room, thin=thin, **case.options), request)


@pytest.mark.parametrize("case", THICK, ids=lambda case: case.what)
def test_thick(case: Case) -> None:
    assert judged(case, thin=False) == case.reason


@pytest.mark.parametrize("case", THIN, ids=lambda case: case.what)
def test_thin(case: Case) -> None:
    assert judged(case, thin=True) == case.reason


def test_the_reserve_is_rounded_down() -> None:
    assert available(pool(Stats(1000, 1000), reserved=33)) == 670
    assert available(pool(Stats(101, 101), reserved=10)) == 91


def test_the_size_is_rounded_up_to_the_granule() -> None:
    request = Request(size=10 * GiB + MiB)
    coarse = pool(stats(10.004, 10.004), thin=False, granule=4 * MiB)
    assert size_on(coarse, request) == 10 * GiB + 4 * MiB
    assert CapacityFilter().refuse(pool(stats(10.004, 10.004), thin=False), request) is None
    assert CapacityFilter().refuse(pool(stats(10 + 3 / 1024, 11), thin=False, granule=4 * MiB), request) is not None
    assert CapacityFilter().refuse(coarse, request) is None


def test_figures_that_read_the_same_are_told_in_bytes() -> None:
    refused = CapacityFilter().refuse(pool(Stats(10 * GiB - 1, None), thin=False), Request(size=10 * GiB))
    assert refused is not None and refused.startswith(f"{10 * GiB} bytes is above {10 * GiB - 1} bytes")


def test_a_refusal_above_the_ratio_by_one_byte_shows_it() -> None:
    refused = CapacityFilter().refuse(pool(Stats(10 * GiB - 1, None), ratio=1), Request(size=10 * GiB))
    assert (
        refused
        == f"provisioned 0 + {10 * GiB} = {10 * GiB} bytes is above {10 * GiB - 1} bytes = available 10 GiB x ratio 1"
    )
