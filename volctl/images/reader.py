"""Bounded reads of an image's metadata: nothing past the end, nothing longer than its budget."""

from __future__ import annotations

import os
import sys
import time
from array import array
from collections.abc import Iterator
from functools import cache

from volctl import interrupt
from volctl.errors import ImageCorruptError, ImageUnsafeError
from volctl.model import KiB, MiB
from volctl.records import record

SECONDS = 0.6  # of our own processor time for the tables of one image
BYTES_PER_SECOND = 2 * 1024 * MiB  # an image that really holds much may take longer
PIECE = 512 * KiB
_LOOP, _USUAL = 200_000, 0.004  # additions, and the seconds that a usual machine needs for them at most


@cache
def slowness() -> float:
    """How many times slower than a usual machine this one is, at least 1: the best of three tries.

    Budgets of time are meant for hostile images; a good one is not to be refused where the processor
    is emulated. Asked only when a budget is used up, so that it costs nobody else anything.
    """
    return max(1.0, min(_try() for _ in range(3)) / _USUAL)


def _try() -> float:
    began = time.process_time()
    sum(range(_LOOP))
    return time.process_time() - began


@record
class Reader:
    """The descriptor of an image, its length in bytes, and how long its tables may take.

    Tables of hostile files can be far larger than the file (holes, tables that are shared), so
    reading them has a budget of processor time that grows only with what the file really takes.
    """

    fd: int
    name: str
    size: int
    seconds: float
    began: float

    @classmethod
    def of(cls, fd: int, name: str, size: int, allocated: int) -> Reader:
        return cls(fd, name, size, SECONDS + allocated / BYTES_PER_SECOND, time.process_time())

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Exactly `length` bytes; `ImageCorruptError` if the file ends before."""
        interrupt.check()
        spent = time.process_time() - self.began
        if spent > self.seconds and spent > self.seconds * slowness():
            raise ImageUnsafeError(f"the image {self.name} has tables too large to be checked")
        self.reaches(offset + length, what)
        data = os.pread(self.fd, length, offset)
        if len(data) != length:
            raise self.corrupt(f"its {what} cannot be read")
        return data

    def words(self, code: str, offset: int, count: int, what: str, big: bool = False) -> Iterator[array[int]]:
        """A table of `count` unsigned integers (`I` 32, `Q` 64 bits), piece by piece."""
        width = 4 if code == "I" else 8
        self.reaches(offset + count * width, what)
        for start in range(0, count * width, PIECE):
            yield unpack(code, self.read(offset + start, min(PIECE, count * width - start), what), big)

    def reaches(self, needed: int, what: str) -> None:
        """`ImageCorruptError` with both numbers unless the file is at least `needed` bytes long."""
        if needed > self.size:
            raise ImageCorruptError(
                f"the image {self.name} is cut off: its {what} needs {needed} bytes, the file has {self.size}",
                hint="fetch or export the image again",
                details={"needed": needed, "actual": self.size},
            )

    def holds(self, data: int, room: int) -> None:
        """`ImageCorruptError` if its tables refer to more bytes than it has room for.

        No writer of these formats lets two places of the disk share one of the file, and such a file
        could become any number of times larger than it is.
        """
        if data > self.size + room:
            raise self.corrupt(f"its tables refer to {data} bytes of data, the file has {self.size}")

    def corrupt(self, why: str) -> ImageCorruptError:
        return ImageCorruptError(f"the image {self.name} is corrupt: {why}")

    def unsafe(self, why: str) -> ImageUnsafeError:
        return ImageUnsafeError(f"the image {self.name} is refused: {why}")


def unpack(code: str, raw: bytes, big: bool = False) -> array[int]:
    """Unsigned integers of 32 (`I`) or 64 (`Q`) bits, little-endian unless `big`."""
    table = array(code, raw)
    if big == (sys.byteorder == "little"):
        table.byteswap()
    return table
