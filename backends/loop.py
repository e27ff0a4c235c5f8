"""Volumes as raw sparse files in a directory.

    [[backend]]
    name = "files"
    kind = "loop"
    directory = "/srv/volumes"     # absolute; `volctl backend init files` puts the marker there
    preallocate = "off"            # "falloc": a volume's space is taken when it is made
    owner = "libvirt-qemu"         # of new files; also group, and mode = "0600"

Host tools: none; to attach takes root and Linux 5.8. Clones and snapshots share blocks (FICLONE) on
xfs, btrfs and the like, else they are sparse copies that keep holes. With `falloc` nothing is shared:
a shared block needs new space when it is written, which is what preallocation promises not to happen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from volctl import files
from volctl.backend import Attached, Capabilities, Progress, Setup, Target
from volctl.errors import BackendError, ConfigError, Failure
from volctl.files import loopdev
from volctl.files.device import SECTOR_SIZES, BlockDevice
from volctl.model import Object
from volctl.shelf import Shelf


class Loop(Shelf):
    kind = "loop"
    options = ("directory", "preallocate", "owner", "group", "mode", "capabilities")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        preallocate = setup.options.get("preallocate", "off")
        if preallocate not in ("off", "falloc"):
            raise ConfigError(f"backend {self.name}: preallocate = {preallocate!r} is neither off nor falloc")
        self._preallocate = preallocate == "falloc"

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            thin=not self._preallocate,
            constant_time_clone=not self._preallocate and files.reflinks(self._directory.path),
            path_without_attach=True,
            carried_when_whole=True,
            sector_sizes=SECTOR_SIZES,
            extra=self.setup.options.get("capabilities", {}),
        )

    def create(self, target: Object, size: int) -> None:
        with self._directory.opened(f"create {target.name}") as place, place.fresh(target.name, self._ownership) as fd:
            files.grow(fd, size, preallocate=self._preallocate)
            files.tell(place, fd, target)

    def clone(self, source: Object, target: Object, size: int, progress: Progress) -> None:
        with (
            self._directory.opened(f"clone {source.name} to {target.name}") as place,
            place.existing(source.name) as original,
            place.fresh(target.name, self._ownership) as fd,
        ):
            self._fill(original, fd, size, progress)
            files.tell(place, fd, target)

    def _fill(self, original: int, fd: int, size: int, progress: Progress) -> None:
        """Make the new file `fd` read as `original`, then zeros up to `size`."""
        length = os.fstat(original).st_size
        if size < length:
            raise BackendError(f"the source has {length} bytes, more than the {size} asked for")
        if self._preallocate:
            files.grow(fd, size, preallocate=True)
            files.copy(original, fd, progress, share=False)
        elif not files.reflink(original, fd):
            files.copy(original, fd, progress)
        files.grow(fd, size, preallocate=False)
        progress(length, length)

    def clone_image(self, image: int, target: Object, size: int) -> bool:
        if self._preallocate or not files.can_share(image, self._directory.path):
            return False
        with self._directory.opened(f"create {target.name}") as place:
            with place.fresh(target.name, self._ownership) as fd:
                if shared := files.reflink(image, fd):
                    files.grow(fd, size, preallocate=False)
                    files.tell(place, fd, target)
            if not shared:
                place.remove(target.name)
        return shared

    @contextmanager
    def writing(self, target: Object, size: int) -> Iterator[Target]:
        self.create(Object(target.kind, target.id), size)  # what it is about is told when it is whole
        yield Target(self.path(target), "raw", zeroed=True)
        with self._directory.opened(f"write {target.name}") as place:
            self._finish(place, target, size)

    def _finish(self, place: files.Place, target: Object, size: int) -> None:
        with place.existing(target.name, os.O_RDWR) as fd:
            if os.fstat(fd).st_size > size:
                os.ftruncate(fd, size)
            files.grow(fd, size, preallocate=False)
            if self._preallocate:
                files.allocate(fd, 0, size)  # the writer may have truncated it first
            files.tell(place, fd, target)

    @contextmanager
    def reading(self, source: Object) -> Iterator[Target]:
        with self._directory.opened(f"read {source.name}") as place, place.existing(source.name):
            pass
        yield Target(self.path(source), "raw", zeroed=False)

    def extend(self, volume: Object, size: int) -> None:
        with (
            self._directory.opened(f"extend {volume.name}") as place,
            place.existing(volume.name, os.O_RDWR) as fd,
        ):
            files.grow(fd, size, preallocate=self._preallocate)

    def snapshot(self, volume: Object, snapshot: Object) -> None:
        with (
            self._directory.opened(f"snapshot {volume.name} as {snapshot.name}") as place,
            place.existing(volume.name) as original,
            place.fresh(snapshot.name, self._ownership) as fd,
        ):
            self._fill(original, fd, os.fstat(original).st_size, lambda done, total: None)
            files.tell(place, fd, snapshot)

    def delete_snapshot(self, volume: Object, snapshot: Object) -> None:
        with self._directory.opened(f"delete {snapshot.name}") as place:
            place.remove(snapshot.name, _reverting(volume))

    def revert(self, volume: Object, snapshot: Object, size: int) -> None:
        """The volume's file is replaced by another inode, in one step, with the owner and mode it had."""
        doing = f"revert {volume.name} to {snapshot.name}"
        with self._directory.opened(doing) as place:
            with (
                _only_whole(place, _reverting(volume), doing),
                place.existing(volume.name) as old,
                place.existing(snapshot.name) as original,
            ):
                had = os.fstat(old)
                ownership = files.Ownership(had.st_uid, had.st_gid, had.st_mode & 0o7777)
                with place.fresh(_reverting(volume), ownership) as fd:
                    self._fill(original, fd, size, lambda done, total: None)
                    files.carry(old, fd)
            place.replace(_reverting(volume), volume.name)

    def delete(self, volume: Object) -> None:
        with self._directory.opened(f"delete {volume.name}") as place:
            place.remove(volume.name, _reverting(volume))

    def holders(self, volume: Object) -> list[str]:
        with self._directory.opened(f"look at who holds {volume.name}") as place:
            if not place.stat(volume.name):
                return []
            with place.existing(volume.name) as fd:
                return files.holders(self.path(volume), fd)

    def attach(self, volume: Object, *, read_only: bool, sector_size: int | None = None) -> str:
        """A loop device, direct where the file system can. A crash leaves it complete or not begun."""
        flags = os.O_RDONLY if read_only else os.O_RDWR
        with (
            self._directory.opened(f"attach {volume.name}") as place,
            place.existing(volume.name, flags) as fd,
        ):
            file = os.fstat(fd)
            device = loopdev.find(file, volume.name)
            if device and not _fits(device, read_only, sector_size):
                loopdev.detach(device)
                device = None
            device = device or loopdev.attach(fd, volume.name, read_only=read_only, sector_size=sector_size)
        if device.size != file.st_size or not _fits(device, read_only, sector_size):
            raise BackendError(f"{device.node} has {device.size} bytes, or not the mode or sectors asked for")
        return str(device.node)

    def detach(self, volume: Object) -> None:
        with self._directory.opened(f"detach {volume.name}") as place:
            while (file := place.stat(volume.name)) and (device := loopdev.find(file, volume.name)):
                loopdev.detach(device)
        for target, device in self._marked():  # over a file that is gone
            if target == volume:
                loopdev.detach(device)

    def attached(self, volume: Object, device: str | None = None) -> Attached | None:
        try:
            found = loopdev.find(os.stat(self.path(volume)), volume.name, device)
            return _attached(found) if found else None
        except OSError:
            return None  # no file, so nothing over it; or detached while we looked

    def resize_device(self, volume: Object) -> None:
        with self._directory.opened(f"grow the device of {volume.name}") as place:
            if (file := place.stat(volume.name)) and (device := loopdev.find(file, volume.name)):
                loopdev.grow(device)

    def _devices(self) -> dict[Object, Attached]:
        return {target: _attached(device) for target, device in self._marked()}

    def _marked(self) -> Iterator[tuple[Object, BlockDevice]]:
        for name, device in loopdev.marked(self.pool()):
            if target := files.object_named(name):
                yield target, device


def _fits(device: BlockDevice, read_only: bool, sector_size: int | None) -> bool:
    return device.read_only == read_only and sector_size in (None, device.sector_size)


def _attached(device: BlockDevice) -> Attached:
    return Attached(str(device.node), device.read_only, device.sector_size)


@contextmanager
def _only_whole(place: files.Place, name: str, doing: str) -> Iterator[None]:
    """Inside, a file is made that is to replace another: if that fails it is gone again, and nothing was touched."""
    try:
        with files.translated(f"{doing} in {place.path}"):
            yield
    except Failure as error:
        place.remove(name)
        error.untouched = True
        raise


def _reverting(volume: Object) -> str:
    return f"revert-{volume.id}"
