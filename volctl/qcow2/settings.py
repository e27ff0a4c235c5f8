"""The options of a backend of qcow2 files, checked: `ConfigError` says what is wrong and what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volctl.backend import Setup, check_options
from volctl.errors import ConfigError
from volctl.files import Ownership, directory_option
from volctl.model import KiB, MiB, exact_size

OPTIONS = (
    "directory", "cluster_size", "extended_l2", "lazy_refcounts", "preallocation", "owner", "group", "mode",
    "capabilities",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """`layout` are `qemu-img create -o` of every file, `blank` of those that lie over no other."""

    directory: Path
    ownership: Ownership
    layout: tuple[str, ...]
    blank: tuple[str, ...]


def settings(setup: Setup) -> Settings:
    check_options(setup, OPTIONS)
    options = setup.options
    layout = (
        "compat=1.1",
        f"cluster_size={_cluster_size(setup.name, options)}",
        f"extended_l2={_switch(setup.name, options, 'extended_l2')}",
        f"lazy_refcounts={_switch(setup.name, options, 'lazy_refcounts')}",
    )
    preallocation = options.get("preallocation", "off")
    if preallocation not in ("off", "metadata"):
        raise ConfigError(f"backend {setup.name}: preallocation = {preallocation!r} is neither off nor metadata")
    return Settings(
        directory=directory_option(setup.name, options),
        ownership=Ownership.of(options, setup.owner),
        layout=layout,
        blank=(*layout, f"preallocation={preallocation}"),
    )


def _switch(backend: str, options: Mapping[str, Any], option: str) -> str:
    value = options.get(option, False)
    if not isinstance(value, bool):
        raise ConfigError(f"backend {backend}: {option} = {value!r} is neither true nor false")
    return "on" if value else "off"


def _cluster_size(backend: str, options: Mapping[str, Any]) -> int:
    value = options.get("cluster_size", "64K")
    try:
        size = exact_size(value) if isinstance(value, str) else 0
    except ValueError:
        size = 0
    least = 16 * KiB if options.get("extended_l2") is True else 4 * KiB
    if size & (size - 1) or not least <= size <= 2 * MiB:
        said = f"backend {backend}: cluster_size = {value!r} is not a power of two from {least // KiB}K to 2M"
        raise ConfigError(said, hint='write cluster_size = "64K"')
    return size
