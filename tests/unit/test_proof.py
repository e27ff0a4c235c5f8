"""Checksum files as they are published, and signatures: what holds, what does not, and what only looks as if."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web import serving
from volctl.errors import ChecksumError, MissingError, NotFoundError, SignatureError, UsageError, VolctlError
from volctl.images import fetch, signatures, sums
from volctl.images.gate import open_image
from volctl.images.signatures import Signature
from volctl.service.proof import Proof, resolve
from volctl.small import read_small

A, B = "a" * 64, "b" * 128
POLICY = fetch.Policy(1, 5)


@pytest.mark.parametrize(
    "text",
    [
        f"{A}  disk.img\n{'c' * 64}  other.img\n", f"{A} *disk.img\n", f"{A.upper()}  ./disk.img\r\n",
        f"# a comment\n\n{A}\tdisk.img\n", f"SHA256 (disk.img) = {A}\n", f"{A}\n",
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{A}  disk.img\n-----BEGIN PGP SIGNATURE-----\n\niQ=\n",
        f"{A}  disk.img\n{A}  disk.img\n", f"{'d' * 32}  disk.img\n{A}  disk.img\n",
    ],
)  # fmt: skip
def test_a_list_of_checksums(text: str) -> None:
    assert sums.find(text.encode(), "disk.img", "SUMS") == f"sha256:{A}"


def test_the_stronger_of_two_kinds() -> None:
    assert sums.find(f"{A}  disk.img\n{B}  disk.img\n".encode(), "disk.img", "SUMS") == f"sha512:{B}"


@pytest.mark.parametrize(
    "text", ["", f"{A}  other.img\n", f"{A}  disk.img\n{'c' * 64}  disk.img\n", f"{'d' * 32}  disk.img\n", "<html>"]
)
def test_a_list_that_does_not_say(text: str) -> None:
    with pytest.raises(ChecksumError):
        sums.find(text.encode(), "disk.img", "SUMS")


class Keys:
    """A key of our own, its keyring in both forms, and what it signs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)
        self.gpg("--passphrase", "", "--quick-gen-key", "Test <test@example.org>", "ed25519", "sign", "never")
        self.ring, self.armored = home / "ring.gpg", home / "ring.asc"
        self.ring.write_bytes(self.gpg("--export"))
        self.armored.write_bytes(self.gpg("--export", "--armor"))

    def gpg(self, *words: str | Path, given: bytes = b"") -> bytes:
        line = ["gpg", "--homedir", self.home, "--batch", "--yes", "--quiet", *words]
        return subprocess.run(line, input=given, capture_output=True, check=True).stdout

    def signs(self, content: bytes, how: str = "--detach-sign") -> bytes:
        return self.gpg(how, given=content)

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    made = Keys(tmp_path_factory.mktemp("keys") / "home")
    yield made
    made.close()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    made = Keys(tmp_path_factory.mktemp("stranger") / "home")
    yield made
    made.close()


def verify(content: bytes, signature: bytes, ring: Path) -> None:
    with signatures.given(content) as fd:
        signatures.verify(fd, "disk.img", Signature.of(signature, str(ring)))


@pytest.mark.parametrize("how", ["--detach-sign", "--detach-sign --armor"])
def test_a_good_signature(how: str, keys: Keys) -> None:
    signature = keys.gpg(*how.split(), given=b"content")
    for ring in (keys.ring, keys.armored):
        verify(b"content", signature, ring)


def test_what_is_no_good_signature(keys: Keys, stranger: Keys, tmp_path: Path) -> None:
    good = keys.signs(b"content")
    cases = {
        "changed": (b"contenT", good, keys.ring),
        "not in the keyring": (b"content", stranger.signs(b"content"), keys.ring),
        "none": (b"content", b"", keys.ring),
        "that gpgv can read": (b"content", b"garbage", keys.ring),
    }
    for said, case in cases.items():
        with pytest.raises(SignatureError) as caught:
            verify(*case)
        assert said in caught.value.message or said == "none"


def test_a_message_that_brings_its_own_content_signs_nothing_else(keys: Keys) -> None:
    """gpgv says that such a signature is good, and that the file was not looked at."""
    for how in ("--sign", "--clearsign"):
        with pytest.raises(SignatureError):
            verify(b"another content", keys.signs(b"content", how), keys.ring)


