"""The configuration: config.toml into dataclasses, checked before any work.

Order of precedence: flag, environment, file, built in. Unknown keys are errors that name the nearest
known one. Options that only a backend knows are left to it (`BackendConfig.options`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any

from volctl.errors import AccessError, ConfigError
from volctl.model import Json, check_name
from volctl.records import record
from volctl.small import read_small

DEFAULT_ZONE = "local"
_IMAGES = {"max_gigabytes": 100, "fetch_attempts": 5, "fetch_timeout": 30}
"""The largest file that is fetched, or that a packed one may become, in GiB; tries in which nothing
came; seconds in which nothing comes."""
MAX = 2**63 - 1
_MOST_DAYS, _MOST_OF_IMAGES = 36_500, 1_000_000
_LONGEST = 1 << 20  # bytes of a configuration
DEFAULT_FILTERS = ("AvailabilityZoneFilter", "CapacityFilter", "CapabilitiesFilter", "DriverFilter")


@record
class BackendConfig:
    """One `[[backend]]`. `options` is what its kind makes of the other keys."""

    name: str
    kind: str
    enabled: bool = True
    availability_zone: str = DEFAULT_ZONE
    reserved_percentage: int = 0
    max_over_subscription_ratio: float = 20.0
    full_at: int = 95
    filter_function: str | None = None
    goodness_function: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    builtin: bool = False


@record
class Config:
    """What config.toml says, or what is built in."""

    path: Path | None
    default_type: str | None = None
    default_availability_zone: str | None = None
    max_attempts: int = 3
    history_days: int = 90
    no_snapshot_gb_quota: bool = False
    confine_qemu: bool = True
    quota: Mapping[str, int] = field(default_factory=dict)
    filters: tuple[str, ...] = DEFAULT_FILTERS
    weighers: Mapping[str, float] = field(default_factory=lambda: {"CapacityWeigher": 1.0})
    image_cache: Mapping[str, int] = field(default_factory=lambda: {"max_gigabytes": 100, "max_count": 50})
    images: Mapping[str, int] = field(default_factory=lambda: dict(_IMAGES))
    backends: tuple[BackendConfig, ...] = ()


@record
class Places:
    """Where things are: the state directory, and the configuration (None: there is none)."""

    state: Path
    config: Path | None

    @property
    def database(self) -> Path:
        return self.state / "volctl.db"

    @property
    def locks(self) -> Path:
        return self.state / "locks"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def volumes(self) -> Path:
        """The directory of the built-in backend."""
        return self.state / "volumes"


def places(config: str | None = None, state: str | None = None) -> Places:
    """Resolve flag, environment and defaults. `ConfigError` for a configuration that was named and is not there."""
    named = config or os.environ.get("VOLCTL_CONFIG")
    path = Path(named) if named else default_path()
    there = _exists(path)
    if named and not there:
        raise ConfigError(f"the configuration {path} does not exist")
    directory = state or os.environ.get("VOLCTL_STATE_DIR")
    return Places(_absolute(directory) if directory else _default_state(), path if there else None)


def _absolute(path: str) -> Path:
    try:
        return Path(os.path.abspath(path))
    except FileNotFoundError as error:
        raise ConfigError(f"the directory in which {path} would be is gone") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise ConfigError(f"the configuration {str(path)[:255]} cannot be looked at: {error.strerror}") from error


def default_path() -> Path:
    """Where the configuration is looked for when nobody names one."""
    if os.geteuid() == 0:
        return Path("/etc/volctl/config.toml")
    return _xdg("XDG_CONFIG_HOME", ".config") / "volctl" / "config.toml"


def _default_state() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/volctl")
    return _xdg("XDG_STATE_HOME", ".local/state") / "volctl"


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else _home() / fallback


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError("this user has no home directory", hint="say HOME=DIR, or VOLCTL_STATE_DIR=DIR") from error


def load(where: Places) -> Config:
    """The configuration, checked. Without backends there is one, `local`, of loop files in the state directory."""
    document = _read(where.config) if where.config else {}
    try:
        config = _Reader(document, "").config(where.config)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where.config}: {error}") from error
    if config.backends:
        return config
    zone, options = config.default_availability_zone or DEFAULT_ZONE, {"directory": str(where.volumes)}
    builtin = BackendConfig("local", "loop", availability_zone=zone, options=options, builtin=True)
    values = {f.name: getattr(config, f.name) for f in fields(config)} | {"backends": (builtin,)}
    return Config(**values)


def _read(path: Path) -> Json:
    import tomllib

    try:
        raw = read_small(path, _LONGEST)
        if len(raw) > _LONGEST:
            raise ConfigError(f"the configuration {path} is larger than {_LONGEST} bytes")
        return tomllib.loads(raw.decode())
    except PermissionError as error:
        raise AccessError(f"the configuration {path} may not be read by you") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error


def unknown_key(key: str, known: list[str], where: str) -> str:
    """The sentence about a key that nobody knows, with the nearest that somebody does."""
    from difflib import get_close_matches

    near = get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key {key!r}{where}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")


_CACHE_KEYS = ["max_gigabytes", "max_count"]
_TOP_KEYS = [
    "default_type", "default_availability_zone", "max_attempts", "history_days", "no_snapshot_gb_quota",
    "confine_qemu", "quota", "scheduler", "image_cache", "images", "backend",
]  # fmt: skip
_BACKEND_KEYS = [f.name for f in fields(BackendConfig) if f.name not in ("options", "builtin")]


class _Reader:
    """Takes checked values out of one table of the document; ValueError names the key."""

    def __init__(self, table: Json, where: str) -> None:
        self._table = table
        self._where = where

    def only(self, known: list[str]) -> None:
        for key in self._table:
            if key not in known:
                raise ValueError(unknown_key(key, known, self._where))

    def take(self, key: str, kind: type, default: Any, rule: Callable[[Any], bool] = lambda value: True) -> Any:
        value = self._table.get(key, default)
        if value is default and key not in self._table:
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or not rule(value):
            raise ValueError(f"{key}{self._where} is {value!r}, which is not allowed")
        return value

    def plain(self, key: str) -> Any:
        """A value that only its backend knows: TOML's dates, `nan` and integers of any length are for none."""
        if not _is_plain(self._table[key]):
            raise ValueError(f"{key}{self._where} is {self._table[key]!r}, which is not allowed")
        return self._table[key]

    def table(self, key: str) -> _Reader:
        value = self._table.get(key, {})
        if not isinstance(value, dict):
            raise ValueError(f"{key}{self._where} is not a table")
        return _Reader(value, f" in [{key}]")

    def integers(self, known: Callable[[str], bool], names: list[str], least: int, most: int = MAX) -> dict[str, int]:
        for key in self._table:
            if not known(key):
                raise ValueError(unknown_key(key, names, self._where))
        return {key: self.take(key, int, 0, lambda value: least <= value <= most) for key in self._table}

    def config(self, path: Path | None) -> Config:
        self.only(_TOP_KEYS)
        scheduler = self.table("scheduler")
        scheduler.only(["filters", "weighers"])
        quotas = ["volumes", "gigabytes", "snapshots", "per_volume_gigabytes"]
        return Config(
            path=path,
            default_type=self.take("default_type", str, None),
            default_availability_zone=self.take("default_availability_zone", str, None),
            max_attempts=self.take("max_attempts", int, 3, lambda value: value >= 1),
            history_days=self.take("history_days", int, 90, lambda value: 0 <= value <= _MOST_DAYS),
            no_snapshot_gb_quota=self.take("no_snapshot_gb_quota", bool, False),
            confine_qemu=self.take("confine_qemu", bool, True),
            quota=self.table("quota").integers(lambda key: _is_quota(key, quotas), quotas, -1),
            filters=tuple(scheduler.take("filters", list, list(DEFAULT_FILTERS), _all_strings)),
            weighers=_weighers(scheduler.take("weighers", dict, {"CapacityWeigher": 1.0})),
            image_cache={"max_gigabytes": 100, "max_count": 50}
            | self.table("image_cache").integers(lambda key: key in _CACHE_KEYS, _CACHE_KEYS, 0),
            images=_IMAGES
            | self.table("images").integers(lambda key: key in _IMAGES, list(_IMAGES), 1, _MOST_OF_IMAGES),
            backends=self._backends(),
        )

    def _backends(self) -> tuple[BackendConfig, ...]:
        tables = self._table.get("backend", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ValueError("backend is not an array of tables; write [[backend]]")
        zone = self.take("default_availability_zone", str, DEFAULT_ZONE)
        found = [_Reader(table, f" in [[backend]] {number}").backend(zone) for number, table in enumerate(tables, 1)]
        names = [backend.name for backend in found]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two backends are named {name!r}")
        return tuple(found)

    def backend(self, zone: str) -> BackendConfig:
        name = check_name(self.take("name", str, ""))
        where = _Reader(self._table, f" in backend {name!r}")
        return BackendConfig(
            name=name,
            kind=where.take("kind", str, ""),
            enabled=where.take("enabled", bool, True),
            availability_zone=where.take("availability_zone", str, zone),
            reserved_percentage=where.take("reserved_percentage", int, 0, lambda value: 0 <= value <= 100),
            max_over_subscription_ratio=where.take("max_over_subscription_ratio", float, 20.0, lambda value: value > 0),
            full_at=where.take("full_at", int, 95, lambda value: 1 <= value <= 100),
            filter_function=where.take("filter_function", str, None),
            goodness_function=where.take("goodness_function", str, None),
            options={key: where.plain(key) for key in self._table if key not in _BACKEND_KEYS},
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str) or (isinstance(value, (int, float)) and -MAX <= value <= MAX)


def _is_quota(key: str, known: list[str]) -> bool:
    kind, _, of_type = key.partition("_")
    return key in known or (kind in ("volumes", "gigabytes", "snapshots") and bool(of_type))


def _all_strings(value: list[Any]) -> bool:
    return all(isinstance(item, str) for item in value)


def _weighers(table: Json) -> dict[str, float]:
    for name, multiplier in table.items():
        if type(multiplier) not in (int, float):
            raise ValueError(f"the multiplier of {name!r} in [scheduler] weighers is {multiplier!r}, not a number")
    return {name: float(multiplier) for name, multiplier in table.items()}
