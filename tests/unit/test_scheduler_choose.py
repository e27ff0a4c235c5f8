"""The choice as a whole: who refuses and in what order, who wins, and what a third party may add."""

from __future__ import annotations

import dataclasses
import sys
from math import inf, nan
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volctl.backend import Capabilities, Problem, Stats
from volctl.errors import ConfigError
from volctl.model import Explanation, GiB, Verdict, to_json
from volctl.scheduler import Policy, Pool, Request, check_policy, choose
from volctl.scheduler.filters import FILTERS
from volctl.scheduler.pools import FIELDS, figures, scope
from volctl.scheduler.weighers import WEIGHERS, normalise


def pool(name: str, free: float | None = 100 * GiB, total: float | None = 100 * GiB) -> Pool:
    return Pool(
        name=name,
        kind="loop",
        enabled=True,
        availability_zone="local",
        capabilities=Capabilities(),
        stats=Stats(total, free),
        problems=(),
        pool_key=f"/{name}",
        free_space_key="8:1",
        provisioned=0,
        volumes=0,
        promised=0,
    )


A, B, C = pool("a"), pool("b"), pool("c")
change = dataclasses.replace


def verdict(pools: list[Pool], request: Request, policy: Policy | None = None) -> Verdict:
    """What was thought of the first."""
    return choose(pools, request, policy or Policy()).backends[0]


ASK = Request(size=10 * GiB)

REFUSALS = [
    ("RequestedBackendFilter", A, change(ASK, backend="b"), "backend 'b' was asked for"),
    ("BackendStateFilter", change(A, enabled=False), ASK, "it is disabled in the configuration (enabled = false)"),
    (
        "BackendStateFilter",
        change(A, problems=(Problem("slow", fatal=False), Problem("not mounted"))),
        ASK,
        "not mounted",
    ),
    (
        "SourceBackendFilter",
        A,
        change(ASK, source_backend="b"),
        "the source is on backend 'b'; --backend a would copy it here",
    ),
    ("IgnoreAttemptedBackendsFilter", A, change(ASK, excluded=("b", "a")), "it was tried for this volume and failed"),
    ("SameBackendFilter", A, change(ASK, same_backend=("b", "c", "b")), "the hint same-backend leads to 'b', 'c'"),
    (
        "DifferentBackendFilter",
        A,
        change(ASK, different_backend=("a",)),
        "the hint different-backend leads away from 'a'",
    ),
    (
        "AvailabilityZoneFilter",
        A,
        change(ASK, availability_zone="east"),
        "it is in availability zone 'local', not 'east'",
    ),
    ("CapacityFilter", A, change(ASK, physical=101 * GiB), "101 GiB is needed at once and 100 GiB is free"),
    (
        "CapabilitiesFilter",
        A,
        change(ASK, specs={"ssd": "true"}),
        "the type asks for ssd = 'true'; this backend reports no ssd",
    ),
    (
        "DriverFilter",
        change(A, filter_function="volume.size < 5 GiB"),
        ASK,
        "filter_function 'volume.size < 5 GiB' does not hold",
    ),
    (
        "DriverFilter",
        change(A, filter_function="1e200 * 1e200 - 1e200 * 1e200"),
        ASK,
        "filter_function '1e200 * 1e200 - 1e200 * 1e200' does not hold",
    ),
    (
        "DriverFilter",
        change(A, filter_function="1 / stats.volumes"),
        ASK,
        "filter_function '1 / stats.volumes' has no value: division by zero",
    ),
    (
        "DriverFilter",
        change(A, filter_function="capabilities.ssd"),
        ASK,
        "filter_function 'capabilities.ssd' has no value: there is no capabilities.ssd",
    ),
]


@pytest.mark.parametrize(("name", "first", "request_", "reason"), REFUSALS)
def test_refused_by_name_and_reason(name: str, first: Pool, request_: Request, reason: str) -> None:
    assert verdict([first, B], request_) == Verdict("a", False, name, reason)


PASSES = [
    (A, change(ASK, backend="a")),
    (change(A, problems=(Problem("no qemu-img", fatal=False),)), ASK),
    (A, change(ASK, source_backend="a")),
    (A, change(ASK, source_backend="b", backend="a")),
    (A, change(ASK, excluded=("b",))),
    (A, change(ASK, same_backend=("b", "a"))),
    (A, change(ASK, different_backend=("b",))),
    (A, change(ASK, availability_zone="local")),
    (
        A,
        change(
            ASK, specs={"thin": "<is> True", "kind": "loop", "volume_backend_name": "a", "reserved_percentage": "0"}
        ),
    ),
    (A, change(ASK, specs={"granule": "1048576", "free_capacity_gb": ">= 100", "availability_zone": "local"})),
    (change(A, capabilities=Capabilities(extra={"ssd": True})), change(ASK, specs={"capabilities:ssd": "true"})),
    (change(A, filter_function="volume.size_gb == 10 and stats.free > volume.size"), ASK),
    (
        change(A, filter_function='extra["x:y"] == 1 && volume.type == "gold"'),
        change(ASK, type="gold", specs={"x:y": "1"}),
    ),
]


