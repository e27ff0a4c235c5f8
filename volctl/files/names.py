"""A file that is whole gets its name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from volctl.errors import ExistsError

_CANNOT_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def give_name(temporary: Path, file: Path, *, replace: bool) -> None:
    """In one step; whoever wants that to be durable syncs the directory. `ExistsError` unless `replace`."""
    if replace or not _linked(temporary, file):
        os.rename(temporary, file)
    else:
        temporary.unlink()


def _linked(temporary: Path, file: Path) -> bool:
    """A link, unlike a rename, replaces nothing. False where the file system has none."""
    try:
        os.link(temporary, file, follow_symlinks=False)
    except OSError as error:
        if isinstance(error, FileExistsError) or os.path.lexists(file):
            raise ExistsError(f"there is a file {file} now", hint="--force replaces it") from error
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    return True
