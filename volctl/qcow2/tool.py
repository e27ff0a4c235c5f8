"""qemu-img, one function per verb. Every call names the format, and the file by its absolute path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from volctl import command
from volctl.confine import Cage
from volctl.errors import InUseError, NoSpaceError, VolctlError
from volctl.model import MiB

LIMITS = command.Limits(memory=2048 * MiB)  # what the stacks of its threads may take counts, touched or not
AT_ONCE = 60.0  # seconds for what only writes a header
_CORRUPT = 2  # qemu-img check, completed


def create(path: Path, size: int, options: Sequence[str], parent: str | None) -> None:
    """Write an empty qcow2 of `size` bytes into the file at `path`.

    `parent` is the name of the file below it in the same directory; it is not opened (`-u`).
    """
    over = ("-u", "-F", "qcow2", "-b", parent) if parent else ()
    words = ("-q", "-f", "qcow2", "-o", ",".join(options), *over, str(path), size)
    _run("create", words, Cage(writes=(path,)), timeout=AT_ONCE)


def resize(path: Path, below: Sequence[Path], size: int) -> None:
    """Grow; the tail reads as zeros, also where a file below has bytes."""
    cage = Cage(reads=tuple(below), writes=(path,))
    _run("resize", ("-q", "-f", "qcow2", str(path), size), cage, timeout=AT_ONCE)


def commit(path: Path, below: Sequence[Path]) -> None:
    """Write what `path` holds into the first file below it, which grows to its size. Again changes nothing."""
    cage = Cage(reads=tuple(below[1:]), writes=(path, below[0]))
    _run("commit", ("-q", "-f", "qcow2", "-d", "-t", "writeback", str(path)), cage)


def rebase(path: Path, parent: str | None, below: Sequence[Path]) -> None:
    """Copy what `path` reads from the file below it and would not read from `parent`; then lay it over that.

    Cut off at any instant it reads the same, and can be begun again: each piece is flushed (writethrough)
    before the header says that the file below is no longer needed.
    """
    over = ("-F", "qcow2", "-b", parent) if parent else ("-b", "")
    words = ("-q", "-f", "qcow2", "-t", "writethrough", *over, str(path))
    _run("rebase", words, Cage(reads=tuple(below), writes=(path,)))


def is_corrupt(path: Path, below: Sequence[Path]) -> bool:
    """Are its tables not in order? False where that could not be found out."""
    return _result("check", ("-q", "-f", "qcow2", str(path)), Cage(reads=(path, *below))).status == _CORRUPT


def _run(verb: str, words: Sequence[str | int], cage: Cage, timeout: float | None = None) -> None:
    result = _result(verb, words, cage, timeout)
    if result.status:
        raise _failure(verb, result)


def _result(verb: str, words: Sequence[str | int], cage: Cage, timeout: float | None = None) -> command.Result:
    """Only what is in the cage is opened, whatever a header says that was swapped since it was read."""
    return command.run("qemu-img", verb, *words, ok=range(-64, 256), limits=LIMITS, cage=cage, timeout=timeout)


def _failure(verb: str, result: command.Result) -> VolctlError:
    if "No space left on device" in result.err or "Disk quota exceeded" in result.err:
        return NoSpaceError(f"no space was left for qemu-img {verb}", hint="free some space")
    if "Is another process using the image" in result.err:
        return InUseError(f"qemu-img {verb}: another program has the file open", hint="stop what uses it first")
    return command.failure("qemu-img", result)
