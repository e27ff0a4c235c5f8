"""Second opinions on an image: OpenStack's `format_inspector`, then QEMU itself."""

from __future__ import annotations

import json
import math
import os
import signal
from contextlib import ExitStack, closing
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
    driver, checking = QEMU_DRIVER[format], SECONDS + allocated // BYTES_PER_SECOND
    with ExitStack() as asked:
        look = asked.enter_context(closing(_Question(fd, path, driver, "info", SECONDS)))
        check = None
        if layout.check:  # meanwhile
            check = asked.enter_context(closing(_Question(fd, path, driver, "check", checking)))
        virtual = _described(path, _json(look), layout)
        if check:
            _sound(check)
    return virtual


def _described(path: str, info: dict[str, Any], layout: Layout) -> int:
    details = info.get("format-specific", {}).get("data", {})
    if info.get("backing-filename") or details.get("data-file"):
        raise ImageUnsafeError(f"the image {path} is refused: it refers to another file")
    if info.get("encrypted") or details.get("encrypt"):
        raise ImageUnsafeError(f"the image {path} is refused: it is encrypted")
    virtual = int(info["virtual-size"])
    if details.get("corrupt") or layout.virtual_size not in (None, virtual):
        raise ImageCorruptError(f"the image {path} is corrupt: its size or its mark of corruption says so")
    return virtual


def _json(look: _Question) -> dict[str, Any]:
    result = look.answer()
    if result.status:
        raise ImageCorruptError(f"the image {look.path} is corrupt: {_said(look.fd, result)}")
    try:
        parsed: dict[str, Any] = json.loads(result.out)
        int(parsed["virtual-size"])
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"qemu-img info says of {look.path} what is no description of an image") from error
    return parsed


def _sound(check: _Question) -> None:
    result = check.answer()
    if result.status in (NOT_DONE, CORRUPT):
        said = _said(check.fd, result)
        raise ImageCorruptError(f"the image {check.path} is corrupt: {said}", hint="qemu-img check tells more")
    if result.status not in (0, LEAKS, NO_CHECK):
        raise command.failure("qemu-img", result)


class _Question:
    """One verb of qemu-img about the image, which runs from now on until it is answered or closed."""

    def __init__(self, fd: int, path: str, driver: str, verb: str, seconds: int) -> None:
        self.fd, self.path, self._driver, self._verb, self._seconds = fd, path, driver, verb, seconds
        self._running = self._start(seconds)
        self.close = self._running.end

    def answer(self) -> command.Result:
        """Its result; refused is what does not end within its limits, or is being written to."""
        result, seconds = self._running.result(), self._seconds
        if result.status == -signal.SIGXCPU and slowness() >= SLOW:
            seconds = math.ceil(seconds * slowness())
            result = self._start(seconds).result()
        if result.status == -signal.SIGKILL:  # not by a limit of ours; of the image that says nothing
            raise command.failure("qemu-img", result)
        if result.status < 0:
            raise ImageUnsafeError(
                f"the image {self.path} cannot be checked within {seconds} s and {MEMORY // MiB} MiB"
            )
        if result.status and "Is another process using the image" in result.err:
            raise InUseError(
                f"the image {self.path} is open for writing in another program", hint="stop the program first"
            )
        return result

    def _start(self, seconds: int) -> command.Running:
        source, limits = f"/dev/fd/{self.fd}", command.Limits(memory=MEMORY, cpu=seconds)
        return command.start(
            "qemu-img", self._verb, "--output=json", "-f", self._driver, source,
            ok=range(-64, 256), pass_fds=(self.fd,), limits=limits, cage=Cage(reads=(source,)),
        )  # fmt: skip


def _said(fd: int, result: command.Result) -> str:
    """QEMU's own words, without the descriptor's name that only it and we know."""
    lines = [line for line in result.err.splitlines() if line.strip()] or ["qemu-img cannot read it"]
    words = lines[0].removeprefix("qemu-img: ").replace(f"Could not open '/dev/fd/{fd}': ", "")
    return words.replace(f"/dev/fd/{fd}", "it").strip()