@pytest.mark.parametrize(("first", "request_"), PASSES)
def test_passes(first: Pool, request_: Request) -> None:
    assert verdict([first, B], request_).reason is None


def test_the_first_filter_that_refuses_is_named() -> None:
    bad = change(A, enabled=False, availability_zone="west", stats=None)
    request = change(ASK, availability_zone="east", excluded=("a",))
    assert verdict([bad], request).filter == "BackendStateFilter"
    assert verdict([change(bad, enabled=True)], request).filter == "IgnoreAttemptedBackendsFilter"
    request = change(request, excluded=())
    assert verdict([change(bad, enabled=True)], request).filter == "AvailabilityZoneFilter"
    order = Policy(filters=("CapacityFilter", "AvailabilityZoneFilter"))
    assert verdict([change(bad, enabled=True)], request, order).filter == "CapacityFilter"


def test_the_policy_takes_away_only_the_configurable() -> None:
    bare = Policy(filters=())
    assert verdict([A], change(ASK, availability_zone="east"), bare).passed
    assert not verdict([A], change(ASK, excluded=("a",)), bare).passed


def test_a_type_that_names_another_backend_unpins_the_source() -> None:
    request = change(ASK, source_backend="a", specs={"volume_backend_name": "b"})
    assert choose([A, B], request, Policy()).chosen == "b"
    request = change(request, specs={"capabilities:volume_backend_name": "<or> a <or> b"})
    assert choose([B, A], request, Policy()).chosen == "a"
    request = change(request, specs={"thin": "true"})
    assert choose([B, A], request, Policy()).chosen == "a"


def test_backends_may_share_a_backend_name() -> None:
    shared = [change(each, capabilities=Capabilities(extra={"volume_backend_name": "fast"})) for each in (A, B)]
    request = change(ASK, source_backend="b", specs={"volume_backend_name": "fast"})
    assert choose([*shared, C], request, Policy()).chosen == "b"


def test_the_explanation_is_data() -> None:
    wide, full = pool("wide", total=200 * GiB), pool("full", total=0)
    told = choose([A, wide, full], change(ASK, type="gold"), Policy())
    assert to_json(told) == {
        "size": 10 * GiB,
        "type": "gold",
        "chosen": "wide",
        "backends": [
            {
                "name": "a",
                "passed": True,
                "filter": None,
                "reason": None,
                "weights": {"CapacityWeigher": 0.0},
                "total": 0.0,
            },
            {
                "name": "wide",
                "passed": True,
                "filter": None,
                "reason": None,
                "weights": {"CapacityWeigher": 1.0},
                "total": 1.0,
            },
            {
                "name": "full",
                "passed": False,
                "filter": "CapacityFilter",
                "reason": "provisioned 0 bytes + 10 GiB is above 0 bytes = available 0 bytes x ratio 20",
                "weights": {},
                "total": None,
            },
        ],
    }


def test_nobody_passes() -> None:
    assert choose([], ASK, Policy()) == Explanation(10 * GiB, None, None, ())
    assert choose([A], change(ASK, excluded=("a",)), Policy()).chosen is None


NORMALISED = [
    ([], 1.0, []),
    ([5], 1.0, [0.0]),
    ([5, 5], 1.0, [0.0, 0.0]),
    ([0, 5, 10], 1.0, [0.0, 0.5, 1.0]),
    ([0, 5, 10], 2.0, [0.0, 1.0, 2.0]),
    ([0, 5, 10], -1.0, [0.0, -0.5, -1.0]),
    ([0, 5, 10], 0.0, [0.0, 0.0, 0.0]),
    ([-10, 0], 1.0, [0.0, 1.0]),
    ([None, None], 1.0, [0.0, 0.0]),
    ([inf, nan], -1.0, [0.0, 0.0]),
    ([None, 3, 4], 1.0, [0.0, 1 / 101, 1.0]),
    ([inf, 3, 4], -1.0, [-1.0, 0.0, -100 / 101]),
    ([None, 5], 1.0, [0.0, 1.0]),
    ([None, 2**70], 1.0, [0.0, 1.0]),
]


