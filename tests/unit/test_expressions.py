"""The language of filter_function and goodness_function."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volctl.errors import ConfigError
from volctl.model import GiB
from volctl.scheduler import check_expression
from volctl.scheduler.expressions import MAX_DEPTH, MAX_LENGTH, EvaluationError, evaluate, parse

SCOPE: dict[str, Any] = {
    "stats": {"free": 10 * GiB, "total": None, "volumes": 3, "free_capacity_gb": 10.0, "available": inf},
    "capabilities": {"ssd": True, "iops": 500, "media": {"kind": "nvme"}, "tags": ["a"]},
    "volume": {"size": 2 * GiB, "size_gb": 2.0, "name": "web-1", "properties": {"tier": "gold"}},
    "extra": {"provisioning:type": "thick", "min_iops": "200", "ssd": "True"},
}

VALUES = [
    ("1 + 2 * 3", 7),
    ("(1 + 2) * 3", 9),
    ("7 - 2 - 1", 4),
    ("12 / 4 / 3", 1),
    ("7 % 4", 3),
    ("-2 * -3", 6),
    ("--2", 2),
    ("+.5 + 1. + 1e1", 11.5),
    ("1 GiB + 1KiB", GiB + 1024),
    ("1.5 MiB", 1.5 * 2**20),
    ("min(3, 1, 2)", 1),
    ("max(3, abs(-4), 2)", 4),
    ("min(7)", 7),
    ("1 < 2", True),
    ("1 < 2 < 3", True),
    ("3 > 2 > 2", False),
    ("2 <= 2 and 2 >= 2 && 1 != 2", True),
    ("1 == 2 or 2 == 2 || 1 / 0", True),
    ("false and 1 / 0", False),
    ("true || extra.nothing", True),
    ("1 or 0 and 0", True),
    ("not 1 == 2", True),
    ("not not 3", True),
    ("!0", True),
    ("!1 == 1", False),
    ("-!0", -1),
    ("1 ? 2 : 3", 2),
    ("0 ? 2 : 0 ? 3 : 4", 4),
    ("true ? 1 : 1 / 0", 1),
    ("1 < 2 ? 10 + 1 : 0", 11),
    ("1 AND NOT 0 OR 0", True),
    ("TRUE", True),
    ("'a' < \"b\"", True),
    ("'a' == 1", False),
    ("'a' != 1", True),
    ("'10' > '9'", True),
    ("stats.free", 10 * GiB),
    ("stats.free > volume.size * 4", True),
    ("stats.available > 1 PiB", True),
    ("capabilities.ssd", True),
    ("capabilities.ssd == true", True),
    ("capabilities.ssd == extra.ssd", True),
    ("capabilities.ssd * 50", 50),
    ("capabilities.media.kind == 'nvme'", True),
    ("capabilities.iops >= extra.min_iops", True),
    ('extra["provisioning:type"] == "thick"', True),
    ("volume['properties'].tier == 'gold'", True),
    ("volume.name == 'web-1'", True),
    ("  1\t+\n1 ", 2),
]

WITHOUT_VALUE = [
    ("1 / 0", "division by zero"),
    ("1 % 0", "modulo"),
    ("1 / (stats.volumes - 3)", "division by zero"),
    ("stats.total > 1", "stats.total is unknown"),
    ("extra.nothing", "there is no extra.nothing"),
    ("capabilities.iops.more", "there is no capabilities.iops.more"),
    ("capabilities.media > 1", "capabilities.media is neither a number nor text"),
    ("capabilities.tags", "capabilities.tags is neither"),
    ("'a' + 1", "'a' is not a number"),
    ("'a' < 1", "compares text with a number"),
    ("-'a'", "'a' is not a number"),
    ("min('a', 1)", "'a' is not a number"),
    ("*".join(["1" * 40] * 20) + "/ 3", "too large"),
]

WRONG = [
    ("", 1, "a value is expected, not the end"),
    ("   ", 4, "a value is expected, not the end"),
    ("1 +", 4, "a value is expected, not the end"),
    ("1 1", 3, "the end or an operator is expected, not '1'"),
    ("(1", 3, "')' is expected, not the end"),
    ("1)", 2, "the end or an operator is expected, not ')'"),
    ("1 ? 2", 6, "':' is expected, not the end"),
    ("min()", 5, "a value is expected, not ')'"),
    ("min 1", 5, "'(' is expected, not '1'"),
    ("1 + abs(1, 2)", 5, "abs takes one value"),
    ("1 + free", 5, "'free' is none of stats, capabilities, volume, extra, min, max, abs"),
    ("__import__('os')", 1, "'__import__' is none of"),
    ("stats", 6, "'.' and a name are expected after stats, not the end"),
    ("stats.", 7, "a name is expected, not the end"),
    ("stats.fre > 1", 7, "there is no stats.fre; there are total free"),
    ("volume.siz > 1", 8, "there is no volume.siz; there are size"),
    ("stats.__class__", 7, "there is no stats.__class__"),
    ("extra[1]", 7, "a key in quotes is expected, not '1'"),
    ("extra['a'", 10, "']' is expected, not the end"),
    ("1 = 1", 3, "'=' is not expected"),
    ("1 ** 2", 4, "a value is expected, not '*'"),
    ("2 ^ 3", 3, "'^' is not expected"),
    ("1; 2", 2, "';' is not expected"),
    ("1 == 'abc", 6, "a text that begins with ' does not end"),
    ("1\u00a0+ 1", 2, "'\\xa0' is not expected"),
    ("10GB", 3, "the end or an operator is expected, not 'GB'"),
    ("9" * 41, 1, "a number of too many digits"),
    ("(" * 40 + "1" + ")" * 40, MAX_DEPTH + 1, "nested deeper"),
    ("1?" * 40, 2 * MAX_DEPTH + 1, "nested deeper"),
    ("1+" * 1000 + "1", MAX_LENGTH + 1, "longer than"),
]


@pytest.mark.parametrize(("source", "value"), VALUES)
def test_value(source: str, value: object) -> None:
    found = evaluate(source, SCOPE)
    assert found == value and isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize(("source", "why"), WITHOUT_VALUE)
def test_without_a_value(source: str, why: str) -> None:
    with pytest.raises(EvaluationError, match=why):
        evaluate(source, SCOPE)


@pytest.mark.parametrize(("source", "position", "why"), WRONG)
def test_wrong_with_its_position(source: str, position: int, why: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        check_expression(source, "filter_function of backend 'a'")
    assert wrong.value.message.startswith(f"filter_function of backend 'a', position {position}: ")
    assert why in wrong.value.message
    assert wrong.value.details == {"position": position}


def test_a_long_flat_expression_is_no_deep_one() -> None:
    assert evaluate("1+" * 999 + "1", SCOPE) == 1000
    assert evaluate("!" * 1999 + "1", SCOPE) is False
    assert evaluate("(" * (MAX_DEPTH - 1) + "1" + ")" * (MAX_DEPTH - 1), SCOPE) == 1


WORDS = st.sampled_from(
    [
        *("1", "0", "2.5", "1e9", "9GiB", "'a'", '"10"', "true", "not", "and", "or", "min", "max", "abs", "stats.free"),
        *("stats.total", "capabilities.ssd", "capabilities.x", "volume.name", "extra", "extra.min_iops", "['ssd']"),
        *("+", "-", "*", "/", "%", "<", "==", "!=", ">=", "&&", "||", "!", "?", ":", "(", ")", ",", ".", "[", " "),
    ]
)


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=25).map(" ".join)))
def test_nothing_but_a_configuration_error(source: str) -> None:
    try:
        parse(source)
    except ConfigError as wrong:
        assert 1 <= wrong.details["position"] <= len(source) + 1
        return
    try:
        assert isinstance(evaluate(source, SCOPE), (int, float, str))
    except EvaluationError:
        pass


OPERANDS = st.integers(0, 50).map(str)


@given(
    st.recursive(
        OPERANDS,
        lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "<", "==", ">="]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        max_leaves=12,
    )
)
def test_reckons_as_python_does(source: str) -> None:
    assert evaluate(source, SCOPE) == eval(source)
