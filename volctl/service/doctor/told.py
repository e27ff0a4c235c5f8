"""What an object carries of its row, field by field: anybody may have written there, and what is odd is dropped."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from volctl import files
from volctl.errors import UsageError
from volctl.flows.words import check_text
from volctl.model import Json, Object, SourceKind, check_name
from volctl.scheduler import check_specs

TIME = "%Y-%m-%dT%H:%M:%S.%fZ"  # as `model.now` writes it: text order is time order


def checked(target: Object) -> Json:
    """The fields that can be taken over, and no others."""
    told = target.about or {}
    kept = {key: clean(told[key]) for key, clean in _FIELDS.items() if key in told}
    return {key: value for key, value in kept.items() if value is not None}


def _where(good: Callable[[str], bool]) -> Callable[[Any], str | None]:
    """A text for which `good` neither says no nor raises ValueError."""

    def clean(value: Any) -> str | None:
        if not isinstance(value, str):
            return None
        try:
            value.encode()  # a lone surrogate could not be stored
            return value if good(value) else None
        except ValueError:
            return None

    return clean


_name = _where(lambda text: check_name(text) == text)
_text = _where(lambda text: check_text(text, "it") == text)
_path = _where(lambda text: True)  # of a source; the file system takes nearly all
_time = _where(lambda text: datetime.strptime(text, TIME).strftime(TIME) == text)
_id = _where(lambda text: files.object_named(f"volume-{text}") is not None)
_kind = _where(lambda text: text in {*SourceKind})


def _flag(value: Any) -> bool | None:
    return True if value is True else None


def _texts(value: Any) -> dict[str, str] | None:
    """Without the pairs that no user could have written."""
    if not isinstance(value, dict):
        return None
    return {key: text for key, text in value.items() if key and _text(key) is not None and _text(text) is not None}


def _specs(value: Any) -> list[Any] | None:
    """Of its type: extra specs, description, time."""
    if not (isinstance(value, list) and len(value) == 3 and (specs := _texts(value[0])) is not None):
        return None
    fit = {key: text for key, text in specs.items() if _may_be({key: text})}
    return [fit if _may_be(fit) else {}, _text(value[1]), _time(value[2])]


def _may_be(specs: dict[str, str]) -> bool:
    try:
        check_specs(specs)
    except UsageError:
        return False
    return True


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "name": _name,
    "project": _name,
    "type": _name,
    "description": _text,
    "availability_zone": _text,
    "created_at": _time,
    "source_kind": _kind,
    "source_id": _id,
    "source_name": _path,
    "tree": _id,
    "volume_id": _id,
    "bootable": _flag,
    "protected": _flag,
    "properties": _texts,
    "volume_properties": _texts,
    "specs": _specs,
}