@pytest.mark.parametrize(("weights", "multiplier", "expected"), NORMALISED)
def test_normalise(weights: list[float | None], multiplier: float, expected: list[float]) -> None:
    found = normalise(weights, multiplier)
    assert found == pytest.approx(expected)
    assert "-0.0" not in map(str, found)


@given(st.lists(st.none() | st.floats(-1e18, 1e18) | st.sampled_from([inf, -inf, nan])), st.floats(-100, 100))
def test_normalised_weights_are_within_the_multiplier(weights: list[float | None], multiplier: float) -> None:
    assert all(abs(weight) <= abs(multiplier) * 1.000001 for weight in normalise(weights, multiplier))


def weights(name: str, multiplier: float, pools: list[Pool], request: Request = ASK) -> list[float]:
    policy = Policy(filters=(), weighers={name: multiplier})
    return [verdict.weights[name] for verdict in choose(pools, request, policy).backends]


def test_capacity_weighs_virtual_room() -> None:
    thin = [pool("t10", total=10 * GiB), pool("t20", total=20 * GiB), pool("t30", total=30 * GiB)]
    assert weights("CapacityWeigher", 1.0, thin) == [0.0, 0.5, 1.0]
    assert weights("CapacityWeigher", -1.0, thin) == [0.0, -0.5, -1.0]
    reserved = [change(thin[2], reserved_percentage=100), change(thin[2], reserved_percentage=50), thin[2]]
    assert weights("CapacityWeigher", 1.0, reserved) == [0.0, 0.5, 1.0]
    provisioned = [change(thin[0], provisioned=100 * GiB), change(thin[0], provisioned=50 * GiB), thin[0]]
    assert weights("CapacityWeigher", 1.0, provisioned) == [0.0, 0.5, 1.0]


def test_capacity_weighs_free_room_for_thick() -> None:
    free = [pool("f10", 10 * GiB), pool("f20", 20 * GiB), change(pool("f40", 40 * GiB), promised=10 * GiB)]
    request = change(ASK, specs={"provisioning:type": "thick"})
    assert weights("CapacityWeigher", 1.0, free, request) == [0.0, 0.5, 1.0]
    assert weights("CapacityWeigher", 1.0, free) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("odd", [pool("odd", None, None), pool("odd", inf, inf), change(pool("odd"), stats=None)])
@pytest.mark.parametrize("multiplier", [1.0, -1.0])
def test_a_pool_that_does_not_tell_its_room_comes_last(odd: Pool, multiplier: float) -> None:
    policy = Policy(filters=(), weighers={"CapacityWeigher": multiplier})
    for other in (pool("full", 0, 0), pool("wide", 2**60, 2**60), change(A, provisioned=2**60)):
        assert choose([odd, other], ASK, policy).chosen == other.name
    assert choose([odd, change(odd, name="later")], ASK, policy).chosen == "odd"


def test_allocated_and_number() -> None:
    pools = [change(A, provisioned=0, volumes=4), change(B, provisioned=GiB, volumes=2), change(C, provisioned=2 * GiB)]
    assert weights("AllocatedCapacityWeigher", 1.0, pools) == [0.0, 0.5, 1.0]
    assert weights("VolumeNumberWeigher", -1.0, pools) == [-1.0, -0.5, 0.0]


GOODNESS = [
    ("50", 50),
    ("150", 100),
    ("-3", 0),
    ("1 < 2", 100),
    ("1 > 2", 0),
    ("1 / 0", 0),
    ("capabilities.nothing", 0),
    ("'text'", 0),
    ("stats.free > 1 ? 75 : 25", 75),
    ("1e200 * 1e200", 100),
    ("1e200 * 1e200 - 1e200 * 1e200", 0),
    (None, 0),
]


@pytest.mark.parametrize(("function", "goodness"), GOODNESS)
def test_goodness(function: str | None, goodness: int) -> None:
    ends = [change(B, goodness_function="0"), change(C, goodness_function="100")]
    found = weights("GoodnessWeigher", 1.0, [change(A, goodness_function=function), *ends])
    assert found == [goodness / 100, 0.0, 1.0]


def test_chance_is_drawn_once_per_seed() -> None:
    chosen = [
        choose([A, B, C], ASK, Policy(weighers={"ChanceWeigher": 1.0}, seed=seed)).chosen for seed in [*range(60)] * 2
    ]
    assert chosen[:60] == chosen[60:]
    assert set(chosen) == {"a", "b", "c"}
    assert choose([C, B, A], ASK, Policy(weighers={"ChanceWeigher": 1.0}, seed=1)).chosen == chosen[1]
    assert choose([A, B], ASK, Policy(weighers={"ChanceWeigher": 1.0})).chosen in ("a", "b")


