"""Extra specs: requirements of a volume type on what a backend reports.

The operators and their reading are Cinder's (cinder/scheduler/filters/extra_specs_ops.py), with three
things made firm: numbers are equal however they are spelt, booleans are true/false in any case, and an
operand is all that follows the operator, not its first word only. `=` is Cinder's: at least.

    ssd=true                   equal
    iops=>= 100                numbers: = (at least) == != >= <=
    version=s>= v2             text: s== s!= s< s<= s> s>=
    vendor=<in> fast           contains
    ssd=<is> True              as booleans
    kind=<or> loop <or> lvm    one of
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from volctl.errors import UsageError
from volctl.model import GiB

_NUMBER = r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?"
_TRUE = {"1", "t", "true", "on", "y", "yes"}
_FALSE = {"0", "f", "false", "off", "n", "no"}
_NUMERIC: dict[str, Callable[[float, float], bool]] = {
    "=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
}
_TEXTUAL: dict[str, Callable[[str, str], bool]] = {
    "s==": operator.eq,
    "s!=": operator.ne,
    "s<": operator.lt,
    "s<=": operator.le,
    "s>": operator.gt,
    "s>=": operator.ge,
}
_OPERATORS = {*_NUMERIC, *_TEXTUAL, "<in>", "<is>", "<or>"}
_GLUED = r"(?s)(<[A-Za-z-]+>|s?[=!<>]=|s[<>]|[=<>])(.*)"
_OR = r"(?:(?<=\s)|^)<or>(?=\s|$)"
MIN_SIZE, MAX_SIZE, PROVISIONING = "provisioning:min_vol_size", "provisioning:max_vol_size", "provisioning:type"


def number(value: object) -> int | float | None:
    """The number that a value is or spells; None if neither. A boolean is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return None if math.isnan(value) else value
    if not isinstance(value, str) or not re.fullmatch(_NUMBER, value):
        return None
    digits = value.lstrip("+-")
    return int(value) if digits.isdigit() else float(value)


def boolean(value: object) -> bool | None:
    """As oslo's strutils.bool_from_string(strict=True), None where that fails."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def equal(value: object, wanted: str) -> bool:
    """`1` is `1.0`, `True` is `true`, and a boolean is also what `<is>` would take for it."""
    if isinstance(value, bool):
        return boolean(wanted) is value
    left, right = number(value), number(wanted)
    if left is not None and right is not None:
        return left == right
    words = {"true", "false"}
    if isinstance(value, str) and value.lower() in words:
        return value.lower() == wanted.lower()
    return text(value) == wanted


def match(value: object, requirement: str) -> bool:
    """Whether a reported value satisfies a requirement; a list does if one of its items does."""
    if isinstance(value, (list, tuple)):
        return any(match(item, requirement) for item in value)
    if value is None or isinstance(value, Mapping):
        return False
    sign, operand = split(requirement)
    if sign is None:
        return _never_plain(requirement) is None and equal(value, requirement)
    if sign in _NUMERIC:
        left, right = number(value), number(operand)
        return left is not None and right is not None and _NUMERIC[sign](left, right)
    return _match_words(value, sign, operand)


def _match_words(value: object, sign: str, operand: str) -> bool:
    if not operand:
        return False
    if sign == "<in>":
        return operand in text(value)
    if sign == "<is>":
        # Cinder takes a value that is no boolean for false
        return boolean(operand) is (boolean(value) or False)
    if sign == "<or>":
        return _never_or(operand) is None and any(equal(value, wanted) for wanted in alternatives(operand))
    return _TEXTUAL[sign](text(value), operand.lower() if isinstance(value, bool) else operand)


def split(requirement: str) -> tuple[str | None, str]:
    """(operator, operand); the operator is None for a plain value."""
    words = requirement.split(None, 1)
    if words and words[0] in _OPERATORS:
        return words[0], words[1].strip() if len(words) > 1 else ""
    return None, requirement


def alternatives(operand: str) -> list[str]:
    """`a <or> b` as [a, b]; an empty one stays, so that it can be refused."""
    return [part.strip() for part in re.split(_OR, operand)]


def path(key: str) -> list[str] | None:
    """Where a spec's key points in what a backend reports; None for another scope, which is ignored."""
    scope = key.split(":")
    if scope[0] == "capabilities" and len(scope) > 1:
        return scope[1:]
    return scope if len(scope) == 1 else None


