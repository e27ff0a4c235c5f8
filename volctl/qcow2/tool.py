"""qemu-img, one function per verb. Every call names the format, and the file by its absolute path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from volctl import command
from volctl.errors import InUseError, NoSpaceError, VolctlError
from volctl.model import MiB

LIMITS = command.Limits(memory=512 * MiB)
AT_ONCE = 60.0  # seconds for what only writes a header


def create(path: Path, size: int, options: Sequence[str], parent: str | None) -> None:
    """Write an empty qcow2 of `size` bytes into the file at `path`.

    `parent` is the name of the file below it in the same directory; it is not opened (`-u`).
    """
    below = ("-u", "-F", "qcow2", "-b", parent) if parent else ()
    _run("create", "-q", "-f", "qcow2", "-o", ",".join(options), *below, path, size, timeout=AT_ONCE)


def resize(path: Path, size: int) -> None:
    """Grow; the tail reads as zeros, also where the file below has bytes."""
    _run("resize", "-q", "-f", "qcow2", path, size, timeout=AT_ONCE)


def commit(path: Path) -> None:
    """Write what `path` holds into the file below it, which grows to its size. Again changes nothing."""
    _run("commit", "-q", "-f", "qcow2", "-d", "-t", "writeback", path)


def rebase(path: Path, parent: str | None) -> None:
    """Copy what `path` reads from the file below it and would not read from `parent`; then lay it over that.

    Cut off at any instant it reads the same, and can be begun again: each piece is flushed (writethrough)
    before the header says that the file below is no longer needed.
    """
    below = ("-F", "qcow2", "-b", parent) if parent else ("-b", "")
    _run("rebase", "-q", "-f", "qcow2", "-t", "writethrough", *below, path)


def _run(verb: str, *args: str | Path | int, timeout: float | None = None) -> None:
    words = [str(arg) for arg in args]
    result = command.run("qemu-img", verb, *words, ok=range(-64, 256), limits=LIMITS, timeout=timeout)
    if result.status:
        raise _failure(verb, result)


def _failure(verb: str, result: command.Result) -> VolctlError:
    if "No space left on device" in result.err or "Disk quota exceeded" in result.err:
        return NoSpaceError(f"no space was left for qemu-img {verb}", hint="free some space")
    if "Is another process using the image" in result.err:
        return InUseError(f"qemu-img {verb}: another program has the file open", hint="stop what uses it first")
    return command.failure("qemu-img", result)
