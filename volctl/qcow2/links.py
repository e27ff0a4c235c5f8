"""What the files of a pool lie over by their own word: a look at all headers, a few reads each.

The rows may be of another time than the files (an older database was put back). So before a file goes that
others may lie over, the files themselves are asked.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial

from volctl import files
from volctl.errors import BackendError
from volctl.qcow2.header import Header, glimpse, read

_LAYER = re.compile(r"layer-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_layer(name: str) -> bool:
    return bool(_LAYER.fullmatch(name))


def is_below(name: str) -> bool:
    """Is it a name of what others may lie over?"""
    return is_layer(name) or name.startswith("image-")


def headers(
    place: files.Place, *wanted: str, live: Callable[[str], bool] = lambda name: False
) -> dict[str, Header | None]:
    """Of these files, or of all that may lie over others, if they are there; None of what is no qcow2 file.

    One that is `live` may lack what its guest has not flushed.
    """
    found: dict[str, Header | None] = {}
    for name in filter(partial(_is_file, place), wanted) if wanted else names(place):
        with suppress(FileNotFoundError), _opened(place, name) as fd:
            try:
                found[name] = header = read(fd, name)
                if header.lacks and not live(name):
                    header.check_whole(name)
            except BackendError:
                found[name] = glimpse(fd)
    return found


def below(place: files.Place, headers: Mapping[str, Header | None]) -> dict[str, str | None]:
    """What each file lies over, if that can be read; a snapshot over its layer, whose second name it is."""
    found = {name: header.backing for name, header in headers.items() if header}
    snapshots = [name for name in found if layer_of(name) != name]
    return found | {name: layer_of(name) for name in snapshots if same(place, name, layer_of(name))}


def damaged(headers: Mapping[str, Header | None]) -> frozenset[str]:
    """Those whose header is none, or none that `read` takes."""
    return frozenset(name for name, header in headers.items() if header is None or not header.size)


def over(place: files.Place, name: str) -> list[str]:
    """The files that lie over `name`, however they spell it; a snapshot's by its own only where it has no other."""
    above = [child for child in names(place) if name in (said(place, child) or "")]
    return [child for child in above if not (child.startswith("snap-") and layer_of(child) in above)]


def names(place: files.Place) -> list[str]:
    """Of the files that may lie over others."""
    return [name for name, file in place.entries() if stat.S_ISREG(file.st_mode) and _is_ours(name)]


def _is_ours(name: str) -> bool:
    return is_layer(name) or files.object_named(name) is not None


def _is_file(place: files.Place, name: str) -> bool:
    try:
        return _is_ours(name) and place.stat(name) is not None
    except BackendError:
        return False


def said(place: files.Place, name: str) -> str | None:
    """What a file lies over, also one that `read` refuses."""
    with suppress(FileNotFoundError), _opened(place, name) as fd:
        header = glimpse(fd)
        return header.backing if header else None
    return None  # gone since


def _opened(place: files.Place, name: str) -> AbstractContextManager[int]:
    return files.os_open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, place.fd)


def same(place: files.Place, name: str, other: str) -> bool:
    one, two = place.stat(name), place.stat(other)
    return one is not None and two is not None and os.path.samestat(one, two)


def layer_of(snapshot: str) -> str:
    """The name of a snapshot's file below others; of another file, its own."""
    return "layer-" + snapshot.removeprefix("snap-") if snapshot.startswith("snap-") else snapshot
