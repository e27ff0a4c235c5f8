"""The checksum that a user gave for an image file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable

from volctl import interrupt
from volctl.errors import ChecksumError, UsageError
from volctl.images import http
from volctl.model import MiB
from volctl.records import record

PIECE = 4 * MiB
_TEXT = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@record
class Checksum:
    """An algorithm of hashlib, and a digest in lower-case hex."""

    algorithm: str
    digest: str


def parse(text: str) -> Checksum:
    """`sha256:` and 64 or `sha512:` and 128 hex digits; else `UsageError`."""
    if not _TEXT.fullmatch(text.lower()):
        raise UsageError(f"{text!r} is not a checksum", hint="write sha256: and 64, or sha512: and 128, hex digits")
    return Checksum(*text.lower().split(":"))


def is_literal(text: str) -> bool:
    """Is it a checksum (perhaps a wrong one), and not the name of a file that lists some?"""
    return _TEXT.fullmatch(text.lower()) is not None or not (os.path.lexists(text) or http.is_url(text))


def verify(fd: int, path: str, size: int, expected: Checksum) -> str | None:
    """Hash the file; its sha256 if that was the one asked for. `ChecksumError` names both digests."""
    hashes = Hashes({expected.algorithm})
    hashes.read(fd, size)
    compare(path, expected, hashes.digest(expected.algorithm))
    return hashes.digest("sha256")


def compare(path: str, expected: Checksum, digest: str | None) -> None:
    """`ChecksumError` with both digests unless they are the same."""
    if digest != expected.digest:
        raise ChecksumError(
            f"the {expected.algorithm} of the image {path} is {digest}, not {expected.digest}",
            details={"algorithm": expected.algorithm, "expected": expected.digest, "actual": digest},
        )


class Hashes:
    """Digests of bytes that come piece by piece, by these algorithms of hashlib."""

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._algorithms = tuple(algorithms)
        self.reset()

    def reset(self) -> None:
        """As if nothing had come."""
        self._hashes = {name: hashlib.new(name) for name in self._algorithms}

    def update(self, data: bytes | memoryview) -> None:
        for hashed in self._hashes.values():
            hashed.update(data)

    def read(self, fd: int, size: int) -> None:
        """The first `size` bytes of a file."""
        buffer = memoryview(bytearray(PIECE))
        offset = 0
        while offset < size and (count := os.preadv(fd, [buffer[: size - offset]], offset)):
            interrupt.check()
            self.update(buffer[:count])
            offset += count

    def digest(self, algorithm: str) -> str | None:
        """In lower-case hex; None if that was not asked for."""
        found = self._hashes.get(algorithm)
        return found.hexdigest() if found else None
