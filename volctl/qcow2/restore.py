"""The rows of a pool's chains, made again from the files: what the marker calls ours was not written by strangers."""

from __future__ import annotations

from collections.abc import Iterable

from volctl import files
from volctl.errors import BackendError
from volctl.model import Object
from volctl.qcow2 import links
from volctl.qcow2.layers import Layers
from volctl.qcow2.links import is_below, is_layer, layer_of

Below = dict[str, str | None]


def restore(layers: Layers) -> dict[Object, str]:
    """Note every chain as its files have it. The objects that cannot be read to the end, each with the reason.

    A layer that lost its name has it again from its snapshot. A damaged volume is noted over what its header
    still names, else over the layers that nothing else needs: they may be all that is left of it, and go with it.
    """
    snapshots = [name for name in links.names(layers.place) if layer_of(name) != name]
    for name in snapshots:
        if layers.place.stat(layer_of(name)) is None:
            layers.place.link(name, layer_of(name))
    names = set(links.names(layers.place))
    below, broken = _read(layers, names)
    loose = set(filter(is_layer, names)) - set(below.values()) - set(map(layer_of, snapshots))
    for name in names.difference(snapshots):  # known by their layers
        if name in below:
            layers.chains.note(name, {below[name]})
        elif not is_layer(name):
            named = links.said(layers.place, name)
            kept = {named} if named in names and is_below(named or "") else loose
            layers.chains.note(name, kept or {None})
    found = {target: _why(target.name, below, broken) for name in names if (target := files.object_named(name))}
    return {target: why for target, why in found.items() if why}


def _read(layers: Layers, names: Iterable[str]) -> tuple[Below, dict[str, str]]:
    """What each file lies over, and what is wrong with those that do not say, or name what they cannot lie over."""
    below: Below = {}
    broken = {}
    for name in names:
        try:
            lower = layers.header(name).backing
        except BackendError as error:
            broken[name] = error.message
            continue
        may_be = lower is None or (is_below(lower) and "/" not in lower)
        below[name] = lower if may_be else None  # also of what is gone: it may be put back
        if not may_be or (lower is not None and lower not in names):
            broken[name] = f"{name} lies over {lower}, which is not there, or no layer"
    return below, broken


def _why(name: str, below: Below, broken: dict[str, str]) -> str | None:
    chain: list[str] = []
    lower: str | None = name
    while lower is not None and lower not in broken:
        if lower in chain:
            return f"{lower} lies over itself"
        chain.append(lower)
        lower = layer_of(lower) if layer_of(lower) != lower else below[lower]
    return None if lower is None else broken[lower]
