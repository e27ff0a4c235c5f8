"""What the kernel tells in small files of /proc and /sys: names there may be of any bytes.

Bytes that are no UTF-8 become lone surrogates, as in `os.fsdecode`; lines end at a newline and at nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Mount(NamedTuple):
    """A line of proc(5)'s mountinfo. `device` is its number (`8:1`), `source` what was mounted (`/dev/sda1`)."""

    device: str
    point: str
    kind: str
    source: str


def text(path: Path) -> str:
    """Without its last newline. `OSError` if it is gone, or not ours to read."""
    return path.read_bytes().decode(errors="surrogateescape").removesuffix("\n")


def lines(path: Path) -> list[str]:
    return text(path).split("\n")


DELETED = " (deleted)"


def loops(pattern: str = "loop*") -> Iterator[tuple[str, str]]:
    """Names of the loop devices in use, each with the path of its file; `DELETED` follows it if that is."""
    for backing in Path("/sys/block").glob(f"{pattern}/loop/backing_file"):
        try:
            path = text(backing)
        except OSError:
            continue  # detached meanwhile
        yield backing.parent.parent.name, path


def mounts(pid: str = "self") -> Iterator[Mount]:
    """What a process sees as mounted. `OSError` as of `text`."""
    for line in lines(Path("/proc", pid, "mountinfo")):
        fields = line.split(" ")
        if len(fields) > 4:
            kind, source = fields[fields.index("-") + 1 :][:2]
            yield Mount(fields[2], _unescaped(fields[4]), kind, _unescaped(source))


def _unescaped(name: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), name) if "\\" in name else name
