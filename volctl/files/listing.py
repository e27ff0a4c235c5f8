"""All that lies in a pool directory, sorted into what is ours, what work leaves beside it, and the rest."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence

from volctl.files.directory import MARKER, Place, object_named
from volctl.model import Object
from volctl.records import record

_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@record
class Seen:
    """Objects with their files as they are, names of leftovers with the volume's id, names of the rest."""

    objects: dict[Object, os.stat_result]
    leftovers: dict[str, str]
    foreign: tuple[str, ...]


def seen(place: Place, work: Sequence[str] = ("revert-",)) -> Seen:
    """`work` are the beginnings of names, before a volume's id, of files that work makes beside it."""
    found = Seen({}, {}, ())
    pattern = re.compile(f"(?:{'|'.join(map(re.escape, work))})({_ID})")
    others = []
    for name, status in place.entries():
        plain = stat.S_ISREG(status.st_mode)
        if plain and (target := object_named(name)):
            found.objects[target] = status
        elif plain and (match := pattern.fullmatch(name)):
            found.leftovers[name] = match[1]
        elif plain and name == MARKER + ".new":
            found.leftovers[name] = ""
        else:
            others.append(name)
    return Seen(found.objects, found.leftovers, tuple(sorted(others)))
