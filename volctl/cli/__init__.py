"""The command line: the one place where an error becomes a sentence and an exit code.

Nothing here but `main` and what it needs to answer `--version` and to tell an error: the parser is
imported when there is something to parse, everything else when a command runs.
"""

from __future__ import annotations

import os
import sys

from volctl.cli import stdout
from volctl.cli.stdout import ReaderGone
from volctl.errors import InternalError, VolctlError

VERSION_OPTIONS = ("--version", "-V")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code (`volctl.errors` lists them). Never raises."""
    _fill_standard_descriptors()
    words = sys.argv[1:] if argv is None else argv
    try:
        code = _run(words)
    except VolctlError as error:
        code = _fail(error, words)
    except ReaderGone:
        code = 0
    except Exception as error:
        code = _fail(_internal(error), words)
    return _flush(code, words)


def _run(words: list[str]) -> int:
    if len(words) == 1 and words[0] in VERSION_OPTIONS:
        from volctl import __version__

        stdout.write(f"volctl {__version__}\n")
        return 0
    from volctl.cli import app

    return app.run(words)


def _fail(error: VolctlError, words: list[str]) -> int:
    from volctl.cli import stderr

    stderr.tell(error, as_json=stderr.wants_json(words))
    return error.exit


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


def _flush(code: int, words: list[str]) -> int:
    """What is still to be written; a reader that has gone is no failure, a full disk is."""
    try:
        stdout.flush()
    except ReaderGone:
        pass
    except stdout.Unwritable as error:
        told = _fail(error, words)
        return code or told
    return code


def _fill_standard_descriptors() -> None:
    """A closed 0, 1 or 2 must not become the number of the database's file."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
