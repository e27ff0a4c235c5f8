"""What the files of a pool lie over by their own word: a look at all headers, a few reads each.

The rows may be of another time than the files (an older database was put back). So before a file goes that
others may lie over, the files themselves are asked.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

from volctl import files
from volctl.qcow2.header import backing

_LAYER = re.compile(r"layer-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_layer(name: str) -> bool:
    return bool(_LAYER.fullmatch(name))


def is_below(name: str) -> bool:
    """Is it a name of what others may lie over?"""
    return is_layer(name) or name.startswith("image-")


def over(place: files.Place, name: str) -> list[str]:
    """The files that lie over `name`, however they spell it; a snapshot's by its own only where it has no other."""
    above = [child for child in _names(place) if name in (_said(place, child) or "")]
    return [child for child in above if not (child.startswith("snap-") and _layer_of(child) in above)]


def _names(place: files.Place) -> list[str]:
    """Of the files that may lie over others."""
    plain = [name for name, file in place.entries() if stat.S_ISREG(file.st_mode)]
    return [name for name in plain if is_layer(name) or files.object_named(name)]


def _said(place: files.Place, name: str) -> str | None:
    with suppress(FileNotFoundError), files.os_open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, place.fd) as fd:
        return backing(fd)
    return None  # gone since


def _layer_of(snapshot: str) -> str:
    return snapshot.replace("snap-", "layer-", 1)
