"""Small files that a user names: `<(…)` and other FIFOs as well, which may keep us waiting."""

from __future__ import annotations

import os
import select
from pathlib import Path

from volctl import interrupt
from volctl.files.directory import os_open

_SLICE = 200  # milliseconds between two looks at signals and the deadline


def read_small(path: str | Path, most: int) -> bytes:
    """All that is in a file, or comes through a FIFO; if that is more than `most` bytes, one byte more. `OSError`."""
    content = b""
    with os_open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC) as fd:
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        while len(content) <= most:
            interrupt.check()
            if not ready.poll(_SLICE):
                continue
            piece = os.read(fd, most + 1 - len(content))
            if not piece:
                break
            content += piece
    return content
