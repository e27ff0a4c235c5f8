"""Small files that a user names: `<(…)` and other FIFOs as well, which may keep us waiting."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

from volctl import interrupt

_SLICE = 200  # milliseconds between two looks at signals and the deadline


def read_small(path: str | Path, most: int) -> bytes:
    """All that is in a file, or comes through a FIFO; if that is more than `most` bytes, one byte more. `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return b"".join(_pieces(fd, most + 1))
    finally:
        os.close(fd)


def _pieces(fd: int, left: int) -> Iterator[bytes]:
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    while left:
        interrupt.check()
        if ready.poll(_SLICE):
            piece = os.read(fd, left)
            if not piece:
                return
            left -= len(piece)
            yield piece
