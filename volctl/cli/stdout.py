"""Standard output: the result of a command, written once, at its end.

A result that cannot be written must not change what the command did, so commands only say what is to
be written; `main` writes it when they are done.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from volctl.errors import VolctlError

_pending: list[str] = []


class Unwritable(VolctlError):
    """The result was not taken: the disk is full, or standard output is closed."""


class ReaderGone(Exception):
    """Whoever read standard output has left; there is nobody to tell."""


def write(text: str) -> None:
    _pending.append(text)


def is_terminal() -> bool:
    try:
        return sys.stdout is not None and sys.stdout.isatty()
    except ValueError:
        return False


def flush() -> None:
    """Write what is pending. `Unwritable` if that fails, `ReaderGone` if the reader has left."""
    text = "".join(_pending)
    _pending.clear()
    if not text:
        return
    if sys.stdout is None:
        raise Unwritable("the result cannot be written: standard output is closed")
    try:
        _put(text)
    except BrokenPipeError:
        silence(sys.stdout)
        raise ReaderGone from None
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        reason = error.strerror if isinstance(error, OSError) else error
        raise Unwritable(f"the result cannot be written: {reason}") from error


def check_reader() -> None:
    """`ReaderGone` if whoever read standard output through a pipe has left."""
    import select

    reader = select.poll()
    try:
        reader.register(sys.stdout, 0)
    except (OSError, ValueError, TypeError, AttributeError):
        return
    if any(event & select.POLLERR for _, event in reader.poll(0)):
        silence(sys.stdout)
        raise ReaderGone


def _put(text: str) -> None:
    """File names may hold any byte, and a locale may lack any character."""
    sys.stdout.flush()
    encoding = sys.stdout.encoding or "utf-8"
    try:
        raw = text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode(encoding, "backslashreplace")
    if (buffer := getattr(sys.stdout, "buffer", None)) is None:
        sys.stdout.write(raw.decode(encoding, "replace"))
    else:
        buffer.write(raw)
    sys.stdout.flush()


def silence(stream: TextIO) -> None:
    """Python flushes once more when it ends, and would complain then."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        pass
