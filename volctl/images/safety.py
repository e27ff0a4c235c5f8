"""Second opinions on an image: OpenStack's `format_inspector`, then QEMU itself."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from volctl import command
from volctl.confine import Cage
from volctl.errors import BackendError, ImageCorruptError, ImageUnsafeError, InUseError
from volctl.images.formats import QEMU_DRIVER, Layout
from volctl.images.reader import BYTES_PER_SECOND, slowness
from volctl.model import MiB

MEMORY = 256 * MiB
SLOW = 2.0  # times a usual machine: worth a second try with more time
SECONDS = 1  # of processor time, more for what really holds much
HEAD = 2 * MiB  # holds the longest descriptor of a VMDK
FOOTER = 1536
INSPECTED = ("vmdk",)  # of qcow2 it sees the three header fields that our reader and `qemu-img info` see: 75 ms
NOT_DONE, CORRUPT, LEAKS, NO_CHECK = 1, 2, 3, 63  # exit statuses of `qemu-img check`


def inspect_as_openstack(fd: int, path: str, format: str, size: int) -> None:
    """`ImageUnsafeError` if oslo.utils finds the image unsafe, `ImageCorruptError` if unreadable."""
    if format not in INSPECTED:
        return
    import logging

    from oslo_utils.imageutils import format_inspector

    logging.getLogger("oslo_utils").addHandler(logging.NullHandler())
    inspector = format_inspector.ALL_FORMATS[format]()
    try:
        inspector.eat_chunk(os.pread(fd, HEAD, 0))
        if size > HEAD:
            inspector.eat_chunk(os.pread(fd, FOOTER, size - FOOTER))
        inspector.finish()
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        # The feature bits it calls unknown include extended_l2, which our reader knows.
        if failures := {name: str(why) for name, why in error.failures.items() if name != "unknown_features"}:
            raise ImageUnsafeError(f"the image {path} is refused: {', '.join(failures.values())}") from error
    except format_inspector.ImageFormatError as error:
        raise ImageCorruptError(f"the image {path} is corrupt: {error}") from error


def ask_qemu(fd: int, path: str, format: str, layout: Layout, allocated: int) -> int:
    """The virtual size in bytes that QEMU sees in an image which our readers found safe."""
    driver = QEMU_DRIVER[format]
    info = _info(fd, path, driver)
    details = info.get("format-specific", {}).get("data", {})
    if info.get("backing-filename") or details.get("data-file"):
        raise ImageUnsafeError(f"the image {path} is refused: it refers to another file")
    if info.get("encrypted") or details.get("encrypt"):
        raise ImageUnsafeError(f"the image {path} is refused: it is encrypted")
    virtual = int(info["virtual-size"])
    if details.get("corrupt") or layout.virtual_size not in (None, virtual):
        raise ImageCorruptError(f"the image {path} is corrupt: its size or its mark of corruption says so")
    if layout.check:
        _check(fd, path, driver, SECONDS + allocated // BYTES_PER_SECOND)
    return virtual


def _info(fd: int, path: str, driver: str) -> dict[str, Any]:
    result = _run(fd, path, "info", driver, SECONDS)
    if result.status:
        raise ImageCorruptError(f"the image {path} is corrupt: {_said(fd, result)}")
    try:
        parsed: dict[str, Any] = json.loads(result.out)
        int(parsed["virtual-size"])
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"qemu-img info says of {path} what is no description of an image") from error
    return parsed


def _check(fd: int, path: str, driver: str, seconds: int) -> None:
    result = _run(fd, path, "check", driver, seconds)
    if result.status in (NOT_DONE, CORRUPT):
        raise ImageCorruptError(f"the image {path} is corrupt: {_said(fd, result)}", hint="qemu-img check tells more")
    if result.status not in (0, LEAKS, NO_CHECK):
        raise command.failure("qemu-img", result)


def _run(fd: int, path: str, verb: str, driver: str, seconds: int) -> command.Result:
    """Its result; refused is what does not end within its limits, or is being written to."""
    result = _try(fd, verb, driver, seconds)
    if result.status < 0 and slowness() >= SLOW:
        seconds = math.ceil(seconds * slowness())
        result = _try(fd, verb, driver, seconds)
    if result.status < 0:
        raise ImageUnsafeError(f"the image {path} cannot be checked within {seconds} s and {MEMORY // MiB} MiB")
    if result.status and "Is another process using the image" in result.err:
        raise InUseError(f"the image {path} is open for writing in another program", hint="stop the program first")
    return result


def _try(fd: int, verb: str, driver: str, seconds: int) -> command.Result:
    source, limits = f"/dev/fd/{fd}", command.Limits(memory=MEMORY, cpu=seconds)
    return command.run(
        "qemu-img", verb, "--output=json", "-f", driver, source,
        ok=range(-64, 256), pass_fds=(fd,), limits=limits, cage=Cage(reads=(source,)),
    )  # fmt: skip


def _said(fd: int, result: command.Result) -> str:
    """QEMU's own words, without the descriptor's name that only it and we know."""
    lines = [line for line in result.err.splitlines() if line.strip()] or ["qemu-img cannot read it"]
    words = lines[0].removeprefix("qemu-img: ").replace(f"Could not open '/dev/fd/{fd}': ", "")
    return words.replace(f"/dev/fd/{fd}", "it").strip()
