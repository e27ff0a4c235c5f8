"""The gate: an image file is opened once, and is safe, whole and what it claims to be, or refused.

Nothing else of volctl reads an image but through the descriptor of a `CheckedImage`. The order
matters: content decides the format, then our own readers (`formats`) and, for VMDK, OpenStack's
`format_inspector` look at the tables, and only then may QEMU open the file, with an explicit
format, for what they cannot see. Raw content is never given to a program here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from volctl.errors import AccessError, ImageError, ImageTooBigError, ImageUnsafeError, NotFoundError, UsageError
from volctl.images import safety
from volctl.images.formats import QEMU_DRIVER, inspect
from volctl.images.formats.magic import Magic, identify
from volctl.images.reader import Reader
from volctl.model import GiB, format_size
from volctl.records import record

if TYPE_CHECKING:
    from volctl.images.checksums import Checksum
    from volctl.images.signatures import Signature

ALIASES = {"vpc": "vhd"}
PACKED = ("gzip", "xz", "zstd")
UNPACKED_LIMIT = 100 * GiB
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}


@record
class CheckedImage:
    """An open image that passed the gate. Sizes in bytes.

    `data_size` bounds what a copy writes: the guest data that the file's tables refer to, or the
    blocks that a raw file takes. `identity` is what `fstat` said: device, inode, size, mtime_ns,
    ctime_ns. `sha256` (hex) is None unless that was the checksum asked for. Of a `packed` image (gzip,
    xz, zstd) `fd` and the sizes are of what was unpacked, `identity` and `sha256` of the file as given.
    `known`: an earlier check found all this, and the file is unchanged; `fd` is not read, and who means
    to read it opens the image anew without `known`.
    """

    fd: int
    path: str
    format: str
    virtual_size: int
    file_size: int
    data_size: int
    identity: dict[str, int]
    sha256: str | None
    packed: str | None = None
    known: bool = False

    @property
    def is_device(self) -> bool:
        """A block device: its identity does not tell when its content changes."""
        return self.identity["size"] == 0

    def __enter__(self) -> CheckedImage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self.fd)

    def verify_unchanged(self) -> None:
        """`ImageUnsafeError` if somebody wrote to the file since it was checked."""
        if not self.packed:  # what was unpacked has no name that somebody could write to
            _verify_same(self.fd, self.path, self.identity)

    def verify_same(self, other: CheckedImage) -> None:
        """`ImageUnsafeError` if the path led to another file before."""
        if self.identity != other.identity:
            raise _changed(self.path)


@record
class Known:
    """What an earlier check found in a file that has the same identity now. Sizes in bytes."""

    format: str
    virtual_size: int
    data_size: int
    sha256: str | None
    packed: str | None


@record
class Unpacking:
    """Where packed images are unpacked, how much may come out (bytes), and who hears of it.

    `volume` is the size of the volume it is for, if one was asked for.
    """

    directory: Path
    volume: int | None = None
    limit: int = UNPACKED_LIMIT
    progress: Callable[[int, int], None] = lambda done, total: None


def open_image(
    path: str,
    *,
    declared: str = "auto",
    checksum: str | None = None,
    allow_device: bool = False,
    unpacking: Unpacking | None = None,
    known: Callable[[dict[str, int]], Known | None] | None = None,
    signature: Signature | None = None,
    name: str | None = None,
) -> CheckedImage:
    """Open and check the image at `path`; `declared` is its format's name or `auto`.

    `name` is what sentences call it instead of its path. `checksum` is `sha256:HEX` or `sha512:HEX`. A
    packed image is unpacked as `unpacking` says, refused without. What is `known` of a file of that
    identity is taken instead of another look, if it answers all that is asked. Raises `UsageError` for a
    wrong argument, `NotFoundError`, `AccessError`, `InUseError` (somebody writes to it), and `ImageError`
    or one of its kinds for everything that the image itself is guilty of.
    """
    wanted = _declared(declared)
    expected = _checksum(checksum)
    path = os.path.abspath(path)
    fd = _open(path)
    path = name or path
    try:
        size = _size(fd, path, allow_device)
        identity, packer, digest = _identity(os.fstat(fd)), None, None
        if (found := known and known(identity)) and _answers(found, wanted, expected):
            figures = (found.format, found.virtual_size, size, found.data_size, identity, found.sha256, found.packed)
            return CheckedImage(fd, path, *figures, known=True)
        if signature:
            _verify_signature(fd, path, signature)
        magic = identify(fd, size)
        if unpacking and magic.format in PACKED:
            packer, digest = magic.format, _verify_checksum(fd, path, size, expected)
            fd, size = _unpacked(fd, path, packer, unpacking)
            magic = identify(fd, size)
        format = _format(path, magic, wanted)
        virtual, data = _measure(fd, path, format, size)
        if not packer:
            digest = _verify_checksum(fd, path, size, expected)
        image = CheckedImage(fd, path, format, virtual, size, data, identity, digest, packer)
        image.verify_unchanged()
    except BaseException:
        os.close(fd)
        raise
    return image


def _checksum(text: str | None) -> Checksum | None:
    if text is None:
        return None
    from volctl.images import checksums

    return checksums.parse(text)


def _verify_checksum(fd: int, path: str, size: int, expected: Checksum | None) -> str | None:
    if expected is None:
        return None
    from volctl.images import checksums

    return checksums.verify(fd, path, size, expected)


def _verify_signature(fd: int, path: str, signature: Signature) -> None:
    from volctl.images import signatures

    signatures.verify(fd, path, signature)


def _answers(found: Known, wanted: str | None, expected: Checksum | None) -> bool:
    digest = expected is None or (expected.algorithm, expected.digest) == ("sha256", found.sha256)
    return digest and wanted in (None, found.format)


def _unpacked(fd: int, path: str, packer: str, how: Unpacking) -> tuple[int, int]:
    """The descriptor and the length of what a packed file holds, in the place of the file's own."""
    from volctl.images import packed

    identity = _identity(os.fstat(fd))
    content = packed.unpack(fd, path, packer, how)
    try:
        _verify_same(fd, path, identity)
    except ImageUnsafeError:
        os.close(content)
        raise
    os.close(fd)
    return content, os.fstat(content).st_size


