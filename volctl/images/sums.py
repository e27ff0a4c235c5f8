"""Checksum files as distributions publish them: SHA256SUMS, SHA512SUMS, in GNU's and in BSD's form.

Source: sha256sum(1): `HEX  NAME`, `HEX *NAME`; cksum(1) --tag: `SHA256 (NAME) = HEX`.
"""

from __future__ import annotations

import re

from volctl.errors import ChecksumError

ALGORITHMS = {64: "sha256", 128: "sha512"}
_GNU = re.compile(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{128})[ \t]+\*?(?:\./)?(.+)")
_BSD = re.compile(r"SHA(?:256|512) \((?:\./)?(.+)\) = ([0-9a-fA-F]{64}|[0-9a-fA-F]{128})")


def find(text: bytes, name: str, where: str) -> str:
    """`sha256:HEX` or `sha512:HEX` of the file called `name`; a single bare digest is anybody's.

    `ChecksumError` if there is none, or several that differ. Comments and what else is there (the
    lines of a signature) are passed over. `where` is what a sentence calls the checksum file.
    """
    lines = text.decode("utf-8", "replace").splitlines()
    found = {digest.lower() for line in lines for digest, named in _pair(line) if named == name}
    if not found and len(words := text.split()) == 1:
        found = {words[0].decode("ascii", "replace").lower()}
    strongest = {digest for digest in found if len(digest) == max(map(len, found))}
    if len(strongest) != 1:
        said = "names several checksums of" if strongest else "names no sha256 or sha512 of"
        raise ChecksumError(f"{where} {said} {name}", hint="give the checksum itself: sha256:HEX or sha512:HEX")
    digest = strongest.pop()
    if len(digest) not in ALGORITHMS:
        raise ChecksumError(f"{where} holds no sha256 or sha512")
    return f"{ALGORITHMS[len(digest)]}:{digest}"


def _pair(line: str) -> list[tuple[str, str]]:
    """The digest and the name of a line, if it is one of either form."""
    line = line.rstrip()
    if match := _GNU.fullmatch(line):
        return [(match[1], match[2])]
    if match := _BSD.fullmatch(line):
        return [(match[2], match[1])]
    return []