def refusal(reported: Mapping[str, Any], specs: Mapping[str, str]) -> str | None:
    """Why a backend that reports this does not satisfy the specs; None if it does."""
    for key, requirement in specs.items():
        if (scope := path(key)) is None:
            continue
        found: Any = reported
        for name in scope:
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None:
            return f"the type asks for {key} = {requirement!r}; this backend reports no {':'.join(scope)}"
        if not match(found, requirement):
            shown = text(found) if not isinstance(found, str) else repr(found)
            return f"the type asks for {key} = {requirement!r}; here it is {shown}"
    return None


def backend_names(specs: Mapping[str, str]) -> list[str]:
    """The requirements on `volume_backend_name`: how a type names a backend."""
    return [wanted for key, wanted in specs.items() if path(key) == ["volume_backend_name"]]


def check_specs(specs: Mapping[str, str]) -> None:
    """`UsageError` for a spec that could never match, or that volctl itself reads and cannot."""
    for key, requirement in specs.items():
        scope = path(key)
        if not key or (scope is not None and not all(scope)):
            raise UsageError(
                f"the extra spec {key!r} names no capability", hint="write KEY=VALUE or capabilities:KEY=VALUE"
            )
        if scope is not None and (wrong := _never(requirement)):
            raise UsageError(f"the extra spec {key}={requirement} can never match: {wrong}")
    if specs.get(PROVISIONING, "thin") not in ("thin", "thick"):
        raise UsageError(f"the extra spec {PROVISIONING}={specs[PROVISIONING]} is neither thin nor thick")
    size_bounds(specs)


def _never(requirement: str) -> str | None:
    sign, operand = split(requirement)
    if sign is None:
        return _never_plain(requirement)
    if not operand:
        return f"nothing follows {sign}"
    if sign in _NUMERIC and number(operand) is None:
        return f"{sign} compares numbers and {operand!r} is none; s== and s!= compare text"
    if sign == "<is>" and boolean(operand) is None:
        return f"<is> takes True or False, not {operand!r}"
    if sign == "<or>":
        return _never_or(operand)
    return None


def _never_plain(requirement: str) -> str | None:
    glued = re.match(_GLUED, requirement.strip())
    if not glued:
        return None
    sign, rest = glued.groups()
    if sign in _OPERATORS:
        return f"write a space after {sign}: {sign} {rest.strip()}"
    return f"{sign} is no operator; there are {' '.join(sorted(_OPERATORS))}"


def _never_or(operand: str) -> str | None:
    wanted = alternatives(operand)
    if not all(wanted):
        return "an alternative of <or> is empty"
    if any("<or>" in item for item in wanted):
        return "write a space before and after <or>"
    return None


def size_bounds(specs: Mapping[str, str]) -> tuple[int | None, int | None]:
    """The smallest and the largest size that a type allows, in bytes; None is no bound.

    From `provisioning:min_vol_size` and `provisioning:max_vol_size`, whole numbers of GiB. `UsageError`.
    """
    least, most = _whole_gib(specs, MIN_SIZE), _whole_gib(specs, MAX_SIZE)
    if least is not None and most is not None and least > most:
        raise UsageError(f"{MIN_SIZE}={specs[MIN_SIZE]} is above {MAX_SIZE}={specs[MAX_SIZE]}: no size fits")
    return least, most


def _whole_gib(specs: Mapping[str, str], key: str) -> int | None:
    if key not in specs:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", specs[key]) or int(specs[key]) == 0:
        raise UsageError(f"the extra spec {key}={specs[key]} is not a whole number of GiB from 1 up")
    return int(specs[key]) * GiB
