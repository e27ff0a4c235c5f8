"""What a user says by which an image is known to be the right one: a checksum, a list of them, a signature."""

from __future__ import annotations

import os
from dataclasses import asdict
from urllib.parse import unquote, urlsplit

from volctl.errors import AccessError, NotFoundError, UsageError
from volctl.flows import words
from volctl.images import checksums, fetch, http, signatures, sums
from volctl.model import Json, MiB
from volctl.records import record
from volctl.small import read_small

MOST = MiB  # bytes of a list of checksums or a signature


@record
class Proof:
    """`checksum` is `sha256:HEX` or `sha512:HEX`; `signature`, of the image itself, as the gate takes it."""

    checksum: str | None = None
    signature: Json | None = None


def resolve(
    policy: fetch.Policy, location: str, checksum: str | None, signature: str | None, keyring: str | None
) -> Proof:
    """Read what the options name. `location` is the image's path or URL, whose last part a list names.

    A signature is of the list of checksums if there is one, else of the image. `UsageError` for options
    that do not go together, `ChecksumError` and `SignatureError` for what does not hold.
    """
    if signature is not None and keyring is None:
        raise UsageError("--signature needs the keys that may sign", hint="say --keyring FILE")
    keys = words.absolute(keyring) if keyring is not None else None
    listed = checksum is not None and not checksums.is_literal(checksum)
    if checksum is not None and listed:
        return Proof(_listed(policy, location, checksum, signature, keys))
    if keys is None:
        return Proof(checksum)
    if signature is None:
        raise UsageError("--keyring goes with --signature, or with a list of checksums that is signed")
    return Proof(checksum, asdict(signatures.Signature.of(_read(policy, signature), keys)))


def _listed(policy: fetch.Policy, location: str, where: str, signature: str | None, keys: str | None) -> str:
    """The image's checksum in a list at a path or URL, whose signature is checked first if keys are given."""
    content = _read(policy, where)
    if keys is not None and signature is not None:
        with signatures.given(content) as fd:
            signatures.verify(fd, where, signatures.Signature.of(_read(policy, signature), keys))
    elif keys is not None and content.lstrip().startswith(signatures.CLEARSIGNED):
        content = signatures.signed_text(content, where, keys)
    elif keys is not None:
        raise UsageError(f"{where} is not signed", hint="its signature may be a file beside it: say --signature")
    return sums.find(content, basename(location), where)


def basename(location: str) -> str:
    path = unquote(urlsplit(location).path) if http.is_url(location) else location
    return os.path.basename(path)


def _read(policy: fetch.Policy, where: str) -> bytes:
    """All of a small file at a path or a URL."""
    if http.is_url(where):
        return fetch.read_small(where, policy, MOST)
    try:
        content = read_small(where, MOST)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFoundError(f"there is no file {where}") from error
    except OSError as error:
        raise AccessError(f"{where} cannot be read: {error.strerror}") from error
    if len(content) > MOST:
        raise UsageError(f"{where} is larger than {MOST} bytes, which no list of checksums and no signature is")
    return content
