"""The options of a backend of qcow2 files, checked: `ConfigError` says what is wrong and what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from volctl.backend import Setup
from volctl.errors import ConfigError
from volctl.model import KiB, MiB, exact_size
from volctl.records import record

OPTIONS = ("cluster_size", "extended_l2", "lazy_refcounts", "preallocation", "compression")
LEAST_EXTENDED = 16 * KiB


@record
class Layout:
    """`qemu-img create -o` of every file, of those that lie over no other, and of image bases."""

    every: tuple[str, ...]
    blank: tuple[str, ...]
    base: tuple[str, ...]
    compress: bool
    """Bases are written compressed."""


def layout(setup: Setup) -> Layout:
    options = setup.options
    cluster = _cluster_size(setup.name, options)
    every = (
        "compat=1.1",
        f"cluster_size={cluster}",
        f"extended_l2={_switch(setup.name, options, 'extended_l2', cluster >= LEAST_EXTENDED)}",
        f"lazy_refcounts={_switch(setup.name, options, 'lazy_refcounts', False)}",
    )
    preallocation = _choice(setup.name, options, "preallocation", ("off", "metadata"))
    compression = _choice(setup.name, options, "compression", ("off", "zlib", "zstd"))
    base = every if compression == "off" else (*every, f"compression_type={compression}")
    return Layout(every, (*every, f"preallocation={preallocation}"), base, compression != "off")


def _choice(backend: str, options: Mapping[str, Any], option: str, known: tuple[str, ...]) -> str:
    """The first is the default."""
    value = options.get(option, known[0])
    if value not in known:
        raise ConfigError(f"backend {backend}: {option} = {value!r} is not one of {', '.join(known)}")
    return str(value)


def _switch(backend: str, options: Mapping[str, Any], option: str, default: bool) -> str:
    value = options.get(option, default)
    if not isinstance(value, bool):
        raise ConfigError(f"backend {backend}: {option} = {value!r} is neither true nor false")
    return "on" if value else "off"


def _cluster_size(backend: str, options: Mapping[str, Any]) -> int:
    value = options.get("cluster_size", "64K")
    try:
        size = exact_size(value) if isinstance(value, str) else 0
    except ValueError:
        size = 0
    least = LEAST_EXTENDED if options.get("extended_l2") is True else 4 * KiB
    if size & (size - 1) or not least <= size <= 2 * MiB:
        said = f"backend {backend}: cluster_size = {value!r} is not a power of two from {least // KiB}K to 2M"
        raise ConfigError(said, hint='write cluster_size = "64K"')
    return size
