"""Files that hold objects, handled so that a crash leaves no doubt: what backends of files are made of.

`Directory.opened(doing)` is the way into a pool: it sees the marker first, and turns an OSError into
the error that says what could not be done, and where. `holders` says who else has a file open,
`device_holders` who has a block device. `volctl.files.device` is a block device of ours, `loopdev` loop devices.
"""

from volctl.files.about import carry, forget, tell, told
from volctl.files.directory import (
    MARKER,
    Directory,
    Ownership,
    Place,
    directory_option,
    object_named,
    os_open,
    translated,
)
from volctl.files.holders import device_holders, holders
from volctl.files.listing import Seen, seen
from volctl.files.names import give_name
from volctl.files.sparse import allocate, can_share, copy, grow, length_of, reflink, reflinks

__all__ = [
    "MARKER",
    "Directory",
    "Ownership",
    "Place",
    "Seen",
    "allocate",
    "can_share",
    "carry",
    "copy",
    "device_holders",
    "directory_option",
    "forget",
    "give_name",
    "grow",
    "holders",
    "length_of",
    "object_named",
    "os_open",
    "reflink",
    "reflinks",
    "seen",
    "tell",
    "told",
    "translated",
]
