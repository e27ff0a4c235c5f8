"""What a user writes: names, descriptions, properties, checked before anything else is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from volctl.errors import UsageError
from volctl.model import check_name

T = TypeVar("T")


def usage(check: Callable[[str], T], text: str) -> T:
    """The value of `check(text)`; its ValueError as a `UsageError`."""
    try:
        return check(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def properties(pairs: tuple[str, ...] | list[str]) -> dict[str, str]:
    """`KEY=VALUE` texts as a dictionary: keys 1 to 255 characters, values to 255."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair!r} is not KEY=VALUE")
        found[checked(key, "a property's key", least=1)] = checked(value, f"the property {key!r}")
    return found


def check_text(text: str, what: str, limit: int = 255, least: int = 0) -> str:
    """User text for a description or a property; ValueError for control and unassigned characters."""
    import unicodedata

    if not least <= len(text) <= limit:
        raise ValueError(f"{what} has {len(text)} characters; allowed are {least} to {limit}")
    for position, char in enumerate(text, 1):
        if unicodedata.category(char) in ("Cc", "Cs", "Cn", "Zl", "Zp"):
            raise ValueError(f"{what} has a forbidden character U+{ord(char):04X} at position {position}")
    return text


def checked(text: str, what: str, *, least: int = 0) -> str:
    """User text of at most 255 characters."""
    return usage(lambda value: check_text(value, what, least=least), text)


def path(text: str) -> str:
    """A path, as text: `UsageError` for one that no row can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the path {text!r} is not UTF-8", hint="rename what is not, with mv") from error
    return text


def absolute(text: str) -> str:
    """The path from the root. `UsageError` where there is no working directory any more."""
    try:
        return os.path.abspath(text)
    except FileNotFoundError as error:
        raise UsageError("the working directory is gone", hint="name the file by its whole path") from error


def description(text: str | None) -> str | None:
    return None if text is None else checked(text, "the description")


def own_words(name: str | None, description_: str | None) -> dict[str, str | None]:
    """The columns that a user sets on a volume or snapshot, checked; only those that are given."""
    values: dict[str, str | None] = {} if name is None else {"name": usage(check_name, name)}
    return values if description_ is None else values | {"description": description(description_)}
