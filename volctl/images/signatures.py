"""OpenPGP signatures, checked by gpgv with the keys of one keyring file and no others.

Sources: gpgv(1), doc/DETAILS of GnuPG (the lines of --status-fd), RFC 9580 (ASCII armor).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from volctl import command
from volctl.errors import AccessError, NotFoundError, SignatureError, UsageError
from volctl.records import record
from volctl.small import read_small

CLEARSIGNED = b"-----BEGIN PGP SIGNED MESSAGE-----"
_KEYS = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)
_STATUS = "[GNUPG:] "
BAD = ("BADSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG")
WHY = {
    "BADSIG": "it was changed since it was signed",
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key has expired",
    "REVKEYSIG": "the key was revoked",
    "NO_PUBKEY": "the key is not in the keyring",
}
MOST = 1 << 24  # bytes of a keyring


@record
class Signature:
    """A detached signature, in base64, and the path of the keyring."""

    content: str
    keyring: str

    @classmethod
    def of(cls, content: bytes, keyring: str) -> Signature:
        return cls(base64.b64encode(content).decode(), keyring)


def verify(fd: int, what: str, signature: Signature) -> None:
    """`SignatureError` unless a key of the keyring signed the file `fd`, which a sentence calls `what`."""
    content = base64.b64decode(signature.content)
    with given(content) as signed:
        _gpgv(what, signature.keyring, signed, fd)


def signed_text(content: bytes, what: str, keyring: str) -> bytes:
    """What is signed in a clearsigned file, and nothing that stands around it."""
    with given(content) as signed:
        return _gpgv(what, keyring, signed).encode()


def _gpgv(what: str, keyring: str, signed: int, data: int | None = None) -> str:
    with ExitStack() as stack:
        keys = stack.enter_context(given(_keyring(keyring)))
        fds = [keys, signed] if data is None else [keys, signed, data]
        names = [f"/dev/fd/{fd}" for fd in fds]
        output = ("--output", "-") if data is None else ()
        result = command.run(
            "gpgv", "--homedir", "/nonexistent", "--status-fd", 2, *output, "--keyring", *names,
            ok=range(3), pass_fds=fds,
        )  # fmt: skip
    _judge(what, result.err, detached=data is not None)
    return result.out


def _judge(what: str, told: str, *, detached: bool) -> None:
    """At least one good signature and no bad one; of exactly the file that was meant."""
    lines = [line.removeprefix(_STATUS).split() for line in told.splitlines() if line.startswith(_STATUS)]
    words = [line[0] for line in lines if line]
    if bad := next((word for word in words if word in BAD), None):
        raise SignatureError(f"the signature of {what} is not good: {WHY[bad]}")
    if words.count("PLAINTEXT") != (0 if detached else 1):
        raise SignatureError(f"the signature of {what} is of something else", hint="give the detached signature")
    if "GOODSIG" not in words or "VALIDSIG" not in words:
        why = WHY["NO_PUBKEY"] if "NO_PUBKEY" in words else "there is none that gpgv can read"
        raise SignatureError(f"the signature of {what} cannot be checked: {why}")


def _keyring(path: str) -> bytes:
    """The keys; ASCII armor, which gpgv does not take, is undone."""
    try:
        content = read_small(path, MOST)[:MOST]
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no keyring {path}") from error
    except OSError as error:
        raise AccessError(f"the keyring {path} cannot be read: {error.strerror}") from error
    blocks = _KEYS.findall(content)
    try:
        return b"".join(map(_dearmored, blocks)) if blocks else content
    except binascii.Error as error:
        raise UsageError(f"the keyring {path} is damaged: {error}") from error


def _dearmored(block: bytes) -> bytes:
    """Headers end with an empty line, the checksum begins with `=`."""
    _, _, body = block.replace(b"\r", b"").partition(b"\n\n")
    return base64.b64decode(b"".join(line for line in body.split(b"\n") if not line.startswith(b"=")), validate=True)


@contextmanager
def given(content: bytes) -> Iterator[int]:
    """A descriptor that a program can read these bytes from."""
    fd = os.memfd_create("volctl", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield fd
    finally:
        os.close(fd)