def test_weights_are_summed_and_ties_keep_the_order() -> None:
    pools = [change(A, volumes=1), change(B, goodness_function="100"), C]
    policy = Policy(weighers={"CapacityWeigher": 1.0, "GoodnessWeigher": 2.0, "VolumeNumberWeigher": 3.0})
    told = choose(pools, ASK, policy)
    assert [one.total for one in told.backends] == [3.0, 2.0, 0.0]
    assert told.backends[1].weights == {"CapacityWeigher": 0.0, "GoodnessWeigher": 2.0, "VolumeNumberWeigher": 0.0}
    assert told.chosen == "a"
    assert choose([C, B, A], ASK, Policy()).chosen == "c"
    assert choose([C, B, A], ASK, Policy(weighers={})).chosen == "c"


def test_what_an_expression_may_name_is_what_it_is_given() -> None:
    assert tuple(figures(A)) == FIELDS["stats"]
    assert tuple(scope(A, ASK)["volume"]) == FIELDS["volume"]


def test_a_wrong_expression_is_told_with_its_position() -> None:
    with pytest.raises(ConfigError, match="position 3"):
        choose([change(A, filter_function="1 1")], ASK, Policy())


def test_a_known_policy_is_fine() -> None:
    check_policy(Policy())
    check_policy(Policy(filters=tuple(FILTERS), weighers=dict.fromkeys(WEIGHERS, -1.0)))


UNKNOWN = [
    (Policy(filters=("CapacitFilter",)), "there is no filter 'CapacitFilter'", "did you mean CapacityFilter?"),
    (
        Policy(weighers={"capacityweigher": 1.0}),
        "there is no weigher 'capacityweigher'",
        "did you mean CapacityWeigher?",
    ),
    (Policy(filters=("zzz",)), "there is no filter 'zzz'", "known: AvailabilityZoneFilter"),
]


@pytest.mark.parametrize(("policy", "message", "hint"), UNKNOWN)
def test_an_unknown_name_is_refused_with_the_nearest(policy: Policy, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_policy(policy)
    assert refused.value.message == message
    assert refused.value.hint is not None and refused.value.hint.startswith(hint)


@pytest.mark.parametrize("multiplier", [inf, -inf, nan])
def test_a_multiplier_is_finite(multiplier: float) -> None:
    with pytest.raises(ConfigError, match="the multiplier of ChanceWeigher is"):
        check_policy(Policy(weighers={"ChanceWeigher": multiplier}))


THIRD_PARTY = """
from volctl.scheduler import Filter, Weigher

class WeekendFilter(Filter):
    def refuse(self, pool, request):
        return "it rests" if pool.name == "a" else None

class LastWeigher(Weigher):
    def weigh(self, pool, request):
        return ord(pool.name)

class Stranger:
    pass
"""

ENTRY_POINTS = """
[volctl.scheduler.filters]
WeekendFilter = thirdparty_scheduling:WeekendFilter
CapacityFilter = thirdparty_scheduling:Nothing
BrokenFilter = thirdparty_scheduling:Nothing
AbsentFilter = thirdparty_absent:AbsentFilter
StrangeFilter = thirdparty_scheduling:Stranger

[volctl.scheduler.weighers]
LastWeigher = thirdparty_scheduling:LastWeigher
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's installed package."""
    (tmp_path / "thirdparty_scheduling.py").write_text(THIRD_PARTY)
    info = tmp_path / "thirdparty_scheduling-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty-scheduling\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "thirdparty_scheduling", raising=False)
    return tmp_path


@pytest.mark.usefixtures("third_party")
def test_third_parties_add_filters_and_weighers() -> None:
    policy = Policy(filters=("CapacityFilter", "WeekendFilter"), weighers={"LastWeigher": 5.0})
    check_policy(policy)
    told = choose([A, B, C], ASK, policy)
    assert told.backends[0] == Verdict("a", False, "WeekendFilter", "it rests")
    assert told.chosen == "c" and told.backends[2].weights == {"LastWeigher": 5.0}


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BrokenFilter", "cannot be loaded"),
        ("AbsentFilter", "cannot be loaded: No module named 'thirdparty_absent'"),
        ("StrangeFilter", "is not a subclass of Filter"),
        ("WeekndFilter", "there is no filter 'WeekndFilter'"),
    ],
)
def test_a_third_party_that_is_wrong(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_policy(Policy(filters=(name,)))
    assert message in refused.value.message
    if name == "WeekndFilter":
        assert refused.value.hint == "did you mean WeekendFilter?"
