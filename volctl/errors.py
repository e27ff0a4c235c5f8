"""The errors of volctl, and the exit codes of the command.

    VolctlError                     exit  code
    ├── Failure                                what whoever can do without it may catch
    │   ├── InternalError              1  internal
    │   ├── UsageError                 2  usage
    │   │   └── ConfigError            2  config
    │   ├── PartialError               3  partial
    │   ├── NotFoundError              4  not_found
    │   ├── AmbiguousError             4  ambiguous
    │   ├── ConflictError              5  conflict
    │   │   ├── ExistsError            5  exists
    │   │   ├── InUseError             5  in_use
    │   │   └── ProtectedError         5  protected
    │   ├── QuotaError                 6  quota
    │   ├── NoBackendError             6  no_backend
    │   ├── NoSpaceError               6  no_space
    │   ├── ImageError                 7  image_format
    │   │   ├── ImageUnsafeError       7  image_unsafe
    │   │   ├── ImageCorruptError      7  image_corrupt
    │   │   ├── ImageTooBigError       7  image_too_big
    │   │   ├── ChecksumError          7  checksum
    │   │   └── SignatureError         7  signature
    │   ├── BackendError               8  backend
    │   ├── AccessError                9  permission
    │   ├── MissingError               9  missing
    │   ├── LockedError               10  locked
    │   ├── DatabaseError             11  db
    │   └── DriftError                12  drift
    ├── TimedOut                124  timeout
    └── Cancelled            128+n  cancelled

`retryable` says whether another backend may do better. An error carries what happened in one
sentence and, where there is one, what to do next.
"""

from __future__ import annotations

import errno
import os
from typing import Any, ClassVar


class VolctlError(Exception):
    """What happened (`message`), what to do (`hint`), and data for machines (`details`)."""

    code: ClassVar[str] = "internal"
    exit: int = 1
    retryable: ClassVar[bool] = False
    untouched = False
    """The failed work changed nothing, so a flow that would be completed may be undone."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        volume: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.volume = volume
        self.details = details or {}


class Failure(VolctlError):
    """Something went wrong, and whoever can do without may go on. A signal or the deadline is not for that."""


class InternalError(Failure):
    pass


class UsageError(Failure):
    code, exit = "usage", 2


class ConfigError(UsageError):
    code = "config"


class PartialError(Failure):
    """Some of several objects failed; each failure was told as it happened."""

    code, exit = "partial", 3


class NotFoundError(Failure):
    code, exit = "not_found", 4


class AmbiguousError(Failure):
    code, exit = "ambiguous", 4


class ConflictError(Failure):
    code, exit = "conflict", 5


class ExistsError(ConflictError):
    code = "exists"


class InUseError(ConflictError):
    code = "in_use"


class ProtectedError(ConflictError):
    code = "protected"


class QuotaError(Failure):
    code, exit = "quota", 6


class NoBackendError(Failure):
    code, exit = "no_backend", 6


class NoSpaceError(Failure):
    code, exit, retryable = "no_space", 6, True


class ImageError(Failure):
    """The image's format is not what was declared, or none that volctl takes."""

    code, exit = "image_format", 7


class ImageUnsafeError(ImageError):
    code = "image_unsafe"


class ImageCorruptError(ImageError):
    code = "image_corrupt"


class ImageTooBigError(ImageError):
    code = "image_too_big"


class ChecksumError(ImageError):
    code = "checksum"


class SignatureError(ImageError):
    code = "signature"


class BackendError(Failure):
    code, exit, retryable = "backend", 8, True


class AccessError(Failure):
    code, exit, retryable = "permission", 9, True


class MissingError(Failure):
    """A program or a kernel feature is missing; the hint names the package."""

    code, exit, retryable = "missing", 9, True


class LockedError(Failure):
    code, exit = "locked", 10


class DatabaseError(Failure):
    code, exit = "db", 11


class DriftError(Failure):
    code, exit = "drift", 12


class TimedOut(VolctlError):
    """`--timeout` ran out; what had begun was undone."""

    code, exit = "timeout", 124


class Cancelled(VolctlError):
    """Ended by a signal; `exit` is 128 plus its number."""

    code = "cancelled"

    def __init__(self, signum: int) -> None:
        super().__init__(f"cancelled by signal {signum}", details={"signal": signum})
        self.exit = 128 + signum


INTERRUPTIONS = (TimedOut, Cancelled)


def of_os(error: OSError, doing: str) -> VolctlError:
    """What the system's error is to who wanted to do `doing`."""
    said = f"cannot {doing}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(said, hint="free some space, or choose another backend")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        why = "the file system is read-only" if error.errno == errno.EROFS else f"user {os.geteuid()} lacks the rights"
        return AccessError(said, hint=why)
    return BackendError(said)


def is_of_the_system(error: BaseException) -> bool:
    """Is it the system that fails (no room, no rights, a broken disk, a call that was cut off), no mistake of ours?"""
    system = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EINTR)
    return isinstance(error, OSError) and error.errno in system
