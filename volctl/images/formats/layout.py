"""What reading an image's tables tells."""

from __future__ import annotations

from collections.abc import Callable

from volctl.images.reader import Reader
from volctl.records import record


@record
class Layout:
    """Bytes throughout. `data` is what a copy writes at most. `virtual_size` None: only QEMU's reading counts.

    `check` is whether `qemu-img check` is to be asked: not where it must complain of an image that
    reads well (qcow2 with lazy refcounts) or has no check (vhd). `footer`: so many bytes follow the whole
    disk in the file; None where only some of it is stored.
    """

    virtual_size: int | None
    data: int
    check: bool = True
    footer: int | None = None


Inspect = Callable[[Reader], Layout]
