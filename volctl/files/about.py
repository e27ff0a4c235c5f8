"""What an object's row could be made of again, kept with its file.

As JSON in the extended attribute `user.volctl`, packed where it is long; in a file beside it where the
file system has no room for that or no such attributes (ext4 has some 4000 bytes for all of a file's).
Source: xattr(7).
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from contextlib import suppress

from volctl.errors import BackendError
from volctl.files.directory import Ownership, Place, sidecar
from volctl.model import Json, Object

ATTRIBUTE = "user.volctl"
LONG = 1024  # bytes from which on it is packed
LARGEST = 16 * 1024 * 1024
_NO_ROOM = (errno.ENOTSUP, errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EDQUOT, errno.EPERM)


def tell(place: Place, fd: int, target: Object, *, attribute: bool = True) -> None:
    """Keep `target.about` with the file open at `fd`, which the caller syncs; nothing to keep is no change."""
    if target.about is None:
        return
    packed = _packed({"object": target.name} | target.about)
    if attribute:
        try:
            os.setxattr(fd, ATTRIBUTE, packed)
            return
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            with suppress(OSError):
                os.removexattr(fd, ATTRIBUTE)  # an older one would be believed
    with place.fresh(sidecar(target.name) + ".new", _ownership(fd)) as beside:
        os.write(beside, packed)
    place.replace(sidecar(target.name) + ".new", sidecar(target.name))


def _ownership(fd: int) -> Ownership:
    """Of a file beside: what root makes is for whoever has the object's own file."""
    have = os.fstat(fd)
    return Ownership(have.st_uid, have.st_gid) if os.geteuid() == 0 else Ownership()


def told(place: Place, target: Object) -> Json | None:
    """What is kept with an object; None if there is nothing, or nothing of this object."""
    packed = _attribute(place, target) or _beside(place, target)
    try:
        found = json.loads(_unpacked(packed)) if packed else None
    except (ValueError, RecursionError, zlib.error):
        return None
    if not isinstance(found, dict) or found.pop("object", None) != target.name:
        return None
    return found


def carry(source: int, target: int) -> None:
    """The attribute of one open file to another that is to take its name."""
    with suppress(OSError):
        os.setxattr(target, ATTRIBUTE, os.getxattr(source, ATTRIBUTE))


def forget(fd: int) -> None:
    """The attribute of an open file goes."""
    with suppress(OSError):
        os.removexattr(fd, ATTRIBUTE)


def _attribute(place: Place, target: Object) -> bytes | None:
    try:
        with place.existing(target.name) as fd:
            return os.getxattr(fd, ATTRIBUTE)
    except (OSError, BackendError):
        return None


def _beside(place: Place, target: Object) -> bytes | None:
    try:
        with place.existing(sidecar(target.name)) as fd:
            return os.read(fd, LARGEST)
    except (OSError, BackendError):
        return None


def _packed(about: Json) -> bytes:
    text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
    return text if len(text) < LONG else zlib.compress(text)


def _unpacked(packed: bytes) -> bytes:
    return packed if packed.startswith(b"{") else zlib.decompressobj().decompress(packed, LARGEST)
