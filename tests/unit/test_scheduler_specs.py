"""Every operator of an extra spec, what it takes and what it refuses, and what can never match."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volctl.errors import UsageError
from volctl.model import GiB
from volctl.scheduler import check_specs, size_bounds
from volctl.scheduler.specs import match, refusal

MATCHES = [
    # equal, without an operator
    ("loop", "loop"),
    (1, "1"),
    (1, "1.0"),
    (1.0, "1"),
    ("1.0", "1"),
    ("1", "1e0"),
    (True, "true"),
    (True, "True"),
    (True, "TRUE"),
    (False, "false"),
    ("True", "true"),
    ("", ""),
    (["a", "b"], "b"),
    # numbers
    (10, "= 10"),
    (11, "= 10"),
    (10, "== 10.0"),
    ("10", "== 10"),
    (2**60 + 1, f"== {2**60 + 1}"),
    (9, "!= 10"),
    (10, ">= 10"),
    (10.5, ">= 10"),
    (10, "<= 10"),
    (-1, "<= 0"),
    (float("inf"), ">= 100"),
    # text
    ("abc", "s== abc"),
    ("two words", "s== two words"),
    (1, "s== 1"),
    (True, "s== true"),
    (True, "s== True"),
    ("abc", "s!= abd"),
    ("abc", "s< abd"),
    ("abc", "s<= abc"),
    ("abd", "s> abc"),
    ("abd", "s>= abd"),
    ("9", "s> 10"),
    # contains
    ("iscsi fast", "<in> fast"),
    (["slow", "fast"], "<in> fast"),
    (112, "<in> 11"),
    # boolean
    (True, "<is> True"),
    (True, "<is> yes"),
    ("true", "<is> True"),
    (1, "<is> True"),
    (False, "<is> False"),
    ("whatever", "<is> False"),
    # one of
    ("loop", "<or> loop"),
    ("lvm", "<or> loop <or> lvm"),
    (2, "<or> 1.0 <or> 2.0"),
    (True, "<or> maybe <or> true"),
    ("two words", "<or> one <or> two words"),
    (["a", "b"], "<or> b <or> c"),
]

MISSES = [
    ("loop", "Loop"),
    (1, "2"),
    ("1.0", "1.00.0"),
    (True, "false"),
    (True, "maybe"),
    (False, "0.0"),
    (["a", "b"], "c"),
    ([], "a"),
    ({"a": 1}, "a"),
    (9, "= 10"),
    (10, "== 11"),
    (2**60 + 1, f"== {2**60}"),
    ("ten", "== 10"),
    (True, "== 1"),
    (10, "!= 10.0"),
    ("ten", "!= 10"),
    (9.99, ">= 10"),
    (10.01, "<= 10"),
    (None, "!= 10"),
    (float("nan"), "!= 10"),
    ("abc", "s== abd"),
    ("abc", "s!= abc"),
    ("abc", "s< abc"),
    ("abd", "s<= abc"),
    ("abc", "s> abc"),
    ("abc", "s>= abd"),
    ("iscsi slow", "<in> fast"),
    (True, "<is> False"),
    ("whatever", "<is> True"),
    (True, "<is> banana"),
    (False, "<is> banana"),
    ("qcow2", "<or> loop <or> lvm"),
    ("", "<or> loop <or>"),
    ("loop", "<or>"),
    ("loop", "<in>"),
    (10, ">="),
]

NEVER = [
    ("<is>True", "write a space after <is>: <is> True"),
    ("<is>", "nothing follows <is>"),
    ("<is> banana", "<is> takes True or False, not 'banana'"),
    ("<or>", "nothing follows <or>"),
    ("<or> ", "nothing follows <or>"),
    ("<or>a <or> b", "write a space after <or>: <or> a <or> b"),
    ("<or> a <or>", "an alternative of <or> is empty"),
    ("<or> a <or> <or> b", "an alternative of <or> is empty"),
    ("<or> a <or>b", "write a space before and after <or>"),
    ("<in>", "nothing follows <in>"),
    ("<in>fast", "write a space after <in>: <in> fast"),
    ("<all-in> a b", "<all-in> is no operator"),
    (">=10", "write a space after >=: >= 10"),
    (">= ten", ">= compares numbers and 'ten' is none"),
    (">= 1 2", ">= compares numbers and '1 2' is none"),
    ("== nan", "== compares numbers and 'nan' is none"),
    ("==", "nothing follows =="),
    ("=10", "write a space after =: = 10"),
    ("< 10", "< is no operator"),
    (">10", "> is no operator"),
    ("s==loop", "write a space after s==: s== loop"),
    ("s<", "nothing follows s<"),
]


@pytest.mark.parametrize(("value", "requirement"), MATCHES)
def test_matches(value: object, requirement: str) -> None:
    assert match(value, requirement)
    check_specs({"key": requirement})


@pytest.mark.parametrize(("value", "requirement"), MISSES)
def test_does_not_match(value: object, requirement: str) -> None:
    assert not match(value, requirement)


@pytest.mark.parametrize(("requirement", "why"), NEVER)
def test_what_can_never_match_is_refused(requirement: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_specs({"capabilities:key": requirement})
    assert why in refused.value.message
    check_specs({"vendor:key": requirement})


@pytest.mark.parametrize("requirement", [wrong for wrong, _ in NEVER])
@pytest.mark.parametrize("value", ["loop", "a", "", 10, 0, True, False, ["a", "b"]])
def test_what_is_refused_does_never_match(requirement: str, value: object) -> None:
    assert not match(value, requirement)


@pytest.mark.parametrize("key", ["", "capabilities:", "capabilities:a:", "capabilities::b"])
def test_a_key_without_a_name_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="names no capability"):
        check_specs({key: "1"})


@given(st.text(), st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text())))
def test_no_requirement_crashes(requirement: str, value: object) -> None:
    assert match(value, requirement) in (True, False)
    try:
        check_specs({"key": requirement})
    except UsageError:
        assert not match(value, requirement)


REPORTED: dict[str, Any] = {
    "thin": True,
    "iops": 1000,
    "media": {"kind": "ssd", "nvme": {"lanes": 4}},
    "qos": ["gold", "silver"],
    "blank": None,
}

REFUSALS = [
    ({"thin": "true", "capabilities:iops": ">= 1000", "qos": "silver"}, None),
    ({"capabilities:media:kind": "ssd", "capabilities:media:nvme:lanes": "4.0"}, None),
    ({"vendor:thin": "false", "provisioning:type": "thick", "hw:a:b": "x"}, None),
    ({"thin": "<is> False"}, "the type asks for thin = '<is> False'; here it is true"),
    ({"iops": ">= 2000"}, "the type asks for iops = '>= 2000'; here it is 1000"),
    ({"capabilities:media:kind": "hdd"}, "the type asks for capabilities:media:kind = 'hdd'; here it is 'ssd'"),
    ({"qos": "bronze"}, "the type asks for qos = 'bronze'; here it is ['gold', 'silver']"),
    ({"ssd": "true"}, "the type asks for ssd = 'true'; this backend reports no ssd"),
    ({"ssd": "!= 1"}, "the type asks for ssd = '!= 1'; this backend reports no ssd"),
    ({"blank": "x"}, "the type asks for blank = 'x'; this backend reports no blank"),
    ({"capabilities:iops:a": "1"}, "the type asks for capabilities:iops:a = '1'; this backend reports no iops:a"),
    ({"capabilities": "x"}, "the type asks for capabilities = 'x'; this backend reports no capabilities"),
]


@pytest.mark.parametrize(("specs", "reason"), REFUSALS)
def test_what_a_backend_reports(specs: dict[str, str], reason: str | None) -> None:
    assert refusal(REPORTED, specs) == reason


def test_size_bounds() -> None:
    assert size_bounds({}) == (None, None)
    assert size_bounds({"provisioning:min_vol_size": "2"}) == (2 * GiB, None)
    both = {"provisioning:min_vol_size": "5", "provisioning:max_vol_size": "5"}
    assert size_bounds(both) == (5 * GiB, 5 * GiB)


@pytest.mark.parametrize("bound", ["", "0", "1.5", "-1", "+1", "1G", "ten", "٣", " 1", "1\n", "9" * 11])
@pytest.mark.parametrize("key", ["provisioning:min_vol_size", "provisioning:max_vol_size"])
def test_a_bound_is_a_whole_number(key: str, bound: str) -> None:
    with pytest.raises(UsageError, match="is not a whole number of GiB"):
        check_specs({key: bound})


def test_bounds_that_exclude_every_size_are_refused() -> None:
    with pytest.raises(UsageError, match="no size fits"):
        check_specs({"provisioning:min_vol_size": "6", "provisioning:max_vol_size": "5"})


def test_provisioning_type_is_thin_or_thick() -> None:
    check_specs({"provisioning:type": "thin"})
    check_specs({"provisioning:type": "thick"})
    with pytest.raises(UsageError, match="neither thin nor thick"):
        check_specs({"provisioning:type": "thik"})