def test_both_a_good_and_a_bad_one(keys: Keys, stranger: Keys) -> None:
    verify(b"content", stranger.signs(b"content") + keys.signs(b"content"), keys.ring)
    with pytest.raises(SignatureError):
        verify(b"content", keys.signs(b"content") + keys.signs(b"other"), keys.ring)


def test_only_what_is_signed_of_a_clearsigned_list(keys: Keys, tmp_path: Path) -> None:
    signed = keys.signs(f"{A}  disk.img\n".encode(), "--clearsign")
    forged = f"{'f' * 64}  disk.img\n".encode()
    (tmp_path / "SUMS").write_bytes(signed)
    shown = resolve(POLICY, "/x/disk.img", str(tmp_path / "SUMS"), None, str(keys.ring))
    assert shown == Proof(f"sha256:{A}")
    (tmp_path / "SUMS").write_bytes(signed + forged)
    assert resolve(POLICY, "/x/disk.img", str(tmp_path / "SUMS"), None, str(keys.ring)) == shown
    (tmp_path / "SUMS").write_bytes(signed.replace(b"a" * 64, b"f" * 64))
    with pytest.raises(SignatureError):
        resolve(POLICY, "/x/disk.img", str(tmp_path / "SUMS"), None, str(keys.ring))
    assert resolve(POLICY, "/x/disk.img", str(tmp_path / "SUMS"), None, None) == Proof(f"sha256:{'f' * 64}")


def test_a_list_beside_its_signature_by_url(keys: Keys) -> None:
    content = f"{A}  disk img\n".encode()
    with serving() as web:
        listed, signature = web.put("/SHA256SUMS", content), web.put("/SHA256SUMS.gpg", keys.signs(content))
        shown = resolve(POLICY, web.url("/disk%20img?x=1"), listed, signature, str(keys.armored))
        assert shown == Proof(f"sha256:{A}")
        web.put("/SHA256SUMS", content.replace(b"a", b"e"))
        with pytest.raises(SignatureError):
            resolve(POLICY, web.url("/disk%20img"), listed, signature, str(keys.ring))
        web.put("/SHA256SUMS", bytes(2 << 20))
        with pytest.raises(VolctlError):
            resolve(POLICY, web.url("/disk%20img"), listed, None, None)


def test_options_that_do_not_go_together(keys: Keys, tmp_path: Path) -> None:
    plain = tmp_path / "SUMS"
    plain.write_text(f"{A}  disk.img\n")
    for error, *words in (
        (UsageError, None, "sig", None), (UsageError, None, None, "ring"), (UsageError, f"sha256:{A}", None, "ring"),
        (UsageError, str(plain), None, str(keys.ring)), (NotFoundError, None, "/nothere", str(keys.ring)),
        (NotFoundError, str(tmp_path), None, None),
    ):  # fmt: skip
        with pytest.raises(error):
            resolve(POLICY, "disk.img", *words)


def test_the_gate_asks_for_the_signature(keys: Keys, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    signature = Signature.of(keys.signs(bytes(4096)), str(keys.ring))
    open_image(str(image), signature=signature).__exit__(None, None, None)
    image.write_bytes(bytes(4097))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SignatureError):
        open_image(str(image), signature=signature)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_keyring_that_is_none(keys: Keys, tmp_path: Path) -> None:
    good = keys.signs(b"content")
    with pytest.raises(NotFoundError):
        verify(b"content", good, tmp_path / "nothere")
    for content in (
        b"",
        b"garbage",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!\n-----END PGP PUBLIC KEY BLOCK-----\n",
    ):
        (tmp_path / "ring").write_bytes(content)
        with pytest.raises((SignatureError, UsageError)):
            verify(b"content", good, tmp_path / "ring")


def test_without_gpgv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingError) as caught:
        verify(b"content", b"signature", Path("/dev/null"))
    assert caught.value.exit == 9 and "package gpgv" in str(caught.value.hint)


def test_a_line_that_goes_on_and_on() -> None:
    """From a server that means no good."""
    for text in (f"{A}  x{' ' * 900_000}b\n", f"{A}{' ' * 900_000}b", f"SHA256 ({') = ' * 200_000}\n"):
        begun = time.process_time()
        with pytest.raises(ChecksumError):
            sums.find(text.encode(), "disk.img", "SUMS")
        assert time.process_time() - begun < 5


@pytest.mark.parametrize("content", [b"whole", b""])
def test_what_comes_through_a_pipe_is_read_to_its_end(content: bytes, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=[content])
    writer.start()
    assert read_small(tmp_path / "fifo", 100) == content
    writer.join()
