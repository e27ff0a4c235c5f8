"""Packed images (gzip, xz, zstd): unpacked once, in bounded memory, into a file without a name.

The packed file may be hostile: what comes out is bounded by the volume that is asked for, by a
configured limit, and, where nobody said a size, by how much more it is than what went in. Blocks of
zeros are left out, so a sparse disk stays sparse.
Sources: RFC 1952, the .xz file format 1.2.1 (stream padding), RFC 8878 (skippable frames).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import field
from typing import Protocol

from volctl import files, interrupt
from volctl.errors import ImageCorruptError, ImageError, ImageTooBigError, ImageUnsafeError
from volctl.images.formats.magic import FOOTER, HEAD, LONGEST_MAGIC, by_head, packer
from volctl.images.gate import Unpacking
from volctl.model import KiB, MiB, format_size
from volctl.records import mutable

READ, WRITE, BLOCK = 32 * KiB, MiB, 64 * KiB  # what is left of a piece that was read is copied for each member
MEMORY = 66 * MiB  # what xz -9 takes, so that a command stays within 150 MiB
WINDOW_LOG = 26  # of zstd, the same: 64 MiB
METADATA = 64 * MiB  # that a format other than raw may take beside the disk, and a tenth of the disk
SUSPICIOUS, RATIO = 512 * MiB, 1000  # gzip packs zeros 1,030 times smaller, xz and zstd far more
_ZEROS = bytes(BLOCK)
_PADDED = {"gzip": 1, "xz": 4, "zstd": 0}
"""What the zeros between and behind the members come in multiples of; 0: there are none."""


class Decoder(Protocol):
    """One member of a packed file; the decompressor objects of `lzma` and `compression.zstd` are such."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def unpack(fd: int, path: str, kind: str, how: Unpacking) -> int:
    """A descriptor of a nameless file that holds what the packed file `fd` holds.

    Raises `ImageCorruptError` (cut off, damaged, something behind it), `ImageTooBigError`,
    `ImageUnsafeError` (it looks like a bomb), `ImageError` (packed twice, packed with too large a
    window), `NoSpaceError`.
    """
    doing = f"unpack {path} in {how.directory}"
    with files.translated(doing), tempfile.TemporaryFile(dir=how.directory, buffering=0) as file:
        unpack_into(file.fileno(), fd, path, kind, how)
        return os.dup(file.fileno())


def unpack_into(target: int, fd: int, path: str, kind: str, how: Unpacking) -> None:
    """The same into an open, empty file."""
    size = os.fstat(fd).st_size
    written = _Target(target, path, how)
    _members(_Source(fd, path, size, how.progress), kind, written)
    written.end()


def beginning(data: bytes, kind: str) -> bytes:
    """The first 4 KiB of what a file that begins with `data` holds; `ImageCorruptError` if that cannot be read."""
    decoder, unreadable = _decoder(kind)
    try:
        return decoder.decompress(data, 4 * KiB)
    except unreadable as error:
        raise ImageCorruptError(f"its {kind} data cannot be read ({error})") from error


@mutable
class _Source:
    """The packed file, read from its beginning to its end."""

    fd: int
    path: str
    size: int
    progress: Callable[[int, int], None]
    position: int = 0

    def read(self) -> bytes:
        interrupt.check()
        data = os.pread(self.fd, READ, self.position)
        self.position += len(data)
        self.progress(self.position, self.size)
        return data

    def corrupt(self, why: str) -> ImageCorruptError:
        return ImageCorruptError(f"the image {self.path} is corrupt: {why}", hint="fetch or export the image again")


def _members(source: _Source, kind: str, target: _Target) -> None:
    """One member after another: gzip, xz and zstd files may be strung together."""
    rest = source.read()
    while rest:
        rest = _next_member(source, kind, _member(source, kind, rest, target))


