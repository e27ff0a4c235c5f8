"""The command line: the one place where an error becomes a sentence and an exit code.

Nothing here but `main` and what it needs to answer `--version` and to tell an error: the parser is
imported when there is something to parse, everything else when a command runs.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

from volctl.cli import stdout
from volctl.errors import InternalError, UsageError, VolctlError, is_of_the_system, of_os

VERSION_OPTIONS = ("--version", "-V")
READER_GONE = 141  # 128 + SIGPIPE: whoever read a stream has left, and there is nobody to tell
RARELY = 100_000  # objects made between two searches for garbage: imports make many, and none of them is garbage


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code (`volctl.errors` lists them). Never raises."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to undo, Ctrl-C just ends it
    gc.set_threshold(RARELY)
    _fill_standard_descriptors()
    words = sys.argv[1:] if argv is None else argv
    code, error = _outcome(words)
    for told in (_flush(), error):
        if told is not None:
            _tell(told, words)
            code = told.exit if error is None else error.exit
    gc.freeze()  # else the interpreter searches everything once more before it ends: 50 ms
    return code


def _outcome(words: list[str]) -> tuple[int, VolctlError | None]:
    try:
        return _run(words), None
    except VolctlError as error:
        return error.exit, None if error.exit == READER_GONE else error
    except stdout.ReaderGone:
        return 0, None
    except UnicodeEncodeError as error:
        odd = next((word for word in words if not _is_text(word)), None)
        told = _internal(error) if odd is None else UsageError(f"{odd!r} is not UTF-8")
        return told.exit, told
    except Exception as error:
        told = _system(error) if isinstance(error, OSError) and is_of_the_system(error) else _internal(error)
        return told.exit, told


def _is_text(word: str) -> bool:
    """Is it made of characters? A path may be any bytes, but rows hold none that are not."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _run(words: list[str]) -> int:
    if len(words) == 1 and words[0] in VERSION_OPTIONS:
        from volctl import __version__

        stdout.write(f"volctl {__version__}\n")
        return 0
    from volctl.cli import app

    return app.run(words)


def _tell(error: VolctlError, words: list[str]) -> None:
    from volctl.cli import stderr

    stderr.tell(error, as_json=stderr.wants_json(words))


def _system(error: OSError) -> VolctlError:
    """The disk is full or broken where nobody expected it; that is no mistake of ours."""
    return of_os(error, f"use {error.filename}" if error.filename else "go on")


def _internal(error: Exception) -> VolctlError:
    """A mistake of ours, as one line; `VOLCTL_DEBUG=1` shows where."""
    if os.environ.get("VOLCTL_DEBUG"):
        import traceback

        traceback.print_exception(error)
    kind = type(error).__name__
    return InternalError(
        f"internal error: {kind}: {error}" if str(error) else f"internal error: {kind}",
        hint="run it again with VOLCTL_DEBUG=1 to see where, and report that",
        details={"exception": kind},
    )


def _flush() -> VolctlError | None:
    """Write the result; a reader that has gone is no failure, a full disk is."""
    try:
        stdout.flush()
    except stdout.ReaderGone:
        return None
    except stdout.Unwritable as error:
        return error
    return None


def _fill_standard_descriptors() -> None:
    """A closed 0, 1 or 2 must not become the number of the database's file."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
