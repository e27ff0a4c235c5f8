"""A volume's or a snapshot's content as an image file, or as a stream of its raw bytes.

A file is written under another name beside its own, synced, and then given its name in one step, so
that half an image never bears it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from volctl import files, interrupt
from volctl.backend import Progress, Target
from volctl.errors import AccessError, BackendError, Cancelled, ExistsError, InternalError, NotFoundError, UsageError
from volctl.images.convert import make_image
from volctl.images.store import identity_of
from volctl.model import Json, MiB

FORMATS = ("raw", "qcow2")
PIECE = MiB
_MOST_LINKS = 40  # as the kernel


def check_place(file: Path, state: Path, *, replace: bool) -> Json:
    """The directory's device and inode, if a file can be made there; changes nothing.

    `ExistsError` if it is there and not to be replaced, `UsageError` for what is no regular file or
    lies in the state directory or in a pool, `NotFoundError` or `AccessError` for its directory.
    """
    try:
        _check_file(file, replace)
        at = os.stat(file.parent)
        if not stat.S_ISDIR(at.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if os.path.lexists(file.parent / files.MARKER) or file.parent.resolve().is_relative_to(state.resolve()):
            raise UsageError(f"{file.parent} is for volctl's own files", hint="save images elsewhere")
        if not os.access(file.parent, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no directory {file.parent}") from error
    except PermissionError as error:
        raise AccessError(f"{file.parent} may not be written to by this user") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{str(file)!r} cannot be made: {reason}") from error
    return {"device": at.st_dev, "inode": at.st_ino}


def _check_file(file: Path, replace: bool) -> None:
    try:
        mode = os.lstat(file).st_mode
    except FileNotFoundError:
        return
    with suppress(FileNotFoundError):  # of a link, which is replaced itself
        mode = os.stat(file).st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"{file} is a directory", hint="name the file")
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)) or _leads_to_descriptor(file):
        raise UsageError(f"{file} is no regular file", hint="`-` writes to standard output")
    if not replace:
        raise ExistsError(f"there is a file {file} already", hint="--force replaces it")


def _leads_to_descriptor(path: Path) -> bool:
    """Such as /dev/stdout, also where that is a regular file: it is nobody's to replace."""
    for _ in range(_MOST_LINKS):
        path = path.parent.resolve() / path.name
        if path.is_relative_to("/proc") or not path.is_symlink():
            return path.is_relative_to("/proc")
        path = path.parent / path.readlink()
    return False


def write(
    source: Target, temporary: Path, format: str, *, compress: bool, instead: Path | None, progress: Progress
) -> Json:
    """Make the image at `temporary`, whatever is there; durable on return. Its identity.

    With the owner and mode of the file `instead` of which it is to be, if that is there.
    """
    with files.translated(f"write {temporary}"):
        temporary.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with files.os_open(temporary, flags, mode=0o666) as fd:
            if format != source.format or not _shared(source, fd):
                make_image(source, fd, format, progress, compress=compress)
            if instead and instead.is_file() and not instead.is_symlink():
                _take_after(instead.stat(), fd)
            os.fsync(fd)
            return identity_of(os.fstat(fd))


def _take_after(old: os.stat_result, fd: int) -> None:
    with suppress(PermissionError):  # who may not give it away keeps it
        os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, old.st_mode & 0o777)


def _shared(source: Target, fd: int) -> bool:
    """A raw file shares its blocks where the file system can; a qcow2 may have others beneath it."""
    if source.format != "raw":
        return False
    with files.os_open(source.path, os.O_RDONLY | os.O_CLOEXEC) as original:
        return files.reflink(original, fd)


def publish(temporary: Path, file: Path, *, replace: bool) -> None:
    """Give the image its name; durable on return. `ExistsError` if somebody made such a file meanwhile."""
    with files.translated(f"make {file}"):
        files.give_name(temporary, file, replace=replace)
        _sync(file.parent)


def remove(file: Path, place: Json, made: Json | None = None) -> None:
    """Remove a file that we made in a directory which `check_place` knew; not there is success.

    With `made` only if it is the file of that identity. `BackendError` if the directory's file system
    is not mounted, where nobody can say what is there.
    """
    with files.translated(f"delete {file}"):
        if not _is_mounted(file.parent, place):
            raise BackendError(f"{file.parent} is not mounted, so {file.name} in it cannot be removed")
        with suppress(FileNotFoundError):
            if made is None or _same(os.lstat(file), made):
                file.unlink()
                _sync(file.parent)


def _is_mounted(directory: Path, place: Json) -> bool:
    """Is the file system of the directory there? The directory itself may have been removed.

    Some devices have another number after a reboot; the directory's inode stays.
    """
    if directory.exists() and os.stat(directory).st_ino == place["inode"]:
        return True
    there = next(path for path in (directory, *directory.parents) if path.exists())
    return bool(os.stat(there).st_dev == place["device"])


def _same(found: os.stat_result, made: Json) -> bool:
    """A link changes a file's ctime, nothing of ours its mtime."""
    keys = ("device", "inode", "size", "mtime_ns")
    return [identity_of(found)[key] for key in keys] == [made[key] for key in keys]


def _sync(directory: Path) -> None:
    with files.os_open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as fd:
        os.fsync(fd)


def stream(source: Target, out: int, room: Path, progress: Progress) -> None:
    """Write every byte of the content to the descriptor `out`.

    What is not raw is converted into a nameless file in the directory `room` first. `Cancelled` by
    SIGPIPE if the reader has left, `InternalError` if `out` takes no more.
    """
    if source.format == "raw":
        with files.translated(f"read {source.path}"), files.os_open(source.path, os.O_RDONLY | os.O_CLOEXEC) as fd:
            _send(fd, out, progress)
        return
    with (
        files.translated(f"convert {source.path.name} in {room}"),
        files.os_open(room, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC) as fd,
    ):
        make_image(source, fd, "raw", progress)
        _send(fd, out, progress)


def _send(source: int, out: int, progress: Progress) -> None:
    length, offset = os.lseek(source, 0, os.SEEK_END), 0
    with _patient(out) as sink:
        while offset < length:
            piece = os.pread(source, PIECE, offset)
            if not piece:
                raise BackendError(f"the source ended at {offset} of {length} bytes")
            _put(sink, piece)
            offset += len(piece)
            progress(offset, length)


@contextmanager
def _patient(out: int) -> Iterator[int]:
    """A pipe is opened once more, not to block, so that a reader who waits does not make us deaf to signals.

    The flag on `out` itself would be everybody's who shares it.
    """
    if not stat.S_ISFIFO(os.fstat(out).st_mode):
        yield out
        return
    with files.os_open(f"/proc/self/fd/{out}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC) as sink:
        yield sink


def _put(sink: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        interrupt.check()
        try:
            left = left[os.write(sink, left) :]
        except BlockingIOError:
            select.select([], [sink], [], 0.1)
        except BrokenPipeError:
            raise Cancelled(signal.SIGPIPE) from None
        except OSError as error:
            raise InternalError(f"standard output cannot be written: {error.strerror}") from error
