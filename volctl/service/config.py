"""The configuration: where it is, what it says, what is wrong with it. Needs no database."""

from __future__ import annotations

from dataclasses import asdict

from volctl.backend import Backend, Setup
from volctl.config import BackendConfig, Config, Places, default_path, places
from volctl.config import load as load_config
from volctl.errors import ConfigError, VolctlError
from volctl.flows.context import check_pools
from volctl.flows.pools import check_functions
from volctl.kinds import load
from volctl.model import Json, to_json
from volctl.scheduler import Policy, check_policy
from volctl.service.session import Options


def path(options: Options) -> str:
    """The file that is read, or would be."""
    return str(_places(options).config or default_path())


def show(options: Options) -> Json:
    """Every key with the value in force."""
    where = _places(options)
    config = load_config(where)
    values: Json = {"config": str(where.config) if where.config else None, "state_dir": str(where.state)}
    values |= {key: value for key, value in to_json(config).items() if key not in ("path", "backends")}
    return values | {"backends": [_flat(backend) for backend in config.backends]}


def _flat(backend: BackendConfig) -> Json:
    values = asdict(backend)
    options = values.pop("options")
    del values["builtin"]
    return values | dict(options)


def check(options: Options) -> list[str]:
    """What is wrong, a sentence each; empty if nothing is."""
    where = _places(options)
    try:
        config = load_config(where)
    except ConfigError as error:
        return [error.message]
    return problems(config, where)


def problems(config: Config, where: Places) -> list[str]:
    """What is wrong beyond the file's shape: scheduler names, expressions, each backend's own options."""
    found = []
    try:
        check_policy(Policy(config.filters, dict(config.weighers)))
    except VolctlError as error:
        found.append(error.message)
    made: list[Backend] = []
    for backend in config.backends:
        found += _backend_problems(backend, made)
    try:
        check_pools(made)
    except VolctlError as error:
        found.append(error.message)
    return found


def _backend_problems(backend: BackendConfig, made: list[Backend]) -> list[str]:
    """Of one backend, which is added to `made` if it can be."""
    found = []
    try:
        check_functions(backend)
    except VolctlError as error:
        found.append(error.message)
    try:
        made.append(load(backend.kind)(Setup(backend.name, backend.options, "", backend.builtin)))
    except VolctlError as error:
        found.append(error.message)
    return found


def _places(options: Options) -> Places:
    return places(options.config, options.state_dir)
