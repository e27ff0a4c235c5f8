"""The options of a backend on LVM, checked: `ConfigError` says what is wrong and what is near."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from volctl.backend import Setup, check_options
from volctl.errors import ConfigError
from volctl.model import MAX_SIZE, parse_size
from volctl.records import record

if TYPE_CHECKING:
    from volctl.files import Ownership

OPTIONS = (
    "volume_group", "provisioning", "pool", "pool_size", "clear", "mirrors", "stripes", "pv_tags",
    "snapshot_percentage", "owner", "group", "mode", "capabilities",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}")
_TAG = r"[A-Za-z0-9_+.][A-Za-z0-9_+./=!:&#-]{0,127}"
_RESERVED = re.compile(r"\.{1,2}|snapshot.*|pvmove.*|.*_(tdata|tmeta|pmspare|rimage|rmeta|mlog|mimage|cdata|cmeta).*")


@record
class Settings:
    """`pool_size` in bytes, None for 95 % of the group. `mirrors` counts the copies besides the first.

    `ownership` is of the nodes of attached volumes, None to leave them as udev makes them.
    """

    backend: str
    group: str
    provisioning: str
    pool: str
    pool_size: int | None
    clear: str
    mirrors: int
    stripes: int
    pv_tags: frozenset[str]
    snapshot_percentage: int
    ownership: Ownership | None


def settings(setup: Setup) -> Settings:
    check_options(setup, OPTIONS)
    ask = _Options(setup.name, setup.options)
    found = Settings(
        backend=setup.name,
        group=ask.name("volume_group", None),
        provisioning=ask.choice("provisioning", ("auto", "thin", "thick")),
        pool=ask.name("pool", "volctl"),
        pool_size=ask.size("pool_size"),
        clear=ask.choice("clear", ("zero", "discard", "none")),
        mirrors=ask.number("mirrors", 0, 0, 9),
        stripes=ask.number("stripes", 1, 1, 128),
        pv_tags=ask.tags("pv_tags"),
        snapshot_percentage=ask.number("snapshot_percentage", 100, 1, 100),
        ownership=_ownership(setup),
    )
    if found.mirrors and found.provisioning == "thin":
        raise ask.wrong("mirrors", "for thick volumes", "make the thin pool itself as raid1: see lvmthin(7)")
    return found


def _ownership(setup: Setup) -> Ownership | None:
    if not {"owner", "group", "mode"} & setup.options.keys():
        return None
    from volctl.files import Ownership

    return Ownership.of(setup.options, None)


@record
class _Options:
    backend: str
    options: Mapping[str, Any]

    def wrong(self, option: str, rule: str, hint: str | None = None) -> ConfigError:
        return ConfigError(f"backend {self.backend}: {option} = {self.options.get(option)!r} is not {rule}", hint=hint)

    def name(self, option: str, default: str | None) -> str:
        value = self.options.get(option, default)
        if not isinstance(value, str) or not _NAME.fullmatch(value) or _RESERVED.fullmatch(value):
            raise self.wrong(option, "a name that LVM takes", f'write {option} = "{default or "vg0"}"')
        return value

    def choice(self, option: str, known: tuple[str, ...]) -> str:
        """The first is the default."""
        value = self.options.get(option, known[0])
        if value not in known:
            from difflib import get_close_matches

            near = get_close_matches(str(value), known, 1, 0.0)
            raise self.wrong(option, f"one of {', '.join(known)}", f"did you mean {near[0]}?" if near else None)
        return str(value)

    def number(self, option: str, default: int, least: int, most: int) -> int:
        value = self.options.get(option, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(option, f"a whole number from {least} to {most}")
        return value

    def size(self, option: str) -> int | None:
        value = self.options.get(option)
        if value is None:
            return None
        try:
            size = parse_size(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else 0
        except ValueError as error:
            raise self.wrong(option, "a size", str(error)) from error
        if not 0 < size <= MAX_SIZE:
            raise self.wrong(option, "a size", f'write {option} = "100G"')
        return size

    def tags(self, option: str) -> frozenset[str]:
        value = self.options.get(option, [])
        if not isinstance(value, list) or not all(isinstance(tag, str) and re.fullmatch(_TAG, tag) for tag in value):
            raise self.wrong(option, "a list of tags", f'write {option} = ["ssd"]')
        return frozenset(value)