def _member(source: _Source, kind: str, data: bytes, target: _Target) -> bytes:
    """Unpack a member that begins with `data`; what was read beyond it."""
    decoder, unreadable = _decoder(kind)
    while True:
        try:
            out = decoder.decompress(data, WRITE)
        except unreadable as error:
            raise _refusal(source, kind, error) from error
        target.write(out, source.position)
        if decoder.eof:
            return decoder.unused_data
        wants = decoder.needs_input
        data = source.read() if wants else b""
        if wants and not data and not out:
            raise source.corrupt(f"its {kind} data is cut off after {source.size} bytes")


def _next_member(source: _Source, kind: str, rest: bytes) -> bytes:
    """Where the next member begins, or nothing; padding is skipped, anything else is refused."""
    padding, unit = 0, _PADDED[kind]
    while True:
        begins = rest.lstrip(b"\0")
        padding += len(rest) - len(begins)
        if len(begins) >= LONGEST_MAGIC or not (more := source.read()):
            break
        rest = begins + more
    if (padding and (not unit or padding % unit)) or (begins and packer(begins) != kind):
        raise source.corrupt(f"something that is not {kind} follows its data")
    return begins


class _Gzip:
    """One member, by zlib: what was not taken because the output is bounded is kept here."""

    def __init__(self) -> None:
        import zlib

        self._inflate = zlib.decompressobj(wbits=31)
        self._left = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inflate.decompress(self._left + data, max_length)
        self._left = self._inflate.unconsumed_tail
        return out

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._left

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data


def _decoder(kind: str) -> tuple[Decoder, type[Exception]]:
    """A decoder of one member, and the error of one that it cannot read."""
    if kind == "gzip":
        import zlib

        return _Gzip(), zlib.error
    if kind == "xz":
        import lzma

        return lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY), lzma.LZMAError
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG}), zstd.ZstdError


def _refusal(source: _Source, kind: str, error: Exception) -> ImageError:
    said = str(error)
    if "emory usage limit" in said or "requires too much memory" in said:
        return ImageError(
            f"the image {source.path} takes more than {MEMORY // MiB} MiB of memory to unpack",
            hint="unpack it first, or pack it with less: xz -9 and zstd -19 are taken",
        )
    return source.corrupt(f"its {kind} data cannot be read ({said})")


@mutable
class _Target:
    """The file that is written, and the bounds of what comes out."""

    fd: int
    path: str
    how: Unpacking
    length: int = 0
    head: bytes = b""
    most: int = field(init=False)

    def __post_init__(self) -> None:
        self.most = self.how.limit

    def write(self, data: bytes, read: int) -> None:
        """Append; `read` bytes of the packed file were needed so far."""
        if len(self.head) < HEAD and data:
            self.head = (self.head + data)[:HEAD]
            self._look()
        if self.length + len(data) > self.most:
            raise self._too_big()
        if self.how.volume is None and self.length > max(SUSPICIOUS, read * RATIO):
            raise ImageUnsafeError(
                f"the image {self.path} is refused: {format_size(read)} of it unpack to more than "
                f"{format_size(self.length)}",
                hint="unpack it first if it is what you expect, or say --size",
            )
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            if block != _ZEROS[: len(block)]:
                _write_all(self.fd, block, self.length + start)
        self.length += len(data)

    def _look(self) -> None:
        """The first bytes tell what it is, and so how large it may become."""
        if inner := packer(self.head):
            raise ImageError(f"the image {self.path} is packed twice ({inner} inside)", hint="unpack it first")
        if (volume := self.how.volume) is not None:
            plain = by_head(self.head) is None
            self.most = min(self.how.limit, volume + FOOTER if plain else volume + volume // 10 + METADATA)

    def _too_big(self) -> ImageTooBigError:
        return ImageTooBigError(
            f"the image {self.path} unpacks to more than {format_size(self.most)} ({self.most} bytes)",
            hint="ask for a larger volume" if self.most < self.how.limit else "[images] max_gigabytes is the limit",
            details={"limit": self.most},
        )

    def end(self) -> None:
        """Zeros at the end were not written: the file is as long as what came out all the same."""
        if not self.length:
            raise ImageError(f"the image {self.path} is empty")
        os.ftruncate(self.fd, self.length)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