def check_fits(image: CheckedImage, size: int) -> None:
    """`ImageTooBigError` with both numbers if the image's disk is larger than `size` bytes."""
    check_disk_fits(image.path, image.virtual_size, size)


def check_disk_fits(path: str, virtual_size: int, size: int) -> None:
    if virtual_size > size:
        raise ImageTooBigError(
            f"the image {path} holds a disk of {virtual_size} bytes ({format_size(virtual_size)}), "
            f"the volume has {size} bytes ({format_size(size)})",
            hint=f"ask for at least {format_size(virtual_size)}",
            details={"virtual_size": virtual_size, "size": size},
        )


def _declared(declared: str) -> str | None:
    name = ALIASES.get(declared, declared)
    if name != "auto" and name not in QEMU_DRIVER:
        known = ", ".join(["auto", *QEMU_DRIVER, *ALIASES])
        raise UsageError(f"{declared!r} is not an image format", hint=f"formats: {known}")
    return None if name == "auto" else name


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no image file {path}") from error
    except PermissionError as error:
        raise AccessError(f"the image {path} may not be read by this user") from error
    except ValueError as error:
        raise UsageError(f"{path!r} cannot be the path of a file") from error
    except OSError as error:
        raise ImageError(f"the image {path} cannot be opened: {error.strerror}") from error


def _size(fd: int, path: str, allow_device: bool) -> int:
    mode = os.fstat(fd).st_mode
    if kind := KINDS.get(stat.S_IFMT(mode)):
        raise ImageError(f"{path} is {kind}, not an image file")
    if stat.S_ISBLK(mode) and not allow_device:
        raise ImageError(f"{path} is a block device, not an image file", hint="--allow-device takes it all the same")
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise ImageError(f"{path} has no length, so it is no image file: {error.strerror}") from error
    if not size:
        raise ImageError(f"the image {path} is empty")
    return size


def _identity(found: os.stat_result) -> dict[str, int]:
    return {
        "device": found.st_dev,
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _verify_same(fd: int, path: str, identity: dict[str, int]) -> None:
    if _identity(os.fstat(fd)) != identity:
        raise _changed(path)


def _changed(path: str) -> ImageUnsafeError:
    said = f"the image {path} was changed while it was used"
    return ImageUnsafeError(said, hint="try again when nobody writes to it")


def _format(path: str, magic: Magic, wanted: str | None) -> str:
    """The content's format, if it is taken and nothing else was declared."""
    if magic.compressed:
        raise ImageError(f"the image {path} is packed ({magic.format})", hint="unpack it first")
    if magic.format == "luks":
        raise ImageUnsafeError(f"the image {path} is refused: it is encrypted (luks)")
    if magic.format == "vmdk (descriptor)":
        raise ImageUnsafeError(f"the image {path} is refused: it is a VMDK descriptor, its data is in other files")
    if magic.format not in QEMU_DRIVER:
        known = ", ".join(QEMU_DRIVER)
        raise ImageError(f"the image {path} has the format {magic.format}", hint=f"volctl takes {known}")
    if wanted and magic.format != wanted:
        raise ImageError(
            f"the image {path} is {magic.format}, not {wanted} as declared",
            details={"declared": wanted, "found": magic.format},
        )
    return magic.format


def check_whole(fd: int, path: str, format: str) -> None:
    """`ImageError` or one of its kinds if the open file's own tables say that it is cut off, corrupt or not safe."""
    if format != "raw":
        found = os.fstat(fd)
        inspect(format, Reader.of(fd, path, found.st_size, min(found.st_blocks * 512, found.st_size)))


def _measure(fd: int, path: str, format: str, size: int) -> tuple[int, int]:
    """The virtual size, and the most that a copy writes."""
    found = os.fstat(fd)
    allocated = size if stat.S_ISBLK(found.st_mode) else min(found.st_blocks * 512, size)
    if format == "raw":
        return size, allocated
    reader = Reader.of(fd, path, size, allocated)
    layout = inspect(format, reader)
    safety.inspect_as_openstack(fd, path, format, size)
    virtual = safety.ask_qemu(fd, path, format, layout, allocated)
    if not virtual:
        raise ImageError(f"the image {path} holds an empty disk")
    if layout.footer is not None:
        reader.reaches(virtual + layout.footer, "disk and footer")
    data = min(layout.data, allocated) if format == "vhd" and layout.data == virtual else layout.data
    return virtual, data
