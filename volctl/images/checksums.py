"""The checksum that a user gave for an image file."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from volctl import interrupt
from volctl.errors import ChecksumError, UsageError
from volctl.model import MiB

PIECE = 4 * MiB
_TEXT = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Checksum:
    """An algorithm of hashlib, and a digest in lower-case hex."""

    algorithm: str
    digest: str


def parse(text: str) -> Checksum:
    """`sha256:` and 64 or `sha512:` and 128 hex digits; else `UsageError`."""
    if not _TEXT.fullmatch(text.lower()):
        raise UsageError(f"{text!r} is not a checksum", hint="write sha256: and 64, or sha512: and 128, hex digits")
    return Checksum(*text.lower().split(":"))


def verify(fd: int, path: str, size: int, expected: Checksum) -> str | None:
    """Hash the file; its sha256 if that was the one asked for. `ChecksumError` names both digests."""
    digest = _hash(fd, size, expected.algorithm)
    if digest != expected.digest:
        raise ChecksumError(
            f"the {expected.algorithm} of the image {path} is {digest}, not {expected.digest}",
            details={"algorithm": expected.algorithm, "expected": expected.digest, "actual": digest},
        )
    return digest if expected.algorithm == "sha256" else None


def _hash(fd: int, size: int, algorithm: str) -> str:
    hashed = hashlib.new(algorithm)
    buffer = memoryview(bytearray(PIECE))
    offset = 0
    while offset < size and (count := os.preadv(fd, [buffer], offset)):
        interrupt.check()
        hashed.update(buffer[:count])
        offset += count
    return hashed.hexdigest()
